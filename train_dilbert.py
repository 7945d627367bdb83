"""Pre-training by distillation: a teacher's distributions, hidden states and the masked words train a smaller student.

    deepspeed train_dilbert.py --deepspeed_config ds_configs/zero2_bf16.json --data datasets/train \\
        --teacher bert-base-uncased --student models/student --output runs/first --max-steps 100000

Without `--teacher` it is plain masked-language-model pre-training. `python`, `torchrun` and `srun` start it, too.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from launch import distributed  # isort: skip  (before torch and DeepSpeed: it sets what they read when imported)

import deepspeed
import torch

from data.indexed import Dataset
from data.loader import HeldOut, StreamSettings, TrainingStream, prefetch
from data.masking import MaskingSettings
from data.tokenizer import has_tokenizer, load_tokenizer, tokenizer_hash
from data.vocabulary import Vocabulary
from launch import checkpoint, ds_config, hub
from launch.args import flag, parse
from launch.distributed import World, seed_dropout
from launch.errors import CheckpointError, ConfigError, Stopped, run
from launch.evaluate import held_out, vocabulary_for
from launch.flags import FREE, Cadence, Length, Start
from launch.monitor import GradientNorm, Meter, Monitor, engine_figures
from launch.preflight import Shape, check_data, check_models
from launch.run_folder import MODEL, TOKENIZER, RunFolder, environment, flags_of
from model import hf
from model.config import BertConfig
from model.distiller import TERMS, Batch, Distiller, parameter_groups
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

    deepspeed_config: Path = flag(help="DeepSpeed JSON: batch, precision, ZeRO, optimizer, schedule", metavar="JSON")
    data: Path = flag(help="dataset to train on (`python -m data.binarize`)", metavar="DATASET")
    student: str = flag(
        help="model folder; with nothing but config.json in it, weights start at random", metavar="FOLDER"
    )
    output: Path = flag(help="run folder; a second start in it goes on with the run", metavar="RUN")
    teacher: str | None = flag(None, "model folder or hub name; none: plain masked-language-model training", "NAME")
    valid_data: Path | None = flag(None, "dataset to measure on, by the same tokenizer", "DATASET")


@dataclass(frozen=True)
class Freezing:
    """What is not trained."""

    freeze_pos_embs: bool = flag(False, "keep the student's position embeddings as they are")


def train(
    paths: Paths, length: Length, objective: Objective, masking: MaskingSettings, freezing: Freezing,
    cadence: Cadence, begin: Start,
) -> None:  # fmt: skip
    """The story of a run, top to bottom.

    Raises:
        DilbertError: whatever keeps it from starting or going on, with its exit code.
        Stopped: at `--stop-at-step`.
    """
    raw_config = ds_config.load(paths.deepspeed_config, distributed.device_type())
    world = distributed.start()
    folder = RunFolder(paths.output)

    # Models and data, and whether they belong together.
    dataset = Dataset.open(paths.data)
    student = load_student(paths.student, begin.seed)
    teacher = DilBertForMaskedLM.from_pretrained(paths.teacher) if paths.teacher else None
    vocabulary = vocabulary_for(dataset, paths.student, paths.teacher)
    check_together(dataset, vocabulary, student, teacher, paths, objective)
    student.embeddings.position.weight.requires_grad_(not freezing.freeze_pos_embs)

    # How long, and in which parts.
    batch = ds_config.batch_sizes(raw_config, world.ranks)["train_batch_size"]
    steps = length.steps(len(dataset), batch)
    config = ds_config.resolve(raw_config, world.ranks, steps, length.warmup(steps))
    accumulation, micro = config["gradient_accumulation_steps"], config["train_micro_batch_size_per_gpu"]
    stream = TrainingStream(dataset, vocabulary, StreamSettings(batch, begin.seed, masking))
    valid = (
        HeldOut(open_valid(paths.valid_data, dataset), vocabulary, masking, stream.counts) if paths.valid_data else None
    )

    # A run goes on as it was started, or not at all.
    flags = flags_of(paths, length, objective, masking, freezing, cadence, begin)
    record = {"flags": flags, "deepspeed_config": raw_config, "fingerprint": stream.fingerprint()}
    record[MODEL] = student.config.to_dict()
    folder.open(record, FREE, begin.allow_change, world, begin.fresh)
    if world.is_main:
        folder.write("config.json", record)
        folder.write("ds_config.json", config)
        folder.write("environment.json", environment(world, fingerprint=record["fingerprint"], dataset=str(paths.data)))
        keep_tokenizer(folder.path / TOKENIZER, paths)

    # The engine holds the student; the teacher stands beside it.
    if teacher:
        teacher.requires_grad_(False).to(world.device, DTYPES[ds_config.precision(config)])
    distiller = Distiller(student, teacher, objective, parts=world.ranks * accumulation)
    engine, *_ = deepspeed.initialize(model=distiller, model_parameters=parameter_groups(distiller), config=config)
    if found := checkpoint.newest_for_all(folder.checkpoints):
        checkpoint.load(engine, found)

    meter, gradient = Meter(TERMS, distiller.active_terms, world.device), GradientNorm(engine)
    last = length.last(steps)
    with Monitor(folder.path, world, engine.global_steps, steps) as monitor:
        monitor.say(headline(distiller, config, world, len(dataset), steps, engine.global_steps))
        todo = range(engine.global_steps, last)
        for parts in prefetch(lambda k: stream.micro_batches(k, world.rank, world.ranks, accumulation), todo):
            rate = engine.get_lr()[0]
            for part in parts:
                seed_dropout(begin.seed, part.step, part.part)
                loss, terms = engine(Batch.on_device(part, world.device))
                engine.backward(loss)
                gradient.before_step()
                engine.step()
                meter.add(terms, part.tokens)
            meter.step()
            step = engine.global_steps
            if step % cadence.log_interval == 0 or step == last:
                progress = {"lr": rate, "epoch": step * batch / len(dataset), **engine_figures(engine, gradient)}
                monitor.log(step, {**meter.read(), **progress})
            if valid and (step % cadence.eval_interval == 0 or step == last):
                monitor.log_held_out(step, held_out(distiller, valid, micro))
            if step % cadence.checkpoint_interval == 0 or step == last:
                checkpoint.save(engine, folder.checkpoints)

        if last < steps:
            folder.end("STOPPED.json", {"code": Stopped.exit_code, "step": last}, world)
            raise Stopped(
                f"stopped at step {last} of {steps}, as asked; the same command without --stop-at-step goes on"
            )
        folder.end("DONE.json", {"step": steps}, world)
        monitor.say(f"done: {steps} steps. Next: python -m model.export {folder.path} --output {folder.path}/export")


def load_student(name: str, seed: int) -> DilBertForMaskedLM:
    """The student's weights or, from a folder with only a config.json, random ones."""
    folder = hf.fetch(name)
    if hf.has_weights(folder):
        return DilBertForMaskedLM.from_pretrained(name).train()
    torch.manual_seed(seed)
    return DilBertForMaskedLM(BertConfig.read(folder)).train()


