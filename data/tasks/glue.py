"""The nine tasks of GLUE (Wang et al., 2018): columns, labels and metrics of each, side by side."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data.tasks import hub, metrics
from data.tasks.files import find, table
from data.tasks.task import Features, FeatureSettings, Task, encoded, packed
from launch.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = {"train": "train.tsv", "dev": "dev.tsv", "matched": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv",
          "test": "test.tsv", "test_matched": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"}  # fmt: skip
_ON_HUB = {"train": "train", "dev": "validation", "matched": "validation_matched",
           "mismatched": "validation_mismatched", "test": "test", "test_matched": "test_matched",
           "test_mismatched": "test_mismatched"}  # fmt: skip
_HIGHEST = 5.0  # similarity of STS-B


@dataclass(frozen=True)
class Sentences:
    """An example: one text or two, and a class's id or a number."""

    texts: tuple[str, ...]
    label: float


@dataclass(frozen=True)
class Glue(Task[Sentences, Features]):
    """A task of GLUE.

    Attributes:
        folder: its name in the published archive.
        texts: columns of its one or two texts.
        label: column of the label.
        metrics: of `data.tasks.metrics`, the main one first.
        named: labels are names in the files, too; else they are their ids there.
        texts_on_hub: names of the texts on the hub, where they differ.
        header: names of all columns, where the files have none in their first line.
        ragged: the published files hold rows that lack fields, which the hub's version has left out.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    named: bool = False
    splits: tuple[str, ...] = ("dev",)
    texts_on_hub: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    ragged: bool = False
    max_length: int = 128

    @property
    def head(self) -> Literal["classification", "regression"]:
        """See Task."""
        return "classification" if self.labels else "regression"

    @property
    def main(self) -> str:
        """See Task; of several splits the first counts, as in the published tables."""
        return self.metrics[0] if len(self.splits) == 1 else f"{self.splits[0]}_{self.metrics[0]}"

    @property
    def tests(self) -> tuple[str, ...]:
        """See Task."""
        return tuple("test" if split == "dev" else f"test_{split}" for split in self.splits)

    def read(self, data: Path | None, split: str) -> list[Sentences]:
        """See Task; `data` is the task's own folder, or that of all tasks."""
        assert split in ("train", *self.splits, *self.tests)
        if data is None:
            return list(self._from_hub(split))
        path = self._path(data, split)
        examples = list(self._without_labels(path) if split in self.tests else self._from_file(path))
        if not examples:
            raise DataError(f"{path}: no examples in it")
        return examples

    def _names(self, split: str) -> list[str]:
        """Of the files that it may be in, the best first."""
        return [_FILES[split]]

    def _path(self, data: Path, split: str) -> Path:
        names = self._names(split)
        return find(data, [*names, *(f"{self.folder}/{name}" for name in names)], f"{self.folder}'s {split} set")

    def _from_file(self, path: Path) -> Iterator[Sentences]:
        for place, (*texts, label) in table(path, (*self.texts, self.label), self.header, self.ragged):
            yield Sentences(tuple(texts), self._label(label, place))

    def _without_labels(self, path: Path) -> Iterator[Sentences]:
        """Of a test set, whose file always has a head."""
        for _, texts in table(path, self.texts):
            yield Sentences(tuple(texts), 0)

    def _from_hub(self, split: str) -> Iterator[Sentences]:
        texts = self.texts_on_hub or self.texts
        for place, row in hub.load("nyu-mll/glue", self.name, _ON_HUB[split], (*texts, "label")):
            label = 0 if split in self.tests else row["label"]
            highest = len(self.labels) - 1 if self.labels else _HIGHEST
            if not isinstance(label, int | float) or not 0 <= label <= highest:
                raise DataError(f"{place}: label {label!r} is none of {self.folder}'s, which are 0 to {highest:g}")
            yield Sentences(tuple(row[name] for name in texts), label)

    @property
    def written(self) -> tuple[str, ...]:
        """Labels as in the published files, by id."""
        return self.labels if self.named else tuple(map(str, range(len(self.labels))))

    def _label(self, text: str, place: str) -> float:
        """Of a field; an int for a class."""
        if self.labels:
            if text not in self.written:
                raise DataError(f"{place}: unknown label '{text}'; {self.folder} has {', '.join(self.written)}")
            return self.written.index(text)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= _HIGHEST:
            raise DataError(f"{place}: '{text}' is no score; those of {self.folder} are numbers from 0 to {_HIGHEST:g}")
        return value

    def features(
        self, examples: Sequence[Sentences], tokenizer: "PreTrainedTokenizerFast", settings: FeatureSettings,
        training: bool,
    ) -> Features:  # fmt: skip
        """See Task; of a pair that is too long, the longer text is cut, token by token."""
        inputs: list[Any] = [e.texts if len(e.texts) > 1 else e.texts[0] for e in examples]
        truncation = {"max_length": settings.max_length or self.max_length, "strategy": "longest_first"}
        ids, types, ends = packed(encoded(inputs, tokenizer, truncation, f"tokenizing {self.name}", fast=True))
        labels = np.array([e.label for e in examples], np.int64 if self.labels else np.float32)
        return Features(ids, types, ends, labels, np.arange(len(examples)))

    def score(
        self, examples: Sequence[Sentences], features: Features, outputs: Sequence[np.ndarray],
        settings: FeatureSettings,
    ) -> dict[str, float]:  # fmt: skip
        """See Task."""
        return metrics.scores(self.metrics, features.labels, self._answers(outputs))

    def predictions(
        self, examples: Sequence[Sentences], features: Features, outputs: Sequence[np.ndarray],
        settings: FeatureSettings,
    ) -> dict[str, str]:  # fmt: skip
        """See Task: as GLUE's server takes them, `index` and `prediction`."""
        answers = self._answers(outputs).tolist()
        words = [self.written[answer] if self.labels else f"{answer:.3f}" for answer in answers]
        rows = [f"{index}\t{word}\n" for index, word in enumerate(words)]
        return {"": "index\tprediction\n" + "".join(rows)}

    def _answers(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Classes, int64 [n], or numbers, float32 [n]."""
        stacked = np.stack(outputs)
        return stacked.argmax(1) if self.labels else stacked[:, 0]


_TRAIN, _TEST, _DEV_IDS = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "dev_ids.tsv"


@dataclass(frozen=True)
class Mrpc(Glue):
    """MRPC, also in Microsoft's two files. `dev_ids.tsv`, two ids a line, lists the pairs of the training file that are
    GLUE's dev set (as in GLUE's `download_glue_data.py`); without it the test file, which has labels, stands in."""

    def name_of(self, split: str, data: Path | None) -> str:
        """See Task."""
        return "test" if split == "dev" and data and self._path(data, split).name == _TEST else split

    def _names(self, split: str) -> list[str]:
        return [*super()._names(split), *{"train": [_TRAIN], "dev": [_DEV_IDS, _TEST]}.get(split, [])]

    def _from_file(self, path: Path) -> Iterator[Sentences]:
        ids = path.with_name(_DEV_IDS)
        if path == ids or (path.name == _TRAIN and ids.is_file()):
            whole = find(path.parent, [_TRAIN], f"MRPC's training set, of which {_DEV_IDS} lists a part,")
            return self._part(whole, ids, listed=path == ids)
        if path.name == _TEST:
            logging.getLogger(__name__).warning(
                "warning: %s is MRPC's test set, and measured as such; for GLUE's dev set put its list of pairs, %s, "
                "beside it", path, _DEV_IDS,
            )  # fmt: skip
        return super()._from_file(path)

    def _part(self, path: Path, ids: Path, listed: bool) -> Iterator[Sentences]:
        """The pairs that are listed, or the others."""
        columns = ("#1 ID", "#2 ID")
        dev = {tuple(pair) for _, pair in table(ids, columns, header=columns)}
        rows = zip(super()._from_file(path), table(path, columns), strict=True)
        found = [(example, tuple(pair) in dev) for example, (_, pair) in rows]
        if not any(is_dev for _, is_dev in found):
            raise DataError(
                f"{ids}: none of these pairs is in {path}; a line must be two of its ids, separated by a tab"
            )
        yield from (example for example, is_dev in found if is_dev == listed)


_SAME = ("not_entailment", "entailment")

# Labels in the order of the hub's ids, so that models fine-tuned elsewhere mean the same.
GLUE = (
    Glue(
        "cola", "CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), ("matthews", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    Glue(
        "mnli", "MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"),
        ("accuracy",), named=True, splits=("matched", "mismatched"), texts_on_hub=("premise", "hypothesis"),
    ),
    Mrpc(
        "mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("f1", "accuracy"),
        texts_on_hub=("sentence1", "sentence2"),
    ),
    Glue("qnli", "QNLI", ("question", "sentence"), "label", _SAME[::-1], ("accuracy",), named=True),
    Glue(
        "qqp", "QQP", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("f1", "accuracy"),
        ragged=True,
    ),
    Glue("rte", "RTE", ("sentence1", "sentence2"), "label", _SAME[::-1], ("accuracy",), named=True),
    Glue("sst2", "SST-2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    Glue("stsb", "STS-B", ("sentence1", "sentence2"), "score", (), ("pearson", "spearman")),
    Glue("wnli", "WNLI", ("sentence1", "sentence2"), "label", _SAME, ("accuracy",)),
)  # fmt: skip
