"""The border to Hugging Face: the only table of its parameter names, and reading and writing of model folders."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from launch import hub
from launch.errors import CheckpointError
from model.config import BertConfig, read_values

# The first one there is read; the order is that of `transformers`, so that both see the same weights.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Our module -> Hugging Face's, {} the number of the layer. Three names: rows of one matrix of ours.
_BERT = {
    "embeddings.word": ("bert.embeddings.word_embeddings",),
    "embeddings.position": ("bert.embeddings.position_embeddings",),
    "embeddings.token_type": ("bert.embeddings.token_type_embeddings",),
    "embeddings.norm": ("bert.embeddings.LayerNorm",),
    "layers.{}.qkv": tuple(f"bert.encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")),
    "layers.{}.attention_output": ("bert.encoder.layer.{}.attention.output.dense",),
    "layers.{}.attention_norm": ("bert.encoder.layer.{}.attention.output.LayerNorm",),
    "layers.{}.intermediate": ("bert.encoder.layer.{}.intermediate.dense",),
    "layers.{}.output": ("bert.encoder.layer.{}.output.dense",),
    "layers.{}.output_norm": ("bert.encoder.layer.{}.output.LayerNorm",),
    "head.transform": ("cls.predictions.transform.dense",),
    "head.norm": ("cls.predictions.transform.LayerNorm",),
    "head": ("cls.predictions",),
    "pooler": ("bert.pooler.dense",),
    "classifier": ("classifier",),
    "qa_outputs": ("qa_outputs",),
}
_DISTILBERT = {
    "embeddings.word": ("distilbert.embeddings.word_embeddings",),
    "embeddings.position": ("distilbert.embeddings.position_embeddings",),
    "embeddings.norm": ("distilbert.embeddings.LayerNorm",),
    "layers.{}.qkv": tuple(f"distilbert.transformer.layer.{{}}.attention.{name}_lin" for name in "qkv"),
    "layers.{}.attention_output": ("distilbert.transformer.layer.{}.attention.out_lin",),
    "layers.{}.attention_norm": ("distilbert.transformer.layer.{}.sa_layer_norm",),
    "layers.{}.intermediate": ("distilbert.transformer.layer.{}.ffn.lin1",),
    "layers.{}.output": ("distilbert.transformer.layer.{}.ffn.lin2",),
    "layers.{}.output_norm": ("distilbert.transformer.layer.{}.output_layer_norm",),
    "head.transform": ("vocab_transform",),
    "head.norm": ("vocab_layer_norm",),
    "head": ("vocab_projector",),
    "pooler": ("pre_classifier",),
    "classifier": ("classifier",),
    "qa_outputs": ("qa_outputs",),
}
_TABLES = {"bert": _BERT, "distilbert": _DISTILBERT}

# What only pre-training uses: any BERT may have it, and a task does not miss it.
_PRE_TRAINING = ("cls.", "vocab_", "bert.pooler.")

# Copies of other weights. They are dropped on reading, once seen to be equal, and not written.
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight",
}


@dataclass(frozen=True)
class Report:
    """What loading found: parameters the file lacks, and names in the file that the model has no place for."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def of_other_tasks(self) -> tuple[str, ...]:
        """Those of `unexpected` that are not merely left over from pre-training."""
        return tuple(name for name in self.unexpected if not name.startswith(_PRE_TRAINING))


def names_of(parameter: str, model_type: str) -> tuple[str, ...]:
    """Hugging Face's name (three for qkv) of a parameter of ours.

    `layers.3.qkv.weight` of a "bert" -> `bert.encoder.layer.3.attention.self.query.weight`, `...key...`, `...value...`
    """
    module, _, kind = parameter.rpartition(".")
    number = next((part for part in module.split(".") if part.isdigit()), "")
    pattern = module.replace(f".{number}.", ".{}.") if number else module
    return tuple(f"{name.format(number)}.{kind}" for name in _TABLES[model_type][pattern])


def load_state(module: nn.Module, config: BertConfig, state: Mapping[str, Tensor], origin: str) -> Report:
    """Copy a Hugging Face state dict into a module of ours, as far as both have the parameters.

    Raises:
        CheckpointError: a tensor of another shape, or a decoder that is not tied to the embeddings.
    """
    state = _canonical(state, config.model_type)
    _check_tied(state, origin)
    used, missing = set(_TIED), []
    for name, parameter in module.named_parameters():
        theirs = names_of(name, config.model_type)
        used.update(theirs)
        missing += [key for key in theirs if key not in state]
        for key, piece in zip(theirs, parameter.detach().chunk(len(theirs)), strict=True):
            if key not in state:
                continue
            if state[key].shape != piece.shape:
                shapes = f"{tuple(state[key].shape)}, the model's config says {tuple(piece.shape)}"
                raise CheckpointError(f"{origin}: {key} has shape {shapes}")
            piece.copy_(state[key])
    return Report(tuple(missing), tuple(sorted(set(state) - used)))


