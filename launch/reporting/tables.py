"""The tables of a report, as text: page and terminal show the same cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.log import duration
from launch.reporting import published
from launch.reporting.document import AGAIN, STUDENT, TEACHER

Json = dict[str, Any]
Row = tuple[str, ...]

NONE = "-"
TITLES = {
    "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2",
    "stsb": "STS-B", "wnli": "WNLI", "squad": "SQuAD 1.1", "squad_v2": "SQuAD 2.0",
}  # fmt: skip
BERT, DISTILBERT = "BERT-base", "DistilBERT"


@dataclass(frozen=True)
class Table:
    """Cells under their heads.

    Attributes:
        words: how many of the first columns hold words; the others hold numbers.
        fixed: how many of the first columns stand again where others are shown below.
        group: how many of the others stay together then.
    """

    title: str
    head: Row
    rows: Sequence[Row]
    words: int = 1
    note: str = ""
    fixed: int = 1
    group: int = 1


# --- cells ---


def percent(share: float | None) -> str:
    """Without its sign: 97.1."""
    return NONE if share is None else f"{100 * share:.1f}"


def amount(value: float | None, digits: int = 0) -> str:
    """1,234."""
    return NONE if value is None else f"{value:,.{digits}f}"


def times(ratio: float | None) -> str:
    """1.93 x."""
    return NONE if ratio is None else f"{ratio:.2f} x"


def milliseconds(seconds: float | None) -> str:
    """Three digits, or all before the point."""
    if seconds is None:
        return NONE
    value = 1e3 * seconds
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def kwh(energy: float | None) -> str:
    """Three digits, or all before the point."""
    return NONE if energy is None else f"{energy:,.0f}" if energy >= 100 else f"{energy:.3g}"


def price(value: float | None) -> str:
    """In whatever currency: 1,234.50."""
    return amount(value, 2)


def task_title(task: str) -> str:
    """As the world writes it."""
    return TITLES.get(task, task)


def short(columns: Sequence[str]) -> dict[str, str]:
    """Columns by the ends of their names: so many parts of a path as it takes to tell them apart."""
    names = {}
    for column in columns:
        parts = column.split("/")
        ends = ("/".join(parts[-size:]) for size in range(1, len(parts)))
        lone = (end for end in ends if sum(f"/{other}".endswith(f"/{end}") for other in columns) == 1)
        names[column] = next(lone, column)
    return names


# --- tables ---


def tasks(report: Json) -> Table | None:
    """Scores and retention beside the paper's."""
    columns, others = report["columns"], [c for c in report["columns"] if c != TEACHER]
    kept = [column for column in others if any(column in task["retention"] for task in report["tasks"])]
    names = short(columns)
    heads = *(names[column] for column in columns), *(f"{names[column]}: kept" for column in kept)
    head = ("task", "metric", *heads, BERT, DISTILBERT, "kept", "examples")
    rows = [row for task in report["tasks"] for row in _task_rows(task, columns, kept)]
    rows += _average_rows(report, columns, kept)
    note = (
        "In percent; kept: the share of the teacher's score. Figures of several runs are medians, with the number of "
        "runs in brackets. What is kept of a mean is the ratio of both means, as in the paper. "
        f"{BERT}, {DISTILBERT}: as published, which does not say whether MRPC and QQP are accuracy, F1 or their mean, "
        f"nor which correlation STS-B is. {NONE}: not measured, or not published."
    )
    return Table("Tasks", head, rows, words=2, note=note) if rows else None


def _task_rows(task: Json, columns: Sequence[str], kept: Sequence[str]) -> Iterator[Row]:
    """The main metric; below it the others."""
    main, paper = task["main"], task["published"] or {}
    scores = [_score(task["scores"].get(column), main) for column in columns]
    shares = [percent(task["retention"].get(column)) for column in kept]
    printed = [percent(paper.get(name)) for name in (TEACHER, STUDENT, "retention")]
    sizes = (f"{size:,}{' (test)' if split == 'test' else ''}" for split, size in task["examples"].items())
    examples = " + ".join(sizes) or NONE
    yield (task_title(task["task"]), main, *scores, *shares, *printed, examples)
    for name in dict.fromkeys(name for score in task["scores"].values() for name in score["metrics"]):
        if name != main:
            values = (task["scores"].get(column, {}).get("metrics", {}).get(name) for column in columns)
            yield "", name, *map(percent, values), *("" for _ in (*kept, *printed, examples))


