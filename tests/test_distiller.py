"""model.distiller: loss and gradients against plain `transformers` and torch on padded batches; held-out figures."""

import copy
import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, bert, distilbert, largest, ours, pack, pad, sequences
from torch import Tensor, nn

from data.batching import MicroBatch, positions_within
from model import hf
from model.distiller import TERMS, Batch, Distiller, held_out_figures, parameter_groups
from model.kernels import distillation
from model.losses import Objective

LENGTHS = [9, 1, 24, 5, 13, 2]
OBJECTIVES = {
    "published": Objective(),
    "restricted": Objective(restrict_ce_to_mask=True),
    "all-four": Objective(2.0, 1.0, 3.0, 0.01, temperature=3.0),
    "all-four-restricted": Objective(2.0, 1.0, 3.0, 0.01, temperature=3.0, restrict_ce_to_mask=True),
    "ce": Objective(1.0, 0.0, 0.0, 0.0, temperature=1.0),
    "mlm": Objective(0.0, 1.0, 0.0, 0.0),
    "cos": Objective(0.0, 0.0, 1.0, 0.0),
    "mse": Objective(0.0, 0.0, 0.0, 1.0),
    "without-ce": Objective(0.0, 2.0, 1.0, 0.0),
}

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@dataclass(frozen=True)
class Sequence:
    """A masked sequence, and what is to be predicted where."""

    ids: list[int]
    positions: list[int]
    labels: list[int]


