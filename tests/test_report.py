"""What a student kept of its teacher: the document, the page, and what is measured for them."""

import html.parser
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import make_models
from transformers import AutoModelForMaskedLM

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from launch import evaluate, hub, measuring, report
from launch.errors import CheckpointError, ConfigError, DataError
from launch.reporting import document as documents
from launch.reporting import forms, plots, published, runs, speed, tables, terminal
from launch.reporting import page as pages
from launch.reporting.curves import curves, taken, thinned
from launch.reporting.document import Measured, document
from launch.reporting.speed import Sample

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


# --- scores and retention ---


def test_medians_and_retention_by_hand(tmp_path):
    seeds = [tuned(tmp_path / f"t{seed}", "t", score=score, seed=seed) for seed, score in enumerate((0.9, 0.8, 0.84))]
    two = [tuned(tmp_path / f"s{seed}", "s", score=score, seed=seed) for seed, score in enumerate((0.7, 0.77))]
    cola = [tuned(tmp_path / "tc", "t", "cola", score=0.6), tuned(tmp_path / "sc", "s", "cola", score=0.3)]
    body = made(*seeds, *two, *cola)
    sst2 = task_of(body)
    assert sst2["scores"]["teacher"] == {"metrics": {"accuracy": 0.84}, "runs": 3, "lowest": 0.8, "highest": 0.9}
    assert sst2["scores"]["student"]["metrics"]["accuracy"] == pytest.approx(0.735)
    assert sst2["retention"] == {"student": pytest.approx(0.875)}
    assert task_of(body, "cola")["retention"] == {"student": pytest.approx(0.5)}
    average = body["average"]["student"]
    assert average["tasks"] == ["cola", "sst2"]
    assert (average["teacher"], average["score"]) == (pytest.approx(0.72), pytest.approx(0.5175))
    assert average["retention"] == pytest.approx(0.71875)
    assert average["published"]["tasks"] == ["cola", "sst2"]
    paper = [average["published"][name] for name in ("teacher", "student", "retention")]
    assert paper == pytest.approx([0.745, 0.713, 0.713 / 0.745])
    assert body["columns"] == ["teacher", "student"]


def test_the_mean_is_over_glue_alone_and_all_nine_are_compared_as_printed(tmp_path):
    scores = {"cola": 0.5, "mnli": 0.6, "mrpc": 0.7, "qnli": 0.8, "qqp": 0.9, "rte": 0.6, "sst2": 0.7, "stsb": 0.8,
              "wnli": 0.4}  # fmt: skip
    folders = []
    for task, score in scores.items():
        for model in "ts":
            folder = tuned(tmp_path / f"{task}-{model}", model, main="m", metrics={"m": score})
            result = json.loads((folder / "result.json").read_text())
            write(folder / "result.json", result | {"task": task})
            folders.append(folder)
    folders += [tuned(tmp_path / f"squad-{model}", model, "squad") for model in "ts"]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        config["flags"]["task"] = json.loads((folder / "result.json").read_text())["task"]
        write(folder / "config.json", config)
    average = made(*folders)["average"]["student"]
    assert average["score"] == pytest.approx(sum(scores.values()) / 9)
    assert (average["published"]["teacher"], average["published"]["student"]) == (0.795, 0.77)
    assert average["published"]["retention"] == pytest.approx(0.770 / 0.795)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flags", {"max_length": 64}, "--max-length is None and 64"),
        ("flags", {"teacher": "other"}, "--teacher is t1 and t2"),
        ("deepspeed_config", {"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr is None and 1"),
        ("step", 30, "the number of steps is 15 and 30"),
        ("seed", 0, "both are of seed 0"),
    ],
)  # fmt: skip
def test_medians_are_of_seeds_alone(name, change, message, tmp_path):
    teachers = ("t1", "t2") if change == {"teacher": "other"} else ("t1", "t1")
    one, other = (tuned(tmp_path / str(n), "s", seed=n, teacher=teachers[n]) for n in (0, 1))
    if isinstance(change, dict):
        config = json.loads((other / "config.json").read_text())
        write(other / "config.json", config | {name: config.get(name, {}) | change})
    else:
        write(other / "result.json", json.loads((other / "result.json").read_text()) | {name: change})
    with pytest.raises(DataError) as error:
        runs.read([one, other])
    assert message in str(error.value)
    assert str(one) in str(error.value) and str(other) in str(error.value)


