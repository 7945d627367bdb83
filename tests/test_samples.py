"""launch.samples: held-out sentences, and what both models would put in place of a masked word."""

from pathlib import Path

import pytest
import torch
from jobs import config_file, flags, make_models
from ranks import run_ranks, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from data.tokenizer import load_tokenizer
from launch.samples import Samples, _plain
from model.distiller import Batch, Distiller
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def held_out(dataset_folder) -> HeldOut:
    dataset = Dataset.open(dataset_folder)
    return HeldOut(dataset, dataset.vocabulary, MaskingSettings(), dataset.counts())


@pytest.fixture
def distiller(models) -> Distiller:
    teacher, student = (DilBertForMaskedLM.from_pretrained(folder) for folder in models)
    return Distiller(student.train(), teacher, Objective())


def test_guesses_are_the_models_own(held_out, distiller, models):
    """Of a sentence alone, by the padded call."""
    batch = next(iter(held_out.micro_batches(1)))
    found = distiller.guesses(Batch.of(batch, torch.device("cpu")), 3)
    assert distiller.student.training
    for name, folder in zip(("teacher", "student"), models, strict=True):
        ids = torch.from_numpy(batch.input_ids)[None]
        logits = DilBertForMaskedLM.from_pretrained(folder)(ids).logits[0, batch.masked_positions]
        expected = logits.softmax(-1).topk(3)
        assert torch.equal(found[name][0], expected.indices)
        torch.testing.assert_close(found[name][1], expected.values)


def test_sentences(held_out, distiller, models, monkeypatch):
    samples = Samples.of(held_out, models[0], count=2)
    assert samples
    tokenizer = load_tokenizer(str(models[0]))
    lines = samples.text(distiller).splitlines()
    assert len(lines) == 2 * 4
    for batch, block in zip(samples.batches, (lines[:4], lines[4:]), strict=True):
        sentence, answer, teacher, student = block
        assert "**\\[MASK\\]**" in sentence
        word = tokenizer.convert_ids_to_tokens(int(batch.labels[0]))
        assert answer == f"    - *it was*: {_plain(word)}"
        assert teacher.startswith("    - teacher: ") and student.startswith("    - student: ")
        assert teacher.count("%") == student.count("%") == 3
    assert samples.text(distiller).splitlines() == lines, "the same each time"
    monkeypatch.setattr(type(distiller), "teacher", None)
    assert [line[:13] for line in samples.text(distiller).splitlines()[2::3]] == ["    - model: "] * 2


def test_without_tokenizer_or_sentence(held_out, tmp_path, models):
    assert Samples.of(held_out, tmp_path) is None
    assert Samples.of(held_out, models[0], count=0) is None


def test_in_the_log_of_a_run(models, dataset_folder, tmp_path):
    more = ["--max-steps", "4", "--eval-interval", "2", "--valid-data", str(dataset_folder)]
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *more)
    assert [code for code, _ in run_ranks(2, train, argv)] == [0, 0]
    assert (tmp_path / "run" / "samples.md").read_text().startswith("After step 4:\n\n- ")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    texts = board.Tensors("samples/text_summary")
    assert [event.step for event in texts] == [2, 4]
    assert b"teacher" in texts[0].tensor_proto.string_val[0]
    rows = [row.value for row in board.Scalars("valid/unigram_entropy")]
    assert len(rows) == 2 and rows[0] == rows[1] > 0