def _score(score: Json | None, main: str) -> str:
    if score is None:
        return NONE
    runs = f" ({score['runs']})" if score["runs"] > 1 else ""
    return percent(score["metrics"][main]) + runs


def _average_rows(report: Json, columns: Sequence[str], kept: Sequence[str]) -> Iterator[Row]:
    """A row for each set of tasks that some columns share with the teacher."""
    averages = report["average"]
    for names in dict.fromkeys(tuple(average["tasks"]) for average in averages.values() if len(average["tasks"]) > 1):
        same = {column: average for column, average in averages.items() if tuple(average["tasks"]) == names}
        first = next(iter(same.values()))
        scores = {TEACHER: first["teacher"]} | {column: average["score"] for column, average in same.items()}
        paper = first["published"] or {}
        if tuple(paper.get("tasks", ())) != names:
            paper = {}
        yield (
            f"GLUE, mean of {len(names)}", "",
            *(percent(scores.get(column)) for column in columns),
            *(percent(same[column]["retention"]) if column in same else NONE for column in kept),
            *(percent(paper.get(name)) for name in (TEACHER, STUDENT, "retention")), "",
        )  # fmt: skip


def sizes(report: Json) -> Table | None:
    """Parameters, layers and the weights' file."""
    models = {model["role"]: model for model in report["models"]}
    if not models:
        return None
    both = len(models) > 1
    head = ("", *models, *((f"{STUDENT} / {TEACHER}",) if both else ()), BERT, DISTILBERT, "ratio")
    paper = [f"{value / 1e6:.0f} M" for value in published.PARAMETERS]
    paper.append(percent(published.PARAMETERS[1] / published.PARAMETERS[0]) + " %")
    rows: list[Row] = []
    for title, name, unit, digits in (
        ("parameters", "parameters", 1, 0), ("without embeddings", "without_embeddings", 1, 0),
        ("weights, MB", "bytes", 1e6, 1), ("layers", "layers", 1, 0), ("hidden size", "hidden_size", 1, 0),
    ):  # fmt: skip
        values = [model[name] for model in models.values()]
        cells = [amount(value / unit, digits) for value in values]
        ratio = [percent(models[STUDENT][name] / models[TEACHER][name]) + " %"] if both else []
        rows.append((title, *cells, *ratio, *(paper if name == "parameters" else (NONE,) * 3)))
    note = f"With the masked-language-model head, whose matrix is the embeddings'. {BERT}, {DISTILBERT}: as published."
    return Table("Size", head, rows, note=note)


def speed(report: Json) -> Table | None:
    """Latency and throughput."""
    if not report["speed"]:
        return None
    roles = [role for role in (TEACHER, STUDENT) if any(role in row for row in report["speed"])]
    rows = []
    forms = list(dict.fromkeys(row["form"] for row in report["speed"]))
    for row in sorted(report["speed"], key=lambda row: forms.index(row["form"])):
        figures = [row.get(role, {}) for role in roles]
        latency = [milliseconds(figure.get("seconds")) for figure in figures]
        rate = [amount(figure.get("tokens_per_second")) for figure in figures]
        ratio = [times(row.get("ratio"))] if len(roles) > 1 else []
        rows.append((row["form"], f"{row['batch']} x {row['length']}", *latency, *ratio, *rate))
    head = ("form", "batch", *(f"{role}, ms" for role in roles), *(("faster",) if len(roles) > 1 else ()),
            *(f"{role}, tokens/s" for role in roles))  # fmt: skip
    seconds = published.STSB_SECONDS
    note = (
        f"The encoder, fp32, on {_machine(report)}. Batch: sequences x tokens of the longest; lengths go evenly down "
        "to half of it; rates are in real tokens. Padded: stock transformers; packed: without padding, as it was "
        "trained. Medians; all models take turns in each round, ratios are those of a round. "
        f"Published: {seconds[0]:.0f} and {seconds[1]:.0f} s for the development set of STS-B on a CPU, one example "
        f"at a time: {times(seconds[0] / seconds[1])}."
    )
    return Table("Speed", head, rows, words=2, note=note)


def _machine(report: Json) -> str:
    facts = report["machine"]
    return f"{facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}"


