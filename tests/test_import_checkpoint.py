"""Checkpoints as the original saves them: the folder holds the model that was saved, to `transformers`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import VOCABULARY, write_vocabulary
from test_pickled import Payload
from tiny_models import bert, distilbert

from launch.errors import CheckpointError, ConfigError, run
from model import import_checkpoint as module
from model.import_checkpoint import Arguments, import_checkpoint
from model.pretrained import DilBertForMaskedLM

SIZE = {"vocab_size": len(VOCABULARY)}


def save(
    model: Any, folder: Path, name: str = "checkpoint.pth", state: dict[str, Any] | None = None, **how: Any
) -> Path:
    """What the original's Distiller.save_checkpoint does."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict() if state is None else state, folder / name, **how)
    return folder / name


@torch.no_grad()
def assert_holds(folder: Path, model: torch.nn.Module) -> None:
    """The same class, weights bit for bit, and logits (by another form of attention)."""
    found, info = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert type(found) is type(model)
    weights, expected = found.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
    ids = torch.randint(len(VOCABULARY), (3, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.eval()(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["checkpoint.pth", "model_epoch_3.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("build", [distilbert, bert])
def test_the_same_model(build: Any, name: str, tmp_path: Path) -> None:
    model = build(**SIZE)
    assert import_checkpoint(Arguments(save(model, tmp_path / "run", name), tmp_path / "out")) < 1e-5
    assert_holds(tmp_path / "out", model)


def test_as_old_versions_wrote_it(tmp_path: Path) -> None:
    """torch before 1.6 and transformers before 2.2: another container, buffers among the weights, few keys in the
    configuration, with no word on what model it is of."""
    model = distilbert(**SIZE)
    state = model.state_dict() | {"distilbert.embeddings.position_ids": torch.arange(24)[None]}
    path = save(model, tmp_path / "run", state=state, _use_new_zipfile_serialization=False)
    config = {"activation": "gelu", "attention_dropout": 0.1, "dim": 20, "dropout": 0.1, "hidden_dim": 28,
              "initializer_range": 0.02, "max_position_embeddings": 24, "n_heads": 4, "n_layers": 2,
              "sinusoidal_pos_embds": True, "tie_weights_": True, "vocab_size": len(VOCABULARY), "qa_dropout": 0.3,
              "seq_classif_dropout": 0.4, "output_hidden_states": True}  # fmt: skip
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    import_checkpoint(Arguments(path, tmp_path / "out"))
    assert_holds(tmp_path / "out", model)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["qa_dropout"], written["seq_classif_dropout"]) == ("distilbert", 0.3, 0.4)


def test_an_old_bert(tmp_path: Path, caplog) -> None:
    """With a pooler and norms by their first names."""
    model = bert(**SIZE)
    state = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in model.state_dict().items()
    }
    state |= {"bert.pooler.dense.weight": torch.zeros(20, 20), "bert.pooler.dense.bias": torch.zeros(20)}
    import_checkpoint(Arguments(save(model, tmp_path / "run", state=state), tmp_path / "out"))
    assert_holds(tmp_path / "out", model)
    assert "not used: bert.pooler.dense.bias, bert.pooler.dense.weight" in caplog.text


def test_of_data_parallel(tmp_path: Path) -> None:
    model = distilbert(**SIZE)
    state = torch.nn.DataParallel(model).state_dict()
    assert all(name.startswith("module.") for name in state)
    import_checkpoint(Arguments(save(model, tmp_path / "run", state=state), tmp_path / "out"))
    assert_holds(tmp_path / "out", model)


def test_in_half_precision(tmp_path: Path) -> None:
    model = distilbert(**SIZE).half()
    import_checkpoint(Arguments(save(model, tmp_path / "run"), tmp_path / "out"))
    assert_holds(tmp_path / "out", model.float())


def test_a_configuration_elsewhere(tmp_path: Path) -> None:
    model = distilbert(**SIZE)
    path = save(model, tmp_path / "run")
    config = (tmp_path / "run" / "config.json").rename(tmp_path / "student.json")
    with pytest.raises(ConfigError, match=r"run/config\.json: no such file"):
        import_checkpoint(Arguments(path, tmp_path / "out"))
    import_checkpoint(Arguments(path, tmp_path / "out", config))
    assert_holds(tmp_path / "out", model)


def test_tokenizers(tmp_path: Path, tokenizer_folder: Path, caplog) -> None:
    """One that is given, one that is beside, none, and one of another size."""
    model = distilbert(**SIZE)
    path = save(model, tmp_path / "run")
    import_checkpoint(Arguments(path, tmp_path / "none"))
    assert "has no tokenizer beside it; --tokenizer NAME adds one" in caplog.text
    import_checkpoint(Arguments(path, tmp_path / "given", None, str(tokenizer_folder)))
    write_vocabulary(tmp_path / "run")
    import_checkpoint(Arguments(path, tmp_path / "beside"))
    for name in ("given", "beside"):
        assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / name)) == len(VOCABULARY)
        assert (tmp_path / name / "vocab.txt").read_bytes() == (tokenizer_folder / "vocab.txt").read_bytes()
    write_vocabulary(tmp_path / "other", (*VOCABULARY, "zebra"))
    with pytest.raises(CheckpointError, match=f"knows {len(VOCABULARY) + 1} tokens, the model {len(VOCABULARY)}"):
        import_checkpoint(Arguments(path, tmp_path / "out", None, str(tmp_path / "other")))
    assert not list(tmp_path.glob("out*"))


