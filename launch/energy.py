"""The energy that a run takes, where devices tell: NVIDIA's GPUs by NVML, packages of processors by RAPL.

Whole devices are counted, whatever else runs on them. What no such counter sees is not in it: memory, disks, fans,
network. Virtual machines mostly tell nothing, and Linux lets only root read RAPL unless an administrator allows it.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from launch.distributed import World

POWERCAP = Path("/sys/class/powercap")  # of the Linux kernel; AMD's processors have their counters there, too
KWH = 3.6e6  # joules
_INTERVAL = 20.0  # seconds; a busy processor's counter starts anew after minutes


@dataclass(frozen=True)
class Counter:
    """Of the energy of one device.

    Attributes:
        kind: of the device, and who tells.
        joules: since some moment; None: not told.
        range: joules after which it starts anew.
    """

    kind: str
    joules: Callable[[], float | None]
    range: float = inf


def counters(world: World) -> list[Counter]:
    """Those that this rank answers for: its GPU; on each host's first rank also the host's processors."""
    found = [*(_gpu(world.device) if world.device.type == "cuda" else ())]
    found += _packages() if world.local_rank == 0 else ()
    return [counter for counter in found if counter.joules() is not None]


def _gpu(device: torch.device) -> Iterator[Counter]:
    try:
        import pynvml
    except ImportError:
        return

    def joules() -> float | None:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except pynvml.NVMLError:
            return None

    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES gives GPUs other numbers, which NVML does not know.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return
    yield Counter("GPUs (NVML)", joules)


def _packages() -> Iterator[Counter]:
    """Domains on top; those below them, such as cores, are parts of their energy, and `psys` holds it once more."""
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text()
        except OSError:
            continue
        if name.startswith("package") and (most := _joules(folder / "max_energy_range_uj")):
            yield Counter("processors (RAPL)", partial(_joules, folder / "energy_uj"), most)


def _joules(path: Path) -> float | None:
    """A file of microjoules."""
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


class Energy:
    """What some counters have counted since it was made; a context manager, within which none starts anew unseen."""

    def __init__(self, counters: list[Counter]) -> None:
        self.counters = counters
        self.last: dict[int, float] = {}
        self.total = 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._keep_up, name="energy", daemon=True)
        self.joules()

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()

    def joules(self) -> float:
        """Of all counters together; one that tells nothing any more stays where it was."""
        with self.lock:
            for place, counter in enumerate(self.counters):
                if (now := counter.joules()) is not None:
                    self.total += (now - self.last.get(place, now)) % counter.range
                    self.last[place] = now
            return self.total

    def _keep_up(self) -> None:
        while self.counters and not self.stop.wait(_INTERVAL):
            self.joules()
