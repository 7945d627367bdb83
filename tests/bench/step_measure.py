"""One variant of a step, measured in this process: rates, memory, and what it computes.

python -m tests.bench.step_measure JSON     (bench_step starts it so; prints JSON)
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch import cpu  # noqa: F401  # isort: skip  (before torch: the same for all variants)

import numpy as np
import torch

from launch.costs import Tokens, step_flops
from launch.scaling import peak_tflops
from model.config import BertConfig
from tests.bench.step_data import sequences, tokens
from tests.bench.step_models import DTYPES, PAIRS
from tests.bench.step_variants import ORIGINAL_BATCH, VARIANTS, Ready, Setting, Unavailable, original

GEMM_ROWS = 4096
REFERENCE = "reference"


@dataclass(frozen=True)
class Clock:
    """Seconds: of the wall, of this process's threads, and of all processes of the machine together."""

    wall: float
    own: float
    all: float

    @classmethod
    def now(cls, device: torch.device) -> "Clock":
        """When the device has done what it was told."""
        if device.type == "cuda":
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time(), _busy())

    def __sub__(self, earlier: "Clock") -> "Clock":
        return Clock(self.wall - earlier.wall, self.own - earlier.own, self.all - earlier.all)

    @property
    def others(self) -> float:
        """Share of the machine's processors that other processes took."""
        return max(0.0, self.all - self.own) / (self.wall * (os.cpu_count() or 1))


def _busy() -> float:
    """Seconds that the machine's processors were not idle, from /proc/stat; 0 where there is none."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(setting: Setting, name: str, reference: Path | None) -> dict[str, Any]:
    """A variant's figures: `wall` and `cpu` in real tokens a second, FLOP/s, bytes; or why it is `missing`.

    Args:
        reference: what `write_reference` wrote; None: nothing is compared.
    """
    imported = peak_bytes(setting.device)
    try:
        with VARIANTS[name](setting) as ready:
            figures: dict[str, Any] = {**run(setting, ready), "imports": imported, "memory": peak_bytes(setting.device)}
            figures["mfu"] = figures.pop("rate") / gemm_rate(setting)
            if reference:
                figures |= differences(setting, ready, reference)
            return {"batching": ready.batching, "kernels": ready.kernels, "sheet": sheet_rate(setting), **figures}
    except Unavailable as reason:
        return {"missing": str(reason)}


def run(setting: Setting, ready: Ready) -> dict[str, float]:
    """Rates over all sequences, after some batches to warm up with."""
    data = sequences(setting.lengths, setting.sequences, PAIRS[setting.pair].vocabulary, alike=setting.batch)
    batches = ready.batches(data)
    through(setting, ready, batches[: ready.warm_up])
    start = Clock.now(setting.device)
    losses = through(setting, ready, batches)
    taken = Clock.now(setting.device) - start
    mean = float(torch.stack(losses).mean())
    assert math.isfinite(mean), f"loss {mean}"
    work, count = flops(setting, [s.ids.size for s in data]), tokens(data)
    slots = sum(batch.slots if hasattr(batch, "slots") else batch.input_ids.numel() for batch in batches)
    return {
        "wall": count / taken.wall, "cpu": count / taken.own, "flops": work / taken.wall,
        "rate": work / busy(taken, setting.device),
        "padding": 1 - count / slots, "others": taken.others, "loss": mean,
    }  # fmt: skip


def through(setting: Setting, ready: Ready, batches: Iterable[Any]) -> list[torch.Tensor]:
    """Forward and backward passes; the losses, on the device."""
    losses = []
    for batch in batches:
        loss = ready.loss(batch.to(setting.device))
        loss.backward()
        ready.student.zero_grad()
        losses.append(loss.detach())
    return losses


def flops(setting: Setting, lengths: list[int]) -> float:
    """By formula, of real tokens: what padding costs does not count."""
    teacher, student = (BertConfig.from_dict(config) for config in configs(setting))
    return step_flops(teacher, student, Tokens.of(lengths))


def configs(setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of teacher and student."""
    pair = PAIRS[setting.pair]
    return pair.teacher(), pair.student()


