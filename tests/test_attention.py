"""model.kernels.attention: every form of it against a hand-worked example and the plain formula, and the dispatch."""

import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import chosen_kernels, largest
from torch import Tensor

from launch.errors import ConfigError
from model import kernels
from model.kernels import attention

Form = Callable[..., Tensor]


def form_of(name: str) -> Form:
    def form(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, dropout: float = 0.0) -> Tensor:
        return attention.FORMS[name](torch.stack([q, k, v], 1), cu_seqlens, int(cu_seqlens.diff().max()), dropout)

    form.__name__ = name
    return form


reference, rows, per_sequence, padded = map(form_of, ("reference", "rows", "per sequence", "padded"))
FORMS = [reference, rows, per_sequence, padded]
LENGTHS = [[1], [9], [1, 1, 1], [3, 4], [1, 40, 2, 17], [64, 1, 1], [5, 5, 5, 5]]

every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def random_qkv(tokens: int, heads: int = 3, width: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, heads, width, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The formula, token by token, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    first = 0
    for length in lengths:
        for i in range(first, first + length):
            per_head = []
            for head in range(q.shape[1]):
                scores = k[first : first + length, head] @ q[i, head] / math.sqrt(q.shape[2])
                weights = scores.exp() / scores.exp().sum()
                per_head.append(weights @ v[first : first + length, head])
            rows.append(torch.stack(per_head))
        first += length
    return torch.stack(rows)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a weighted sum of the output in which every element has a weight of its own."""
    weights = torch.linspace(-1.0, 2.0, output.numel(), dtype=torch.float64, device=output.device).view(output.shape)
    return list(torch.autograd.grad((output.double() * weights).sum(), inputs))


@every_form
def test_a_hand_worked_example(form: Form) -> None:
    """Width 4, so scores are halved. Three tokens: a sequence of two, and one alone.

    Token 0: q k / 2 = 0 and ln 3, weights 1/4 and 3/4 of values 0 and 4: 3. Token 1: q = 0, weights 1/2 and 1/2: 2.
    Token 2 sees itself only: 7.
    """
    q, k, v = torch.zeros(3, 1, 4), torch.zeros(3, 1, 4), torch.zeros(3, 1, 4)
    q[0, 0, 0], q[2, 0, 0] = 2.0, 5.0
    k[1, 0, 0], k[2, 0, 0] = math.log(3), -3.0
    v[0, 0, 0], v[1, 0, 0], v[2, 0, 0] = 0.0, 4.0, 7.0
    expected = torch.zeros(3, 1, 4)
    expected[:, 0, 0] = torch.tensor([3.0, 2.0, 7.0])
    torch.testing.assert_close(form(q, k, v, boundaries([2, 1])), expected, rtol=0, atol=1e-6)


@every_form
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_plain_formula_forward_and_backward(form: Form, lengths: list[int]) -> None:
    inputs = random_qkv(sum(lengths))
    expected = plain(*inputs, lengths)
    found = form(*inputs, boundaries(lengths))
    assert found.shape == inputs[0].shape
    assert largest(found - expected) < 2e-6
    for mine, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert largest(mine - theirs) < 1e-5


@every_form
def test_strided_input(form: Form) -> None:
    """The encoder hands over three slices of one projection."""
    qkv = torch.randn(12, 3, 2, 8, generator=torch.Generator().manual_seed(1))
    q, k, v = qkv.unbind(1)
    assert largest(form(q, k, v, boundaries([5, 7])) - plain(q, k, v, [5, 7])) < 2e-6


@every_form
def test_sequences_do_not_see_each_other(form: Form) -> None:
    cu_seqlens = boundaries([4, 6, 3])
    q, k, v = random_qkv(13)
    before = form(q, k, v, cu_seqlens)
    others = [torch.cat([x[:4], x[4:10] * -3 + 1, x[10:]]) for x in (q, k, v)]
    after = form(*others, cu_seqlens)
    assert torch.equal(before[:4], after[:4])
    assert torch.equal(before[10:], after[10:])
    assert largest(before[4:10] - after[4:10]) > 0.1


@pytest.mark.parametrize("form", [rows, per_sequence, padded], ids=lambda form: form.__name__)
def test_nan_stays_in_its_sequence(form: Form) -> None:
    """Boundaries select; they do not multiply by 0, which would let NaN through."""
    q, k, v = random_qkv(13)
    poisoned = [torch.cat([x[:4], x[4:10] * float("nan"), x[10:]]).detach().requires_grad_() for x in (q, k, v)]
    out = form(*poisoned, boundaries([4, 6, 3]))
    assert out[:4].isfinite().all()
    assert out[10:].isfinite().all()
    for gradient in torch.autograd.grad(out[:4].sum() + out[10:].sum(), poisoned):
        assert gradient[:4].isfinite().all()
        assert gradient[10:].isfinite().all()


@every_form
def test_dropout_drops_weights_and_keeps_the_mean(form: Form) -> None:
    """A sequence of one token has the single weight 1: dropped to 0, or kept as 1 / (1 - p)."""
    torch.manual_seed(0)
    one = torch.ones(400, 5, 1)
    out = form(one, one, one, boundaries([1] * 400), dropout=0.25).flatten()
    kept = out > 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.75))
    assert abs(float(kept.float().mean()) - 0.75) < 0.05  # 2000 draws: 5 standard deviations

    x = torch.randn(16, 500, 4)
    v = torch.ones(16, 500, 4)
    out = form(x, x, v, boundaries([16]), dropout=0.25)
    assert abs(float(out.mean()) - 1.0) < 0.02  # without the 1 / (1 - p): 0.75
    assert out.std() > 0.05


@every_form
def test_no_dropout_draws_nothing(form: Form) -> None:
    q, k, v = random_qkv(13)
    state = torch.get_rng_state()
    assert torch.equal(form(q, k, v, boundaries([6, 7])), form(q, k, v, boundaries([6, 7])))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("form", [rows, per_sequence, padded], ids=lambda form: form.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_at_most_twice_as_much_as_the_formula_in_it(form: Form, dtype: torch.dtype) -> None:
    if (form, dtype) == (rows, torch.float16):
        form = per_sequence  # no row kernels for it
    lengths = [1, 33, 20]
    low = random_qkv(54, dtype=dtype)
    exact = plain(*low, lengths)
    eager, found = reference(*low, boundaries(lengths)), form(*low, boundaries(lengths))
    assert found.dtype == dtype
    assert largest(found - exact) <= 2 * largest(eager - exact)
    goal = gradients(exact, low)
    for mine, theirs, best in zip(gradients(found, low), gradients(eager, low), goal, strict=True):
        assert largest(mine.double() - best.double()) <= 2 * largest(theirs.double() - best.double()) + 1e-7


def test_padded_never_waits_for_the_device() -> None:
    """Meta tensors have no values: any look at one (a length, a sum, a mask's indices) would raise."""
    qkv = torch.empty(30, 3, 2, 8, device="meta", requires_grad=True)
    cu_seqlens = torch.empty(4, dtype=torch.int32, device="meta")
    out = attention.packed_attention(qkv, cu_seqlens, max_seqlen=20, dropout=0.1)
    assert out.shape == (30, 2, 8)
    out.sum().backward()
    with pytest.raises(Exception, match="meta"):
        attention.per_sequence(qkv, cu_seqlens, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_under_dropout(dtype: torch.dtype) -> None:
    """Against the formula with the very weights that were kept, read off an output whose values are the identity."""
    lengths = [6, 9]
    q, k = (torch.randn(15, 1, 15, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    q, k = q.requires_grad_(), k.requires_grad_()
    eye = torch.eye(15, dtype=dtype)[:, None, :].clone().requires_grad_()
    torch.manual_seed(3)
    out = rows(q, k, eye, boundaries(lengths), 0.3)
    kept = (out[:, 0] > 0).double() / 0.7
    exact_q, exact_k, exact_v = (x.detach().double().requires_grad_() for x in (q, k, eye))
    scores = exact_q[:, 0] @ exact_k[:, 0].T / math.sqrt(15)
    sequence = torch.tensor([0] * 6 + [1] * 9)
    weights = scores.masked_fill(sequence[:, None] != sequence[None], -math.inf).softmax(-1)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert 0 < float((kept == 0).double().mean()) - (1 - (36 + 81) / 225) < 0.3
    assert largest(out[:, 0].double() - weights * kept) < tolerance
    goal = gradients((weights * kept @ exact_v[:, 0])[:, None], [exact_q, exact_k, exact_v])
    for mine, best in zip(gradients(out, [q, k, eye]), goal, strict=True):
        assert largest(mine.double() - best) < 3 * tolerance


def test_threads_change_nothing() -> None:
    q, k, v = random_qkv(90)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(1)
            found.append(rows(q, k, v, boundaries([50, 40]), 0.2))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*found)


@every_form
def test_empty_sequences(form: Form) -> None:
    """They fill the list of boundaries up to a fixed number."""
    q, k, v = random_qkv(9)
    full, filled = boundaries([4, 5]), boundaries([4, 0, 5, 0, 0])
    found, expected = form(q, k, v, filled), form(q, k, v, full)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(gradients(found, [q, k, v]), gradients(expected, [q, k, v]), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("choice", "device", "dtype", "dropout", "expected"),
    [
        ("auto", "cpu", torch.float32, 0.1, "rows"),
        ("auto", "cpu", torch.bfloat16, 0.0, "rows"),
        ("auto", "cpu", torch.float16, 0.1, "per sequence"),
        ("auto", "meta", torch.float32, 0.1, "padded"),
        ("auto", "cuda 7.0", torch.float16, 0.1, "padded"),
        ("auto", "cuda 7.5", torch.float16, 0.0, "padded"),
        ("auto", "cuda 8.0", torch.float32, 0.0, "padded"),
        ("auto", "cuda 8.0", torch.float16, 0.0, "varlen"),
        ("auto", "cuda 9.0", torch.bfloat16, 0.0, "varlen"),
        ("auto", "cuda 9.0", torch.bfloat16, 0.1, "flash"),
        ("reference", "cpu", torch.float32, 0.0, "reference"),
        ("reference", "cuda 9.0", torch.bfloat16, 0.0, "reference"),
    ],
)
def test_which_form_runs(
    choice: str, device: str, dtype: torch.dtype, dropout: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, capability = device.partition(" ")
    numbers = tuple(map(int, capability.split("."))) if capability else ()
    with chosen_kernels(monkeypatch, choice), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _: numbers)
        patch.setattr(attention, "_fastest", attention._fastest.__wrapped__)
        assert attention.form(torch.device(name), dtype, dropout > 0) == expected


def test_the_chosen_form_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setitem(attention.FORMS, "padded", lambda *arguments: called.append(arguments[2:]))
    attention.packed_attention(torch.empty(3, 3, 1, 2, device="meta"), torch.empty(2, device="meta"), 3, 0.5)
    assert called == [(3, 0.5)]


@pytest.mark.parametrize("name", ["varlen", "flash"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_forms_for_gpus_are_called_as_torch_wants_it(name: str, dtype: torch.dtype) -> None:
    """On meta tensors: shapes and signatures, forward and backward, but no numbers."""
    qkv = torch.empty(64, 3, 2, 32, device="meta", dtype=dtype, requires_grad=True)
    cu_seqlens = torch.empty(5, device="meta", dtype=torch.int32)
    out = attention.FORMS[name](qkv, cu_seqlens, 32, 0.1 if name == "flash" else 0.0)
    assert (out.shape, out.dtype) == ((64, 2, 32), dtype)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["varlen", "flash", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    """Against fp64, with empty sequences at the end; errors at most twice those of the plain formula in 16 bit."""
    lengths = [1, 64, 33, 20]
    low = [x.detach().cuda().requires_grad_() for x in random_qkv(118, heads=2, width=32, dtype=dtype)]
    exact, cu_seqlens = plain(*low, lengths), boundaries([*lengths, 0, 0]).cuda()
    found, eager = form_of(name)(*low, cu_seqlens), reference(*low, cu_seqlens)
    assert largest(found - exact) <= 2 * largest(eager - exact)
    goal = gradients(exact, low)
    for mine, theirs, best in zip(gradients(found, low), gradients(eager, low), goal, strict=True):
        assert largest(mine.double() - best.double()) <= 2 * largest(theirs.double() - best.double()) + 1e-7


@pytest.mark.gpu
def test_dropout_on_a_gpu() -> None:
    """Each of many equal weights is dropped or kept; the mean stays."""
    q = torch.zeros(512, 8, 32, device="cuda", dtype=torch.bfloat16)
    v = torch.ones_like(q)
    torch.manual_seed(0)
    out = form_of("flash")(q, q, v, boundaries([512]).cuda(), 0.25).float()
    assert abs(float(out.mean()) - 1.0) < 0.01  # without the 1 / (1 - p): 0.75
    assert 0.01 < float(out.std()) < 0.05  # sqrt(p / (1 - p) / 512) = 0.026
    torch.manual_seed(0)
    assert torch.equal(form_of("flash")(q, q, v, boundaries([512]).cuda(), 0.25).float(), out)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda name: None)
    assert attention._fastest.__wrapped__(torch.device("cpu"), torch.float32, True) == "per sequence"


def test_kernels_are_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen_kernels(monkeypatch, "reference"), monkeypatch.context() as patch:
        assert kernels.selected() == "reference"
        patch.setenv("DILBERT_KERNELS", "auto")
        assert kernels.selected() == "reference"


def test_auto_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen_kernels(monkeypatch, "reference"), monkeypatch.context() as patch:
        patch.delenv("DILBERT_KERNELS")
        assert kernels.selected() == "auto"


def test_an_unknown_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen_kernels(monkeypatch, "fastest"), pytest.raises(ConfigError, match=r"DILBERT_KERNELS=fastest.*auto"):
        kernels.selected()
