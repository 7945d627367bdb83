"""What a distillation achieved, for people: masked words filled in by teacher and student, and a table of figures.

python -m launch.showcase --teacher T --before STUDENT0 --after STUDENT --run RUN --data VALID --train-data TRAIN
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from launch.args import flag, parse
from launch.errors import run
from launch.evaluate import held_out, vocabulary_for
from launch.log import LOG, read_log
from launch.run_folder import RunFolder
from model.distiller import Distiller
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

SENTENCES = (
    "This function returns the [MASK] of the array.",
    "If the file does not [MASK], an error is raised.",
    "The second argument is the number of [MASK].",
    "By [MASK], all of the values are used.",
)


@dataclass(frozen=True)
class Arguments:
    """What is shown."""

    teacher: str = flag(help="teacher, folder or hub name", metavar="NAME")
    before: str = flag(help="student before training", metavar="FOLDER")
    after: str = flag(help="student after training, exported", metavar="FOLDER")
    run: Path = flag(help="run folder of the distillation", metavar="RUN")
    data: Path = flag(help="held-out dataset", metavar="DATASET")
    train_data: Path = flag(help="training dataset, whose token counts draw the masks", metavar="DATASET")


def fill(name: str, sentences: tuple[str, ...]) -> list[str]:
    """The three likeliest words for the mask of each sentence, by stock `transformers`."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForMaskedLM.from_pretrained(name).eval()
    answers = []
    for sentence in sentences:
        inputs = tokenizer(sentence.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        best = logits[inputs["input_ids"][0] == tokenizer.mask_token_id][0].softmax(-1).topk(3)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answers.append(", ".join(f"{tokenizer.decode([token])} {share:.0%}" for token, share in pairs))
    return answers


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns under their heads, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{first:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def figures(arguments: Arguments) -> list[tuple[str, ...]]:
    """Parameters and held-out figures of teacher, student before and student after."""
    dataset = Dataset.open(arguments.data)
    vocabulary = vocabulary_for((dataset,), arguments.teacher)
    counts = Corpora.open((str(arguments.train_data),)).counts(vocabulary)
    data = HeldOut(dataset, vocabulary, masking_of(arguments.run), counts)
    teacher = DilBertForMaskedLM.from_pretrained(arguments.teacher)
    rows: list[tuple[str, ...]] = [("", "parameters", "held-out MLM loss", "masked words right", "agrees with teacher")]
    for title, name in (
        ("teacher", arguments.teacher),
        ("student before", arguments.before),
        ("student", arguments.after),
    ):
        model = DilBertForMaskedLM.from_pretrained(name)
        measured = held_out(Distiller(model, teacher, Objective()), data, 32)
        size = sum(p.numel() for p in model.parameters())
        rows.append(
            (
                title,
                f"{size:,}",
                f"{measured['loss_mlm']:.4f}",
                f"{measured['accuracy']:.1%}",
                f"{measured['agreement']:.1%}",
            )
        )
    return rows


def masking_of(run: Path) -> MaskingSettings:
    """How a run masks its input."""
    flags = RunFolder(run).read("config.json").get("flags", {})
    return MaskingSettings(**{field.name: flags[field.name] for field in dataclasses.fields(MaskingSettings)})


def throughput(log: Path) -> float:
    """Median real tokens per second over the lines of a training log."""
    rates = [row["tokens_per_second"] for row in read_log(log) if "tokens_per_second" in row]
    return float(torch.tensor(rates).median())


def main() -> None:
    """Command line."""
    (arguments,) = parse("What a distillation achieved.", Arguments, prog="launch.showcase")
    transformers_logging.disable_progress_bar()
    names = (arguments.teacher, arguments.after)
    for sentence, *answers in zip(SENTENCES, *(fill(name, SENTENCES) for name in names), strict=True):
        print(f"{sentence}\n  teacher: {answers[0]}\n  student: {answers[1]}")
    print("\n" + table(figures(arguments)))
    print(f"\ndistillation: {throughput(arguments.run / LOG):,.0f} real tokens/s")
    for title, path in (("teacher", arguments.teacher), ("student", arguments.after), ("run", arguments.run)):
        print(f"{title:<8} {path}")


if __name__ == "__main__":
    run(main)
