"""The report as one HTML page that needs nothing else: no script, no network; it prints, and is light or dark."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from launch.reporting import plots, tables
from launch.reporting.document import AGAIN, STUDENT, TEACHER
from launch.reporting.tables import Table

Json = dict[str, Any]

SERIES = {TEACHER: 0, STUDENT: 1, STUDENT + AGAIN: 2}
PUBLISHED = 3
OTHERS = (4, 5, 6)  # in turn
TRAINING, HELD_OUT = 0, 1  # of a run's curves


@dataclass(frozen=True)
class Figure:
    """A plot, and the names of its series."""

    title: str
    plot: Markup
    legend: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        facts: paragraphs of names and values.
        legend: of all its figures.
    """

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    facts: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    legend: Sequence[tuple[int, str]] = ()


def page(report: Json) -> str:
    """HTML.

    Args:
        report: what `launch.reporting.document` describes.
    """
    return render(title(report), subtitle(report), list(sections(report)), tables.headlines(report))


def render(
    title: str, subtitle: str, sections: Sequence[Section], headlines: Sequence[tuple[str, str]] = ()
) -> str:  # fmt: skip
    """The HTML of any such page.

    Args:
        headlines: figures to remember, and what they are.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, headlines=headlines, key=plots.key, series=plots.SERIES
    )


def title(report: Json) -> str:
    """Of the page."""
    names = [Path(name).name for name in (report["student"], report["teacher"]) if name]
    return "What {} kept of {}".format(*names) if len(names) == 2 else (names or ["Runs"])[0]


def subtitle(report: Json) -> str:
    """When, whose, and where it was measured."""
    names = [f"{role} {report[role]}" for role in (TEACHER, STUDENT) if report[role]]
    machine = report["machine"]
    where = [f"measured on {machine['device']}, {machine['threads']} thread(s)"] if machine else []
    return " · ".join([report["date"], *names, *where])


def sections(report: Json) -> Iterator[Section]:
    """In their order; what was not measured is named in the last but one."""
    parts = ((tables.tasks, _retention), (tables.sizes, _sizes), (tables.speed, _speed),
             (tables.production, _nothing), (tables.held_out, _nothing), (tables.pretraining, _nothing))  # fmt: skip
    for make, draw in parts:
        if table := make(report):
            yield Section(table.title, [table], [*draw(report)])
    for run in report["pretraining"]:
        yield Section(f"Run {run['run']}", (), [*_curves(run)], _facts(run))
    if table := tables.finetuning(report):
        yield Section(table.title, [table], [*_tuning(report)])
    yield from (Section(table.title, [table]) for table in (tables.gaps(report), tables.paper()) if table)


def _nothing(_: Json) -> Iterator[Figure]:
    """The table says it."""
    yield from ()


def _series(columns: Iterable[str]) -> dict[str, int]:
    """The number of each column."""
    others = [column for column in columns if column not in SERIES]
    return SERIES | {column: OTHERS[place % len(OTHERS)] for place, column in enumerate(others)}


def _retention(report: Json) -> Iterator[Figure]:
    """Of each task."""
    series = _series(report["columns"])
    shown = []
    for task in report["tasks"]:
        paper = [(PUBLISHED, task["published"]["retention"])] if task["published"] else []
        own = [(series[column], share) for column, share in task["retention"].items() if share is not None]
        if own:
            shown.append((tables.task_title(task["task"]), [*paper, *own]))
    if shown:
        used = {number for _, marks in shown for number, _ in marks}
        names = [*((series[column], name) for column, name in tables.short(report["columns"]).items()),
                 (PUBLISHED, "DistilBERT, published")]  # fmt: skip
        legend = [(number, name) for number, name in names if number in used]
        yield Figure("Share of the teacher's score", plots.dots("Retention by task", shown), legend)


def _sizes(report: Json) -> Iterator[Figure]:
    for name, what in (("parameters", "Parameters"), ("bytes", "Weights, bytes")):
        rows = [
            (model["role"], [(SERIES[model["role"]], float(model[name]), plots.number(model[name]))])
            for model in report["models"]
        ]
        yield Figure(what, plots.bars(what, rows))


def _speed(report: Json) -> Iterator[Figure]:
    """Throughput, a figure for each form."""
    for form in dict.fromkeys(row["form"] for row in report["speed"]):
        rows = []
        for row in report["speed"]:
            if row["form"] == form:
                rates = ((role, row[role]["tokens_per_second"]) for role in (TEACHER, STUDENT) if role in row)
                group = [(SERIES[role], rate, plots.number(round(rate))) for role, rate in rates]
                rows.append((f"{row['batch']} x {row['length']}", group))
        name = f"Tokens a second, {form}"
        yield Figure(name, plots.bars(name, rows), [(SERIES[role], role) for role in (TEACHER, STUDENT)])


def _curves(run: Json) -> Iterator[Figure]:
    """Each loss in training and held out; then what is only measured on held-out data."""
    curves = run["curves"]
    for name in dict.fromkeys(name.removeprefix("valid_") for name in curves):
        both = [(TRAINING, "training", curves.get(name)), (HELD_OUT, "held out", curves.get(f"valid_{name}"))]
        there = [(number, where, curve) for number, where, curve in both if curve]
        lines = [(number, (curve["step"], curve["value"])) for number, _, curve in there]
        legend = [(number, where) for number, where, _ in there]
        yield Figure(f"{name} over steps", plots.lines(name, lines), legend)


def _facts(run: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """Recipe and environment of a pre-training run."""
    flags = [
        ("--" + name.replace("_", "-"), " ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in run["flags"].items()
        if value is not None and value is not False and value != []
    ]
    environment = run["environment"]
    facts = [("hardware", tables.hardware(environment)), ("versions", tables.versions(environment)),
             ("code", str(environment.get("git_commit") or tables.NONE)),
             *(("energy of", str(kind)) for kind in environment.get("energy_counters") or ())]  # fmt: skip
    parts = [part for part in environment.get("data", []) if isinstance(part, dict)]
    data = [(str(part.get("path")), f"{tables.amount(part.get('tokens'))} tokens") for part in parts]
    return [(name, rows) for name, rows in (("Recipe", flags), ("Environment", facts), ("Data", data)) if rows]


def _tuning(report: Json) -> Iterator[Figure]:
    """For each task its loss in training, the same with and without a teacher, and the main metric."""
    series = _series(report["columns"])
    for task in report["tasks"]:
        runs = [run for run in report["finetuning"] if run["task"] == task["task"]]
        loss = "loss_task" if any("loss_task" in run["curves"] for run in runs) else "loss"
        for name, what in ((loss, "training loss"), (f"valid_{task['main']}", task["main"])):
            there = [(run["column"], run["curves"][name]) for run in runs if name in run["curves"]]
            if there:
                lines = [(series[column], (curve["step"], curve["value"])) for column, curve in there]
                names = tables.short(report["columns"])
                legend = [(series[column], name) for column, name in names.items() if column in dict(there)]
                head = f"{tables.task_title(task['task'])}: {what}"
                yield Figure(f"{head} over steps", plots.lines(head, lines), legend)
