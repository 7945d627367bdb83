"""Checkpoints through DeepSpeed, committed as a whole, verified before they are trusted.

`checkpoints/step00001000/` holds DeepSpeed's files and `MANIFEST.json` (size and SHA-256 of each). DeepSpeed itself
writes `latest` before all ranks have finished, and loads a damaged file in silence. So every rank writes into a
temporary folder, syncs and hashes its own files; then rank 0 writes the manifest, renames the folder, and points
`latest` to it (nothing here reads it). A kill at any moment leaves the last whole checkpoint.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launch import commit, space
from launch.distributed import by_main, gather
from launch.errors import CheckpointError

MANIFEST = "MANIFEST.json"
MODEL_STATES = "mp_rank_00_model_states.pt"  # DeepSpeed's name: the module's weights in the training dtype, counters
PARTIAL, DELETED, DAMAGED = ".partial-", ".deleted-", "damaged-"  # before a tag: no checkpoint, or no longer one
_TAG = re.compile(r"step[0-9]{8,}")
_SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_([0-9]+)_mp_rank_00_optim_states\.pt")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Files = dict[str, tuple[int, str]]  # name -> size in bytes, SHA-256


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files are all there, unchanged."""

    path: Path
    step: int
    ranks: int
    stage: int


def tag(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step{step:08d}"


def save(engine: Any, root: Path) -> Path:
    """Commit a checkpoint of the engine's current step; all ranks call it. One that is there already stays.

    Raises:
        CheckpointError: on every rank, if any can't write; says how much space is missing, where that is why.
    """
    final = root / tag(engine.global_steps)
    try:
        if partial := by_main(lambda: _make_way(final)):
            manifest = {"step": engine.global_steps, "ranks": dist.get_world_size(),
                        "stage": engine.zero_optimization_stage(), "files": _write(engine, partial)}  # fmt: skip
            by_main(lambda: _publish(partial, final, manifest))
    except OSError as error:
        missing = by_main(lambda: _give_up(root, space.forecast(engine)))
        raise CheckpointError(
            f"{final}: can't be written: {error}{missing}; the last whole checkpoint is kept"
        ) from error
    return final


def newest(root: Path, on_damage: Any = print) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where there is none at all.

    Args:
        on_damage: called with a sentence for each damaged one that is passed over.

    Raises:
        CheckpointError: there are checkpoints, but not one verifies: a run must not start over in silence.
    """
    damaged = []
    for path in reversed(committed(root)):
        try:
            return verify(path)
        except CheckpointError as error:
            damaged.append(str(error))
            on_damage(f"skipping a damaged checkpoint: {error}")
    if damaged:
        raise CheckpointError(f"{root}: no checkpoint is whole:\n" + "\n".join(damaged))
    return None


def newest_for_all(root: Path) -> Checkpoint | None:
    """`newest`, looked up by rank 0 for every rank: one reader of all those files, and one answer.

    Damaged ones that are newer get another name (`damaged-step...`), so that their steps can be saved again.

    Raises:
        CheckpointError: on every rank, what rank 0 found.
    """

    def find() -> Checkpoint | None:
        found, folders = newest(root), committed(root)
        try:
            for newer in folders[folders.index(found.path) + 1 :] if found else ():
                set_aside(newer)
        except OSError as error:
            raise CheckpointError(f"{root}: a damaged checkpoint can't be renamed: {error}") from error
        return found

    return by_main(find)


def set_aside(path: Path) -> None:
    """Give a damaged checkpoint another name, `damaged-step...`; an older one of that name goes."""
    target = path.with_name(f"{DAMAGED}{path.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(path, target)


def committed(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in root.glob("step*") if _TAG.fullmatch(path.name) and path.is_dir()]
    steps = {int(path.name[4:]): path for path in found if path.name == tag(int(path.name[4:]))}
    return [steps[step] for step in sorted(steps)]


def sweep(root: Path) -> None:
    """Remove what a kill or a failure left of checkpoints that were being written, or deleted."""
    for leftover in (*root.glob(f"{PARTIAL}*"), *root.glob(f"{DELETED}*")):
        shutil.rmtree(leftover, ignore_errors=True)


def verify(path: Path, content: bool = True) -> Checkpoint:
    """Compare every file with the manifest.

    Args:
        content: also by SHA-256, not by size alone.

    Raises:
        CheckpointError: names the file, what was expected and what was found.
    """
    checkpoint, files = _read_manifest(path)
    for name, (size, digest) in files.items():
        file = path / name
        try:
            found = file.stat().st_size if file.is_file() else None
            actual = _sha256(file) if content and found == size else digest
        except OSError as error:
            raise CheckpointError(f"{file}: can't be read: {error.strerror}") from error
        if found != size:
            raise CheckpointError(
                f"{file}: {'missing' if found is None else f'{found:,} bytes'}, expected {size:,} bytes"
            )
        if actual != digest:
            raise CheckpointError(f"{file}: SHA-256 {actual[:16]}..., expected {digest[:16]}...: damaged")
    return checkpoint


def _read_manifest(path: Path) -> tuple[Checkpoint, Files]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        checkpoint = Checkpoint(path, *(_count(manifest[key]) for key in ("step", "ranks", "stage")))
        files = {name: (_count(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST}: can't be read: {error!r}") from error
    if fault := _fault(checkpoint, files):
        raise CheckpointError(f"{path / MANIFEST}: {fault}")
    return checkpoint, files


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _fault(checkpoint: Checkpoint, files: Files) -> str:
    """What is wrong with a manifest; "" if nothing is. All `.pt` files must be in it: nothing else is ever read."""
    if checkpoint.path.name != tag(checkpoint.step):
        return f"is of step {checkpoint.step}"
    if strange := [name for name in files if not _PLAIN.fullmatch(name)]:
        return f"{strange[0]!r} is not the plain name of a file"
    if MODEL_STATES not in files:
        return f"does not name {MODEL_STATES}"
    shards = sorted(int(found[1]) for name in files if (found := _SHARD.fullmatch(name)))
    if len(shards) != (checkpoint.ranks if checkpoint.stage else 0) or shards != list(range(len(shards))):
        return f"names {len(shards)} optimizer shards, of {checkpoint.ranks} ranks at ZeRO stage {checkpoint.stage}"
    if others := sorted({path.name for path in checkpoint.path.glob("*.pt")} - files.keys()):
        return f"does not name {others[0]}, which is there"
    return ""


def _make_way(final: Path) -> Path | None:
    """A folder to write into, by a new name: a rank that a killed run left behind can't write there. None if the
    checkpoint is there already."""
    if final.exists():
        return None
    sweep(final.parent)
    partial = final.parent / f"{PARTIAL}{uuid.uuid4().hex[:8]}" / final.name
    partial.mkdir(parents=True)
    return partial


def _write(engine: Any, folder: Path) -> Files:
    """DeepSpeed's files, written by all ranks, synced and hashed.

    Raises:
        OSError: on every rank, what any of them met.
    """
    with _failures_noted(engine) as failures:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
    mine: Files = {}
    try:
        if not failures:
            mine = {path.name: _sync_and_hash(path) for path in _own_files(folder, dist.get_rank())}
    except OSError as error:
        failures.append(error)
    parts = gather(str(failures[0]) if failures else mine)
    if failed := {rank: part for rank, part in enumerate(parts) if isinstance(part, str)}:
        raise OSError("; ".join(f"rank {rank}: {reason}" for rank, reason in list(failed.items())[:3]))
    return {name: entry for part in parts if isinstance(part, dict) for name, entry in part.items()}


@contextlib.contextmanager
def _failures_noted(engine: Any) -> Iterator[list[Exception]]:
    """While it is open, a rank that can't write notes why and goes on, as the others wait for it at DeepSpeed's
    barriers. DeepSpeed's scripts (`zero_to_fp32.py`), which people would run from there, are not put beside."""
    files = engine.checkpoint_engine
    write, failures = files.save, list[Exception]()

    def save(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            failures.append(error)

    files.save, engine._copy_recovery_script = save, lambda folder: None
    try:
        yield failures
    finally:
        del files.save, engine._copy_recovery_script


def _own_files(folder: Path, rank: int) -> Iterator[Path]:
    """Files that this rank wrote: DeepSpeed names optimizer shards by rank, all else is rank 0's."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and shard_owner(path) == rank:
            yield path


def shard_owner(path: Path) -> int:
    """Rank that wrote a file of a checkpoint."""
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _sync_and_hash(path: Path) -> tuple[int, str]:
    commit.sync(path)
    return path.stat().st_size, _sha256(path)


def _publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    commit.write_text(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    os.rename(partial, final)
    commit.sync(final.parent)
    shutil.rmtree(partial.parent, ignore_errors=True)
    commit.write_text(final.parent / "latest", final.name)


def _give_up(root: Path, needed: int) -> str:
    """Remove what was written; how much space is missing, if any is."""
    sweep(root)
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    needed = max([needed, *map(space.size, committed(root)[-1:])])
    missing = space.shortage(folder, needed + needed // 20)  # files take whole blocks, and folders take some, too
    return missing and f": {missing}"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
