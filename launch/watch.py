"""How is a run doing? Follow it from any machine that sees its folder; nothing is written, and the run is not asked.

    python -m launch.watch runs/first            until it ends; Ctrl-C ends the watching, not the run
    python -m launch.watch runs/first --once     one look; the exit code says how it is

Exit codes: 0 done, or training; 6 no sign of life, 75 stopped; failed: that of the run, which FAILED.json tells.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import beats
from launch.args import flag, parse, positional, require
from launch.beats import Beat
from launch.errors import ConfigError, HungError, Stopped, did_you_mean_path, run, say
from launch.lines import bars, width, wrapped
from launch.log import LOG, duration, held_out, losses, read_log

_SILENT = 60.0  # seconds; a rank gives a sign of life every 10
_SLOW = 0.1  # share of the time spent waiting for data
_NEWEST = 3  # skipped steps that are shown
SKIPPED = "skipped.jsonl"  # launch.skipped's; importing that would import torch


@dataclass(frozen=True)
class Arguments:
    """What is watched."""

    run: Path = positional("run folder", "RUN")
    interval: float = flag(5.0, "between two looks", "SECONDS")
    once: bool = flag(
        False, "look once; exit codes: 0 done, or training; 6 no sign of life; 75 stopped; failed: that of the run"
    )

    def __post_init__(self) -> None:
        require(self.interval > 0, "interval", self.interval, "must be positive")


@dataclass(frozen=True)
class View:
    """What a run folder says at a moment.

    Attributes:
        rows: of the log.
        ranks: last signs of life, and seconds since then.
        stopped, failed: STOPPED.json, FAILED.json; None: not there.
    """

    folder: Path
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    ranks: list[tuple[Beat, float]]
    done: bool
    stopped: dict[str, Any] | None
    failed: dict[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> "View":
        """
        Raises:
            ConfigError: it is no run folder.
        """
        if not (folder / "config.json").exists():
            near = runs_in(folder) or "a run that starts has one after its first minute"
            raise ConfigError(f"{folder}: no run (it has no config.json){did_you_mean_path(folder)}; {near}")
        environment = _read(folder / "environment.json") or {}
        ranks = []
        for beat in beats.read(folder / beats.FOLDER, environment.get("ranks", 1)):
            at = beats.path(folder / beats.FOLDER, beat.rank).stat().st_mtime
            ranks.append((beat, max(0.0, time.time() - at)))
        done, stopped, failed = (_read(folder / name) for name in ("DONE.json", "STOPPED.json", beats.FAILED))
        return cls(folder, environment, read_log(folder / LOG), ranks, done is not None, stopped, failed)

    @property
    def steps(self) -> int | None:
        """Of the whole run."""
        return self.environment.get("steps")

    @property
    def step(self) -> int:
        """The last that is known to be done."""
        return max([beat.step for beat, _ in self.ranks] + [row["step"] for row in self.rows[-1:]], default=0)

    @property
    def ended(self) -> bool:
        """Done, stopped, or failed."""
        return self.done or self.stopped is not None or self.failed is not None

    @property
    def silent(self) -> list[tuple[Beat, float]]:
        """Ranks without a sign of life."""
        return [(beat, age) for beat, age in self.ranks if age > _SILENT]

    @property
    def why(self) -> list[str]:
        """It failed, line by line, and on which rank; a stack may follow the first."""
        if self.failed is None:
            return []
        first, *more = str(self.failed.get("message") or "no reason given").splitlines()
        rank = self.failed.get("rank")
        return [f"[rank {rank}] {first}" if rank else first, *more]

    def last(self, name: str) -> dict[str, Any]:
        """The last line of the log that has a figure of this name."""
        return next((row for row in reversed(self.rows) if name in row), {})

    def state(self) -> tuple[int, str]:
        """Exit code, and a sentence."""
        of = f" of {self.steps:,}" if self.steps else ""
        if self.done:
            return 0, f"done: {self.step:,} steps"
        if self.stopped is not None:
            why = self.stopped.get("why", "on request")
            return Stopped.exit_code, beats.stopped(f"step {self.step:,}{of}", why)
        if self.failed is not None:
            code, (message, *_) = self.failed.get("code"), self.why
            return code if isinstance(code, int) and code else 1, f"failed after step {self.step:,}{of}: {message}"
        if not self.ranks or len(self.silent) == len(self.ranks):
            age = f" for {duration(min(age for _, age in self.ranks))}" if self.ranks else " yet"
            return HungError.exit_code, f"no sign of life{age}, after step {self.step:,}{of}"
        seconds = self.last("seconds_per_step").get("seconds_per_step")
        left = f", {duration((self.steps - self.step) * seconds)} left" if self.steps and seconds else ""
        share = f" ({self.step / self.steps:.1%})" if self.steps else ""
        return 0, f"step {self.step:,}{of}{share}{left}"

    def lines(self) -> Iterator[str]:
        """All that there is to see."""
        yield f"{self.folder}: {self.state()[1]}"
        yield from (f"    {line}" for line in self.why[1:])
        if row := self.last("seconds_per_step"):
            curve = [past["loss"] for past in self.rows if past.get("loss") is not None]
            yield f"  step {row['step']:,} | {figures(row)}"
            yield f"  loss {sparkline(curve)}  from {curve[0]:.4f} to {curve[-1]:.4f}" if curve else ""
        if row := next((row for row in reversed(self.rows) if any(name.startswith("valid_") for name in row)), {}):
            measured = {name.removeprefix("valid_"): value for name, value in row.items() if name != "step"}
            yield f"  step {row['step']:,} held out | {held_out(measured)}"
        if saved := sorted((self.folder / "checkpoints").glob("step*")):
            newest = duration(time.time() - saved[-1].stat().st_mtime)
            yield f"  checkpoints: {', '.join(path.name for path in saved)}; the newest {newest} ago"
        for beat, age in self.ranks if not self.ended else []:
            health = f"no sign of life for {duration(age)}, was" if age > _SILENT else "is"
            yield f"  rank {beat.rank} on {beat.host}: {health} at step {beat.step:,}, {beat.phase}"
        yield from (f"  warning: {text}" for text in self.warnings())

    def warnings(self) -> Iterator[str]:
        """What went wrong, the last things."""
        for row in read_log(self.folder / SKIPPED)[-_NEWEST:]:
            yield f"step {row['step']:,} was skipped: {row.get('why')}"
        for path in sorted((self.folder / "checkpoints").glob("damaged-*")):
            yield f"{path.name}: a checkpoint that was found damaged"
        if (waits := self.last("data_wait").get("data_wait", 0.0)) > _SLOW:
            yield f"{waits:.0%} of the time is spent waiting for data"


def runs_in(folder: Path) -> str:
    """Advice to give the runs of a folder of seeds; empty where it holds none."""
    seeds = " ".join(str(path) for path in sorted(folder.glob("seed-*")))
    return f"give its runs: {seeds}" if seeds else ""


def shown(view: View) -> str:
    """All of it, as wide as the terminal: 80 to 120 characters a line."""
    return "\n".join(piece for line in view.lines() for piece in wrapped(line, width()))


def figures(row: dict[str, Any]) -> str:
    """A line of training in short."""
    return " | ".join([losses(row), f"lr {row['lr']:.2e}", f"{row['tokens_per_second']:,.0f} tok/s",
                       f"data wait {row['data_wait']:.1%}"])  # fmt: skip


def sparkline(values: list[float], width: int = 40) -> str:
    """Values as bars of different height, those of each of `width` parts averaged."""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    low, high = min(means), max(means)
    heights = bars()
    return "".join(heights[round((value - low) / ((high - low) or 1.0) * (len(heights) - 1))] for value in means)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file of the folder; None where there is none yet."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def follow(arguments: Arguments) -> int:
    """Look until it has ended; on a terminal each look takes the place of the one before, elsewhere a line is added
    whenever there is something new.

    Returns:
        the exit code.
    """
    live, before = sys.stdout.isatty() and not arguments.once, ""
    while True:
        view = View.of(arguments.run)
        code, sentence = view.state()
        if live:
            say("\x1b[H\x1b[2J" + shown(view))
        elif arguments.once or view.ended:
            say(shown(view))
        elif sentence != before:
            say(sentence)
        if arguments.once or view.ended:
            return code
        before = sentence
        time.sleep(arguments.interval)


def main() -> None:
    """Command line."""
    (arguments,) = parse("How is a run doing?", Arguments, prog="launch.watch")
    try:
        code = follow(arguments)
    except KeyboardInterrupt:
        return
    sys.exit(code)


if __name__ == "__main__":
    run(main)
