"""Fine-tuning on a task of GLUE or on SQuAD; under a fine-tuned teacher, a second distillation.

    deepspeed finetune_dilbert.py --deepspeed_config ds_configs/finetune_bf16.json --task sst2 --data glue/SST-2 \\
        --model models/dilbert --output runs/sst2
    deepspeed finetune_dilbert.py --deepspeed_config ds_configs/finetune_bf16.json --task squad --data squad \\
        --model models/dilbert --teacher models/bert-squad --output runs/squad
    python finetune_dilbert.py --eval-only --task sst2 --data glue/SST-2 --model models/dilbert-sst2 --output runs/eval

Any BERT or DistilBERT, ours or of the hub. `python` and `torchrun` start it, too.
"""

import logging
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch import distributed  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import torch

from data.loader import prefetch
from data.tasks import FeatureSettings
from data.tasks.stream import TaskBatch, TaskStream
from launch import agreement, checkpoint, dry_run, ds_config, hub, restore, space, task_forms
from launch.args import flag, parse, require, require_named
from launch.costs import Tokens, task_flops
from launch.distributed import World
from launch.errors import CheckpointError, Stopped, run, say
from launch.flags import FREE, Cadence, Cost, Ends, Start, TaskLength
from launch.lock import Lock
from launch.progress import bar
from launch.retention import Retention
from launch.run_folder import HEAD, MODEL, TOKENIZER, RunFolder, environment, flags_of
from launch.stop import StopSigns, seconds
from launch.tasks import Examiner, Inputs
from launch.training import Course, Training
from model import heads, hf
from model.distiller import parameter_groups
from model.finetuner import TERMS, FineTuner, TaskInputs
from model.heads import TaskModel
from model.losses import TaskObjective

DESCRIPTION = "Fine-tune a BERT or a student on a task, inside DeepSpeed; under --teacher, distil the task, too."
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
    model: str = flag(
        help="model folder or hub name to start from; with --eval-only, one that knows the task", metavar="NAME"
    )
    output: Path = flag(help="run folder; a second start in it goes on with the run", metavar="RUN")
    deepspeed_config: Path | None = flag(
        None, "DeepSpeed JSON: batch, precision, ZeRO, optimizer, schedule; --eval-only needs none", "JSON",
        recorded=ds_config.refuse_changed,
    )  # fmt: skip
    data: Path | None = flag(
        None, "folder with the task's files as published (default: the Hugging Face hub, by `datasets`)", "FOLDER"
    )
    teacher: str | None = flag(None, "a model that knows the task, whose outputs are learnt, too", "NAME")

    def __post_init__(self) -> None:
        require_named("output", self.output)


