"""model.config: what `transformers` writes, we read, and the other way round; what we can't compute is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from launch.errors import ConfigError
from model.config import BertConfig

# No two values alike, and none a default.
BERT = {"vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3, "intermediate_size": 40,
        "hidden_act": "gelu_new", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3,
        "max_position_embeddings": 77, "type_vocab_size": 4, "initializer_range": 0.05, "layer_norm_eps": 1e-6,
        "pad_token_id": 7}  # fmt: skip
DISTILBERT = {"vocab_size": 101, "dim": 24, "n_layers": 5, "n_heads": 3, "hidden_dim": 40, "activation": "relu",
              "dropout": 0.2, "attention_dropout": 0.3, "max_position_embeddings": 77, "initializer_range": 0.05,
              "pad_token_id": 7, "sinusoidal_pos_embds": True}  # fmt: skip


def test_bert_as_transformers_writes_it() -> None:
    assert BertConfig.from_dict(transformers.BertConfig(**BERT).to_dict()) == BertConfig(
        vocab_size=101, hidden_size=24, num_hidden_layers=5, num_attention_heads=3, intermediate_size=40,
        hidden_act="gelu_new", hidden_dropout=0.2, attention_dropout=0.3, attention_output_dropout=0.2,
        max_position_embeddings=77, type_vocab_size=4, initializer_range=0.05, layer_norm_eps=1e-6, pad_token_id=7,
    )  # fmt: skip


def test_distilbert_as_transformers_writes_it() -> None:
    assert BertConfig.from_dict(transformers.DistilBertConfig(**DISTILBERT).to_dict()) == BertConfig(
        vocab_size=101, hidden_size=24, num_hidden_layers=5, num_attention_heads=3, intermediate_size=40,
        hidden_act="relu", hidden_dropout=0.2, attention_dropout=0.3, attention_output_dropout=0.0,
        max_position_embeddings=77, type_vocab_size=0, initializer_range=0.05, layer_norm_eps=1e-12, pad_token_id=7,
        sinusoidal_positions=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "architecture"),
    [
        (transformers.BertConfig(**BERT), "BertForMaskedLM"),
        (transformers.DistilBertConfig(**DISTILBERT), "DistilBertForMaskedLM"),
    ],
    ids=["bert", "distilbert"],
)
def test_transformers_reads_what_we_write(theirs: Any, architecture: str, tmp_path: Path) -> None:
    BertConfig.from_dict(theirs.to_dict()).write(tmp_path)
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(found) is type(theirs)
    assert found.architectures == [architecture]
    expected = theirs.to_dict() | {"architectures": [architecture], "_name_or_path": str(tmp_path)}
    assert found.to_dict() == expected
    assert BertConfig.read(tmp_path) == BertConfig.from_dict(theirs.to_dict())


def test_defaults_are_those_of_transformers() -> None:
    base = BertConfig.from_dict(transformers.BertConfig().to_dict())
    assert base == BertConfig() == BertConfig.from_dict({"model_type": "bert"}) == BertConfig.from_dict({})
    small = BertConfig.from_dict(transformers.DistilBertConfig().to_dict())
    assert small == BertConfig.from_dict({"model_type": "distilbert"})
    assert (small.num_hidden_layers, small.type_vocab_size, small.attention_output_dropout) == (6, 0, 0.0)


def test_the_real_bert_base_is_the_default(shared_data: Path) -> None:
    assert BertConfig.read(shared_data / "bert-base-uncased") == BertConfig()


def test_null_is_as_good_as_absent() -> None:
    assert BertConfig.from_dict({"model_type": "bert", "pad_token_id": None, "hidden_act": None}) == BertConfig()
    assert BertConfig.from_dict({"model_type": None}) == BertConfig()


def test_model_type() -> None:
    assert BertConfig().model_type == "bert"
    assert BertConfig(type_vocab_size=0).model_type == "distilbert"


def test_without_dropout_changes_nothing_else() -> None:
    config = BertConfig.from_dict(BERT | {"model_type": "bert"})
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "attention_output_dropout": 0.0}
    assert dataclasses.asdict(config.without_dropout()) == dataclasses.asdict(config) | off


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "roberta"}, ["roberta", "neither bert nor distilbert"]),
        ({"model_type": "distillbert"}, ["distillbert", "did you mean 'distilbert'?"]),
        ({"model_type": 3}, ["'3'"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "relative_key", "absolute"]),
        ({"model_type": "bert", "is_decoder": True}, ["is_decoder", "True"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings", "False"]),
        ({"hidden_size": 100, "num_attention_heads": 12}, ["12 attention heads", "100"]),
        ({"hidden_act": "silu"}, ["silu", "gelu, gelu_new, relu"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers", "-1"]),
        ({"max_position_embeddings": "512"}, ["max_position_embeddings", "'512'", "int"]),
        ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps", "float"]),
        ({"hidden_dropout_prob": 1.5}, ["hidden_dropout", "1.5"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_dropout", "-0.1"]),
        ({"vocab_size": 10, "pad_token_id": 10}, ["pad_token_id", "10"]),
        ({"model_type": "distilbert", "dim": 10, "n_heads": 3}, ["3 attention heads", "10"]),
    ],
)
def test_what_is_refused(values: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        BertConfig.read(tmp_path)
    for word in (*words, str(tmp_path), "config.json"):
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        BertConfig.read(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        BertConfig.read(tmp_path)


def test_a_student_that_distilbert_cannot_express() -> None:
    with pytest.raises(ConfigError, match="layer_norm_eps 1e-05"):
        BertConfig(type_vocab_size=0, layer_norm_eps=1e-5).to_dict()
    assert BertConfig(layer_norm_eps=1e-5).to_dict()["layer_norm_eps"] == 1e-5
