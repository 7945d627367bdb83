"""From the scores of tokens to the text of an answer, as BERT's original does (Devlin et al., 2019, `run_squad.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.tasks.task import FeatureSettings

CERTAIN = 1e6  # by how much no answer is the better one where there is no other; logits are far smaller


@dataclass(frozen=True)
class Window:
    """A part of a question's context, with what a model says of it.

    Attributes:
        logits: float32 [length, 2], scores of the answer's start and end at each token; the first token's stand for no
            answer.
        offsets: int32 [length, 2], the token's characters in the context; -1 where it is none of the context.
        central: bool [length], answers may start here: no other window has more context around the token.
    """

    logits: np.ndarray
    offsets: np.ndarray
    central: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """An answer; "" is none."""

    text: str
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        """What candidates are ranked by."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Decoded:
    """What is answered to a question.

    Attributes:
        text: "" for no answer.
        n_best: candidates, each with another text, the best first.
        null_odds: by how much the score of no answer exceeds that of the best one.
    """

    text: str
    n_best: list[Candidate]
    null_odds: float


def decode(context: str, windows: Sequence[Window], unanswerable: bool, settings: FeatureSettings) -> Decoded:
    """Rank the spans of all windows of a question.

    Args:
        unanswerable: no answer is a candidate, too, with the lowest score that a window gives it; it is taken where
            that exceeds the best span's score by more than `null_threshold`.
    """
    nothing = min((Candidate("", *map(float, window.logits[0])) for window in windows), key=lambda none: none.score)
    spans = np.concatenate([_spans(window, settings) for window in windows])
    if unanswerable:
        spans = np.concatenate([spans, [(0, 0, nothing.start_logit, nothing.end_logit)]])
    dropped = _dropped(context, windows)
    found: dict[str, Candidate] = {}
    for first, end, *logits in spans[np.argsort(-spans[:, 2:].sum(1), kind="stable")].tolist():
        if len(found) == settings.n_best:
            break
        text = _text(context, int(first), int(end), dropped) if end else ""
        found.setdefault(text, Candidate(text, *logits))
    if unanswerable or not found:
        found.setdefault("", nothing)
    best = next((candidate for candidate in found.values() if candidate.text), nothing)
    odds = nothing.score - best.score if best is not nothing else CERTAIN
    text = "" if unanswerable and odds > settings.null_threshold else best.text
    return Decoded(text, _with_probabilities(list(found.values())), odds)


def _spans(window: Window, settings: FeatureSettings) -> np.ndarray:
    """Spans from a likely start to a likely end: first character, behind the last, and both logits; float64 [n, 4]."""
    logits = window.logits.astype(np.float64)
    starts, ends = (np.argsort(-scores, kind="stable")[: settings.n_best] for scores in logits.T)
    starts, ends = starts[window.central[starts]], ends[window.offsets[ends, 0] >= 0]
    lengths = ends - starts[:, None] + 1
    rows, columns = np.nonzero((lengths > 0) & (lengths <= settings.max_answer_length))
    first, last = starts[rows], ends[columns]
    return np.stack([window.offsets[first, 0], window.offsets[last, 1], logits[first, 0], logits[last, 1]], 1)


def _dropped(context: str, windows: Sequence[Window]) -> set[int]:
    """Places of the characters that are in no token, and no white space either: accents that stand by themselves, vowel
    signs, zero-width characters."""
    offsets = np.concatenate([window.offsets[window.offsets[:, 0] >= 0] for window in windows])
    starts, ends = (np.bincount(column, minlength=len(context) + 1) for column in offsets.T)
    outside = np.flatnonzero(np.cumsum(starts - ends)[:-1] == 0)
    return {place for place in outside.tolist() if not context[place].isspace()}


def _text(context: str, first: int, end: int, dropped: set[int]) -> str:
    """A span with its dropped characters: they go with the token before them, or with the one behind them where a word
    begins with them."""
    start = first
    while end in dropped:
        end += 1
    while start - 1 in dropped:
        start -= 1
    begins = start == 0 or context[start - 1].isspace()
    return context[start if begins else first : end]


def _with_probabilities(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Softmax over their scores."""
    scores = np.array([candidate.score for candidate in candidates])
    weights = np.exp(scores - scores.max())
    return [
        replace(candidate, probability=p)
        for candidate, p in zip(candidates, (weights / weights.sum()).tolist(), strict=True)
    ]
