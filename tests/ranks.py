"""Run a function as several ranks of one job, with the real process group and the real DeepSpeed.

Heavy libraries are imported once, in a server process that does nothing else; each rank is forked from it, so a job of
two ranks starts in a second.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["train_dilbert", "model.export", "transformers.models.bert.modeling_bert",
                                "transformers.models.distilbert.modeling_distilbert",
                                "deepspeed.runtime.zero.muon.original_muon",  # of every engine; takes torch's compiler
                                "hypothesis", "pytest"])  # fmt: skip


class RankFailed(Exception):
    """A rank raised; the message is its traceback."""


class Job:
    """Ranks that are under way; a context manager that leaves none of them behind."""

    def __init__(self, ranks: int, function: Callable[..., Any], *args: Any) -> None:
        """
        Args:
            function: importable by name (a module's top level), with its arguments; each rank calls it.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pipes = [_server.Pipe(duplex=False) for _ in range(ranks)]
        self.receivers = [receiver for receiver, _ in pipes]
        self.processes = [
            _server.Process(target=_rank, args=(rank, ranks, port, pipes[rank][1], function, args), daemon=True)
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def results(self, timeout: float = 240) -> list[Any]:
        """What the function returned, by rank.

        Raises:
            RankFailed: a rank raised, or hangs. The first failure counts: the others would wait for the failed rank.
        """
        results: dict[int, Any] = {}
        while len(results) < len(self.receivers):
            missing = sorted(set(range(len(self.receivers))) - results.keys())
            ready = wait([self.receivers[rank] for rank in missing], timeout)
            if not ready:
                raise RankFailed(f"ranks {missing} did not end in {timeout} s")
            for rank in (rank for rank in missing if self.receivers[rank] in ready):
                results[rank] = self._answer(rank)
        return [results[rank] for rank in range(len(self.receivers))]

    def _answer(self, rank: int) -> Any:
        try:
            ok, value = self.receivers[rank].recv()
        except EOFError:
            raise RankFailed(f"rank {rank} died") from None
        if not ok:
            raise RankFailed(f"rank {rank}:\n{value}")
        return value


def run_ranks(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
    """function(*args) in each rank of a job of its own; the results by rank.

    Args:
        function: importable by name (a module's top level).
        timeout: seconds after which a hanging job is killed.
    """
    with Job(ranks, function, *args) as job:
        return job.results(timeout)


def channel() -> tuple[Connection, Connection]:
    """Receiver, and sender that a rank's arguments may hold."""
    return _server.Pipe(duplex=False)


def _rank(
    rank: int, ranks: int, port: int, sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    try:
        sender.send((True, function(*args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))


def command_line(main: Callable[[], None], argv: list[str], patch: Callable[[], None] | None = None) -> tuple[int, str]:
    """An entry point in this process, as its command line would run it.

    Args:
        patch: called first, in the rank.

    Returns:
        exit code, and all that it printed.
    """
    from launch.errors import run

    if patch:
        patch()
    sys.argv = ["program", *argv]
    with tempfile.TemporaryFile("w+") as output:
        sys.stdout.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            run(main)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
        output.seek(0)
        return code, output.read()


def train(argv: list[str], patch: Callable[[], None] | None = None) -> tuple[int, str]:
    """`train_dilbert.py` in this rank: exit code and output."""
    import train_dilbert

    return command_line(train_dilbert.main, argv, patch)


def allow_fp16() -> None:
    """Let DeepSpeed train in fp16 on a CPU that it takes for unable to."""
    from deepspeed.accelerator import get_accelerator

    type(get_accelerator()).is_fp16_supported = lambda _: True


def read_log(run: Path) -> list[dict[str, Any]]:
    """The training lines of a run's log."""
    import json

    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]