def refuse_missing(names: Sequence[str], origin: str) -> None:
    """Raise CheckpointError if parameters are missing in a file."""
    if names:
        raise CheckpointError(f"{origin}: {len(names)} weights are missing: {', '.join(names)}")


def dump_state(module: nn.Module, config: BertConfig) -> dict[str, Tensor]:
    """The module's parameters under Hugging Face's names: contiguous tensors in fp32, on the CPU, nothing twice."""
    state: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        theirs = names_of(name, config.model_type)
        pieces = parameter.detach().float().cpu().chunk(len(theirs))
        state.update((key, piece.clone().contiguous()) for key, piece in zip(theirs, pieces, strict=True))
    return state


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder, by Hugging Face's names; safetensors first, `.bin` with `weights_only`.

    Raises:
        CheckpointError: no weights, or a file that is damaged, or a pickle that holds more than weights.
    """
    name = next((name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if name is None:
        raise CheckpointError(f"{folder}: no weights ({WEIGHT_FILES[0]} or {WEIGHT_FILES[2]})")
    files = _shards(folder / name) if name.endswith(".index.json") else [name]
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_file(folder / file)
    return state


def write_folder(folder: Path, module: nn.Module, config: BertConfig, **more: Any) -> None:
    """`model.safetensors` and `config.json`, as stock `transformers` reads them.

    Args:
        more: keys of `config.json` beside the config's, or instead of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config.write(folder, **more)
    weights = folder / "model.safetensors"
    safetensors.torch.save_file(dump_state(module, config), weights, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", weights)  # safetensors writes files that only their owner can read


def write_tokenizer(folder: Path, source: Path, config: BertConfig) -> None:
    """A tokenizer's files into a model's folder. Ids stay what they are; but the tokenizer gives what this model takes,
    and truncates to its positions.

    Args:
        source: folder with the files; those that it has are copied.

    Raises:
        ConfigError: the settings in it can't be read.
    """
    hub.copy_tokenizer(source, folder)
    if not hub.has_tokenizer(folder):
        return
    path = source / "tokenizer_config.json"
    settings = read_values(path) if path.exists() else {}
    most, own = config.max_position_embeddings, settings.get("model_max_length", settings.get("max_len"))
    fitting = settings | {"model_max_length": min(own, most) if isinstance(own, int | float) else most}
    if not config.type_vocab_size or "model_input_names" in settings:  # by default they are a BERT's
        fitting["model_input_names"] = [*hub.INPUTS, *(["token_type_ids"] if config.type_vocab_size else [])]
    if fitting != settings:
        text = json.dumps(fitting, indent=2, sort_keys=True, ensure_ascii=False)  # as `transformers` writes it
        (folder / path.name).write_text(text + "\n", encoding="utf-8")


def fingerprint(module: nn.Module) -> str:
    """Changes with any weight: the hexadecimal digest of all parameters, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weights, or only a `config.json`."""
    return any((folder / name).exists() for name in WEIGHT_FILES)


def weight_bytes(folder: Path) -> int:
    """Of the file that is loaded, or of all its shards."""
    name = next(name for name in WEIGHT_FILES if (folder / name).exists()).removesuffix(".index.json")
    stem, _, kind = name.partition(".")
    return sum(path.stat().st_size for path in folder.glob(f"{stem}*.{kind}"))


def fetch(name: str) -> Path:
    """The folder of a model, by path or hub name; `.bin` files are only fetched where there is no safetensors."""
    folder = hub.fetch(
        name, ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
    )
    if has_weights(folder) or Path(name).is_dir():
        return folder
    return hub.fetch(name, ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"))


def _shards(index: Path) -> list[str]:
    """The files that an index of shards names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{strange[0]!r} is no file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: can't be read as an index of weight files: {error!r}") from error
    return names


def read_file(path: Path) -> dict[str, Tensor]:
    """A file of weights, by the names in it.

    Raises:
        CheckpointError: damaged, or a pickle that holds more than weights.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it unsafely
        why = "damaged, or a pickle with more in it than weights, which could run code; ask for it as safetensors"
        raise CheckpointError(f"{path}: refused: {why}") from error
    except Exception as error:  # safetensors and torch each raise their own
        raise CheckpointError(f"{path}: can't be read as weights, fetch it again: {error!r}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds something else than tensors by name")
    return state


def _canonical(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Today's names: old layer norms (gamma, beta), encoders saved without prefix, buffers left out."""
    prefixed = any(name.startswith((f"{model_type}.", "cls.", "vocab_")) for name in state)
    renamed = {}
    for name, value in state.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.endswith("position_ids"):
            renamed[name if prefixed else f"{model_type}.{name}"] = value
    for copy, original in _TIED.items():  # a file that stores shared weights once may do so under the copy's name
        if copy in renamed:
            renamed.setdefault(original, renamed[copy])
    return renamed


def _check_tied(state: Mapping[str, Tensor], origin: str) -> None:
    for copy, original in _TIED.items():
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise CheckpointError(f"{origin}: {copy} differs from {original}; only tied embeddings are supported")
