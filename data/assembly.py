"""From complete shards to a dataset: the folder in which it comes about, and what is written when all is there."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from data.building import Extent, Job
from data.inputs import STANDARD_INPUT
from data.manifest import CleaningCounts, Manifest, file_entry
from data.shards import UNFINISHED, WORK, Made, complete, counts_path
from launch import commit
from launch.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAN = "plan.json"  # in the work folder: what the build was started with


@contextmanager
def work_folder(folder: Path, identity: dict[str, Any], streams: list[str]) -> Iterator[None]:
    """The folder in which shards are made, locked; with the complete ones of an unfinished build of the same.

    Raises:
        ConfigError: another build is at work there, or an unfinished one was of something else and got to a shard.
    """
    work = folder / WORK
    if folder.exists() and not work.is_dir():
        raise ConfigError(f"{folder}: is in the way, and no unfinished build: move it, or give another --output")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: can't be made: {error.strerror}") from error
    with open(work / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another process is building there") from error
        before = recorded(folder)
        nothing_made = before != identity and not any(complete(folder))  # as where the input was refused
        if before is None or nothing_made or (before == identity and STANDARD_INPUT in streams):
            _clear(folder)
            commit.write_text(work / PLAN, json.dumps(identity))
        elif before != identity:
            changed = ", ".join(key for key in identity if before.get(key) != identity[key])
            raise ConfigError(
                f"{folder}: an unfinished build of something else is there (changed: {changed}). Give what it was "
                "started with, or another --output, or remove the folder"
            )
        for pattern in (f"{UNFINISHED}*", "*.partial"):  # of shards, and of files that launch.commit writes
            for path in folder.rglob(pattern):
                path.unlink()
        yield


def _clear(folder: Path) -> None:
    """Remove all but the lock."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name != "lock" and path.name != WORK:
            path.rmdir() if path.is_dir() else path.unlink()


def recorded(folder: Path) -> dict[str, Any] | None:
    """What the build in a folder was started with; None where there is none, or it is over."""
    path = folder / WORK / PLAN
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        return None


def drop_work(folder: Path) -> None:
    """Remove what was needed only to make the dataset; the plan goes last, and until then a start goes on here."""
    work = folder / WORK
    for path in sorted(work.iterdir(), key=lambda path: path.name == PLAN):
        path.unlink()
    work.rmdir()


def assemble(job: Job, extents: list[Extent], tokenizer: "PreTrainedTokenizerFast") -> None:
    """Write manifest, counts and tokenizer of each dataset, once all shards are there.

    Raises:
        DataError: no sequence is left, or the shards are not of the whole input.
    """
    made = list(complete(job.folder))
    check_cover(extents, made)
    for number, name in enumerate(job.recipe.selection.datasets):
        folder, parts = job.folder / name, [shard[number] for shard in made]
        cleaning = sum((part.cleaning for part in parts), CleaningCounts())
        kept = _without_empty(folder, parts)
        if not kept:
            shutil.rmtree(job.folder)  # nothing in it can be of use again
            which, cure = (f" for {name}/", "; hold out another share") if name != "." else ("", "")
            did = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in vars(cleaning).items() if count)
            raise DataError(f"no sequence is left{which} of {cleaning.lines:,} lines ({did or 'none'}){cure}")
        arrays = (np.load(counts_path(job.folder, part.entry.name, folder)) for part in parts)
        commit.write_array(folder / "counts.npy", sum(arrays, np.zeros(job.recipe.vocabulary.size, np.int64)))
        tokenizer.save_pretrained(folder / "tokenizer")
        beside = ["counts.npy", *sorted(f"tokenizer/{path.name}" for path in (folder / "tokenizer").iterdir())]
        Manifest(
            dtype=job.recipe.vocabulary.dtype.name,
            vocabulary=job.recipe.vocabulary,
            tokenizers_version=tokenizers.__version__,
            rules=job.recipe.rules,
            cleaning=cleaning,
            shards=tuple(part.entry for part in kept),
            files={name: file_entry(folder / name) for name in beside},
        ).write(folder)


def check_cover(extents: list[Extent], made: list[list[Made]]) -> None:
    """Every byte of every input is in exactly one shard.

    Raises:
        DataError: names the input where one is missing, or there twice.
    """
    entries = [shard[0].entry for shard in made]
    for extent in extents:
        mine, entries = entries[: extent.shards], entries[extent.shards :]
        borders = [0, *(entry.end for entry in mine)]
        starts = [entry.start for entry in mine]
        if {entry.source for entry in mine} - {extent.source} or starts != borders[:-1] or borders[-1] != extent.bytes:
            raise DataError(f"{extent.source}: its {extent.bytes:,} bytes are not each in one shard: {borders}")
    if entries:
        raise DataError(f"{len(entries)} shards are of no input")


def _without_empty(folder: Path, parts: list[Made]) -> list[Made]:
    """Remove shards of ranges that left no sequence: an empty file can't be memory-mapped by Megatron's reader."""
    for part in parts:
        if not part.entry.sequences:
            (folder / f"{part.entry.name}.bin").unlink(missing_ok=True)
            (folder / f"{part.entry.name}.idx").unlink(missing_ok=True)
    return [part for part in parts if part.entry.sequences]
