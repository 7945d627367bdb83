"""The chunked losses over the vocabulary against the formulas over all logits, and these against fp64.

The checks of a row kernel are the same for all of them. Triton's needs a GPU (`make test-gpu`) or an interpreter of it
(tests/test_triton.py): there its checks, which carry the mark `gpu`, are all that runs of this file.
"""

import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE
from tiny_models import chosen_kernels, largest

from launch import native
from model.kernels import distillation
from model.kernels.distillation import Head, Weights, eager_rows, native_rows, vocabulary_losses

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if DEVICE == "cuda" or INTERPRETED:
    from model.kernels.distillation_triton import triton_rows

    KERNELS = {"triton": triton_rows}
else:
    KERNELS = {"eager": eager_rows, "native": native_rows}
DTYPES = {
    "eager": [torch.float32, torch.bfloat16, torch.float16],
    "native": [torch.float32, torch.bfloat16],
    "triton": [torch.float32, torch.bfloat16, torch.float16],
}
WEIGHTS = {
    "published": Weights(1 / 40, ce=5.0, mlm=2.0 * 40 / 6, temperature=2.0),
    "soft targets": Weights(0.1, ce=1.0, temperature=1.0),
    "masked words": Weights(0.5, mlm=1.0),
    "squares": Weights(0.01, mse=1.0),
    "all": Weights(0.02, ce=2.0, mlm=1.0, mse=0.3, temperature=3.0),
}
SIZES = [(40, 101, 24), (1, 64, 8), (7, 8192, 16), (33, 130, 5), (3, 30522, 12), (2, 119547, 6), (2, 250002, 4)]


def for_kernel(kernel: str, *values: object):
    """A test's parameters: a kernel, and what else there is."""
    return pytest.param(kernel, *values, marks=[pytest.mark.gpu] if kernel == "triton" else [])


def each_kernel_in(*dtypes: torch.dtype):
    """Parametrises a test by kernel, and by those of the dtypes that it knows."""
    pairs = [for_kernel(kernel, dtype) for kernel in KERNELS for dtype in dtypes if dtype in DTYPES[kernel]]
    return pytest.mark.parametrize(("kernel", "dtype"), pairs, ids=str)


each_kernel = pytest.mark.parametrize("kernel", [for_kernel(kernel) for kernel in KERNELS])


def heads(R: int, V: int, D: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0):
    """Student (with gradients) and teacher, and labels: a third of the rows have one."""
    g = torch.Generator().manual_seed(seed)

    def head() -> Head:
        hidden, word = torch.randn(R, D, generator=g), torch.randn(V, D, generator=g) * scale / math.sqrt(D)
        bias = torch.randn(V, generator=g) * 0.3
        return Head(*(x.to(DEVICE, dtype) for x in (hidden, word, bias)))

    labels = torch.where(torch.rand(R, generator=g) < 1 / 3, torch.randint(0, V, (R,), generator=g), -1)
    labels[0] = V - 1  # the last real column, beside the filler
    return with_gradients(head()), head(), labels.to(DEVICE)


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
@pytest.mark.parametrize("kernel", ["reference", *map(for_kernel, KERNELS)])
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
        assert relative(gradient, goal) < max(1e-6, 8 * relative(theirs, goal))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@each_kernel_in(torch.bfloat16, torch.float16)
def test_16_bit_is_as_good_as_the_formulas_in_16_bit(kernel: str, dtype: torch.dtype, weights: Weights) -> None:
    """Errors against fp64 on the same rounded inputs, at most twice those of plain torch in 16 bit."""
    slack = 2**-8 if INTERPRETED and dtype == torch.bfloat16 else 1e-3  # Triton's interpreter cuts off what GPUs round
    student, teacher, labels = heads(48, 1000, 32, dtype)
    expected = exact(student, teacher, labels, weights)
    plain = outcome(distillation.reference, student, teacher, labels, weights)
    found = outcome(by_kernel(kernel), student, teacher, labels, weights)
    for mine, theirs, goal in zip(found[2:], plain[2:], expected[2:], strict=True):
        assert relative(mine, goal) <= 2 * relative(theirs, goal) + slack
    assert abs(float(found[0] - expected[0])) <= 2 * abs(float(plain[0] - expected[0])) + 1e-3 * float(expected[0])


@each_kernel
def test_chunks_add_up(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = heads(40, 101, 24)
    whole = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["all"])
    for size in (1, 7, 40, 1000):
        monkeypatch.setitem(distillation.CHUNK, DEVICE, size)
        for mine, theirs in zip(
            outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["all"]), whole, strict=True
        ):
            assert relative(mine, theirs) < 1e-6


