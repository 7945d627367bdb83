"""Initial student from a teacher's layers: `python -m model.extract --teacher NAME --output FOLDER`.

Embeddings, the chosen layers and the head's transform are copied. A student has no token types: the teacher's vector
for type 0 is added to the position table, so that the student's embedding output is the teacher's.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from launch import commit, hub
from launch.args import flag, parse
from launch.errors import CheckpointError, ConfigError, run
from model import hf
from model.config import BertConfig
from model.pretrained import DilBertForMaskedLM

PUBLISHED = (0, 2, 4, 7, 9, 11)  # of 12 (Sanh et al., 2019)


@dataclass(frozen=True)
class Arguments:
    """What is taken from where."""

    teacher: str = flag(help="folder, or name on the Hugging Face hub (bert-base-uncased)", metavar="NAME")
    output: Path = flag(help="model folder to make", metavar="FOLDER")
    layers: tuple[int, ...] | None = flag(
        None, "teacher layers that the student takes, from 0 (default: 0 2 4 7 9 11 of 12, else every second)", "LAYER"
    )
    mlm_transform: bool = flag(True, "copy the transform of the masked-language-model head (else it starts at random)")
    seed: int = flag(0, "of what starts at random")


def default_layers(depth: int) -> tuple[int, ...]:
    """The published choice for 12 layers, every second one for another depth."""
    return PUBLISHED if depth == 12 else tuple(range(0, depth, 2))


def student_config(teacher: BertConfig, layers: tuple[int, ...]) -> BertConfig:
    """DistilBERT's architecture at the teacher's width.

    Raises:
        ConfigError: a layer that the teacher does not have.
    """
    depth = teacher.num_hidden_layers
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"--layers {wrong[0]}: the teacher has layers 0 to {depth - 1}")
    return dataclasses.replace(teacher, num_hidden_layers=len(layers), type_vocab_size=0, attention_output_dropout=0.0)


@torch.no_grad()
def extract(
    teacher: DilBertForMaskedLM, layers: tuple[int, ...], mlm_transform: bool = True, seed: int = 0
) -> DilBertForMaskedLM:
    """A student with the teacher's embeddings, the given layers in the given order, and its head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = DilBertForMaskedLM(student_config(teacher.config, layers))
    student.embeddings.word.load_state_dict(teacher.embeddings.word.state_dict())
    student.embeddings.norm.load_state_dict(teacher.embeddings.norm.state_dict())
    student.embeddings.position.load_state_dict(teacher.embeddings.position.state_dict())
    if teacher.embeddings.token_type is not None:
        student.embeddings.position.weight += teacher.embeddings.token_type.weight[0]
    for mine, theirs in zip(student.layers, (teacher.layers[layer] for layer in layers), strict=True):
        mine.load_state_dict(theirs.state_dict())
    student.head.bias.copy_(teacher.head.bias)
    if mlm_transform:
        student.head.load_state_dict(teacher.head.state_dict())
    return student.eval()


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    example = "  python -m model.extract --teacher bert-base-uncased --output models/student"
    (arguments,) = parse("Initial student from a teacher.", Arguments, example=example, prog="model.extract")
    commit.refuse_existing(arguments.output)
    teacher = DilBertForMaskedLM.from_pretrained(arguments.teacher)
    layers = arguments.layers or default_layers(teacher.config.num_hidden_layers)
    student = extract(teacher, layers, arguments.mlm_transform, arguments.seed)
    with commit.folder(arguments.output) as folder:
        hf.write_folder(folder, student, student.config)
        hf.write_tokenizer(folder, hub.fetch(arguments.teacher, hub.TOKENIZER_FILES), student.config)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    print(
        f"{arguments.output}: layers {' '.join(map(str, layers))} of {teacher.config.num_hidden_layers}, "
        f"{sizes[1]:,} parameters ({sizes[1] / sizes[0]:.0%} of the teacher's {sizes[0]:,})"
    )


if __name__ == "__main__":
    run(main, disk=CheckpointError)
