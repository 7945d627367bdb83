"""What is checked before the first step: that models, data and tokenizer belong together. Each error says its cure.

Works on plain values, so that it knows no other room of the house.
"""

from dataclasses import dataclass

from launch.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """What one of the parties says of itself; None where it does not know."""

    name: str
    vocabulary: int | None = None
    hidden_size: int | None = None
    positions: int | None = None
    tokenizer_hash: str | None = None
    token_types: int | None = None  # 0: it reads none


def check_models(student: Shape, teacher: Shape | None, needs_width: bool) -> None:
    """The losses compare student and teacher entry by entry.

    Args:
        needs_width: the cosine loss has a weight, so hidden states must have the same width.

    Raises:
        ConfigError: another vocabulary or width.
    """
    if teacher is None:
        return
    if student.vocabulary != teacher.vocabulary:
        raise ConfigError(
            f"--student {student.name} has a vocabulary of {student.vocabulary:,}, --teacher {teacher.name} of "
            f"{teacher.vocabulary:,}: take a student made from this teacher (`python -m model.extract`)"
        )
    if needs_width and student.hidden_size != teacher.hidden_size:
        raise ConfigError(
            f"--student {student.name} has hidden size {student.hidden_size}, --teacher {teacher.name} "
            f"{teacher.hidden_size}: the cosine loss compares them; say --alpha-cos 0, or take another student"
        )


def check_data(data: Shape, longest: int, *models: Shape) -> None:
    """Ids must mean the same to dataset and models, and every sequence must fit.

    Args:
        longest: tokens of the dataset's longest sequence.

    Raises:
        ConfigError: another vocabulary or tokenizer, or too few positions.
    """
    for model in models:
        if None not in (data.vocabulary, model.vocabulary) and data.vocabulary != model.vocabulary:
            raise ConfigError(
                f"{data.name} has a vocabulary of {data.vocabulary:,}, {model.name} of {model.vocabulary:,}: "
                f"binarize the text with the model's tokenizer (`python -m data.binarize --tokenizer {model.name}`)"
            )
        if model.tokenizer_hash and data.tokenizer_hash and model.tokenizer_hash != data.tokenizer_hash:
            raise ConfigError(
                f"{data.name} was made by another tokenizer (hash {data.tokenizer_hash[:12]}) than {model.name}'s "
                f"({model.tokenizer_hash[:12]}): binarize the text with `--tokenizer {model.name}`"
            )
        if model.positions is not None and longest > model.positions:
            raise ConfigError(
                f"{data.name} has a sequence of {longest} tokens, {model.name} has {model.positions} positions: "
                f"binarize with --max-length {model.positions}"
            )


def check_features(source: Shape, longest: int, types: int, *models: Shape) -> None:
    """Features of a task are made by one tokenizer, and read by all models of a run.

    Args:
        source: whose tokenizer made them.
        longest: tokens of the longest one.
        types: token types that they have, 1 of single texts and 2 of pairs.

    Raises:
        ConfigError: a smaller vocabulary, another tokenizer, too few positions or token types.
    """
    assert source.vocabulary is not None
    for model in models:
        if model.vocabulary is not None and model.vocabulary < source.vocabulary:
            raise ConfigError(
                f"{model.name} has a vocabulary of {model.vocabulary:,}, the tokenizer of {source.name} of "
                f"{source.vocabulary:,}: give the model that this tokenizer belongs to"
            )
        if model.tokenizer_hash and model.tokenizer_hash != source.tokenizer_hash:
            raise ConfigError(
                f"{model.name} has another tokenizer (hash {model.tokenizer_hash[:12]}) than {source.name} "
                f"({str(source.tokenizer_hash)[:12]}): teacher and model must read the same ids"
            )
        if model.positions is not None and longest > model.positions:
            raise ConfigError(
                f"an input has {longest} tokens, {model.name} has {model.positions} positions: "
                f"give --max-length {model.positions}"
            )
        if model.token_types and model.token_types < types:
            raise ConfigError(
                f"{model.name} has token types for {model.token_types} text, the task has {types}: give another model, "
                "or one without token types (type_vocab_size 0)"
            )
