"""The loop of a training script: steps of the engine, and all that a run does beside them.

Log lines, held-out figures, checkpoints, skipped steps, signs of life, and every way to end before the last step.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from launch import beats, checkpoint, retention, scaling
from launch.distributed import World, seed_dropout
from launch.energy import Energy, counters
from launch.errors import Stopped
from launch.flags import Cadence, Cost, Ends
from launch.heartbeat import Heartbeat
from launch.monitor import GradientNorm, Meter, Monitor, engine_figures
from launch.retention import Retention
from launch.run_folder import RunFolder
from launch.skipped import SkippedSteps, loss_scale_explained
from launch.stop import StopSigns, Votes


class Part(Protocol):
    """What the loop knows of a micro-batch on the host: see `data.batching.MicroBatch`."""

    @property
    def step(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def filler(self) -> int: ...
    @property
    def static(self) -> bool: ...


@dataclass(frozen=True)
class Course:
    """What a script trains, and on what.

    Attributes:
        parts: for each step of this start, this rank's micro-batches: on the host, and their tensors (anything with
            `to(device)`).
        terms: names of the losses that the engine's module returns beside the loss.
        shown: those of them that are logged.
        numbers: a step (from 0) -> its sequences, as they are written down if the step is skipped.
        progress: steps done -> figures for the log, such as epochs.
        flops: of a micro-batch's real tokens, by formula (launch.costs).
        measure: held-out figures; None: there are none.
    """

    parts: Iterable[Sequence[tuple[Part, Any]]]
    terms: Sequence[str]
    shown: Sequence[str]
    numbers: Callable[[int], dict[str, list[int]]]
    progress: Callable[[int], dict[str, float]]
    flops: Callable[[Any], float]
    measure: Callable[[], dict[str, float]] | None = None


class Training:
    """A run from its engine to its end; a context manager."""

    def __init__(
        self, engine: Any, folder: RunFolder, world: World, signs: StopSigns, steps: int, last: int, seed: int,
        cadence: Cadence, keep: Retention, ends: Ends, cost: Cost,
    ) -> None:  # fmt: skip
        """
        Args:
            signs: that make it stop; they may outlive it.
            steps: of the whole run.
            last: step after which this start ends.
            seed: of dropout.
        """
        self.engine, self.folder, self.world = engine, folder, world
        self.steps, self.last, self.seed = steps, last, seed
        self.signs, self.cadence, self.keep, self.ends, self.cost = signs, cadence, keep, ends, cost
        self.begun, self.energy = time.perf_counter(), Energy(counters(world))
        self.heart = Heartbeat(folder.path, world, ends.hang_timeout, engine.global_steps)
        self.monitor = Monitor(folder.path, world, engine.global_steps, steps)
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.stack.enter_context(self.monitor)
        self.stack.enter_context(self.heart)
        self.stack.enter_context(self.energy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)
        if isinstance(error, Exception) and not isinstance(error, Stopped):
            beats.failed(self.folder.path, self.world.rank, self.engine.global_steps, error)

    @property
    def todo(self) -> range:
        """Steps of this start, from 0."""
        return range(self.engine.global_steps, self.last)

    def say(self, text: str) -> None:
        """A sentence for the console, from rank 0."""
        self.monitor.say(text)

    def run(self, course: Course) -> None:
        """All steps of this start.

        Raises:
            Stopped: at `--stop-at-step`, or by a stop sign (launch.stop); STOPPED.json is written.
            NonFiniteError: too many bad steps in a row, or a loss scale that can't be lowered.
        """
        engine, heart, monitor, cadence = self.engine, self.heart, self.monitor, self.cadence
        meter = Meter(course.terms, course.shown, self.world.device, self.energy)
        gradient = GradientNorm(engine)
        skipped = SkippedSteps(engine, self.folder.path, self.ends.max_bad_steps, course.numbers)
        votes, stop = Votes(), None

        def save() -> None:
            with heart.during("saving"), meter.paused(), self.signs.saving():
                checkpoint.save(engine, self.folder.checkpoints)
                if self.world.is_main:
                    retention.prune(self.folder.checkpoints, self.keep)

        for parts in meter.waiting(course.parts):
            rate = engine.get_lr()[0]
            for part, batch in parts:
                seed_dropout(self.seed, part.step, part.part)
                with heart.during("forward"), meter.forward():
                    loss, terms = engine(batch.to(self.world.device))
                with heart.during("backward"):
                    engine.backward(loss)
                    gradient.before_step()
                with heart.during("step"), loss_scale_explained(engine, save):
                    engine.step()
                static = part.static or not engine.is_compiled
                meter.add(terms, part.tokens, part.filler, static, course.flops(part))
            meter.step(skipped.after(meter.pending[0]))
            step = heart.step = engine.global_steps
            monitor.tick()
            stop = votes.cast(self.signs.reason())
            end = step == self.last or bool(stop) or skipped.too_many
            if end or step % cadence.log_interval == 0:
                progress = {"lr": rate, **course.progress(step), **engine_figures(engine, gradient)}
                monitor.log(step, {**self._measured(meter), **progress})
            if course.measure and (step % cadence.eval_interval == 0 or step == self.last):
                with meter.paused():
                    monitor.log_held_out(step, course.measure())
            if end or step % cadence.checkpoint_interval == 0:
                save()
            if end:
                break
        skipped.check()
        if engine.global_steps < self.steps:
            self._stopped(stop or beats.STOP_AT_STEP)

    def _measured(self, meter: Meter) -> dict[str, float]:
        """What the meter says, and what follows from it and from the time."""
        figures = meter.read()
        return {**figures, **self._mfu(figures["tflops"]), **self.cost.after(time.perf_counter() - self.begun)}

    def _mfu(self, tflops: float) -> dict[str, float]:
        """The share that a rank's rate is of the data sheet's, for 16 bit on a GPU that is known."""
        peak = scaling.peak_tflops(torch.cuda.get_device_name()) if self.world.device.type == "cuda" else None
        return {"mfu": tflops / peak} if peak else {}

    def _stopped(self, why: str) -> None:
        step = self.engine.global_steps
        self.folder.end("STOPPED.json", {"code": Stopped.exit_code, "step": step, "why": why}, self.world)
        raise Stopped(beats.stopped(f"step {step} of {self.steps}", why))

    def done(self, then: str) -> None:
        """All is done, and on the disk: DONE.json.

        Args:
            then: what a user does next.
        """
        self.folder.end("DONE.json", {"step": self.steps}, self.world)
        self.say(f"done: {self.steps} steps. {then}")
