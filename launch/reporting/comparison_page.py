"""Runs side by side as tables, which page and terminal share, and as a page with their curves."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from launch.log import duration
from launch.reporting import plots
from launch.reporting.comparison import SMOOTH
from launch.reporting.page import Figure, Section, render
from launch.reporting.tables import NONE, Table, amount, kwh

Json = dict[str, Any]

SERIES = (1, 2, 4, 5, 7, 8, 9, 6, 10, 0)  # of the runs, in their order
AXES = (("step", "steps"), ("tokens", "tokens"), ("hours", "hours"))
TITLES = {"seconds": "time", "tokens_per_second": "tokens/s", "memory_gb": "memory, GB", "energy_kwh": "energy, kWh"}
KINDS = (("best_valid_", "best held out"), ("valid_", "held out"), ("result_", "result"), ("loss", "training"))
DIGITS = {"steps": 0, "tokens": 0, "tokens_per_second": 0, "memory_gb": 2, "cost": 2}
NOTES = {
    "data": "The fingerprint is the stream's: of data, order, masking, seed and batch together.",
    "code": "Code with + had changes that are not in its commit.",
    "hardware": "Energy counters: whose energy is in the log.",
}
CLOCK = (
    "The log has rates, not sums. Tokens: tokens a second x seconds a step x steps of each interval between two lines "
    "of the log, added up; time likewise, so measurements and checkpoints are not in it. (In energy and cost they are.)"
)


def tables(body: Json) -> Iterator[Table]:
    """In their order.

    Args:
        body: what `launch.reporting.comparison` describes.
    """
    yield _runs(body)
    yield _figures(body)
    for subject, rows in body["differences"].items():
        cells = [(key, *map(_text, values)) for key, values in rows.items()]
        head = ("", *_names(body))
        yield Table(f"What differs: {subject}", head, cells, words=len(head), note=NOTES.get(subject, ""))


def page(body: Json) -> str:
    """HTML."""
    legend = list(zip(SERIES, _names(body), strict=False))
    sections = [Section(table.title, [table]) for table in tables(body)]
    for name, curves in body["curves"].items():
        there = [mark for mark, curve in zip(legend, curves, strict=True) if curve]
        sections.append(Section(_title(name), (), list(_plots(name, curves)), legend=there))
    smooth = f"a point of a training curve: the mean of neighbouring lines of the log, where it has more than {SMOOTH}"
    return render(f"{len(legend)} runs side by side", f"{body['date']} · {smooth}", sections)


def _names(body: Json) -> list[str]:
    return [run["name"] for run in body["runs"]]


def _runs(body: Json) -> Table:
    rows = [(run["run"], run["kind"], run["state"]) for run in body["runs"]]
    parts = (("The same in all of them", body["same"]), ("Not recorded", body["unknown"]))
    note = " ".join(f"{words}: {', '.join(subjects)}." for words, subjects in parts if subjects)
    return Table("Runs", ("run", "what", "state"), rows, words=3, note=note)


def _text(value: Any) -> str:
    """As JSON writes it, but for the quotes and brackets around it all."""
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)


# --- figures ---


def _figures(body: Json) -> Table:
    first, *others = _names(body)
    head = ("", first, *(cell for name in others for cell in (name, "difference", "ratio")))
    rows = [(_title(name), *_cells(name, figure)) for name, figure in body["figures"].items()]
    note = (
        f"Difference and ratio: to {first}. {CLOCK} Best: the lowest of losses, the highest of other figures, with its "
        "step. loss is the weighted sum of its parts; of runs with other weights, compare the parts."
    )
    return Table("Figures", head, rows, note=note, fixed=2, group=3)


def _title(name: str) -> str:
    for start, kind in KINDS:
        if name.startswith(start):
            return f"{name if start == 'loss' else name.removeprefix(start)}, {kind}"
    return TITLES.get(name, name)


def _cells(name: str, figure: Json) -> Iterator[str]:
    """The first run's, and of each other one also how it compares."""
    steps, lost = (figure.get(key) or [None] * len(figure["values"]) for key in ("steps", "not_finite"))
    rows = zip(figure["values"], steps, lost, figure["differences"], figure["ratios"], strict=True)
    for place, (value, step, is_lost, difference, ratio) in enumerate(rows):
        shown = "not finite" if is_lost else _show(name, value)
        yield shown + (f" ({step:,})" if step is not None else "")
        if place:
            sign = "" if difference is None else "+" if difference > 0 else "-" if difference < 0 else ""
            yield sign + _show(name, None if difference is None else abs(difference))
            yield NONE if ratio is None else f"{ratio:.3f}"


def _show(name: str, value: float | None) -> str:
    if value is None:
        return NONE
    if name == "seconds":
        return duration(value)
    if name == "energy_kwh":
        return kwh(value)
    return amount(value, DIGITS.get(name, 4))


# --- curves ---


def _plots(name: str, curves: Sequence[Json | None]) -> Iterator[Figure]:
    """Over steps, tokens and hours, as far as they are known."""
    for key, axis in AXES:
        lines = []
        for series, curve in zip(SERIES, curves, strict=False):
            places = [(x, y) for x, y in zip(curve[key], curve["value"], strict=True) if x is not None] if curve else []
            if places:
                xs, ys = zip(*places, strict=True)
                lines.append((series, (xs, ys)))
        if lines:
            yield Figure(f"over {axis}", plots.lines(f"{_title(name)}, over {axis}", lines))
