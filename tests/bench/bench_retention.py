"""What does a student keep of its teacher? Pre-trained small, fine-tuned on tasks, three ways; and the report of it.

    python -m tests.bench.bench_retention --corpus FOLDER --glue FOLDER --squad FOLDER [--output bench-retention]

From the same text: a teacher; a student of every second of its layers, distilled; and the same architecture from random
weights with the same number of steps and no teacher. Each is fine-tuned on SST-2, RTE and SQuAD 1.1, with several
seeds; the distilled one also under the fine-tuned teacher. With `--controls`, two more students, for SST-2: the
teacher's layers trained alone, and random weights distilled, which tells what the start has given and what the losses.
Prints medians and all seeds, and writes the report. Finished stages are reused. Hardware: 2 CPU cores, some two hours;
the controls, one more.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from launch.args import flag, parse
from launch.errors import run
from launch.log import read_log
from launch.run_folder import RunFolder
from tests.bench.bench_value import MASKING, ROOT, TEACHER, command, module

# Nine sequences of ten are short: among few tokens a small model finds out sooner which of them matter. Until then all
# that it knows is which words occur together, and more steps on long ones help little.
SHORT = 0.9
SHAPE = TEACHER | {"num_attention_heads": 4}
BATCH = {"train_batch_size": 48, "train_micro_batch_size_per_gpu": 24}
PRE_TRAINING_RATE = 2e-3

# So many passes, and the peak learning rate: small models want larger ones than BERT.
TASKS = {
    "squad": ("--epochs", "4", "--max-length", "128", "--doc-stride", "16", "--max-query-length", "32"),
    "rte": ("--epochs", "4"),
    "sst2": ("--epochs", "2"),
}
# Which start and which losses, one of the two changed: fine-tuned where differences are larger than chance.
CONTROLS = ("teacher's layers, alone", "random, distilled")
CONTROLLED = "sst2"
RATE = 5e-4


@dataclass(frozen=True)
class Arguments:
    """What is trained on what."""

    corpus: Path = flag(help="folder with dump.train.txt and dump.valid.txt, one sequence a line", metavar="FOLDER")
    glue: Path = flag(help="folder with SST-2 and RTE as published", metavar="FOLDER")
    squad: Path = flag(help="folder with train-v1.1.json and dev-v1.1.json", metavar="FOLDER")
    output: Path = flag(Path("bench-retention"), "where everything is kept", "FOLDER")
    teacher_steps: int = flag(
        15_000, f"steps of the teacher's pre-training, {BATCH['train_batch_size']} sequences each"
    )
    steps: int = flag(4_000, "steps of each student")
    seeds: int = flag(3, "of each fine-tuning")
    controls: bool = flag(False, "two more students: the teacher's layers, alone; random weights, distilled")


def pre_train(arguments: Arguments, name: str, steps: int, *words: object) -> Path:
    """A pre-training job, and its model folder."""
    output = arguments.output.resolve()
    name = f"{name}-{steps}"
    folder, model = output / "runs" / name, output / name
    if not (folder / "DONE.json").exists():
        config = json.loads((ROOT / "ds_configs" / "cpu.json").read_text()) | BATCH
        config["optimizer"]["params"]["lr"] = PRE_TRAINING_RATE
        (output / "pretrain.json").write_text(json.dumps(config))
        data = [f"{output / 'short'}:{SHORT}", f"{output / 'train'}:{1 - SHORT:.1f}"]
        flags = ["--deepspeed_config", output / "pretrain.json", "--data", *data, "--valid-data", output / "valid",
                 "--output", folder, "--max-steps", steps, "--eval-interval", max(1, steps // 10),
                 "--log-interval", 100]  # fmt: skip
        command("deepspeed", "--num_gpus", 2, "train_dilbert.py", *flags, *MASKING, *words)
    module("model.export", model, folder, "--output", model)
    return model


def pre_trained(arguments: Arguments) -> dict[str, Path]:
    """Teacher and students, by their names in the table."""
    output = arguments.output.resolve()
    start, empty = output / "teacher-start", output / "student-empty"
    output.mkdir(parents=True, exist_ok=True)
    text, held_out = (arguments.corpus / f"dump.{part}.txt" for part in ("train", "valid"))
    module("data.train_tokenizer", start, "--input", text.resolve(), "--vocab-size", 8192, "--output", start)
    (start / "config.json").write_text(json.dumps(SHAPE))
    for part, path, length in (("train", text, 128), ("short", text, 32), ("valid", held_out, 128)):
        module("data.binarize", output / part, "--input", path.resolve(), "--tokenizer", start, "--max-length", length,
               "--output", output / part)  # fmt: skip
    teacher = pre_train(arguments, "teacher", arguments.teacher_steps, "--student", start)
    begun = output / f"student-of-{teacher.name}"
    module("model.extract", begun, "--teacher", teacher, "--output", begun)
    if not empty.exists():  # the student's architecture, without its weights
        empty.mkdir()
        for path in begun.iterdir():
            if path.suffix != ".safetensors":
                (empty / path.name).write_bytes(path.read_bytes())
        config = json.loads((begun / "config.json").read_text())
        (empty / "config.json").write_text(json.dumps(config | {"initializer_range": TEACHER["initializer_range"]}))

    def student(name: str, start: Path, *words: object) -> Path:
        return pre_train(arguments, name, arguments.steps, "--student", start, *words)

    under, of = ("--teacher", teacher), teacher.name
    models = {
        "teacher": teacher,
        "distilled": student(f"distilled-by-{of}", begun, *under),
        "alone": student("alone", empty),
    }
    if arguments.controls:
        models[CONTROLS[0]] = student(f"layers-of-{of}-alone", begun)
        models[CONTROLS[1]] = student(f"random-distilled-by-{of}", empty, *under)
    return models


def fine_tune(arguments: Arguments, task: str, model: Path, seed: int, teacher: Path | None = None) -> Path:
    """A fine-tuning job of one seed, on one core; its run folder."""
    output = arguments.output.resolve()
    folder = output / "runs" / f"{task}-{model.name}{'-again' if teacher else ''}" / f"seed-{seed}"
    if not (folder / "DONE.json").exists():
        data = arguments.squad if task == "squad" else arguments.glue
        words = [sys.executable, "finetune_dilbert.py", "--deepspeed_config", output / "finetune.json", "--task", task,
                 "--data", data.resolve(), "--model", model, "--output", folder, "--seed", seed, *TASKS[task],
                 "--log-interval", 50]  # fmt: skip
        words += ["--teacher", teacher] if teacher else []
        done = subprocess.run(
            list(map(str, words)), cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{folder}:\n{done.stdout}\n{done.stderr}")
    return folder


def fine_tuned(arguments: Arguments, models: dict[str, Path]) -> dict[str, dict[str, list[Path]]]:
    """Run folders by task and way, two jobs at a time."""
    output, found = arguments.output.resolve(), {}
    config = json.loads((ROOT / "ds_configs" / "finetune_fp32.json").read_text())
    config["optimizer"]["params"]["lr"] = RATE
    (output / "finetune.json").write_text(json.dumps(config))
    with ThreadPoolExecutor(2) as pool:
        for task in TASKS:
            print(f"fine-tuning on {task}", flush=True)
            ways = {
                name: [pool.submit(fine_tune, arguments, task, model, seed) for seed in range(arguments.seeds)]
                for name, model in models.items()
                if name not in CONTROLS or task == CONTROLLED
            }
            best = max((job.result() for job in ways["teacher"]), key=score)
            teacher = output / f"{models['teacher'].name}-{task}"
            module("model.export", teacher, best, "--output", teacher)
            ways["distilled again"] = [
                pool.submit(fine_tune, arguments, task, models["distilled"], seed, teacher)
                for seed in range(arguments.seeds)
            ]
            found[task] = {name: [job.result() for job in jobs] for name, jobs in ways.items()}
    return found


def score(folder: Path) -> float:
    """The metric that counts."""
    result = RunFolder(folder).read("result.json")
    return result["metrics"][result["main"]]


def held_out(run_folder: Path) -> float:
    """A pre-training's masked-language-model loss at its end, nats."""
    return [row["valid_loss"] for row in read_log(run_folder / "log.jsonl") if "valid_loss" in row][-1]


