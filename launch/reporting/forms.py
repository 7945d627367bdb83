"""Production forms of a masked language model: the ONNX files beside its weights, run by onnxruntime on the processor.

B sequences, L their padded length, V vocabulary.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from launch.errors import CheckpointError

FILES = {"ONNX": Path("onnx/model.onnx"), "ONNX int8": Path("onnx/model_int8.onnx")}

Logits = Callable[[Tensor, Tensor], Tensor]  # ids_BL, mask_BL -> BLV


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


def open_onnx(path: Path) -> Logits:
    """An ONNX file, with as many threads as torch has.

    Raises:
        CheckpointError: damaged, or with inputs that are not a BERT's.
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for each kind of damage
        raise CheckpointError(f"{path}: can't be read as an ONNX model, export it again: {error}") from error
    names = {argument.name for argument in session.get_inputs()}
    if strange := names - {"input_ids", "attention_mask", "token_type_ids"}:
        raise CheckpointError(f"{path}: wants {', '.join(sorted(strange))}; a BERT has no such input")

    def logits(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": torch.zeros_like(ids_BL)}
        return torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])

    return logits


def accuracy(logits: Logits, sequences: Iterable[Masked]) -> float:
    """Share of masked words that are the likeliest, over sequences one at a time."""
    right = masked = 0
    for sequence in sequences:
        ids_BL = torch.from_numpy(sequence.input_ids).long()[None]
        scores_MV = logits(ids_BL, torch.ones_like(ids_BL))[0, torch.from_numpy(sequence.masked_positions)]
        right += int((scores_MV.argmax(-1) == torch.from_numpy(sequence.labels)).sum())
        masked += sequence.labels.size
    return right / max(masked, 1)
