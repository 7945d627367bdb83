"""What a run shows of itself: a console line, `log.jsonl` and TensorBoard, all with the same figures.

Sums stay on the device between two log lines; nothing waits for it but the log line itself.
"""

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from launch import commit
from launch.distributed import World
from launch.energy import KWH, Energy
from launch.errors import say
from launch.lines import wrapped
from launch.log import LOG, cut_log, duration, held_out, losses, read_log, totals
from launch.progress import bar

COLUMNS = 120
# Of figures that are not about learning: they have a page of their own in TensorBoard.
_OF_THE_MACHINE = ("tokens_per_second", "seconds_per_step", "filler", "uncompiled", "data_wait", "slowest", "memory",
                   "tflops", "mfu", "energy", "cost")  # fmt: skip
# TensorBoard's: what is learnt of the masked words, against guessing them by their frequencies.
_CHARTS = {"held out": {"loss_mlm and unigram_entropy": ["Multiline", ["valid/loss_mlm", "valid/unigram_entropy"]]}}
WORTH_A_WORD = 0.02  # share of the time spent waiting for data

T = TypeVar("T")


class Meter:
    """Sums of loss terms and tokens since the last reading, over this rank's micro-batches, on the device."""

    def __init__(
        self, names: Sequence[str], shown: Sequence[str], device: torch.device, energy: Energy | None = None
    ) -> None:
        """
        Args:
            names: of the loss terms, in their order.
            shown: those to report.
            energy: of this rank; None: it counts none.
        """
        self.names, self.shown, self.energy = names, shown, energy or Energy([])
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.pending = torch.zeros_like(self.sums)  # of the step that is under way
        self.counts = np.zeros(4)
        self.passes: list[tuple[Any, Any]] = []
        self.steps = self.counted = 0
        self.waited = 0.0
        self.since = time.perf_counter()

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until each is there counts as waiting for data."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - start
            yield item

    def add(self, terms: torch.Tensor, tokens: int, filler: int = 0, static: bool = True, flops: float = 0.0) -> None:
        """One micro-batch: its share of the step's losses, real tokens, filler, whether it was compiled, FLOPs."""
        self.pending += terms
        self.counts += (tokens, filler, not static, flops)

    def step(self, skipped: bool = False) -> None:
        """One optimizer step is done; the losses of a skipped one, which may be NaN, are left out of the means."""
        if not skipped:
            self.sums += self.pending
            self.counted += 1
        self.pending.zero_()
        self.steps += 1

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A forward pass: the part of a step in which no rank waits for another."""
        start, end = self._mark(), None
        yield
        end = self._mark()
        self.passes.append((start, end))

    def _mark(self) -> Any:
        if self.sums.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _forward_seconds(self) -> float:
        on_gpu = self.sums.device.type == "cuda"
        total = sum(a.elapsed_time(b) / 1000 if on_gpu else b - a for a, b in self.passes)
        self.passes.clear()
        return total

    def read(self) -> dict[str, float]:
        """Since the last reading: mean losses over all ranks, rates, step time, shares of filler and of waiting; since
        the start: the most memory that any rank has had, GB, and the energy of all, kWh, where there are counters."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        of_ranks = np.zeros((3, ranks))
        of_ranks[:, rank] = self._forward_seconds(), self.waited, peak_memory(self.sums.device)
        energy = self.energy.joules(), len(self.energy.counters)
        packed = torch.cat([self.sums, self.sums.new_tensor([*self.counts, *energy, *of_ranks.flatten()])])
        dist.all_reduce(packed)
        values = packed.tolist()  # waits for the device, which is done with all work now
        sums, counts = values[: len(self.names)], values[len(self.names) : -3 * ranks]
        tokens, filler, others, flops, joules, counters = counts
        forward, waited, memory = np.reshape(values[-3 * ranks :], (3, ranks)).tolist()
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        steps, counted = max(self.steps, 1), self.counted or math.nan
        figures = {name: value / counted for name, value in zip(self.names, sums, strict=True) if name in self.shown}
        figures["tokens_per_second"] = tokens / seconds
        figures["seconds_per_step"] = seconds / steps
        figures["filler"] = filler / max(tokens + filler, 1)
        figures["uncompiled"] = others
        figures |= _slowest(forward, waited, steps, seconds)
        figures |= {"memory_gb": max(memory) / 1e9, "tflops": flops / seconds / ranks / 1e12}
        figures |= {"energy_kwh": joules / KWH} if counters else {}
        self.sums.zero_()
        self.counts[:] = self.steps = self.counted = 0
        self.waited = 0.0
        self.since = now
        return figures

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time within is not training time."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start


