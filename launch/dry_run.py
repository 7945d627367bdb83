"""A rehearsal of a run: a few real steps, a measurement and a checkpoint that nothing is kept of, and what they and
formulas say of the whole."""

import math
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch import checkpoint, commit, costs, space
from launch.costs import Shape
from launch.distributed import World, by_main, gather, seed_dropout
from launch.errors import NonFiniteError, say
from launch.flags import Cadence
from launch.lines import bars
from launch.log import duration
from launch.monitor import peak_memory
from launch.plan_report import section, size
from launch.training import Part

FOLDER, REPORT = "dry-run", "report.txt"
STEPS = 3  # the first of them also builds what later ones find
_WIDTH, _HEIGHT = 70, 8  # of the plot; 80 columns with what stands before it
# Bytes on a CPU for code that is read when first used, prepared matrix products, and memory that was freed and is kept
# for later. Measured, for models of 1.5 to 40 million parameters: 0.06 GB after 3 steps, 0.15 after hundreds.
_LIBRARIES = 0.12e9


@dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
        seconds: of a step, without the first.
        measuring: seconds for the held-out data, once; 0 without any.
        saving: seconds of a checkpoint.
        tokens: real ones of a step, over all ranks.
        peak: bytes at most, on the rank that had most.
    """

    seconds: float
    measuring: float
    saving: float
    tokens: float
    peak: float


def rehearse(
    engine: Any, world: World, parts: Iterable[Sequence[tuple[Part, Any]]], seed: int,
    measure: Callable[[], object] | None, checkpoints: Path,
) -> Rehearsal:  # fmt: skip
    """Take the steps, measure and save once; all ranks call it. The checkpoint is removed.

    Raises:
        NonFiniteError: a loss is not finite.
        CheckpointError: nothing can be saved.
    """
    seconds, tokens = [], 0
    for step in parts:
        start = time.perf_counter()
        for part, batch in step:
            seed_dropout(seed, part.step, part.part)
            loss, _ = engine(batch.to(world.device))
            engine.backward(loss)
            engine.step()
            tokens += part.tokens
        if not math.isfinite(float(loss.detach())):
            raise NonFiniteError(f"the loss of the first steps is {float(loss.detach())}")
        seconds.append(time.perf_counter() - start)
    measuring = _seconds(measure) if measure else 0.0
    saving = _seconds(lambda: checkpoint.save(engine, checkpoints))
    by_main(lambda: shutil.rmtree(checkpoints))
    counts, peaks = zip(*gather((tokens, peak_memory(world.device))), strict=True)
    steps = len(seconds)
    usual = sum(seconds[1:] or seconds) / max(steps - 1, 1)
    return Rehearsal(usual, measuring, saving, sum(counts) / steps, max(peaks))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident(world: World) -> float:
    """Bytes that this process has: of the GPU's memory or, on a CPU, in all."""
    if world.device.type == "cuda":
        return float(torch.cuda.memory_allocated(world.device))
    with open("/proc/self/statm") as file:
        return float(int(file.read().split()[1]) * resource.getpagesize())


def steps_done(home: Path, fresh: bool) -> int:
    """Of the run that a start would go on with; all ranks call it.

    Args:
        home: the run's folder.
        fresh: it would begin anew.

    Raises:
        CheckpointError: there are checkpoints, but not one is whole.
    """
    found = None if fresh else by_main(lambda: checkpoint.newest(home / "checkpoints"))
    return found.step if found else 0


def learning_rates(engine: Any, steps: Iterable[int]) -> list[float]:
    """Of each of these steps, numbered from 0, as DeepSpeed's scheduler gives them."""
    scheduler = engine.lr_scheduler
    if scheduler is None or not hasattr(scheduler, "last_batch_iteration"):
        return [engine.get_lr()[0] for _ in steps]
    now, found = scheduler.last_batch_iteration, []
    for step in steps:
        scheduler.last_batch_iteration = max(0, step - 1)
        found.append(float(scheduler.get_lr()[0]))
    scheduler.last_batch_iteration = now
    return found


def curve(engine: Any, steps: int) -> tuple[list[float], float]:
    """Learning rates for a plot, evenly spaced from the first step to the last; and the highest, also between them."""
    places = _spread(range(steps), _WIDTH)
    rates = learning_rates(engine, places)
    best = rates.index(max(rates))
    near = range(places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)] + 1)
    return rates, max(learning_rates(engine, _spread(near, 2000)))


def _spread(steps: range, most: int) -> list[int]:
    """The first, the last, and evenly spaced ones between them."""
    count = min(len(steps), most)
    return [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]


def plot(values: Sequence[float], top: float, steps: int) -> str:
    """A curve in plain characters.

    Args:
        top: the value at the upper edge.
    """
    heights = [round(value / (top or 1.0) * (_HEIGHT * 8)) for value in values]
    rows, levels = [], f" {bars()}"
    for row in reversed(range(_HEIGHT)):
        cells = "".join(levels[min(max(height - 8 * row, 0), 8)] for height in heights)
        label = f"{top:.1e}" if row == _HEIGHT - 1 else "0" if row == 0 else ""
        rows.append(f"{label:>8} |{cells}")
    return "\n".join([*rows, f"{'step':>8}  1{steps:>{max(len(values) - 1, 1)},}"])


