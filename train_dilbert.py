"""Pre-training by distillation: a teacher's distributions, hidden states and the masked words train a smaller student.

    deepspeed train_dilbert.py --deepspeed_config ds_configs/zero2_bf16.json --data datasets/train \\
        --teacher bert-base-uncased --student models/student --output runs/first --max-steps 100000

Without `--teacher` it is plain masked-language-model pre-training. `python` and `torchrun` start it, too.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from launch import distributed  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import torch

from data import describe
from data.batching import MicroBatch
from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut, StreamSettings, TrainingStream, prefetch
from data.masking import MaskingSettings
from data.order import OrderSettings
from data.shapes import Shapes
from launch import agreement, checkpoint, dry_run, ds_config, hub, restore, space
from launch.args import flag, parse, require, require_named
from launch.costs import Tokens, step_flops
from launch.distributed import World
from launch.errors import CheckpointError, DataError, run, say
from launch.evaluate import check_together, held_out, vocabulary_for
from launch.flags import FREE, Cadence, Cost, Ends, Length, Speed, Start
from launch.lock import Lock
from launch.log import duration
from launch.progress import bar
from launch.retention import Retention
from launch.run_folder import MODEL, TOKENIZER, RunFolder, environment, flags_of
from launch.samples import Samples
from launch.stop import StopSigns, seconds
from launch.training import Course, Training
from model import hf
from model.config import BertConfig
from model.distiller import TERMS, Batch, Distiller, parameter_groups
from model.kernels import fp8
from model.kernels.distillation import CHUNK
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

DESCRIPTION = "Train a student under a teacher (or, without --teacher, a BERT by itself) inside DeepSpeed."
EXAMPLE = """\
  deepspeed train_dilbert.py --deepspeed_config ds_configs/zero2_bf16.json --data datasets/train \\
      --teacher bert-base-uncased --student models/student --output runs/first --max-steps 100000"""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Paths:
    """What is read and written."""

    deepspeed_config: Path = flag(
        help="DeepSpeed JSON: batch, precision, ZeRO, optimizer, schedule; or a run's config.json, for the one it had",
        metavar="JSON", recorded=ds_config.refuse_changed,
    )  # fmt: skip
    data: tuple[str, ...] = flag(
        help="dataset to train on (`python -m data.binarize`); several with their shares of the sequences: A:0.7 B:0.3",
        metavar="DATASET",
    )
    student: str = flag(
        help="model folder; with nothing but config.json in it, weights start at random", metavar="FOLDER"
    )
    output: Path = flag(help="run folder; a second start in it goes on with the run", metavar="RUN")
    teacher: str | None = flag(None, "model folder or hub name; none: plain masked-language-model training", "NAME")
    valid_data: Path | None = flag(None, "dataset to measure on, by the same tokenizer", "DATASET")

    def __post_init__(self) -> None:
        require_named("output", self.output)


@dataclass(frozen=True)
class Freezing:
    """What is not trained."""

    freeze_pos_embs: bool = flag(False, "keep the student's position embeddings as they are")


def train(
    lock: Lock, paths: Paths, length: Length, objective: Objective, masking: MaskingSettings, order: OrderSettings,
    freezing: Freezing, speed: Speed, cadence: Cadence, keep: Retention, ends: Ends, cost: Cost, begin: Start,
) -> None:  # fmt: skip
    """The story of a run, top to bottom.

    Raises:
        DilbertError: whatever keeps it from starting or going on, with its exit code.
        Stopped: at `--stop-at-step`, or by a stop sign (launch.stop).
    """
    raw_config = ds_config.load(paths.deepspeed_config, distributed.device_type())
    world = distributed.start(begin.ranks)
    folder = RunFolder(paths.output)
    home = RunFolder(paths.output.parent) if begin.dry_run else folder
    lock.take()

    # Models and data, and whether they belong together.
    with agreement.together():
        corpora = Corpora.open(paths.data)
        valid_dataset = Dataset.open(paths.valid_data) if paths.valid_data else None
        student = load_student(paths.student, begin.seed, speed.attention_dropout)
        teacher = DilBertForMaskedLM.from_pretrained(paths.teacher) if paths.teacher else None
        vocabulary = vocabulary_for(corpora.datasets, paths.student, paths.teacher)
        models = ((paths.student, student), (paths.teacher, teacher))
        check_together((*corpora.datasets, valid_dataset), vocabulary, models, needs_width=objective.alpha_cos > 0)
    student.embeddings.position.weight.requires_grad_(not freezing.freeze_pos_embs)

    # How long, and in which parts.
    batch = ds_config.batch_sizes(raw_config, world.ranks)["train_batch_size"]
    steps = length.steps(corpora.epoch_size, batch)
    config = ds_config.resolve(raw_config, world.ranks, steps, length.warmup(steps))
    accumulation, micro = config["gradient_accumulation_steps"], config["train_micro_batch_size_per_gpu"]
    stream = TrainingStream(corpora, vocabulary, StreamSettings(batch, begin.seed, masking, order))
    valid = HeldOut(valid_dataset, vocabulary, masking, stream.counts) if valid_dataset else None

    # A run goes on as it was started, or not at all.
    flags = flags_of(paths, length, objective, masking, order, freezing, speed, cadence, keep, ends, cost, begin)
    record: dict[str, Any] = {"flags": flags, "deepspeed_config": raw_config, "fingerprint": stream.fingerprint()}
    record |= {MODEL: student.config.to_dict(), "teacher": hf.fingerprint(teacher) if teacher else None}
    record |= {"folder": str(Path.cwd())}
    if begin.dry_run:
        distributed.by_main(folder.clear)
    folder.check(record, FREE, begin.allow_change, begin.fresh, home)

    # The engine holds the student; the teacher stands beside it.
    if teacher:
        teacher.requires_grad_(False).to(world.device, DTYPES[ds_config.precision(config)])
    before = dry_run.resident(world)
    distiller = Distiller(student, teacher, objective, parts=world.ranks * accumulation)
    engine = distributed.initialise(distiller, parameter_groups(distiller), config)
    if found := checkpoint.newest_for_all(folder.checkpoints):
        restore.load(engine, found)
    done = dry_run.steps_done(home.path, begin.fresh) if begin.dry_run else engine.global_steps
    last = length.last(steps, done)
    checkpoints = keep.most(done, last, cadence.checkpoint_interval)
    space.check(engine, folder.checkpoints, checkpoints)
    if speed.teacher_fp8:
        first = stream.micro_batches(done, world.rank, world.ranks, accumulation)[0]
        teacher_in_fp8(distiller, Batch.of(first, world.device).to(world.device), speed.teacher_fp8, world)
    if world.is_main:
        facts = environment(world, steps=steps, fingerprint=record["fingerprint"], data=corpora.facts())
        folder.begin(done == steps, config=record, ds_config=config, environment=facts)
        keep_tokenizer(folder.path / TOKENIZER, paths, corpora)

    shapes: Shapes | None = None

    def make(step: int) -> list[tuple[MicroBatch, Batch]]:
        made = stream.micro_batches(step, world.rank, world.ranks, accumulation, shapes)
        return [(part, Batch.of(part, world.device)) for part in made]

    models_of = teacher.config if teacher else None, student.config
    largest = stream.largest(range(done, last), world.ranks * accumulation)
    memory = dry_run.memory(*models_of, config, world, before, largest, CHUNK[world.device.type])
    if begin.dry_run:
        distributed.by_main(lambda: verify((*corpora.datasets, valid_dataset)))
        once = partial(held_out, distiller, valid, micro) if valid else None
        few = map(make, range(min(steps, dry_run.STEPS)))
        rehearsed = dry_run.rehearse(engine, world, few, begin.seed, once, folder.checkpoints)
        if world.is_main:
            say(headline(distiller, config, world, corpora.summary(steps * batch), steps, 0))
            todo, saved = range(done, last), (cadence, checkpoints, folder.path)
            lines = dry_run.report(rehearsed, engine, config, memory, steps, todo, *saved)
            dry_run.show(folder.path, home.path, lines, begin.fresh, todo)
        return

    signs = StopSigns(folder.path, seconds(ends.time_limit))
    with Training(engine, folder, world, signs, steps, last, begin.seed, cadence, keep, ends, cost) as training:
        training.say(headline(distiller, config, world, corpora.summary(steps * batch), steps, done))
        entropy = stream.unigram_entropy()
        samples = Samples.of(valid, folder.path / TOKENIZER) if valid and world.is_main else None
        if training.todo and distiller.should_compile(speed.compile):
            shapes = stream.shapes(training.todo, world.ranks * accumulation, speed.token_block)
            compile_for(shapes, training)

        def flops(part: MicroBatch) -> float:
            tokens = Tokens.within(part.cu_seqlens, part.tokens, None if distiller.dense else part.labels.size)
            return step_flops(*models_of, tokens)

        def measure() -> dict[str, float]:
            assert valid
            if samples:
                training.monitor.write("samples", samples.text(distiller), engine.global_steps)
            return {**held_out(distiller, valid, micro, training.heart.tick), "unigram_entropy": entropy}

        training.run(Course(
            prefetch(make, training.todo), TERMS, distiller.active_terms, stream.numbers,
            progress=lambda step: corpora.epochs(step * batch), flops=flops,
            measure=measure if valid else None,
        ))  # fmt: skip
        training.say(dry_run.beside(memory, world))
        training.done(f"Next: python -m model.export {folder.path} --output models/NAME")


def load_student(name: str, seed: int, attention_dropout: float | None) -> DilBertForMaskedLM:
    """The student's weights or, from a folder with only a config.json, random ones."""
    folder = hf.fetch(name)
    torch.manual_seed(seed)
    known = hf.has_weights(folder)
    student = DilBertForMaskedLM.from_pretrained(name) if known else DilBertForMaskedLM(BertConfig.read(folder))
    if attention_dropout is not None:
        student.set_attention_dropout(attention_dropout)
    return student.train()


