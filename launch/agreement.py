"""All ranks see the same files, or all of them end: a folder that not every host shares, or that differs between them.

Each function is called by all ranks. What is wrong on one host is said on all, with its name, as ConfigError.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.distributed import gather
from launch.errors import ConfigError, DilbertError

PATIENCE = 10.0  # seconds until a host must see a new file; network file systems remember what was not there


def check_shared(file: Path, content: str) -> None:
    """Every rank reads in a file what rank 0 has written there.

    Raises:
        ConfigError: the folder is another one on some host.
    """
    views = gather((socket.gethostname(), _reads(file, content)))
    if blind := [rank for rank, (_, seen) in enumerate(views) if not seen]:
        raise ConfigError(
            f"--output {file.parent}: is not the same folder on every host: what rank 0 on host {views[0][0]} writes, "
            f"{_who(blind, views)} can't read. It must lie on storage that all hosts share, under the same path"
        )


@contextmanager
def together() -> Iterator[None]:
    """Inside, each rank reads for itself, and meets no other.

    Raises:
        DilbertError, OSError: what this rank met, if all met something.
        ConfigError: only some did: they have other files than the others.
    """
    problem: DilbertError | OSError | None = None
    try:
        yield
    except (DilbertError, OSError) as error:
        problem = error
    views = gather((socket.gethostname(), str(problem) if problem else ""))
    failed = [rank for rank, (_, reason) in enumerate(views) if reason]
    if problem and len(failed) == len(views):
        raise problem
    if failed:
        raise ConfigError(
            f"{_who(failed, views)} can't read what the others can: {views[failed[0]][1]}\n"
            "Datasets and models must be the same on every host: on shared storage, or as copies under the same path"
        )


def same(facts: Mapping[str, object]) -> None:
    """Every rank has found what rank 0 has.

    Raises:
        ConfigError: names what differs, and where.
    """
    views = gather((socket.gethostname(), {name: str(value) for name, value in facts.items()}))
    host, expected = views[0]
    rows = []
    for name, right in expected.items():
        if others := [rank for rank, (_, found) in enumerate(views) if found[name] != right]:
            wrong = views[others[0]][1][name]
            rows.append(f"  {name}: {right} for rank 0 on host {host}, {wrong} for {_who(others, views)}")
    if rows:
        raise ConfigError(
            "not all ranks were given the same:\n" + "\n".join(rows) + "\n"
            "Flags, data and models must be the same on every host: on shared storage, or as copies under the same path"
        )


def _reads(file: Path, content: str) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            os.listdir(file.parent)  # makes NFS look again
            if file.read_text() == content:
                return True
        except (OSError, ValueError):
            pass
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def _who(ranks: Iterable[int], views: Sequence[tuple[str, object]]) -> str:
    """`host b (ranks 2 3), host c (rank 4)`."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(views[rank][0], []).append(rank)
    return ", ".join(f"host {host} (rank{'s'[: len(r) > 1]} {' '.join(map(str, r))})" for host, r in by_host.items())
