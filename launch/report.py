"""What a student kept of its teacher: scores on tasks, size, speed, masked words, and the curves of the runs.

python -m launch.report --teacher T --student S --runs runs/* --data VALID --train-data TRAIN --output report

`report/index.html` is one page that needs nothing else; `report/report.json` holds the same numbers
(launch/reporting/document.py says which).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from launch import cpu  # noqa: F401  # isort: skip  (before torch)

import torch
from torch import nn
from transformers import AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from launch import commit, costs
from launch.args import flag, parse, require
from launch.errors import DataError, run, say
from launch.evaluate import check_together, held_out, vocabulary_for
from launch.progress import bar
from launch.reporting import runs as run_folders
from launch.reporting import speed, tables, terminal
from launch.reporting.document import STUDENT, TEACHER, Measured, document
from launch.reporting.page import page
from launch.reporting.runs import Runs
from launch.reporting.speed import Go, Sample
from model import hf
from model.distiller import Distiller
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

DESCRIPTION = "What a student kept of its teacher, as a page, as JSON, and as tables."
EXAMPLE = """\
  python -m launch.report --teacher bert-base-uncased --student models/dilbert --runs runs/* \\
      --data datasets/valid --train-data datasets/train --output report"""

BATCH = 16  # held-out sequences at once; the figures do not depend on it

Json = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """What is reported."""

    output: Path = flag(help="new folder, for index.html and report.json", metavar="FOLDER")
    teacher: str | None = flag(None, "masked language model, folder or hub name, that was distilled", "NAME")
    student: str | None = flag(None, "masked language model, folder or hub name, that was made of it", "NAME")
    runs: tuple[Path, ...] | None = flag(
        None, "run folders of fine-tuning and of pre-training; alone, they say who teacher and student are: the only "
        "BERT and the only DistilBERT that were fine-tuned", "RUN",
    )  # fmt: skip

    def __post_init__(self) -> None:
        given = self.teacher or self.student or self.runs
        require(bool(given), "teacher", self.teacher, "give --teacher and --student, or --runs, or all of them")


@dataclass(frozen=True)
class Measuring:
    """What is measured, of --teacher and --student, on this machine."""

    measure: Literal["speed", "size", "nothing"] = flag(
        "speed", "speed and size; size alone; or nothing: the names are only those in the runs"
    )
    batch_sizes: tuple[int, ...] = flag((1, 8, 32), "sequences at once, for speed", "SEQUENCES")
    lengths: tuple[int, ...] = flag((32, 128), "tokens of the longest of them", "TOKENS")
    rounds: int = flag(7, "goes of each model at each batch and length, in turn; their median counts")
    data: Path | None = flag(None, "held-out dataset: masked words", "DATASET")
    train_data: tuple[str, ...] | None = flag(
        None, "what was trained on, as in its --data: its token counts draw the masks (default: --data)", "DATASET"
    )

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            values = getattr(self, name)
            require(min(values) > 0, name, " ".join(map(str, values)), "must be positive")
        require(self.rounds > 0, "rounds", self.rounds, "must be positive")
        rule = "needs the models; leave --measure nothing out"
        require(self.data is None or self.measure != "nothing", "data", self.data, rule)


@dataclass(frozen=True)
class Model:
    """A model under its name."""

    name: str
    folder: Path
    network: DilBertForMaskedLM

    @classmethod
    def load(cls, name: str) -> "Model":
        """By folder or hub name.

        Raises:
            ConfigError, CheckpointError: as `DilBertForMaskedLM.from_pretrained`.
        """
        return cls(name, hf.fetch(name), DilBertForMaskedLM.from_pretrained(name))


Models = dict[str, Model]  # by role


def measured(models: Models, measuring: Measuring, masking: MaskingSettings) -> Measured:
    """Size, speed and held-out figures of the models that there are."""
    if not models:
        return Measured(not_measured=[("size, speed, masked words", "no model was opened")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in models.values():
        model.network.to(device)
    missing = [(f"size, speed and masked words of the {role}", f"no --{role}") for role in (TEACHER, STUDENT)
               if role not in models]  # fmt: skip
    rows: list[Json] = []
    if measuring.measure == "speed":
        rows, reasons = speeds(models, measuring, device)
        missing += reasons
    else:
        missing.append(("speed", f"--measure {measuring.measure}"))
    words = None
    if measuring.data:
        words = masked_words(models, measuring.data, measuring.train_data, masking)
    else:
        missing.append(("held-out masked words", "no --data"))
    return Measured(speed.machine(device), [size(role, model) for role, model in models.items()], rows, words, missing)


def size(role: str, model: Model) -> Json:
    """Parameters, and the bytes of its weights' file or files."""
    config, total = model.network.config, sum(p.numel() for p in model.network.parameters())
    return {
        "role": role,
        "name": model.name,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "parameters": total,
        "without_embeddings": total - costs.embedding_parameters(config),
        "bytes": weight_bytes(model.folder),
    }


def weight_bytes(folder: Path) -> int:
    """Of the file that is loaded, or of all its shards."""
    name = next(name for name in hf.WEIGHT_FILES if (folder / name).exists()).removesuffix(".index.json")
    stem, _, kind = name.partition(".")
    return sum(path.stat().st_size for path in folder.glob(f"{stem}*.{kind}"))


def speeds(models: Models, measuring: Measuring, device: torch.device) -> tuple[list[Json], list[tuple[str, str]]]:
    """Rows of `launch.reporting.speed.measure`, and what is left out."""
    positions = min(model.network.config.max_position_embeddings for model in models.values())
    fitting = [length for length in measuring.lengths if length <= positions]
    missing = [(f"speed at {length} tokens", f"the models have {positions} positions")
               for length in measuring.lengths if length not in fitting]  # fmt: skip
    goes: dict[speed.Name, Go] = {}
    for form, make in (("padded", padded), ("packed", packed)):
        goes |= {(form, role): make(model, device) for role, model in models.items()}
    shapes = [(batch, length) for length in fitting for batch in measuring.batch_sizes]
    vocabulary = min(model.network.config.vocab_size for model in models.values())
    return speed.measure(goes, shapes, measuring.rounds, vocabulary, device), missing


def padded(model: Model, device: torch.device) -> Go:
    """The encoder as users of stock `transformers` call it."""
    encoder: nn.Module = AutoModelForMaskedLM.from_pretrained(model.folder, dtype=torch.float32).base_model
    encoder.eval().to(device)
    return lambda sample: encoder(input_ids=sample.ids_BL, attention_mask=sample.mask_BL)


def packed(model: Model, device: torch.device) -> Go:
    """Our encoder, without padding."""

    def go(sample: Sample) -> torch.Tensor:
        return model.network.encode(sample.ids_T, sample.positions_T, sample.cu_seqlens, sample.longest)

    return go


def masked_words(models: Models, path: Path, train_data: Sequence[str] | None, masking: MaskingSettings) -> Json:
    """Held-out figures, the teacher's also beside the student's.

    Raises:
        DataError, ConfigError: no such dataset, or one that does not belong to the models.
    """
    dataset = Dataset.open(path)
    student_first = [models[role] for role in (STUDENT, TEACHER) if role in models]
    vocabulary = vocabulary_for((dataset,), *(model.name for model in student_first))
    check_together((dataset,), vocabulary, [(model.name, model.network) for model in student_first], needs_width=False)
    counts = Corpora.open(tuple(train_data or (str(path),))).counts(vocabulary)
    data = HeldOut(dataset, vocabulary, masking, counts)
    found: Json = {"data": str(path), "sequences": data.size}
    names = {"loss_mlm": "loss_mlm", "accuracy": "accuracy", "loss_ce": "kl", "agreement": "agreement"}
    with bar(len(models) * -(-data.size // BATCH), " batches", "masked words") as progress:
        for role, model in models.items():
            teacher = models[TEACHER].network if role == STUDENT and TEACHER in models else None
            objective = Objective(alpha_cos=0.0, temperature=1.0) if teacher else Objective()
            distiller = Distiller(model.network, teacher, objective)
            figures = held_out(distiller, data, BATCH, alive=lambda _: progress.update())
            found[role] = {names[name]: value for name, value in figures.items() if name in names}
    return found


def who(arguments: Arguments, measuring: Measuring, runs: Runs) -> tuple[str | None, str | None, Models]:
    """Names of teacher and student, and those of them that are opened."""
    if not arguments.teacher and not arguments.student:
        return *runs.pair(), {}
    named = ((TEACHER, arguments.teacher), (STUDENT, arguments.student))
    wanted = measuring.measure != "nothing"
    return arguments.teacher, arguments.student, {role: Model.load(name) for role, name in named if name and wanted}


def report(arguments: Arguments, measuring: Measuring, masking: MaskingSettings) -> Json:
    """Write the folder.

    Returns:
        What is in report.json.

    Raises:
        DilbertError: nothing to report, or a run, model or dataset that can't be read.
    """
    commit.refuse_existing(arguments.output)
    runs = run_folders.read(arguments.runs or ())
    teacher, student, models = who(arguments, measuring, runs)
    if not models and not runs.tuned and not runs.pretrained:
        why = "".join(f"\n  {path}: {reason}" for path, reason in runs.left_out)
        raise DataError(f"nothing to report: no model is measured, and no run is finished{why}")
    figures = measured(models, measuring, masking)
    body = document(date.today().isoformat(), teacher, student, runs, figures)
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with commit.folder(arguments.output) as folder:
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "index.html").write_text(page(json.loads(text)), encoding="utf-8")
    return json.loads(text)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    arguments, *settings = parse(
        DESCRIPTION, Arguments, Measuring, MaskingSettings, example=EXAMPLE, prog="launch.report"
    )
    body = report(arguments, *settings)
    parts = (tables.tasks, tables.sizes, tables.speed, tables.held_out, tables.pretraining, tables.gaps)
    say(terminal.markdown(table for part in parts if (table := part(body))))
    say(f"\n{arguments.output / 'index.html'}\n{arguments.output / 'report.json'}")


if __name__ == "__main__":
    run(main)
