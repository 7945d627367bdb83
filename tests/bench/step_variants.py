"""The variants of a step: from the usual way, written anew from its formulas on stock `transformers`, to ours.

Each makes models, batches and a loss; patches that a variant needs last as long as its context.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.shapes import Shapes
from model import distiller as distiller_module
from model.bert import MaskedLM
from model.distiller import Batch, Distiller
from model.kernels import attention, distillation, fp8, residual
from model.kernels.distillation import Head, Weights
from model.losses import Objective, cross_entropy
from tests.bench import step_models
from tests.bench.step_data import LONGEST, NO_LABEL, Masked, Padded, dealt, grouped, packed
from tests.bench.step_models import DTYPES, PAIRS

ORIGINAL_BATCH = 5
OBJECTIVE = Objective()


class Unavailable(Exception):
    """A variant can't run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What all variants have in common."""

    pair: Literal["tiny", "small", "base"] = "small"
    dtype: Literal["fp32", "bf16"] = "fp32"
    lengths: Literal["mixed", "128", "512"] = "mixed"
    batch: int = 32
    sequences: int = 160
    quick: bool = False

    @property
    def device(self) -> torch.device:
        """The GPU, where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Ready:
    """A variant, ready to run.

    Attributes:
        warm_up: batches that it takes until it runs as it always will; None: all.
        word: the student's word embedding, whose gradient is compared.
        batches: of sequences, on the host.
        single: one batch of sequences, without filler, computed as the others are.
        loss: of a batch on the device.
        kernels: of attention, of a block's end, of the losses over the vocabulary.
    """

    student: nn.Module
    word: Tensor
    batching: str
    batches: Callable[[list[Masked]], list[Any]]
    single: Callable[[list[Masked]], Any]
    loss: Callable[[Any], Tensor]
    kernels: str
    warm_up: int | None = 2


Variant = Callable[[Setting], AbstractContextManager[Ready]]


# --- the usual way ---


@contextlib.contextmanager
def original(
    setting: Setting, size: int | None = ORIGINAL_BATCH, attention: str = "eager", compiled: bool = False,
    dtype: torch.dtype | None = None,
) -> Iterator[Ready]:  # fmt: skip
    """Padded batches of nearly one length, losses over all logits at once (Sanh et al., 2019).

    Args:
        size: of a batch; None: the setting's.
        compiled: both models, for any shape.
        dtype: in which the setting's weights are computed with; None: in their own.
    """
    device, stored, size = setting.device, DTYPES[setting.dtype], size or setting.batch
    student, teacher = step_models.theirs(PAIRS[setting.pair], dtype or stored, device, attention, stored)
    if compiled:
        for model in (student, teacher):
            model.compile(dynamic=True, backend="eager" if setting.quick else "inductor")
    yield Ready(
        student, student.get_input_embeddings().weight, f"by length: {size}",
        batches=lambda data: [Padded.of(batch, device) for batch in grouped(data, size)],
        single=lambda data: Padded.of(data, device),
        loss=lambda batch: losses_over_all_logits(student, teacher, batch),
        kernels=f"{attention} / {'inductor' if compiled else 'torch'} / torch",
        warm_up=None if compiled else 2,  # "any shape" is compiled anew beyond some sizes
    )  # fmt: skip


def losses_over_all_logits(student: nn.Module, teacher: nn.Module, batch: Padded) -> Tensor:
    """The three losses, as they were computed: in the models' dtype, means over the batch."""
    inputs = {"input_ids": batch.ids_BL, "attention_mask": batch.mask_BL, "output_hidden_states": True}
    ours = student(**inputs)
    with torch.no_grad():
        goal = teacher(**inputs)
    T = OBJECTIVE.temperature
    s_RV, t_RV = (real(x.logits, batch.mask_BL) for x in (ours, goal))
    soft = F.kl_div(F.log_softmax(s_RV / T, -1), F.softmax(t_RV / T, -1), reduction="batchmean") * T**2
    words = F.cross_entropy(ours.logits.flatten(0, 1), batch.labels_BL.flatten(), ignore_index=NO_LABEL)
    s_RD, t_RD = (real(x.hidden_states[-1], batch.mask_BL) for x in (ours, goal))
    cosine = F.cosine_embedding_loss(s_RD, t_RD, s_RD.new_ones(len(s_RD)))
    return OBJECTIVE.alpha_ce * soft + OBJECTIVE.alpha_mlm * words + OBJECTIVE.alpha_cos * cosine