def peak_memory(device: torch.device) -> float:
    """Bytes that this process has had at most: of the GPU's memory or, on a CPU, in all."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _slowest(forward: list[float], waited: list[float], steps: int, seconds: float) -> dict[str, float]:
    """The rank whose forward passes took longest, seconds of them a step, and shares of waiting for data."""
    slowest = max(range(len(forward)), key=forward.__getitem__)
    return {
        "data_wait": sum(waited) / len(waited) / seconds, "slowest_rank": slowest,
        "slowest_forward": forward[slowest] / steps, "slowest_data_wait": max(waited) / seconds,
    }  # fmt: skip


class GradientNorm:
    """L2 norm of a step's whole gradient, before clipping. Under ZeRO the engine keeps it; at stage 0 nobody does."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.own = engine, engine.zero_optimization_stage() == 0
        self.norm: torch.Tensor | None = None

    def before_step(self) -> None:
        """Between backward and step of each micro-batch. At stage 0 the optimizer hears if the norm is not finite."""
        if self.own and self.engine.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(gradients)
            self.engine.optimizer.overflow = not bool(self.norm.isfinite())

    def read(self) -> float:
        """After the step; infinite if it was skipped."""
        return float((self.norm if self.own else self.engine.get_global_grad_norm()) or 0.0)


def engine_figures(engine: Any, gradient: GradientNorm) -> dict[str, float]:
    """What the engine knows of its last step."""
    figures = {"grad_norm": gradient.read(), "skipped_steps": engine.skipped_steps}
    if engine.fp16_enabled():
        figures["loss_scale"] = float(engine.optimizer.loss_scale)
    return figures


class Monitor:
    """Writes the figures of a run; only rank 0 has files, every rank may call it."""

    def __init__(self, folder: Path, world: World, start: int, max_steps: int) -> None:
        """
        Args:
            start: step that the run goes on from; later lines of an earlier start are cut off.
        """
        self.folder, self.world, self.max_steps = folder, world, max_steps
        self.file: Any = None
        self.before: dict[str, float] = {}  # totals of earlier starts
        if world.is_main:
            cut_log(folder / LOG, start)
            self.before = totals(read_log(folder / LOG))
            self.file = open(folder / LOG, "a", encoding="utf-8")
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self.charts = False
        self.bar: tqdm | None = None
        if world.is_main and sys.stdout.isatty() and sys.stderr.isatty():
            self.bar = bar(max_steps, " steps", "training")
            self.bar.n = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.file:
            self.file.close()
            self.board.close()
        if self.bar is not None:
            self.bar.close()

    def say(self, text: str) -> None:
        """A sentence for the console, from rank 0."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.world.is_main:
            say(text)

    def tick(self) -> None:
        """A step is done: for the live bar, which only a terminal has."""
        if self.bar is not None:
            self.bar.update()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """One line of training figures, everywhere; to those of launch.log.TOTALS, earlier starts are added."""
        figures = figures | {name: figures[name] + more for name, more in self.before.items() if name in figures}
        self._record(step, figures, "train")
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {figures['loss']:.4g}", refresh=False)
        left = duration((self.max_steps - step) * figures["seconds_per_step"])
        self.say(console_line(f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}", figures, f"eta {left}"))

    def log_held_out(self, step: int, figures: dict[str, float]) -> None:
        """One line of held-out figures, everywhere."""
        self._record(step, {f"valid_{name}": value for name, value in figures.items()}, "valid")
        if self.file and not self.charts and "unigram_entropy" in figures:
            self.board.add_custom_scalars(_CHARTS)
            self.charts = True
        self.say("\n".join(wrapped(f"step {step} held out | {held_out(figures)}", COLUMNS)))

    def write(self, name: str, text: str, step: int) -> None:
        """A text in Markdown, for TensorBoard; the last one also as `NAME.md` in the run folder."""
        if self.file:
            self.board.add_text(name, text, step)
            commit.write_text(self.folder / f"{name}.md", f"After step {step}:\n\n{text}\n")

    def _record(self, step: int, figures: dict[str, float], group: str) -> None:
        if not self.file:
            return
        # JSON has no NaN; null is what readers of the log can parse.
        body = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.file.write(json.dumps({"step": step, **body}) + "\n")
        self.file.flush()
        for name, value in figures.items():
            tag = "machine" if name.startswith(_OF_THE_MACHINE) else group
            self.board.add_scalar(f"{tag}/{name.removeprefix('valid_')}", value, step)
        self.board.flush()


def console_line(step: str, figures: dict[str, float], eta: str) -> str:
    """Training figures in one line; what matters less is left out where there is no room for it."""
    rate = f"{figures['tokens_per_second']:,.0f} tok/s"
    more = [f"lr {figures['lr']:.3g}", f"grad {figures['grad_norm']:.3g}"]
    if "mfu" in figures:
        more.append(f"MFU {figures['mfu']:.0%}")
    if figures["data_wait"] > WORTH_A_WORD:
        more.insert(0, f"data wait {figures['data_wait']:.0%}")
    if "loss_scale" in figures:
        more.append(f"scale {figures['loss_scale']:.4g}")
    while len(line := " | ".join([step, losses(figures), *more, rate, eta])) > COLUMNS and more:
        more.pop()
    return line
