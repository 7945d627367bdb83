"""The chunked losses over the vocabulary against the formulas over all logits, and these against fp64."""

import math

import pytest
import torch
from tiny_models import chosen_kernels, largest

from launch import native
from model.kernels import distillation
from model.kernels.distillation import Head, Weights, eager_rows, native_rows, vocabulary_losses

KERNELS = {"eager": eager_rows, "native": native_rows}
WEIGHTS = {
    "published": Weights(1 / 40, ce=5.0, mlm=2.0 * 40 / 6, temperature=2.0),
    "soft targets": Weights(0.1, ce=1.0, temperature=1.0),
    "masked words": Weights(0.5, mlm=1.0),
    "squares": Weights(0.01, mse=1.0),
    "all": Weights(0.02, ce=2.0, mlm=1.0, mse=0.3, temperature=3.0),
}
SIZES = [(40, 101, 24), (1, 64, 8), (7, 8192, 16), (33, 130, 5), (3, 30522, 12)]


def heads(R: int, V: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0):
    """Student (with gradients) and teacher, and labels: a third of the rows have one."""
    g = torch.Generator().manual_seed(seed)

    def head() -> Head:
        hidden, word = torch.randn(R, D, generator=g), torch.randn(V, D, generator=g) * scale / math.sqrt(D)
        return Head(hidden.to(dtype), word.to(dtype), (torch.randn(V, generator=g) * 0.3).to(dtype))

    labels = torch.where(torch.rand(R, generator=g) < 1 / 3, torch.randint(0, V, (R,), generator=g), -1)
    labels[0] = V - 1  # the last real column, beside the filler
    return with_gradients(head()), head(), labels


def with_gradients(head: Head) -> Head:
    return Head(*(x.detach().clone().requires_grad_() for x in (head.hidden_RD, head.word_VD, head.bias_V)))


def cast(head: Head, dtype: torch.dtype) -> Head:
    return Head(*(x.detach().to(dtype) for x in (head.hidden_RD, head.word_VD, head.bias_V)))


