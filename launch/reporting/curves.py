"""Training curves out of a log, thinned to what a page can show; and what the run took."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from launch.log import is_number

POINTS = 200  # of a curve: more can't be told apart on a page

Row = dict[str, Any]
Curve = dict[str, list[float]]


def curves(rows: Sequence[Row]) -> dict[str, Curve]:
    """Losses and held-out figures by name: {"loss": {"step": [...], "value": [...]}, "valid_accuracy": ...}."""
    return {name: thinned(found) for name, found in points(rows).items()}


def points(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """The same as (step, value), every one of them that is finite."""
    found = {name: [(row["step"], row[name]) for row in rows if is_number(row.get(name))] for name in last(rows)}
    return {name: values for name, values in found.items() if values}


def last(rows: Sequence[Row]) -> dict[str, float]:
    """The last of each loss and held-out figure; NaN where it is not finite (null in the log)."""
    named = {name: value for row in rows for name, value in row.items() if name.startswith(("loss", "valid_"))}
    named.pop("loss_scale", None)
    return {name: value if is_number(value) else math.nan for name, value in named.items()}


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> Curve:
    """At most so many points: the means of neighbours."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return {
        "step": [fmean(step for step, _ in group) for group in groups],
        "value": [fmean(value for _, value in group) for group in groups],
    }


@dataclass(frozen=True)
class Pace:
    """How far a run had come after some of its steps; 0 is the first of them.

    Attributes:
        seconds: of training, without measurements and checkpoints.
        tokens: real ones.
    """

    steps: list[float]
    seconds: list[float]
    tokens: list[float]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Pace":
        """By the lines that tell; between two of them rates are constant."""
        pace = cls([0], [0.0], [0.0])
        for row in rows:
            if is_number(row.get("seconds_per_step")) and is_number(row.get("tokens_per_second")):
                seconds = (row["step"] - pace.steps[-1]) * row["seconds_per_step"]
                pace.steps.append(row["step"])
                pace.seconds.append(pace.seconds[-1] + seconds)
                pace.tokens.append(pace.tokens[-1] + seconds * row["tokens_per_second"])
        return pace

    def at(self, step: float) -> tuple[float, float] | None:
        """Seconds and tokens until a step; None: no line tells."""
        if len(self.steps) < 2 or not 0 <= step <= self.steps[-1]:
            return None
        last = max(bisect_left(self.steps, step), 1)
        share = (step - self.steps[last - 1]) / ((self.steps[last] - self.steps[last - 1]) or 1)
        seconds, tokens = (
            figures[last - 1] + share * (figures[last] - figures[last - 1]) for figures in (self.seconds, self.tokens)
        )
        return seconds, tokens


def taken(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Seconds of training, without measurements and checkpoints, and real tokens; None: the log does not say."""
    pace = Pace.of(rows)
    return pace.at(pace.steps[-1])
