"""`compare.json`: runs side by side, as one document of plain values. The others are measured against the first run.

What no run tells is null, or not there. Format 1:

    format
    date            YYYY-MM-DD
    runs            [{run, name (as short as tells them apart), kind ("pre-training" or the task), state (a sentence)}]
    differences     {subject: {key: [value of each run, null: not set, or not recorded]}}: what is not the same in all
    same            subjects that are the same in all runs
    unknown         subjects of which no run has a record
    figures         {name: {values: [of each run], differences: [from the first], ratios: [to the first],
                     steps: [of each best_ figure's best], not_finite: [true where it is: the value is null]}};
                     seconds are of training alone, tokens are real ones; loss... and valid_...: the last in the log;
                     best_...: of the held-out ones; result_...: of a task; runs of another task than the first one's
                     are not measured against it in any of these
    curves          {name: [{step: [], value: [], hours: [], tokens: []} of each run, or null]}; hours and tokens: null
                     after the last line with rates
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import ds_config
from launch.args import option
from launch.errors import ConfigError, DataError, did_you_mean_path
from launch.log import LOG, is_number, read_log, totals
from launch.reporting.curves import POINTS, Pace, last, points, thinned
from launch.reporting.runs import read_json
from launch.reporting.tables import short
from launch.watch import View, runs_in

FORMAT = 1
SMOOTH = 80  # points of a training curve: each is the mean of neighbouring lines
RATES = ("steps", "seconds", "tokens", "tokens_per_second")
OF_A_TASK = ("loss", "valid_", "best_", "result_")  # how names begin whose figures are of what is learnt
CONSTANT = "valid_unigram_entropy"  # of the data, not of the run

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder's records, as they are.

    Attributes:
        state: how it is doing, a sentence.
    """

    path: Path
    state: str
    config: Json
    deepspeed: Json
    environment: Json
    result: Json
    log: list[Json]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """
        Raises:
            ConfigError: no run folder.
            DataError: a record is damaged, or the log has no line.
        """
        config = _config(folder)
        environment = read_json(folder / "environment.json", packages=dict, data=list, ranks=int, steps=int,
                                energy_counters=list)  # fmt: skip
        deepspeed = read_json(folder / "ds_config.json") or config.get("deepspeed_config", {})
        result = read_json(folder / "result.json", metrics=dict)
        if not (log := read_log(folder / LOG)):
            raise DataError(f"{folder / LOG}: no line to compare; a run writes the first after --log-interval steps")
        return cls(folder, View.of(folder).state()[1], config, deepspeed, environment, result, log)

    @property
    def kind(self) -> str:
        """ "pre-training", or the task."""
        return self.config["flags"].get("task") or "pre-training"


def _config(folder: Path) -> Json:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder{did_you_mean_path(folder)}")
    config = read_json(folder / "config.json", flags=dict, deepspeed_config=dict, model=dict, head=dict)
    if not config.get("flags"):
        hint = runs_in(folder) or "give folders that training scripts have made (--output)"
        raise ConfigError(f"{folder}: no run (it has no config.json with flags); {hint}")
    return config


def comparison(date: str, runs: Sequence[Run]) -> Json:
    """The whole document, see above."""
    names = short([str(run.path) for run in runs])
    subjects = {subject: _side_by_side([facts(run) for run in runs]) for subject, facts in SUBJECTS.items()}
    differences = {subject: _different(rows) for subject, rows in subjects.items()}
    unknown = [subject for subject, rows in subjects.items() if not rows]
    return {
        "format": FORMAT,
        "date": date,
        "runs": [
            {"run": str(run.path), "name": names[str(run.path)], "kind": run.kind, "state": run.state} for run in runs
        ],
        "differences": {subject: rows for subject, rows in differences.items() if rows},
        "same": [subject for subject, rows in differences.items() if not rows and subject not in unknown],
        "unknown": unknown,
        "figures": _figures(runs),
        "curves": _curves(runs),
    }


# --- what differs ---


def _flags(run: Run) -> Json:
    return {option(name): value for name, value in run.config["flags"].items() if name != "output"}


def _model(run: Run) -> Json:
    return ds_config.flatten(run.config.get("model", {})) | ds_config.flatten(run.config.get("head", {}), "head")


def _data(run: Run) -> Json:
    """The stream's fingerprint tells data, order, masking and batch together."""
    parts = {str(number): part for number, part in enumerate(run.environment.get("data", []), 1)}
    return {"fingerprint": run.config.get("fingerprint"), **ds_config.flatten(parts)}


def _hardware(run: Run) -> Json:
    return {name: run.environment.get(name) for name in ("ranks", "device", "host", "cores", "energy_counters")}


