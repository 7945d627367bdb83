"""What DeepSpeed's engine costs: whole steps with optimizer, by ZeRO stage 1 and 2 and by the few lines they replace.

All three compute the same: accumulation in fp32, the gradient's norm clipped, torch's fused AdamW on fp32 weights. They
take turns in one process of one rank, on the same micro-batches.
"""

import contextlib
import io
import json
import logging
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launch import distributed  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import torch
from torch import Tensor

from data.batching import MicroBatch
from launch import ds_config
from launch.progress import bar
from model.distiller import Batch, Distiller, parameter_groups
from tests.bench import step_models
from tests.bench.step_data import dealt, one_step, packed, sequences, tokens
from tests.bench.step_measure import Clock
from tests.bench.step_models import DTYPES, PAIRS
from tests.bench.step_table import Cells
from tests.bench.step_variants import OBJECTIVE, Setting, compile_if_worth_it

CONFIGS = Path(__file__).parents[2] / "ds_configs"
STAGES, STEPS, ACCUMULATION = (1, 2), 10, 2
TOKENS = {"cuda": 65_536, "cpu": 8192}  # of a step, about


@dataclass(frozen=True)
class Step:
    """Time of all forward and backward passes, and of the optimizer."""

    passes: Clock
    update: Clock


class Contestant(Protocol):
    """Takes micro-batches for a step, and makes it."""

    def accumulate(self, batch: Batch, last: bool) -> None:
        """Forward and backward pass."""

    def update(self) -> None:
        """The optimizer's step."""


def compare(setting: Setting) -> Cells:
    """Milliseconds of a step and of its two phases, how much longer than without the engine, and how far the weights
    are from those without it at the end: medians."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    world = distributed.start()
    parts = micro_batches(setting)
    distillers = [distiller(setting) for _ in (None, *STAGES)]
    contestants: dict[str, Contestant] = {"no engine": Bare(distillers[0], config(setting, STAGES[0]))}
    for stage, module in zip(STAGES, distillers[1:], strict=True):
        contestants[f"DeepSpeed, ZeRO-{stage}"] = Engine(module, config(setting, stage))
    shapes = [compile_if_worth_it(module, [(p.tokens, len(p.cu_seqlens) - 1) for p in parts]) for module in distillers]
    batches = [Batch.of(shapes[0].fill(part) if shapes[0] else part, world.device) for part in parts]
    times = in_turn(contestants, batches, world.device, 2 if setting.quick else STEPS)
    distributed.stop()
    weights = [module.student.embeddings.word.weight.detach().float() for module in distillers]
    apart = [float((each - weights[0]).norm() / weights[0].norm()) for each in weights]
    return table(times, apart, parts[0].step_tokens)


def micro_batches(setting: Setting) -> list[MicroBatch]:
    """Of one step."""
    data = sequences(setting.lengths, 4096, PAIRS[setting.pair].vocabulary)
    size = max(1, round(TOKENS[setting.device.type] / (tokens(data) / len(data)) / ACCUMULATION))
    return one_step([packed(batch) for batch in dealt(data[: size * ACCUMULATION], size)])


def distiller(setting: Setting) -> Distiller:
    """As in training."""
    models = step_models.ours(PAIRS[setting.pair], DTYPES[setting.dtype], setting.device)
    return Distiller(*models, OBJECTIVE, parts=ACCUMULATION)


def config(setting: Setting, stage: int) -> dict[str, Any]:
    """The project's own for this stage, in the setting's dtype, for two micro-batches; the learning rate stays."""
    raw = json.loads((CONFIGS / f"zero{stage}_bf16.json").read_text())
    raw |= {"train_batch_size": ACCUMULATION, "train_micro_batch_size_per_gpu": 1}
    for key in ("scheduler", *(("bf16", "data_types") if setting.dtype == "fp32" else ())):
        del raw[key]
    return ds_config.resolve(raw, ranks=1, max_steps=1, warmup_steps=1)


class Engine:
    """DeepSpeed."""

    def __init__(self, distiller: Distiller, config: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it says how much memory there is
            self.engine = distributed.initialise(distiller, parameter_groups(distiller), config)

    def accumulate(self, batch: Batch, last: bool) -> None:
        """Between micro-batches `engine.step` only counts."""
        self.engine.backward(self.engine(batch)[0])
        if not last:
            self.engine.step()

    def update(self) -> None:
        """Clips, updates, moves the learning rate."""
        self.engine.step()


class Bare:
    """By hand, with as few operations as it takes."""

    def __init__(self, distiller: Distiller, config: dict[str, Any]) -> None:
        self.distiller, self.clipping = distiller, config["gradient_clipping"]
        groups = parameter_groups(distiller)
        self.weights: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self.masters = [weight.detach().float() for weight in self.weights]  # fp32: the weights themselves
        self.mixed = self.masters[0].dtype != self.weights[0].dtype
        masters = iter(self.masters if self.mixed else self.weights)
        for group in groups:
            group["params"] = [next(masters).requires_grad_() for _ in group["params"]]
        options = {k: v for k, v in config["optimizer"]["params"].items() if k != "torch_adam"}
        self.optimizer = torch.optim.AdamW(groups, **options)

    def accumulate(self, batch: Batch, last: bool) -> None:
        """In fp32."""
        loss = self.distiller(batch)[0] / ACCUMULATION
        loss.backward()
        if not self.mixed:
            return
        sums, gradients = ([x.grad for x in xs if x.grad is not None] for xs in (self.masters, self.weights))
        if sums:
            torch._foreach_add_(sums, gradients)
        else:
            for master, gradient in zip(self.masters, gradients, strict=True):
                master.grad = gradient.float()
        for weight in self.weights:
            weight.grad = None

    def update(self) -> None:
        """Clip, update, and round to the weights."""
        parameters = self.masters if self.mixed else self.weights
        torch.nn.utils.clip_grad_norm_(parameters, self.clipping)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.mixed:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)


def in_turn(
    contestants: dict[str, Contestant], batches: Sequence[Batch], device: torch.device, steps: int
) -> dict[str, list[Step]]:
    """Times of each one's steps, after two to warm up with."""
    times: dict[str, list[Step]] = {name: [] for name in contestants}
    with bar((2 + steps) * len(contestants), " steps", "measuring") as progress:
        for number in range(2 + steps):
            for name, contestant in contestants.items():
                taken = one(contestant, batches, device, number)
                times[name] += [taken] if number > 1 else []
                progress.update()
    return times


