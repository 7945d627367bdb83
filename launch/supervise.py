"""A launcher's command, supervised: how a run ended is what its folder says, not the launcher's exit code.

    python -m launch.supervise runs/first srun python train_dilbert.py --output runs/first ...

Launchers exit with 0 though ranks died, and with 1 though all of them saved and stopped. So: 0 with a new `DONE.json`
in the run folder (of a dry run: `dry-run/report.txt`), 75 with a new `STOPPED.json`, else the launcher's code or 1. A
signal (SIGTERM, SIGINT, SIGHUP, SIGUSR1) becomes a file `STOP` in the folder, for which all ranks save and stop;
launchers would signal them one after another, and kill those that still save. Only a second SIGINT or SIGTERM, 5 s
later at least, ends the launcher.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from launch.errors import ConfigError, DilbertError, Stopped, run

STOP = "STOP"  # launch.stop's; importing that would import torch
DRY_RUN = "dry-run/report.txt"  # launch.dry_run's; importing that would import torch
ENDS = {"DONE.json": 0, "STOPPED.json": Stopped.exit_code, DRY_RUN: 0}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SAME_REQUEST = 5.0  # seconds: terminals and batch systems send several
_GRACE = 20.0  # seconds for ranks to stop, once their launcher has gone
_POLL = 0.5
_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36  # of Linux's prctl: PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER


class RunFailed(DilbertError):
    """The launcher has ended, and the run neither ended nor stopped."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


class Supervised:
    """A launcher in a session of its own, so that Ctrl-C does not reach it, and the run folder that it works on."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.asked = folder, 0.0
        self.before = {name: _mark(folder / name) for name in ENDS}
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's SIGHUP stays ignored
                signal.signal(number, self._signalled)
        _prctl(_CHILD_SUBREAPER, 1)  # what loses its parent below becomes a child of this process
        self.launcher = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=_end_with_parent, stdin=subprocess.DEVNULL
        )

    def wait(self) -> int:
        """Until the launcher has ended, and all that it started on this host.

        Returns:
            0 or 75.

        Raises:
            RunFailed: it is neither done nor stopped.
        """
        while self.launcher.poll() is None:
            self._ask()
            time.sleep(_POLL)
        self._end_orphans()
        if self.asked:
            (self.folder / STOP).unlink(missing_ok=True)
        return self._verdict()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and number in (signal.SIGINT, signal.SIGTERM) and now - self.asked > _SAME_REQUEST:
            self.launcher.send_signal(signal.SIGTERM)
        self.asked = self.asked or now

    def _ask(self) -> None:
        """Put the file there; again and again, because a run that only starts clears it away."""
        if self.asked and self._ended() is None:
            with contextlib.suppress(OSError):  # no folder yet
                (self.folder / STOP).touch()

    def _ended(self) -> str | None:
        """The file that tells how the run ended, if it came since the start."""
        new = (name for name, mark in self.before.items() if _mark(self.folder / name) not in (mark, None))
        return next(new, None)

    def _end_orphans(self) -> None:
        """The launcher has gone: what it started is asked to stop if it was killed (or pdsh below it: DeepSpeed says 0
        then), and at last killed. If it failed, the run in the folder may be another start's, and is left in peace."""
        until = time.monotonic() + _GRACE
        while descendants() and time.monotonic() < until:
            if self.launcher.returncode <= 0:
                self.asked = self.asked or time.monotonic()
            self._ask()
            time.sleep(_POLL)
        for pid in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _verdict(self) -> int:
        name, code = self._ended(), self.launcher.returncode
        if name is None:
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            raise RunFailed(
                f"{self.folder}: the launcher ended {how}, and there is no new DONE.json or STOPPED.json: the ranks' "
                "own messages stand above. The same command goes on from the last checkpoint",
                code if code > 0 else 1,
            )
        if name == DRY_RUN:
            return ENDS[name]
        facts = json.loads((self.folder / name).read_text())
        print(f"{self.folder}: {name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()), file=sys.stderr)
        return ENDS[name]


def descendants() -> list[int]:
    """Living processes that this one has started, or that were started by those; not ssh's shared connections."""
    parents = dict(filter(None, (_parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())))
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _parent(process: Path) -> tuple[int, int] | None:
    """Numbers of a process of /proc and of its parent; None: it is dead, or none of ours."""
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
        shared = (process / "cmdline").read_bytes().startswith(b"ssh: ")  # ControlPersist
    except (OSError, ValueError):
        return None
    return None if state in "ZX" or shared else (int(process.name), int(parent))


def _mark(path: Path) -> tuple[int, int] | None:
    """What differs when a file has been written anew: no clock has to agree with another one."""
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except OSError:
        return None


def _end_with_parent() -> None:
    """In the launcher, before it begins: SIGTERM for it when this process is killed."""
    _prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def main() -> None:
    """Command line."""
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        raise ConfigError(f"usage: python -m launch.supervise RUN COMMAND ...\n{__doc__}")
    sys.exit(Supervised(sys.argv[2:], Path(sys.argv[1])).wait())


if __name__ == "__main__":
    run(main)
