"""kill -9, at random moments and before every operation of a save: what was committed is never lost."""

import builtins
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from faults_jobs import Setting, Workshop, last_step
from faults_table import EXACT, SILENT, Table, count
from ranks import Job, RankFailed, channel, train

from launch import checkpoint
from launch.errors import CheckpointError

STARTING, TRAINING, SAVING = "starting", "training", "saving"
AIMS = (STARTING, *(TRAINING,) * 3, *(SAVING,) * 6)  # most where a moment matters
LAUNCHER = 0.2  # seconds, at most, in which ranks outlive the first one that died
POINTS = Setting(stage=2, ranks=2, precision="fp32")


# --- in a rank ---


def tell(sender: Connection) -> None:
    """Let the harness know when training begins, and when a save begins and ends."""
    import train_dilbert
    from launch import checkpoint, retention

    prefetch, save, prune = train_dilbert.prefetch, checkpoint.save, retention.prune
    if os.environ["RANK"] != "0":
        return

    def begun(*arguments: Any) -> Any:
        sender.send((TRAINING, 0))
        return prefetch(*arguments)

    def saving(engine: Any, root: Path) -> Path:
        sender.send((SAVING, 0))
        return save(engine, root)

    def pruning(root: Path, keep: Any) -> None:
        sender.send((SAVING, last_tag(root)))
        prune(root, keep)
        sender.send((TRAINING, last_tag(root)))

    train_dilbert.prefetch, checkpoint.save, retention.prune = begun, saving, pruning


def last_tag(root: Path) -> int:
    """Step of the newest checkpoint by name."""
    return int(checkpoint.committed(root)[-1].name.removeprefix("step"))


# --- random moments ---


@dataclass
class Watched:
    """A job, and what its rank 0 tells of itself.

    Attributes:
        phase: where it is.
        step: of the last checkpoint that it said to have committed.
    """

    job: Job
    receiver: Connection
    phase: str = STARTING
    step: int = 0

    def until(self, condition: Callable[[], bool], patience: float = 120) -> None:
        """Listen until it is so, or until a rank has ended."""
        ends = [process.sentinel for process in self.job.processes]
        while not condition():
            ready = wait([self.receiver, *ends], patience)
            if not ready:
                raise RankFailed(f"nothing happened in {patience} s: {self.phase}")
            if self.receiver not in ready:
                return
            self._hear()

    def listen(self) -> None:
        """Hear all that was said so far."""
        while self.receiver.poll():
            self._hear()

    def _hear(self) -> None:
        self.phase, step = self.receiver.recv()
        self.step = max(self.step, step)

    def kill(self, generator: random.Random) -> None:
        """One rank or all of them at once; the others soon after, as a launcher does."""
        processes = self.job.processes
        first = generator.choice([processes, [generator.choice(processes)]])
        for process in first:
            process.kill()
        self.listen()
        if len(first) < len(processes):
            time.sleep(generator.uniform(0, LAUNCHER))


def strike(watched: Watched, aim: str, generator: random.Random) -> None:
    """Wait for a random moment of that kind, or for the job's end."""
    if aim == STARTING:
        return time.sleep(generator.uniform(0.05, 0.5))
    seen = Counter[str]()
    turn = generator.randint(1, 3)

    def often_enough() -> bool:
        seen[watched.phase] += 1
        return watched.phase == aim and seen[aim] >= turn

    watched.until(often_enough)
    time.sleep(generator.expovariate(1 / 0.012) if aim == SAVING else generator.uniform(0, 0.08))