def test_it_starts_a_student(tmp_path: Path) -> None:
    import_checkpoint(Arguments(save(distilbert(**SIZE), tmp_path / "run"), tmp_path / "out"))
    assert DilBertForMaskedLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


# --- what is refused ---


def other(cls: str, config: str, **changes: Any) -> Any:
    return getattr(transformers, cls)(getattr(transformers, config)(**changes))


def test_other_models(tmp_path: Path) -> None:
    size = {
        "vocab_size": 30,
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    roberta = other("RobertaForMaskedLM", "RobertaConfig", **size, max_position_embeddings=20)
    gpt2 = other("GPT2LMHeadModel", "GPT2Config", vocab_size=30, n_embd=8, n_layer=1, n_head=2)
    for model, kind in (
        (roberta, "a roberta"),
        (gpt2, "a gpt2"),
        (torch.nn.Linear(2, 2), r"of an unknown kind \(weight,"),
    ):
        path = tmp_path / "checkpoint.pth"
        torch.save(model.state_dict(), path)
        with pytest.raises(
            CheckpointError, match=rf"checkpoint\.pth: its weights are {kind}.*read here: BERT and Disti"
        ):
            import_checkpoint(Arguments(path, tmp_path / "out"))


def test_a_configuration_of_something_else(tmp_path: Path) -> None:
    path = save(distilbert(**SIZE), tmp_path / "run")
    for values, message in (
        (
            bert(**SIZE).config.to_dict(),
            r"run: is of a bert, but .*checkpoint\.pth of a distilbert: give its own --config",
        ),
        (distilbert(vocab_size=99).config.to_dict(), r"word_embeddings\.weight has shape \(44, 20\).*says \(99, 20\)"),
        (distilbert(**SIZE, n_layers=3).config.to_dict(), "16 weights are missing: distilbert.transformer.layer.2."),
        ({**distilbert(**SIZE).config.to_dict(), "n_heads": 3}, "run: config.json: 3 attention heads do not divide"),
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps(values))
        with pytest.raises((ConfigError, CheckpointError), match=message):
            import_checkpoint(Arguments(path, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_damage_and_payloads(tmp_path: Path) -> None:
    model = distilbert(**SIZE)
    path = save(model, tmp_path / "run")
    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "can't be read as weights"),
        (b"", "can't be read as weights"),
        (b"no pickle", "refused"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(Arguments(path, tmp_path / "out"))
    for zipped in (True, False):
        for state in (model.state_dict() | {"more": Payload(tmp_path / "ran")}, Payload(tmp_path / "ran"), [1]):
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(CheckpointError, match=r"refused|something else than tensors"):
                import_checkpoint(Arguments(path, tmp_path / "out"))
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("out*"))


def test_untied_embeddings(tmp_path: Path) -> None:
    model = distilbert(**SIZE)
    state = model.state_dict()
    state["vocab_projector.weight"] = state["vocab_projector.weight"] + 1
    with pytest.raises(CheckpointError, match="only tied embeddings"):
        import_checkpoint(Arguments(save(model, tmp_path / "run", state=state), tmp_path / "out"))


def test_command(tmp_path: Path, monkeypatch, capsys) -> None:
    path = save(distilbert(**SIZE), tmp_path / "run", "model_epoch_0.pth")

    def code(*words: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["model.import_checkpoint", *map(str, words)])
        try:
            run(module.main, disk=CheckpointError)
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    assert code(path, "--output", tmp_path / "out") == 0
    assert f"out: loads in transformers {transformers.__version__}; logits agree" in capsys.readouterr().out
    assert code(path, "--output", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert code(tmp_path / "no.pth", "--output", tmp_path / "other") == 2
    assert "no.pth: no such file" in capsys.readouterr().err
