"""Flags that training scripts share: how long, how often, how it starts."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from launch.args import flag, require
from launch.stop import seconds


@dataclass(frozen=True)
class Length:
    """How long (give --max-steps or --epochs)."""

    max_steps: int | None = flag(None, "optimizer steps, those skipped for overflow included", "STEPS")
    epochs: float | None = flag(None, "passes over the dataset: ceil(epochs x sequences / batch) steps", "EPOCHS")
    warmup_steps: int | None = flag(None, "of the schedule (default: 5 % of the steps, at least 1)", "STEPS")
    stop_at_step: int | None = flag(None, "stop there, resumable, without touching the schedule", "STEP")

    def __post_init__(self) -> None:
        for name in ("max_steps", "epochs", "warmup_steps", "stop_at_step"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive")
        for name in ("max_steps", "epochs"):
            require((getattr(self, name) or 0) < 1 << 31, name, getattr(self, name), "must be less than 2^31")
        self._check_given()

    def _check_given(self) -> None:
        given = (self.max_steps is not None) + (self.epochs is not None)
        require(given == 1, "max_steps", self.max_steps, "give either --max-steps or --epochs")

    def steps(self, sequences: int | None, batch: int) -> int:
        """Steps of the whole run.

        Args:
            sequences: of an epoch; None where several corpora have one each.

        Raises:
            ConfigError: epochs of several corpora, or more steps than can be counted.
        """
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None
        rule = "several corpora with weights have no common epoch; give --max-steps"
        require(sequences is not None, "epochs", self.epochs, rule)
        assert sequences is not None
        steps = math.ceil(self.epochs * sequences / batch)
        require(steps < 1 << 31, "epochs", self.epochs, f"are {steps} steps; must be less than 2^31")
        return steps

    def warmup(self, steps: int) -> int:
        """Steps in which the learning rate rises."""
        warmup = self.warmup_steps or max(1, steps // 20)
        require(warmup <= steps, "warmup_steps", warmup, f"the whole run has {steps} steps")
        return warmup

    def last(self, steps: int, now: int) -> int:
        """The step after which this start ends.

        Args:
            steps: of the whole run.
            now: steps that are done already.

        Raises:
            ConfigError: that step is in the past.
        """
        last = min(steps, self.stop_at_step or steps)
        name = "stop_at_step" if last < steps else "max_steps" if self.max_steps else "epochs"
        require(last >= now, name, getattr(self, name), f"the run has done {now} steps already: give more, or --fresh")
        return last


@dataclass(frozen=True)
class TaskLength(Length):
    """How long."""

    epochs: float | None = flag(3.0, "passes over the training examples, unless --max-steps says how long", "EPOCHS")

    def _check_given(self) -> None:
        pass  # --max-steps counts


@dataclass(frozen=True)
class Speed:
    """How it computes."""

    compile: Literal["auto", "on", "off"] = flag(
        "auto", "torch.compile of both models, in few fixed shapes; auto: where attention takes them (16 bit, A100 on)"
    )
    token_block: int = flag(
        0, "compiled code gets micro-batches filled up to a multiple of it; 0: 1/32 of a micro-batch", "TOKENS"
    )
    attention_dropout: float | None = flag(
        None, "of the student's attention weights (default: what its config.json says)", "P"
    )
    teacher_fp8: float | None = flag(
        None, "compute the teacher's layers in FP8 (H100, L40 and later), unless that moves its distribution by more "
        "than this KL divergence, in nats a token, on the first step", "KL",
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self.token_block >= 0, "token_block", self.token_block, "must not be negative")
        dropout, fp8 = self.attention_dropout, self.teacher_fp8
        require(fp8 is None or fp8 > 0, "teacher_fp8", fp8, "must be positive: 0.01, say")
        require(dropout is None or 0 <= dropout < 1, "attention_dropout", dropout, "must be in [0, 1)")


@dataclass(frozen=True)
class Cadence:
    """How often."""

    log_interval: int = flag(10, "steps between log lines", "STEPS")
    checkpoint_interval: int = flag(1000, "steps between checkpoints; the last step always leaves one", "STEPS")
    eval_interval: int = flag(
        1000, "steps between measurements on held-out data; the last step is measured, too", "STEPS"
    )

    def __post_init__(self) -> None:
        for name in ("log_interval", "checkpoint_interval", "eval_interval"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")


@dataclass(frozen=True)
class Ends:
    """What ends it early, to be continued."""

    time_limit: str | None = flag(
        None,
        "save and stop before so long has passed: minutes, MM:SS, HH:MM:SS, D-HH:MM:SS (default: when SLURM ends)",
        "TIME",
    )
    max_bad_steps: int = flag(10, "steps in a row with a loss or gradient that is not finite; exit code 5", "STEPS")
    hang_timeout: float = flag(900.0, "without any progress on a rank: it is named, and the run ends", "SECONDS")

    def __post_init__(self) -> None:
        seconds(self.time_limit)
        require(self.max_bad_steps > 0, "max_bad_steps", self.max_bad_steps, "must be positive")
        require(self.hang_timeout >= 1, "hang_timeout", self.hang_timeout, "must be 1 at least")


@dataclass(frozen=True)
class Cost:
    """What it costs."""

    price_per_hour: float | None = flag(
        None, "of all machines of the job, in any currency: the log says what the run has cost until then", "PRICE"
    )

    def __post_init__(self) -> None:
        price = self.price_per_hour
        require(price is None or 0 < price < math.inf, "price_per_hour", price, "must be positive")

    def after(self, seconds: float) -> dict[str, float]:
        """The figure for the log, so long after the start; none without a price."""
        return {} if self.price_per_hour is None else {"cost": self.price_per_hour * seconds / 3600}


# Flags of the original, and of Hugging Face's trainer, that the DeepSpeed JSON has under names of its own.
_IN_JSON = {
    "learning-rate": "optimizer.params.lr", "lr": "optimizer.params.lr", "adam-epsilon": "optimizer.params.eps",
    "weight-decay": "optimizer.params.weight_decay", "max-grad-norm": "gradient_clipping",
    "gradient-accumulation-steps": "gradient_accumulation_steps", "batch-size": "train_batch_size",
    "train-batch-size": "train_batch_size", "per-gpu-train-batch-size": "train_micro_batch_size_per_gpu",
    "per-device-train-batch-size": "train_micro_batch_size_per_gpu", "fp16": "fp16.enabled", "bf16": "bf16.enabled",
    "fp16-opt-level": "fp16.enabled", "zero-stage": "zero_optimization.stage",
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """How it starts."""

    MOVED: ClassVar = {f"--{name}": f"stands in the DeepSpeed JSON: {key}" for name, key in _IN_JSON.items()}

    seed: int = flag(0, "of order, masks, dropout and random weights", "NUMBER")
    fresh: bool = flag(False, "move an earlier run in --output aside and start over")
    dry_run: bool = flag(
        False, "check all, verify the data, take a few real steps, and say what the run will take of memory, disk and "
        "time; writes to OUTPUT/dry-run only",
    )  # fmt: skip
    allow_change: tuple[str, ...] = flag((), "flags or JSON keys that may differ from the run's record", "KEY")
    ranks: int | None = flag(None, "refuse to start on any other number of ranks", "RANKS")
    local_rank: int = flag(-1, "taken from launchers and passed over: the environment's LOCAL_RANK counts", "RANK")
    deepspeed: bool = flag(True, "taken from other scripts and passed over: DeepSpeed is always the engine")


# Flags that say where and how often, not what: a resume may change them.
FREE = frozenset({
    "max_steps", "epochs", "stop_at_step", "log_interval", "checkpoint_interval", "eval_interval", "fresh",
    "allow_change", "local_rank", "deepspeed", "deepspeed_config", "data", "valid_data", "teacher", "student", "output",
    "compile", "token_block", "keep_last", "keep_every", "ranks", "time_limit", "max_bad_steps", "hang_timeout",
    "dry_run", "eval_only", "predict", "onnx", "test", "seeds", "eval_batch", "price_per_hour",
})  # fmt: skip
