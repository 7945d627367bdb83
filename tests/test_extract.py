"""model.extract: a student made of the teacher's weights, layer by layer, and its folder."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, distilbert, largest, ours, pack, pad, randomise, real, sequences
from torch import nn

from launch.errors import ConfigError, DilbertError
from model import extract as module
from model.config import BertConfig
from model.extract import default_layers, extract, student_config
from model.pretrained import DilBertForMaskedLM

TOKENIZER = {"vocab.txt": "[PAD]\n[UNK]\n", "tokenizer_config.json": '{"do_lower_case": true}'}


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """A BERT of 12 layers of `transformers`: read-only."""
    return bert(num_hidden_layers=12)


@pytest.fixture(scope="module")
def teacher(theirs: nn.Module) -> DilBertForMaskedLM:
    return ours(theirs)


@pytest.fixture(scope="module")
def folder(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder, with a tokenizer's files and a file that is none of our business."""
    path = tmp_path_factory.mktemp("teacher")
    theirs.save_pretrained(path)
    for name, text in (TOKENIZER | {"notes.txt": "x"}).items():
        (path / name).write_text(text)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    """`python -m model.extract` with these words."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["extract.py", *map(str, words)])
    module.main()


# What the student is made of.


@torch.no_grad()
@pytest.mark.parametrize("real_size", [False, True], ids=["small", "bert-base"])
def test_embedding_output_is_the_teachers(real_size: bool, theirs: nn.Module) -> None:
    """Token-type 0 is added to the positions: the outputs agree, though the student knows no token types."""
    if real_size:
        config = transformers.BertConfig(num_hidden_layers=1, intermediate_size=8)
        theirs = randomise(transformers.BertForMaskedLM(config), seed=2)
    assert largest(theirs.bert.embeddings.token_type_embeddings.weight[0]) > 0.01
    student = extract(ours(theirs), (0,))
    rows = sequences([24, 1, 7], vocabulary=theirs.config.vocab_size)
    batch, packed = pad(rows), pack(rows)
    expected = theirs.bert.embeddings(input_ids=batch["input_ids"])
    found = student.embeddings(packed["input_ids_T"], packed["positions_T"])
    assert largest(found - real(expected, batch["attention_mask"])) < 1e-6


@pytest.mark.parametrize(
    "layers", [(0, 2, 4, 7, 9, 11), (11,), (3, 3, 3), (5, 1, 5, 0), tuple(range(12))], ids=lambda layers: str(layers)
)
def test_layers_are_those_of_the_map(layers: tuple[int, ...], theirs: nn.Module, teacher: DilBertForMaskedLM) -> None:
    """Bit for bit, by the names of `transformers` on both sides."""
    student = extract(teacher, layers)
    assert len(student.layers) == student.config.num_hidden_layers == len(layers)
    for number, layer in enumerate(layers):
        source, target = theirs.bert.encoder.layer[layer], student.layers[number]
        attention = source.attention
        qkv = [attention.self.query, attention.self.key, attention.self.value]
        for kind in ("weight", "bias"):
            assert torch.equal(getattr(target.qkv, kind), torch.cat([getattr(part, kind) for part in qkv]))
            for mine, its in (
                (target.attention_output, attention.output.dense),
                (target.attention_norm, attention.output.LayerNorm),
                (target.intermediate, source.intermediate.dense),
                (target.output, source.output.dense),
                (target.output_norm, source.output.LayerNorm),
            ):
                assert torch.equal(getattr(mine, kind), getattr(its, kind))


def test_embeddings_and_head_are_the_teachers(theirs: nn.Module, teacher: DilBertForMaskedLM) -> None:
    student, source = extract(teacher, (0, 2)), theirs.bert.embeddings
    assert torch.equal(student.embeddings.word.weight, source.word_embeddings.weight)
    summed = source.position_embeddings.weight + source.token_type_embeddings.weight[0]
    assert torch.equal(student.embeddings.position.weight, summed)
    assert torch.equal(student.embeddings.norm.weight, source.LayerNorm.weight)
    assert torch.equal(student.embeddings.norm.bias, source.LayerNorm.bias)
    head = theirs.cls.predictions
    assert torch.equal(student.head.bias, head.bias)
    assert torch.equal(student.head.transform.weight, head.transform.dense.weight)
    assert torch.equal(student.head.transform.bias, head.transform.dense.bias)
    assert torch.equal(student.head.norm.weight, head.transform.LayerNorm.weight)
    assert torch.equal(student.head.norm.bias, head.transform.LayerNorm.bias)


def test_without_the_transform(teacher: DilBertForMaskedLM) -> None:
    """It starts at random, by the seed; the bias of the vocabulary is copied all the same."""
    student = extract(teacher, (0, 2), mlm_transform=False, seed=1)
    transform = student.head.transform
    assert 0.1 < float(transform.weight.detach().std()) < 0.3  # initializer_range is 0.2
    assert not torch.equal(transform.weight, teacher.head.transform.weight)
    assert not transform.bias.any()
    assert (student.head.norm.weight == 1).all()
    assert torch.equal(student.head.bias, teacher.head.bias)
    assert torch.equal(extract(teacher, (0, 2), False, 1).head.transform.weight, transform.weight)
    assert not torch.equal(extract(teacher, (0, 2), False, 2).head.transform.weight, transform.weight)


def test_the_teacher_stays_as_it_is(teacher: DilBertForMaskedLM) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = extract(teacher, (0, 2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_whole_map_is_the_teacher_itself(theirs: nn.Module, teacher: DilBertForMaskedLM) -> None:
    rows = sequences([5, 11])
    batch = pad(rows)
    student = extract(teacher, tuple(range(12)))
    expected = real(theirs(**batch).logits, batch["attention_mask"])
    assert largest(student.logits(student.encode(**pack(rows))) - expected) < 1e-5


def test_a_student_of_a_student() -> None:
    teacher = ours(distilbert(n_layers=6))
    student = extract(teacher, (0, 5))
    assert torch.equal(student.embeddings.position.weight, teacher.embeddings.position.weight)
    assert torch.equal(student.layers[1].qkv.weight, teacher.layers[5].qkv.weight)


def test_architecture(theirs: nn.Module) -> None:
    """DistilBERT's, at the teacher's width; a student starts in evaluation mode, all of it trainable."""
    teacher = ours(bert(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, hidden_act="relu"))
    student = extract(teacher, (1, 3))
    assert student.config == BertConfig(
        vocab_size=53, hidden_size=20, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28,
        hidden_act="relu", hidden_dropout=0.2, attention_dropout=0.3, attention_output_dropout=0.0,
        max_position_embeddings=24, type_vocab_size=0, initializer_range=0.2,
    )  # fmt: skip
    assert not student.training
    assert all(p.requires_grad for p in student.parameters())


def test_default_layers() -> None:
    assert default_layers(12) == (0, 2, 4, 7, 9, 11)
    assert default_layers(24) == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
    assert default_layers(6) == (0, 2, 4)
    assert default_layers(5) == (0, 2, 4)
    assert default_layers(2) == default_layers(1) == (0,)


@pytest.mark.parametrize("layers", [(0, 12), (-1,), (0, 2, 99)])
def test_layers_that_the_teacher_lacks(layers: tuple[int, ...], teacher: DilBertForMaskedLM) -> None:
    wrong = next(layer for layer in layers if not 0 <= layer < 12)
    with pytest.raises(ConfigError, match=f"--layers {wrong}: the teacher has layers 0 to 11"):
        student_config(teacher.config, layers)


# The command line.


def test_command_line(folder: Path, theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                      capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    output = tmp_path / "models" / "student"
    command(monkeypatch, "--teacher", folder, "--output", output)
    assert sorted(os.listdir(output)) == sorted(["config.json", "model.safetensors", *TOKENIZER])
    assert (output / "vocab.txt").read_text() == TOKENIZER["vocab.txt"]
    assert json.loads((output / "tokenizer_config.json").read_text()) == {
        "do_lower_case": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": theirs.config.max_position_embeddings,
    }
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    assert isinstance(model, transformers.DistilBertForMaskedLM)
    expected = theirs.bert.encoder.layer[7].intermediate.dense.weight
    assert torch.equal(model.distilbert.transformer.layer[3].ffn.lin1.weight, expected)
    said = capsys.readouterr().out
    assert "layers 0 2 4 7 9 11 of 12" in said
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in said


def test_command_line_with_a_map_and_without_the_transform(
    folder: Path, theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "student"
    command(monkeypatch, "--teacher", folder, "--output", output, "--no-mlm-transform", "--layers", 4, 4, 1)
    model = transformers.AutoModelForMaskedLM.from_pretrained(output)
    for number, layer in enumerate((4, 4, 1)):
        expected = theirs.bert.encoder.layer[layer].output.LayerNorm.bias
        assert torch.equal(model.distilbert.transformer.layer[number].output_layer_norm.bias, expected)
    assert not torch.equal(model.vocab_transform.weight, theirs.cls.predictions.transform.dense.weight)
    assert torch.equal(model.vocab_projector.bias, theirs.cls.predictions.bias)


def test_an_existing_output_is_left_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that is said before a large teacher is read, or fetched."""
    (tmp_path / "mine.txt").write_text("precious")
    for teacher in (folder, "/no/such/teacher"):
        with pytest.raises(ConfigError, match="exists already"):
            command(monkeypatch, "--teacher", teacher, "--output", tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0", "12"], "--layers 12: the teacher has layers 0 to 11"),
        (["--layers", "-1"], "--layers -1"),
        (["--layers", "two"], "--layers"),
        (["--layer", "2"], "did you mean '--layers'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    words: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=message):
        command(monkeypatch, "--teacher", folder, "--output", tmp_path / "student", *words)
    assert os.listdir(tmp_path) == []


def test_a_teacher_that_distilbert_cannot_express(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(layer_norm_eps=1e-5).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ConfigError, match="layer_norm_eps 1e-05"):
        command(monkeypatch, "--teacher", tmp_path / "teacher", "--output", tmp_path / "student")
    assert os.listdir(tmp_path) == ["teacher"]


def test_a_teacher_without_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert(cls=transformers.BertModel).save_pretrained(tmp_path / "teacher")
    with pytest.raises(DilbertError, match=r"weights are missing.*cls\.predictions\.transform\.dense\.weight"):
        command(monkeypatch, "--teacher", tmp_path / "teacher", "--output", tmp_path / "student")
    assert os.listdir(tmp_path) == ["teacher"]