def test_what_only_one_of_them_has_is_in_no_average(tmp_path):
    body = made(
        tuned(tmp_path / "a", "t"), tuned(tmp_path / "b", "s", score=0.45), tuned(tmp_path / "c", "s", "cola"),
        tuned(tmp_path / "d", "t", "stsb"),
    )  # fmt: skip
    assert body["average"]["student"]["tasks"] == ["sst2"]
    assert task_of(body, "cola")["retention"] == task_of(body, "stsb")["retention"] == {}


def test_a_teacher_that_scores_nothing_leaves_no_share(tmp_path):
    body = made(tuned(tmp_path / "a", "t", "cola", score=0.0), tuned(tmp_path / "b", "s", "cola", score=0.1))
    assert task_of(body, "cola")["retention"] == {"student": None}
    assert body["average"]["student"]["retention"] is None
    assert "0.0" in pages.page(body)


def test_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/t").mkdir(parents=True)
    body = made(
        tuned(tmp_path / "1", str(tmp_path / "models" / "t")),
        tuned(tmp_path / "2", "dilbert-base-uncased", score=0.72),
        tuned(tmp_path / "3", "distilbert/distilbert-base-uncased", score=0.81, teacher="models/t-sst2"),
        tuned(tmp_path / "4", "/some/where/alone", score=0.45),
        tuned(tmp_path / "5", "/some/where/alone", score=0.63, teacher="models/t-sst2"),
        teacher="models/../models/t/", student="distilbert/distilbert-base-uncased",
    )  # fmt: skip
    assert body["columns"] == [
        "teacher", "student", "student, distilled again", "/some/where/alone", "/some/where/alone, distilled again",
    ]  # fmt: skip
    shares = [body["average"][column]["retention"] for column in body["columns"][1:]]
    assert shares == pytest.approx([0.8, 0.9, 0.5, 0.7])
    head = tables.tasks(body).head
    assert "alone" in head
    assert "alone, distilled again: kept" in head


def test_names_are_as_long_as_it_takes():
    assert tables.short(["teacher", "/a/b/x", "/a/c/x", "hub/y"]) == {
        "teacher": "teacher", "/a/b/x": "b/x", "/a/c/x": "c/x", "hub/y": "y",
    }  # fmt: skip


def test_published_figures():
    rows = published.GLUE.values()
    assert sum(row.student for row in rows) / 9 == pytest.approx(published.GLUE_SCORE.student, abs=5e-4)
    assert sum(row.teacher for row in rows) / 9 == pytest.approx(published.GLUE_SCORE.teacher, abs=2.5e-3)
    assert f"{published.GLUE_SCORE.retention:.0%}" == "97%"
    assert published.scores("squad", "exact") == published.Scores(0.812, 0.777, 0.791)
    assert published.scores("sst2", "accuracy") == published.Scores(0.927, 0.913)
    assert published.scores("squad_v2", "f1") is None
    assert 1 - published.PARAMETERS[1] / published.PARAMETERS[0] == pytest.approx(0.4)  # "40 % smaller"
    assert published.STSB_SECONDS[0] / published.STSB_SECONDS[1] == pytest.approx(1.63, abs=5e-3)  # "60 % faster"


# --- run folders ---


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path):
    top = tmp_path / "sst2"
    each = [tuned(top / f"seed-{seed}", "s", score=score, seed=seed) for seed, score in enumerate((0.1, 0.2, 0.6))]
    write(top / "result.json", {"task": "sst2", "metrics": {"accuracy": 0.2}, "seeds": {}})
    body = made(top, each[0], top, tuned(tmp_path / "t", "t"))
    assert task_of(body)["scores"]["student"] == {
        "metrics": {"accuracy": 0.2}, "runs": 3, "lowest": 0.1, "highest": 0.6,
    }  # fmt: skip


def test_a_model_measured_as_it_is_needs_no_end(tmp_path):
    folder = tuned(tmp_path / "eval", "t", done=False, step=None, seed=None)
    (folder / "config.json").unlink()
    (folder / "log.jsonl").unlink()
    body = made(folder)
    assert task_of(body)["scores"]["teacher"]["runs"] == 1
    assert body["finetuning"] == []


