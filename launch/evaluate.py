"""Held-out figures of a model: `python -m launch.evaluate --model FOLDER --data DATASET [--teacher FOLDER]`.

Masked-language-model loss and accuracy and, with a teacher, the soft-target and cosine losses and how often the
student's first choice is the teacher's. Every sequence counts once, with fixed masks: the same numbers on any number of
ranks and for any batch size; models are compared on the same masked words.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import HeldOut
from data.masking import MaskingSettings
from data.tokenizer import load_tokenizer, tokenizer_hash, vocabulary_of
from data.vocabulary import Vocabulary
from launch import commit, hub
from launch.args import flag, parse, require
from launch.errors import ConfigError, DataError, run
from launch.preflight import Shape, check_data, check_models
from model.bert import Encoder
from model.distiller import Batch, Distiller, held_out_figures
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM


@dataclass(frozen=True)
class Arguments:
    """What is measured on what."""

    model: str = flag(help="model folder or hub name", metavar="NAME")
    data: Path = flag(help="held-out dataset", metavar="DATASET")
    teacher: str | None = flag(None, "model to compare with", "NAME")
    train_data: tuple[str, ...] | None = flag(
        None, "what was trained on, as in its --data: its token counts draw the masks (default: --data)", "DATASET"
    )
    batch_size: int = flag(16, "sequences at once; the figures do not depend on it")
    json: Path | None = flag(None, "write the figures there, too", "FILE")

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", self.batch_size, "must be positive")


def held_out(
    distiller: Distiller, data: HeldOut, size: int, alive: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Measure on all of a held-out dataset; every rank of the process group, if there is one, takes its share.

    Args:
        alive: called before each batch.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(distiller.parameters()).device

    def batches() -> Iterator[Batch]:
        for micro_batch in data.micro_batches(size, rank, ranks):
            alive("measuring on held-out data")
            yield Batch.of(micro_batch, device).to(device)

    total = distiller.measure(batches())
    if ranks > 1:
        dist.all_reduce(total)
    return held_out_figures(total, distiller)


def vocabulary_for(datasets: Sequence[Dataset], *names: str | None) -> Vocabulary:
    """The first dataset's vocabulary that knows it; of bare Megatron pairs, that of the first model with a tokenizer.

    Raises:
        DataError: nobody knows which ids are special.
    """
    for dataset in datasets:
        if dataset.vocabulary:
            return dataset.vocabulary
    for name in names:
        if name and hub.has_tokenizer(hub.fetch(name, hub.TOKENIZER_FILES)):
            return vocabulary_of(load_tokenizer(name))
    raise DataError(f"{datasets[0].path}: a bare Megatron pair needs a model with a tokenizer: which ids are special?")


def shape_of(name: str, model: Encoder) -> Shape:
    """What a model says of itself, its tokenizer's hash included where it brings one."""
    own = hub.has_tokenizer(hub.fetch(name, hub.TOKENIZER_FILES))
    config, digest = model.config, tokenizer_hash(load_tokenizer(name)) if own else None
    sizes = config.vocab_size, config.hidden_size, config.max_position_embeddings
    return Shape(name, *sizes, digest, config.type_vocab_size)


def check_together(
    datasets: Iterable[Dataset | None],
    vocabulary: Vocabulary,
    models: Iterable[tuple[str | None, DilBertForMaskedLM | None]],
    needs_width: bool,
) -> None:
    """Vocabulary, tokenizer, width and positions agree, or ConfigError says what to do.

    Args:
        datasets: one of them gave the vocabulary; None is passed over.
        models: names and models, the student first; None is passed over.
        needs_width: hidden states are compared, too.
    """
    shapes = [shape_of(name, model) for name, model in models if name and model]
    check_models(shapes[0], shapes[1] if len(shapes) > 1 else None, needs_width)
    for data in filter(None, datasets):
        known = data.vocabulary or vocabulary
        check_data(Shape(str(data.path), known.size, tokenizer_hash=known.tokenizer_hash), data.longest, *shapes)
        if known.tokenizer_hash != vocabulary.tokenizer_hash:
            raise ConfigError(f"{data.path}: made by another tokenizer than the training data; binarize it anew")


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    arguments, masking = parse("Held-out figures of a model.", Arguments, MaskingSettings, prog="launch.evaluate")
    dataset = Dataset.open(arguments.data)
    vocabulary = vocabulary_for((dataset,), arguments.model, arguments.teacher)
    model = DilBertForMaskedLM.from_pretrained(arguments.model)
    teacher = DilBertForMaskedLM.from_pretrained(arguments.teacher) if arguments.teacher else None
    check_together((dataset,), vocabulary, ((arguments.model, model), (arguments.teacher, teacher)), needs_width=True)
    counts = Corpora.open(arguments.train_data or (str(arguments.data),)).counts(vocabulary)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    distiller = Distiller(model.to(device), teacher.to(device) if teacher else None, Objective())
    figures = held_out(distiller, HeldOut(dataset, vocabulary, masking, counts), arguments.batch_size)
    print(f"{arguments.model} on {arguments.data}: " + " | ".join(f"{k} {v:.4f}" for k, v in figures.items()))
    if arguments.json:
        commit.write_text(arguments.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run(main)
