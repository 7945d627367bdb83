"""Metrics of GLUE by name, and SQuAD's exact match and F1 as its published evaluation defines them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def scores(names: Sequence[str], gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Metrics by their names: accuracy, f1 (of class 1), matthews, pearson, spearman.

    Args:
        gold, predicted: classes or numbers, [n] each.
    """
    return {name: _score(name, gold, predicted) for name in names}


def _score(name: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    """Where one side is constant, nothing correlates with it, and the correlation counts as 0."""
    from scipy import stats  # these take a second to import, and training does without them until it measures
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(gold, predicted))
    if name == "f1":
        return float(metrics.f1_score(gold, predicted, zero_division=0.0))
    if name == "matthews":
        return float(metrics.matthews_corrcoef(gold, predicted))
    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    correlation = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    return float(correlation(gold.astype(np.float64), predicted.astype(np.float64)).statistic)


def squad_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """SQuAD 1.1 (Rajpurkar et al., 2016): means over questions of the best match with any of their answers."""
    pairs = [(_words(text), list(map(_words, answers))) for text, answers in zip(predicted, gold, strict=True)]
    exact = [max(float(words == answer) for answer in answers) for words, answers in pairs]
    f1 = [max(_f1(words, answer) for answer in answers) for words, answers in pairs]
    return {"exact": float(np.mean(exact)), "f1": float(np.mean(f1))}


def squad_v2_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """SQuAD 2.0 (Rajpurkar et al., 2018): of all questions, and of those with and without answers (`HasAns_`,
    `NoAns_`). A question without answers, or whose answers are nothing but articles and punctuation, wants none.
    """
    exact, f1 = [], []
    for text, answers in zip(predicted, gold, strict=True):
        words = _words(text)
        wanted = [answer for answer in map(_words, answers) if answer] or [[]]
        exact.append(max(float(words == answer) for answer in wanted))
        f1.append(max(_f1(words, answer) if words and answer else float(words == answer) for answer in wanted))
    answerable = np.array([len(answers) > 0 for answers in gold])
    found = {}
    for prefix, chosen in (("", np.ones_like(answerable)), ("HasAns_", answerable), ("NoAns_", ~answerable)):
        if chosen.any():
            found[f"{prefix}exact"] = float(np.mean(np.array(exact)[chosen]))
            found[f"{prefix}f1"] = float(np.mean(np.array(f1)[chosen]))
    return found


def _words(text: str) -> list[str]:
    """Lower-cased words without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(predicted: list[str], gold: list[str]) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it occurs; 0 where none is shared,
    also where both are empty: so it is in SQuAD 1.1's evaluation."""
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0
