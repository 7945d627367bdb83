"""Who builds the shards: processes of this machine, or MPI ranks on many. Each takes the next number from one counter,
so that a slow one holds up nobody; what a shard holds does not depend on who builds it.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from data.shards import Builder, Encoded, Recipe, build
from data.text import Piece, Range
from launch.errors import ConfigError, DataError, run

Progress = Callable[[int, int], None]  # bytes of text and tokens that were added
_MOST_THREADS = 4  # of a stream: unpacking it is slower than they are, and each remembers up to 128 MB of chunks
_POLL = 0.2  # seconds between two looks at the processes
_ASK, _DEAL = 1, 2  # tags of MPI messages


class Interrupted(Exception):
    """The building was asked to stop; complete shards stay."""


def build_here(builder: Builder, parts: list[Range], folder: Path, progress: Progress) -> None:
    """All shards, one after another, in this process."""
    for part in parts:
        build(builder, part, folder, progress)


def build_locally(recipe: Recipe, parts: list[Range], folder: Path, workers: int, progress: Progress) -> None:
    """All shards, by processes of this machine.

    Raises:
        DataError: what a worker met, or that one died, with the shard that it was building.
        KeyboardInterrupt: after the workers have ended; shards under way are lost.
    """
    context = multiprocessing.get_context("spawn")  # fork and the tokenizer's threads don't go together
    shared = context.Array("q", [0, 0, 0])  # numbers taken, bytes, tokens
    stop = context.Event()
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(recipe, parts, folder, shared, stop, sender), daemon=True)
        for _, sender in pipes
    ]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the children are born deaf to Ctrl-C
    try:
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        _watch(processes, [receiver for receiver, _ in pipes], shared, progress)
    finally:
        stop.set()
        for process in processes:
            if process.pid:
                process.join()


def _watch(processes: list[Any], receivers: list[Connection], shared: Any, progress: Progress) -> None:
    """Show what is done, until all processes have ended well."""
    seen, alive = [0, 0], list(zip(processes, receivers, strict=True))
    while alive:
        wait([process.sentinel for process, _ in alive], timeout=_POLL)
        now = shared[1:]
        progress(now[0] - seen[0], now[1] - seen[1])
        seen = now
        ended = [pair for pair in alive if not pair[0].is_alive()]
        for process, receiver in ended:
            _check_end(process, receiver)
        alive = [pair for pair in alive if pair not in ended]
    progress(shared[1] - seen[0], shared[2] - seen[1])


def _check_end(process: Any, receiver: Connection) -> None:
    """Raise what ended a process, if it did not end well. The last word of a process is what it was building, or its
    error."""
    process.join()
    words: Any = None
    while receiver.poll():
        try:
            words = receiver.recv()
        except EOFError:
            break
    if process.exitcode:
        if isinstance(words, Exception):
            raise words
        reason = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        hint = " (out of memory?)" if process.exitcode == -signal.SIGKILL else ""
        when = f"while building shard {words}" if words else "before its first shard"
        raise DataError(f"a worker died of {reason}{hint} {when}; the same command goes on")


def _work(recipe: Recipe, parts: list[Range], folder: Path, shared: Any, stop: Any, sender: Connection) -> None:
    """A process: build the next shard until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells when to stop
    os.environ["RAYON_NUM_THREADS"] = "1"  # the reference tokenizer would start threads for all cores in each process

    parent = os.getppid()

    def progress(size: int, tokens: int) -> None:
        if stop.is_set() or os.getppid() != parent:  # a killed parent can't tell
            raise Interrupted
        with shared.get_lock():
            shared[1] += size
            shared[2] += tokens

    try:
        builder = Builder(recipe)
        while (number := _take(shared)) < len(parts):
            sender.send(f"{parts[number].number:05d}")
            build(builder, parts[number], folder, progress)
    except Interrupted:
        return
    except Exception as error:
        sender.send(error if isinstance(error, DataError | OSError) else DataError(f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from error


def _take(shared: Any) -> int:
    with shared.get_lock():
        number = shared[0]
        shared[0] += 1
    return number


def encode_stream(recipe: Recipe, pieces: Iterable[Piece], threads: int) -> Iterator[tuple[Piece, list[Encoded]]]:
    """Encode the blocks of a stream by threads, and give them back in their order; few of them are held at a time."""
    threads = min(threads, _MOST_THREADS)
    builders: SimpleQueue[Builder] = SimpleQueue()
    for _ in range(threads):
        builders.put(Builder(recipe))

    def encode(piece: Piece) -> list[Encoded]:
        builder = builders.get()
        try:
            return builder.encode(piece.block, piece.head)
        finally:
            builders.put(builder)

    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[tuple[Piece, Future[list[Encoded]]]] = deque()
        for piece in pieces:
            under_way.append((piece, pool.submit(encode, piece)))
            if len(under_way) > 2 * threads:
                first, future = under_way.popleft()
                yield first, future.result()
        for piece, future in under_way:
            yield piece, future.result()


def mpi() -> Any:
    """MPI's communicator of all ranks, if MPI started this process; else None.

    Raises:
        ConfigError: it did, but mpi4py can't be used.
    """
    if not any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")):
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"started by MPI, but mpi4py can't be used: {error}") from error
    return MPI.COMM_WORLD


def abort_together(main: Callable[[], None]) -> None:
    """Run an entry point; under MPI, a rank that fails ends the others, which would wait for it for ever."""
    try:
        run(main)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code and "mpi4py.MPI" in sys.modules:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            mpi().Abort(int(code))
        raise


def build_by_ranks(builder: Builder, parts: list[Range], folder: Path, progress: Progress, comm: Any) -> None:
    """All shards, by MPI ranks; each calls it with the same arguments. Rank 0 deals the numbers beside its own work.

    Args:
        progress: of rank 0; that of others is not used.
    """
    counter = _Counter(len(parts), progress)
    if comm.Get_rank() == 0:
        dealer = threading.Thread(target=counter.deal, args=(comm,), daemon=True)
        dealer.start()
        while (number := counter.take()) is not None:
            build(builder, parts[number], folder, progress)
        dealer.join()
    else:
        done = [0, 0]

        def count(size: int, tokens: int) -> None:
            done[0] += size
            done[1] += tokens

        while (number := _ask(comm, done)) is not None:
            done = [0, 0]
            build(builder, parts[number], folder, count)
    request = comm.Ibarrier()
    while not request.Test():  # a blocking barrier would spin on a core that others need
        time.sleep(_POLL)


class _Counter:
    """The next number, for rank 0 and by messages for the others."""

    def __init__(self, count: int, progress: Progress) -> None:
        self.numbers, self.lock, self.progress = iter(range(count)), threading.Lock(), progress

    def take(self) -> int | None:
        with self.lock:
            return next(self.numbers, None)

    def deal(self, comm: Any) -> None:
        """Answer every other rank until it has been told that there is no more."""
        left = comm.Get_size() - 1
        while left:
            if not comm.Iprobe(tag=_ASK):
                time.sleep(0.002)
                continue
            from mpi4py import MPI

            status = MPI.Status()
            self.progress(*comm.recv(tag=_ASK, status=status))
            number = self.take()
            comm.send(number, dest=status.Get_source(), tag=_DEAL)
            left -= number is None


def _ask(comm: Any, done: list[int]) -> int | None:
    comm.send(done, dest=0, tag=_ASK)
    while not comm.Iprobe(source=0, tag=_DEAL):
        time.sleep(0.002)
    return comm.recv(source=0, tag=_DEAL)
