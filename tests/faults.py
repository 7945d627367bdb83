"""Faults of every kind in a small run: killed, damaged, no room, started twice, given any input. Is anything lost?

    python -m tests.faults [--output FILE.csv]

A run of 60 steps on one and on two ranks, at ZeRO stage 1 and 2, in fp32 and bf16 (gradients accumulated in fp32), is
disturbed, and goes on; then every checkpoint, the last weights and the losses in the log must be those of a run that
nothing happened to, bit for bit:

- kill -9 of one rank or all at a random moment while it starts, trains or saves; and before each operation of a save,
  on each rank (python's and DeepSpeed's, as the rank meets them: whatever a save will do one day is tried, too);
- each file of the newest checkpoint, and of all of them, flipped, cut off, removed, replaced, made longer;
- a disk that is full, or becomes read-only, while a checkpoint is saved (needs root, to mount one); two starts at once.

Exact is what went on from the last whole checkpoint, to the same end; refused is what ended with the right exit code
and message. Then hypothesis makes up input of all sorts. The exit code is 1 if anything was silent, or ended with a
traceback. Hardware: two cores, some 20 minutes.
"""

import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # the ranks, too, look for modules there
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: two ranks, and maybe one GPU

import faults_damage as damage
import faults_folder as folder
import faults_fuzz as fuzz
import faults_kills as kills
from faults_jobs import SETTINGS, Setting, Workshop
from faults_table import FAULTS, INPUT, Table, add, is_bad, lines

from launch.args import flag, parse
from launch.errors import run


@dataclass(frozen=True)
class Arguments:
    """Where the figures go."""

    output: Path | None = flag(None, "also write them to this CSV file", metavar="FILE")


@dataclass(frozen=True)
class Amount:
    """How much is tried.

    Attributes:
        steps: of a run.
        kills: at random moments, of each setting.
        every: so many of the points of a save, and of the starts after a damage, are left out but for one.
        flips: bits of each file.
        disks: of each kind and setting.
        examples: of made-up input that is only read; whole starts are fewer.
    """

    steps: int
    kills: int
    every: int
    flips: int
    disks: int
    examples: int
    settings: tuple[Setting, ...] = SETTINGS


FULL = Amount(steps=60, kills=30, every=1, flips=40, disks=5, examples=2000)
SHORT = Amount(steps=20, kills=4, every=13, flips=3, disks=1, examples=40, settings=SETTINGS[2:6:3])


def faults(workshop: Workshop, amount: Amount) -> Iterator[Callable[[], Table]]:
    """All that disturb a run."""
    some = amount.settings[::3]
    yield lambda: kills.at_random(workshop, amount.settings, amount.kills)
    yield lambda: kills.at_points(workshop, amount.every)
    yield lambda: damage.looked_at(workshop, amount.settings, amount.flips)
    yield lambda: damage.resumed(workshop, some, amount.every)
    yield lambda: folder.started_twice(workshop, some)
    if folder.can_mount():
        yield lambda: folder.on_bad_disks(workshop, some, amount.disks)
    else:
        print("no disks were tried: needs root, to mount some")


def inputs(workshop: Workshop, amount: Amount) -> Iterator[Callable[[], Table]]:
    """All that may be given to a run."""
    n = amount.examples
    yield lambda: fuzz.hostfiles(workshop.folder, n)
    yield lambda: fuzz.deepspeed_jsons(workshop.folder, n)
    yield lambda: fuzz.in_a_rank(fuzz.whole_jsons, workshop, n // 4)
    yield lambda: fuzz.flags_alone(n)
    yield lambda: fuzz.in_a_rank(fuzz.whole_flags, workshop, n // 2)
    yield lambda: fuzz.tags(workshop, n // 8)
    yield lambda: fuzz.checkpoint_manifests(workshop, n // 2)
    yield lambda: fuzz.in_a_rank(fuzz.whole_records, workshop, n // 8)
    yield lambda: fuzz.environments(workshop, n // 16)


def tables(amount: Amount) -> tuple[Table, Table]:
    """Of faults, and of input."""
    both: tuple[Table, Table] = ({}, {})
    with tempfile.TemporaryDirectory() as place:
        workshop = Workshop(Path(place), amount.steps)
        for table, tries in zip(both, (faults, inputs), strict=True):
            for each in tries(workshop, amount):
                begun = time.perf_counter()
                add(table, found := each())
                print(f"{time.perf_counter() - begun:4.0f} s: {', '.join(found)}", flush=True)
    return both


def write_csv(path: Path, table: Table) -> None:
    """A line for each fault and outcome."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fault", "outcome", "count"])
        writer.writerows([kind, outcome, n] for kind, seen in table.items() for outcome, n in seen.items())


def main() -> None:
    """Command line."""
    (arguments,) = parse("Faults of every kind in a small run.", Arguments, prog="tests.faults")
    disturbed, given = tables(FULL)
    print("\n".join(["", *lines(disturbed, FAULTS), "", *lines(given, INPUT)]))
    if arguments.output:
        write_csv(arguments.output, disturbed | given)
    if is_bad(disturbed | given):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
