"""A model folder's ONNX files, for inference without torch: `onnx/model.onnx`, written by torch's own exporter, and
`onnx/model_int8.onnx`, quantized by onnxruntime: weights by channel, activations as they come ("dynamic").

Inputs and outputs are named as in `transformers`, batch and length are free, and logits are compared with torch's. The
libraries are those of the dependency group `onnx`.

B padded sequences of length L, V vocabulary.
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch import commit
from launch.errors import CheckpointError, ConfigError
from model import verify
from model.heads import TaskModel
from model.pretrained import DilBertForMaskedLM

FOLDER, FP32, INT8 = "onnx", "model.onnx", "model_int8.onnx"
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 2**31 - 2**20  # protobuf holds 2 GB, the network's graph included
TRACED = (2, 8)  # sequences and their length; no other number may matter
COMPARED = (16, 64)
ROUNDED = 0.5  # of the logits' largest absolute value: what 8 bits may cost; beyond, the file computes something else

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Form:
    """An ONNX file beside torch.

    Attributes:
        file: within the model folder.
        difference: of logits, the largest, relative to the largest logit.
        agreement: share of words, classes, or starts and ends of answers that both take for the likeliest; None: the
            model predicts numbers.
    """

    file: str
    bytes: int
    difference: float
    agreement: float | None


def check_libraries() -> None:
    """Raise ConfigError unless all that is needed is installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--onnx needs {', '.join(missing)}, not installed here: `pip install --group onnx`")


def export(folder: Path, model: DilBertForMaskedLM | TaskModel, int8: bool) -> list[Form]:
    """Add the folder `onnx` to a model folder.

    Args:
        model: what is in the folder.
        int8: the quantized form, too.

    Raises:
        ConfigError: the folder has one already, or the model is too large.
        CheckpointError: an ONNX file computes something else than torch.
    """
    if (folder / FOLDER).exists():
        raise ConfigError(f"{folder / FOLDER}: is there already; remove it, and it will be made anew")
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > MOST_BYTES:
        raise ConfigError(f"--onnx: an ONNX file holds 2 GB, and this model has {size / 1e9:.1f} GB of weights")
    kind = verify.kind_of(model)
    network = verify.stock(folder, kind, leftovers=True)
    inputs = verify.batch(model.config, *COMPARED)
    with commit.folder(folder / FOLDER) as partial, torch.no_grad(), _quiet():
        _write(network, verify.batch(model.config, *TRACED), verify.names(kind), partial / FP32)
        expected = network(**inputs)
        forms = [_compare(partial / FP32, inputs, expected, kind, verify.TOLERANCE)]
        if int8:
            _quantize(partial / FP32, partial / INT8)
            forms.append(_compare(partial / INT8, inputs, expected, kind, ROUNDED))
    return forms


def open_file(path: Path, kind: str | None = None) -> Run:
    """An ONNX file, on the processor, with as many threads as torch has; of the inputs it is given, it takes its own.

    Args:
        kind: of the task head; None: it predicts masked words.

    Raises:
        CheckpointError: damaged, or with inputs that are not a BERT's, or without the outputs of such a head.
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own for each kind of damage
        raise CheckpointError(f"{path}: can't be read as an ONNX model, export it again: {error}") from error
    takes, gives = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    if strange := sorted(set(takes) - INPUTS):
        raise CheckpointError(f"{path}: wants {', '.join(strange)}; a BERT has no such input")
    if missing := [name for name in verify.names(kind) if name not in gives]:
        raise CheckpointError(f"{path}: has no {', '.join(missing)}, but {', '.join(gives)}; export it again")

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = session.run(gives, {name: inputs[name].numpy() for name in takes})
        return {name: torch.from_numpy(array) for name, array in zip(gives, arrays, strict=True)}

    return run


def _write(network: Any, inputs: dict[str, Tensor], outputs: tuple[str, ...], path: Path) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    program = torch.onnx.export(
        network, (), kwargs=inputs, input_names=list(inputs), output_names=outputs, dynamo=True, verbose=False,
        dynamic_shapes={name: {0: "batch", 1: "length"} for name in inputs},
    )  # fmt: skip
    assert program
    ClearMetadataAndDocStringPass()(program.model)  # traces of the stack, with this machine's paths
    program.save(path, external_data=False)


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def _compare(path: Path, inputs: dict[str, Tensor], expected: Any, kind: str | None, most: float) -> Form:
    """Raises CheckpointError beyond a difference of `most`."""
    found, mask_BL = open_file(path, kind)(inputs), inputs["attention_mask"]
    off = verify.difference(*(verify.logits(outputs, mask_BL, kind) for outputs in (found, expected)))
    if not off <= most:
        raise CheckpointError(f"{path.name}: its logits differ from torch's by {off:.2e} of their largest value")
    agreement = None
    if kind != "regression":
        mine, theirs = (_first_choices(outputs, mask_BL, kind) for outputs in (found, expected))
        agreement = float((mine == theirs).float().mean())
    return Form(f"{FOLDER}/{path.name}", path.stat().st_size, off, agreement)


def _first_choices(outputs: Mapping[str, Tensor], mask_BL: Tensor, kind: str | None) -> Tensor:
    """The likeliest word of each real token, class of each sequence, or start and end of each answer."""
    real_BL = mask_BL.bool()
    if kind == "span":
        scores = (outputs[name].masked_fill(~real_BL, -torch.inf) for name in verify.names(kind))
        return torch.cat([scores_BL.argmax(-1) for scores_BL in scores])
    choices = outputs["logits"].argmax(-1)  # BL of BLV, or B
    return choices if kind == "classification" else choices[real_BL]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters warn of: operators of torchvision, names of axes that coincide, old calls of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