def kill_once(workshop: Workshop, setting: Setting, run: Path, generator: random.Random) -> tuple[str, bool] | None:
    """Start the run, and kill it.

    Returns:
        Where it was, and whether all that it had committed is there, exact; None: it was done before.
    """
    before = last_step(run)
    receiver, sender = channel()
    words = workshop.words(setting, run, "--keep-last", "2")
    with Job(setting.ranks, train, words, partial(tell, sender)) as job:
        watched = Watched(job, receiver)
        strike(watched, generator.choice(AIMS), generator)
        if any(process.exitcode is not None for process in job.processes) or (run / "DONE.json").exists():
            assert {code for code, _ in job.results()} == {0}, "it ended by itself, and not well"
            return None
        watched.kill(generator)
        phase = watched.phase
    watched.listen()
    return phase, is_kept(workshop, setting, run, max(before, watched.step))


def is_kept(workshop: Workshop, setting: Setting, run: Path, step: int) -> bool:
    """Whether all checkpoints are whole, the newest is of that step or a later one, and holds what it must."""
    try:
        found = checkpoint.newest(run / "checkpoints")
        return last_step(run) >= step and workshop.is_exact(setting, found)
    except CheckpointError as error:
        print(error)
        return False


@dataclass
class Kills:
    """Of one run, until it is done."""

    workshop: Workshop
    setting: Setting
    generator: random.Random
    seen: list[tuple[str, bool]] = field(default_factory=list)

    def until_done(self, most: int) -> None:
        """So many kills at most; then the run is left in peace."""
        run = self.workshop.new("killed")
        while len(self.seen) < most and (killed := kill_once(self.workshop, self.setting, run, self.generator)):
            self.seen.append(killed)
        self.workshop.start(self.setting, run)
        if not self.workshop.is_done_exactly(self.setting, run):
            print(f"{self.setting}: killed again and again, and not the same in the end: {run}")
            self.seen = [(phase, False) for phase, _ in self.seen]
        shutil.rmtree(run)


def at_random(workshop: Workshop, settings: Iterable[Setting], kills: int, seed: int = 0) -> Table:
    """So many kills of each setting; each run is killed until it is done, and compared with an undisturbed one."""
    table: Table = {}
    for setting in settings:
        generator, left = random.Random(f"{seed} {setting}"), kills
        while left > 0:
            some = Kills(workshop, setting, generator)
            some.until_done(left)
            left -= len(some.seen)
            for phase, exact in some.seen:
                count(table, f"kill -9 while {phase}", EXACT if exact else SILENT, setting)
    return table


# --- named points ---


class Points:
    """In a rank: the operations of a save, in the main thread, by name; the process ends before one of them."""

    def __init__(self, rank: int, stop: str, sender: Connection) -> None:
        """
        Args:
            stop: name of the point; "": none.
        """
        self.stop, self.sender, self.here = stop, sender, os.environ["RANK"] == str(rank)
        self.active = False
        self.seen = Counter[str]()

    def reach(self, name: str) -> None:
        """Before the operation."""
        self.seen[name] += 1
        numbered = f"{name} ({self.seen[name]})" if self.seen[name] > 1 else name
        if self.here:
            self.sender.send(numbered)
            if numbered == self.stop:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: Any, name: str, label: str, argument: int | None = None, whole: bool = False) -> None:
        """Make a function of a module or class a point.

        Args:
            argument: which one is a path, and part of the point's name.
            whole: what it calls is none.
        """
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            path = arguments[argument] if argument is not None and len(arguments) > argument else None
            if not self.active or (argument is not None and not isinstance(path, str | Path)):
                return function(*arguments, **named)
            self.reach(label if path is None else f"{label} {plain(path)}")
            self.active = not whole
            try:
                return function(*arguments, **named)
            finally:
                self.active = True

        setattr(owner, name, watched)

    def within(self, owner: Any, name: str, last: bool) -> None:
        """A function of a module in which points count; after the last one of them it is over."""
        function = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            self.active = True
            result = function(*arguments)
            if last:
                self.reach("the next step")
                self.seen.clear()
            self.active = False
            return result

        setattr(owner, name, watched)


def plain(path: str | Path) -> str:
    """A file's name below the folder of checkpoints, without what is new in every save."""
    name = str(path).rpartition("/checkpoints/")[2] if "/checkpoints/" in str(path) else Path(path).name
    return re.sub(r"step[0-9]{8}", "stepN", re.sub(r"(?<=[-.])[0-9a-f]{8}(?=$|/|\.partial)", "X", name))


