"""model.losses: each loss against numbers worked out by hand, and their sum."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from launch.errors import ConfigError
from model.losses import (
    LossSums,
    Objective,
    TaskObjective,
    cross_entropy,
    hidden_cosine,
    logit_mse,
    soft_target_kl,
    span_cross_entropy,
    span_kl,
    weighted,
)

LN2, LN3 = math.log(2), math.log(3)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def test_soft_target_kl_by_hand() -> None:
    """T = 2. The teacher's logits (2 ln 3, 0) give softmax(ln 3, 0) = (3/4, 1/4), the student's (0, 0) give (1/2, 1/2).

    KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 3/4 ln 3 - ln 2 = 0.1308120; times T^2 = 4: 0.5232481. The second row, the same
    the other way round: KL = 1/2 ln(2/3) + 1/2 ln 2 = ln 2 - 1/2 ln 3 = 0.1438410; times 4: 0.5753641. The third: 0.
    """
    student = torch.tensor([[0.0, 0.0], [2 * LN3, 0.0], [5.0, 4.0]])
    teacher = torch.tensor([[2 * LN3, 0.0], [0.0, 0.0], [7.0, 6.0]])
    rows = [soft_target_kl(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(3)]
    torch.testing.assert_close(torch.stack(rows), torch.tensor([0.5232481, 0.5753641, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(soft_target_kl(student, teacher, 2.0), scalar(0.5232481 + 0.5753641), rtol=0, atol=1e-6)
    assert 4 * (0.75 * LN3 - LN2) == pytest.approx(0.5232481)
    assert 4 * (LN2 - 0.5 * LN3) == pytest.approx(0.5753641)


def test_soft_target_kl_sums_over_the_vocabulary() -> None:
    """T = 1, teacher one of four for sure (by 100 nats), student without a clue: ln 4, not ln 4 / 4."""
    teacher = torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(soft_target_kl(torch.zeros(1, 4), teacher, 1.0), scalar(2 * LN2))


def test_soft_target_kl_gradient_by_hand() -> None:
    """d/ds T^2 KL(p || q) = T (q - p): with T = 2, p = (3/4, 1/4), q = (1/2, 1/2): (-1/2, 1/2)."""
    student = torch.zeros(1, 2, requires_grad=True)
    soft_target_kl(student, torch.tensor([[2 * LN3, 0.0]]), 2.0).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.5, 0.5]]))


def test_cross_entropy_by_hand() -> None:
    """softmax(0, ln 3) = (1/4, 3/4): -ln(1/4) = 1.3862944 and -ln(3/4) = 0.2876821, in sum 1.6739764."""
    logits = torch.tensor([[0.0, LN3], [0.0, LN3]])
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([0, 1])), scalar(1.6739764))


def test_hidden_cosine_by_hand() -> None:
    """(3, 4) and (4, 3): 1 - 24/25 = 0.04. Right angle: 1. Opposite: 2. Same direction, another length: 0."""
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 2.0], [2.0, 2.0]])
    teacher = torch.tensor([[4.0, 3.0], [0.0, 5.0], [-2.0, -4.0], [7.0, 7.0]])
    rows = torch.stack([hidden_cosine(s[None], t[None]) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(rows, torch.tensor([0.04, 1.0, 2.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(hidden_cosine(student, teacher), scalar(3.04))


def test_logit_mse_by_hand() -> None:
    """(1 - 3)^2 + (2 + 1)^2 = 13, and (0 - 1)^2 = 1."""
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(logit_mse(student, teacher), scalar(14.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_is_computed_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 50, generator=generator).mul(3).to(dtype) for _ in range(2))
    labels = torch.arange(6)
    for found, expected in (
        (soft_target_kl(student, teacher, 2.0), soft_target_kl(student.float(), teacher.float(), 2.0)),
        (cross_entropy(student, labels), cross_entropy(student.float(), labels)),
        (hidden_cosine(student, teacher), hidden_cosine(student.float(), teacher.float())),
        (logit_mse(student, teacher), logit_mse(student.float(), teacher.float())),
    ):
        assert found.dtype == torch.float32
        assert found.shape == ()
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda student, teacher: soft_target_kl(student, teacher, 2.0),
        lambda student, _: cross_entropy(student, torch.tensor([0, 4, 2])),
        hidden_cosine,
        logit_mse,
    ],
    ids=["soft targets", "masked words", "cosine", "squares"],
)
def test_gradients_are_derivatives(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """In fp64, which is kept, against finite differences."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    assert loss(student, teacher).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.requires_grad_())


