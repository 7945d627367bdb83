"""ONNX files of model folders: the numbers of stock `transformers`, by onnxruntime, at any batch and length."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import POSITIONS, VOCABULARY, bert, distilbert, ours, with_head

from launch.errors import CheckpointError, ConfigError, run
from launch.reporting import forms
from model import export, onnx_export
from model.heads import TaskHead

for library in onnx_export.LIBRARIES:
    pytest.importorskip(library, reason="writes and runs ONNX files: the dependency group onnx")

HEADS = {
    "words": None,
    "class": TaskHead("classification", ("ham", "spam", "eggs")),
    "number": TaskHead("regression"),
    "span": TaskHead("span"),
}
CLASSES = {"words": "MaskedLM", "class": "SequenceClassification", "number": "SequenceClassification",
           "span": "QuestionAnswering"}  # fmt: skip
MODELS = [(bert, "words"), (bert, "number"), (distilbert, "span"), (distilbert, "class")]


def save(folder: Path, make: Any, kind: str) -> Path:
    """A tiny model of `transformers`, as we write it."""
    head = HEADS[kind]
    name = {bert: "Bert", distilbert: "DistilBert"}[make] + f"For{CLASSES[kind]}"
    labels = {"num_labels": max(1, len(head.labels))} if kind in ("class", "number") else {}
    theirs = make(cls=getattr(transformers, name), **labels)
    model = with_head(theirs, head) if head else ours(theirs)
    model.save_pretrained(folder)
    return folder


def batch(rows: int, length: int, types: bool) -> dict[str, torch.Tensor]:
    """Padded, the last row whole."""
    generator = torch.Generator().manual_seed(rows + length)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.linspace(1, length, rows)[:, None].flip(0).round()).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    return inputs | ({"token_type_ids": torch.randint(2, ids.shape, generator=generator)} if types else {})


@pytest.mark.parametrize(("make", "kind"), MODELS)
def test_the_numbers_of_transformers_at_any_shape(make, kind, tmp_path, capfd):
    import onnxruntime

    folder = save(tmp_path / "model", make, kind)
    assert export.add(folder, export.Extras(onnx=True), None) < 1e-5
    path = folder / "onnx" / "model.onnx"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = getattr(transformers, f"AutoModelFor{CLASSES[kind]}").from_pretrained(folder).eval()
    names = ["start_logits", "end_logits"] if kind == "span" else ["logits"]
    assert [output.name for output in session.get_outputs()] == names
    inputs = [value.name for value in session.get_inputs()]
    assert inputs == ["input_ids", "attention_mask", *(["token_type_ids"] if make is bert else [])]
    for rows, length in ((1, 1), (1, POSITIONS), (3, 5), (9, 8)):
        one = batch(rows, length, types=make is bert)
        with torch.no_grad():
            expected = theirs(**one)
        found = session.run(names, {name: value.numpy() for name, value in one.items()})
        real = one["attention_mask"].bool() if kind in ("words", "span") else slice(None)
        for name, array in zip(names, found, strict=True):
            torch.testing.assert_close(torch.from_numpy(array)[real], expected[name][real], rtol=1e-4, atol=1e-4)
    # What it prints is true, and it holds no paths of this machine.
    assert "onnx/model.onnx: 0.1 MB, logits agree to" in capfd.readouterr().out
    assert b"site-packages" not in path.read_bytes()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> Path:
    """A masked language model with both files, by the command line."""
    folder = save(tmp_path_factory.mktemp("quantized") / "model", distilbert, "words")
    assert export.add(folder, export.Extras(int8=True), None) < 1e-5
    return folder


def test_int8_is_smaller_and_near(quantized):
    import onnx

    files = {path.name: path for path in (quantized / "onnx").iterdir()}
    assert sorted(files) == ["model.onnx", "model_int8.onnx"]
    # Tiny graphs are mostly names: what counts are the weights.
    weights = {name: sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
               for name, path in files.items()}  # fmt: skip
    assert weights["model_int8.onnx"] < weights["model.onnx"] / 2
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(quantized).eval()
    one = batch(9, 20, types=False)
    with torch.no_grad():
        expected = theirs(**one).logits[one["attention_mask"] == 1]
    found = onnx_export.open_file(files["model_int8.onnx"])(one)["logits"][one["attention_mask"] == 1]
    assert 1e-4 < (found - expected).abs().max() / expected.abs().max() < 0.1
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.8


def test_reports_find_them(quantized):
    assert list(forms.files(quantized)) == ["ONNX", "ONNX int8"]


def test_a_file_of_another_head_is_named(quantized):
    with pytest.raises(CheckpointError, match=r"model\.onnx: has no start_logits, end_logits, but logits"):
        onnx_export.open_file(quantized / "onnx" / "model.onnx", "span")


def test_a_second_time_is_refused(quantized):
    with pytest.raises(ConfigError, match=r"onnx: is there already; remove it"):
        export.add(quantized, export.Extras(onnx=True), None)


def test_agreement_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    words = torch.tensor([[[1.0, 2], [3, 1], [0, 9]], [[0, 1], [1, 0], [5, 4]]])
    classes, numbers = {"logits": torch.tensor([[1.0, 3], [2, 0]])}, torch.tensor([[1.0, 7, 9], [0, 2, 1]])
    assert onnx_export._first_choices({"logits": words}, mask, None).tolist() == [1, 0, 1, 0, 0]
    assert onnx_export._first_choices(classes, mask, "classification").tolist() == [1, 0]
    spans = {"start_logits": numbers, "end_logits": -numbers}
    assert onnx_export._first_choices(spans, mask, "span").tolist() == [1, 1, 0, 0]


def test_a_file_of_another_network_is_not_left(tmp_path, monkeypatch):
    """It is changed for the exporter alone."""
    folder, honest = save(tmp_path / "model", distilbert, "class"), onnx_export._write

    def of_a_changed_one(network, *rest):
        changed = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        changed.classifier.bias += 0.01
        honest(changed, *rest)

    monkeypatch.setattr(onnx_export, "_write", of_a_changed_one)
    with torch.no_grad(), pytest.raises(CheckpointError, match=r"model\.onnx: its logits differ from torch's by"):
        export.add(folder, export.Extras(onnx=True), None)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_quantized_file_that_is_garbage_is_not_left(tmp_path, monkeypatch):
    folder = save(tmp_path / "model", distilbert, "words")

    def zeros(source, target):
        import onnx

        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.raw_data = bytes(len(tensor.raw_data))
        onnx.save(model, target)

    monkeypatch.setattr(onnx_export, "_quantize", zeros)
    with pytest.raises(CheckpointError, match=r"model_int8\.onnx: its logits differ from torch's by"):
        export.add(folder, export.Extras(int8=True), None)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_beyond_what_a_file_holds(tmp_path, monkeypatch):
    folder = save(tmp_path / "model", distilbert, "words")
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="an ONNX file holds 2 GB"):
        export.add(folder, export.Extras(onnx=True), None)
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize("flag", ["--onnx", "--int8"])
@pytest.mark.parametrize("library", onnx_export.LIBRARIES)
def test_without_the_libraries(flag, library, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path), "--output", str(tmp_path / "out"), flag])
    with pytest.raises(SystemExit) as end:
        run(export.main)
    assert end.value.code == 2
    assert f"--onnx needs {library}, not installed here: `pip install --group onnx`" in capsys.readouterr().err
