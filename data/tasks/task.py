"""What every task has: where its examples come from, what they are as tokens, and what a model's outputs are worth."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
import xxhash
from tokenizers import Encoding

from launch import commit
from launch.args import flag, require
from launch.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

E = TypeVar("E")
F = TypeVar("F", bound="Features")
_BLOCK = 1024  # inputs that are tokenized at once: the library uses all cores within a block


@dataclass(frozen=True)
class FeatureSettings:
    """What a task's texts become, and how answers are read from the outputs."""

    max_length: int | None = flag(None, "tokens of an input at most (default: 128 for GLUE, 384 for SQuAD)", "TOKENS")
    doc_stride: int | None = flag(
        None, "SQuAD: tokens that neighbouring windows of a long context share: their overlap, not their step "
        "(default: 128, or half of the room for the context where that is less)", "TOKENS",
    )  # fmt: skip
    max_query_length: int = flag(64, "SQuAD: questions are cut there", "TOKENS")
    max_answer_length: int = flag(30, "SQuAD: answers are no longer", "TOKENS")
    n_best: int = flag(20, "SQuAD: starts, ends and answers that are considered", "ANSWERS")
    null_threshold: float = flag(
        0.0, "SQuAD 2.0: answer nothing where its score exceeds the best answer's by more than this", "SCORE"
    )

    def __post_init__(self) -> None:
        require(self.max_length is None or self.max_length >= 8, "max_length", self.max_length, "must be 8 at least")
        require((self.doc_stride or 0) >= 0, "doc_stride", self.doc_stride, "must not be negative")
        for name in ("max_query_length", "max_answer_length", "n_best"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(math.isfinite(self.null_threshold), "null_threshold", self.null_threshold, "must be a finite number")


@dataclass(frozen=True)
class Features:
    """Inputs as tokens, packed: one after another.

    Attributes:
        ids: int32 [tokens].
        types: uint8 [tokens], token types.
        ends: int64 [n + 1], cumulative lengths, 0 first.
        labels: int64 [n] classes, float32 [n] numbers, or int64 [n, 2] first and last token of the answer within the
            input, both 0 ([CLS]) where it holds none.
        example: int64 [n], number of the example of each; several in a row may have the same.
    """

    ids: np.ndarray
    types: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    example: np.ndarray

    def __len__(self) -> int:
        return len(self.example)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each: int64 [n]."""
        return np.diff(self.ends)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return int(self.lengths.max())

    def hashes(self) -> list[str]:
        """Change with any input or label."""
        arrays = (self.ids, self.types, self.ends, self.labels)
        return [xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data) for array in arrays]


class Task(ABC, Generic[E, F]):
    """A task with its examples (E) and their features (F).

    Attributes:
        name: as in `--task`.
        head: what a model must have on top: a score for each label, a number, or the answer's first and last token.
        labels: their names, by id; none of a regression or of spans.
        main: the metric that counts where there are several.
        splits: what it is measured on.
        tests: sets without labels, that a server marks.
        max_length: tokens of an input at most, by default.
    """

    name: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    max_length: int

    @property
    @abstractmethod
    def head(self) -> Literal["classification", "regression", "span"]: ...

    @property
    @abstractmethod
    def main(self) -> str: ...

    @property
    def tests(self) -> tuple[str, ...]:
        return ()

    def name_of(self, split: str, data: Path | None) -> str:
        """What a split is called in results: otherwise where the files hold another set in its place."""
        return split

    @abstractmethod
    def read(self, data: Path | None, split: str) -> list[E]:
        """Examples of "train", of one of the splits, or of one of the tests (whose labels are all 0).

        Args:
            data: folder with the task's files as published; None: the Hugging Face hub.

        Raises:
            DataError: files that are missing, damaged, or not the task's; says which, and the line.
            ConfigError: the hub can't be had.
        """

    @abstractmethod
    def features(
        self, examples: Sequence[E], tokenizer: "PreTrainedTokenizerFast", settings: FeatureSettings, training: bool
    ) -> F:
        """Examples as tokens, in their order.

        Args:
            training: what only the reading of answers needs may be left out.

        Raises:
            ConfigError: lengths that leave no room.
        """

    @abstractmethod
    def score(
        self, examples: Sequence[E], features: F, outputs: Sequence[np.ndarray], settings: FeatureSettings
    ) -> dict[str, float]:
        """The task's metrics, as fractions of 1.

        Args:
            outputs: float32, one for each feature, in order: [labels], [1], or [length, 2] for start and end of the
                answer at each token.
        """

    @abstractmethod
    def predictions(
        self, examples: Sequence[E], features: F, outputs: Sequence[np.ndarray], settings: FeatureSettings
    ) -> dict[str, str]:
        """The text of each file of predictions, in the task's published format, by what its name ends with: "" for the
        main one."""

    def write_predictions(
        self, path: Path, examples: Sequence[E], features: F, outputs: Sequence[np.ndarray], settings: FeatureSettings
    ) -> None:
        """Write `predictions` to a path, further files beside it: `answers.json`, `answers_nbest.json`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for ending, text in self.predictions(examples, features, outputs, settings).items():
            commit.write_text(path.with_stem(path.stem + ending), text)


def encoded(
    inputs: Sequence[Any], tokenizer: "PreTrainedTokenizerFast", truncation: dict[str, Any], title: str,
    fast: bool = False,
) -> Iterator[Encoding]:  # fmt: skip
    """Texts, or pairs of them, as tokens with the special ones around them.

    Args:
        truncation: arguments of `tokenizers.Tokenizer.enable_truncation`; it is off again whenever this yields.
        fast: without the tokens' places in the text.
    """
    backend = tokenizer.backend_tokenizer
    encode: Callable[[Sequence[Any]], list[Encoding]] = backend.encode_batch_fast if fast else backend.encode_batch
    with bar(len(inputs), " inputs", title) as progress:
        for start in range(0, len(inputs), _BLOCK):
            block = inputs[start : start + _BLOCK]
            backend.enable_truncation(**truncation)
            try:
                encodings = encode(block)
            finally:
                backend.no_truncation()
            yield from encodings
            progress.update(len(block))


def packed(encodings: Iterable[Encoding]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Their ids, types and ends, as in `Features`."""
    ids, types = [], []
    for encoding in encodings:
        ids.append(np.asarray(encoding.ids, np.int32))
        types.append(np.asarray(encoding.type_ids, np.uint8))
    return np.concatenate(ids), np.concatenate(types), np.cumsum([0, *map(len, ids)])
