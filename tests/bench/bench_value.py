"""Is distillation worth it? The same student, from the same weights, on the same sequences and masks, with and without.

    python -m tests.bench.bench_value --data FOLDER [--output bench-value]

FOLDER holds dump.train.txt and dump.valid.txt, one sequence a line. Makes a vocabulary and a teacher, extracts a
student, then trains it under the teacher and alone, with three learning rates each, and prints the held-out masked-LM
loss of all six curves. Exit code 1 if the best distilled student is not better than the best one trained alone.
Finished stages are reused. Hardware: 2 CPU cores, about 25 minutes.
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.args import flag, parse
from launch.errors import DataError, run

ROOT = Path(__file__).parents[2]
RATES = (5e-4, 1e-3, 2e-3)
# A small corpus has too few of each rare word to learn from, so all words are masked alike.
MASKING = ("--mlm-smoothing", "0")
# No dropout: nothing here is seen often enough to be learnt by heart. The usual 0.02 is meant for wider models.
TEACHER = {
    "model_type": "bert",
    "vocab_size": 8192,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Arguments:
    """What is trained on what."""

    data: Path = flag(help="folder with dump.train.txt and dump.valid.txt", metavar="FOLDER")
    output: Path = flag(Path("bench-value"), "where everything is kept", "FOLDER")
    teacher_steps: int = flag(5000, "steps of the teacher's pre-training")
    steps: int = flag(300, "steps of each student: few, so that what the teacher knows counts")
    ranks: int = flag(2, "ranks of each job")


def command(*words: object) -> None:
    """A stage in a process of its own; its output goes to the terminal."""
    print("$", *words, flush=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([str(word) for word in words], cwd=ROOT, env=environment, check=True)


def module(name: str, result: Path, *words: object) -> None:
    """`python -m name ...`, unless its result is there."""
    if not result.exists():
        command(sys.executable, "-m", name, *words)


def ds_config(output: Path, rate: float) -> Path:
    """cpu.json with another peak learning rate."""
    config = json.loads((ROOT / "ds_configs" / "cpu.json").read_text())
    config["optimizer"]["params"]["lr"] = rate
    path = output / f"lr{rate:g}.json"
    path.write_text(json.dumps(config))
    return path


def job(arguments: Arguments, name: str, rate: float, steps: int, *words: object) -> list[dict[str, Any]]:
    """A training job; the held-out lines of its log."""
    output = arguments.output.resolve()
    folder = output / "runs" / name
    if not (folder / "DONE.json").exists():
        flags = [
            "--deepspeed_config",
            ds_config(output, rate),
            "--data",
            output / "train",
            "--valid-data",
            output / "valid",
        ]
        flags += [
            "--output",
            folder,
            "--max-steps",
            steps,
            "--eval-interval",
            max(1, steps // 6),
            "--log-interval",
            100,
        ]
        command("deepspeed", "--num_gpus", arguments.ranks, "train_dilbert.py", *flags, *MASKING, *words)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "valid_loss_mlm" in row]


def prepare(arguments: Arguments) -> tuple[Path, Path]:
    """Datasets, a teacher, and the student extracted from it."""
    output = arguments.output.resolve()
    start, teacher, student = output / "teacher-start", output / "teacher", output / "student-start"
    dumps = {part: (arguments.data / f"dump.{part}.txt").resolve() for part in ("train", "valid")}
    for path in dumps.values():
        if not path.is_file():
            raise DataError(f"{path}: missing")
    output.mkdir(parents=True, exist_ok=True)
    module("data.train_tokenizer", start, "--input", dumps["train"], "--vocab-size", 8192, "--output", start)
    (start / "config.json").write_text(json.dumps(TEACHER))
    for part, dump in dumps.items():
        module("data.binarize", output / part, "--input", dump, "--tokenizer", start, "--max-length", 128,
               "--output", output / part)  # fmt: skip
    job(arguments, "teacher", 1e-3, arguments.teacher_steps, "--student", start)
    module("model.export", teacher, output / "runs" / "teacher", "--output", teacher)
    module("model.extract", student, "--teacher", teacher, "--output", student)
    return teacher, student


def main() -> None:
    """Run what is not there yet, and print the table."""
    (arguments,) = parse("Distilled against trained alone.", Arguments, prog="tests.bench.bench_value")
    teacher, student = prepare(arguments)
    curves = {}
    for rate in RATES:
        alone = ("--student", student)
        curves["alone", rate] = job(arguments, f"alone-lr{rate:g}", rate, arguments.steps, *alone)
        curves["distilled", rate] = job(
            arguments, f"distilled-lr{rate:g}", rate, arguments.steps, *alone, "--teacher", teacher
        )
    steps = [row["step"] for row in curves["alone", RATES[0]]]
    print("\nheld-out masked-LM loss after step\n" + " ".join(f"{head:>10}" for head in ("student", "lr", *steps)))
    for (arm, rate), rows in sorted(curves.items()):
        print(f"{arm:>10} {rate:>10g} " + " ".join(f"{row['valid_loss_mlm']:>10.4f}" for row in rows))
    with open(arguments.output / "value.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "lr", "step", "valid_loss_mlm", "valid_accuracy"])
        for (arm, rate), rows in sorted(curves.items()):
            writer.writerows([arm, rate, row["step"], row["valid_loss_mlm"], row["valid_accuracy"]] for row in rows)
    best = {arm: min(curves[arm, rate][-1]["valid_loss_mlm"] for rate in RATES) for arm in ("alone", "distilled")}
    print(f"\nbest of {len(RATES)} rates: alone {best['alone']:.4f}, distilled {best['distilled']:.4f}")
    if best["distilled"] >= best["alone"]:
        sys.exit("the distilled student is not better")


if __name__ == "__main__":
    run(main)