def outcome(function, student: Head, *rest, factor: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Loss, values, and the gradients of hidden states, word embedding and bias."""
    mine = with_gradients(student)
    loss, values = function(mine, *rest)
    (loss * factor).backward()
    return loss.detach(), values, *(x.grad for x in (mine.hidden_RD, mine.word_VD, mine.bias_V))


def by_kernel(name: str):
    """vocabulary_losses with a row kernel of its own."""

    def function(student, teacher, labels, weights):
        tensors = (student.hidden_RD, student.word_VD, student.bias_V)
        return distillation._Chunked.apply(*tensors, teacher, labels, weights, KERNELS[name])

    return function


def exact(student: Head, teacher: Head | None, labels: torch.Tensor, weights: Weights):
    """The formulas in fp64, each written out."""
    mine = with_gradients(cast(student, torch.float64))
    s = mine.hidden_RD @ mine.word_VD.T + mine.bias_V
    words, T = labels >= 0, weights.temperature
    mlm = (s.logsumexp(-1) - s.gather(1, labels.clamp(min=0)[:, None])[:, 0])[words].sum()
    ce = mse = s.new_zeros(())
    if teacher is not None:
        theirs = cast(teacher, torch.float64)
        t = theirs.hidden_RD @ theirs.word_VD.T + theirs.bias_V
        p, q = (t / T).softmax(-1), (s / T).softmax(-1)
        ce, mse = T**2 * (p * (p.log() - q.log())).sum(), (s - t).square().sum()
    loss = weights.common * (weights.ce * ce + weights.mlm * mlm + weights.mse * mse)
    loss.backward()
    return loss.detach(), (ce, mlm, mse), *(x.grad for x in (mine.hidden_RD, mine.word_VD, mine.bias_V))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return largest(found.double() - expected.double()) / max(largest(expected), 1e-30)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_fp32_equals_fp64(kernel: str, size, weights: Weights) -> None:
    student, teacher, labels = heads(*size)
    function = distillation.reference if kernel == "reference" else by_kernel(kernel)
    expected = exact(student, teacher, labels, weights)
    loss, values, *gradients = outcome(function, student, teacher, labels, weights)
    assert relative(loss, expected[0]) < 1e-5
    for value, goal, weight in zip(values, expected[1], (weights.ce, weights.mlm, weights.mse), strict=False):
        if weight:
            assert relative(value, goal) < 1e-5
    plain = outcome(distillation.reference, student, teacher, labels, weights)
    for gradient, theirs, goal in zip(gradients, plain[2:], expected[2:], strict=True):
        assert gradient.shape == goal.shape
        # Sums over 30,522 words lose more than 1e-6 in fp32, in plain torch, too: by the order that the library takes.
        assert relative(gradient, goal) < max(1e-6, 4 * relative(theirs, goal))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_bf16_is_as_good_as_the_formulas_in_bf16(kernel: str, weights: Weights) -> None:
    """Errors against fp64 on the same rounded inputs, at most twice those of plain torch in bf16."""
    student, teacher, labels = heads(48, 1000, 32, torch.bfloat16)
    expected = exact(student, teacher, labels, weights)
    plain = outcome(distillation.reference, student, teacher, labels, weights)
    found = outcome(by_kernel(kernel), student, teacher, labels, weights)
    for mine, theirs, goal in zip(found[2:], plain[2:], expected[2:], strict=True):
        assert relative(mine, goal) <= 2 * relative(theirs, goal) + 1e-3
    assert abs(float(found[0] - expected[0])) <= 2 * abs(float(plain[0] - expected[0])) + 1e-3 * float(expected[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_chunks_add_up(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = heads(40, 101, 24)
    whole = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["all"])
    for size in (1, 7, 40, 1000):
        monkeypatch.setitem(distillation.CHUNK, "cpu", size)
        for mine, theirs in zip(
            outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["all"]), whole, strict=True
        ):
            assert relative(mine, theirs) < 1e-6


@pytest.mark.parametrize("kernel", KERNELS)
def test_never_more_than_a_chunk_of_logits(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    rows = KERNELS[kernel]

    def watching(student_CP, *rest):
        seen.append((student_CP.shape, student_CP.data_ptr()))
        return rows(student_CP, *rest)

    monkeypatch.setitem(KERNELS, "watching", watching)
    monkeypatch.setitem(distillation.CHUNK, "cpu", 16)
    student, teacher, labels = heads(40, 101, 24)
    outcome(by_kernel("watching"), student, teacher, labels, WEIGHTS["all"])
    assert [tuple(shape) for shape, _ in seen] == [(16, 128), (16, 128), (8, 128)], "101 columns and filler"
    assert len({address for _, address in seen}) == 1, "always the same memory"


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_factor_of_the_backward_pass(kernel: str) -> None:
    student, teacher, labels = heads(20, 70, 8)
    once = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    scaled = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"], factor=1024.0)
    for mine, theirs in zip(scaled[2:], once[2:], strict=True):
        torch.testing.assert_close(mine, theirs * 1024)


@pytest.mark.parametrize("kernel", ["eager"])
@pytest.mark.parametrize("masked", [0.15, 0.001])
def test_fp16_gradients_of_a_large_step(kernel: str, masked: float) -> None:
    """A part of a step of 500,000 tokens, at a loss scale of 2^16: nothing underflows, nothing overflows."""
    tokens = 500_000
    student, teacher, labels = heads(64, 500, 32, torch.float16, scale=2.0)
    weights = Weights(1 / tokens, ce=5.0, mlm=2.0 / masked, temperature=2.0)
    expected = exact(student, teacher, labels, weights)
    found = outcome(by_kernel(kernel), student, teacher, labels, weights, factor=2.0**16)
    for gradient, goal in zip(found[2:], expected[2:], strict=True):
        assert gradient.dtype == torch.float16
        assert gradient.isfinite().all()
        error = (gradient.double() / 2**16 - goal).norm() / goal.norm()
        assert error < 3e-3
        lost = (gradient == 0) & (goal.abs() > 1e-3 * largest(goal))
        assert not lost.any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_teacher(kernel: str) -> None:
    student, _, labels = heads(30, 90, 16)
    labels = labels.clamp(min=0)
    expected = exact(student, None, labels, Weights(1 / 30, mlm=1.0))
    found = outcome(by_kernel(kernel), student, None, labels, Weights(1 / 30, mlm=1.0))
    assert relative(found[0], expected[0]) < 1e-6
    for mine, goal in zip(found[2:], expected[2:], strict=True):
        assert relative(mine, goal) < 3e-6
    assert found[1][[0, 2, 4]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows(kernel: str, rows: int) -> None:
    student, teacher, labels = heads(1, 90, 16)
    few = Head(student.hidden_RD[:rows], student.word_VD, student.bias_V)
    loss, values, *gradients = outcome(
        by_kernel(kernel), few, Head(teacher.hidden_RD[:rows], teacher.word_VD, teacher.bias_V), labels[:rows],
        WEIGHTS["all"],
    )  # fmt: skip
    assert (float(loss) > 0) == bool(rows)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert bool(values.any()) == bool(rows)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_row_has_a_label(kernel: str) -> None:
    student, teacher, labels = heads(20, 90, 16)
    labels[:] = -1
    expected = exact(student, teacher, labels, WEIGHTS["published"])
    found = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert relative(found[0], expected[0]) < 1e-5
    assert found[1][[1, 3, 4]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(kernel: str, value: float) -> None:
    student, teacher, labels = heads(6, 90, 16)
    with torch.no_grad():
        student.hidden_RD[2, 3] = value
    loss, *_ = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert not math.isfinite(float(loss))


@pytest.mark.parametrize("kernel", KERNELS)
def test_logits_far_apart(kernel: str) -> None:
    """Probabilities of e^-200: their logarithms count, their exponentials vanish."""
    student, teacher, labels = heads(12, 90, 16, scale=60.0)
    expected = exact(student, teacher, labels, WEIGHTS["published"])
    found = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert relative(found[0], expected[0]) < 1e-5
    for mine, goal in zip(found[2:], expected[2:], strict=True):
        assert relative(mine, goal) < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_without_gradient(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five of them, whatever has a weight; the logits are left alone."""
    student, teacher, labels = heads(50, 200, 24, dtype)
    monkeypatch.setattr(distillation, "row_kernel", lambda *_: KERNELS[kernel])
    with torch.no_grad():
        _, values = vocabulary_losses(student, teacher, labels, Weights(1.0, temperature=2.0))
        _, expected = distillation.reference(student, teacher, labels, Weights(1.0, temperature=2.0))
    assert not values.requires_grad
    torch.testing.assert_close(values[:3], expected[:3], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)
    assert values[3:].tolist() == expected[3:].tolist()


def test_firsts_are_counted_by_hand() -> None:
    """Three words, decoder = identity: row 0 right and agreed, row 1 agreed, row 2 right, row 3 without label."""
    eye = torch.eye(3)
    student = with_gradients(Head(eye[[0, 1, 2, 0]] * 3, eye, torch.zeros(3)))
    teacher = Head(eye[[0, 1, 0, 0]] * 2, eye, torch.zeros(3))
    labels = torch.tensor([0, 2, 2, -1])
    for rows in KERNELS:
        values = by_kernel(rows)(student, teacher, labels, WEIGHTS["all"])[1]
        assert values[3:].tolist() == [2, 2]


def test_which_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, _ = heads(2, 70, 8)
    assert distillation.row_kernel(student, teacher) is native_rows
    assert distillation.row_kernel(student, cast(teacher, torch.bfloat16)) is eager_rows
    assert distillation.row_kernel(cast(student, torch.float16), None) is eager_rows
    with chosen_kernels(monkeypatch, "reference"), monkeypatch.context() as patch:
        patch.setattr(distillation, "chunked", lambda *_: pytest.fail("chunked"))
        with torch.no_grad():
            vocabulary_losses(student, teacher, torch.tensor([1, -1]), WEIGHTS["all"])


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none(*_):
        raise native.Unavailable("no C++ compiler")

    monkeypatch.setattr(native, "load", none)
    distillation._library.cache_clear()
    try:
        student, teacher, _ = heads(2, 70, 8)
        assert distillation.row_kernel(student, teacher) is eager_rows
    finally:
        distillation._library.cache_clear()
    assert "without its C++ kernel: no C++ compiler" in caplog.text


def test_threads_change_nothing() -> None:
    student, teacher, labels = heads(300, 1000, 16)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            memory = student.hidden_RD.detach() @ student.word_VD.detach().T
            theirs = teacher.hidden_RD @ teacher.word_VD.T
            values = native_rows(memory, theirs, labels, WEIGHTS["all"], 1000, True)
        finally:
            torch.set_num_threads(before)
        found.append((memory, values))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
