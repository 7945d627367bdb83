"""Questions with their contexts as tokens: windows over long contexts, and where in them the answers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from data.tasks.answers import Window
from data.tasks.task import Features, FeatureSettings, encoded, packed
from launch.args import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Answer:
    """A text, and where it begins in the context, in characters."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Behind its last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Question:
    """An example; without answers, there is none in its context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SpanFeatures(Features):
    """Windows: a question with as much of its context as there is room for.

    Attributes:
        offsets: int32 [tokens, 2], of the context, first character and behind the last; -1 where a token is none of it.
        central: bool [tokens], no other window has more context around this token.

    Both are empty where the features are for training.
    """

    offsets: np.ndarray
    central: np.ndarray

    def window(self, number: int, logits: np.ndarray) -> Window:
        """One of them, with a model's outputs."""
        inside = slice(self.ends[number], self.ends[number + 1])
        return Window(logits, self.offsets[inside], self.central[inside])


def windows(
    questions: Sequence[Question], tokenizer: "PreTrainedTokenizerFast", settings: FeatureSettings, training: bool,
    title: str,
) -> SpanFeatures:  # fmt: skip
    """Windows of each question, in the order of its context; neighbours share `doc_stride` tokens. Labels are of the
    first answer: all tokens that it touches, in windows that hold them all.

    Raises:
        ConfigError: lengths that leave no room for the context.
    """
    length = settings.max_length
    assert length is not None
    room = length - settings.max_query_length - tokenizer.backend_tokenizer.num_special_tokens_to_add(True)
    rule = f"leaves no room: questions may have {settings.max_query_length} tokens (--max-query-length)"
    require(room > 0, "max_length", length, rule)
    stride = min(128, room // 2) if settings.doc_stride is None else settings.doc_stride
    rule = f"must be less than the {room} tokens that --max-length and --max-query-length leave for the context"
    require(stride < room, "doc_stride", stride, rule)
    texts = _cut([question.question for question in questions], tokenizer, settings.max_query_length, title)
    pairs = [(text, question.context) for text, question in zip(texts, questions, strict=True)]
    truncation = {"max_length": length, "stride": stride, "strategy": "only_second"}
    encodings = encoded(pairs, tokenizer, truncation, title)
    return _joined([
        _windows_of(number, question.answers[:1], encoding, stride, training)
        for number, (question, encoding) in enumerate(zip(questions, encodings, strict=True))
    ])  # fmt: skip


def _cut(texts: list[str], tokenizer: "PreTrainedTokenizerFast", most: int, title: str) -> list[str]:
    """Texts, cut behind their last token that may stay."""
    limit = {"max_length": most + tokenizer.backend_tokenizer.num_special_tokens_to_add(False)}
    encodings = encoded(texts, tokenizer, limit, f"{title}: questions")
    return [
        text[: max(end for _, end in encoding.offsets)] if encoding.overflowing else text
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def _windows_of(
    number: int, answers: Sequence[Answer], encoding: Encoding, stride: int, training: bool
) -> SpanFeatures:
    """The windows of one question alone.

    Args:
        answers: what labels are of: one, or none.
        encoding: the first window, with the others as its overflow.
    """
    own = [encoding, *encoding.overflowing]
    ids, types, ends = packed(own)
    inside = np.concatenate([[part == 1 for part in window.sequence_ids] for window in own])
    offsets = np.concatenate([window.offsets for window in own]).astype(np.int32)
    offsets[~inside] = -1
    sizes = np.add.reduceat(inside, ends[:-1], dtype=np.int64)
    starts = np.arange(len(own)) * (sizes[0] - stride)  # all but the last are full
    labels = np.zeros((len(own), 2), np.int64)
    for answer in answers:
        spans = _spans(offsets[inside], starts, sizes, answer)
        labels = np.where(spans < 0, 0, spans + np.argmax(inside))
    if training:
        return SpanFeatures(ids, types, ends, labels, np.full(len(own), number), offsets[:0], inside[:0])
    central = np.zeros(inside.size, bool)
    central[inside] = _central(starts, sizes)
    return SpanFeatures(ids, types, ends, labels, np.full(len(own), number), offsets, central)


def _spans(offsets: np.ndarray, starts: np.ndarray, sizes: np.ndarray, answer: Answer) -> np.ndarray:
    """First and last token that an answer touches, counted from the first token of the context in each window; -1 where
    a window lacks some of them, or the tokenizer has dropped all characters of the answer: int64 [windows, 2].

    Args:
        offsets: of the tokens of the context, window after window.
        starts, sizes: of windows, in tokens of the context: int64 [windows] each.
    """
    places = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    touched = places[(offsets[:, 1] > answer.start) & (offsets[:, 0] < answer.end)]
    if not touched.size:
        return np.full((starts.size, 2), -1)
    first, last = touched.min(), touched.max()
    whole = (starts <= first) & (last < starts + sizes)
    return np.where(whole[:, None], np.stack([first - starts, last - starts], 1), -1)


def _central(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether a token has its most context in this window, for the tokens of the context, window after window.

    Context is what there is on the side that has less, and a hundredth of the window; of equal ones the first counts.
    So in BERT's original (Devlin et al., 2019, `run_squad.py`).
    """
    best = np.full(starts[-1] + sizes[-1], -1.0)
    window = np.empty(best.size, np.int64)
    places = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    for number, place in enumerate(places):
        left = np.arange(sizes[number])
        context = np.minimum(left, left[::-1]) + 0.01 * sizes[number]
        more = context > best[place]
        best[place][more] = context[more]
        window[place][more] = number
    return np.concatenate([window[place] == number for number, place in enumerate(places)])


def _joined(parts: Sequence[SpanFeatures]) -> SpanFeatures:
    """Of all questions."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "types", "labels", "example", "offsets", "central")
    }
    ends = np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]))
    return SpanFeatures(ends=ends, **columns)