def masked_sequences(lengths: list[int] = LENGTHS, seed: int = 5) -> list[Sequence]:
    """About a quarter of the tokens masked (id 4); a sequence of one or two tokens has none."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for ids in sequences(lengths, seed=seed):
        positions = sorted(torch.randperm(len(ids), generator=generator)[: (len(ids) + 1) // 4].tolist())
        masked = [4 if i in positions else token for i, token in enumerate(ids)]
        result.append(Sequence(masked, positions, [ids[i] for i in positions]))
    return result


def batch_of(part: list[Sequence], step: list[Sequence] | None = None) -> Batch:
    """Packed, as one part of a step (by default the whole step)."""
    packed = pack([s.ids for s in part])
    starts = packed["cu_seqlens"].tolist()
    step = step or part
    return Batch(
        input_ids=packed["input_ids_T"],
        positions=packed["positions_T"],
        cu_seqlens=packed["cu_seqlens"],
        max_seqlen=packed["max_seqlen"],
        masked_positions=torch.tensor(
            [start + i for s, start in zip(part, starts, strict=False) for i in s.positions], dtype=torch.long
        ),
        labels=torch.tensor([label for s in part for label in s.labels], dtype=torch.long),
        step_tokens=sum(len(s.ids) for s in step),
        step_masked=sum(len(s.labels) for s in step),
    )


def plain(student: nn.Module, teacher: nn.Module | None, step: list[Sequence], objective: Objective) -> list[Tensor]:
    """loss, ce, mlm, cos, mse of `transformers` models on one padded batch; what has the weight 0 is 0."""
    batch = pad([s.ids for s in step])
    tokens = batch["attention_mask"].double()
    labels = torch.full(tokens.shape, -1)
    for row, s in enumerate(step):
        labels[row, s.positions] = torch.tensor(s.labels, dtype=torch.long)
    masked = (labels >= 0).double()
    of_student = student(**batch, output_hidden_states=True)
    s = of_student.logits
    chosen = -s.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    ce = cos = mse = torch.tensor(0.0, dtype=torch.float64)
    mlm = (chosen * masked).sum() / masked.sum()
    if teacher is not None:
        with torch.no_grad():
            of_teacher = teacher(**batch, output_hidden_states=True)
        t, T = of_teacher.logits, objective.temperature
        rows = masked if objective.restrict_ce_to_mask else tokens
        p, q = (t / T).exp(), (s / T).exp()
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        ce = T**2 * ((p * (p / q).log()).sum(-1) * rows).sum() / rows.sum()
        h_s, h_t = of_student.hidden_states[-1], of_teacher.hidden_states[-1]
        cosine = (h_s * h_t).sum(-1) / (h_s.pow(2).sum(-1).sqrt() * h_t.pow(2).sum(-1).sqrt())
        cos = ((1 - cosine) * tokens).sum() / tokens.sum()
        mse = ((s - t).pow(2).sum(-1) * rows).sum() / rows.sum()
    alphas = (objective.alpha_ce, objective.alpha_mlm, objective.alpha_cos, objective.alpha_mse)
    means = [mean if alpha else mean * 0 for alpha, mean in zip(alphas, (ce, mlm, cos, mse), strict=True)]
    return [sum(alpha * mean for alpha, mean in zip(alphas, means, strict=True)), *means]


@pytest.fixture(scope="module")
def theirs() -> tuple[nn.Module, nn.Module]:
    """A DistilBERT student and a BERT teacher of `transformers`, in fp64: read-only."""
    return distilbert().double(), bert().double()


@pytest.fixture
def student(theirs: tuple[nn.Module, nn.Module]) -> nn.Module:
    return ours(theirs[0]).train()


@pytest.fixture
def teacher(theirs: tuple[nn.Module, nn.Module]) -> nn.Module:
    return ours(theirs[1])


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def assert_gradients(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, goal in expected.items():
        if goal is None or not goal.any():
            assert found[name] is None or not found[name].any(), name
        else:
            assert largest(found[name] - goal) <= tolerance * largest(goal), name


# Loss and gradients.


@every_objective
def test_loss_and_every_gradient(objective: Objective, theirs: tuple[nn.Module, nn.Module], student: nn.Module,
                                 teacher: nn.Module) -> None:  # fmt: skip
    step = masked_sequences()
    loss, terms = Distiller(student, teacher, objective)(batch_of(step))
    loss.backward()
    expected = plain(*theirs, step, objective)
    for found, goal in zip([loss, *terms], [expected[0], *expected], strict=True):
        assert largest(found - goal) <= 1e-5 * largest(goal)

    theirs[0].zero_grad()
    expected[0].backward()
    wanted: dict[str, Tensor | None] = {}
    parameters = dict(theirs[0].named_parameters())
    for name, _ in student.named_parameters():
        pieces = [parameters[key].grad for key in hf.names_of(name, "distilbert")]
        wanted[name] = None if pieces[0] is None else torch.cat(pieces)
    assert_gradients(gradients(student), wanted, 1e-5)


def test_without_teacher(theirs: tuple[nn.Module, nn.Module], student: nn.Module) -> None:
    """Plain masked language modelling."""
    step, distiller = masked_sequences(), Distiller(student, None, Objective())
    loss, terms = distiller(batch_of(step))
    expected = plain(theirs[0], None, step, Objective(0.0, 1.0, 0.0, 0.0))
    assert largest(loss - expected[0]) < 1e-5 * largest(expected[0])
    assert terms.tolist() == [float(loss.detach()), 0.0, float(loss.detach()), 0.0, 0.0]
    assert distiller.teacher is None
    assert distiller.active_terms == ("loss", "loss_mlm")


def test_a_bert_is_pre_trained_with_its_token_types(theirs: tuple[nn.Module, nn.Module]) -> None:
    step = masked_sequences()
    loss, _ = Distiller(ours(theirs[1]), None, Objective())(batch_of(step))
    expected = plain(theirs[1], None, step, Objective(0.0, 1.0, 0.0, 0.0))[0]
    assert largest(loss - expected) < 1e-5 * largest(expected)


def test_terms(student: nn.Module, teacher: nn.Module) -> None:
    """Named by TERMS, detached, in fp32; the loss to go backward is the first one, times the number of parts."""
    assert TERMS == ("loss", "loss_ce", "loss_mlm", "loss_cos", "loss_mse")
    batch = batch_of(masked_sequences())
    loss, terms = Distiller(student, teacher, Objective())(batch)
    assert terms.shape == (5,)
    assert terms.dtype == loss.dtype == torch.float32
    assert not terms.requires_grad
    six_times, same = Distiller(student, teacher, Objective(), parts=6)(batch)
    assert torch.equal(same, terms)
    torch.testing.assert_close(six_times, 6 * loss)
    torch.testing.assert_close(loss, terms[0])


def test_active_terms(student: nn.Module, teacher: nn.Module) -> None:
    for objective, names in {
        Objective(): ("loss", "loss_ce", "loss_mlm", "loss_cos"),
        Objective(0.0, 0.0, 0.0, 0.5): ("loss", "loss_mse"),
    }.items():
        assert Distiller(student, teacher, objective).active_terms == names


@every_objective
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_step_may_be_cut_anywhere(count: int, objective: Objective, student: nn.Module, teacher: nn.Module) -> None:
    """Gradients accumulate over parts as DeepSpeed averages them: the sum of parts, each times their number."""
    step = masked_sequences()
    Distiller(student, teacher, objective)(batch_of(step))[0].backward()
    whole = gradients(student)
    student.zero_grad()
    distiller = Distiller(student, teacher, objective, parts=count)
    terms = torch.zeros(5)
    for i in range(count):
        loss, part_terms = distiller(batch_of(step[i::count], step))
        (loss / count).backward()
        terms += part_terms
    expected = Distiller(student, teacher, objective)(batch_of(step))[1]
    torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-7)
    assert_gradients(gradients(student), whole, 1e-5)


@every_objective
def test_a_part_without_masked_tokens(objective: Objective, student: nn.Module, teacher: nn.Module) -> None:
    step = masked_sequences()
    part = [s for s in step if not s.labels]
    assert len(part) == 2
    for beside, chosen in ((teacher, objective), (None, Objective())):
        student.zero_grad()
        loss, terms = Distiller(student, beside, chosen)(batch_of(part, step))
        loss.backward()
        assert terms.isfinite().all()
        assert float(terms[2]) == 0.0
        assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_order_of_sequences_does_not_matter(student: nn.Module, teacher: nn.Module) -> None:
    step = masked_sequences()
    distiller = Distiller(student, teacher, Objective())
    torch.testing.assert_close(distiller(batch_of(step))[1], distiller(batch_of(step[::-1]))[1])


def test_identical_student_and_teacher(teacher: nn.Module) -> None:
    _, terms = Distiller(copy.deepcopy(teacher).train(), teacher, OBJECTIVES["all-four"])(batch_of(masked_sequences()))
    _, ce, mlm, cos, mse = terms.tolist()
    assert abs(ce) < 1e-6
    assert abs(cos) < 1e-6
    assert mse == 0.0
    assert mlm > 1.0


def test_nan_in_what_is_left_out_reaches_nothing(student: nn.Module, teacher: nn.Module) -> None:
    """A teacher that overflows must not matter to a run that uses neither its logits nor, here, anything of it."""
    with torch.no_grad():
        teacher.layers[0].qkv.weight.fill_(math.nan)
    loss, terms = Distiller(student, teacher, OBJECTIVES["mlm"])(batch_of(masked_sequences()))
    loss.backward()
    assert terms.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    assert Distiller(student, teacher, Objective())(batch_of(masked_sequences()))[0].isnan()


# The teacher.


def test_the_teacher_is_no_submodule(student: nn.Module, teacher: nn.Module) -> None:
    distiller = Distiller(student, teacher, Objective())
    assert distiller.teacher is teacher
    assert [name for name, _ in distiller.named_children()] == ["student"]
    assert {f"student.{name}" for name in student.state_dict()} == set(distiller.state_dict())
    assert sum(p.numel() for p in distiller.parameters()) == sum(p.numel() for p in student.parameters())
    distiller.to(torch.bfloat16)
    assert teacher.dtype == torch.float32


def test_the_teacher_gets_no_gradient(student: nn.Module, teacher: nn.Module) -> None:
    before = copy.deepcopy(teacher.state_dict())
    Distiller(student, teacher, OBJECTIVES["all-four"])(batch_of(masked_sequences()))[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_teacher_is_in_evaluation_mode_whatever_happens(student: nn.Module) -> None:
    noisy = ours(bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    batch = batch_of(masked_sequences())
    expected = Distiller(student, noisy, Objective())(batch)[1]
    distiller = Distiller(student, noisy.train(), Objective()).train()
    assert torch.equal(distiller(batch)[1], expected)
    distiller.train()
    assert torch.equal(distiller(batch)[1], expected)


def test_the_student_drops_in_training(teacher: nn.Module) -> None:
    student = ours(distilbert(dropout=0.3))
    distiller, batch = Distiller(student, teacher, Objective()), batch_of(masked_sequences())
    torch.manual_seed(0)
    first, second = distiller.train()(batch)[0], distiller(batch)[0]
    torch.manual_seed(0)
    assert torch.equal(distiller(batch)[0], first)
    assert largest(first - second) > 1e-3
    assert torch.equal(distiller.eval()(batch)[0], distiller(batch)[0])


# Low precision, and the device.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_near_fp32(dtype: torch.dtype, student: nn.Module, teacher: nn.Module) -> None:
    batch = batch_of(masked_sequences())
    expected = Distiller(student, teacher, OBJECTIVES["all-four"])(batch)[1]
    loss, terms = Distiller(student.to(dtype), teacher.to(dtype), OBJECTIVES["all-four"])(batch)
    assert terms.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(terms, expected, rtol=0.02, atol=1e-3)
    loss.backward()
    assert {p.grad.dtype for p in student.parameters()} == {dtype}


@every_objective
def test_nothing_waits_for_the_device(objective: Objective, student: nn.Module, teacher: nn.Module) -> None:
    """Meta tensors have no values: any look at one (`.item()`, a mask as an index) would raise."""
    batch = batch_of(masked_sequences())
    tensors = {k: v.to("meta") for k, v in vars(batch).items() if isinstance(v, Tensor)}
    loss, terms = Distiller(student.to("meta"), teacher.to("meta"), objective)(dataclasses.replace(batch, **tensors))
    loss.backward()
    assert terms.shape == (5,)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(value, student, teacher, monkeypatch) -> None:
    """So that DeepSpeed, which looks at gradients, skips the step. (The gradient does not follow from the value.)"""
    module = Distiller(student, teacher, Objective())
    whole = distillation.vocabulary_losses

    def lost(*arguments: object) -> tuple[Tensor, Tensor]:
        loss, values = whole(*arguments)
        return loss + value, values

    monkeypatch.setattr("model.distiller.vocabulary_losses", lost)
    loss, _ = module(batch_of(masked_sequences()))
    loss.backward()
    assert not any(parameter.grad.isfinite().any() for parameter in student.parameters() if parameter.grad.any())


def test_a_batch_from_the_stream() -> None:
    ends = np.array([0, 3, 5])
    micro = MicroBatch(
        input_ids=np.array([2, 4, 3, 2, 3]), positions=positions_within(ends), cu_seqlens=ends.astype(np.int32),
        max_seqlen=3, masked_positions=np.array([1]), labels=np.array([7]), step=11, part=1, step_tokens=50,
        step_masked=6,
    )  # fmt: skip
    batch = Batch.of(micro, torch.device("cpu")).to(torch.device("cpu"))
    assert batch.input_ids.tolist() == [2, 4, 3, 2, 3]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert (batch.cu_seqlens.tolist(), batch.cu_seqlens.dtype) == ([0, 3, 5], torch.int32)
    assert (batch.masked_positions.tolist(), batch.labels.tolist()) == ([1], [7])
    assert (batch.max_seqlen, batch.step_tokens, batch.step_masked) == (3, 50, 6)


# Held-out figures.


@every_objective
def test_measure(objective: Objective, theirs: tuple[nn.Module, nn.Module], teacher: nn.Module) -> None:
    """Against one padded batch of everything; the cut into batches does not matter, nor do their step counts.

    Every third label is what the student says, so that something is right.
    """
    data = masked_sequences([9, 1, 24, 5, 13, 2, 24, 24, 24])
    batch = pad([s.ids for s in data])
    first, second = (model(**batch).logits.argmax(-1) for model in theirs)
    places = [(row, i) for row, s in enumerate(data) for i in s.positions]
    for row, s in enumerate(data):
        s.labels[::3] = [int(first[row, i]) for i in s.positions[::3]]
    student = ours(distilbert(dropout=0.4, attention_dropout=0.4))
    distiller = Distiller(student, teacher, objective).train()
    total = distiller.measure(batch_of(part, [data[2]]) for part in (data[:2], data[2:3], data[3:]))
    assert total.dtype == torch.float64
    assert not total.requires_grad
    tokens, masked = sum(len(s.ids) for s in data), sum(len(s.labels) for s in data)
    assert total[:2].tolist() == [tokens, masked]

    expected = [float(value.detach()) for value in plain(*theirs, data, objective)]
    figures = held_out_figures(total, distiller)
    assert [name for name in figures if name.startswith("loss")] == list(distiller.active_terms)
    for name, goal in zip(TERMS, expected, strict=True):
        assert figures.get(name, 0.0) == pytest.approx(goal, rel=1e-5)

    labels = [label for s in data for label in s.labels]
    correct = sum(int(first[place]) == label for place, label in zip(places, labels, strict=True))
    agree = sum(int(first[place]) == int(second[place]) for place in places)
    assert 0 < correct < masked
    assert total[6:].tolist() == [correct, agree]
    assert (figures["accuracy"], figures["agreement"]) == (correct / masked, agree / masked)

    once = distiller.measure([batch_of(data)])
    torch.testing.assert_close(once, total, rtol=1e-6, atol=1e-6)


def test_measure_counts_what_is_right() -> None:
    """A head whose bias decides: token 7 everywhere."""
    student, teacher = ours(distilbert()), ours(bert())
    with torch.no_grad():
        student.head.bias[7] = teacher.head.bias[7] = 1000.0
    data = [Sequence([4, 4, 4, 9], [0, 1, 2], [7, 7, 8])]
    distiller = Distiller(student, teacher, Objective())
    figures = held_out_figures(distiller.measure([batch_of(data)]), distiller)
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["agreement"] == 1.0


def test_measure_leaves_no_trace(teacher: nn.Module) -> None:
    student = ours(distilbert(dropout=0.4))
    distiller, batch = Distiller(student, teacher, Objective()).train(), batch_of(masked_sequences())
    distiller(batch)[0].backward()
    student.layers[0].eval()  # a part may stand in another mode than the whole
    modes = {name: module.training for name, module in distiller.named_modules()}
    weights, before, random = copy.deepcopy(student.state_dict()), gradients(student), torch.get_rng_state()
    assert torch.equal(distiller.measure([batch]), distiller.measure([batch]))
    assert {name: module.training for name, module in distiller.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in gradients(student).items())

    def broken() -> object:
        yield batch
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        distiller.measure(broken())
    assert {name: module.training for name, module in distiller.named_modules()} == modes


def test_measure_nothing(student: nn.Module, teacher: nn.Module) -> None:
    """A rank may have no sequences at all; its sums are 0 and have the shape of the others'."""
    assert torch.equal(Distiller(student, teacher, Objective()).measure([]), torch.zeros(8, dtype=torch.float64))