@dataclass(frozen=True)
class Evaluation:
    """How it is measured."""

    eval_only: bool = flag(False, "measure --model as it is: nothing is trained")
    predict: Path | None = flag(None, "write the predictions on the evaluation data there, too", "FILE")
    onnx: bool = flag(
        False, "with --eval-only: the ONNX files beside the weights, too, one input at a time: score, size and latency"
    )
    test: bool = flag(False, "with --eval-only --predict: on GLUE's test set, which has no labels; its server marks it")
    seeds: int = flag(
        1, "runs, by --seed and the numbers after it, each in a folder of its own; their median counts", "RUNS"
    )
    eval_batch: int = flag(32, "sequences at once; the figures do not depend on it", "SEQUENCES")

    def __post_init__(self) -> None:
        for name in ("seeds", "eval_batch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        alone = self.eval_only and self.predict is not None
        require(not self.test or alone, "test", self.test, "has no labels: give --eval-only and --predict FILE with it")
        marked = self.eval_only and not self.test
        require(not self.onnx or marked, "onnx", self.onnx, "is for --eval-only, on data with labels")
        near = self.predict.parent if self.predict else Path()
        require(near.is_dir(), "predict", self.predict, f"there is no folder {near}")
        require(not self.predict or not self.predict.is_dir(), "predict", self.predict, "must be a file")
        one = not self.eval_only and self.predict is None
        require(self.seeds == 1 or one, "seeds", self.seeds, "several runs, but one is measured or predicts")


def finetune(
    lock: Lock, inputs: Inputs, world: World, signs: StopSigns, paths: Paths, home: Path, length: TaskLength,
    objective: TaskObjective, evaluation: Evaluation, cadence: Cadence, keep: Retention, ends: Ends, cost: Cost,
    begin: Start,
) -> dict[str, float]:  # fmt: skip
    """The story of one run, top to bottom.

    Args:
        home: the run's folder; that of `paths` may be that of a rehearsal.

    Returns:
        the task's metrics at its end; none of a dry run.

    Raises:
        DilbertError: whatever keeps it from starting or going on, with its exit code.
        Stopped: at `--stop-at-step`, or by a stop sign (launch.stop).
    """
    assert inputs.train is not None and paths.deepspeed_config is not None
    raw_config, folder, task = load_config(paths), RunFolder(paths.output), inputs.task
    lock.take()

    # Models, and whether they belong to the task and to each other.
    with agreement.together():
        torch.manual_seed(begin.seed)
        student = heads.load(paths.model, task.head, task.labels).train()
        teacher = heads.load(paths.teacher, task.head, task.labels, known=True) if paths.teacher else None
        inputs.check((paths.model, student), (paths.teacher, teacher))

    # How long, and in which parts.
    batch = ds_config.batch_sizes(raw_config, world.ranks)["train_batch_size"]
    stream = TaskStream(inputs.train, batch, begin.seed, f"{task.name} {asdict(inputs.settings)}")
    steps = length.steps(stream.epoch_size, batch)
    config = ds_config.resolve(raw_config, world.ranks, steps, length.warmup(steps))
    accumulation = config["gradient_accumulation_steps"]

    # A run goes on as it was started, or not at all.
    flags = flags_of(paths, length, inputs.settings, objective, evaluation, cadence, keep, ends, cost, begin)
    record: dict[str, Any] = {"flags": flags, "deepspeed_config": raw_config, "fingerprint": stream.fingerprint()}
    record |= {MODEL: student.config.to_dict(), HEAD: student.task.to_dict()}
    record |= {"teacher": hf.fingerprint(teacher) if teacher else None, "folder": str(Path.cwd())}
    if begin.dry_run:
        distributed.by_main(folder.clear)
    folder.check(record, FREE, begin.allow_change, begin.fresh, RunFolder(home))

    # The engine holds the student; the teacher stands beside it.
    if teacher:
        teacher.requires_grad_(False).to(world.device, DTYPES[ds_config.precision(config)])
    before = dry_run.resident(world)
    tuner = FineTuner(student, teacher, objective, parts=world.ranks * accumulation)
    engine = distributed.initialise(tuner, parameter_groups(tuner), config)
    if found := checkpoint.newest_for_all(folder.checkpoints):
        restore.load(engine, found)
    done = dry_run.steps_done(home, begin.fresh) if begin.dry_run else engine.global_steps
    last = length.last(steps, done)
    checkpoints = keep.most(done, last, cadence.checkpoint_interval)
    space.check(engine, folder.checkpoints, checkpoints)
    if teacher and paths.teacher and done == 0:
        examine(paths.teacher, teacher, inputs, world, evaluation.eval_batch)
    if world.is_main:
        facts = environment(world, steps=steps, fingerprint=record["fingerprint"])
        folder.begin(done == steps, config=record, ds_config=config, environment=facts)
        (folder.path / TOKENIZER).mkdir(exist_ok=True)
        hub.copy_tokenizer(hub.fetch(paths.model, hub.TOKENIZER_FILES), folder.path / TOKENIZER)

    def make(step: int) -> list[tuple[TaskBatch, TaskInputs]]:
        made = stream.micro_batches(step, world.rank, world.ranks, accumulation)
        return [(part, TaskInputs.of(part, world.device)) for part in made]

    models_of = teacher.config if teacher else None, student.config
    largest = stream.largest(range(done, last), world.ranks * accumulation)
    memory = dry_run.memory(*models_of, config, world, before, largest, chunk=0)
    examiner = Examiner(tuner, inputs, world, evaluation.eval_batch)
    if begin.dry_run:
        few = map(make, range(min(steps, dry_run.STEPS)))
        rehearsed = dry_run.rehearse(engine, world, few, begin.seed, examiner.measure, folder.checkpoints)
        if world.is_main:
            say(headline(tuner, inputs, config, world, steps, 0))
            todo, saved = range(done, last), (cadence, checkpoints, folder.path)
            lines = dry_run.report(rehearsed, engine, config, memory, steps, todo, *saved)
            dry_run.show(folder.path, home, lines, begin.fresh, todo)
        return {}

    with Training(engine, folder, world, signs, steps, last, begin.seed, cadence, keep, ends, cost) as training:
        training.say(headline(tuner, inputs, config, world, steps, done))

        def flops(part: TaskBatch) -> float:
            tokens = Tokens.within(part.cu_seqlens, part.tokens)
            return task_flops(*models_of, tokens)

        def measure() -> dict[str, float]:
            return examiner.measure(training.heart.tick)

        training.run(Course(
            prefetch(make, training.todo), TERMS, tuner.active_terms, stream.numbers,
            progress=lambda step: {"epoch": step * batch / stream.epoch_size}, flops=flops, measure=measure,
        ))  # fmt: skip
        metrics = examiner.metrics or measure()  # the last step was measured, unless this start had none to do
        keep_result(folder, inputs, paths, evaluation, examiner, world, seed=begin.seed, step=steps)
        training.say(f"{task.name} | {shown(metrics)}")
        training.say(dry_run.beside(memory, world))
        training.done(f"Next: python -m model.export {folder.path} --output models/NAME")
    return metrics


def check_output(output: Path, evaluation: Evaluation) -> None:
    """Nothing of another kind may be there: its result would be lost.

    Raises:
        ConfigError: there is.
    """
    several = evaluation.seeds > 1
    seeds = ", ".join(sorted(path.name for path in output.glob("seed-*")))
    require(several or not seeds, "output", output, f"has runs of several seeds ({seeds}); choose another folder")
    one = not several and not evaluation.eval_only
    rule = "holds a single run, whose result would be lost; choose another folder"
    require(one or RunFolder(output).recorded() is None, "output", output, rule)


def load_config(paths: Paths) -> ds_config.Json:
    """The DeepSpeed JSON.

    Raises:
        ConfigError: it is not given, or as `ds_config.load`.
    """
    rule = "give a DeepSpeed JSON, such as ds_configs/finetune_bf16.json"
    require(paths.deepspeed_config is not None, "deepspeed_config", None, rule)
    assert paths.deepspeed_config
    return ds_config.load(paths.deepspeed_config, distributed.device_type())


def examine(name: str, teacher: TaskModel, inputs: Inputs, world: World, size: int) -> None:
    """Say what the teacher scores itself.

    Raises:
        ConfigError: it seems to mean the labels in another order.
    """
    examiner = Examiner(FineTuner(teacher, None, TaskObjective()), inputs, world, size)
    with bar(examiner.batches, " batches", "measuring the teacher") as progress:
        metrics = examiner.measure(lambda _: progress.update())
    examiner.check_labels("teacher", name)
    if world.is_main:
        say(f"{inputs.task.name} | teacher | {shown(metrics)}")


def evaluate(inputs: Inputs, paths: Paths, evaluation: Evaluation, world: World) -> None:
    """Measure a model as it is, in fp32."""
    require(not evaluation.onnx or world.ranks == 1, "onnx", True, "measures latency: start one process alone")
    with agreement.together():
        model = heads.load(paths.model, inputs.task.head, inputs.task.labels, known=True)
        inputs.check((paths.model, model))
    tuner = FineTuner(model.to(world.device), None, TaskObjective())
    forms = task_forms.opened(paths.model, inputs.task.head, inputs.task.labels) if evaluation.onnx else []
    examiner = Examiner(tuner, inputs, world, evaluation.eval_batch)
    with bar(examiner.batches, " batches", "measuring") as progress:
        metrics = examiner.measure(lambda _: progress.update())
    if inputs.labelled:
        examiner.check_labels("model", paths.model)
        rows = task_forms.measure(forms, inputs) if forms else []
        more = {"production": rows} if rows else {}
        keep_result(RunFolder(paths.output), inputs, paths, evaluation, examiner, world, seed=None, step=None, **more)
        for row in rows:
            size, time = f"{row['bytes'] / 1e6:.1f} MB", f"{1e3 * row['seconds']:.1f} ms an input"
            say(f"{inputs.task.name} | {row['form']} | {shown(row['metrics'])} | {size} | {time}")
    elif world.is_main and evaluation.predict:
        examiner.write(evaluation.predict)
    if world.is_main:
        where = f"predictions: {evaluation.predict}" if evaluation.predict else ""
        say(" | ".join(filter(None, (inputs.task.name, shown(metrics), where))))


def several(
    seeds: range, paths: Paths, world: World, one: Callable[[Lock, Paths, int], dict[str, float]]
) -> dict[str, float]:
    """A run for each seed, in folders of their own, and the median of each metric in the folder above.

    Args:
        one: a whole run, given its lock, its paths and its seed.
    """
    folder, found = RunFolder(paths.output), {}
    if world.is_main:
        folder.begin()
    for seed in seeds:
        own = replace(paths, output=paths.output / f"seed-{seed}")
        if world.is_main:
            say(f"{paths.task} | seed {seed}: run {len(found) + 1} of {len(seeds)}")
        try:
            with Lock(own.output) as lock:
                found[seed] = one(lock, own, seed)
        except Stopped as stop:
            folder.end("STOPPED.json", {"code": Stopped.exit_code, "why": f"seed {seed}: {stop}"}, world)
            raise
    medians = {name: statistics.median(run[name] for run in found.values()) for name in found[seeds[0]]}
    if world.is_main:
        last = RunFolder(paths.output / f"seed-{seeds[-1]}").read(RESULT)
        folder.write(RESULT, last | {"metrics": medians, "seed": None, "seeds": found})
        say(f"{paths.task} | median of {len(seeds)} seeds | {shown(medians)}")
    folder.end("DONE.json", {"seeds": list(seeds)}, world)
    return medians


def keep_result(
    folder: RunFolder, inputs: Inputs, paths: Paths, evaluation: Evaluation, examiner: Examiner, world: World,
    **of_run: Any,
) -> None:  # fmt: skip
    """Write `result.json`, and the predictions if they are asked for; `main` is the metric that counts."""
    if not world.is_main:
        return
    examples = {name: len(rows) for name, (rows, _) in inputs.held_out.items()}
    models = {"model": paths.model, "teacher": paths.teacher}
    measured = {"task": inputs.task.name, "main": inputs.task.main, "metrics": examiner.metrics, "examples": examples}
    measured |= {"hashes": inputs.hashes()}
    folder.write(RESULT, {**measured, **models, "precision": precision_of(examiner.tuner), **of_run})
    if evaluation.predict:
        examiner.write(evaluation.predict)


def precision_of(tuner: FineTuner) -> str:
    """Of the weights that were measured: those of a run in 16 bit are rounded, those that it exports are not."""
    return next(name for name, dtype in DTYPES.items() if dtype == next(tuner.parameters()).dtype)


def headline(tuner: FineTuner, inputs: Inputs, config: dict, world: World, steps: int, start: int) -> str:
    """What is about to happen, in four lines."""
    assert inputs.train is not None
    sizes = [f"{inputs.task.name} | model {sum(p.numel() for p in tuner.parameters()):,} parameters"]
    if tuner.teacher:
        sizes.append(f"teacher {sum(p.numel() for p in tuner.teacher.parameters()):,}")
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    examples, batch, cores = len(inputs.train), config["train_batch_size"], world.device.type
    return (
        f"{', '.join(sizes)} | {ds_config.precision(config)}, ZeRO stage {ds_config.stage(config)}\n"
        f"{batch} inputs a step = {micro} x {accumulation} accumulation x {world.ranks} rank(s) on {cores}\n"
        f"{steps} steps = {steps * batch / examples:.2f} epochs of {examples:,} inputs, the longest of "
        f"{inputs.train.longest} tokens" + (f"; going on after step {start}" if start else "") + "\n"
        f"kernels: {tuner.kernels()}"
    )


def shown(metrics: dict[str, float]) -> str:
    """In one line."""
    return " | ".join(f"{name} {value:.4f}" for name, value in metrics.items())


GROUPS = (Paths, TaskLength, FeatureSettings, TaskObjective, Evaluation, Cadence, Retention, Ends, Cost, Start)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if distributed.is_main() else logging.ERROR)
    groups = parse(DESCRIPTION, *GROUPS, example=EXAMPLE, prog="finetune_dilbert.py", config=True)
    paths, length, features, objective, evaluation, cadence, keep, ends, cost, begin = groups
    learns = not (evaluation.eval_only and paths.teacher)
    require(learns, "teacher", paths.teacher, "with --eval-only nothing is learnt: leave it out")
    if not evaluation.eval_only:
        load_config(paths)  # before the data, which takes longer
    check_output(paths.output, evaluation)
    rehearsed = None  # the run, where this is but a rehearsal
    if begin.dry_run:
        rehearsed = paths.output / f"seed-{begin.seed}" if evaluation.seeds > 1 else paths.output
        paths, evaluation = replace(paths, output=paths.output / dry_run.FOLDER), replace(evaluation, seeds=1)
    with Lock(paths.output) as lock:  # however the run ends, its folder is free again
        world = distributed.start(begin.ranks)
        with agreement.together():
            inputs = Inputs.read(
                paths.task, paths.data, paths.model, features, not evaluation.eval_only, evaluation.test
            )
        if evaluation.eval_only:
            lock.take()
            return evaluate(inputs, paths, evaluation, world)
        signs = StopSigns(paths.output, seconds(ends.time_limit))

        def one(lock: Lock, paths: Paths, seed: int) -> dict[str, float]:
            alone, own = replace(evaluation, seeds=1), replace(begin, seed=seed)
            settings = (paths, rehearsed or paths.output, length, objective, alone, cadence, keep, ends, cost, own)
            return finetune(lock, inputs, world, signs, *settings)

        if evaluation.seeds == 1:
            one(lock, paths, begin.seed)
        else:
            lock.take()
            several(range(begin.seed, begin.seed + evaluation.seeds), paths, world, one)


if __name__ == "__main__":
    try:
        run(main, disk=CheckpointError)
        distributed.stop()
    except SystemExit as end:
        distributed.leave(int(end.code or 0))
