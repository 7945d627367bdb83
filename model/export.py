"""A run's checkpoint -> Hugging Face folder: `python -m model.export runs/first --output models/dilbert`.

ZeRO checkpoint -> fp32 weights -> `model.safetensors`, `config.json`, the tokenizer's files, ONNX files where they are
wanted, `report.json` about the run, and a model card made of it. The folder is loaded again by stock `transformers` and
its logits compared; a folder that does not pass is not left behind.

    python -m model.export models/dilbert --onnx --int8 --report report/report.json --push-to-hub me/dilbert

verifies a folder that is there already, adds to it, and uploads it.
"""

import logging
import re
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import transformers
from torch import Tensor

from data.tokenizer import load_tokenizer, vocabulary_of
from launch import checkpoint, commit, restore
from launch.args import flag, parse, positional, require
from launch.errors import CheckpointError, ConfigError, did_you_mean_path, run, say
from launch.reporting import tables
from launch.reporting.exported import REPORT, exported, known, with_figures, write
from launch.reporting.runs import read
from launch.run_folder import HEAD, MODEL, TOKENIZER, RunFolder
from model import heads, hf, onnx_export, verify
from model.config import BertConfig
from model.heads import TaskHead, TaskModel
from model.pretrained import DilBertForMaskedLM
from model.push import Upload, hub_name, push

LANGUAGE = re.compile("[a-z]{2,3}|multilingual")
PREFIX = "student."  # of the student's parameters in the module that DeepSpeed wraps
DESCRIPTION = "A run's checkpoint -> Hugging Face folder; or more for a folder that is there already."
EXAMPLE = """\
  python -m model.export runs/first --output models/dilbert
  python -m model.export models/dilbert --onnx --int8 --report report/report.json
  python -m model.export models/dilbert --push-to-hub me/dilbert"""


@dataclass(frozen=True)
class Arguments:
    """What is exported."""

    source: Path = positional("run folder; or, without --output, a model folder to verify and to add to", "FOLDER")
    output: Path | None = flag(None, "model folder to make of a run", "FOLDER")
    checkpoint: str | None = flag(None, "step00001000, or 1000 (default: the newest whole one)", "STEP")

    def __post_init__(self) -> None:
        rule = "is a run's; to export one, give --output"
        require(self.output is not None or self.checkpoint is None, "checkpoint", self.checkpoint, rule)


@dataclass(frozen=True)
class Extras:
    """What goes with it."""

    onnx: bool = flag(False, "onnx/model.onnx, too, compared with torch (`pip install --group onnx`)")
    int8: bool = flag(False, "and onnx/model_int8.onnx, quantized dynamically; with what --onnx does")
    report: Path | None = flag(None, "report.json of launch.report, for the figures in the model card", "JSON")
    license: str | None = flag(None, "for the card's metadata: one of the hub's names, such as apache-2.0", "NAME")
    language: tuple[str, ...] | None = flag(None, "for the card's metadata: ISO 639 codes, such as en", "CODE")

    def __post_init__(self) -> None:
        for code in self.language or ():
            rule = "must be two or three small letters (ISO 639), or multilingual"
            require(bool(LANGUAGE.fullmatch(code)), "language", code, rule)
        if self.onnx or self.int8:
            onnx_export.check_libraries()


def choose(folder: RunFolder, name: str | None) -> checkpoint.Checkpoint:
    """The newest checkpoint that verifies, or the one asked for.

    Raises:
        CheckpointError: none, or damaged.
    """
    if name is None:
        found = checkpoint.newest(folder.checkpoints)
        if found is None:
            raise CheckpointError(f"{folder.checkpoints}: no checkpoint")
        return found
    path = folder.checkpoints / (checkpoint.tag(int(name)) if name.isdigit() else name)
    if path not in checkpoint.committed(folder.checkpoints):
        there = ", ".join(p.name for p in checkpoint.committed(folder.checkpoints)) or "none"
        raise CheckpointError(f"--checkpoint {name}: not in {folder.checkpoints}; there: {there}")
    return checkpoint.verify(path)


def no_run(path: Path) -> str:
    """What a folder without a run's record is, and what to give instead.

    Raises:
        DataError: a record of a run in it is damaged.
    """
    seeds = ", ".join(seed.name for seed in sorted(path.glob("seed-*")))
    if not seeds:
        return f"{path}: no run (it has no config.json){did_you_mean_path(path)}"
    scores = {run.path: run.metrics[run.main] for run in read([path]).tuned}
    near = min(scores, key=lambda run: abs(scores[run] - median(scores.values())), default=None)
    such = f", such as {near}, the nearest to their median" if near else ""
    return f"{path}: holds runs of several seeds: {seeds}; give one of them{such}"


def student_weights(source: checkpoint.Checkpoint) -> dict[str, Tensor]:
    """The student's fp32 weights, by our names."""
    return {name.removeprefix(PREFIX): value for name, value in restore.fp32_weights(source).items()}


