"""model.finetuner: losses and gradients against `transformers` models and plain torch on padded batches."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import bert, distilbert, largest, pack, pad, sequences, with_head
from torch import Tensor, nn

from launch.errors import ConfigError
from model import hf
from model.finetuner import TERMS, FineTuner, TaskInputs
from model.heads import TaskHead, TaskModel
from model.losses import TaskObjective

LENGTHS = [9, 1, 24, 5, 13, 2]
HEADS = {
    "classification": TaskHead("classification", ("red", "green", "blue")),
    "regression": TaskHead("regression"),
    "span": TaskHead("span"),
}
OBJECTIVES = {
    "published": TaskObjective(),
    "hot": TaskObjective(0.3, 2.0, temperature=5.0),
    "cold": TaskObjective(1.0, 1.0, temperature=0.7),
    "task": TaskObjective(0.5, 0.0),
    "ce": TaskObjective(0.0, 1.0),
}
SOFT = TaskObjective(0.0, 1.0)

every_kind = pytest.mark.parametrize("kind", HEADS)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@dataclass(frozen=True)
class Example:
    """A sequence with its token types, and what is to be predicted of it."""

    ids: list[int]
    types: list[int]
    label: Any


def examples(kind: str, lengths: list[int] = LENGTHS, seed: int = 5) -> list[Example]:
    """The second half of each sequence has type 1; an answer is anywhere, and (0, 0) in the first sequence."""
    generator = np.random.default_rng(seed)
    found = []
    for number, ids in enumerate(sequences(lengths, seed=seed)):
        types = [int(2 * i >= len(ids)) for i in range(len(ids))]
        span = [0, 0] if number == 0 else sorted(generator.integers(len(ids), size=2).tolist())
        labels = {"classification": number % 3, "regression": float(generator.normal()), "span": span}
        found.append(Example(ids, types, labels[kind]))
    return found


def batch_of(part: list[Example], step: list[Example] | None = None) -> TaskInputs:
    """Packed, as one part of a step (by default the whole step)."""
    packed = pack([e.ids for e in part])
    labels = [e.label for e in part]
    return TaskInputs(
        input_ids=packed["input_ids_T"],
        positions=packed["positions_T"],
        cu_seqlens=packed["cu_seqlens"],
        max_seqlen=packed["max_seqlen"],
        token_types=torch.tensor([t for e in part for t in e.types]),
        labels=torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.int64),
        step_examples=len(step or part),
    )


def padded_outputs(model: nn.Module, step: list[Example]) -> list[Tensor]:
    """What a model of `transformers` says of each example: [C], or [length, 2]."""
    batch = pad([e.ids for e in step])
    if isinstance(model.config, transformers.BertConfig):
        width = batch["input_ids"].shape[1]
        batch["token_type_ids"] = torch.tensor([e.types + [0] * (width - len(e.types)) for e in step])
    outputs = model(**batch)
    if "logits" in outputs:
        return list(outputs.logits)
    both = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    return [rows[: len(e.ids)] for rows, e in zip(both, step, strict=True)]


def plain(
    student: nn.Module, teacher: nn.Module | None, step: list[Example], objective: TaskObjective, kind: str
) -> list[Tensor]:
    """loss, task, ce as the formulas say, example by example; what has the weight 0 is 0."""
    task = soft = torch.tensor(0.0, dtype=torch.float64)
    s = padded_outputs(student, step)
    t = padded_outputs(teacher, step) if teacher else [None] * len(step)
    T = objective.temperature
    for mine, theirs, example in zip(s, t, step, strict=True):
        if kind == "regression":
            task = task + (mine[0] - example.label) ** 2
            soft = soft + (mine[0] - theirs.detach()[0]) ** 2 if theirs is not None else soft
            continue
        # A span is two classifications of which each counts half; their classes are the tokens of the sequence.
        columns = mine.reshape(len(mine), -1)
        labels = example.label if kind == "span" else [example.label]
        for column, label in enumerate(labels):
            q = columns[:, column].exp() / columns[:, column].exp().sum()
            task = task - q[label].log() / len(labels)
            if theirs is not None:
                hot = (columns[:, column] / T).exp()
                target = (theirs.detach().reshape(len(mine), -1)[:, column] / T).exp()
                q, p = hot / hot.sum(), target / target.sum()
                soft = soft + T**2 * (p * (p / q).log()).sum() / len(labels)
    task = task / len(step) if objective.alpha_task else task * 0
    soft = soft / len(step) if objective.alpha_ce else soft * 0
    return [objective.alpha_task * task + objective.alpha_ce * soft, task, soft]


def theirs_of(family: str, kind: str, seed: int, **changes: Any) -> nn.Module:
    """In fp64, without dropout."""
    suffix = "ForQuestionAnswering" if kind == "span" else "ForSequenceClassification"
    labels = {} if kind == "span" else {"num_labels": 3 if kind == "classification" else 1}
    if family == "bert":
        return bert(seed, getattr(transformers, f"Bert{suffix}"), **labels, **changes).double()
    off = {"seq_classif_dropout": 0.0, "qa_dropout": 0.0}
    return distilbert(seed, getattr(transformers, f"DistilBert{suffix}"), **labels, **(off | changes)).double()


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], nn.Module]:
    """By family and kind, and teachers: read-only."""
    seeds = {"distilbert": 1, "bert": 2, "teacher": 0}
    return {
        (name, kind): theirs_of("bert" if name == "teacher" else name, kind, seed)
        for name, seed in seeds.items()
        for kind in HEADS
    }


def ours(theirs: nn.Module, kind: str) -> TaskModel:
    """Without dropout before the last layer, in training mode."""
    return with_head(theirs, dataclasses.replace(HEADS[kind], dropout=0.0)).train()


@pytest.fixture
def tuner(models: dict[tuple[str, str], nn.Module], kind: str) -> FineTuner:
    """A student under a teacher, by the published objective."""
    return FineTuner(ours(models["distilbert", kind], kind), ours(models["teacher", kind], kind), TaskObjective())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    most = max(map(largest, expected.values()))
    assert most > 0
    for name, goal in expected.items():  # those of a span's last biases are 0: what is added to all logits is nothing
        assert largest(found[name] - goal) <= tolerance * (largest(goal) + 0.2 * most), name


# Loss and gradients.


@every_kind
@pytest.mark.parametrize("family", ["distilbert", "bert"])
@every_objective
def test_loss_and_every_gradient(
    objective: TaskObjective, family: str, kind: str, models: dict[tuple[str, str], nn.Module]
) -> None:
    theirs, step = models[family, kind], examples(kind)
    student = ours(theirs, kind)
    loss, terms = FineTuner(student, ours(models["teacher", kind], kind), objective)(batch_of(step))
    loss.backward()
    expected = plain(theirs, models["teacher", kind], step, objective, kind)
    for found, goal in zip([loss, *terms], [expected[0], *expected], strict=True):
        assert largest(found - goal) <= 1e-5 * largest(goal)
    theirs.zero_grad()
    expected[0].backward()
    parameters = dict(theirs.named_parameters())
    wanted = {
        name: torch.cat([parameters[key].grad for key in hf.names_of(name, family)])
        for name, _ in student.named_parameters()
    }
    assert_gradients(gradients(student), wanted)


@every_kind
def test_without_teacher(kind: str, models: dict[tuple[str, str], nn.Module]) -> None:
    """The task's loss with weight 1: the one that `transformers` itself computes where no padding is in the way."""
    theirs, step = models["bert", kind], examples(kind, [9, 9, 9, 9])
    tuner = FineTuner(ours(theirs, kind), None, TaskObjective())
    loss, terms = tuner(batch_of(step))
    labels = torch.tensor([e.label for e in step])
    named = {"labels": labels} if kind != "span" else {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
    if kind == "regression":
        named = {"labels": labels.double()}
    types = torch.tensor([e.types for e in step])
    expected = theirs(torch.tensor([e.ids for e in step]), token_type_ids=types, **named).loss
    assert largest(loss - expected) < 1e-5 * largest(expected)
    assert terms.tolist() == [float(loss.detach()), float(loss.detach()), 0.0]
    assert tuner.teacher is None
    assert tuner.active_terms == ("loss", "loss_task")
    with pytest.raises(ConfigError, match=r"--temperature 3.0: means nothing without --teacher"):
        FineTuner(ours(theirs, kind), None, TaskObjective(temperature=3.0))


@every_kind
def test_the_teacher_moves_the_student(kind: str, tuner: FineTuner) -> None:
    """The soft-target loss by itself has a gradient in every layer, a regression's, too; none where the two agree."""
    batch = batch_of(examples(kind))
    FineTuner(tuner.student, tuner.teacher, SOFT)(batch)[0].backward()
    found = gradients(tuner.student)
    assert all(largest(gradient) > 1e-4 for name, gradient in found.items() if name.endswith("weight"))
    twin = copy.deepcopy(tuner.student)
    twin.zero_grad()
    loss, terms = FineTuner(twin, tuner.student, SOFT)(batch)
    loss.backward()
    assert largest(terms) < 1e-6
    most = max(map(largest, found.values()))
    assert all(largest(gradient) < 1e-5 * most for gradient in gradients(twin).values())


@every_kind
def test_distillation_brings_the_student_to_the_teacher(kind: str, tuner: FineTuner) -> None:
    batch = batch_of(examples(kind))
    module = FineTuner(tuner.student, tuner.teacher, SOFT)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = module(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@every_kind
def test_terms(kind: str, tuner: FineTuner) -> None:
    """Named by TERMS, detached, in fp32; the loss to go backward is the first one, times the number of parts."""
    assert TERMS == tuner.terms == ("loss", "loss_task", "loss_ce")
    assert tuner.active_terms == TERMS
    batch = batch_of(examples(kind))
    loss, terms = tuner(batch)
    assert terms.shape == (3,)
    assert terms.dtype == loss.dtype == torch.float32
    assert not terms.requires_grad
    six_times, same = FineTuner(tuner.student, tuner.teacher, TaskObjective(), parts=6)(batch)
    assert torch.equal(same, terms)
    torch.testing.assert_close(six_times, 6 * loss)
    torch.testing.assert_close(loss, terms[0])


@every_kind
@pytest.mark.parametrize("count", [2, 3])
def test_a_step_may_be_cut_anywhere(count: int, kind: str, tuner: FineTuner) -> None:
    """Gradients accumulate over parts as DeepSpeed averages them: the sum of parts, each times their number."""
    step = examples(kind)
    expected = tuner(batch_of(step))
    expected[0].backward()
    whole = gradients(tuner)
    tuner.zero_grad()
    cut = FineTuner(tuner.student, tuner.teacher, TaskObjective(), parts=count)
    terms = torch.zeros(3)
    for i in range(count):
        loss, part_terms = cut(batch_of(step[i::count], step))
        (loss / count).backward()
        terms += part_terms
    torch.testing.assert_close(terms, expected[1], rtol=1e-5, atol=1e-7)
    assert_gradients(gradients(tuner), whole)


@every_kind
def test_a_teacher_that_is_left_out_reaches_nothing(kind: str, tuner: FineTuner) -> None:
    assert tuner.teacher
    with torch.no_grad():
        tuner.teacher.layers[0].qkv.weight.fill_(math.nan)
    batch = batch_of(examples(kind))
    loss, terms = FineTuner(tuner.student, tuner.teacher, OBJECTIVES["task"])(batch)
    loss.backward()
    assert terms.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(tuner.student).values())
    assert tuner(batch)[0].isnan()


@every_kind
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(
    value: float, kind: str, tuner: FineTuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that DeepSpeed, which looks at gradients, skips the step."""
    honest = tuner._task
    monkeypatch.setattr(tuner, "_task", lambda *arguments: honest(*arguments) + value)
    tuner(batch_of(examples(kind)))[0].backward()
    assert not any(p.grad.isfinite().all() for p in tuner.parameters())


@every_kind
@every_objective
def test_nothing_waits_for_the_device(objective: TaskObjective, kind: str, tuner: FineTuner) -> None:
    """Meta tensors have no values: any look at one (`.item()`, a mask as an index) would raise."""
    batch = batch_of(examples(kind))
    tensors = {k: v.to("meta") for k, v in vars(batch).items() if isinstance(v, Tensor)}
    assert tuner.teacher
    module = FineTuner(tuner.student.to("meta"), tuner.teacher.to("meta"), objective)
    loss, terms = module(dataclasses.replace(batch, **tensors))
    loss.backward()
    assert terms.shape == (3,)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_near_fp32(dtype: torch.dtype, kind: str, tuner: FineTuner) -> None:
    batch = batch_of(examples(kind))
    expected = tuner(batch)[1]
    assert tuner.teacher
    tuner.teacher.to(dtype)
    loss, terms = tuner.to(dtype)(batch)
    assert terms.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(terms, expected, rtol=0.05, atol=0.02)
    loss.backward()
    assert {p.grad.dtype for p in tuner.parameters()} == {dtype}


# Student and teacher.


@every_kind
def test_the_teacher_is_no_submodule_and_never_drops(kind: str, models: dict[tuple[str, str], nn.Module]) -> None:
    noisy = with_head(
        theirs_of("bert", kind, 0, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), HEADS[kind]
    ).float()
    student, batch = ours(models["distilbert", kind], kind), batch_of(examples(kind))
    tuner = FineTuner(student, noisy.train(), TaskObjective()).train()
    assert [name for name, _ in tuner.named_children()] == ["student"]
    assert {f"student.{name}" for name in student.state_dict()} == set(tuner.state_dict())
    first, second = (tuner(batch)[1] for _ in range(2))
    assert torch.equal(first, second)
    tuner(batch)[0].backward()
    assert all(p.grad is None for p in noisy.parameters())
    assert tuner.kernels().startswith("attention ")
    assert "teacher's " in tuner.kernels()
    assert "vocabulary" not in tuner.kernels()


def test_the_student_drops_in_training(models: dict[tuple[str, str], nn.Module]) -> None:
    """What is before the last layer alone makes the difference."""
    student = with_head(models["distilbert", "classification"], HEADS["classification"]).train()
    assert student.dropout.p == 0.2
    tuner, batch = FineTuner(student, None, TaskObjective()), batch_of(examples("classification"))
    torch.manual_seed(0)
    first, second = tuner(batch)[0], tuner(batch)[0]
    torch.manual_seed(0)
    assert torch.equal(tuner(batch)[0], first)
    assert largest(first - second) > 1e-3


# Outputs.


@every_kind
def test_outputs(kind: str, models: dict[tuple[str, str], nn.Module]) -> None:
    """Those of `transformers`, whatever else is in the batch; dropout is off, and no trace is left."""
    theirs, step = models["bert", kind], examples(kind)
    tuner = FineTuner(with_head(theirs, HEADS[kind]), None, TaskObjective()).train()
    tuner.student.dropout.p = 0.5
    tuner.student.layers[0].eval()
    modes = {name: module.training for name, module in tuner.named_modules()}
    random = torch.get_rng_state()
    expected = padded_outputs(theirs, step)
    found = tuner.outputs(batch_of(step))
    assert len(found) == len(step)
    for number, (mine, goal) in enumerate(zip(found, expected, strict=True)):
        assert (mine.dtype, mine.device.type, mine.requires_grad) == (torch.float32, "cpu", False)
        assert mine.shape == goal.shape
        assert largest(mine - goal) < 1e-5
        (alone,) = tuner.outputs(batch_of(step[number : number + 1]))
        assert largest(mine - alone) < 1e-5
    assert {name: module.training for name, module in tuner.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_outputs_of_a_model_in_16_bit(models: dict[tuple[str, str], nn.Module]) -> None:
    tuner = FineTuner(ours(models["bert", "span"], "span").bfloat16(), None, TaskObjective())
    assert {x.dtype for x in tuner.outputs(batch_of(examples("span")))} == {torch.float32}


@every_kind
def test_a_batch_from_the_stream(kind: str) -> None:
    """Any object with numpy arrays of these names; integers stay integers."""
    expected = batch_of(examples(kind))
    arrays = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in vars(expected).items()}
    found = TaskInputs.of(SimpleNamespace(**arrays, step=3, part=1), torch.device("cpu")).to(torch.device("cpu"))
    for name, value in vars(expected).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, name), value), name
            assert getattr(found, name).dtype == value.dtype, name
        else:
            assert type(getattr(found, name)) is int
            assert getattr(found, name) == value