def install_points(rank: int, stop: str, sender: Connection) -> None:
    """In a rank: everything that changes a file or meets another rank is a point. (Threads beside do neither here.)"""
    import torch.distributed as dist
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    from launch import checkpoint, retention

    points = Points(rank, stop, sender)
    for owner, name, label, argument in (
        (os, "mkdir", "mkdir", 0), (os, "fsync", "fsync", None), (os, "rename", "rename", 1),
        (os, "replace", "replace", 1), (builtins, "open", "open", 0), (os, "open", "open folder", 0),
        (TorchCheckpointEngine, "save", "write", 2), (dist, "barrier", "barrier", None),
        (dist, "broadcast_object_list", "broadcast", None), (dist, "all_gather_object", "gather", None),
    ):  # fmt: skip
        points.watch(owner, name, label, argument)
    points.watch(checkpoint, "sweep", "sweep", whole=True)  # how much there is to sweep, an earlier kill decides
    points.watch(shutil, "rmtree", "remove", 0, whole=True)
    points.within(checkpoint, "save", last=os.environ["RANK"] != "0")
    points.within(retention, "prune", last=True)


def names(workshop: Workshop, template: Path, rank: int) -> list[str]:
    """All points of a rank's save, in their order."""
    receiver, sender = channel()
    run = copy(workshop, template)
    stop = str(last_step(run) + 2)
    workshop.start(POINTS, run, "--stop-at-step", stop, patch=partial(install_points, rank, "", sender))
    found = []
    while receiver.poll():
        found.append(receiver.recv())
        if found[-1] == "the next step":
            break
    return found


def copy(workshop: Workshop, run: Path) -> Path:
    """Of a run, with what a kill may have left there, so that there is something to sweep."""
    target = workshop.new("points")
    shutil.copytree(run, target)
    leave_leftovers(target)
    return target


def leave_leftovers(run: Path) -> None:
    """As a kill while saving leaves them, and one while deleting."""
    for name in (f"{checkpoint.PARTIAL}00000000", f"{checkpoint.DELETED}step00000000"):
        folder = run / "checkpoints" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "left").touch()


def kill_at(workshop: Workshop, run: Path, rank: int, point: str) -> bool | None:
    """Go on with the run until the rank reaches the point, where it dies.

    Returns:
        Whether all that was committed is there, exact; None: it never got there.
    """
    before = last_step(run)
    leave_leftovers(run)
    receiver, sender = channel()
    words = workshop.words(POINTS, run, "--keep-last", "2")
    with Job(POINTS.ranks, train, words, partial(install_points, rank, point, sender)) as job:
        wait([process.sentinel for process in job.processes], 120)
    said = []
    with suppress(EOFError):
        while receiver.poll():
            said.append(receiver.recv())
    if point not in said[-1:]:
        return None
    return is_kept(workshop, POINTS, run, before)


def at_points(workshop: Workshop, every: int = 1) -> Table:
    """One run, killed before each point of both ranks' saves in turn (each `every`-th), and compared in the end."""
    template = workshop.new("template")
    workshop.start(POINTS, template, "--stop-at-step", str(2 * 2))
    run, table = copy(workshop, template), Table()
    for rank in range(POINTS.ranks):
        for point in names(workshop, template, rank)[::every]:
            exact = kill_at(workshop, run, rank, point)
            assert exact is not None, f"rank {rank} never came to: {point}"
            count(table, f"kill -9 before each operation of a save, rank {rank}", EXACT if exact else SILENT, point)
    workshop.start(POINTS, run)
    if not workshop.is_done_exactly(POINTS, run):
        print(f"killed before each operation of a save, and not the same in the end: {run}")
        return {kind: Counter({SILENT: seen.total()}) for kind, seen in table.items()}
    return table