def production(report: Json) -> Table | None:
    """What is deployed."""
    if not report["production"]:
        return None
    names = short(list(dict.fromkeys(row["role"] for row in report["production"])))
    rows = [
        (
            names[row["role"]], row["form"], _scored_by(row), amount(row["bytes"] / 1e6, 1), amount(row["length"]),
            milliseconds(row["seconds"]), amount(row["tokens_per_second"]),
            percent(row["score" if "task" in row else "accuracy"]),
        )
        for row in report["production"]
    ]  # fmt: skip
    machines = dict.fromkeys(row["machine"] for row in report["production"] if "task" in row)
    tasks = f" Of tasks: means over the development set, on {'; '.join(machines)}." if machines else ""
    note = f"Whole models, with their heads, on the processor, one sequence at a time, in turn.{tasks}"
    head = ("model", "form", "scored by", "file, MB", "tokens", "ms", "tokens/s", "score, %")
    return Table("Production forms", head, rows, words=3, note=f"{note} {NONE}: not measured.")


def _scored_by(row: Json) -> str:
    return f"{task_title(row['task'])}, {row['metric']}" if "task" in row else "masked words right"


def held_out(report: Json) -> Table | None:
    """Masked words and the teacher's distribution."""
    figures = report["held_out"]
    if not figures:
        return None
    roles = [role for role in (TEACHER, STUDENT) if role in figures]
    rows = [
        (title, *(show(figures[role].get(name)) for role in roles))
        for title, name, show in (
            ("masked-LM loss, nats", "loss_mlm", _four), ("masked words right, %", "accuracy", percent),
            ("KL divergence from the teacher, nats", "kl", _four),
            ("first choice is the teacher's, %", "agreement", percent),
        )
    ]  # fmt: skip
    which = f": {masks(figures['masking'])}" if "masking" in figures else ""  # an older report.json has none
    note = (
        f"{figures['sequences']:,} held-out sequences of {figures['data']}, the same masks for all{which}. "
        f"KL divergence: a token, at temperature 1; loss and shares: of masked words. {NONE}: not measured."
    )
    return Table("Held-out masked words", ("", *roles), rows, note=note)


def masks(settings: Json) -> str:
    """What is masked, by the flags of `data.masking`. Figures of other masks, such as a run's own, do not compare."""
    favour = settings["mlm_smoothing"]
    rare = f"rare ones favoured by count ^ -{favour:g} (--mlm-smoothing)" if favour else "all words alike"
    return f"{settings['mlm_mask_prop']:.0%} of the tokens, {rare}"


def _four(value: float | None) -> str:
    return amount(value, 4)


def _with_spending(table: Table, runs: Sequence[Json]) -> Table:
    """A table with a row a run, and their energy and cost where any of them tells."""
    for title, name, show in (("energy, kWh", "energy_kwh", kwh), ("cost", "cost", price)):
        if any(name in run for run in runs):
            rows = [(*row, show(run.get(name))) for row, run in zip(table.rows, runs, strict=True)]
            table = replace(table, head=(*table.head, title), rows=rows)
    return table


def pretraining(report: Json) -> Table | None:
    """What each run took, and on what."""
    rows = []
    for run in report["pretraining"]:
        flags, facts, seconds, tokens = run["flags"], run["environment"], run["seconds"], run["tokens"]
        rows.append((
            run["run"], str(flags.get("teacher") or NONE), str(flags.get("student") or NONE), hardware(facts),
            str(run["fingerprint"] or NONE), amount(_last_step(run)), NONE if seconds is None else duration(seconds),
            amount(tokens), amount(tokens / seconds if seconds and tokens else None),
        ))  # fmt: skip
    head = ("run", "teacher", "student at the start", "hardware", "data", "steps", "time", "tokens", "tokens/s")
    note = f"Time: of training alone. Data: the fingerprint of its stream. {NONE}: none, or not recorded."
    return (
        _with_spending(Table("Pre-training", head, rows, words=5, note=note), report["pretraining"]) if rows else None
    )


def hardware(environment: Json) -> str:
    """Ranks and devices of a run."""
    if "device" not in environment:
        return NONE
    return f"{environment.get('ranks', 1)} x {environment['device']}"


def unfinished(export: Json) -> str:
    """Of an exported model: the step, and that the run has more of them; nothing where it is done."""
    done, planned = export["step"], export["environment"].get("steps")
    return f"{done:,} of {planned:,}: the run is not done" if isinstance(planned, int) and planned > done else ""


def versions(environment: Json) -> str:
    """The libraries of a run."""
    packages = {"Python": environment.get("python"), **environment.get("packages", {})}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


def _last_step(run: Json) -> float | None:
    return max((curve["step"][-1] for curve in run["curves"].values()), default=None)


