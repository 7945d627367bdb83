"""Micro-batches in fixed shapes: what filler is made of, that it changes nothing, and what is compiled when."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from data.batching import MicroBatch, positions_within
from data.corpora import Corpora
from data.loader import StreamSettings, TrainingStream
from data.masking import MaskingSettings
from data.shapes import Shapes
from launch.distributed import seed_dropout
from model.bert import Layer
from model.config import BertConfig
from model.distiller import Batch, Distiller
from model.kernels import attention, fp8
from model.losses import Objective
from model.pretrained import DilBertForMaskedLM

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch.compile
CPU = torch.device("cpu")
OBJECTIVES = {
    "published": Objective(),
    "restricted": Objective(restrict_ce_to_mask=True),
    "all": Objective(alpha_mse=0.01),
}


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    torch._dynamo.reset()


def micro_batch(lengths: list[int], seed: int = 0) -> MicroBatch:
    """Random tokens, a sixth of them masked."""
    random, ends = np.random.default_rng(seed), np.cumsum([0, *lengths])
    tokens = int(ends[-1])
    masked = np.sort(random.choice(tokens, tokens // 6, replace=False))
    return MicroBatch(
        input_ids=random.integers(5, 600, tokens), positions=positions_within(ends),
        cu_seqlens=ends.astype(np.int32), max_seqlen=max(lengths), masked_positions=masked,
        labels=random.integers(5, 600, masked.size), step=0, part=0, step_tokens=tokens, step_masked=masked.size,
    )  # fmt: skip


@pytest.fixture(scope="module")
def micro_batches() -> list[MicroBatch]:
    random = np.random.default_rng(0)
    return [micro_batch(random.integers(20, 60, 10).tolist(), seed) for seed in range(6)]


@pytest.fixture(scope="module")
def shapes(micro_batches: list[MicroBatch]) -> Shapes:
    sizes = [(batch.tokens, batch.cu_seqlens.size - 1) for batch in micro_batches]
    return Shapes.expected(sizes, longest=60, pad_id=0, block=128)


def distiller(objective: Objective, teacher: bool = True, dropout: bool = False) -> Distiller:
    configs = BertConfig(600, 32, 3, 2, 64), BertConfig(600, 32, 2, 2, 64, type_vocab_size=0)
    torch.manual_seed(0)
    models = [DilBertForMaskedLM(config if dropout else config.without_dropout()) for config in configs]
    return Distiller(models[1].train(), models[0] if teacher else None, objective)


def outcome(module: Distiller, batch: MicroBatch) -> list[torch.Tensor]:
    """Terms and gradients."""
    module.zero_grad()
    loss, terms = module(Batch.of(batch, CPU))
    loss.backward()
    return [terms, *(parameter.grad.clone() for parameter in module.parameters())]


def test_filler_by_hand() -> None:
    """11 tokens in a block of 8: 5 tokens of filler, no sequence longer than the longest of the data, 4."""
    shapes = Shapes(tokens=range(8, 25, 8), sequences=6, longest=4, pad_id=9)
    batch = micro_batch([4, 4, 3])
    filled = shapes.fill(batch)
    assert filled.input_ids.tolist() == [*batch.input_ids.tolist(), 9, 9, 9, 9, 9]
    assert filled.positions.tolist() == [*batch.positions.tolist(), 0, 1, 2, 3, 0]
    assert filled.cu_seqlens.tolist() == [0, 4, 8, 11, 15, 16, 16]
    assert filled.cu_seqlens.dtype == np.int32
    assert (filled.filler, filled.tokens, filled.static, filled.max_seqlen) == (5, 11, True, 128)
    assert filled.masked_positions is batch.masked_positions
    assert shapes.fill(micro_batch([4, 4])).filler == 0


@pytest.mark.parametrize("lengths", [[4] * 7, [1] * 7], ids=["too many tokens", "too many sequences"])
def test_what_fits_into_no_shape_stays_as_it_is(lengths: list[int]) -> None:
    batch = micro_batch([*lengths, 4])
    assert Shapes(tokens=range(8, 25, 8), sequences=7, longest=4, pad_id=9).fill(batch) is batch


def test_the_expected_shapes_by_hand() -> None:
    """Blocks of 100: from 2 of them, below the fewest tokens, to one more than hold the most; boundaries for a tenth
    more sequences, and for a block of filler."""
    shapes = Shapes.expected([(250, 20), (610, 10)], longest=60, pad_id=0, block=100)
    assert list(shapes.tokens) == [200, 300, 400, 500, 600, 700, 800]
    assert shapes.sequences == 22 + 2 + 1
    assert shapes.max_seqlen == 128
    assert Shapes.expected([(65_536, 512)], 512, 0).tokens.step == 2048  # a thirty-second
    assert Shapes.expected([(100, 3)], 512, 0).tokens.step == 256  # but not below it


def test_examples_have_the_shapes(shapes: Shapes, micro_batches: list[MicroBatch]) -> None:
    def shape(batch: MicroBatch) -> tuple[int, int, int, bool]:
        return batch.input_ids.size, batch.cu_seqlens.size, batch.max_seqlen, batch.static

    examples = [shape(example) for example in shapes.examples()]
    assert [tokens for tokens, *_ in examples] == list(shapes.tokens)
    assert {shape(shapes.fill(batch)) for batch in micro_batches} <= set(examples)
    assert all((np.diff(example.cu_seqlens) <= shapes.longest).all() for example in shapes.examples())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("teacher", [True, False], ids=["teacher", "alone"])
def test_filler_changes_nothing(
    objective: Objective, teacher: bool, shapes: Shapes, micro_batches: list[MicroBatch]
) -> None:
    module = distiller(objective if teacher else Objective(), teacher)
    for batch in micro_batches[:3]:
        filled = shapes.fill(batch)
        assert filled.filler
        for mine, plain in zip(outcome(module, filled), outcome(module, batch), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_filler_that_is_not_finite_reaches_nothing(shapes: Shapes, micro_batches: list[MicroBatch]) -> None:
    """Losses and their gradients leave filler out by selection: a product with 0 would let NaN through."""
    module = distiller(Objective())
    filled = Batch.of(shapes.fill(micro_batches[0]), CPU)
    rows = {}
    for model in (module.student, module.teacher):
        hidden = torch.randn(filled.input_ids.numel(), 32)
        hidden[-filled.filler :] = float("nan")
        rows[model] = hidden.requires_grad_()
    module._encode = lambda model, batch: rows[model]  # type: ignore[method-assign]
    loss, _ = module(filled)
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, rows[module.student])
    assert gradient[: -filled.filler].isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_compiled_code_sees_no_shape_that_it_was_not_warmed_up_for(
    objective: Objective, shapes: Shapes, micro_batches: list[MicroBatch]
) -> None:
    module = distiller(objective)
    expected = [outcome(module, batch) for batch in micro_batches]
    counter = CompileCounterWithBackend("eager")
    module.zero_grad()
    module.compile(backend=counter)
    for example in shapes.examples():
        module.warm_up(Batch.of(example, CPU))
    assert all(parameter.grad is None for parameter in module.parameters())
    compiled, ran = counter.frame_count, counters["frames"]["total"]
    assert compiled >= 2 * len(shapes.tokens), "layers of the teacher and of the student, for each shape"
    for batch, goal in zip(micro_batches, expected, strict=True):
        filled = shapes.fill(batch)
        assert filled.static
        for mine, plain in zip(outcome(module, filled), goal, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
        for mine, plain in zip(outcome(module, batch), goal, strict=True):  # a shape of no list: as it is
            assert torch.equal(mine, plain)
    module.measure(Batch.of(batch, CPU) for batch in micro_batches)
    assert (counter.frame_count, counters["frames"]["total"]) == (compiled, ran), "compiled anew"


def test_without_the_list_everything_is_compiled_anew(micro_batches: list[MicroBatch]) -> None:
    """The check above can fail."""
    module, counter = distiller(Objective()), CompileCounterWithBackend("eager")
    module.compile(backend=counter, dynamic=False)
    seen = []
    for batch in micro_batches[:3]:
        module(dataclasses.replace(Batch.of(batch, CPU), static=True))
        seen.append(counter.frame_count)
    assert seen[0] < seen[1] < seen[2]


def test_compiled_dropout_is_seeded_like_any(shapes: Shapes, micro_batches: list[MicroBatch]) -> None:
    module = distiller(Objective(), dropout=True)
    module.compile(backend="eager")
    filled = shapes.fill(micro_batches[0])
    found = []
    for part in (0, 0, 1):
        seed_dropout(7, step=3, part=part)
        found.append(outcome(module, filled))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_shapes_of_a_stream(dataset, tokenizer_folder) -> None:
    """Sampled steps predict the others."""
    vocabulary = dataset.vocabulary
    stream = TrainingStream(Corpora.of(dataset), vocabulary, StreamSettings(64, 0, MaskingSettings()))
    shapes = stream.shapes(range(100), parts=2, block=128)
    made = list(itertools.chain(*(stream.micro_batches(k, accumulation=2, shapes=shapes) for k in range(100, 140))))
    assert sum(batch.static for batch in made) == len(made)
    assert {batch.input_ids.size for batch in made} <= set(shapes.tokens)
    plain = list(itertools.chain(*(stream.micro_batches(k, accumulation=2) for k in range(100, 140))))
    for filled, batch in zip(made, plain, strict=True):
        assert np.array_equal(filled.input_ids[: filled.tokens], batch.input_ids)
        assert (filled.input_ids[filled.tokens :] == vocabulary.pad_id).all()
        assert (filled.step_tokens, filled.step_masked) == (batch.step_tokens, batch.step_masked)


@pytest.mark.parametrize(("form", "dropout"), [("varlen", 0.0), ("flash", 0.1)])
@pytest.mark.parametrize("fp8_teacher", [False, True], ids=["16 bit", "FP8"])
def test_a_layer_is_one_graph_on_a_gpu(form: str, dropout: float, fp8_teacher: bool, monkeypatch) -> None:
    """With the forms of attention that GPUs take, on meta tensors, forward and backward: nothing breaks the graph."""
    chosen = torch.compiler.assume_constant_result(lambda device, dtype, dropout: form)
    monkeypatch.setattr(attention, "form", chosen)
    with torch.device("meta"):
        config = BertConfig(100, 64, 1, 2, 128, attention_dropout=dropout)
        layer = Layer(config).train(not fp8_teacher).to(torch.bfloat16)
        x = torch.empty(256, 64, dtype=torch.bfloat16, requires_grad=not fp8_teacher)
        cu_seqlens = torch.empty(9, dtype=torch.int32)
    if fp8_teacher:
        fp8.convert(layer)
    compiled = torch.compile(layer.forward, backend="aot_eager", dynamic=False, fullgraph=True)
    with torch.set_grad_enabled(not fp8_teacher):
        y = compiled(x, cu_seqlens, 128)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    if not fp8_teacher:
        y.sum().backward()
        assert layer.qkv.weight.grad.shape == (192, 64)
