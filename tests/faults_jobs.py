"""The small runs that `tests.faults` disturbs, the same ones undisturbed, and whether two are equal bit for bit."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import sentence, write_vocabulary
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from data.binarize import Files, binarize
from data.manifest import CleaningRules
from launch import checkpoint, restore
from launch.checkpoint import Checkpoint
from launch.log import LOG, read_log

STEPS, INTERVAL = 60, 2  # steps of a run, and between its checkpoints
# What begins so in the log is about time and the machine.
CHANGING = ("seconds", "tokens_per_second", "slowest", "data_wait", "memory", "tflops", "mfu", "energy", "cost")


@dataclass(frozen=True)
class Setting:
    """How a run computes; bf16 accumulates gradients in fp32."""

    stage: int
    ranks: int
    precision: str

    def __str__(self) -> str:
        return f"ZeRO {self.stage}, {self.ranks} rank{'s' * (self.ranks > 1)}, {self.precision}"


SETTINGS = tuple(Setting(s, ranks, precision) for s in (1, 2) for ranks in (1, 2) for precision in ("fp32", "bf16"))


@dataclass
class Workshop:
    """A dataset, two models, and the runs made of them, in one folder.

    Attributes:
        steps: of each run.
    """

    folder: Path
    steps: int = STEPS
    models: tuple[Path, Path] = field(init=False)
    _undisturbed: dict[Setting, Path] = field(init=False, default_factory=dict)
    _count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        generator = random.Random(0)
        lines = [f"{sentence(generator, generator.randint(10, 60))} .\n" for _ in range(120)]
        (self.folder / "text").write_text("".join(lines))
        tokenizer = write_vocabulary(self.folder / "tokenizer")
        binarize(Files((str(self.folder / "text"),), str(tokenizer), self.folder / "data", 1), CleaningRules())
        self.models = make_models(self.folder)

    def new(self, name: str) -> Path:
        """A folder that is not there yet."""
        self._count += 1
        return self.folder / f"{name}{self._count}"

    def words(self, setting: Setting, run: Path, *more: str) -> list[str]:
        """Arguments of `train_dilbert.py`, for a checkpoint every other step."""
        config = self.folder / f"{setting.stage}{setting.precision}.json"
        accumulate = {"data_types": {"grad_accum_dtype": "fp32"}} if setting.precision == "bf16" else {}
        config_file(config, setting.stage, batch=8, precision=setting.precision, **accumulate)
        common = ("--max-steps", str(self.steps), "--checkpoint-interval", str(INTERVAL))
        return flags(config, self.folder / "data", self.models, run, *common, *more)

    def start(
        self, setting: Setting, run: Path, *more: str, patch: Callable[[], None] | None = None
    ) -> list[tuple[int, str]]:
        """Train in that run's folder; exit code and output of each rank."""
        return run_ranks(setting.ranks, train, self.words(setting, run, "--keep-last", "2", *more), patch)

    def undisturbed(self, setting: Setting) -> Path:
        """A run that nothing happened to, with all its checkpoints."""
        if setting not in self._undisturbed:
            run = self.new("undisturbed")
            ended = self.start(setting, run, "--keep-every", str(INTERVAL))
            assert [code for code, _ in ended] == [0] * setting.ranks, ended
            assert len(checkpoint.committed(run / "checkpoints")) == self.steps // INTERVAL
            self._undisturbed[setting] = run
        return self._undisturbed[setting]

    def is_exact(self, setting: Setting, found: Checkpoint | None) -> bool:
        """Whether a checkpoint, if there is one, holds bit for bit what the undisturbed run's of its step does."""
        if found is None:
            return True
        right = checkpoint.verify(self.undisturbed(setting) / "checkpoints" / checkpoint.tag(found.step))
        return same(state(found), state(right))

    def is_done_exactly(self, setting: Setting, run: Path) -> bool:
        """Whether a run has ended with the undisturbed one's weights, and has its log, line for line."""
        found = checkpoint.newest(run / "checkpoints", lambda _: None)
        done = (run / "DONE.json").exists() and found is not None and found.step == self.steps
        return done and self.is_exact(setting, found) and log(run) == log(self.undisturbed(setting))


def state(found: Checkpoint) -> dict[str, Any]:
    """All that a run goes on from."""
    content = restore.Content(found)
    counters = ("global_steps", "global_samples", "skipped_steps", "lr_scheduler")
    return {
        "weights": content.weights, "optimizer": content.optimizer, "rates": content.rates,
        "loss scale": {key: str(value) for key, value in content.common.items()},
        **{name: content.model_states[name] for name in counters},
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Bit for bit, tensors in dictionaries and lists included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without times."""
    rows = read_log(run / LOG)
    return [{name: value for name, value in row.items() if not name.startswith(CHANGING)} for row in rows]


def last_step(run: Path) -> int:
    """Of the newest checkpoint; 0 where there is none.

    Raises:
        CheckpointError: there is one that does not verify: nothing but whole ones may ever have a checkpoint's name.
    """
    whole = [checkpoint.verify(path) for path in checkpoint.committed(run / "checkpoints")]
    return whole[-1].step if whole else 0
