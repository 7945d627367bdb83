"""Teacher and student, in our modules and in those of `transformers`, with the same weights in both.

A weight is a function of its Hugging Face name: nothing is saved or loaded, and no copy in fp32 raises the peak.
"""

import contextlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model import hf
from model.bert import MaskedLM
from model.config import BertConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DROPOUT = 0.1


@dataclass(frozen=True)
class Pair:
    """A teacher; the student has half its layers."""

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 30_522

    def teacher(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {
            "model_type": "bert", "vocab_size": self.vocabulary, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "intermediate_size": self.inner,
        }  # fmt: skip

    def student(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {
            "model_type": "distilbert", "vocab_size": self.vocabulary, "dim": self.width, "n_layers": self.layers // 2,
            "n_heads": self.heads, "hidden_dim": self.inner, "dropout": DROPOUT, "attention_dropout": DROPOUT,
        }  # fmt: skip


PAIRS = {
    "tiny": Pair(width=32, layers=2, heads=2, inner=64, vocabulary=1000),
    "small": Pair(width=256, layers=4, heads=4, inner=1024),
    "base": Pair(width=768, layers=12, heads=12, inner=3072),
}


def ours(pair: Pair, dtype: torch.dtype, device: torch.device) -> tuple[MaskedLM, MaskedLM]:
    """Student in training mode, and teacher."""
    with _constructing(dtype, device):
        models = [MaskedLM(BertConfig.from_dict(config)) for config in (pair.student(), pair.teacher())]
    for model in models:
        fill(_by_their_names(model))
    student, teacher = models
    return student.train(), teacher.eval().requires_grad_(False)


def theirs(
    pair: Pair, dtype: torch.dtype, device: torch.device, attention: str, rounded: torch.dtype | None = None
) -> tuple[Any, Any]:
    """The same of `transformers`.

    Args:
        attention: "eager" or "sdpa".
        rounded: weights have values of this dtype; None: of `dtype`.
    """
    import transformers

    models = []
    for name, config in (("DistilBert", pair.student()), ("Bert", pair.teacher())):
        settings = getattr(transformers, f"{name}Config").from_dict(config | {"attn_implementation": attention})
        with _constructing(dtype, device):
            models.append(getattr(transformers, f"{name}ForMaskedLM")(settings))
        fill(models[-1].named_parameters(), rounded)
    student, teacher = models
    return student.train(), teacher.eval().requires_grad_(False)


@contextlib.contextmanager
def _constructing(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _by_their_names(model: MaskedLM) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        theirs = hf.names_of(name, model.config.model_type)
        yield from zip(theirs, parameter.chunk(len(theirs)), strict=True)


@torch.no_grad()
def fill(named: Iterable[tuple[str, Tensor]], rounded: torch.dtype | None = None) -> None:
    """Values of a trained model's size: N(0, 0.04) for matrices, around 1 and 0 for norms and biases."""
    for name, tensor in named:
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        is_norm = name.lower().endswith("norm.weight")
        tensor.copy_((values * 0.04 + is_norm).to(rounded or tensor.dtype))