def test_what_is_left_out_is_named(tmp_path):
    running, stopped = tuned(tmp_path / "running", "s", done=False), pretrained(tmp_path / "stopped", done=False)
    write(stopped / "STOPPED.json", {"code": 75, "step": 12})
    old = tuned(tmp_path / "run.old-2", "s")
    write(tmp_path / "model" / "config.json", {"model_type": "bert"})
    (tmp_path / "notes.txt").write_text("nothing")
    folders = [running, stopped, old, tmp_path / "model", tmp_path / "notes.txt", tuned(tmp_path / "t", "t")]
    body = made(*folders)
    assert {Path(row["run"]).name: row["why"].partition(":")[0] for row in body["left_out"]} == {
        "running": "not finished", "stopped": "not finished", "run.old-2": "moved aside by --fresh",
        "model": "no run", "notes.txt": "no run",
    }  # fmt: skip
    assert "stopped at step 12" in terminal.markdown([tables.gaps(body)])
    assert "stopped at step 12" in pages.page(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "rte"}, "figures of task rte, in a run of sst2"),
        ({"task": None}, "'task' is None; must be of type str"),
        ({"metrics": {"accuracy": 83.0}}, "accuracy is 83.0; must be a fraction"),
        ({"metrics": {"accuracy": float("nan")}}, "accuracy is nan; must be a fraction"),
        ({"metrics": {"f1": 0.5}}, "the main metric, accuracy, is none of f1"),
        ({"metrics": [1]}, "'metrics' is [1]; must be of type dict"),
        ({"model": 3}, "'model' is 3; must be of type str"),
        ({"examples": None}, "'examples' is None; must be of type dict"),
        ({"step": "last"}, "'step' is 'last'; must be of type int | None"),
        ({"production": {}}, "'production' is {}; must be of type list | None"),
        ({"production": ["ONNX"]}, "'form' is None; must be of type str"),
        ({"production": [FORM | {"seconds": "1"}]}, "'seconds' is '1'; must be of type int | float"),
        ({"production": [FORM | {"metrics": {"f1": 0.5}}]}, "the main metric, accuracy, is none of f1"),
        ({"examples": {"dev": 10}}, "figures on different data can't be compared"),
    ],
)
def test_records_that_can_not_be(tmp_path, change, message):
    good, bad = tuned(tmp_path / "good", "s"), tuned(tmp_path / "bad", "s")
    write(bad / "result.json", json.loads((bad / "result.json").read_text()) | change)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        runs.read([good, bad])
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("name", ["result.json", "config.json", "DONE.json", "environment.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_damaged_json(tmp_path, name, content):
    folder = pretrained(tmp_path / "run") if name == "environment.json" else tuned(tmp_path / "run", "s")
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    if name == "DONE.json":  # only whether it is there counts
        assert len(runs.read([folder]).tuned) == 1
        return
    with pytest.raises(DataError, match=name):
        runs.read([folder])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("config.json", {"flags": [1]}),
        ("config.json", {"flags": {"student": "s"}, "model": 3}),
        ("environment.json", {"packages": "torch"}),
        ("environment.json", {"data": {}}),
    ],
)
def test_records_with_odd_parts(tmp_path, name, body):
    write(pretrained(tmp_path / "run") / name, body)
    with pytest.raises(DataError, match=rf"{name}: '\w+' is .*; must be of type (dict|list)"):
        runs.read([tmp_path / "run"])


def test_done_but_without_a_result(tmp_path):
    (tuned(tmp_path / "run", "s") / "result.json").unlink()
    with pytest.raises(DataError, match=r"no result\.json"):
        runs.read([tmp_path / "run"])


