"""A model folder against the model that it was made of: stock `transformers` loads it and computes the same."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from launch.errors import CheckpointError
from model.heads import TaskModel
from model.pretrained import DilBertForMaskedLM

TOLERANCE = 1e-4  # of the logits' largest absolute value, fp32

# Kind of the task head, if there is one -> the class that loads it.
_CLASSES = {
    None: transformers.AutoModelForMaskedLM,
    "classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}


@torch.no_grad()
def verify(folder: Path, model: DilBertForMaskedLM | TaskModel) -> float:
    """Load the folder by stock `transformers` and compare logits on a padded batch.

    Returns:
        the largest difference, relative to the largest logit.

    Raises:
        CheckpointError: weights missing or left over, or other logits.
    """
    kind = model.task.kind if isinstance(model, TaskModel) else None
    theirs, info = _CLASSES[kind].from_pretrained(folder, output_loading_info=True)
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if problems:
        raise CheckpointError(f"{folder}: `transformers` reports {problems}")
    batch = _batch(model)
    expected, found = (_logits(network(**batch), batch["attention_mask"], kind) for network in (model, theirs.eval()))
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise CheckpointError(f"{folder}: logits by `transformers` differ by {difference:.2e} of their largest value")
    return difference


def _batch(model: DilBertForMaskedLM | TaskModel) -> dict[str, Tensor]:
    """Random tokens, of random types where the model has them, in sequences of several lengths."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    length = min(64, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (4, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length], [length // 2], [3], [1]])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if config.type_vocab_size:
        batch["token_type_ids"] = torch.randint(config.type_vocab_size, ids.shape, generator=generator)
    return batch


def _logits(outputs: Any, mask_BL: Tensor, kind: str | None) -> Tensor:
    """Of real tokens, or of sequences; one after another."""
    if kind in ("classification", "regression"):
        return outputs.logits.flatten()
    names = ("start_logits", "end_logits") if kind == "span" else ("logits",)
    return torch.cat([outputs[name][mask_BL.bool()].flatten() for name in names])
