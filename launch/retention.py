"""Which checkpoints stay on the disk, and deleting the others."""

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.args import flag, require
from launch.checkpoint import DELETED, committed, set_aside, verify
from launch.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    By default three: a run goes on from the newest; if that is damaged, from the one before; and whoever sees too late
    that the loss went wrong has one more.
    """

    keep_last: int = flag(3, "so many of the newest checkpoints stay; 2 at least", "COUNT")
    keep_every: int | None = flag(None, "checkpoints whose step is a multiple of it stay for ever", "STEPS")

    def __post_init__(self) -> None:
        require(self.keep_last >= 2, "keep_last", self.keep_last, "must be 2 at least: the newest may turn out damaged")
        require(self.keep_every is None or self.keep_every > 0, "keep_every", self.keep_every, "must be positive")

    def for_ever(self, step: int) -> bool:
        """Whether the checkpoint of a step is never deleted."""
        return self.keep_every is not None and step % self.keep_every == 0

    def most(self, now: int, last: int, interval: int) -> int:
        """Checkpoints that are there at once, the one that is being saved included, when the run's last is saved.

        Args:
            now: step that is done; none is saved any more if it is the last one.
            interval: steps between checkpoints.
        """
        if now == last:
            return 0
        for_ever = last // math.lcm(interval, self.keep_every) if self.keep_every else 0
        return min(math.ceil(last / interval), self.keep_last + 1 + for_ever)


def prune(root: Path, keep: Retention) -> None:
    """After a save: read the newest checkpoint back, then delete what need not stay. For rank 0 alone.

    So each is read once more when it is new, and at least two are left that were seen to be whole. One that is not as
    it was written is put aside, and nothing is deleted. Whatever fails is a warning, and the run goes on. Takes the
    time of a SHA-256 over the checkpoint: 0.7 s a GB where it is in the page cache.
    """
    newest = committed(root)[-1]
    try:
        verify(newest)
    except CheckpointError as error:
        logger.warning("warning: the new checkpoint is damaged, older ones stay: %s", error)
        return _try(set_aside, newest)
    for path in superfluous(root, keep):
        _try(delete, path)


def superfluous(root: Path, keep: Retention) -> Iterator[Path]:
    """Checkpoints that need not stay: so many newer ones have all their files, in full size."""
    whole = 0
    for path in reversed(committed(root)):
        if whole < keep.keep_last:
            whole += _whole(path)
        elif not keep.for_ever(int(path.name.removeprefix("step"))) and not path.is_symlink():
            yield path


def delete(path: Path) -> None:
    """Under another name first, so that a folder that is half deleted is never taken for a checkpoint.

    What is left of it if this fails, `launch.checkpoint.sweep` removes before the next save.

    Raises:
        OSError: the disk refuses.
    """
    hidden = path.with_name(f"{DELETED}{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _whole(path: Path) -> bool:
    try:
        verify(path, content=False)
    except CheckpointError:
        return False
    return True


def _try(action: Callable[[Path], None], path: Path) -> None:
    try:
        action(path)
    except OSError as error:
        logger.warning("warning: %s: can't be %s: %s", path, "deleted" if action is delete else "renamed", error)