def test_no_such_run(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        runs.read([tmp_path / "nowhere"])


def test_runs_alone_say_who_is_who(tmp_path):
    big = tuned(tmp_path / "a", "big", kind="bert")
    small = tuned(tmp_path / "b", "small")
    assert runs.read([big, small]).pair() == ("big", "small")
    assert runs.read([big, small, tuned(tmp_path / "c", "other")]).pair() == ("big", None)
    assert runs.read([pretrained(tmp_path / "d")]).pair() == (None, None)


# --- logs ---


def test_curves_and_time_by_hand():
    assert curves(LOG) == {
        "loss": {"step": [10, 15], "value": [0.7, 0.5]}, "valid_accuracy": {"step": [15], "value": [0.8]},
    }  # fmt: skip
    assert taken(LOG) == (10 * 0.5 + 5 * 2.0, 10 * 0.5 * 100 + 5 * 2.0 * 50)
    assert taken([{"step": 3, "loss": 1.0}]) is None
    assert curves([{"step": 1, "loss": None}, {"step": 2, "loss": "x"}, {"step": 3, "loss": float("nan")}]) == {}


def test_long_curves_are_thinned_to_means_of_neighbours():
    points = [(step, step % 2) for step in range(1, 11)]
    assert thinned(points, most=4) == {"step": [2, 5, 8, 10], "value": [2 / 3, 1 / 3, 2 / 3, 0]}
    assert thinned(points, most=10)["step"] == list(range(1, 11))


def test_pre_training_tells_recipe_data_hardware_and_time(tmp_path):
    body = made(pretrained(tmp_path / "run"))
    (run,) = body["pretraining"]
    assert (run["seconds"], run["tokens"], run["fingerprint"]) == (15.0, 1000.0, "0123456789abcdef")
    text = pages.page(body)
    for word in ("--alpha-ce", "--mlm-smoothing", "web books", "8 x H100", "torch 2.13.0", "0123456789abcdef", "00:15"):
        assert word in text
    assert "--fresh" not in text


# --- speed ---


def test_samples_padded_and_packed_are_the_same():
    sample = Sample.random(5, 9, 50, torch.device("cpu"))
    assert sample.mask_BL.sum(1).tolist() == [9, 8, 7, 6, 5]
    assert sample.cu_seqlens.tolist() == [0, 9, 17, 24, 30, 35]
    assert sample.ids_T.tolist() == sample.ids_BL[sample.mask_BL.bool()].tolist()
    assert sample.positions_T.tolist() == [p for length in (9, 8, 7, 6, 5) for p in range(length)]
    assert (sample.tokens, sample.longest) == (35, 9)
    assert Sample.random(1, 9, 50, torch.device("cpu")).tokens == 9


def test_models_take_turns_and_the_first_turn_does_not_count(monkeypatch):
    clock, order = [0.0], []
    durations = {"teacher": iter([90.0, 4.0, 6.0, 5.0]), "student": iter([70.0, 2.0, 2.0, 4.0])}

    def model(role):
        def go(sample):
            order.append(role)
            clock[0] += next(durations[role])

        return go

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    models = {("padded", role): model(role) for role in ("teacher", "student")}
    (row,) = speed.measure(models, [(2, 10)], rounds=3, vocabulary=9, device=torch.device("cpu"))
    assert order == ["teacher", "student"] * 4
    assert row["teacher"] == {"seconds": 5.0, "tokens_per_second": 3.0, "rounds": [4.0, 6.0, 5.0]}
    assert row["student"]["seconds"] == 2.0
    assert row["ratio"] == 2.0  # of 4/2, 6/2, 5/4; the ratio of the medians would be 2.5
    assert (row["form"], row["batch"], row["length"], row["tokens"]) == ("padded", 2, 10, 15)


# --- the page ---


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


def everything(tmp_path: Path) -> dict:
    """A report in which all is there, and names that are no HTML."""
    odd = "<b>models & more</b>"
    folders = [tuned(tmp_path / f"{role}-{task}", role, task, score=0.1 + 0.05 * place + 0.02 * (role == "t"))
               for place, task in enumerate(TASKS) for role in ("t", "s", odd)]  # fmt: skip
    folders.append(tuned(tmp_path / "again", "s", "squad", score=0.29, teacher="t-squad"))
    folders.append(tuned(tmp_path / "export", "models/s-sst2", score=0.8, step=None, seed=None, production=[FORM]))
    rows = [{"form": form, "batch": batch, "length": 32, "tokens": 24 * batch,
             "teacher": {"seconds": 0.02 * batch, "tokens_per_second": 1200.0, "rounds": [0.02 * batch]},
             "student": {"seconds": 0.01 * batch, "tokens_per_second": 2400.0, "rounds": [0.01 * batch]}, "ratio": 2.0}
            for form in ("padded", "packed") for batch in (1, 8)]  # fmt: skip
    model = {"layers": 4, "hidden_size": 8, "parameters": 1000, "without_embeddings": 400, "bytes": 4096, "name": "t"}
    half = {"layers": 2, "hidden_size": 8, "parameters": 750, "without_embeddings": 200, "bytes": 2048, "name": "s"}
    words = {"data": "valid", "sequences": 3, "masking": asdict(MaskingSettings(mlm_smoothing=0.0)),
             "teacher": {"loss_mlm": 2.0, "accuracy": 0.5},
             "student": {"loss_mlm": 2.25, "accuracy": float("nan"), "kl": 0.125, "agreement": 0.875}}  # fmt: skip
    measured = Measured(
        {"device": "a processor", "threads": 2, "torch": "2.13.0", "python": "3.12"},
        [{"role": "teacher", **model}, {"role": "student", **half}], rows,
        [{"role": "student", "form": "ONNX", "bytes": 2_500_000, "length": 128, "seconds": 0.004,
          "tokens_per_second": 32_000.0, "accuracy": None}], words,
    )  # fmt: skip
    found = runs.read([*folders, pretrained(tmp_path / "pre"), pretrained(tmp_path / "not-done", done=False)])
    return json.loads(json.dumps(document("2026-01-31", "t", "s", found, measured), allow_nan=False))


def test_the_page_is_html_that_needs_nothing(tmp_path):
    body = everything(tmp_path)
    text = pages.page(body)
    reader = read(text)
    assert "<b>models & more</b>" in reader.text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert text.count("<svg viewBox") == text.count("<title>") - 1 > 10  # every plot has a name


def test_page_terminal_and_json_have_the_same_numbers(tmp_path):
    body = everything(tmp_path)
    reader = read(pages.page(body))
    makers = (tables.tasks, tables.sizes, tables.speed, tables.production, tables.held_out, tables.pretraining,
              tables.finetuning, tables.gaps)  # fmt: skip
    shown = [*(make(body) for make in makers), tables.paper()]
    assert reader.tables == [[list(row) for row in (table.head, *table.rows)] for table in shown]
    text = terminal.markdown(shown)
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if "| " in line[:2]]
    assert [row for row in lines if "---" not in row[0]] == [row for table in reader.tables for row in table]
    (sst2,) = [row for row in reader.tables[0] if row[0] == "SST-2"]
    scores = [task_of(body)["scores"][column]["metrics"]["accuracy"] for column in ("teacher", "student")]
    assert sst2[2:4] == [f"{100 * score:.1f}" for score in scores] == ["22.0", "20.0"]
    assert sst2[sst2.index("92.7") :] == ["92.7", "91.3", "98.5", "872"]
    assert "90.9" in sst2  # 0.20 / 0.22
    words = reader.tables[4]
    assert words[1:] == [
        ["masked-LM loss, nats", "2.0000", "2.2500"], ["masked words right, %", "50.0", "-"],
        ["KL divergence from the teacher, nats", "-", "0.1250"], ["first choice is the teacher's, %", "-", "87.5"],
    ]  # fmt: skip
    assert reader.tables[3][1:] == [
        ["student", "ONNX", "masked words right", "2.5", "128", "4.00", "32,000", "-"],
        ["s-sst2", "ONNX int8", "SST-2, accuracy", "0.7", "25", "1.50", "16,833", "75.0"],
    ]
    assert "Of tasks: means over the development set, on another processor." in text
    assert reader.tables[2][1] == ["padded", "1 x 32", "20.0", "10.0", "2.00 x", "1,200", "2,400"]
    assert reader.tables[1][1] == ["parameters", "1,000", "750", "75.0 %", "110 M", "66 M", "60.0 %"]


