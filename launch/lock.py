"""One run per folder: `LOCK.json` says who is at work there, and how long ago they were last seen alive.

The file appears as a whole or not at all (a hard link), so of two that start at once one gets it. Its owner touches it
every few seconds. A lock without an owner is taken over: at once where it can be known that the process is dead (on the
same machine; in the same SLURM job, requeued), after a silence of minutes where not.
"""

import dataclasses
import errno
import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from launch import agreement
from launch.distributed import by_main, leave
from launch.errors import CheckpointError, ConfigError, say

NAME = "LOCK.json"
BEAT, SILENCE = 20.0, 180.0  # seconds between signs of life, and without one until the owner counts as dead
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # answers of disks that have no hard links


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    Attributes:
        machine: tells kernels, and their spaces of process numbers, apart, whatever the host is called.
        started: of the process, in the kernel's ticks; numbers of processes come again.
        job: of SLURM; "" outside.
        requeued: how often the job was.
        since: local time.
        token: no other owner has it.
    """

    host: str
    machine: str
    pid: int
    started: int
    job: str
    requeued: int
    since: str
    token: str

    @classmethod
    def this(cls) -> Self:
        """This process."""
        requeued = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            host=socket.gethostname(), machine=_machine(), pid=os.getpid(), started=_started(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""), requeued=int(requeued) if requeued.isdecimal() else 0,
            since=time.strftime("%Y-%m-%d %H:%M:%S"), token=uuid.uuid4().hex,
        )  # fmt: skip

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The owner that a lock names; None if it is not one of ours."""
        try:
            owner = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        return owner if all(type(getattr(owner, name)) is kind for name, kind in kinds.items()) else None

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, {f'job {self.job}, ' if self.job else ''}since {self.since}"

    def death(self, other: "Owner", silence: float) -> str:
        """Why this owner must be dead, as another process sees it; "" if it may live.

        Args:
            silence: seconds since its last sign of life.
        """
        if self.machine == other.machine:
            return "" if _alive(self.pid, self.started) else "there is no such process any more"
        if self.job and self.job == other.job and self.requeued < other.requeued:
            return "its job was requeued"
        return f"no sign of life for {silence:.0f} s" if silence > SILENCE else ""


class Lock:
    """Of a run folder; a context manager that gives it back, if it was taken, however the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.owner: Owner | None = None
        self._made: list[Path] = []  # folders, innermost first
        self._given_back = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """A folder that was made for the lock and got nothing else goes, too."""
        self._given_back.set()
        with suppress(OSError):
            if self.owner and Owner.of(self.path.read_text(errors="replace")) == self.owner:
                self.path.unlink()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def take(self) -> None:
        """Make the folder this run's alone; all ranks call it.

        Raises:
            ConfigError: on every rank: another run is at work there, or not all ranks see the same folder.
            CheckpointError: on every rank: the folder can't be written.
        """
        content = by_main(self._take)
        agreement.check_shared(self.path, content)

    def _take(self) -> str:
        """For rank 0; the lock's content."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--output {self.folder}: is a file; give the name of a folder")
        owner = Owner.this()
        content = json.dumps(dataclasses.asdict(owner), indent=1) + "\n"
        try:
            self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            _put(self.path, content, owner)
        except OSError as error:
            raise CheckpointError(f"--output {self.folder}: can't be written: {error.strerror}") from error
        self.owner = owner
        threading.Thread(target=self._stay_alive, args=(owner,), name="lock", daemon=True).start()
        return content

    def _stay_alive(self, owner: Owner) -> None:
        while not self._given_back.wait(BEAT):
            with suppress(OSError):  # storage may be away for a while
                found = Owner.of(self.path.read_text(errors="replace"))
                if found and found != owner:
                    say(f"error: {self.path}: was taken over by {found}; this run ends", sys.stderr)
                    leave(ConfigError.exit_code)
                os.utime(self.path)


def carry(old: Path, new: Path) -> None:
    """Take the lock along when a run folder was moved aside, into a new one.

    Raises:
        ConfigError: another run has just begun there.
    """
    if not (old / NAME).exists():
        return
    try:
        new.mkdir()
        _create(new / NAME, old / NAME)
    except FileExistsError as error:
        raise ConfigError(f"--output {new}: another run has just begun in it") from error
    (old / NAME).unlink()


def _put(path: Path, content: str, owner: Owner) -> None:
    """Create the lock, after removing one whose owner is dead.

    Raises:
        ConfigError: its owner is alive, or may be.
    """
    own = path.with_name(f"{path.name}.{owner.token}")
    try:
        for _ in range(10):  # as often as others come and go in between
            own.write_text(content)
            with suppress(FileExistsError):
                return _create(path, own)
            _remove_dead(path, owner, now=own.stat().st_mtime)  # this disk's clock, not the host's
        raise ConfigError(f"--output {path.parent}: several runs start in it at once")
    finally:
        own.unlink(missing_ok=True)


def _create(path: Path, source: Path) -> None:
    """Give a file's content another name, which must be free: FileExistsError otherwise, also if both are in haste."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "x") as file:
            file.write(source.read_text(errors="replace"))


def _remove_dead(path: Path, owner: Owner, now: float) -> None:
    """Remove the lock if its owner is dead; does nothing if it is gone.

    Raises:
        ConfigError: it may be alive.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        with open(path, errors="replace") as file:  # opening asks a network's server
            content, silence = file.read(), max(0.0, now - os.fstat(file.fileno()).st_mtime)
        reason = _judge(path, content, owner, silence)
        os.rename(path, aside)
        if aside.read_text(errors="replace") == content:
            print(f"{path}: {reason}: taken over", flush=True)
        else:  # another start was faster, and this is its lock
            with suppress(FileExistsError):
                _create(path, aside)
        aside.unlink()


def _judge(path: Path, content: str, owner: Owner, silence: float) -> str:
    """Why the lock is nobody's.

    Raises:
        ConfigError: it is somebody's.
    """
    holder = Owner.of(content)
    dead = holder.death(owner, silence) if holder else "it can't be read" if silence > SILENCE else ""
    if dead:
        return f"left by {holder}, but {dead}" if holder else dead
    raise ConfigError(
        f"--output {path.parent}: another run is at work in it: {holder or 'its lock can not be read'}; last sign of "
        f"life {silence:.0f} s ago. Wait for its end, stop it, or give another --output. (Its lock is {path}; where it "
        f"can't be known that a process died, it counts as dead after {SILENCE:.0f} s)"
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _stat(pid: int) -> list[str]:
    """Fields of `/proc/PID/stat` from the third on: state, parent ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> int:
    with suppress(OSError):
        return int(_stat(pid)[19])
    return 0


def _alive(pid: int, started: int) -> bool:
    """A process that ended, but was not waited for, is dead."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    with suppress(OSError):  # other users' may be hidden
        state, begun = _stat(pid)[0], _started(pid)
        return state not in "ZX" and begun in (started, 0)
    return True
