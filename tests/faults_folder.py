"""Run folders whose disk is full or read-only, and in which two runs start at once."""

import ctypes
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from faults_jobs import Setting, Workshop, last_step
from faults_table import EXACT, REFUSED, SILENT, Table, count
from ranks import Job, train

from launch import checkpoint, space
from launch.errors import CheckpointError, ConfigError, Stopped
from launch.lock import Lock

FULL, READ_ONLY, TWO = "disk full while saving", "disk read-only while saving", "two starts at once"
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
STEPS_A_START = 10


@dataclass
class Disk:
    """A disk of memory that only ranks see that enter it: a process holds it, and it is gone with that process."""

    path: Path
    size: int

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        mount = f"mount -t tmpfs -o size={self.size} small '{self.path}'"
        command = ["unshare", "--mount", "sh", "-c", f"{mount} && echo mounted && cat"]
        self.holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout and self.holder.stdout.readline() == "mounted\n", "can't mount a disk: no root?"
        return self

    def __exit__(self, *_: object) -> None:
        self.holder.communicate("")

    def change(self, options: str) -> None:
        """Mount it anew, with other options."""
        inside = ["nsenter", "--mount", "--target", str(self.holder.pid)]
        subprocess.run([*inside, "mount", "-o", f"remount,{options}", str(self.path)], check=True)

    @property
    def seen(self) -> Path:
        """Its content, as this process can read it."""
        return Path(f"/proc/{self.holder.pid}/root{self.path}")


def enter(holder: int) -> None:
    """In a rank: see the disks that another process sees."""
    libc, here = ctypes.CDLL(None, use_errno=True), Path.cwd()
    with open(f"/proc/{holder}/ns/mnt") as file:
        if libc.unshare(_NEW_MOUNTS) or libc.setns(file.fileno(), _NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.chdir(here)


def enter_and_fail(holder: int, path: Path, step: int) -> None:
    """In a rank: the disk becomes read-only when the checkpoint of that step is to be saved."""
    enter(holder)
    save = checkpoint.save

    def failing(engine, root):
        if engine.global_steps == step:
            subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
        return save(engine, root)

    checkpoint.save = failing


def can_mount() -> bool:
    """Whether this user may."""
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "trial", "/tmp"]
    return subprocess.run(trial, capture_output=True).returncode == 0


# --- disks ---


def on_bad_disks(workshop: Workshop, settings: Iterable[Setting], sizes: int = 6) -> Table:
    """Of each setting: disks with room for less than two, or for two and a part of the third checkpoint; and such as
    become read-only at some step. Then the disk is good again, and the run goes on."""
    table: Table = {}
    for setting in settings:
        one = space.size(checkpoint.committed(workshop.undisturbed(setting) / "checkpoints")[-1])
        for number in range(sizes):
            size = int(one * (1.5 + number / sizes * 1.4))
            count(table, FULL, on_a_full_disk(workshop, setting, size), f"{setting}, {size:,} bytes")
            step = 2 * (1 + number)
            count(table, READ_ONLY, on_a_failing_disk(workshop, setting, step), f"{setting}, step {step}")
    return table


def on_a_full_disk(workshop: Workshop, setting: Setting, size: int) -> str:
    """Exact is: exit code 4, the last good checkpoint is there; with more room, the same end."""
    run = workshop.new("full")
    with Disk(run / "checkpoints", size) as disk:
        seen = partial(enter, disk.holder.pid)
        good = _ends_well(workshop, setting, disk, workshop.start(setting, run, patch=seen), "bytes are missing")
        disk.change("size=64m")
        return EXACT if good and _goes_on(workshop, setting, run, disk) else SILENT


def on_a_failing_disk(workshop: Workshop, setting: Setting, step: int) -> str:
    """Likewise, with a disk that becomes read-only, and is not any more."""
    run = workshop.new("failing")
    with Disk(run / "checkpoints", 1 << 26) as disk:
        fault = partial(enter_and_fail, disk.holder.pid, disk.path, step)
        good = _ends_well(workshop, setting, disk, workshop.start(setting, run, patch=fault), "Read-only file system")
        good = good and last_step(disk.seen.parent) == step - 2
        again = workshop.start(setting, run, patch=partial(enter, disk.holder.pid))
        good = good and {code for code, _ in again} == {CheckpointError.exit_code}  # it is read-only still
        disk.change("rw")
        return EXACT if good and _goes_on(workshop, setting, run, disk) else SILENT


def _ends_well(workshop: Workshop, setting: Setting, disk: Disk, ended: list[tuple[int, str]], words: str) -> bool:
    """Exit code 4 and the reason, from every rank; and the last checkpoint is whole."""
    if any(code != CheckpointError.exit_code or words not in said or "Traceback" in said for code, said in ended):
        return False
    found = checkpoint.newest(disk.seen, lambda _: None)
    return workshop.is_exact(setting, found)


def _goes_on(workshop: Workshop, setting: Setting, run: Path, disk: Disk) -> bool:
    ended = workshop.start(setting, run, patch=partial(enter, disk.holder.pid))
    shutil.copytree(disk.seen, run / "checkpoints", dirs_exist_ok=True)  # into the folder below the disk
    return {code for code, _ in ended} == {0} and workshop.is_done_exactly(setting, run)


# --- two starts ---


def started_twice(workshop: Workshop, settings: Iterable[Setting], seed: int = 0) -> Table:
    """One run in several pairs of starts, almost at once: of each pair one goes on, and the other is refused."""
    table: Table = {}
    for setting in settings:
        run, generator = workshop.new("twice"), random.Random(seed)
        stops = range(STEPS_A_START, workshop.steps + 1, STEPS_A_START)
        good = [_one_goes_on(workshop, setting, run, stop, generator.choice([0, 0.003, 0.03])) for stop in stops]
        exact = workshop.is_done_exactly(setting, run)
        for each in good:
            count(table, TWO, EXACT if each and exact else SILENT, setting)
            count(table, TWO, REFUSED if each else SILENT, setting)
    return table


def meet(place: Path, ranks: int, delay: float) -> None:
    """In a rank: it asks for the lock so many seconds after that many ranks have come to where they would ask."""
    take = Lock.take

    def together(lock: Lock) -> None:
        (place / str(os.getpid())).touch()
        while len(os.listdir(place)) < ranks:
            time.sleep(1e-3)
        time.sleep(delay)
        take(lock)

    Lock.take = together  # type: ignore[method-assign]


def _one_goes_on(workshop: Workshop, setting: Setting, run: Path, stop: int, delay: float) -> bool:
    """Two starts that meet at the lock; the second asks for it so many seconds after the first."""
    words, place = workshop.words(setting, run, "--keep-last", "2"), workshop.new("met")
    words += ["--stop-at-step", str(stop)] if stop < workshop.steps else []
    place.mkdir()
    with ExitStack() as jobs:
        patches = [partial(meet, place, 2 * setting.ranks, seconds) for seconds in (0, delay)]
        both = [jobs.enter_context(Job(setting.ranks, train, words, patch)) for patch in patches]
        one, other = sorted((job.results() for job in both), key=lambda ended: ended[0][0] == ConfigError.exit_code)
    done = {code for code, _ in one} == {Stopped.exit_code if stop < workshop.steps else 0}
    refused = all(code == ConfigError.exit_code and "another run is at work in it" in said for code, said in other)
    return done and refused