def test_figures_by_hand(student: nn.Module, teacher: nn.Module) -> None:
    """100 tokens, 15 masked; sums of ce 50, mlm 30, cos 20, mse 10; 6 right, 9 agreed."""
    total = torch.tensor([100, 15, 50, 30, 20, 10, 6, 9], dtype=torch.float64)
    figures = held_out_figures(total, Distiller(student, teacher, Objective()))
    assert figures == pytest.approx(
        {"loss": 5 * 0.5 + 2 * 2 + 0.2, "loss_ce": 0.5, "loss_mlm": 2.0, "loss_cos": 0.2, "accuracy": 0.4,
         "agreement": 0.6}
    )  # fmt: skip
    alone = held_out_figures(total, Distiller(student, None, Objective()))
    assert alone == pytest.approx({"loss": 2.0, "loss_mlm": 2.0, "accuracy": 0.4})
    restricted = held_out_figures(total, Distiller(student, teacher, Objective(restrict_ce_to_mask=True)))
    assert restricted["loss_ce"] == pytest.approx(50 / 15)
    unmasked = torch.tensor([100, 0, 50, 0, 20, 10, 0, 0], dtype=torch.float64)
    assert held_out_figures(unmasked, Distiller(student, teacher, Objective()))["accuracy"] == 0.0


