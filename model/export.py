"""A run's checkpoint -> Hugging Face folder: `python -m model.export runs/first --output models/dilbert`.

ZeRO checkpoint -> fp32 weights -> `model.safetensors`, `config.json`, the tokenizer's files and a model card. The
folder is loaded again by stock `transformers` and its logits compared; a folder that does not pass is not left behind.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from data.tokenizer import load_tokenizer, vocabulary_of
from launch import checkpoint, commit, restore
from launch.args import flag, parse, positional
from launch.errors import CheckpointError, ConfigError, run
from launch.log import LOG, read_log
from launch.run_folder import HEAD, MODEL, TOKENIZER, RunFolder
from model import heads
from model.config import BertConfig
from model.heads import TaskHead, TaskModel
from model.pretrained import DilBertForMaskedLM
from model.verify import verify

PREFIX = "student."  # of the student's parameters in the module that DeepSpeed wraps


@dataclass(frozen=True)
class Arguments:
    """What is exported."""

    run: Path = positional("run folder", "RUN")
    output: Path = flag(help="model folder to make", metavar="FOLDER")
    checkpoint: str | None = flag(None, "step00001000, or 1000 (default: the newest whole one)", "STEP")


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


def model_card(folder: RunFolder, record: dict[str, Any], source: checkpoint.Checkpoint, model: torch.nn.Module) -> str:
    """`README.md` of the export: what it is, how it was made, what was measured."""
    flags, environment = record["flags"], folder.read("environment.json")
    figures = last_figures(folder.path / LOG, source.step)
    teacher = flags.get("teacher")
    names = flags["data"] if isinstance(flags["data"], list) else [flags["data"] or flags["task"]]
    data = ", ".join(f"`{Path(name).name}`" for name in names)
    how = f"distilled from `{Path(teacher).name if Path(teacher).is_dir() else teacher}`" if teacher else "pre-trained"
    rows = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": f"{source.step:,}",
        "data": f"{data} (fingerprint {record['fingerprint']})",
        **{name: f"{value:.4f}" for name, value in figures.items()},
        "made with": ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items()),
        "code": f"commit {environment['git_commit']}" if environment.get("git_commit") else "unknown commit",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    shown = {key: value for key, value in flags.items() if key not in ("local_rank", "output", "allow_change")}
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\ntags:\n- distillation\n---\n\n"
        f"# {folder.path.name}\n\nA {record['model']['model_type']} masked language model, {how} with DilBERT.\n\n"
        f'```python\nfrom transformers import pipeline\n\nfill = pipeline("fill-mask", "FOLDER")\n```\n\n'
        f"| | |\n|---|---|\n{table}\n\nFlags of the run:\n\n```json\n{json.dumps(shown, indent=2)}\n```\n"
    )


def last_figures(log: Path, step: int) -> dict[str, float]:
    """The last losses and held-out figures that the log has up to a step."""
    figures: dict[str, float] = {}
    for row in read_log(log):
        if row["step"] <= step:
            figures |= {k: v for k, v in row.items() if k.startswith(("loss", "valid_")) and v is not None}
    return figures


def export(run_path: Path, output: Path, name: str | None = None) -> float:
    """Make the folder; returns the relative difference of logits that `transformers` shows."""
    commit.refuse_existing(output)
    folder = RunFolder(run_path)
    record = folder.recorded()
    if record is None:
        raise ConfigError(f"{run_path}: no run (it has no config.json)")
    source = choose(folder, name)
    model = load_student(record, source)
    with commit.folder(output) as partial:
        model.save_pretrained(partial)
        if (folder.path / TOKENIZER).is_dir():
            shutil.copytree(folder.path / TOKENIZER, partial, dirs_exist_ok=True)
            check_tokenizer(partial, model.config)
        (partial / "README.md").write_text(model_card(folder, record, source, model))
        return verify(partial, model)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    example = "  python -m model.export runs/first --output models/dilbert"
    (arguments,) = parse("A run's checkpoint -> Hugging Face folder.", Arguments, example=example, prog="model.export")
    difference = export(arguments.run, arguments.output, arguments.checkpoint)
    print(f"{arguments.output}: loads in transformers {transformers.__version__}; logits agree to {difference:.1e}")


if __name__ == "__main__":
    run(main, disk=CheckpointError)
