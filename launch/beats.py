"""The signs of life of a run's ranks, as they lie in its folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

FOLDER = "heartbeats"


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
