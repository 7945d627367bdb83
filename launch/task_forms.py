"""Production forms of a model for a task: what torch and the ONNX files beside its weights score on the task's held-out
data, and how long they take, on the processor.

One input at a time: that is latency; and a file that is quantized dynamically rounds by the largest value of a batch,
so that only alone an input has the same outputs wherever it stands.

B sequences (one), L tokens.
"""

import inspect
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.tasks.stream import TaskBatch, in_order
from launch.errors import ConfigError
from launch.progress import bar
from launch.reporting import forms, speed
from launch.tasks import Inputs
from model import hf, onnx_export, verify
from model.config import read_values
from model.heads import Kind, TaskHead
from model.onnx_export import Run

Json = dict[str, Any]
Example = dict[str, Tensor]  # BL by name


@dataclass(frozen=True)
class Form:
    """One of them, ready to run; `bytes` are those of its file or files."""

    name: str
    bytes: int
    run: Run


def opened(model: str, kind: Kind, labels: tuple[str, ...]) -> list[Form]:
    """Those of a model: torch first.

    Args:
        model: folder or hub name.
        kind, labels: of its task head.

    Raises:
        ConfigError: there is no ONNX file beside the weights, nothing that runs it, or its labels are in another order.
        CheckpointError: a file is damaged, or another model's.
    """
    folder = hf.fetch(model)
    paths = forms.files(folder)
    if not paths:
        raise ConfigError(f"--onnx: {folder} has no {forms.FILES['ONNX']}: `python -m model.export {folder} --onnx`")
    own, order = TaskHead.of(read_values(folder)), range(max(1, len(labels)))
    if own is None or own.order(TaskHead(kind, labels)) != list(order):
        raise ConfigError(f"--onnx: the labels of {folder} are not in the task's order ({', '.join(labels)})")
    onnx_export.check_libraries()
    network = verify.stock(folder, kind, leftovers=True)
    stock = Form(forms.TORCH, hf.weight_bytes(folder), _by_torch(network))
    files = [Form(name, path.stat().st_size, onnx_export.open_file(path, kind)) for name, path in paths.items()]
    return [stock, *files]


def measure(opened: Sequence[Form], inputs: Inputs) -> list[Json]:
    """All of them on the held-out data.

    Returns:
        Rows {"form", "bytes", "length" (tokens of an input), "seconds" (it takes), "tokens_per_second", "metrics",
        "machine"}; length and seconds are means.
    """
    examples = [(split, _padded(batch)) for split, (_, features) in inputs.held_out.items()
                for _, batch in in_order(features, 1, 0, 1)]  # fmt: skip
    tokens = sum(example["input_ids"].numel() for _, example in examples)
    seconds, outputs = _in_turn(opened, examples, inputs.task.head)
    facts = speed.machine(torch.device("cpu"))
    machine = f"{facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}"
    return [
        {"form": form.name, "bytes": form.bytes, "length": tokens / len(examples),
         "seconds": seconds[form.name] / len(examples), "tokens_per_second": tokens / seconds[form.name],
         "metrics": inputs.score(outputs[form.name]), "machine": machine}
        for form in opened
    ]  # fmt: skip


def _in_turn(
    opened: Sequence[Form], examples: Sequence[tuple[str, Example]], kind: str
) -> tuple[dict[str, float], dict[str, dict[str, list[np.ndarray]]]]:
    """Each example by each form, so that a machine that gets slower slows all down alike: seconds by form, and outputs
    by form and split."""
    seconds = {form.name: 0.0 for form in opened}
    outputs: dict[str, dict[str, list[np.ndarray]]] = {form.name: defaultdict(list) for form in opened}
    with bar(len(examples), " inputs", "production forms") as progress, torch.inference_mode():
        for form in opened:
            form.run(examples[0][1])  # the first time takes longer
        for split, example in examples:
            for form in opened:
                start = time.perf_counter()
                found = form.run(example)
                seconds[form.name] += time.perf_counter() - start
                outputs[form.name][split].append(_output(found, kind))
            progress.update()
    return seconds, outputs


def _by_torch(network: Any) -> Run:
    """A model of `transformers`; of the inputs it is given, it takes its own."""
    takes = inspect.signature(network.forward).parameters
    return lambda inputs: network(**{name: value for name, value in inputs.items() if name in takes})


def _padded(batch: TaskBatch) -> Example:
    """One input as models of `transformers` take it: BL."""
    ids_BL, types_BL = (torch.from_numpy(array)[None] for array in (batch.input_ids, batch.token_types))
    return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL), "token_type_ids": types_BL}


def _output(found: Any, kind: str) -> np.ndarray:
    """As a task takes it: [labels], [1], or of a span [L, 2]."""
    parts = [found[name][0] for name in verify.names(kind)]
    return (torch.stack(parts, 1) if kind == "span" else parts[0]).numpy()