def test_fine_tuning_curves_are_those_of_the_task(tmp_path):
    folders = [tuned(tmp_path / "t", "t"), tuned(tmp_path / "s", "s", teacher="t-sst2")]
    for folder, value in zip(folders, (1.0, 3.0), strict=True):
        rows = [{"step": step, "loss": 77.0, "loss_task": value} for step in (1, 2)]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (figure,) = next(part.figures for part in pages.sections(made(*folders)) if part.title == "Fine-tuning")
    assert figure.legend == [(0, "teacher"), (2, "student, distilled again")]
    assert [re.findall(r",([\d.]+)", line) for line in re.findall(r'<polyline[^>]* points="([^"]*)"', figure.plot)] == [
        [f"{plots.HEIGHT - plots.BOTTOM:.1f}"] * 2, [f"{plots.TOP:.1f}"] * 2,
    ]  # fmt: skip


def test_the_figures_to_remember(tmp_path):
    assert tables.headlines(everything(tmp_path)) == [
        # 0.2 / 0.22, and 402.8 / 415.1
        ("90.4 %", "of the teacher's score kept by the student: mean of 4 tasks of GLUE (published: 97.1 %)"),
        # 0.25 / 0.27 and 0.29 / 0.27
        ("92.6 %", "of the teacher's score kept by the student: SQuAD 1.1 (published: 96.9 %)"),
        ("107.4 %", "of the teacher's score kept by the student, distilled again: SQuAD 1.1 (published: 98.2 %)"),
        ("75.0 %", "of its parameters (published: 60.0 %)"),
        ("2.0 x", "as fast (published: 1.6 x)"),
        ("87.5 %", "of masked words: its first choice is the teacher's"),
    ]