def real(x_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Of the tokens that are no padding: RE."""
    return torch.masked_select(x_BLE, mask_BL.bool()[:, :, None].expand_as(x_BLE)).view(-1, x_BLE.shape[-1])


def transformers_sdpa(setting: Setting) -> AbstractContextManager[Ready]:
    """The same with torch's attention, in large batches."""
    return original(setting, None, "sdpa")


def transformers_compiled(setting: Setting) -> AbstractContextManager[Ready]:
    """The same, compiled."""
    return original(setting, None, "sdpa", compiled=True)


# --- ours, whole and in parts ---


@contextlib.contextmanager
def ours(setting: Setting, prepare: Callable[[MaskedLM], None] | None = None) -> Iterator[Ready]:
    """As in training: packed, losses by chunks, row kernels, compiled in few shapes where that is worth it.

    Args:
        prepare: what to do to the teacher.
    """
    device = setting.device
    student, teacher = step_models.ours(PAIRS[setting.pair], DTYPES[setting.dtype], device)
    if prepare:
        prepare(teacher)
    distiller = Distiller(student, teacher, OBJECTIVE)

    def batches(data: list[Masked]) -> list[Batch]:
        parts = [packed(batch) for batch in dealt(data, setting.batch)]
        shapes = compile_if_worth_it(distiller, [(part.tokens, len(part.cu_seqlens) - 1) for part in parts])
        return [Batch.of(shapes.fill(part) if shapes else part, device) for part in parts]

    yield Ready(
        student, student.embeddings.word.weight, f"packed: {setting.batch}", batches,
        single=lambda data: replace(Batch.of(packed(data), device), static=True),
        loss=lambda batch: distiller(batch)[0], kernels=kernels(setting, distiller),
    )  # fmt: skip


def compile_if_worth_it(distiller: Distiller, sizes: list[tuple[int, int]]) -> Shapes | None:
    """As `train_dilbert.py` does, where it is not done yet: shapes for micro-batches of about these sizes."""
    if not distiller.should_compile("auto"):
        return None
    shapes, device = Shapes.expected(sizes, LONGEST, pad_id=0), distiller.student.embeddings.word.weight.device
    if not distiller.compiled:
        distiller.compile()
    for example in shapes.examples():
        distiller.warm_up(Batch.of(example, device).to(device))
    return shapes


def kernels(setting: Setting, distiller: Distiller) -> str:
    """Names of the forms that compute."""
    device, dtype = setting.device, DTYPES[setting.dtype]
    forms = [attention.form(device, dtype, True), residual.form(device, dtype)]
    losses = getattr(distiller_module.vocabulary_losses, "__name__", "")
    form = distillation.form(device, dtype) if losses == "vocabulary_losses" else losses.replace("_losses", "")
    return " / ".join([*forms, form]) + (", compiled" if distiller.should_compile("auto") else "")


@contextlib.contextmanager
def torchs_own(setting: Setting, losses: Callable | None = None, **options: Any) -> Iterator[Ready]:
    """Packed, but attention and the ends of blocks by what torch has, nothing compiled.

    Args:
        losses: instead of `vocabulary_losses`.
    """
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Distiller, "should_compile", _never))
        patches.enter_context(mock.patch.object(residual, "form", _torch))
        if setting.device.type == "cpu":
            patches.enter_context(mock.patch.object(attention, "form", _per_sequence))
        if losses:
            patches.enter_context(mock.patch.object(distiller_module, "vocabulary_losses", losses))
        yield patches.enter_context(ours(setting, **options))


def _never(distiller: Distiller, choice: str) -> bool:
    return False


def _torch(device: torch.device, dtype: torch.dtype) -> str:
    return "torch"


def _per_sequence(device: torch.device, dtype: torch.dtype, dropout: bool) -> str:
    return "per sequence"


def over_all_logits(setting: Setting) -> AbstractContextManager[Ready]:
    """Packed, losses by the formulas."""
    return torchs_own(setting, distillation.reference)


def liger(setting: Setting) -> AbstractContextManager[Ready]:
    """Packed, losses by chunks of another library."""
    try:
        import liger_kernel.chunked_loss  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"not installed: {error.name}") from error
    return torchs_own(setting, liger_losses)


def liger_losses(student: Head, teacher: Head, labels_R: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Loss of a micro-batch that is a whole step, and no values. Rows without a label would be left out of Liger's soft
    targets, too; so it gets those alone, and the words are predicted from their own rows."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    T = weights.temperature
    soft = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=weights.ce * T**2, beta=0.0, temperature=T)
    heads = (student.hidden_RD, student.word_VD, teacher.hidden_RD, teacher.word_VD)
    loss = soft(*heads, labels_R.clamp(min=0), student.bias_V, teacher.bias_V)
    places = labels_R.ge(0).nonzero()[:, 0]
    words = cross_entropy(F.linear(student.hidden_RD[places], student.word_VD, student.bias_V), labels_R[places])
    return loss + weights.common * weights.mlm * words, loss.new_zeros(len(distillation.VALUES), dtype=torch.float64)


def fp8_teacher(setting: Setting) -> AbstractContextManager[Ready]:
    """Ours, the teacher's layers in FP8. A CPU only shows that it runs."""
    if setting.device.type == "cpu" and not setting.quick:
        raise Unavailable("not run: no GPU")
    if not fp8.available(setting.device):
        raise Unavailable("not run: needs a GPU of compute capability 8.9")
    return ours(setting, lambda teacher: fp8.convert(teacher.layers))


VARIANTS: dict[str, Variant] = {
    "the original's way": original,
    "transformers, sdpa, large batches": transformers_sdpa,
    "+ torch.compile": transformers_compiled,
    "packed, losses over all logits": over_all_logits,
    "packed, losses by chunks": torchs_own,
    "ours": ours,
    "packed, Liger's losses by chunks": liger,
    "ours, FP8 teacher": fp8_teacher,
}
