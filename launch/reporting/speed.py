"""Latency and throughput of models side by side on this machine.

All of them take their turn in each round, A B C D A B C D, so that a machine that gets slower slows all down alike;
figures are medians over the rounds, ratios those of the same round.

B sequences, L the longest, T real tokens.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor

from launch.progress import bar
from launch.run_folder import device_name

Go = Callable[["Sample"], object]
Name = tuple[str, str]  # form, such as "padded", and role: "teacher" or "student"


@dataclass(frozen=True)
class Sample:
    """The same sequences, padded and packed.

    Attributes:
        ids_BL, mask_BL: int64; 1 for real tokens in the mask.
        ids_T, positions_T: int64.
        cu_seqlens: int32 [B + 1], where sequences end, 0 first.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    ids_T: Tensor
    positions_T: Tensor
    cu_seqlens: Tensor

    @classmethod
    def random(cls, batch: int, length: int, vocabulary: int, device: torch.device) -> Self:
        """Random ids, always the same; lengths go evenly down from `length` to half of it."""
        lengths = torch.linspace(length, (length + 1) // 2, batch).round().long()
        ids_BL = torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))
        positions_BL = torch.arange(length).expand(batch, length)
        real_BL = positions_BL < lengths[:, None]
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
        tensors = (ids_BL * real_BL, real_BL.long(), ids_BL[real_BL], positions_BL[real_BL], ends)
        return cls(*(tensor.to(device) for tensor in tensors))

    @property
    def tokens(self) -> int:
        """Real ones."""
        return self.ids_T.numel()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.ids_BL.shape[1]


def measure(
    models: Mapping[Name, Go], shapes: Sequence[tuple[int, int]], rounds: int, vocabulary: int, device: torch.device
) -> list[dict[str, Any]]:
    """Every model at every shape.

    Args:
        models: what a model does with a sample.
        shapes: sequences, and tokens of the longest.

    Returns:
        A row a form and shape: {"form", "batch", "length", "tokens" (real ones),
        role: {"seconds", "tokens_per_second", "rounds": seconds of each}, "ratio" where there are both roles}.
    """
    samples = [Sample.random(batch, length, vocabulary, device) for batch, length in shapes]
    total = (rounds + 1) * len(models) * sum(sample.tokens for sample in samples)
    rows = []
    with bar(total, "tok", "latency") as progress, torch.inference_mode():
        for sample in samples:
            times: dict[Name, list[float]] = {name: [] for name in models}
            for _ in range(rounds + 1):
                for name, go in models.items():
                    times[name].append(_seconds(go, sample, device))
                    progress.update(sample.tokens)
            warm = {name: taken[1:] for name, taken in times.items()}
            rows += [_row(form, sample, warm) for form in dict.fromkeys(form for form, _ in models)]
    return rows


def _seconds(go: Go, sample: Sample, device: torch.device) -> float:
    start = time.perf_counter()
    go(sample)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _row(form: str, sample: Sample, times: Mapping[Name, list[float]]) -> dict[str, Any]:
    """Of one form at one shape."""
    row: dict[str, Any] = {"form": form, "batch": len(sample.ids_BL), "length": sample.longest, "tokens": sample.tokens}
    taken = {role: seconds for (other, role), seconds in times.items() if other == form}
    for role, seconds in taken.items():
        middle = median(seconds)
        row[role] = {"seconds": middle, "tokens_per_second": sample.tokens / middle, "rounds": seconds}
    if taken.keys() >= {"teacher", "student"}:
        pairs = zip(taken["teacher"], taken["student"], strict=True)
        row["ratio"] = median(teacher / student for teacher, student in pairs)
    return row


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
