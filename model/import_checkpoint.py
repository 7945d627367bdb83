"""The original's checkpoint -> Hugging Face folder: `python -m model.import_checkpoint X.pth --output FOLDER`.

The original distillation code saves the student's weights alone, as `checkpoint.pth` and `model_epoch_N.pth`, with one
`config.json` for all of them. The folder is loaded again by stock `transformers` and its logits compared; one that does
not pass is not left behind.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from launch import commit, hub
from launch.args import flag, parse, positional
from launch.errors import CheckpointError, ConfigError, did_you_mean_path, run
from model import hf
from model.config import BertConfig, read_values
from model.export import check_tokenizer
from model.pretrained import DilBertForMaskedLM
from model.verify import verify

logger = logging.getLogger(__name__)

# How the names of a model's weights begin -> what it is. Those that are not read here are known, to be refused by name.
FAMILIES = {"distilbert": "distilbert", "bert": "bert", "roberta": "roberta", "transformer": "gpt2"}
# Of a `config.json`, beside the network's: a head that is fine-tuned later on asks for them.
HEADS = ("classifier_dropout", "seq_classif_dropout", "qa_dropout")


@dataclass(frozen=True)
class Arguments:
    """What is imported."""

    checkpoint: Path = positional("weights that the original saved: checkpoint.pth, model_epoch_3.pth", "CHECKPOINT")
    output: Path = flag(help="model folder to make", metavar="FOLDER")
    config: Path | None = flag(None, "the student's configuration (default: config.json beside the checkpoint)", "JSON")
    tokenizer: str | None = flag(
        None, "tokenizer that goes with it: folder, or name on the hub (default: what is beside the checkpoint)", "NAME"
    )


def family(state: Mapping[str, Tensor], path: Path) -> str:
    """What model the weights are of.

    Raises:
        CheckpointError: none that is computed here.
    """
    known = {FAMILIES[prefix] for name in state if (prefix := name.partition(".")[0]) in FAMILIES}
    if len(known) == 1 and known <= {"bert", "distilbert"}:
        return known.pop()
    what = f"a {', '.join(sorted(known))}" if known else f"of an unknown kind ({', '.join(list(state)[:3])} ...)"
    raise CheckpointError(f"{path}: its weights are {what}; read here: BERT and DistilBERT")


def read(path: Path, config: Path | None) -> tuple[DilBertForMaskedLM, dict[str, Any]]:
    """The model of a checkpoint, and the content of its `config.json`.

    Raises:
        ConfigError: no such file, no configuration, or one of something else than the weights.
        CheckpointError: weights that are damaged, missing, of other shapes, or more than weights.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file{did_you_mean_path(path)}")
    state = {name.removeprefix("module."): value for name, value in hf.read_file(path).items()}  # DataParallel's
    kind, place = family(state, path), config or path.parent
    values = {"model_type": kind, **read_values(place)}  # DistilBERT's first configurations do not say
    if values["model_type"] != kind:
        raise ConfigError(f"{place}: is of a {values['model_type']}, but {path} of a {kind}: give its own --config")
    try:
        model = DilBertForMaskedLM(BertConfig.from_dict(values))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    report = hf.load_state(model, model.config, state, str(path))
    hf.refuse_missing(report.missing, str(path))
    if report.unexpected:
        logger.warning("%s: not used: %s", path, ", ".join(report.unexpected))
    return model.eval(), values


def import_checkpoint(arguments: Arguments) -> float:
    """Make the folder; returns the relative difference of logits that `transformers` shows.

    Raises:
        ConfigError: the output exists, or as `read`.
        CheckpointError: as `read`, or another tokenizer than the model's, or other logits.
    """
    commit.refuse_existing(arguments.output)
    beside = arguments.checkpoint.parent
    tokenizer = arguments.tokenizer or (str(beside) if hub.has_tokenizer(beside) else None)
    model, values = read(arguments.checkpoint, arguments.config)
    with commit.folder(arguments.output) as partial:
        kept = {key: values[key] for key in HEADS if key in values}
        hf.write_folder(partial, model, model.config, **kept)
        if tokenizer:
            hf.write_tokenizer(partial, hub.fetch(tokenizer, hub.TOKENIZER_FILES), model.config)
            check_tokenizer(partial, model.config)
        else:
            logger.warning("%s: has no tokenizer beside it; --tokenizer NAME adds one", arguments.checkpoint)
        return verify(partial, model)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    example = (
        "  python -m model.import_checkpoint old/model_epoch_2.pth --output models/old --tokenizer bert-base-cased"
    )
    description = "The original's checkpoint -> Hugging Face folder."
    (arguments,) = parse(description, Arguments, example=example, prog="model.import_checkpoint")
    difference = import_checkpoint(arguments)
    print(f"{arguments.output}: loads in transformers {transformers.__version__}; logits agree to {difference:.1e}")


if __name__ == "__main__":
    run(main, disk=CheckpointError)
