"""Steps whose gradient was not finite: they leave the weights alone, and are written down.

DeepSpeed skips such steps under ZeRO; at stage 0 (fp32) it does not, and is made to. In fp16 a gradient may overflow
because the loss scale is still too high: then the loss itself is finite, DeepSpeed lowers the scale, and all is well.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.errors import NonFiniteError, say

FILE = "skipped.jsonl"


class SkippedSteps:
    """Notices, classifies and counts them, alike on all ranks."""

    def __init__(self, engine: Any, folder: Path, most: int, sequences: Callable[[int], dict[str, list[int]]]) -> None:
        """
        Args:
            folder: of the run; rank 0 writes `skipped.jsonl` there.
            most: bad steps in a row after which the run ends.
            sequences: of a step of the data stream (from 0), as they are written down.
        """
        self.engine, self.path, self.most, self.sequences = engine, folder / FILE, most, sequences
        self.seen, self.in_a_row = engine.skipped_steps, 0
        if engine.zero_optimization_stage() == 0:
            _never_step_on_overflow(engine.optimizer)

    def after(self, loss: torch.Tensor) -> bool:
        """After each step; all ranks call it.

        Args:
            loss: this rank's share of the step's loss, on any device; looked at only if the step was skipped.

        Returns:
            Whether it was skipped.
        """
        if self.engine.skipped_steps == self.seen:
            self.in_a_row = 0
            return False
        self.seen = self.engine.skipped_steps
        total = loss.detach().double().clone()
        dist.all_reduce(total)
        scale = float(self.engine.optimizer.loss_scale) if self.engine.fp16_enabled() else None
        only_scale = scale is not None and math.isfinite(float(total))
        self.in_a_row = self.in_a_row if only_scale else self.in_a_row + 1
        self._write_down(float(total), scale, "the loss scale was too high" if only_scale else "not finite")
        return True

    @property
    def too_many(self) -> bool:
        """Whether so many in a row were bad that the run should end."""
        return self.in_a_row >= self.most

    def check(self) -> None:
        """
        Raises:
            NonFiniteError: too many bad steps in a row.
        """
        if self.too_many:
            raise NonFiniteError(
                f"step {self.engine.global_steps}: the loss or its gradient was not finite {self.in_a_row} times in a "
                f"row; the weights are those before. {self.path} names the sequences. A smaller learning rate, or "
                "other data? (--max-bad-steps)"
            )

    def _write_down(self, loss: float, scale: float | None, why: str) -> None:
        if dist.get_rank() == 0:
            step = self.engine.global_steps
            row = {"step": step, "why": why, "loss": loss if math.isfinite(loss) else str(loss), "loss_scale": scale}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row | self.sequences(step - 1)) + "\n")
            if why == "not finite":
                say(f"step {step}: skipped, the loss or its gradient is not finite; {self.path} names its sequences")


@contextmanager
def loss_scale_explained(engine: Any, save: Callable[[], None]) -> Iterator[None]:
    """DeepSpeed's word for a loss scale that can't be lowered any more, in other words.

    Args:
        save: called first; the weights are those of the last good step.

    Raises:
        NonFiniteError: in its place, on all ranks.
    """
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        save()
        raise NonFiniteError(
            f"step {engine.global_steps + 1}: the gradient overflows at the smallest loss scale (fp16.min_loss_scale): "
            "no scale helps, so it is not finite at all, or beyond fp16's 65,504. Try bf16, a smaller learning rate "
            "or gradient clipping"
        ) from error


def _never_step_on_overflow(optimizer: Any) -> None:
    """A plain torch optimizer, made to leave the weights alone while its `overflow` is true; DeepSpeed counts then."""
    step, optimizer.overflow = optimizer.step, False
    optimizer.step = lambda *arguments, **named: None if optimizer.overflow else step(*arguments, **named)