@each_kernel
def test_never_more_than_a_chunk_of_logits(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    rows = KERNELS[kernel]

    def watching(student_CP, *rest):
        seen.append((student_CP.shape, student_CP.stride(), student_CP.data_ptr()))
        return rows(student_CP, *rest)

    monkeypatch.setitem(KERNELS, "watching", watching)
    monkeypatch.setitem(distillation.CHUNK, DEVICE, 16)
    student, teacher, labels = heads(40, 101, 24)
    outcome(by_kernel("watching"), student, teacher, labels, WEIGHTS["all"])
    columns = 101 if DEVICE == "cpu" else 128
    assert [tuple(shape) for shape, _, _ in seen] == [(16, columns), (16, columns), (8, columns)]
    assert {stride for _, stride, _ in seen} == {(128, 1)}, "aligned rows"
    assert len({address for *_, address in seen}) == 1, "always the same memory"


@each_kernel
def test_the_factor_of_the_backward_pass(kernel: str) -> None:
    student, teacher, labels = heads(20, 70, 8)
    once = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    scaled = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"], factor=1024.0)
    for mine, theirs in zip(scaled[2:], once[2:], strict=True):
        torch.testing.assert_close(mine, theirs * 1024)


@each_kernel_in(torch.float16)
@pytest.mark.parametrize("masked", [0.15, 0.001])
def test_fp16_gradients_of_a_large_step(kernel: str, dtype: torch.dtype, masked: float) -> None:
    """A part of a step of 500,000 tokens, at a loss scale of 2^16: nothing underflows, nothing overflows."""
    tokens = 500_000
    student, teacher, labels = heads(64, 500, 32, dtype, scale=2.0)
    weights = Weights(1 / tokens, ce=5.0, mlm=2.0 / masked, temperature=2.0)
    expected = exact(student, teacher, labels, weights)
    found = outcome(by_kernel(kernel), student, teacher, labels, weights, factor=2.0**16)
    for gradient, goal in zip(found[2:], expected[2:], strict=True):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        error = (gradient.double() / 2**16 - goal).norm() / goal.norm()
        assert error < 3e-3
        lost = (gradient == 0) & (goal.abs() > 1e-3 * largest(goal))
        assert not lost.any()


@each_kernel
def test_without_a_teacher(kernel: str) -> None:
    student, _, labels = heads(30, 90, 16)
    labels = labels.clamp(min=0)
    expected = exact(student, None, labels, Weights(1 / 30, mlm=1.0))
    found = outcome(by_kernel(kernel), student, None, labels, Weights(1 / 30, mlm=1.0))
    assert relative(found[0], expected[0]) < 1e-6
    for mine, goal in zip(found[2:], expected[2:], strict=True):
        assert relative(mine, goal) < 3e-6
    assert found[1][[0, 2, 4]].tolist() == [0, 0, 0]


@each_kernel
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


@each_kernel
def test_no_row_has_a_label(kernel: str) -> None:
    student, teacher, labels = heads(20, 90, 16)
    labels[:] = -1
    expected = exact(student, teacher, labels, WEIGHTS["published"])
    found = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert relative(found[0], expected[0]) < 1e-5
    assert found[1][[1, 3, 4]].tolist() == [0, 0, 0]


@each_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(kernel: str, value: float) -> None:
    student, teacher, labels = heads(6, 90, 16)
    with torch.no_grad():
        student.hidden_RD[2, 3] = value
    loss, *_ = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert not math.isfinite(float(loss))


@each_kernel
def test_logits_far_apart(kernel: str) -> None:
    """Probabilities of e^-200: their logarithms count, their exponentials vanish."""
    student, teacher, labels = heads(12, 90, 16, scale=60.0)
    expected = exact(student, teacher, labels, WEIGHTS["published"])
    found = outcome(by_kernel(kernel), student, teacher, labels, WEIGHTS["published"])
    assert relative(found[0], expected[0]) < 1e-5
    for mine, goal in zip(found[2:], expected[2:], strict=True):
        assert relative(mine, goal) < 1e-5


@each_kernel_in(torch.float32, torch.bfloat16, torch.float16)
def test_values_without_gradient(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five of them, whatever has a weight."""
    student, teacher, labels = heads(50, 200, 24, dtype)
    monkeypatch.setattr(distillation, "row_kernel", lambda *_: KERNELS[kernel])
    with torch.no_grad():
        _, values = vocabulary_losses(student, teacher, labels, Weights(1.0, temperature=2.0))
        _, expected = distillation.reference(student, teacher, labels, Weights(1.0, temperature=2.0))
    assert not values.requires_grad
    torch.testing.assert_close(values[:3], expected[:3], rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)
    assert values[3:].tolist() == expected[3:].tolist()


@each_kernel_in(torch.float32, torch.bfloat16, torch.float16)
@pytest.mark.parametrize("rows", [0, 5])
def test_what_a_kernel_writes(kernel: str, dtype: torch.dtype, rows: int) -> None:
    """Without gradient nothing; with it every column, 0 in the filler, whatever was there. Also of no rows at all."""
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, 128, generator=g).mul(9).to(DEVICE, dtype) for _ in range(2))
    labels = torch.tensor([100, -1, 0, -1, 7], device=DEVICE)[:rows]
    for filler in (0.0, 1e4):
        mine, theirs = student.clone(), teacher.clone()
        mine[:, 101:] = theirs[:, 101:] = filler
        expected, before = mine.clone(), mine.clone()
        goal = eager_rows(expected, theirs, labels, WEIGHTS["all"], 101, True)
        values = KERNELS[kernel](mine, theirs, labels, WEIGHTS["all"], 101, False)
        assert torch.equal(mine, before)
        assert values.shape == (rows, 5) and values.dtype == torch.float32
        torch.testing.assert_close(values, goal, rtol=1e-5, atol=1e-5)
        values = KERNELS[kernel](mine, theirs, labels, WEIGHTS["all"], 101, True)
        torch.testing.assert_close(values[:, :3], goal[:, :3], rtol=1e-5, atol=1e-5)
        assert not mine[:, 101:].any()
        rtol = max(torch.finfo(dtype).eps, 1e-5)  # in 16 bit, one unit in the last place
        torch.testing.assert_close(mine, expected, rtol=rtol, atol=1e-6)


@each_kernel
def test_firsts_are_counted_by_hand(kernel: str) -> None:
    """Three words, decoder = identity: row 0 right and agreed, row 1 agreed, row 2 right, row 3 without label."""
    eye = torch.eye(3, device=DEVICE)
    student = Head(eye[[0, 1, 2, 0]] * 3, eye, torch.zeros(3, device=DEVICE))
    teacher = Head(eye[[0, 1, 0, 0]] * 2, eye, torch.zeros(3, device=DEVICE))
    labels = torch.tensor([0, 2, 2, -1], device=DEVICE)
    values = distillation.chunked(student, teacher, labels, WEIGHTS["all"], KERNELS[kernel], None)[1]
    assert values[3:].tolist() == [2, 2]


@pytest.mark.parametrize("kernel", [for_kernel(kernel) for kernel in KERNELS])
def test_of_equal_logits_the_first_is_chosen(kernel: str) -> None:
    """As torch's argmax: in 16 bit, where the largest logit often comes twice, a label in second place isn't right."""
    logits = torch.zeros(4, 5000, device=DEVICE)
    logits[:, [40, 41, 3000, 4999]] = 2.0
    teacher = logits.clone()
    teacher[1, 39] = 2.0
    labels = torch.tensor([40, 40, 41, 4999], device=DEVICE)
    values = KERNELS[kernel](logits, teacher, labels, WEIGHTS["all"], 5000, False)
    assert values[:, 3].tolist() == [1, 1, 0, 0]
    assert values[:, 4].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_formulas_gradients_are_their_derivatives(weights: Weights) -> None:
    """In fp64, against finite differences."""
    student, teacher, labels = heads(4, 7, 3, torch.float64)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        return distillation.reference(Head(*tensors), teacher, labels, weights)[0]

    assert torch.autograd.gradcheck(loss, (student.hidden_RD, student.word_VD, student.bias_V))


def test_which_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, _ = heads(2, 70, 8)
    assert distillation.row_kernel(student, teacher) is native_rows
    assert distillation.row_kernel(student, cast(teacher, torch.bfloat16)) is eager_rows
    assert distillation.row_kernel(cast(student, torch.float16), None) is eager_rows
    with chosen_kernels(monkeypatch, "reference"), monkeypatch.context() as patch:
        patch.setattr(distillation, "chunked", lambda *_: pytest.fail("chunked"))
        with torch.no_grad():
            vocabulary_losses(student, teacher, torch.tensor([1, -1]), WEIGHTS["all"])


def test_which_kernel_runs_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that say they are there; `make test-gpu` has real ones."""
    monkeypatch.setattr(distillation, "_triton_rows", lambda: "Triton's")

    def on_cuda(dtype: torch.dtype) -> Head:
        return Head(*[SimpleNamespace(device=torch.device("cuda"), dtype=dtype)] * 3)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert distillation.row_kernel(on_cuda(dtype), on_cuda(dtype)) == "Triton's"
        assert distillation.row_kernel(on_cuda(dtype), None) == "Triton's"
    assert distillation.row_kernel(on_cuda(torch.float32), on_cuda(torch.float16)) is eager_rows
    assert distillation.row_kernel(on_cuda(torch.float64), None) is eager_rows
    monkeypatch.setattr(distillation, "_triton_rows", lambda: None)
    assert distillation.row_kernel(on_cuda(torch.float32), None) is eager_rows


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


def test_without_triton(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    distillation._triton_rows.cache_clear()
    try:
        assert distillation._triton_rows() is None
        assert distillation._triton_rows() is None
    finally:
        distillation._triton_rows.cache_clear()
    assert caplog.text.count("without its Triton kernel") == 1


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
