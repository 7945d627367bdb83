"""Small random models of `transformers`, the same ones of ours, and sequences: packed for us, padded for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from model import heads, hf, kernels
from model.config import BertConfig
from model.heads import TaskHead, TaskModel
from model.pretrained import DilBertForMaskedLM

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # on models this small, threads only wait for each other

VOCABULARY = 53
POSITIONS = 24
BERT = {"vocab_size": VOCABULARY, "hidden_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 28, "max_position_embeddings": POSITIONS, "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 20, "n_layers": 2, "n_heads": 4, "hidden_dim": 28,
              "max_position_embeddings": POSITIONS, "initializer_range": 0.2, "dropout": 0.0,
              "attention_dropout": 0.0}  # fmt: skip


def bert(seed: int = 0, cls: type = transformers.BertForMaskedLM, **changes: Any) -> nn.Module:
    """A tiny BERT of `transformers` in which no parameter has a value that another could have by chance."""
    return randomise(cls(transformers.BertConfig(**BERT | changes, attn_implementation="eager")), seed)


def distilbert(seed: int = 1, cls: type = transformers.DistilBertForMaskedLM, **changes: Any) -> nn.Module:
    """A tiny DistilBERT of `transformers`."""
    return randomise(cls(transformers.DistilBertConfig(**DISTILBERT | changes, attn_implementation="eager")), seed)


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random biases and norms, too: at their initial 0 and 1, a wrong one would not show. In evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, model.config.initializer_range, generator=generator)
        else:
            parameter.normal_(1.0 if name.lower().endswith("norm.weight") else 0.0, 0.1, generator=generator)
    return model.eval()


def ours(theirs: nn.Module) -> DilBertForMaskedLM:
    """The same weights in a model of ours, in evaluation mode."""
    config = BertConfig.from_dict(theirs.config.to_dict())
    with torch.device("meta"):
        model = DilBertForMaskedLM(config)
    model.to_empty(device="cpu")
    report = hf.load_state(model, config, theirs.state_dict(), "test")
    assert not report.missing
    return model.eval()


def with_head(theirs: nn.Module, task: TaskHead) -> TaskModel:
    """The same weights in a model of ours with a task head, in evaluation mode."""
    config = BertConfig.from_dict(theirs.config.to_dict())
    model = heads.build(config, task)
    assert hf.load_state(model, config, theirs.state_dict(), "test") == hf.Report((), ())
    return model.eval()


def sequences(lengths: Sequence[int], vocabulary: int = VOCABULARY, seed: int = 0) -> list[list[int]]:
    """Random token ids, none of them padding (0)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def pack(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Arguments of `encode`."""
    ends = [sum(len(row) for row in rows[:i]) for i in range(len(rows) + 1)]
    return {
        "input_ids_T": torch.tensor([token for row in rows for token in row]),
        "positions_T": torch.tensor([position for row in rows for position in range(len(row))]),
        "cu_seqlens": torch.tensor(ends, dtype=torch.int32),
        "max_seqlen": max(map(len, rows)),
    }


def pad(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Arguments of a model of `transformers`: padded on the right."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


def real(padded: Tensor, mask: Tensor) -> Tensor:
    """Rows of a [batch, length, ...] output at real tokens, in the order of packing."""
    return padded[mask.bool()]


@contextmanager
def chosen_kernels(monkeypatch: Any, choice: str) -> Iterator[None]:
    """`DILBERT_KERNELS` for the block; the choice is made once a process, so the cache is emptied on both sides."""
    with monkeypatch.context() as patch:
        patch.setenv("DILBERT_KERNELS", choice)
        kernels.selected.cache_clear()
        try:
            yield
        finally:
            kernels.selected.cache_clear()


def largest(difference: Tensor) -> float:
    """Largest absolute value."""
    return float(difference.detach().abs().max())
