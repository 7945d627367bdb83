"""The log of a run: reading it, cutting it back, and its figures in few words."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch import commit

LOG = "log.jsonl"
TOTALS = ("energy_kwh", "cost")  # figures that add up over all starts of a run


def cut_log(path: Path, start: int) -> None:
    """Drop lines after step `start`, and a last line that a kill cut short, so that no step stands twice."""
    if not path.exists():
        return
    commit.write_text(path, "".join(json.dumps(row) + "\n" for row in read_log(path) if row["step"] <= start))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a `log.jsonl`; a line that a kill cut short is left out. No file, no rows."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def totals(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The last value of each of TOTALS that the log has."""
    return {name: row[name] for row in rows for name in TOTALS if is_number(row.get(name))}


def is_number(value: object) -> bool:
    """Finite, and not too large to be reckoned with."""
    return isinstance(value, int | float) and abs(value) < 1e300


def losses(figures: Mapping[str, float | None]) -> str:
    """The losses among the figures in short: `loss 10.57 ce 0.2523 mlm 4.617`."""
    return " ".join(f"{name.removeprefix('loss_')} {_number(value)}" for name, value in figures.items() if _loss(name))


def held_out(figures: Mapping[str, float | None]) -> str:
    """Held-out figures in short: losses, then all others; as the log has them, but without `valid_`."""
    others = (f"{name.removesuffix('_entropy')} {_number(value)}" for name, value in figures.items() if not _loss(name))
    return " | ".join(filter(None, (losses(figures), *others)))


def _loss(name: str) -> bool:
    return name.startswith("loss") and name != "loss_scale"


def _number(value: float | None) -> str:
    """The log has null for what is not finite."""
    return "nan" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """1:02:03 or 02:03."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"
