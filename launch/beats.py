"""The signs of life of a run's ranks, and the reasons why it stopped or failed."""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from launch import commit
from launch.errors import CheckpointError, DilbertError, of_disk

FOLDER = "heartbeats"
FAILED = "FAILED.json"
STOP_AT_STEP = "--stop-at-step"  # a reason to stop that the same command gives again


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life.

    Attributes:
        age: seconds since then, by the file system's clock.
    """

    rank: int
    host: str
    pid: int
    step: int
    progress: int
    phase: str
    stack: str
    age: float


def path(folder: Path, rank: int) -> Path:
    """Of a rank's sign of life."""
    return folder / f"rank{rank:05d}.json"


def read(folder: Path, ranks: int) -> list[Beat]:
    """The last signs of life of all ranks that gave one; ages against the newest of them."""
    found = []
    for rank in range(ranks):
        file = path(folder, rank)
        try:
            body, at = json.loads(file.read_text()), file.stat().st_mtime
            body.pop("time")
            found.append((at, Beat(**body, age=0.0)))
        except (OSError, ValueError, TypeError, LookupError, AttributeError):  # none yet, or no longer whole
            continue
    newest = max((at for at, _ in found), default=0.0)
    return [replace(beat, age=newest - at) for at, beat in found]


def stopped(where: str, why: str) -> str:
    """How a run that was stopped ended, and how it goes on.

    Args:
        where: the step.
    """
    then = f"without {why} it goes on" if why == STOP_AT_STEP else "the same command goes on"
    return f"stopped at {where}: {why}; {then}"


def failed(run: Path, rank: int, step: int, error: Exception) -> None:
    """Write why the run ended into its folder: code (exit code), message, rank, step. The first rank to say so counts;
    a disk that can't be written may be the very reason."""
    code, message = 1, f"{type(error).__name__}: {error}"
    known = of_disk(error, CheckpointError) if isinstance(error, OSError) else error
    if isinstance(known, DilbertError):
        code, message = known.exit_code, str(known)
    if not (run / FAILED).exists():
        with contextlib.suppress(OSError):
            body = {"code": code, "message": message, "rank": rank, "step": step}
            commit.write_text(run / FAILED, json.dumps(body, indent=2) + "\n")
