"""Production forms of a model: torch, and the ONNX files beside its weights, on the processor.

B sequences, L their padded length, V vocabulary.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

TORCH = "torch fp32"  # the whole model by `transformers`
FILES = {"ONNX": Path("onnx/model.onnx"), "ONNX int8": Path("onnx/model_int8.onnx")}

Logits = Callable[[Tensor, Tensor], Tensor]  # of a masked language model: ids_BL, mask_BL -> BLV


class Masked(Protocol):
    """What is read of a micro-batch of one sequence: see `data.batching.MicroBatch`."""

    @property
    def input_ids(self) -> np.ndarray: ...
    @property
    def masked_positions(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...


def files(folder: Path) -> dict[str, Path]:
    """Those of a model folder that are there, by form."""
    return {form: folder / path for form, path in FILES.items() if (folder / path).is_file()}


def accuracy(logits: Logits, sequences: Iterable[Masked]) -> float:
    """Share of masked words that are the likeliest, over sequences one at a time."""
    right = masked = 0
    for sequence in sequences:
        ids_BL = torch.from_numpy(sequence.input_ids).long()[None]
        scores_MV = logits(ids_BL, torch.ones_like(ids_BL))[0, torch.from_numpy(sequence.masked_positions)]
        right += int((scores_MV.argmax(-1) == torch.from_numpy(sequence.labels)).sum())
        masked += sequence.labels.size
    return right / max(masked, 1)