def load_student(record: dict[str, Any], source: checkpoint.Checkpoint) -> DilBertForMaskedLM | TaskModel:
    """The model of a checkpoint, with the head that the run's record tells of.

    Raises:
        CheckpointError: it holds other parameters than the architecture has.
    """
    config, head = BertConfig.from_dict(record[MODEL]), record.get(HEAD)
    model: DilBertForMaskedLM | TaskModel
    model = heads.build(config, TaskHead.from_dict(head)) if head else DilBertForMaskedLM(config)
    try:
        model.load_state_dict(student_weights(source))
    except RuntimeError as error:
        raise CheckpointError(f"{source.path}: not the weights of this architecture: {error}") from error
    return model.eval()


def check_tokenizer(folder: Path, config: BertConfig) -> None:
    """The tokenizer must load, and know as many tokens as the model.

    Raises:
        CheckpointError: it knows more or fewer.
    """
    size = vocabulary_of(load_tokenizer(str(folder))).size
    if size != config.vocab_size:
        raise CheckpointError(f"{folder}: the tokenizer knows {size:,} tokens, the model {config.vocab_size:,}")


def facts(name: str, flags: dict[str, Any], model: DilBertForMaskedLM | TaskModel, difference: float) -> dict[str, Any]:
    """What a card says of the model itself: see `launch.reporting.exported`."""
    config = model.config
    return {
        "name": name,
        "model_type": config.model_type,
        "kind": verify.kind_of(model),
        "labels": list(model.task.labels) if isinstance(model, TaskModel) else [],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "positions": config.max_position_embeddings,
        "difference": difference,
        "transformers": transformers.__version__,
        "base_model": hub_name(flags.get("model") if "task" in flags else flags.get("teacher")),
        "hub": None,
        "license": None,
        "language": [],
        "onnx": [],
    }


def export(
    run_path: Path, output: Path, name: str | None = None, extras: Extras = Extras(), hub: str | None = None
) -> float:
    """Make the folder; returns the relative difference of logits that `transformers` shows.

    Args:
        name: of the checkpoint; None: the newest.
        hub: the folder's name on the Hugging Face hub, if it will be there.

    Raises:
        DilbertError: no run, a damaged one, or a folder that does not pass.
    """
    commit.refuse_existing(output)
    folder = RunFolder(run_path)
    record = folder.recorded()
    if record is None:
        raise ConfigError(no_run(run_path))
    source = choose(folder, name)
    model = load_student(record, source)
    with commit.folder(output) as partial:
        model.save_pretrained(partial)
        if (folder.path / TOKENIZER).is_dir():
            hf.write_tokenizer(partial, folder.path / TOKENIZER, model.config)
            check_tokenizer(partial, model.config)
        difference = verify.verify(partial, model)
        about = facts(output.name, record["flags"], model, difference)
        report = exported(date.today().isoformat(), folder.path, source.step, about)
        complete(partial, model, with_figures(report, extras.report, output), extras, hub)
    if steps := tables.unfinished(report["export"]):
        say(f"warning: {source.path}: step {steps}", sys.stderr)
    return difference


def add(folder: Path, extras: Extras, hub: str | None) -> float:
    """Verify a folder that is there, and add to it; returns as `export`.

    Raises:
        DilbertError: it can't be read, does not pass, or has already what is to be added.
    """
    require(
        hf.has_weights(folder), "output", None, f"needed to export a run; {folder} is no model folder, has no weights"
    )
    model = verify.load(folder)
    difference = verify.verify(folder, model, leftovers=True)
    complete(folder, model, with_figures(known(folder), extras.report, folder), extras, hub)
    return difference


def complete(
    folder: Path, model: DilBertForMaskedLM | TaskModel, report: dict[str, Any], extras: Extras, hub: str | None
) -> None:
    """ONNX files, and a card that tells of them.

    Args:
        report: {}: the folder was not made here, and its card stays what it is.
    """
    forms = onnx_export.export(folder, model, extras.int8) if extras.onnx or extras.int8 else []
    for form in forms:
        agreement = "" if form.agreement is None else f", {form.agreement:.1%} of first choices the same"
        say(f"{form.file}: {form.bytes / 1e6:.1f} MB, logits agree to {form.difference:.1e}{agreement}")
    if report:
        new = {"onnx": [asdict(form) for form in forms], "hub": hub, "license": extras.license,
               "language": extras.language}  # fmt: skip
        about = report["export"]["model"] | {name: value for name, value in new.items() if value}
        write(folder, report | {"export": report["export"] | {"model": about}})


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    groups = parse(DESCRIPTION, Arguments, Extras, Upload, example=EXAMPLE, prog="model.export")
    arguments, extras, upload = groups
    folder = arguments.output or arguments.source
    if arguments.output:
        difference = export(arguments.source, folder, arguments.checkpoint, extras, upload.push_to_hub)
    else:
        difference = add(folder, extras, upload.push_to_hub)
    say(f"{folder}: loads in transformers {transformers.__version__}; logits agree to {difference:.1e}")
    if upload.push_to_hub:
        say(push(folder, upload.push_to_hub, upload.private, leave_out=(REPORT,)))


if __name__ == "__main__":
    run(main, disk=CheckpointError)
