"""All shards of a build: plain files by processes or MPI ranks, then the inputs that are read as streams."""

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import inputs, text, workers
from data.shards import Builder, Encoded, Recipe, ShardFiles, is_complete
from data.text import Range
from launch import progress

WORTH_A_WORKER = 8_000_000  # bytes of text: for less, starting a process takes longer than it saves


@dataclass(frozen=True)
class Job:
    """All that the processes of a build share.

    Attributes:
        folder: where the shards are made, under its temporary name.
        inputs: as they were found when the build began.
        ranges: of the plain files.
        streams: inputs that can't be cut.
        limit: lines to take of the streams; None: all.
        shard_bytes: text in one shard.
    """

    folder: Path
    recipe: Recipe
    inputs: list[str]
    ranges: list[Range]
    streams: list[str]
    limit: int | None
    shard_bytes: int


@dataclass(frozen=True)
class Extent:
    """How much one input is: its shards, and the bytes of its text."""

    source: str
    shards: int
    bytes: int


def build_all(job: Job, processes: int | None, comm: Any) -> list[Extent]:
    """Make all shards that are not complete; the extent of every input, in the order of the shards' numbers."""
    todo = [part for part in job.ranges if not is_complete(job.folder, part.number)]
    for name in job.recipe.selection.datasets:
        (job.folder / name).mkdir(exist_ok=True)
    builder = Builder(job.recipe)  # also fills the caches that other processes will look into
    print(f"tokenizer: {builder.form}", flush=True)
    if len(todo) < len(job.ranges):
        print(f"going on: {len(job.ranges) - len(todo)} of {len(job.ranges)} shards are complete", flush=True)
    total = sum(part.end - part.start for part in todo)
    cores = len(os.sched_getaffinity(0))
    with progress.bar(None if job.streams else total, "B", "binarize") as bar:
        count = counting(bar)
        number = min(processes or min(cores, 1 + total // WORTH_A_WORKER), len(todo))
        if comm and (comm.Get_size() > 1 or processes is None):
            comm.bcast(dataclasses.replace(job, ranges=todo))
            workers.build_by_ranks(builder, todo, job.folder, count, comm)
        elif number > 1:
            workers.build_locally(job.recipe, todo, job.folder, number, count)
        else:
            workers.build_here(builder, todo, job.folder, count)
        extents = [
            Extent(Path(path).name, len(parts := list(group)), parts[-1].end)
            for path, group in itertools.groupby(job.ranges, lambda part: part.path)
        ]
        return extents + list(_build_streams(job, processes or cores, count))


def counting(bar: Any) -> workers.Progress:
    """Show bytes as the bar's amount and tokens beside it; threads may call it."""
    lock, tokens, start = threading.Lock(), 0, time.monotonic()

    def count(size: int, more: int) -> None:
        nonlocal tokens
        with lock:
            tokens += more
            bar.set_postfix_str(f"{tokens / max(time.monotonic() - start, 1e-9) / 1e6:.1f} Mtok/s", refresh=False)
            bar.update(size)

    return count


def _build_streams(job: Job, threads: int, count: workers.Progress) -> Iterator[Extent]:
    """Make the shards of the inputs that are read as streams, and say how much each was."""
    number, limit = len(job.ranges), job.limit
    for path in job.streams:
        if path == inputs.STANDARD_INPUT:
            print("standard input can't be read twice: if this is interrupted, it starts over", flush=True)
        stream = text.Stream(path, job.shard_bytes, limit, number, job.recipe.field)
        pieces = (piece for piece in stream if not is_complete(job.folder, piece.number))
        encoded = workers.encode_stream(job.recipe, pieces, threads)
        write_shards(
            job, ((Range(piece.number, path, piece.start, piece.end), parts) for piece, parts in encoded), count
        )
        yield Extent(inputs.name_of(path), stream.shards, stream.bytes)
        number += stream.shards
        limit = None if limit is None else limit - stream.lines


def write_shards(job: Job, encoded: Iterable[tuple[Range, list[Encoded]]], count: workers.Progress) -> None:
    """The shards of a stream, one after another.

    Args:
        encoded: what became of each block, and where that was: the number of its shard, and its bytes in the stream.
    """
    for number, group in itertools.groupby(encoded, lambda pair: pair[0].number):
        with ShardFiles(job.folder, number, job.recipe) as files:
            blocks = []
            for block, parts in group:
                blocks.append(block)
                count(block.end - block.start, files.add(parts))
            files.commit(dataclasses.replace(blocks[-1], start=blocks[0].start))
