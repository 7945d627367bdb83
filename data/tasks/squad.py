"""SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016 and 2018): their files, and the task."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data.tasks import hub
from data.tasks.answers import Decoded, decode
from data.tasks.files import find, load_json
from data.tasks.metrics import squad_scores, squad_v2_scores
from data.tasks.task import FeatureSettings, Task
from data.tasks.windows import Answer, Question, SpanFeatures, windows
from launch.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ON_HUB = {"train": "train", "dev": "validation"}


@dataclass(frozen=True)
class Squad(Task[Question, SpanFeatures]):
    """A version of SQuAD.

    Attributes:
        version: as in the names of its files.
        on_hub: its name there.
        unanswerable: questions may have no answer.
    """

    name: str
    version: str
    on_hub: str
    unanswerable: bool
    labels: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("dev",)
    max_length: int = 384

    @property
    def head(self) -> Literal["span"]:
        """See Task."""
        return "span"

    @property
    def main(self) -> str:
        """See Task."""
        return "f1"

    def read(self, data: Path | None, split: str) -> list[Question]:
        """See Task."""
        assert split in ("train", *self.splits)
        if data is None:
            source = f"'{self.on_hub}'"
            columns = ("id", "question", "context", "answers")
            records = _records_of_hub(hub.load(self.on_hub, None, _ON_HUB[split], columns))
        else:
            path = find(data, [f"{split}-v{self.version}.json"], f"SQuAD {self.version}'s {split} set")
            source, records = str(path), _records_of_file(path)
        questions = {}
        for place, record, context in records:
            question = self._question(record, context, place)
            if question.id in questions:
                raise DataError(f"{place}: id '{question.id}' has been another question's already")
            questions[question.id] = question
        if not questions:
            raise DataError(f"{source}: no questions in it")
        return list(questions.values())

    def _question(self, record: Any, context: str, place: str) -> Question:
        number, text = _get(record, "id", str, place), _get(record, "question", str, place)
        place = f"{place}, id '{number}'"
        answers = tuple(_answer(answer, context, place) for answer in _get(record, "answers", list, place))
        if not answers and not self.unanswerable:
            raise DataError(f"{place}: has no answers; such questions are of SQuAD 2.0 only (--task squad_v2)")
        if answers and record.get("is_impossible"):
            raise DataError(f"{place}: has answers, and is_impossible: correct the one or the other")
        if not answers and record.get("is_impossible") is False:
            raise DataError(f"{place}: has no answers, and is_impossible is false: correct the one or the other")
        return Question(number, text, context, answers)

    def features(
        self, examples: Sequence[Question], tokenizer: "PreTrainedTokenizerFast", settings: FeatureSettings,
        training: bool,
    ) -> SpanFeatures:  # fmt: skip
        """See Task, and `data.tasks.windows`."""
        settings = replace(settings, max_length=settings.max_length or self.max_length)
        return windows(examples, tokenizer, settings, training, f"tokenizing {self.name}")

    def score(
        self, examples: Sequence[Question], features: SpanFeatures, outputs: Sequence[np.ndarray],
        settings: FeatureSettings,
    ) -> dict[str, float]:  # fmt: skip
        """See Task: `exact` and `f1`."""
        found = [decoded.text for decoded in self._decode(examples, features, outputs, settings)]
        gold = [[answer.text for answer in question.answers] for question in examples]
        return squad_v2_scores(gold, found) if self.unanswerable else squad_scores(gold, found)

    def predictions(
        self, examples: Sequence[Question], features: SpanFeatures, outputs: Sequence[np.ndarray],
        settings: FeatureSettings,
    ) -> dict[str, str]:  # fmt: skip
        """See Task: texts by id, as the published evaluation takes them; `_nbest`; and for SQuAD 2.0 `_null_odds`, by
        how much the score of no answer exceeds the best answer's."""
        decoded = list(self._decode(examples, features, outputs, settings))
        files: dict[str, list[Any]] = {"": [question.text for question in decoded]}
        files["_nbest"] = [[asdict(answer) for answer in question.n_best] for question in decoded]
        if self.unanswerable:
            files["_null_odds"] = [question.null_odds for question in decoded]
        ids = [question.id for question in examples]
        return {
            ending: json.dumps(dict(zip(ids, values, strict=True)), ensure_ascii=False, indent=1) + "\n"
            for ending, values in files.items()
        }

    def _decode(
        self, examples: Sequence[Question], features: SpanFeatures, outputs: Sequence[np.ndarray],
        settings: FeatureSettings,
    ) -> Iterator[Decoded]:  # fmt: skip
        """What is answered to each question."""
        first = np.searchsorted(features.example, np.arange(len(examples) + 1))
        for number, question in enumerate(examples):
            own = range(first[number], first[number + 1])
            yield decode(question.context, [features.window(i, outputs[i]) for i in own], self.unanswerable, settings)


def _records_of_file(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Where it is, the record, and the context of each question."""
    for a, article in enumerate(_get(load_json(path), "data", list, str(path))):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}, article {a}")):
            place = f"{path}, article {a}, paragraph {p}"
            context = _get(paragraph, "context", str, place)
            for q, record in enumerate(_get(paragraph, "qas", list, place)):
                yield f"{place}, question {q}", record, context


def _records_of_hub(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Any, str]]:
    """The same of the hub's rows, where texts and places of answers are columns."""
    for place, row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        record = {"id": row["id"], "question": row["question"], "answers": answers}
        yield place, record, row["context"]


_JSON = {str: "text", list: "list", int: "whole number"}


def _get(record: Any, key: str, kind: type, place: str) -> Any:
    """A record's field, which must be there and of a kind."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{place}: '{key}' must be there, and be a {_JSON[kind]}")
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="ignore").decode():
        raise DataError(f"{place}: '{key}' holds half a character (a lone surrogate), which is no text")
    return value


def _answer(record: Any, context: str, place: str) -> Answer:
    """Raises DataError unless the answer stands where it says."""
    text, start = _get(record, "text", str, place), _get(record, "answer_start", int, place)
    if not text:
        raise DataError(f"{place}: an answer's text is empty; a question without answer has an empty list of them")
    if start < 0 or not context.startswith(text, start):
        places = [i for i in range(len(context)) if context.startswith(text, i)]
        cure = f"it begins at {' or at '.join(map(str, places))}: correct answer_start" if places else (
            "it is nowhere in it: correct the answer, or take the question out"
        )  # fmt: skip
        raise DataError(f"{place}: answer '{text}' is not in the context at answer_start {start}; {cure}")
    return Answer(text, start)


SQUAD = (
    Squad("squad", "1.1", "rajpurkar/squad", unanswerable=False),
    Squad("squad_v2", "2.0", "rajpurkar/squad_v2", unanswerable=True),
)
