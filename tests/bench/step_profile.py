"""What one step of ours is made of: matrix products, attention, row kernels, the rest.

On a GPU, kernels are sorted by their names. On a CPU, operators are, by the outermost one that says what it is; what
the profiler does not see as operators, the calls into C++, is given names first.
"""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from model.kernels import distillation, residual
from tests.bench.step_data import sequences, tokens
from tests.bench.step_measure import through
from tests.bench.step_models import PAIRS
from tests.bench.step_table import Cells
from tests.bench.step_variants import Setting, ours

STEP, ROWS, ENDS = "the step", "rows of the losses over the vocabulary", "ends of blocks"
ATTENTION, GEMM, OTHER, PYTHON = "attention", "matrix products", "other operators", "Python, and what has no name"
# The first that is found in a name; names of GPU kernels after those of operators.
KINDS = (
    (ATTENTION, r"dilbert::attention|scaled_dot_product|flash|fmha|varlen"),
    (ROWS, rf"{ROWS}|row_kernel"),
    (ENDS, ENDS),
    (GEMM, r"aten::(addmm|mm|bmm|baddbmm)(_?$)|gemm|nvjet|cutlass|xmma"),
)


def breakdown(setting: Setting) -> Cells:
    """Milliseconds and share of each kind, in one step after others to warm up with."""
    data = sequences(setting.lengths, setting.batch, PAIRS[setting.pair].vocabulary)
    with names_for_native_code(), ours(setting) as ready:
        batches = ready.batches(data)
        for _ in range(3):
            through(setting, ready, batches)
        with profile(activities=activities(setting)) as profiler, record_function(STEP):
            through(setting, ready, batches)
    times = on_device(profiler.events()) if setting.device.type == "cuda" else on_host(profiler.events())
    total = sum(times.values())
    lines = [(kind, f"{time / 1e3:,.1f}", f"{time / total:.0%}") for kind, time in times.most_common()]
    return [("what", "ms", "share"), *lines, (f"a step of {tokens(data):,} tokens", f"{total / 1e3:,.1f}", "100%")]


def activities(setting: Setting) -> list[ProfilerActivity]:
    """Of the device, and of the host."""
    gpu = [ProfilerActivity.CUDA] if setting.device.type == "cuda" else []
    return [ProfilerActivity.CPU, *gpu]


@contextlib.contextmanager
def names_for_native_code() -> Iterator[None]:
    """Calls into C++ that are no operators of torch."""
    with contextlib.ExitStack() as patches:
        for module, function, name in (
            (distillation, "native_rows", ROWS), (distillation, "_accumulate", ROWS), (residual, "_call", ENDS),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(module, function, named(name, getattr(module, function))))
        yield


def named(name: str, function: Callable) -> Callable:
    """The function, seen by the profiler."""

    @functools.wraps(function)
    def recorded(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return function(*arguments, **options)

    return recorded


def on_host(events: Any) -> Counter[str]:
    """Microseconds of each kind: each operator's own time, given to its kind or to that of what called it."""
    times: Counter[str] = Counter()
    for event in events:
        chain = [event.name]
        caller = event.cpu_parent
        while caller:
            chain.append(caller.name)
            caller = caller.cpu_parent
        if chain[-1] == STEP:
            own = PYTHON if len(chain) == 1 else OTHER
            times[next((kind for name in reversed(chain) if (kind := kind_of(name))), own)] += event.self_cpu_time_total
    return times


def on_device(events: Any) -> Counter[str]:
    """Microseconds of each kind of kernel, and of waiting between them."""
    times: Counter[str] = Counter()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            times[kind_of(event.name) or OTHER] += event.self_device_time_total
    return times


def kind_of(name: str) -> str | None:
    """Of an operator or a kernel; None: nothing of its own."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), None)
