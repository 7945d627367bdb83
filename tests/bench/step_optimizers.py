"""Forms of Adam: milliseconds of a step on the base student's parameters in fp32, and whether they need a compiler."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import distributed  # noqa: F401  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import torch
from torch import Tensor

from launch.progress import bar
from model.bert import MaskedLM
from model.config import BertConfig
from tests.bench.step_measure import Clock
from tests.bench.step_models import PAIRS
from tests.bench.step_table import Cells
from tests.bench.step_variants import Setting, Unavailable

STEPS = 20
RECIPE: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def compare_optimizers(setting: Setting) -> Cells:
    """Each form alone, one after the other; medians."""
    forms: dict[str, tuple[Make, str]] = {
        "torch AdamW, fused": (lambda p: torch.optim.AdamW(p, **RECIPE, fused=True), "no"),
        "torch AdamW, foreach": (lambda p: torch.optim.AdamW(p, **RECIPE, foreach=True), "no"),
        "torch AdamW, one by one": (lambda p: torch.optim.AdamW(p, **RECIPE, foreach=False, fused=False), "no"),
        "DeepSpeedCPUAdam": (cpu_adam, "g++, ninja"),
        "DeepSpeed FusedAdam": (fused_adam, "nvcc, ninja"),
    }
    student = PAIRS["tiny" if setting.quick else "base"].student()
    with torch.device("meta"):
        shapes = [parameter.shape for parameter in MaskedLM(BertConfig.from_dict(student)).parameters()]
    head = (
        f"{sum(map(torch.Size.numel, shapes)):,} parameters",
        "ms a step",
        "of CPU time",
        "compiler",
        "built or loaded in",
        "note",
    )
    cells: Cells = [head]
    with bar(len(forms), " optimizers", "measuring") as progress:
        for name, (make, compiler) in forms.items():
            cells.append((name, *line(setting, make, compiler, shapes)))
            progress.update()
    return cells


def line(setting: Setting, make: Make, compiler: str, shapes: list[torch.Size]) -> tuple[str, ...]:
    """One of them."""
    device = setting.device
    parameters = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    start = time.perf_counter()
    try:
        optimizer = make(parameters)
    except Unavailable as reason:
        return "-", "-", compiler, "-", str(reason)
    built = f"{time.perf_counter() - start:.0f} s" if compiler != "no" else "-"
    clocks = [timed(optimizer, device) for _ in range(2 + STEPS)][2:]
    wall, own = (statistics.median(getattr(clock, key) for clock in clocks) for key in ("wall", "own"))
    return f"{wall * 1e3:,.1f}", f"{own * 1e3:,.1f}", compiler, built, ""


def timed(optimizer: torch.optim.Optimizer, device: torch.device) -> Clock:
    """A step of it."""
    start = Clock.now(device)
    optimizer.step()
    return Clock.now(device) - start


def cpu_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """DeepSpeed's for the host; built at its first use."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if parameters[0].device.type != "cpu":
        raise Unavailable("for parameters on the host")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where ninja is
    try:
        return DeepSpeedCPUAdam(parameters, **RECIPE, adamw_mode=True)
    except Exception as error:  # whatever a build can fail with
        raise Unavailable(f"can't be built: {str(error).splitlines()[0]}") from error


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """DeepSpeed's for GPUs; built at its first use."""
    from deepspeed.ops.adam import FusedAdam

    if parameters[0].device.type != "cuda":
        raise Unavailable("not run: no GPU")
    try:
        return FusedAdam(parameters, **RECIPE, adam_w_mode=True)
    except Exception as error:  # whatever a build can fail with
        raise Unavailable(f"can't be built: {str(error).splitlines()[0]}") from error
