"""model.kernels.residual: the C++ form against the formula in fp64, dropout included, and the dispatch."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import chosen_kernels, largest
from torch import Tensor

from model import kernels
from model.kernels import residual
from model.kernels.residual import residual_norm

EPSILON = 1e-5
SIZES = [(1, 1), (1, 8), (3, 5), (40, 96), (1030, 17), (2, 768)]


def inputs(R: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(R)
    tensors = torch.randn(R, D, generator=g), torch.randn(R, D, generator=g) + 3, torch.rand(D, generator=g) + 0.5
    return [x.to(dtype).requires_grad_() for x in (*tensors, torch.randn(D, generator=g))]


def exact(tensors: list[Tensor], kept: Tensor | float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Layer norm written out, in fp64, and gradients of a sum in which every element has its own weight."""
    x, r, weight, bias = mine = [t.detach().double().requires_grad_() for t in tensors]
    z = r + x * kept
    variance = (z - z.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    y = (z - z.mean(-1, keepdim=True)) / (variance + EPSILON).sqrt() * weight + bias
    return y.detach(), gradients(y, mine)


def gradients(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1.0, 2.0, y.numel(), dtype=torch.float64).view(y.shape)
    return list(torch.autograd.grad((y.double() * weights).sum(), tensors))


def relative(found: Tensor, expected: Tensor) -> float:
    return largest(found.double() - expected) / max(largest(expected), 1.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fp32_equals_fp64(size: tuple[int, int]) -> None:
    tensors = inputs(*size)
    y, goal = exact(tensors)
    found = residual_norm(*tensors, EPSILON)
    assert residual.form(found.device, found.dtype) == "C++"
    assert relative(found, y) < 1e-6
    plain = gradients(residual.reference(*tensors, EPSILON), tensors)
    for mine, theirs, best in zip(gradients(found, tensors), plain, goal, strict=True):
        assert relative(mine, best) < max(1e-6, 2 * relative(theirs, best))


def test_bf16_errs_at_most_as_much_as_torch_in_bf16() -> None:
    tensors = inputs(64, 96, torch.bfloat16)
    y, goal = exact(tensors)
    found, plain = residual_norm(*tensors, EPSILON), residual.reference(*tensors, EPSILON)
    assert found.dtype == torch.bfloat16
    assert largest(found.double() - y) <= largest(plain.double() - y)
    for mine, theirs, best in zip(gradients(found, tensors), gradients(plain, tensors), goal, strict=True):
        assert largest(mine.double() - best) <= 1.5 * largest(theirs.double() - best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout(dtype: torch.dtype) -> None:
    """What is kept is read off the gradient of x beside that of the residual; the rest is the formula with it."""
    tensors = inputs(60, 80, dtype)
    torch.manual_seed(1)
    found = residual_norm(*tensors, EPSILON, 0.25)
    mine = gradients(found, tensors)
    kept = (mine[0] != 0).double() / 0.75
    assert abs(float((kept == 0).double().mean()) - 0.25) < 0.03  # 4800 draws: 5 standard deviations
    y, goal = exact(tensors, kept)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-2
    assert relative(found, y) < tolerance
    for gradient, best in zip(mine, goal, strict=True):
        assert relative(gradient, best) < tolerance
    assert not torch.equal(residual_norm(*tensors, EPSILON, 0.25), found), "each call draws anew"
    torch.manual_seed(1)
    assert torch.equal(residual_norm(*tensors, EPSILON, 0.25), found), "by torch's generator"


def test_rows_and_columns_are_dropped_independently() -> None:
    """Neither a row nor a column is kept as a whole; neighbours don't follow each other."""
    ones, zeros = torch.ones(300, 300, requires_grad=True), torch.zeros(300, 300)
    weight, bias = torch.ones(300), torch.zeros(300)
    (gradient,) = torch.autograd.grad(
        (residual_norm(ones, zeros, weight, bias, 1e9, 0.5) * zeros.normal_()).sum(), ones
    )
    kept = (gradient != 0).double()
    for shares in (kept.mean(0), kept.mean(1)):
        assert 0.35 < float(shares.min()) and float(shares.max()) < 0.65  # 300 draws: 5 standard deviations
    for neighbours in ((kept[1:] == kept[:-1]), (kept[:, 1:] == kept[:, :-1])):
        assert abs(float(neighbours.double().mean()) - 0.5) < 0.01


def test_threads_change_nothing() -> None:
    tensors = inputs(1030, 40)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            y = residual_norm(*tensors, EPSILON, 0.1)
            found.append((y, *gradients(y, tensors)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_which_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert residual.form(cpu, torch.float16) == "torch"
    assert residual.form(torch.device("cuda"), torch.bfloat16) == "torch"
    with chosen_kernels(monkeypatch, "reference"):
        assert residual.form(cpu, torch.float32) == "torch"
    monkeypatch.setattr(kernels, "library", lambda name: None)
    assert residual.form(cpu, torch.float32) == "torch"
    tensors = inputs(4, 8)
    assert torch.equal(residual_norm(*tensors, EPSILON), residual.reference(*tensors, EPSILON))


def test_weights_of_another_dtype_go_through_torch() -> None:
    x, r, weight, bias = inputs(4, 8)
    mixed = (x.double(), r.double(), weight.double(), bias.double())
    assert torch.equal(residual_norm(*mixed, EPSILON), F.layer_norm(mixed[1] + mixed[0], (8,), *mixed[2:], EPSILON))