def test_large_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[6e4, -6e4]]).half(), torch.tensor([[-6e4, 6e4]]).half()
    torch.testing.assert_close(soft_target_kl(student, teacher, 2.0), scalar(2.4e5), rtol=1e-3, atol=0)
    assert cross_entropy(student, torch.tensor([1])).isfinite()


def test_no_rows() -> None:
    """A micro-batch may have no masked token."""
    logits = torch.zeros(0, 7, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.long)
    hidden = torch.zeros(0, 3, requires_grad=True)
    total = cross_entropy(logits, labels) + soft_target_kl(logits, logits, 2.0) + logit_mse(logits, logits)
    total = total + hidden_cosine(hidden, hidden)
    assert float(total.detach()) == 0.0
    total.backward()
    assert logits.grad is not None


def test_means_by_hand() -> None:
    """20 tokens, 4 of them masked: cosine by tokens, MLM by masked tokens, the others as the objective says."""
    sums = LossSums(scalar(10.0), scalar(6.0), scalar(5.0), scalar(8.0))
    assert sums.means(Objective(alpha_mse=1.0), 20, 4).tolist() == [0.5, 1.5, 0.25, pytest.approx(0.4)]
    assert sums.means(Objective(), tokens=20, masked=4).tolist() == [0.5, 1.5, 0.25, 0.0], "left out"
    restricted = Objective(alpha_mse=1.0, restrict_ce_to_mask=True)
    assert sums.means(restricted, tokens=20, masked=4).tolist() == [2.5, 1.5, 0.25, 2.0]


def test_weighted_sum_by_hand() -> None:
    means = torch.tensor([0.5, 1.5, 0.25, 2.0])
    assert float(weighted(means, Objective())) == 5 * 0.5 + 2 * 1.5 + 0.25
    assert float(weighted(means, Objective(0.0, 0.5, 0.0, 3.0))) == 0.75 + 6.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_left_out_stays_out(bad: float) -> None:
    """0 x NaN is NaN: a term of weight 0 must not be multiplied and added."""
    means = torch.tensor([bad, 2.0, bad, bad], requires_grad=True)
    loss = weighted(means, Objective(0.0, 1.5, 0.0, 0.0))
    assert float(loss.detach()) == 3.0
    loss.backward()
    assert means.grad.tolist() == [0.0, 1.5, 0.0, 0.0]
    assert not weighted(means.detach(), Objective()).isfinite()


def test_the_published_recipe_is_the_default() -> None:
    assert dataclasses.asdict(Objective()) == {
        "alpha_ce": 5.0, "alpha_mlm": 2.0, "alpha_cos": 1.0, "alpha_mse": 0.0, "temperature": 2.0,
        "restrict_ce_to_mask": False,
    }  # fmt: skip


