"""data.tasks.metrics against hand-worked cases, and what the published SQuAD evaluations say of odd ones."""

import math

import numpy as np
import pytest

from data.tasks.metrics import scores, squad_scores, squad_v2_scores

ALL = ("accuracy", "f1", "matthews")


def one(gold: list[str], predicted: str) -> tuple[float, float]:
    """Exact match and F1 of one question, by SQuAD 1.1."""
    found = squad_scores([gold], [predicted])
    assert set(found) == {"exact", "f1"}
    return found["exact"], found["f1"]


def one_v2(gold: list[str], predicted: str) -> tuple[float, float]:
    found = squad_v2_scores([gold], [predicted])
    return found["exact"], found["f1"]


# --- GLUE ---


def test_classes_by_hand() -> None:
    """5 true positives, 2 false ones, 1 missed, 2 true negatives."""
    gold = np.array([1] * 5 + [0] * 2 + [1] + [0] * 2)
    predicted = np.array([1] * 7 + [0] * 3)
    found = scores(ALL, gold, predicted)
    assert list(found) == list(ALL)
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["f1"] == pytest.approx(2 * 5 / (2 * 5 + 2 + 1))
    assert found["matthews"] == pytest.approx((5 * 2 - 2 * 1) / math.sqrt(7 * 6 * 4 * 3))
    assert all(type(value) is float for value in found.values())


def test_f1_is_of_class_1() -> None:
    assert scores(["f1"], np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == {"f1": 0.0}
    assert scores(["f1"], np.array([1, 1, 1, 0]), np.array([1, 1, 1, 1]))["f1"] == pytest.approx(6 / 7)


def test_accuracy_of_three_classes() -> None:
    assert scores(["accuracy"], np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])) == {"accuracy": 0.5}


def test_correlations_by_hand() -> None:
    """Deviations from the means: (-2, -1, 0, 3) and (-3, -1, 3, 1); ranks (1, 2, 3, 4) and (1, 2, 4, 3)."""
    found = scores(("pearson", "spearman"), np.array([0, 1, 2, 5], np.float32), np.array([1, 3, 7, 5], np.float32))
    assert found["pearson"] == pytest.approx((6 + 1 + 0 + 3) / math.sqrt(14 * 20))
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_ties_share_their_rank() -> None:
    """Ranks (1, 2, 3) and (1.5, 1.5, 3)."""
    found = scores(["spearman"], np.array([1.0, 2.0, 3.0]), np.array([4.0, 4.0, 9.0]))
    assert found["spearman"] == pytest.approx(1.5 / math.sqrt(2 * 1.5))


@pytest.mark.parametrize("predicted", [[2.5] * 4, [0.0] * 4])
def test_a_constant_correlates_with_nothing(predicted: list[float]) -> None:
    gold = np.array([0, 1, 2, 5], np.float32)
    assert scores(("pearson", "spearman"), gold, np.array(predicted)) == {"pearson": 0.0, "spearman": 0.0}
    assert scores(("pearson", "spearman"), gold[:1], gold[:1]) == {"pearson": 0.0, "spearman": 0.0}
    assert scores(["matthews"], np.array([0, 1, 1, 0]), np.array([1, 1, 1, 1])) == {"matthews": 0.0}


# --- SQuAD ---


@pytest.mark.parametrize("gold", ["the Eiffel Tower", "An eiffel tower!", "  Eiffel \t Tower.  ", "'Eiffel' tower a"])
def test_case_articles_punctuation_and_spaces_do_not_count(gold: str) -> None:
    assert one([gold], "Eiffel Tower") == one_v2([gold], "Eiffel Tower") == (1.0, 1.0)


def test_what_counts() -> None:
    assert one(["1 000"], "1,000")[0] == 0.0  # "1 000" and "1000"
    assert one(["U.S."], "US") == (1.0, 1.0)
    assert one(["another"], "other")[0] == 0.0  # an article is a word of its own
    assert one(["theatre"], "atre")[0] == 0.0
    assert one(["caf\u00e9"], "cafe")[0] == 0.0
    assert one(["\u201cyes\u201d"], "yes")[0] == 0.0  # only ASCII's punctuation goes
    assert one(["a-the-b"], "atheb") == (1.0, 1.0)  # punctuation goes first, and leaves no space


def test_f1_counts_words_as_often_as_they_occur() -> None:
    """Two of three predicted words are gold, of four: precision 2/3, recall 1/2."""
    exact, f1 = one(["new york new jersey"], "york new city")
    assert (exact, f1) == (0.0, pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)))
    assert one(["new york"], "new new new")[1] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_the_best_of_several_answers_counts() -> None:
    """For each metric by itself, and never their mean."""
    exact, f1 = one(["in 1969", "July 20, 1969", "1969"], "July 1969")
    assert (exact, f1) == (0.0, pytest.approx(0.8))
    assert one(["in 1969", "1969"], "1969") == (1.0, 1.0)


def test_scores_are_means_over_questions() -> None:
    assert squad_scores([["a b c"], ["x"], ["y"]], ["b c", "x", "z"]) == {
        "exact": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }


def test_nothing_but_an_article() -> None:
    """Both sides have no words: the evaluation of 1.1 sees an exact match without a shared word; 2.0 wants no answer
    then."""
    assert one(["the"], "The") == (1.0, 0.0)
    assert one_v2(["the"], "The") == one_v2(["the"], "") == (1.0, 1.0)


def test_no_answer() -> None:
    assert one_v2([], "") == (1.0, 1.0)
    assert one_v2([], "Paris") == (0.0, 0.0)
    assert one_v2(["Paris"], "") == (0.0, 0.0)
    assert one(["Paris"], "") == (0.0, 0.0)


def test_answers_without_words_do_not_count_beside_others() -> None:
    assert one_v2(["the", "Paris"], "") == (0.0, 0.0)
    assert one_v2(["the", "Paris"], "paris") == (1.0, 1.0)


def test_v2_by_parts() -> None:
    gold = [["Paris"], ["the Seine", "Seine river"], [], [], []]
    found = squad_v2_scores(gold, ["paris", "river", "", "Rome", ""])
    assert found == {
        "exact": pytest.approx(3 / 5),
        "f1": pytest.approx((1 + 2 / 3 + 2) / 5),
        "HasAns_exact": pytest.approx(1 / 2),
        "HasAns_f1": pytest.approx((1 + 2 / 3) / 2),
        "NoAns_exact": pytest.approx(2 / 3),
        "NoAns_f1": pytest.approx(2 / 3),
    }


def test_v2_without_one_kind_of_question() -> None:
    assert set(squad_v2_scores([["a b"]], ["b"])) == {"exact", "f1", "HasAns_exact", "HasAns_f1"}
    assert set(squad_v2_scores([[]], ["b"])) == {"exact", "f1", "NoAns_exact", "NoAns_f1"}