def test_what_is_not_there_is_named_and_has_no_numbers(tmp_path):
    body = made(tuned(tmp_path / "run", "s"))
    assert {row["what"]: row["why"] for row in body["not_measured"]} == {
        "other tasks": "no finished run of cola, mnli, mrpc, qnli, qqp, rte, stsb, wnli, squad, squad_v2",
        "tasks of the teacher, and retention": "no finished run has t as its model",
        "pre-training": "no finished run of it in --runs",
    }
    assert body["speed"] == body["models"] == []
    assert body["held_out"] is body["machine"] is None
    text = pages.page(body)
    assert [table[0][0] for table in read(text).tables] == ["task", "task", "", ""]
    assert "not measured: pre-training" in text


def test_the_document_says_what_is_in_it(tmp_path):
    body = everything(tmp_path)
    assert body["format"] == documents.FORMAT == 1
    parts = (body, body["tasks"][0], body["average"]["student"], body["speed"][0], body["models"][0],
             body["pretraining"][0], body["finetuning"][0], body["held_out"]["student"],
             *body["production"])  # fmt: skip
    roles = {"teacher", "student"}
    missing = [name for part in parts for name in part if name not in documents.__doc__ and name not in roles]
    assert len(body["production"]) == 2
    assert missing == []


# --- plots ---


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.93, 1.0, [0.94, 0.96, 0.98, 1.0]),
        (0, 123456, [0, 50000, 100000]),
        (12.01, 12.09, [12.02, 12.04, 12.06, 12.08]),
    ],
)
def test_ticks_are_round_and_few(low, high, expected):
    assert plots.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0.3, 0.3), (-2, -2), (1e-9, 1.1e-9), (0, 1e12), (-1, 1), (7, 7.7)])
def test_there_are_always_ticks(low, high):
    assert 2 <= len(plots.ticks(low, high)) <= 7


def test_numbers_are_short():
    assert [plots.number(value) for value in (0.25, 9999, 10_000, 1.5e6, 110e6, 1.5e9, -0.0)] == [
        "0.25", "9999", "10k", "1.5M", "110M", "1.5G", "-0",
    ]  # fmt: skip


def test_no_number_is_cut_off_at_the_edge():
    text = plots.lines("loss", [(0, ([0, 8000], [1.0, 2.0]))])
    assert f'<text x="{plots.WIDTH:.1f}" y="{plots.HEIGHT - 6:.1f}" text-anchor="end">8000<' in text


def test_curves_go_from_corner_to_corner():
    text = plots.lines("<loss>", [(0, ([0, 100], [2.0, 4.0])), (1, ([50], [3.0]))])
    assert "<title>&lt;loss&gt;</title>" in text
    left, right = plots.LEFT, plots.WIDTH - plots.RIGHT
    bottom, top = plots.HEIGHT - plots.BOTTOM, plots.TOP
    assert f'points="{left:.1f},{bottom:.1f} {right:.1f},{top:.1f}"' in text
    assert f'<circle cx="{(left + right) / 2:.1f}" cy="{(bottom + top) / 2:.1f}"' in text


def test_bars_are_as_long_as_what_they_show():
    text = plots.bars("size", [("teacher", [(0, 200.0, "200")]), ("student", [(1, 50.0, "50")])])
    whole, quarter = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', text))
    assert quarter == pytest.approx(whole / 4)


# --- the command ---


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def command(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    report.main()


def test_both_forms_compute_the_same(models):
    device = torch.device("cpu")
    sample = Sample.random(3, 20, 30, device)
    for name in models:
        model = measuring.Model.load(str(name))
        with torch.no_grad():
            theirs = measuring.padded(model, device)(sample).last_hidden_state[sample.mask_BL.bool()]
            torch.testing.assert_close(measuring.packed(model, device)(sample), theirs, atol=1e-5, rtol=1e-4)


def kl_of(models: tuple[Path, Path], dataset: Dataset, counts: object) -> float:
    """By `transformers`, sequence by sequence: mean over real tokens of KL(teacher || student)."""
    teacher, student = (AutoModelForMaskedLM.from_pretrained(path).eval() for path in models)
    total = tokens = 0.0
    for batch in HeldOut(dataset, dataset.vocabulary, MaskingSettings(), counts).micro_batches(1):
        ids = torch.from_numpy(batch.input_ids).long()[None]
        with torch.no_grad():
            log_t, log_s = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (teacher, student))
        total += float((log_t.exp() * (log_t - log_s)).sum())
        tokens += ids.numel()
    return total / tokens