def test_without_teacher() -> None:
    alone = Objective().without_teacher()
    assert (alone.alpha_ce, alone.alpha_mlm, alone.alpha_cos, alone.alpha_mse) == (0.0, 1.0, 0.0, 0.0)
    for chosen, words in (({"alpha_ce": 3.0}, "--alpha-ce 3.0"), ({"restrict_ce_to_mask": True}, "--restrict-ce-to")):
        with pytest.raises(ConfigError, match=f"{words}.*means nothing without --teacher"):
            Objective(**chosen).without_teacher()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha_cos": -1.0}, "--alpha-cos -1.0: must not be negative"),
        ({"temperature": 0.0}, "--temperature 0.0: must be positive"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"alpha_mlm": math.nan}, "--alpha-mlm nan"),
        ({"alpha_ce": 0.0, "alpha_mlm": 0.0, "alpha_cos": 0.0}, "all weights are 0"),
    ],
)
def test_impossible_objectives(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Objective(**values)


# On a task.

# Sequences of two, one and three tokens; columns: start, end.
SPANS = torch.tensor([[0.0, LN3], [LN3, 0.0], [5.0, -5.0], [LN2, 0.0], [0.0, 0.0], [0.0, 0.0]])
ENDS = torch.tensor([0, 2, 3, 6], dtype=torch.int32)


def test_span_cross_entropy_by_hand() -> None:
    """First sequence: start (1/4, 3/4), end (3/4, 1/4); second: 1 and 1, whatever its logits; third: start
    (1/2, 1/4, 1/4), end (1/3, 1/3, 1/3).

    Labels (1, 0): -ln(3/4) twice, their mean 0.2876821; (0, 0): 0; (0, 2): the mean of ln 2 and ln 3, 0.8958797.
    """
    labels = torch.tensor([[1, 0], [0, 0], [0, 2]])
    torch.testing.assert_close(span_cross_entropy(SPANS, labels, ENDS, 3), scalar(0.2876821 + 0.8958797))
    labels[0] = 0  # no answer: [CLS]; start -ln(1/4), end -ln(3/4)
    expected = (1.3862944 + 0.2876821) / 2 + 0.8958797
    torch.testing.assert_close(span_cross_entropy(SPANS, labels, ENDS, 3), scalar(expected))
    torch.testing.assert_close(span_cross_entropy(SPANS, labels, ENDS, 7), scalar(expected))


def test_span_kl_by_hand() -> None:
    """T = 2, one sequence of two tokens: start as in the first row of the test of soft_target_kl, end as in the second:
    half of 0.5232481 and half of 0.5753641; a sequence of one token has nothing to tell."""
    student = torch.tensor([[0.0, 2 * LN3], [0.0, 0.0], [3.0, 1.0]])
    teacher = torch.tensor([[2 * LN3, 0.0], [0.0, 0.0], [-8.0, 9.0]])
    found = span_kl(student, teacher, 2.0, torch.tensor([0, 2, 3], dtype=torch.int32), 2)
    torch.testing.assert_close(found, scalar((0.5232481 + 0.5753641) / 2), rtol=0, atol=1e-6)


def test_neighbours_of_a_sequence_do_not_count() -> None:
    """Not their values, nor their gradients."""
    logits = SPANS.clone().requires_grad_()
    wild = SPANS.clone()
    wild[2] = torch.tensor([1e4, -1e4])
    labels = torch.tensor([[1, 0], [0, 0], [0, 2]])
    assert torch.equal(span_cross_entropy(wild, labels, ENDS, 3), span_cross_entropy(SPANS, labels, ENDS, 3))
    span_cross_entropy(logits, labels, ENDS, 3).backward()
    assert logits.grad is not None
    # softmax minus one where the label is, halved; the second sequence has only its own token to choose.
    torch.testing.assert_close(logits.grad[:2], torch.tensor([[0.125, -0.125], [-0.125, 0.125]]))
    assert not logits.grad[2].any()
    assert span_kl(wild, SPANS, 2.0, ENDS, 3) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_spans_in_16_bit_are_computed_in_fp32(dtype: torch.dtype) -> None:
    labels, low, other = torch.tensor([[1, 0], [0, 0], [0, 2]]), SPANS.to(dtype), (SPANS * 3 + 1).flip(0).to(dtype)
    assert torch.equal(span_cross_entropy(low, labels, ENDS, 3), span_cross_entropy(low.float(), labels, ENDS, 3))
    assert torch.equal(span_kl(low, other, 3.0, ENDS, 3), span_kl(low.float(), other.float(), 3.0, ENDS, 3))


def test_the_objective_on_a_task() -> None:
    """The original's distillation on SQuAD; without a teacher, the task's own loss."""
    assert dataclasses.asdict(TaskObjective()) == {"alpha_task": 0.5, "alpha_ce": 0.5, "temperature": 2.0}
    assert TaskObjective().without_teacher() == TaskObjective(alpha_task=1.0, alpha_ce=0.0)
    for chosen, words in (({"alpha_task": 1.0}, "--alpha-task 1.0"), ({"temperature": 1.0}, "--temperature 1.0")):
        with pytest.raises(ConfigError, match=f"{words}.*means nothing without --teacher"):
            TaskObjective(**chosen).without_teacher()
    for values, words in (
        ({"alpha_task": -1.0}, "--alpha-task -1.0: must not be negative"),
        ({"temperature": 0.0}, "--temperature 0.0: must be positive"),
        ({"alpha_task": 0.0, "alpha_ce": 0.0}, "all weights are 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            TaskObjective(**values)
