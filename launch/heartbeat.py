"""Signs of life: each rank's progress on the shared disk, and an end for a run in which one no longer makes any.

A thread of each rank writes `heartbeats/rank00000.json` every few seconds: host, process, progress, and where its main
thread is. When this rank has made no progress for too long, it looks at the others: those that are furthest behind, or
show no sign of life at all, are to blame; they are named, with their stacks, and the run ends.
"""

import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launch import beats, launcher
from launch.beats import FOLDER, Beat, read
from launch.distributed import World
from launch.errors import HungError, say

_GRACE = 20.0  # seconds in which a rank must have ended after its launcher
_LAST_WORDS = 1.0  # seconds for the rank that names others to write it down, before any leaves and cuts connections


class Heartbeat:
    """This rank's."""

    def __init__(self, folder: Path, world: World, timeout: float, step: int) -> None:
        """
        Args:
            folder: of the run.
            timeout: seconds without progress after which the run ends.
            step: that the run goes on from; to be kept up to date.
        """
        self.folder, self.world, self.timeout = folder / FOLDER, world, timeout
        self.interval = min(10.0, timeout / 6)
        self.progress, self.step, self.phase, self.at = 0, step, "starting", time.monotonic()
        self.launchers = launcher.ancestors()
        self.main, self.stop = threading.get_ident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self.thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()
        self.phase = "at the end"
        self._write()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Progress at its beginning and at its end."""
        self.tick(phase)
        yield
        self.tick("waiting for data")

    def tick(self, phase: str) -> None:
        """Progress: this rank begins with `phase`."""
        self.progress, self.phase, self.at = self.progress + 1, phase, time.monotonic()

    def _watch(self) -> None:
        orphaned = None
        while not self.stop.wait(self.interval):
            self._write()
            if time.monotonic() - self.at > self.timeout:
                self._end(verdict(read(self.folder, self.world.ranks), self.world.rank, 3 * self.interval))
            if launcher.gone(self.launchers):
                orphaned = orphaned or time.monotonic()
                if time.monotonic() - orphaned > _GRACE:
                    self._end("the launcher is gone, and the run could not be stopped in time")

    def _end(self, message: str) -> None:
        until = time.monotonic() + _LAST_WORDS
        if message:
            say(f"error: {message}", sys.stderr)
            beats.failed(self.folder.parent, self.world.rank, self.step, HungError(message))
        time.sleep(max(0.0, until - time.monotonic()))
        os._exit(HungError.exit_code)  # the main thread can't be asked

    def _write(self) -> None:
        frame = sys._current_frames().get(self.main)
        body: dict[str, Any] = {
            "rank": self.world.rank, "host": platform.node(), "pid": os.getpid(), "step": self.step,
            "progress": self.progress, "phase": self.phase, "time": time.time(),
            "stack": "".join(traceback.format_stack(frame)[-8:]) if frame else "",
        }  # fmt: skip
        path = beats.path(self.folder, self.world.rank)
        try:  # no sync to the disk: it is news, not a record
            path.with_suffix(".partial").write_text(json.dumps(body))
            os.replace(path.with_suffix(".partial"), path)
        except OSError as error:
            say(f"warning: {path}: no heartbeat: {error.strerror}", sys.stderr)


def verdict(found: list[Beat], rank: int, lost: float) -> str:
    """Who is to blame, as the first of the other ranks says it; "" on all the others.

    Args:
        lost: seconds without a sign of life after which a rank counts as stopped.
    """
    silent = [beat for beat in found if beat.age > lost]
    alive = [beat for beat in found if beat.age <= lost]
    behind = min(beat.progress for beat in alive)
    blamed = silent or [beat for beat in alive if beat.progress == behind]
    speakers = sorted({beat.rank for beat in alive} - {beat.rank for beat in blamed}) or [rank]
    if rank != speakers[0]:
        return ""
    return "\n".join(
        f"rank {beat.rank} ({beat.host}, process {beat.pid}) "
        + (f"has given no sign of life for {beat.age:.0f} s" if beat in silent else "makes no progress")
        + f": step {beat.step}, {beat.phase}; its main thread was here:\n{beat.stack.rstrip()}"
        for beat in blamed
    )
