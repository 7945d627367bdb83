"""Fine-tuning on a task of GLUE or on SQuAD; with a fine-tuned teacher, a second distillation.

    deepspeed finetune_dilbert.py --deepspeed_config ds_configs/finetune_bf16.json --task sst2 --data glue/SST-2 \\
        --model models/dilbert --output runs/sst2
    deepspeed finetune_dilbert.py --deepspeed_config ds_configs/squad_bf16.json --task squad --data squad \\
        --model models/dilbert --teacher models/bert-squad --output runs/squad
    python finetune_dilbert.py --eval-only --task sst2 --data glue/SST-2 --model models/dilbert-sst2 --output runs/eval

Any BERT or DistilBERT, ours or of the hub. `python` and `torchrun` start it, too.
"""

import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch import distributed  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import numpy as np
import torch

from data.loader import prefetch
from data.tasks import TASKS, Example, Features, FeatureSettings, Task
from data.tasks.stream import TaskBatch, TaskStream, in_order
from data.tokenizer import load_tokenizer, vocabulary_of
from launch import agreement, checkpoint, commit, ds_config, hub, restore, space
from launch.args import flag, parse, require
from launch.distributed import World
from launch.errors import CheckpointError, ConfigError, Stopped, run
from launch.flags import FREE, Cadence, Ends, Start, TaskLength
from launch.lock import Lock
from launch.progress import bar
from launch.retention import Retention
from launch.run_folder import HEAD, MODEL, TOKENIZER, RunFolder, environment, flags_of
from launch.stop import StopSigns, seconds
from launch.training import Course, Training
from model import heads, hf
from model.distiller import parameter_groups
from model.finetuner import TERMS, FineTuner, TaskInputs, TaskObjective
from model.heads import TaskModel

DESCRIPTION = "Fine-tune a BERT or a student on a task, inside DeepSpeed; with --teacher, distil the task, too."
EXAMPLE = """\
  deepspeed finetune_dilbert.py --deepspeed_config ds_configs/finetune_bf16.json --task sst2 --data glue/SST-2 \\
      --model models/dilbert --output runs/sst2"""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
RESULT = "result.json"


@dataclass(frozen=True)
class Paths:
    """What is learnt, read and written."""

    task: Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli", "squad", "squad_v2"] = flag(
        help="of GLUE, or SQuAD 1.1 or 2.0"
    )
    model: str = flag(help="model folder or hub name to start from; with --eval-only, one that knows the task", metavar="NAME")
    output: Path = flag(help="run folder; a second start in it goes on with the run", metavar="RUN")
    deepspeed_config: Path | None = flag(
        None, "DeepSpeed JSON: batch, precision, ZeRO, optimizer, schedule; --eval-only needs none", "JSON"
    )
    data: Path | None = flag(
        None, "folder with the task's files as published (default: the Hugging Face hub, by `datasets`)", "FOLDER"
    )
    teacher: str | None = flag(None, "a model that knows the task, whose outputs are learnt, too", "NAME")


