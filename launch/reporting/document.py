"""`report.json`: what is known of teacher and student, as one document of plain values. Reads and writes no file.

Scores and shares are fractions, losses nats a token, sizes bytes, times seconds. What was not measured is null, or a
key or row that is not there; `not_measured` says why. Format 1:

    format          1
    date            of the report, YYYY-MM-DD
    teacher, student    names as they were given, or null
    machine         {device, threads, torch, python}; null: nothing was measured on it
    models          [{role, name, layers, hidden_size, parameters, without_embeddings, bytes}]
    tasks           [{task, main, examples: {split: number},
                      scores: {column: {metrics: {name: median over the runs}, runs, lowest, highest (of main)}},
                      retention: {column: share of the teacher's main metric, null where that is not positive},
                      published: {teacher, student, again, retention} or null}]
    columns         of the tasks, in their order: "teacher", "student", "student, distilled again", other models by name
    average         {column: {tasks: GLUE's that teacher and column have, teacher, score: means of main, retention:
                      their ratio, published: {tasks, teacher, student, retention} over those of them that the paper
                      has, or null}}
    speed           [{form, batch, length (tokens of the longest sequence), tokens,
                      role: {seconds, tokens_per_second, rounds: [seconds]}, ratio: teacher's time / student's}]
    production      [{role, form, bytes, length, seconds, tokens_per_second, accuracy}]: whole models on the processor,
                      one sequence at a time; accuracy as in held_out. Of models for tasks, role is one of the columns,
                      length and seconds are means over the held-out data, and in the place of accuracy stand
                      {task, metric (main), score, machine}
    held_out        {data, sequences, masking: its flags, role: {loss_mlm, accuracy, student's also: kl, agreement}};
                      or null
    pretraining     [{run, flags, fingerprint, environment, seconds, tokens, energy_kwh and cost where the log has them,
                      curves: {name: {step: [], value: []}}}]
    finetuning      [{run, task, column, seed, step, teacher, main, score, seconds, tokens, energy_kwh, cost, curves}]
    not_measured    [{what, why}]
    left_out        [{run, why}]
    source          of the published figures
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from launch.log import totals
from launch.reporting import published
from launch.reporting.curves import curves, taken
from launch.reporting.runs import PreTrained, Runs, Tuned, identity

FORMAT = 1
TEACHER, STUDENT, AGAIN = "teacher", "student", ", distilled again"
ORDER = (*published.GLUE, "squad", "squad_v2")

Json = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What was measured on this machine; None and empty: it was not.

    Attributes:
        not_measured: (what, why).
    """

    machine: Json | None = None
    models: Sequence[Json] = ()
    speed: Sequence[Json] = ()
    production: Sequence[Json] = ()
    held_out: Json | None = None
    not_measured: Sequence[tuple[str, str]] = ()


def document(date: str, teacher: str | None, student: str | None, runs: Runs, measured: Measured) -> Json:
    """The whole report, see above."""
    by_task = _grouped(runs.tuned, teacher, student)
    tasks = [_task(name, by_task[name]) for name in sorted(by_task, key=_place)]
    columns = _in_order(dict.fromkeys(column for columns in by_task.values() for column in columns))
    return {
        "format": FORMAT,
        "date": date,
        "teacher": teacher,
        "student": student,
        "machine": measured.machine,
        "models": list(measured.models),
        "tasks": tasks,
        "columns": columns,
        "average": {column: average for column in columns if (average := _average(tasks, column))},
        "speed": list(measured.speed),
        "production": [*measured.production, *_production(by_task)],
        "held_out": _finite(measured.held_out),
        "pretraining": [_pretraining(run) for run in runs.pretrained],
        "finetuning": [
            _finetuning(run, column)
            for task in tasks
            for column in columns
            for run in by_task[task["task"]].get(column, ())
            if run.log
        ],
        "not_measured": [
            {"what": what, "why": why}
            for what, why in (*measured.not_measured, *_missing(tasks, columns, runs, teacher, student))
        ],
        "left_out": [{"run": str(path), "why": why} for path, why in runs.left_out],
        "source": published.SOURCE,
    }


# --- tasks ---


def _column(run: Tuned, teacher: str | None, student: str | None) -> str:
    """Whose run it is."""
    roles = {identity(name): role for name, role in ((student, STUDENT), (teacher, TEACHER)) if name}
    return roles.get(identity(run.model), run.model) + (AGAIN if run.teacher else "")


def _grouped(tuned: Iterable[Tuned], teacher: str | None, student: str | None) -> dict[str, dict[str, list[Tuned]]]:
    """Runs by task and column."""
    groups: dict[str, dict[str, list[Tuned]]] = {}
    for run in tuned:
        groups.setdefault(run.task, {}).setdefault(_column(run, teacher, student), []).append(run)
    return groups


def _place(task: str) -> tuple[int, str]:
    return ORDER.index(task) if task in ORDER else len(ORDER), task