SUBJECTS: Mapping[str, Callable[[Run], Json]] = {
    "flags": _flags,
    "DeepSpeed JSON": lambda run: ds_config.flatten(run.deepspeed),
    "model": _model,
    "data": _data,
    "teacher": lambda run: {"weights": run.config["teacher"] or "none"} if "teacher" in run.config else {},
    "code": lambda run: {"commit": run.environment.get("git_commit")},
    "versions": lambda run: {"Python": run.environment.get("python"), **run.environment.get("packages", {})},
    "hardware": _hardware,
}


def _side_by_side(facts: Sequence[Json]) -> dict[str, list[Any]]:
    """Every key that any run has a value for."""
    keys = dict.fromkeys(key for fact in facts for key in fact)
    rows = {key: [None if fact.get(key) == [] else fact.get(key) for fact in facts] for key in keys}
    return {key: values for key, values in rows.items() if any(value is not None for value in values)}


def _different(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """A commit with changes ("+") is like no other: nobody knows which."""
    return {
        key: values
        for key, values in rows.items()
        if any(value != values[0] for value in values) or (key == "commit" and str(values[0]).endswith("+"))
    }


# --- figures ---


def _figures(runs: Sequence[Run]) -> Json:
    found, alike = [_of_run(run) for run in runs], [run.kind == runs[0].kind for run in runs]
    compared = {}
    for name in sorted(dict.fromkeys(name for figures in found for name in figures), key=_place):
        against = alike if name.startswith(OF_A_TASK) else [True] * len(runs)
        compared[name] = _compared([figures.get(name, (None, None)) for figures in found], against)
    return compared


def _place(name: str) -> int:
    """Rates first, then losses, held-out figures, results, and what it took."""
    order = [name in RATES, *(name.startswith(start) for start in OF_A_TASK)]
    return [*order, True].index(True)


def _of_run(run: Run) -> dict[str, tuple[float, float | None]]:
    """Figure, and the step that it is of where that is not the last."""
    pace, found = Pace.of(run.log), points(run.log)
    taken = pace.at(pace.steps[-1])
    figures: dict[str, tuple[float, float | None]] = {"steps": (run.log[-1]["step"], None)}
    if taken and min(taken) > 0:
        rates = (*taken, taken[1] / taken[0])
        figures |= {name: (value, None) for name, value in zip(RATES[1:], rates, strict=True)}
    figures |= {name: (value, None) for name, value in last(run.log).items()}
    for name, values in found.items():
        if name.startswith("valid_") and name != CONSTANT:
            choose = min if "loss" in name else max
            step, best = choose(values, key=lambda point: point[1])
            figures[f"best_{name}"] = best, step
    results = run.result.get("metrics", {}).items()
    figures |= {f"result_{name}": (value, None) for name, value in results if is_number(value)}
    if memory := [row["memory_gb"] for row in run.log if is_number(row.get("memory_gb"))]:
        figures["memory_gb"] = max(memory), None
    return figures | {name: (value, None) for name, value in totals(run.log).items()}


def _compared(figures: Sequence[tuple[float | None, float | None]], against: Sequence[bool]) -> Json:
    """Against the first.

    Args:
        against: for each, whether it can be.
    """
    lost = [value is not None and math.isnan(value) for value, _ in figures]
    values = [None if is_lost else value for (value, _), is_lost in zip(figures, lost, strict=True)]
    steps, first = [step for _, step in figures], values[0]
    there = [value if alike else None for value, alike in zip(values, against, strict=True)]
    return {
        "values": values,
        "differences": [None if value is None or first is None else value - first for value in there],
        "ratios": [None if value is None or not first else value / first for value in there],
        **({"steps": steps} if any(step is not None for step in steps) else {}),
        **({"not_finite": lost} if any(lost) else {}),
    }


# --- curves ---


def _curves(runs: Sequence[Run]) -> Json:
    """Training and held out beside each other."""
    found = [(Pace.of(run.log), points(run.log)) for run in runs]
    names = dict.fromkeys(name for _, curves in found for name in curves)
    return {name: [_curve(name, curves.get(name), pace) for pace, curves in found] for name in _paired(names)}


def _paired(names: Iterable[str]) -> list[str]:
    """Each training loss, and after it the same held out."""
    wanted = [name for name in names if name != CONSTANT]
    plain = list(dict.fromkeys(name.removeprefix("valid_") for name in wanted))
    return sorted(wanted, key=lambda name: (plain.index(name.removeprefix("valid_")), name.startswith("valid_")))


def _curve(name: str, values: Sequence[tuple[float, float]] | None, pace: Pace) -> Json | None:
    if not values:
        return None
    curve = thinned(values, POINTS if name.startswith("valid_") else SMOOTH)
    places = [pace.at(step) or (None, None) for step in curve["step"]]
    hours = [None if seconds is None else seconds / 3600 for seconds, _ in places]
    return {**curve, "hours": hours, "tokens": [tokens for _, tokens in places]}
