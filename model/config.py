"""The architecture of teacher and student: one dataclass, read and written as Hugging Face's `config.json`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from launch.errors import ConfigError, did_you_mean

ACTIVATIONS = ("gelu", "gelu_new", "relu")

# Field of BertConfig -> key in a `config.json` of model_type "bert" and "distilbert".
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
}
_DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
    "sinusoidal_positions": "sinusoidal_pos_embds",
}


@dataclass(frozen=True)
class BertConfig:
    """BERT's hyperparameters. DilBERT is BERT with fewer layers and `type_vocab_size` 0: no token types, no pooler.

    The defaults are those of `bert-base`.

    Attributes:
        hidden_dropout: after the embeddings and after each feed-forward block.
        attention_dropout: on the attention probabilities.
        attention_output_dropout: after each attention block; BERT has it, Hugging Face's DistilBERT does not.
        type_vocab_size: 2 for BERT, 0 for a student.
        sinusoidal_positions: initialise the position table with sines (DistilBERT's `sinusoidal_pos_embds`).
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_output_dropout: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    sinusoidal_positions: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if not isinstance(getattr(self, name), (int, float) if kind is float else kind):
                raise ConfigError(f"config.json: {name} {getattr(self, name)!r} must be of type {kind.__name__}")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"config.json: {name} {getattr(self, name)} must be positive")
        for name in ("hidden_dropout", "attention_dropout", "attention_output_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"config.json: {name} {getattr(self, name)} must be from 0 to 1")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"config.json: pad_token_id {self.pad_token_id}: not in a vocabulary of {self.vocab_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"config.json: {self.num_attention_heads} attention heads do not divide hidden size {self.hidden_size}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"config.json: activation '{self.hidden_act}' is none of {', '.join(ACTIVATIONS)}")

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture."""
        return "bert" if self.type_vocab_size else "distilbert"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the content of a `config.json`; keys that do not shape the network are passed over.

        Raises:
            ConfigError: another architecture, or a variant of BERT that this code does not compute.
        """
        kind = values.get("model_type") or "bert"  # BERT's first checkpoints do not say
        if kind not in ("bert", "distilbert"):
            near = did_you_mean(str(kind), ("bert", "distilbert"))
            raise ConfigError(f"config.json: model_type '{kind}' is neither bert nor distilbert{near}")
        _refuse_variants(values)
        keys = _BERT_KEYS if kind == "bert" else _DISTILBERT_KEYS
        known = {field: values[key] for field, key in keys.items() if values.get(key) is not None}
        if kind == "distilbert":
            return cls(**{"num_hidden_layers": 6, **known, "type_vocab_size": 0, "attention_output_dropout": 0.0})
        return cls(**known, attention_output_dropout=known.get("hidden_dropout", 0.1))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that stock `transformers` reads.

        Raises:
            ConfigError: this student can't be expressed as Hugging Face's DistilBERT.
        """
        if self.model_type == "bert":
            keys, name = _BERT_KEYS, "BertForMaskedLM"
        else:
            keys, name = _DISTILBERT_KEYS, "DistilBertForMaskedLM"
            if self.layer_norm_eps != 1e-12:
                raise ConfigError(
                    f"layer_norm_eps {self.layer_norm_eps}: DistilBERT of `transformers` fixes it at 1e-12"
                )
        body = {key: getattr(self, field) for field, key in keys.items()}
        return {"architectures": [name], "model_type": self.model_type, **body, "tie_word_embeddings": True}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From a model folder.

        Raises:
            ConfigError: no config.json, or one that can't be read, or as `from_dict`.
        """
        values = read_values(folder)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{folder}: {error}") from error

    def write(self, folder: Path, **more: Any) -> None:
        """Into a model folder; `more`: keys beside the network's, or instead of them."""
        (folder / "config.json").write_text(json.dumps(self.to_dict() | more, indent=2, sort_keys=True) + "\n")

    def without_dropout(self) -> Self:
        """The same network with every dropout off."""
        return dataclasses.replace(self, hidden_dropout=0.0, attention_dropout=0.0, attention_output_dropout=0.0)


def read_values(source: Path) -> dict[str, Any]:
    """The content of a model folder's `config.json`, or of a file like it.

    Raises:
        ConfigError: there is none, or it can't be read.
    """
    path = source if source.is_file() else source / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; a model folder holds config.json") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    return values


def _refuse_variants(values: dict[str, Any]) -> None:
    expected = {"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True}
    for key, value in expected.items():
        if values.get(key, value) != value:
            raise ConfigError(f"config.json: {key} {values[key]} is not supported, only {value}")