@dataclass(frozen=True)
class Evaluation:
    """How it is measured."""

    eval_only: bool = flag(False, "measure --model as it is: nothing is trained")
    predict: Path | None = flag(None, "write the predictions on the evaluation data there, too", "FILE")
    seeds: int = flag(1, "runs, by --seed and the numbers after it, each in a folder of its own: their median counts")
    eval_batch: int = flag(32, "sequences at once; the figures do not depend on it")

    def __post_init__(self) -> None:
        for name in ("seeds", "eval_batch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        if self.eval_only:
            require(self.seeds == 1, "seeds", self.seeds, "nothing is drawn with --eval-only")


@dataclass(frozen=True)
class Inputs:
    """The task's examples, and what they are as tokens.

    Attributes:
        train: None where nothing is trained.
        held_out: by name of the split: most tasks have one.
    """

    task: Task
    settings: FeatureSettings
    train: Features | None
    held_out: dict[str, tuple[list[Example], Features]]


def finetune(
    lock: Lock, inputs: Inputs, folder: RunFolder, world: World, signs: StopSigns, paths: Paths, length: TaskLength,
    objective: TaskObjective, evaluation: Evaluation, cadence: Cadence, keep: Retention, ends: Ends, begin: Start,
) -> dict[str, float]:  # fmt: skip
    """The story of one run, top to bottom.

    Args:
        begin: with the seed of this run.

    Returns:
        The task's metrics at the end.

    Raises:
        DilbertError: whatever keeps it from starting or going on, with its exit code.
        Stopped: at `--stop-at-step`, or by a stop sign (launch.stop).
    """
    lock.take()
    assert inputs.train is not None and paths.deepspeed_config is not None
    task, raw_config = inputs.task, ds_config.load(paths.deepspeed_config, distributed.device_type())

    with agreement.together():
        torch.manual_seed(begin.seed)
        student = heads.load(paths.model, task.head, task.labels)
        teacher = heads.load(paths.teacher, task.head, task.labels, known=True) if paths.teacher else None
        check_together(inputs, paths.model, student, paths.teacher, teacher)

    # How long, and in which parts.
    batch = ds_config.batch_sizes(raw_config, world.ranks)["train_batch_size"]
    stream = TaskStream(inputs.train, batch, begin.seed, f"{task.name} {asdict(inputs.settings)}")
    steps = length.steps(stream.epoch_size, batch)
    config = ds_config.resolve(raw_config, world.ranks, steps, length.warmup(steps))
    accumulation = config["gradient_accumulation_steps"]

    # A run goes on as it was started, or not at all.
    groups = (paths, length, inputs.settings, objective, evaluation, cadence, keep, ends, begin)
    record: dict[str, Any] = {"flags": flags_of(*groups), "deepspeed_config": raw_config}
    record |= {"fingerprint": stream.fingerprint(), MODEL: student.config.to_dict()}
    record |= {HEAD: {"kind": task.head, "labels": task.labels}, "teacher": hf.fingerprint(teacher) if teacher else None}
    folder.check(record, FREE, begin.allow_change, begin.fresh)

    # The engine holds the student; the teacher stands beside it.
    if teacher:
        teacher.requires_grad_(False).to(world.device, DTYPES[ds_config.precision(config)])
    tuner = FineTuner(student, teacher, objective, parts=world.ranks * accumulation)
    engine = distributed.initialise(tuner, parameter_groups(tuner), config)
    if found := checkpoint.newest_for_all(folder.checkpoints):
        restore.load(engine, found)
    last = length.last(steps, engine.global_steps)
    space.check(engine, folder.checkpoints, keep.most(engine.global_steps, last, cadence.checkpoint_interval))
    if world.is_main:
        facts = environment(world, fingerprint=record["fingerprint"])
        folder.begin(config=record, ds_config=config, environment=facts)
        keep_tokenizer(paths.model, folder.path / TOKENIZER)

    with Training(engine, folder, world, signs, steps, last, begin.seed, cadence, keep, ends) as training:
        training.say(headline(tuner, inputs, config, world, steps, engine.global_steps))

        def make(step: int) -> list[tuple[TaskBatch, TaskInputs]]:
            made = stream.micro_batches(step, world.rank, world.ranks, accumulation)
            return [(part, TaskInputs.of(part, world.device)) for part in made]

        measured: dict[int, dict[str, float]] = {}

        def measure() -> dict[str, float]:
            outputs = all_outputs(tuner, inputs, world, evaluation.eval_batch, training.heart.tick)
            return measured.setdefault(engine.global_steps, scores(inputs, outputs))

        training.run(Course(
            prefetch(make, training.todo), TERMS, tuner.active_terms, stream.numbers,
            progress=lambda step: {"epoch": step * batch / stream.epoch_size}, measure=measure,
        ))  # fmt: skip
        metrics = measured.get(steps) or measure()
        if world.is_main:
            folder.write(RESULT, result(inputs, paths, metrics, seed=begin.seed, step=steps))
        training.say(shown(metrics))
        training.done(f"Next: python -m model.export {folder.path} --output {folder.path}/export")
    return metrics
