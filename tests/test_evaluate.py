"""Held-out figures from the command line."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from jobs import make_models

from data.corpora import matching_counts
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from data.shard_writer import ShardWriter
from data.token_counts import write_counts
from launch import evaluate
from launch.errors import DataError
from model.pretrained import DilBertForMaskedLM


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
    evaluate.main()


def test_figures_equal_a_plain_computation(models, dataset, dataset_folder, tmp_path, monkeypatch, capsys):
    teacher, student = models
    found = []
    for size in ("7", "100"):
        run(monkeypatch, "--model", student, "--data", dataset_folder, "--teacher", teacher, "--json", tmp_path / size,
            "--batch-size", size)  # fmt: skip
        found.append(json.loads((tmp_path / size).read_text()))
    assert "agreement" in capsys.readouterr().out
    vocabulary = dataset.vocabulary
    data = HeldOut(dataset, vocabulary, MaskingSettings(), matching_counts(dataset, vocabulary))
    model = DilBertForMaskedLM.from_pretrained(student)
    loss, right, masked = 0.0, 0, 0
    for part in data.micro_batches(1):  # one sequence at a time, by the padded call
        with torch.no_grad():
            logits = model(torch.from_numpy(part.input_ids)[None]).logits[0, part.masked_positions].double()
        labels = torch.from_numpy(part.labels)
        loss += float(-logits.log_softmax(-1)[range(len(labels)), labels].sum())
        right += int((logits.argmax(-1) == labels).sum())
        masked += len(labels)
    for figures in found:
        assert figures["loss_mlm"] == pytest.approx(loss / masked, rel=1e-5)
        assert figures["accuracy"] == pytest.approx(right / masked, rel=1e-9)


def test_a_teacher_agrees_with_itself(models, dataset_folder, tmp_path, monkeypatch):
    run(monkeypatch, "--model", models[0], "--data", dataset_folder, "--teacher", models[0], "--json", tmp_path / "f")
    figures = json.loads((tmp_path / "f").read_text())
    assert figures["agreement"] == 1.0
    assert figures["loss_ce"] == pytest.approx(0.0, abs=1e-6)
    assert figures["loss_cos"] == pytest.approx(0.0, abs=1e-6)


def test_masks_are_drawn_with_the_counts_of_what_was_trained_on(models, dataset_folder, tmp_path, monkeypatch):
    found = []
    for name, train_data in (("one", [dataset_folder]), ("two", [f"{dataset_folder}:3", f"{tmp_path / 'pair'}:1"])):
        if name == "two":
            with ShardWriter(tmp_path / "pair", np.dtype(np.uint16)) as writer:  # of one word that is rare in the other
                writer.add(np.full(10_000, 40), np.asarray([10_000]), np.asarray([1]))
                writer.close()
            write_counts(Dataset.open(tmp_path / "pair"))
        run(monkeypatch, "--model", models[1], "--data", dataset_folder, "--train-data", *train_data,
            "--json", tmp_path / name)  # fmt: skip
        found.append(json.loads((tmp_path / name).read_text())["loss_mlm"])
    run(monkeypatch, "--model", models[1], "--data", dataset_folder, "--json", tmp_path / "default")
    assert found[0] == json.loads((tmp_path / "default").read_text())["loss_mlm"] != found[1]


def test_a_bare_megatron_pair(models, dataset, dataset_folder, tmp_path, monkeypatch):
    for suffix in ("bin", "idx"):
        shutil.copyfile(dataset_folder / f"00000.{suffix}", tmp_path / f"bare.{suffix}")
    with pytest.raises(DataError, match=r"data\.token_counts"):
        run(monkeypatch, "--model", models[1], "--data", tmp_path / "bare")
    np.save(tmp_path / "bare.counts.npy", np.bincount(dataset.shards[0].ids).astype(np.int64))
    run(monkeypatch, "--model", models[1], "--data", tmp_path / "bare", "--json", tmp_path / "f")
    assert json.loads((tmp_path / "f").read_text())["loss_mlm"] > 0
    (models[1] / "vocab.txt").rename(models[1] / "hidden")
    try:
        with pytest.raises(DataError, match="which ids are special"):
            run(monkeypatch, "--model", models[1], "--data", tmp_path / "bare")
    finally:
        (models[1] / "hidden").rename(models[1] / "vocab.txt")
