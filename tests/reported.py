"""Run folders, as training leaves them, for reports to read; and a reader of the pages that come of them."""

import html.parser
import json
import re
from pathlib import Path

from launch.reporting import runs
from launch.reporting.document import Measured, document

TASKS = {
    "cola": ("matthews", {"matthews": 0.5}),
    "mrpc": ("f1", {"f1": 0.9, "accuracy": 0.85}),
    "sst2": ("accuracy", {"accuracy": 0.9}),
    "squad": ("f1", {"f1": 0.8, "exact": 0.7}),
    "stsb": ("pearson", {"pearson": 0.6, "spearman": 0.5}),
}
FORM = {"form": "ONNX int8", "bytes": 700_000, "length": 25.25, "seconds": 0.0015, "tokens_per_second": 16_833.0,
        "metrics": {"accuracy": 0.75}, "machine": "another processor"}  # fmt: skip
LOG = (
    {"step": 10, "loss": 0.7, "lr": 1e-4, "seconds_per_step": 0.5, "tokens_per_second": 100.0},
    {"step": 15, "loss": 0.5, "lr": 1e-4, "seconds_per_step": 2.0, "tokens_per_second": 50.0, "loss_scale": 8.0},
    {"step": 15, "valid_accuracy": 0.8},
)


def write(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def tuned(folder: Path, model: str, task: str = "sst2", *, score: float | None = None, done: bool = True,
          kind: str = "distilbert", **result: object) -> Path:  # fmt: skip
    """A run folder of fine-tuning."""
    main, metrics = TASKS[task]
    metrics = metrics if score is None else dict.fromkeys(metrics, score / 2) | {main: score}
    body = {"task": task, "main": main, "metrics": metrics, "model": model, "teacher": None, "seed": 0, "step": 15,
            "examples": {"dev": 872}}  # fmt: skip
    write(folder / "config.json", {"flags": {"task": task, "model": model}, "model": {"model_type": kind}})
    write(folder / "result.json", body | result)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    if done:
        write(folder / "DONE.json", {"step": 15})
    return folder


def pretrained(folder: Path, done: bool = True) -> Path:
    """A run folder of pre-training."""
    flags = {"student": "start", "teacher": "big", "alpha_ce": 5.0, "mlm_smoothing": 0.0, "data": ["web", "books"],
             "fresh": False}  # fmt: skip
    write(folder / "config.json", {"flags": flags, "fingerprint": "0123456789abcdef", "model": {}})
    packages = {"torch": "2.13.0"}
    write(folder / "environment.json", {"ranks": 8, "device": "H100", "python": "3.12", "packages": packages})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    if done:
        write(folder / "DONE.json", {"step": 15})
    return folder


def made(*folders: Path, teacher: str | None = "t", student: str | None = "s") -> dict:
    return document("2026-01-31", teacher, student, runs.read(folders), Measured())


def task_of(body: dict, name: str = "sst2") -> dict:
    (task,) = [task for task in body["tasks"] if task["task"] == name]
    return task


class Reader(html.parser.HTMLParser):
    """Cells of all tables; fails where tags do not match, or anything is fetched or run."""

    VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        names = {name for name, _ in attributes}
        assert tag not in ("script", "link", "img", "iframe", "object", "embed")
        assert not names & {"src", "srcset", "href", "action", "data"}
        assert not any(name.startswith("on") for name in names)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert not re.search(r"https?:|//|url\(|@import", text.replace("/>", ""))
    return reader