def verify(datasets: Iterable[Dataset | None]) -> None:
    """Read all of the data and check it.

    Raises:
        DataError: names what is damaged.
    """
    for dataset in filter(None, datasets):
        say(f"verifying {dataset.path}")
        if faults := describe.verify(dataset):
            raise DataError("\n".join(faults[:10]))


def teacher_in_fp8(distiller: Distiller, batch: Batch, most: float, world: World) -> None:
    """Put the teacher into FP8, and say what that does to it.

    Raises:
        ConfigError: there is no teacher, or no FP8, or it moves by more than `most` nats a token.
    """
    require(distiller.teacher is not None, "teacher_fp8", most, "there is no --teacher")
    require(fp8.available(world.device), "teacher_fp8", most, "needs a GPU of compute capability 8.9 (L40, H100)")
    kl = distributed.mean(distiller.teacher_in_fp8(batch))
    require(kl <= most, "teacher_fp8", most, f"FP8 moves this teacher by {kl:.5f} nats a token; leave it in 16 bit")
    if world.is_main:
        print(f"teacher in FP8: KL divergence from 16 bit {kl:.5f} nats a token (at most {most:g})")


def compile_for(shapes: Shapes, training: Training) -> None:
    """Compile the models, for all shapes that micro-batches will have."""
    tokens, start, device = shapes.tokens, time.perf_counter(), training.world.device
    training.say(f"compiling for {len(tokens)} shapes: {tokens[0]:,} to {tokens[-1]:,} tokens, by {tokens.step:,}")
    training.engine.compile()
    with bar(len(tokens), " shapes", "compiling") as progress:
        for example in shapes.examples():
            with training.heart.during("compiling"):
                training.engine.module.warm_up(Batch.of(example, device).to(device))
            progress.update()
    training.say(f"compiled in {duration(time.perf_counter() - start)}")


