"""Training curves out of a log, thinned to what a page can show; and what the run took."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

POINTS = 200  # of a curve: more can't be told apart on a page

Row = dict[str, Any]
Curve = dict[str, list[float]]


def curves(rows: Sequence[Row]) -> dict[str, Curve]:
    """Losses and held-out figures by name: {"loss": {"step": [...], "value": [...]}, "valid_accuracy": ...}."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(("loss", "valid_")))
    names.pop("loss_scale", None)
    found = {name: [(row["step"], row[name]) for row in rows if _number(row.get(name))] for name in names}
    return {name: thinned(points) for name, points in found.items() if points}


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> Curve:
    """At most so many points: the means of neighbours."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return {
        "step": [fmean(step for step, _ in group) for group in groups],
        "value": [fmean(value for _, value in group) for group in groups],
    }


def taken(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Seconds of training, without measurements and checkpoints, and real tokens; None: the log does not say."""
    timed = [row for row in rows if _number(row.get("seconds_per_step")) and _number(row.get("tokens_per_second"))]
    if not timed:
        return None
    before = [0, *(row["step"] for row in timed)]
    seconds = [(row["step"] - b) * row["seconds_per_step"] for row, b in zip(timed, before, strict=False)]
    return sum(seconds), sum(s * row["tokens_per_second"] for s, row in zip(seconds, timed, strict=True))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