def test_all_of_it_from_the_command_line(models, dataset_folder, dataset, tmp_path, monkeypatch, capsys):
    teacher, student = models
    folders = [tuned(tmp_path / "runs" / "t", str(teacher)), tuned(tmp_path / "runs" / "s", str(student), score=0.72)]
    output = tmp_path / "report"
    words = ["--teacher", teacher, "--student", student, "--output", output]
    command(monkeypatch, *words, "--runs", *folders, "--data", dataset_folder, "--batch-sizes", 1, 2, "--lengths", 8,
            512, "--rounds", 1)  # fmt: skip
    printed = capsys.readouterr().out
    body = json.loads((output / "report.json").read_text())
    read((output / "index.html").read_text())

    for model, path in zip(body["models"], models, strict=True):
        assert model["parameters"] == AutoModelForMaskedLM.from_pretrained(path).num_parameters()
        assert model["bytes"] == (path / "model.safetensors").stat().st_size
    whole, half = body["models"]
    layer = (whole["parameters"] - half["parameters"] - 2 * 32) // 2  # less the vectors of two token types
    assert whole["without_embeddings"] - half["without_embeddings"] == 2 * layer
    assert half["without_embeddings"] == 2 * layer + 32 * 32 + 3 * 32 + dataset.vocabulary.size

    assert [(row["form"], row["batch"], row["length"]) for row in body["speed"]] == [
        ("padded", 1, 8), ("packed", 1, 8), ("padded", 2, 8), ("packed", 2, 8),
    ]  # fmt: skip
    gaps = {row["what"]: row["why"] for row in body["not_measured"]}
    assert gaps["speed at 512 tokens"] == "the models have 80 positions"

    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["evaluate", "--model", str(student), "--teacher", str(teacher), "--data",
                                      str(dataset_folder), "--json", str(figures)])  # fmt: skip
    evaluate.main()
    expected, found = json.loads(figures.read_text()), body["held_out"]["student"]
    assert found["loss_mlm"] == pytest.approx(expected["loss_mlm"], rel=1e-5)
    assert found["accuracy"] == expected["accuracy"]
    assert found["agreement"] == expected["agreement"]
    counts = Corpora.open((str(dataset_folder),)).counts(dataset.vocabulary)
    assert found["kl"] == pytest.approx(kl_of(models, dataset, counts), rel=1e-4)
    assert body["held_out"]["teacher"].keys() == {"loss_mlm", "accuracy"}
    assert "15% of the tokens, rare ones favoured by count ^ -0.7 (--mlm-smoothing)" in " ".join(printed.split())

    assert task_of(body)["retention"]["student"] == pytest.approx(0.8)
    assert (
        "| SST-2 | accuracy |    90.0 |    72.0 |          80.0 |      92.7 |       91.3 | 98.5 |      872 |" in printed
    )
    assert str(output / "index.html") in printed

    with pytest.raises(ConfigError, match="exists already"):
        command(monkeypatch, *words)


def write_onnx(path: Path, best: int, vocabulary: int, mask: str = "attention_mask") -> None:
    """A model for which word `best` is always the likeliest: row i of a table is what it says of word i."""
    from onnx import TensorProto, helper, numpy_helper, save

    table = np.zeros((vocabulary, vocabulary), np.float32)
    table[:, best] = 1.0
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        "constant",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in ("input_ids", mask)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "L", vocabulary])],
        [numpy_helper.from_array(table, "table")],
    )
    path.parent.mkdir(exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.fixture
def student_with_onnx(models, dataset, tmp_path):
    pytest.importorskip("onnxruntime", reason="measures ONNX files: the dependency group onnx")
    folder = shutil.copytree(models[1], tmp_path / "student")
    for path, best in zip(forms.FILES.values(), (5, 6), strict=True):
        write_onnx(folder / path, best, dataset.vocabulary.size)
    return folder


def test_production_forms_by_hand(student_with_onnx, dataset_folder, dataset, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report"
    command(monkeypatch, "--student", student_with_onnx, "--data", dataset_folder, "--output", output,
            "--batch-sizes", 2, "--lengths", 8, 12, "--rounds", 1)  # fmt: skip
    body = json.loads((output / "report.json").read_text())
    counts = Corpora.open((str(dataset_folder),)).counts(dataset.vocabulary)
    held_out = HeldOut(dataset, dataset.vocabulary, MaskingSettings(), counts)
    labels = np.concatenate([batch.labels for batch in held_out.micro_batches(7)])
    torch_row, onnx, int8 = body["production"]
    assert [row["form"] for row in body["production"]] == ["torch fp32", "ONNX", "ONNX int8"]
    assert onnx["accuracy"] == (labels == 5).mean() > 0
    assert int8["accuracy"] == (labels == 6).mean() > 0
    assert torch_row["accuracy"] == body["held_out"]["student"]["accuracy"]
    assert onnx["bytes"] == (student_with_onnx / "onnx" / "model.onnx").stat().st_size
    assert {row["length"] for row in body["production"]} == {12}
    assert "| student | ONNX int8  |" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "another input"])
