"""A model folder against the model that it was made of: stock `transformers` loads it and computes the same.

B padded sequences of length L.
"""

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from launch import hub
from launch.errors import CheckpointError, reason
from model import heads
from model.config import BertConfig, read_values
from model.heads import TaskHead, TaskModel
from model.pretrained import DilBertForMaskedLM

logger = logging.getLogger(__name__)

TEXT = "The cat is in the house."
TOLERANCE = 1e-4  # of the logits' largest absolute value, fp32

# Kind of the task head, if there is one -> the class that loads it.
_CLASSES = {
    None: transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}


@torch.no_grad()
def verify(folder: Path, model: DilBertForMaskedLM | TaskModel, leftovers: bool = False) -> float:
    """Load the folder by stock `transformers` and compare logits on a padded batch.

    Args:
        leftovers: weights that this kind of model has no place for are no error; of a tokenizer that does not fit, a
            line warns.

    Returns:
        the largest difference, relative to the largest logit.

    Raises:
        CheckpointError: weights missing or left over, other logits, or as `tokenizer_fault`.
    """
    inputs, kind = batch(model.config), kind_of(model)
    theirs = stock(folder, kind, leftovers)
    if fault := tokenizer_fault(folder, theirs):
        if not leftovers:
            raise CheckpointError(fault)
        logger.warning("warning: %s", fault)
    expected, found = (logits(network(**inputs), inputs["attention_mask"], kind) for network in (model, theirs))
    off = difference(found, expected)
    if not off <= TOLERANCE:
        raise CheckpointError(f"{folder}: logits by `transformers` differ by {off:.2e} of their largest value")
    return off


def load(folder: Path) -> DilBertForMaskedLM | TaskModel:
    """The model of a folder, with the head that its config.json tells of.

    Raises:
        ConfigError, CheckpointError: as `heads.load` and `DilBertForMaskedLM.from_pretrained`.
    """
    head = TaskHead.of(read_values(folder))
    return (
        heads.load(folder, head.kind, head.labels, known=True) if head else DilBertForMaskedLM.from_pretrained(folder)
    )


def kind_of(model: DilBertForMaskedLM | TaskModel) -> str | None:
    """The kind of its task head; None: it predicts masked words."""
    return model.task.kind if isinstance(model, TaskModel) else None


def stock(folder: Path, kind: str | None, leftovers: bool = False) -> Any:
    """The folder's model as users of `transformers` load it, in fp32 and evaluation mode.

    Args:
        kind, leftovers: see `kind_of` and `verify`.

    Raises:
        CheckpointError: weights are missing or left over.
    """
    model, info = _CLASSES[kind].from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    passed_over = {"unexpected_keys"} if leftovers else set()
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value and key not in passed_over}
    if problems:
        raise CheckpointError(f"{folder}: `transformers` reports {problems}")
    return model.eval()


def tokenizer_fault(folder: Path, network: Any) -> str | None:
    """What is wrong with the folder's own tokenizer, before its model on a text; None: nothing, or it has none.

    `transformers` 5 passes over what a model does not take; version 4 and ONNX files refuse it.
    """
    if not hub.has_tokenizer(folder):
        return None
    try:
        inputs = transformers.AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")
        network(**inputs)
    except Exception as error:  # the libraries have many kinds
        return f"{folder}: its model does not run on what its tokenizer gives: {reason(error)}"
    takes = inspect.signature(network.forward).parameters
    strange = [name for name in inputs if name not in takes]
    if not strange:
        return None
    cure = f'write "model_input_names": {json.dumps([name for name in inputs if name in takes])} into that file'
    path = folder / "tokenizer_config.json"
    return f"{path}: the tokenizer gives {', '.join(strange)}, which the model does not take; {cure}"


def batch(config: BertConfig, sequences: int = 4, longest: int = 64) -> dict[str, Tensor]:
    """Random tokens, of random types where the model has them, in sequences of all lengths, from 1 on; int64 BL."""
    generator = torch.Generator().manual_seed(0)
    length = min(longest, config.max_position_embeddings)
    ids_BL = torch.randint(config.vocab_size, (sequences, length), generator=generator)
    lengths_B1 = torch.linspace(length, 1, sequences).round()[:, None]
    inputs = {"input_ids": ids_BL, "attention_mask": (torch.arange(length) < lengths_B1).long()}
    if config.type_vocab_size:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, ids_BL.shape, generator=generator)
    return inputs


def names(kind: str | None) -> tuple[str, ...]:
    """Of a model's outputs."""
    return ("start_logits", "end_logits") if kind == "span" else ("logits",)


def logits(outputs: Mapping[str, Tensor], mask_BL: Tensor, kind: str | None) -> Tensor:
    """Of real tokens, or of sequences; one after another."""
    if kind in ("classification", "regression"):
        return outputs["logits"].flatten()
    return torch.cat([outputs[name][mask_BL.bool()].flatten() for name in names(kind)])


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max())
