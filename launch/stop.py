"""Stop signs: what makes a run save and end, to be continued; seen by any rank, obeyed by all at the same step.

SIGTERM, SIGINT, SIGUSR1, a file `STOP` in the run folder, a time limit that comes near, a launcher that has gone.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from launch import launcher
from launch.args import require

STOP = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
REASONS = ("SIGTERM", "SIGINT", "SIGUSR1", "the file STOP", "the time limit", "the launcher is gone")
_SAME_REQUEST = 5.0  # seconds after the first signal; launchers and terminals send several
_RESERVE = 60.0  # seconds that are left for saving when the time limit comes near, beside twice what saving took


def seconds(limit: str | None) -> float | None:
    """A time limit as SLURM writes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; None stays None.

    Raises:
        ConfigError: it is none of these.
    """
    if limit is None:
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    require(found is not None, "time_limit", limit, "must be minutes, MM:SS, HH:MM:SS or D-HH:MM:SS")
    assert found
    days, *parts = (int(part) if part else None for part in found.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:  # D-HH ...
        numbers += [0] * (3 - len(numbers))
    elif len(numbers) == 1:  # minutes
        numbers = [0, numbers[0], 0]
    elif len(numbers) == 2:  # MM:SS
        numbers = [0, *numbers]
    hours, minutes, rest = numbers
    return float((days or 0) * 86_400 + hours * 3600 + minutes * 60 + rest)


class StopSigns:
    """Watches for them in this rank, from when it is made; signals do nothing else any more."""

    def __init__(self, folder: Path, time_limit: float | None) -> None:
        """
        Args:
            time_limit: seconds from now; None: until SLURM ends the job, if it says when.
        """
        self.file = folder / STOP
        self.first: tuple[int, float] | None = None  # signal, and when it came
        self.saving_took = 0.0  # seconds of the longest so far
        end_of_job = os.environ.get("SLURM_JOB_END_TIME", "")
        self.end = time.time() + time_limit if time_limit else float(end_of_job) if end_of_job.isdecimal() else None
        self.launchers = launcher.ancestors()
        self.looked, self.seen = 0.0, 0
        for number in SIGNALS:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first = (number, time.monotonic())
        elif number == signal.SIGINT and time.monotonic() - self.first[1] > _SAME_REQUEST:
            raise KeyboardInterrupt

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A checkpoint is saved inside: so long it will take at the end, too."""
        start = time.monotonic()
        yield
        self.saving_took = max(self.saving_took, time.monotonic() - start)

    def reason(self) -> int:
        """Number (from 1) of the one of REASONS for which this rank wants to stop; 0: it does not."""
        if self.first:
            return 1 + SIGNALS.index(signal.Signals(self.first[0]))
        if not self.seen and time.monotonic() - self.looked > 1.0:  # file systems and /proc are not asked at every step
            self.looked = time.monotonic()
            self.seen = self._look()
        return self.seen

    def _look(self) -> int:
        if self.file.exists():
            return 1 + REASONS.index("the file STOP")
        if self.end and time.time() + _RESERVE + 2 * self.saving_took > self.end:
            return 1 + REASONS.index("the time limit")
        if launcher.gone(self.launchers):
            return 1 + REASONS.index("the launcher is gone")
        return 0


class Votes:
    """Whether any rank wants to stop, known to all ranks one step later, without waiting for a device."""

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo")  # on the host, beside the group of the devices
        self.vote, self.work = torch.zeros(1, dtype=torch.int64), None

    def cast(self, reason: int) -> str | None:
        """This rank's vote after a step.

        Returns:
            why to stop, alike on all ranks, by the votes after the step before; None: go on.
        """
        found = self._result()
        self.vote = torch.tensor([reason << 32 | dist.get_rank()]) if reason else torch.zeros(1, dtype=torch.int64)
        self.work = dist.all_reduce(self.vote, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return found

    def _result(self) -> str | None:
        if self.work is None:
            return None
        self.work.wait()
        reason, rank = divmod(int(self.vote), 2**32)
        return f"{REASONS[reason - 1]} (rank {rank})" if reason else None