def peak_bytes(device: torch.device) -> int:
    """Of the device; on the CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gemm_rate(setting: Setting) -> float:
    """FLOP a second (`busy` ones) of the faster of two large matrix products, a layer's and that of the logits, in the
    setting's dtype."""
    pair, device, dtype = PAIRS[setting.pair], setting.device, DTYPES[setting.dtype]
    rates = []
    for inner, columns in ((768, 3072), (pair.width, pair.vocabulary + -pair.vocabulary % 64)):
        a, b = (torch.randn(shape, dtype=dtype, device=device) for shape in ((GEMM_ROWS, inner), (columns, inner)))
        out = torch.empty(GEMM_ROWS, columns, dtype=dtype, device=device)
        for _ in range(6):
            start, products = Clock.now(device), 10 if device.type == "cuda" else 1
            for _ in range(products):
                torch.mm(a, b.t(), out=out)
            rates.append(products * 2 * GEMM_ROWS * inner * columns / busy(Clock.now(device) - start, device))
    return max(rates)


def busy(taken: Clock, device: torch.device) -> float:
    """Seconds of the GPU; on the CPU, of a processor: those that other processes take don't count."""
    return taken.wall if device.type == "cuda" else taken.own


def sheet_rate(setting: Setting) -> float | None:
    """FLOP/s that the maker of the GPU states for 16 bit; None: not known."""
    if setting.device.type != "cuda" or setting.dtype != "bf16":
        return None
    peak = peak_tflops(torch.cuda.get_device_name())
    return peak * 1e12 if peak else None


# --- what is computed ---


def compared(setting: Setting, ready: Ready) -> tuple[float, np.ndarray]:
    """Loss of one batch, dropout off, and its gradient with respect to the word embedding, in fp64."""
    data = sequences(setting.lengths, ORIGINAL_BATCH, PAIRS[setting.pair].vocabulary)
    ready.student.eval()
    loss = ready.loss(ready.single(data).to(setting.device))
    loss.backward()
    assert ready.word.grad is not None
    return float(loss.detach()), ready.word.grad.double().cpu().numpy()


def write_reference(setting: Setting, path: Path) -> None:
    """The same by the formulas of the original's way, in fp64, from weights in the setting's dtype."""
    with original(setting, dtype=torch.float64) as ready:
        loss, gradient = compared(setting, ready)
    np.savez(path, loss=loss, gradient=gradient.astype(np.float32))


def differences(setting: Setting, ready: Ready, reference: Path) -> dict[str, float]:
    """From the reference: of the loss, relative; of the gradient, the L2 norm relative to the gradient's."""
    loss, gradient = compared(setting, ready)
    with np.load(reference) as right:
        apart = np.linalg.norm(gradient - right["gradient"]) / np.linalg.norm(right["gradient"])
        return {"loss_difference": abs(loss / float(right["loss"]) - 1), "gradient_difference": float(apart)}


# --- in a process of its own ---


def one(setting: Setting, name: str, reference: Path | None) -> dict[str, Any]:
    """A variant's figures; none of the reference, which is written."""
    if name == REFERENCE:
        assert reference
        write_reference(setting, reference)
        return {}
    return measure(setting, name, reference)


def command(setting: Setting, name: str, reference: Path | None) -> list[str]:
    """What starts it."""
    words = {"setting": asdict(setting), "name": name, "reference": str(reference) if reference else None}
    return [sys.executable, "-m", "tests.bench.step_measure", json.dumps(words)]


def main() -> None:
    """What `command` says."""
    words = json.loads(sys.argv[1])
    reference = Path(words["reference"]) if words["reference"] else None
    print(json.dumps(one(Setting(**words["setting"]), words["name"], reference)))


if __name__ == "__main__":
    main()