def shape_of(name: str, model: DilBertForMaskedLM) -> Shape:
    """What a model says of itself, its tokenizer's hash included where it brings one."""
    own = has_tokenizer(hub.fetch(name, hub.TOKENIZER_FILES))
    config, digest = model.config, tokenizer_hash(load_tokenizer(name)) if own else None
    return Shape(name, config.vocab_size, config.hidden_size, config.max_position_embeddings, digest)


def check_together(
    dataset: Dataset, vocabulary: Vocabulary, student: DilBertForMaskedLM, teacher: DilBertForMaskedLM | None,
    paths: Paths, objective: Objective,
) -> None:  # fmt: skip
    """Vocabulary, tokenizer, width and positions of student, teacher and data agree, or ConfigError says what to do."""
    shapes = [shape_of(paths.student, student)]
    if paths.teacher and teacher:
        shapes.append(shape_of(paths.teacher, teacher))
        check_models(shapes[0], shapes[1], needs_width=objective.alpha_cos > 0)
    data = Shape(str(paths.data), vocabulary.size, tokenizer_hash=vocabulary.tokenizer_hash)
    check_data(data, dataset.longest, *shapes)


def keep_tokenizer(target: Path, paths: Paths) -> None:
    """Copy the tokenizer's files into the run folder, from the first of student, dataset and teacher that has some."""
    for name in (paths.student, str(paths.data / "tokenizer"), paths.teacher):
        if name and Path(name).exists() | (name == paths.teacher):
            source = hub.fetch(name, hub.TOKENIZER_FILES)
            if has_tokenizer(source):
                target.mkdir(exist_ok=True)
                return hub.copy_tokenizer(source, target)


def open_valid(path: Path, train: Dataset) -> Dataset:
    """The held-out dataset.

    Raises:
        ConfigError: it was made by another tokenizer than the training data.
    """
    valid = Dataset.open(path)
    ours, theirs = train.vocabulary, valid.vocabulary
    if ours and theirs and ours.tokenizer_hash != theirs.tokenizer_hash:
        raise ConfigError(f"--valid-data {path}: made by another tokenizer than --data {train.path}; binarize it anew")
    return valid


def headline(distiller: Distiller, config: dict, world: World, sequences: int, steps: int, start: int) -> str:
    """What is about to happen, in three lines."""
    sizes = [f"student {sum(p.numel() for p in distiller.parameters()):,} parameters"]
    if distiller.teacher:
        sizes.append(f"teacher {sum(p.numel() for p in distiller.teacher.parameters()):,}")
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    return (
        f"{', '.join(sizes)} | {ds_config.precision(config)}, ZeRO stage {ds_config.stage(config)}\n"
        f"{config['train_batch_size']} sequences a step = {micro} x {accumulation} accumulation x {world.ranks} "
        f"rank(s) on {world.device.type}\n"
        f"{steps} steps = {steps * config['train_batch_size'] / sequences:.2f} epochs of {sequences:,} sequences"
        + (f"; going on after step {start}" if start else "")
    )


GROUPS = (Paths, Length, Objective, MaskingSettings, Freezing, Cadence, Start)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    settings = parse(DESCRIPTION, *GROUPS, example=EXAMPLE, prog="train_dilbert.py")
    try:
        train(*settings)
    finally:
        distributed.stop()


if __name__ == "__main__":
    run(main, disk=CheckpointError)
