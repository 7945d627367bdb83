"""The report as a page and on a terminal, and its plots."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from reported import FORM, TASKS, made, pretrained, read, task_of, tuned

from data.masking import MaskingSettings
from launch.reporting import document as documents
from launch.reporting import page as pages
from launch.reporting import plots, runs, tables, terminal
from launch.reporting.document import Measured, document


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
