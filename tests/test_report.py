"""What a report measures, and its command."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import make_models
from reported import read, task_of, tuned, write
from transformers import AutoModelForMaskedLM

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from launch import evaluate, hub, measuring, report
from launch.errors import CheckpointError, ConfigError, DataError
from launch.reporting import forms, runs, speed
from launch.reporting.speed import Sample

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