def one(contestant: Contestant, batches: Sequence[Batch], device: torch.device, number: int) -> Step:
    """Time of a step."""
    start = Clock.now(device)
    for part, batch in enumerate(batches):
        distributed.seed_dropout(0, number, part)
        contestant.accumulate(batch.to(device), part == len(batches) - 1)
    between = Clock.now(device)
    contestant.update()
    return Step(between - start, Clock.now(device) - between)


def table(times: dict[str, list[Step]], apart: Sequence[float], count: int) -> Cells:
    """Medians; the first is what the others are compared with."""
    first = middle(next(iter(times.values())))
    lines = []
    for (name, steps), difference in zip(times.items(), apart, strict=True):
        row = middle(steps)
        longer = (f"{row[key] / first[key] - 1:+.1%}" for key in ("wall", "cpu"))
        numbers = (f"{row[key] * 1e3:,.1f}" for key in ("wall", "passes", "update", "cpu"))
        wall, passes, update, cpu = numbers
        lines.append((name, wall, next(longer), passes, update, cpu, next(longer), f"{difference:.1e}"))
    head = (f"{count:,} tokens a step", "ms", "longer", "passes", "update", "CPU time", "longer", "weights apart")
    return [head, *lines]


def middle(steps: Sequence[Step]) -> dict[str, float]:
    """Medians in seconds."""
    parts = {
        "wall": [step.passes.wall + step.update.wall for step in steps],
        "cpu": [step.passes.own + step.update.own for step in steps],
        "passes": [step.passes.wall for step in steps], "update": [step.update.wall for step in steps],
    }  # fmt: skip
    return {name: statistics.median(values) for name, values in parts.items()}