def _in_order(columns: Iterable[str]) -> list[str]:
    """Teacher and student first."""
    first = [TEACHER, STUDENT, STUDENT + AGAIN]
    return sorted(columns, key=lambda column: first.index(column) if column in first else len(first))


def _task(name: str, groups: Mapping[str, list[Tuned]]) -> Json:
    """A task's row."""
    run = next(iter(groups.values()))[0]
    main = run.main
    scores = {column: _score(runs, main) for column, runs in groups.items()}
    teacher = scores.get(TEACHER)
    others = [column for column in scores if column != TEACHER] if teacher else []
    paper = published.scores(name, main) if "test" not in run.examples else None  # the paper's are of dev sets
    return {
        "task": name,
        "main": main,
        "examples": run.examples,
        "scores": scores,
        "retention": {column: _ratio(scores[column], teacher, main) for column in others},
        "published": asdict(paper) | {"retention": paper.retention} if paper else None,
    }


def _score(runs: Sequence[Tuned], main: str) -> Json:
    """The median of runs that differ in their seeds."""
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    values = [run.metrics[main] for run in runs]
    return {
        "metrics": {name: median(run.metrics[name] for run in runs) for name in names},
        "runs": len(runs),
        "lowest": min(values),
        "highest": max(values),
    }


def _ratio(score: Json, teacher: Json | None, main: str) -> float | None:
    assert teacher is not None
    whole = teacher["metrics"][main]
    return score["metrics"][main] / whole if whole > 0 else None


def _average(tasks: Sequence[Json], column: str) -> Json | None:
    """Over GLUE's tasks that the column and the teacher have, as in the paper; None, if there are none."""
    both = [task for task in tasks if TEACHER in task["scores"] and column in task["scores"]]
    common = [task for task in both if task["task"] in published.GLUE]
    if column == TEACHER or not common:
        return None
    teacher, score = (fmean(t["scores"][c]["metrics"][t["main"]] for t in common) for c in (TEACHER, column))
    known = [task for task in common if task["published"]]
    return {
        "tasks": [task["task"] for task in common],
        "teacher": teacher,
        "score": score,
        "retention": score / teacher if teacher > 0 else None,
        "published": _published_average(known) if known else None,
    }


def _published_average(tasks: Sequence[Json]) -> Json:
    teacher, student = (fmean(task["published"][role] for task in tasks) for role in (TEACHER, STUDENT))
    names = [task["task"] for task in tasks]
    if set(names) == set(published.GLUE):  # as printed
        teacher, student = published.GLUE_SCORE.teacher, published.GLUE_SCORE.student
    return {"tasks": names, TEACHER: teacher, STUDENT: student, "retention": student / teacher}


# --- runs ---


def _pretraining(run: PreTrained) -> Json:
    """Recipe, data, hardware, time and curves."""
    return {
        "run": str(run.path),
        "flags": run.flags,
        "fingerprint": run.fingerprint,
        "environment": run.environment,
        **_taken(run.log),
        "curves": curves(run.log),
    }


def _finetuning(run: Tuned, column: str) -> Json:
    return {
        "run": str(run.path),
        "task": run.task,
        "column": column,
        "seed": run.seed,
        "step": run.step,
        "teacher": run.teacher,
        "main": run.main,
        "score": run.metrics[run.main],
        **_taken(run.log),
        "curves": curves(run.log),
    }


def _production(by_task: Mapping[str, Mapping[str, Sequence[Tuned]]]) -> list[Json]:
    """What `finetune_dilbert.py --onnx` measured of models for tasks."""
    return [
        {"role": column, **form, "task": run.task, "metric": run.main, "score": form["metrics"][run.main]}
        for task in sorted(by_task, key=_place)
        for column, runs in by_task[task].items()
        for run in runs
        for form in run.production
    ]


def _taken(log: Sequence[Json]) -> Json:
    seconds, tokens = taken(log) or (None, None)
    return {"seconds": seconds, "tokens": tokens, **totals(log)}


# --- what is missing ---


def _missing(
    tasks: Sequence[Json], columns: Sequence[str], runs: Runs, teacher: str | None, student: str | None
) -> list[tuple[str, str]]:
    """What no run tells."""
    rows = []
    unmeasured = [name for name in ORDER if name not in {task["task"] for task in tasks}]
    if not tasks:
        rows.append(("tasks", "no finished run of fine-tuning in --runs"))
    elif unmeasured:
        rows.append(("other tasks", f"no finished run of {', '.join(unmeasured)}"))
    for role, name in ((TEACHER, teacher), (STUDENT, student)):
        if tasks and role not in columns:
            why = f"no finished run has {name} as its model" if name else f"no --{role} was named"
            rows.append((f"tasks of the {role}, and retention", why))
    if not runs.pretrained:
        rows.append(("pre-training", "no finished run of it in --runs"))
    return rows


def _finite(figures: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(figures, dict):
        return {name: _finite(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
