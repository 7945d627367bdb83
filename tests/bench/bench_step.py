"""How fast is a step of distillation? The same pair of models and sequences, from the usual way to ours.

    python -m tests.bench.bench_step [--pair small|base] [--dtype fp32|bf16] [--lengths mixed|128|512]
    python -m tests.bench.bench_step --profile | --deepspeed | --optimizers

Forward of the teacher, forward and backward of the student, three losses; no optimizer. Each variant runs in processes
of its own, in turn (A B C A B C), all with the same environment for OpenMP and the allocator; the table has medians
and ratios to its first row. Rates are in real tokens, TFLOP/s by formula of real tokens. MFU is their share of what the
fastest large matrix product of the same process does (on a CPU: in as much CPU time), and of the maker's figure for the
GPU. What is computed is compared with the original's way in fp64, on one batch without dropout: the loss, and the word
embedding's gradient (L2), both relative. Hardware: CPU or one GPU; on 2 idle cores ten minutes for the small pair, half
an hour for the base pair.
"""

import csv
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launch import cpu  # noqa: F401  # isort: skip  (before torch)

import torch

from launch.args import flag, parse, require
from launch.errors import run
from launch.progress import bar
from tests.bench import step_measure
from tests.bench.step_table import Cells, Figures, cells
from tests.bench.step_variants import VARIANTS, Setting
from tests.bench.table import show_cells

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Arguments:
    """What is measured."""

    pair: Literal["tiny", "small", "base"] = flag("small", "teacher 4 x 256 and student 2 x 256; base: 12 and 6 x 768")
    dtype: Literal["fp32", "bf16"] = flag("fp32", "of weights and activations")
    lengths: Literal["mixed", "128", "512"] = flag("mixed", "tokens a sequence; mixed: log-normal, 127 in the mean")
    batch: int | None = flag(
        None, "sequences of a batch, but for the original's way, which has 5 (default: 32; base pair on a CPU: 16, in "
        "fp32 12; on a GPU: 64)", "SEQUENCES",
    )  # fmt: skip
    sequences: int = flag(160, "that each process goes through, after some to warm up with")
    rounds: int = flag(3, "processes of each variant")
    variants: tuple[int, ...] = flag(tuple(range(1, len(VARIANTS) + 1)), "rows of the table, by number", "ROW")
    output: Path = flag(Path("bench-step"), "where the tables are kept as CSV", "FOLDER")
    quick: bool = flag(False, "each row once and in this process, on few sequences: does it run?")
    profile: bool = flag(False, "instead of the table: what one step of ours is made of")
    deepspeed: bool = flag(False, "instead: steps with optimizer, by DeepSpeed's engine and without it")
    optimizers: bool = flag(False, "instead: forms of Adam, on as many parameters as the base pair's student has")

    def __post_init__(self) -> None:
        for name in ("batch", "sequences", "rounds"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive")
        known = set(self.variants) <= set(range(1, len(VARIANTS) + 1))
        require(known, "variants", " ".join(map(str, self.variants)), f"must be numbers from 1 to {len(VARIANTS)}")

    def setting(self) -> Setting:
        """What all variants have in common."""
        on_cpu = 32 if self.pair != "base" else 12 if self.dtype == "fp32" else 16
        usual = 64 if torch.cuda.is_available() else on_cpu
        setting = Setting(self.pair, self.dtype, self.lengths, self.batch or usual, self.sequences)
        return replace(setting, batch=5, sequences=10, quick=True) if self.quick else setting

    def names(self) -> list[str]:
        """Of the chosen variants."""
        names = list(VARIANTS)
        return [names[number - 1] for number in self.variants]


def main() -> None:
    """Measure what is asked for, print the table, and keep it."""
    (arguments,) = parse("How fast is a step?", Arguments, prog="tests.bench.bench_step")
    setting = arguments.setting()
    print(f"{setting.pair} pair, {setting.dtype}, lengths {setting.lengths}, on {place()}")
    if os.getloadavg()[0] > 0.5:
        print(f"the machine is busy (load {os.getloadavg()[0]:.1f}): trust the CPU times more than the others")
    name, table = measured(arguments, setting)
    show_cells(table, right=[i for i, column in enumerate(zip(*table[1:], strict=True)) if numeric(column)])
    keep(arguments.output / f"{name}.csv", setting, table)


def measured(arguments: Arguments, setting: Setting) -> tuple[str, Cells]:
    """A table and its name. What only one table needs is imported for it alone: DeepSpeed takes seconds."""
    if arguments.profile:
        from tests.bench.step_profile import breakdown

        return "profile", breakdown(setting)
    if arguments.deepspeed:
        from tests.bench.step_engine import compare

        return "deepspeed", compare(setting)
    if arguments.optimizers:
        from tests.bench.step_optimizers import compare_optimizers

        return "optimizers", compare_optimizers(setting)
    return "step", cells(setting, all_variants(arguments, setting))


def all_variants(arguments: Arguments, setting: Setting) -> dict[str, list[Figures]]:
    """Figures of each variant's processes; in the first round, what it computes is compared, too."""
    names, rounds = arguments.names(), 1 if arguments.quick else arguments.rounds
    measure = here if arguments.quick else in_a_process
    found: dict[str, list[Figures]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, bar(1 + rounds * len(names), " processes", "measuring") as progress:
        reference = Path(folder) / "reference.npz"
        measure(setting, step_measure.REFERENCE, reference)
        progress.update()
        for number in range(rounds):
            for name, results in found.items():
                results.append(measure(setting, name, reference if number == 0 else None))
                progress.update()
    return found


def here(setting: Setting, name: str, reference: Path | None) -> Figures:
    """One variant in this process."""
    return step_measure.one(setting, name, reference)


def in_a_process(setting: Setting, name: str, reference: Path | None) -> Figures:
    """One variant in a process of its own."""
    done = subprocess.run(
        step_measure.command(setting, name, reference), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name}:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


# --- the table ---


def place() -> str:
    """What it runs on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{os.cpu_count()} cores of {model}"


def numeric(column: Sequence[str]) -> bool:
    """Whether a column has numbers, or dashes for them, alone."""
    return all(cell[:1] in set("-0123456789") for cell in column)


def keep(path: Path, setting: Setting, table: Cells) -> None:
    """Add a table to its file, with what it is about before each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = [time.strftime("%F"), place(), setting.pair, setting.lengths, setting.sequences]
    with open(path, "a", newline="") as file:
        csv.writer(file).writerows([*about, *row] for row in table)


if __name__ == "__main__":
    run(main)