def finetuning(report: Json) -> Table | None:
    """Each run by itself."""
    names = short(report["columns"])
    rows = [
        (
            task_title(run["task"]), names[run["column"]], run["run"], str(run["teacher"] or NONE),
            NONE if run["seed"] is None else str(run["seed"]), amount(run["step"]),
            NONE if run["seconds"] is None else duration(run["seconds"]), percent(run["score"]),
        )
        for run in report["finetuning"]
    ]  # fmt: skip
    head = ("task", "model", "run", "teacher", "seed", "steps", "time", "score")
    note = "Score: the main metric, in percent."
    return _with_spending(Table("Fine-tuning", head, rows, words=4, note=note), report["finetuning"]) if rows else None


def paper() -> Table:
    """All that the paper has of what is measured here."""
    rows: list[Row] = []
    for title, scores in (
        *((TITLES[task], scores) for task, scores in published.GLUE.items()),
        ("GLUE, mean of 9 (as printed)", published.GLUE_SCORE),
        ("IMDb, test accuracy", published.IMDB),
        ("SQuAD 1.1, exact", published.SQUAD["exact"]),
        ("SQuAD 1.1, F1", published.SQUAD["f1"]),
    ):
        cells = (scores.teacher, scores.student, scores.retention, scores.again)
        rows.append((title, *map(percent, cells)))
    whole, part = published.PARAMETERS
    rows.append(("parameters", f"{whole / 1e6:.0f} M", f"{part / 1e6:.0f} M", percent(part / whole), NONE))
    slow, fast = published.STSB_SECONDS
    rows.append(("STS-B on a CPU, s", f"{slow:.0f}", f"{fast:.0f}", percent(fast / slow), NONE))
    head = ("", BERT, DISTILBERT, "ratio", f"{DISTILBERT}, distilled again")
    note = f"{published.SOURCE}. Scores in percent, medians of five runs, development sets where nothing else is said."
    return Table("Published", head, rows, note=note)


def gaps(report: Json) -> Table | None:
    """What is not in the report, and why."""
    rows = [(f"not measured: {gap['what']}", gap["why"]) for gap in report["not_measured"]]
    rows += [(f"left out: {gap['run']}", gap["why"]) for gap in report["left_out"]]
    return Table("What is missing", ("", "why"), rows, words=2) if rows else None


def headlines(report: Json) -> list[tuple[str, str]]:
    """The figures to remember, and what they are."""
    return [*_kept(report), *_smaller(report), *_faster(report), *_agreeing(report)]


def _kept(report: Json) -> Iterator[tuple[str, str]]:
    for column, average in report["average"].items():
        if average["retention"] is not None and column.startswith(STUDENT):
            names, paper = average["tasks"], average["published"]
            of = f"mean of {len(names)} tasks of GLUE" if len(names) > 1 else task_title(names[0])
            comparable = column == STUDENT and paper and paper["tasks"] == names
            there = f" (published: {percent(paper['retention'])} %)" if comparable else ""
            yield f"{percent(average['retention'])} %", f"of the teacher's score kept by the {column}: {of}{there}"
    for task in report["tasks"]:
        for column, share in task["retention"].items():
            if task["task"] not in published.GLUE and share is not None and column.startswith(STUDENT):
                paper = task["published"] or {}
                score = paper.get({STUDENT: STUDENT, STUDENT + AGAIN: "again"}[column])
                there = f" (published: {percent(score / paper[TEACHER])} %)" if score else ""
                what = f"of the teacher's score kept by the {column}: {task_title(task['task'])}"
                yield f"{percent(share)} %", what + there


def _smaller(report: Json) -> Iterator[tuple[str, str]]:
    models = {model["role"]: model["parameters"] for model in report["models"]}
    if len(models) > 1:
        there = percent(published.PARAMETERS[1] / published.PARAMETERS[0])
        yield f"{percent(models[STUDENT] / models[TEACHER])} %", f"of its parameters (published: {there} %)"


def _faster(report: Json) -> Iterator[tuple[str, str]]:
    ratios = [row["ratio"] for row in report["speed"] if "ratio" in row]
    if ratios:
        low, high = f"{min(ratios):.1f}", f"{max(ratios):.1f}"
        there = f"{published.STSB_SECONDS[0] / published.STSB_SECONDS[1]:.1f}"
        yield f"{low if low == high else f'{low} to {high}'} x", f"as fast (published: {there} x)"


def _agreeing(report: Json) -> Iterator[tuple[str, str]]:
    share = ((report["held_out"] or {}).get(STUDENT) or {}).get("agreement")
    if share is not None:
        yield f"{percent(share)} %", "of masked words: its first choice is the teacher's"