def keep_tokenizer(target: Path, paths: Paths, corpora: Corpora) -> None:
    """Copy the tokenizer's files into the run folder, from the first of student, datasets and teacher that has some."""
    own = (str(dataset.path / "tokenizer") for dataset in corpora.datasets)
    for name in (paths.student, *own, paths.teacher):
        if name and (Path(name).exists() or name == paths.teacher):
            source = hub.fetch(name, hub.TOKENIZER_FILES)
            if hub.has_tokenizer(source):
                target.mkdir(exist_ok=True)
                return hub.copy_tokenizer(source, target)


def headline(distiller: Distiller, config: dict, world: World, data: str, steps: int, start: int) -> str:
    """What is about to happen, in four lines."""
    kind = "student" if distiller.teacher else "model"
    sizes = [f"{kind} {sum(p.numel() for p in distiller.parameters()):,} parameters"]
    if distiller.teacher:
        sizes.append(f"teacher {sum(p.numel() for p in distiller.teacher.parameters()):,}")
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    return (
        f"{', '.join(sizes)} | {ds_config.precision(config)}, ZeRO stage {ds_config.stage(config)}\n"
        f"{config['train_batch_size']} sequences a step = {micro} x {accumulation} accumulation x {world.ranks} "
        f"rank(s) on {world.device.type}\n"
        f"{steps} steps = {data}" + (f"; going on after step {start}" if start else "") + "\n"
        f"kernels: {distiller.kernels()}"
    )


GROUPS = (Paths, Length, Objective, MaskingSettings, OrderSettings, Freezing, Speed, Cadence, Retention, Ends, Cost,
          Start)  # fmt: skip


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if distributed.is_main() else logging.ERROR)
    paths, *settings = parse(DESCRIPTION, *GROUPS, example=EXAMPLE, prog="train_dilbert.py", config=True)
    if settings[-1].dry_run:
        paths = replace(paths, output=paths.output / dry_run.FOLDER)
    with Lock(paths.output) as lock:  # however the run ends, its folder is free again
        train(lock, paths, *settings)


if __name__ == "__main__":
    try:
        run(main, disk=CheckpointError)
        distributed.stop()
    except SystemExit as end:
        distributed.leave(int(end.code or 0))