# The optimizer's groups.


def test_parameter_groups(student: nn.Module, teacher: nn.Module) -> None:
    distiller = Distiller(student, teacher, Objective())
    student.embeddings.position.weight.requires_grad_(False)
    decayed, plain_ones = parameter_groups(distiller)
    names = {id(p): name for name, p in student.named_parameters()}
    assert "weight_decay" not in decayed
    assert plain_ones["weight_decay"] == 0.0
    matrices = {"embeddings.word.weight", "head.transform.weight"}
    for layer in range(2):
        matrices |= {f"layers.{layer}.{m}.weight" for m in ("qkv", "attention_output", "intermediate", "output")}
    assert {names[id(p)] for p in decayed["params"]} == matrices
    rest = set(names.values()) - matrices - {"embeddings.position.weight"}
    assert {names[id(p)] for p in plain_ones["params"]} == rest
    assert all(name.endswith(("bias", "norm.weight")) for name in rest)
    torch.optim.AdamW(parameter_groups(distiller), weight_decay=0.1)


def test_no_empty_group() -> None:
    assert len(parameter_groups(nn.Linear(2, 2, bias=False))) == 1
    assert len(parameter_groups(nn.LayerNorm(2))) == 1
    assert parameter_groups(nn.Linear(2, 2).requires_grad_(False)) == []


def test_freezing_the_positions(student: nn.Module, teacher: nn.Module) -> None:
    student.embeddings.position.weight.requires_grad_(False)
    Distiller(student, teacher, Objective())(batch_of(masked_sequences()))[0].backward()
    assert [name for name, p in student.named_parameters() if p.grad is None] == ["embeddings.position.weight"]
    assert student.embeddings.word.weight.grad.shape == (VOCABULARY, 20)