def main() -> None:
    """Run what is not there yet, print the table, write the report."""
    (arguments,) = parse("What does a student keep of its teacher?", Arguments, prog="tests.bench.bench_retention")
    models = pre_trained(arguments)
    found = fine_tuned(arguments, models)
    output = arguments.output.resolve()
    print("\nheld-out masked-LM loss")
    for name, model in models.items():
        print(f"{name:<25}{held_out(output / 'runs' / model.name):>8.4f}")
    print(f"\n{'task':<8}{'model':<25}{'median':>8}  seeds")
    for task, ways in found.items():
        for name, folders in ways.items():
            scores = [score(folder) for folder in folders]
            each = " ".join(f"{value:.4f}" for value in scores)
            print(f"{task:<8}{name:<25}{statistics.median(scores):>8.4f}  {each}")
    runs = [folder for ways in found.values() for folders in ways.values() for folder in folders]
    runs += [output / "runs" / model.name for model in models.values()]
    shutil.rmtree(output / "report", ignore_errors=True)  # an earlier one
    command(sys.executable, "-m", "launch.report", "--teacher", models["teacher"], "--student", models["distilled"],
            "--data", output / "valid", *MASKING, "--output", output / "report", "--runs", *runs)  # fmt: skip


if __name__ == "__main__":
    run(main)