def test_onnx_files_that_are_none(student_with_onnx, tmp_path, monkeypatch, damage):
    path = student_with_onnx / forms.FILES["ONNX int8"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        write_onnx(path, 5, 8, mask="pixels")
    with pytest.raises(CheckpointError, match=r"model_int8\.onnx: (can't be read|wants pixels)"):
        command(monkeypatch, "--student", student_with_onnx, "--output", tmp_path / "report", "--rounds", 1,
                "--lengths", 8, "--batch-sizes", 1)  # fmt: skip


def test_without_onnxruntime_its_forms_are_not_measured(student_with_onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not there
    command(monkeypatch, "--student", student_with_onnx, "--output", tmp_path / "report", "--rounds", 1,
            "--lengths", 8, "--batch-sizes", 1)  # fmt: skip
    gaps = json.loads((tmp_path / "report" / "report.json").read_text())["not_measured"]
    assert {"what": "production forms", "why": "onnxruntime is not installed: the dependency group onnx"} in gaps


def test_runs_alone(tmp_path, monkeypatch, capsys):
    folders = [tuned(tmp_path / "a", "big", kind="bert"), tuned(tmp_path / "b", "small", score=0.45)]
    command(monkeypatch, "--runs", *folders, "--output", tmp_path / "report")
    body = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (body["teacher"], body["student"]) == ("big", "small")
    assert body["average"]["student"]["retention"] == pytest.approx(0.5)
    assert "no model was opened" in capsys.readouterr().out


def test_names_alone(tmp_path, monkeypatch):
    words = ["--teacher", "gone", "--measure", "nothing", "--output", tmp_path / "report"]
    command(monkeypatch, *words, "--runs", tuned(tmp_path / "a", "gone"))
    body = json.loads((tmp_path / "report" / "report.json").read_text())
    assert body["columns"] == ["teacher"]
    assert body["models"] == []


def test_one_model_alone(models, tmp_path, monkeypatch, capsys):
    command(monkeypatch, "--student", models[1], "--measure", "size", "--output", tmp_path / "report")
    body = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [model["role"] for model in body["models"]] == ["student"]
    assert [row["what"] for row in body["not_measured"]] == [
        "size, speed and masked words of the teacher", "held-out masked words", "speed", "tasks", "pre-training",
    ]  # fmt: skip
    assert "student / teacher" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], ConfigError, "give --teacher and --student, or --runs"),
        (["--runs", "{tmp}/undone", "--data", "x"], ConfigError, "--data x: measures --teacher and --student"),
        (["--runs", "{tmp}/none"], ConfigError, "no such folder"),
        (["--runs", "{tmp}/undone"], DataError, "(?s)nothing to report.*undone: not finished"),
        (["--student", "{tmp}/none"], ConfigError, "no such folder"),
        (["--student", "{tmp}/empty"], ConfigError, r"config\.json: no such file"),
        (["--student", "{tmp}/no-weights"], CheckpointError, "no weights"),
        (["--student", "x", "--rounds", "0"], ConfigError, "--rounds 0: must be positive"),
        (["--student", "x", "--lengths", "8", "0"], ConfigError, "--lengths 8 0: must be positive"),
        (["--student", "x", "--measure", "nothing", "--data", "x"], ConfigError, "--data x: needs the models"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, words, error, message):
    tuned(tmp_path / "undone", "s", done=False)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "no-weights" / "config.json", {"model_type": "distilbert"})
    with pytest.raises(error, match=message):
        command(monkeypatch, "--output", tmp_path / "report", *(word.format(tmp=tmp_path) for word in words))
    assert not (tmp_path / "report").exists()


def test_hub_names_are_resolved_as_models_are():
    assert runs.identity("dilbert-base-uncased") == runs.identity(hub.RENAMED["dilbert-base-uncased"])