def memory(
    teacher: Shape | None, student: Shape, config: dict[str, Any], world: World, before: float, largest: int, chunk: int
) -> dict[str, float]:
    """Bytes of a rank by part, by formula. On a CPU, models, libraries and all else that the process had before the
    engine was made are one part, measured, and what libraries take when they work is another, a constant; memory that
    is set aside and never touched counts for nothing there.

    Args:
        before: what `resident` said then.
        largest: tokens of the largest micro-batch.
        chunk: rows of logits at once; 0: no losses over the vocabulary.
    """
    engine, count = costs.engine(config), costs.parameters(student)
    if world.device.type == "cpu":
        engine = replace(engine, bucket=min(engine.bucket, count), overlap=False)
    parts = costs.memory(teacher, student, engine, world.ranks, largest, chunk)
    if not chunk:
        del parts["logits"]
    if world.device.type == "cpu":
        parts = {"before the engine": before, **parts, "libraries at work": _LIBRARIES}
        del parts["teacher"], parts["student"]
    return parts


def beside(parts: dict[str, float], world: World) -> str:
    """The forecast, and what it came to."""
    peak = peak_memory(world.device)
    return f"memory of a rank: {size(peak)} at most, forecast {size(sum(parts.values()))}"


def report(
    rehearsal: Rehearsal, engine: Any, config: dict[str, Any], parts: dict[str, float], steps: int, todo: range,
    cadence: Cadence, checkpoints: int, folder: Path,
) -> Iterator[str]:  # fmt: skip
    """What there is to say, line by line.

    Args:
        parts: of the memory, bytes.
        steps: of the whole run.
        todo: those that a start would take, numbered from 0.
        checkpoints: most that will be on the disk at once.
        folder: where they will be.
    """
    batch, ranks = config["train_batch_size"], dist.get_world_size()
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    of_steps = f" x {accumulation} x {ranks}, on average of {min(steps, STEPS)} steps"
    trained = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    yield from section("batch", [
        ("sequences", f"{batch:,}", f"{micro} x {accumulation} accumulation x {ranks} rank(s)"),
        ("tokens", f"{rehearsal.tokens:,.0f}", f"{micro} x {rehearsal.tokens / batch:.1f} a sequence{of_steps}"),
        ("parameters", f"{trained:,}", "that are trained"),
    ])  # fmt: skip
    rates, top = curve(engine, steps)
    yield from ("", f"learning rate (at most {top:.3g})", plot(rates, top, steps))
    total = sum(parts.values())
    yield from section("memory of a rank", [
        *((name, size(bytes_), "") for name, bytes_ in parts.items() if bytes_),
        ("in all", size(total), f"measured: {size(rehearsal.peak)} at most, in {min(steps, STEPS)} steps"),
    ])  # fmt: skip
    one, free = space.forecast(engine), shutil.disk_usage(folder).free
    yield from section("disk", [
        ("checkpoint", size(one), ""),
        ("in all", size(checkpoints * one), f"{checkpoints} at once, of {size(free)} that are free"),
    ])  # fmt: skip
    measured, saved = (_due(todo, interval) for interval in (cadence.eval_interval, cadence.checkpoint_interval))
    seconds = len(todo) * rehearsal.seconds + measured * rehearsal.measuring + saved * rehearsal.saving
    rows = [("step", f"{rehearsal.seconds:.3f} s", f"{rehearsal.tokens / rehearsal.seconds:,.0f} tokens/s")]
    if rehearsal.measuring:
        rows.append(("held-out data", f"{rehearsal.measuring:.3f} s", _times(measured)))
    rows.append(("checkpoint", f"{rehearsal.saving:.3f} s", _times(saved)))
    done = f", after {todo.start:,} that are done" if todo.start else ""
    yield from section("time", [*rows, ("run", duration(seconds), f"{len(todo):,} steps{done}")])


def _due(todo: range, interval: int) -> int:
    """How often what is done each so many steps, and at the end, is done."""
    return todo.stop // interval - todo.start // interval + (len(todo) > 0 and todo.stop % interval > 0)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def show(folder: Path, home: Path, lines: Iterable[str], fresh: bool, todo: range) -> None:
    """In the folder, and on the console.

    Args:
        home: the folder of the run itself.
        fresh: a start moves the run that is there aside.
        todo: steps that a start would take, numbered from 0.
    """
    text = "\n".join(lines)
    commit.write_text(folder / REPORT, text + "\n")
    say(text)
    say("\nready.")
    if (home / "config.json").exists():
        after = f"goes on after {checkpoint.tag(todo.start)}" if todo else "has no step left to take"
        say(f"The run in {home} {'is moved aside' if fresh else after if todo.start else 'begins again'}.")
    say(f"{folder} has this, and what flags (config.json) and DeepSpeed JSON (ds_config.json) came to.")
