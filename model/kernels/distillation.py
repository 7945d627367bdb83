"""The losses over the vocabulary: soft targets, masked words, squared differences of logits. The flagship.

Logits are by far the largest tensors of a step. So rows are taken a chunk at a time: both heads' logits of the chunk,
one pass of a row kernel that computes losses and gradient and writes the gradient over the student's logits, and the
gradient's two matrix products. Never more than a chunk of logits is alive, and nothing is computed twice.

R rows (tokens), C rows of a chunk, D hidden size, V vocabulary, P columns that are computed: the vocabulary, on a GPU
with filler up to a multiple of 64. Rows of logits begin at multiples of 64 everywhere.
"""

import ctypes
import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from launch import native
from model import kernels
from model.losses import cross_entropy, logit_mse, soft_target_kl

VALUES = ("ce", "mlm", "mse", "correct", "agree")
CHUNK = {"cpu": 512, "cuda": 16384}  # rows: on a GPU, each chunk reads and writes the gradient of the word embedding
_ALIGNMENT = 64  # columns: rows of 30,522 are slow for every matrix library


@dataclass(frozen=True)
class Head:
    """What logits are made of: transformed hidden states, and the decoder."""

    hidden_RD: Tensor
    word_VD: Tensor
    bias_V: Tensor


@dataclass(frozen=True)
class Weights:
    """The loss is `common * (ce * KL + mlm * cross-entropy + mse * squares)`, each summed over rows.

    In 16 bit, what multiplies `common` must be of order 1: a gradient with 1 / rows in it would underflow.
    """

    common: float
    ce: float = 0.0
    mlm: float = 0.0
    mse: float = 0.0
    temperature: float = 1.0


def vocabulary_losses(student: Head, teacher: Head | None, labels_R: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The weighted loss, and its parts.

    Args:
        student, teacher: heads with the same number of rows, in the same order; no gradient goes to the teacher.
        labels_R: int64, the word to predict; -1 where there is none.

    Returns:
        loss: scalar, fp32.
        values: fp64 [5], unweighted sums over rows, named by VALUES: temperature^2 * KL, cross-entropy, squared
            differences, rows whose first choice is the label, labelled rows whose first choice is the teacher's.
                Without gradient all of them are computed; with it, losses that have no weight and the counts of first
                choices may be 0. Detached.
    """
    if kernels.selected() == "reference":
        return reference(student, teacher, labels_R, weights)
    rows, tensors = row_kernel(student, teacher), (student.hidden_RD, student.word_VD, student.bias_V)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Chunked.apply(*tensors, teacher, labels_R, weights, rows)
    return chunked(student, teacher, labels_R, weights, rows, None)


def reference(student: Head, teacher: Head | None, labels_R: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The formulas as they stand, over all logits at once."""
    logits_s_RV = F.linear(student.hidden_RD, student.word_VD, student.bias_V)
    labelled_R = labels_R >= 0
    zero = logits_s_RV.new_zeros((), dtype=torch.float32)
    ce = mse = agree = zero
    if teacher is not None:
        with torch.no_grad():
            logits_t_RV = F.linear(teacher.hidden_RD, teacher.word_VD, teacher.bias_V)
        ce = soft_target_kl(logits_s_RV, logits_t_RV, weights.temperature)
        mse = logit_mse(logits_s_RV, logits_t_RV)
        agree = (logits_s_RV.argmax(-1) == logits_t_RV.argmax(-1))[labelled_R].sum()
    mlm = cross_entropy(logits_s_RV[labelled_R], labels_R[labelled_R])
    correct = (logits_s_RV.argmax(-1) == labels_R).sum()
    parts = ((weights.ce, ce), (weights.mlm, mlm), (weights.mse, mse))
    weighted = sum((weight * part for weight, part in parts if weight), zero)  # 0 x inf is not 0
    values = torch.stack([value.detach().double() for value in (ce, mlm, mse, correct, agree)])
    return weights.common * weighted, values


class _Chunked(torch.autograd.Function):
    """Losses and gradients chunk by chunk, all in the forward pass; the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, word_VD: Tensor, bias_V: Tensor, teacher: Head | None, labels_R: Tensor,
        weights: Weights, rows: "RowKernel",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.gradients, ctx.common = _Gradients(hidden_RD, word_VD, bias_V), weights.common
        student = Head(hidden_RD, word_VD, bias_V)
        loss, values = chunked(student, teacher, labels_R, weights, rows, ctx.gradients)
        ctx.mark_non_differentiable(values)
        ctx.set_materialize_grads(False)
        return loss, values

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if outputs[0] is None:
            return (None,) * 7
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients, "the gradients were scaled in place: a second backward pass has none"
        return *gradients.scaled(outputs[0].float() * ctx.common), None, None, None, None


def chunked(
    student: Head, teacher: Head | None, labels_R: Tensor, weights: Weights, rows: "RowKernel",
    gradients: "_Gradients | None",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Losses and values as `vocabulary_losses` gives them.

    Args:
        gradients: collects the gradients; None where none are needed.
    """
    R, V = labels_R.numel(), student.word_VD.shape[0]
    size = max(min(CHUNK.get(labels_R.device.type, CHUNK["cuda"]), R), 1)
    ours, theirs = _Decoder("student", student, size), _Decoder("teacher", teacher, size) if teacher else None
    total_5 = torch.zeros(len(VALUES), dtype=torch.float64, device=labels_R.device)
    for at in range(0, R, size):
        span = slice(at, at + size)
        logits_s_CP = ours.logits(span)
        logits_t_CP = theirs.logits(span) if theirs is not None else None
        values_C5 = rows(logits_s_CP, logits_t_CP, labels_R[span], weights, V, gradients is not None)
        total_5 += values_C5.sum(0, dtype=torch.float64)
        if gradients is not None:
            gradients.add(span, logits_s_CP, ours.word_PD)
    weighted = [w * total_5[i] for i, w in enumerate((weights.ce, weights.mlm, weights.mse)) if w]
    return weights.common * torch.stack([total_5.new_zeros(()), *weighted]).sum().float(), total_5


def _columns(word_VD: Tensor) -> int:
    """P. A CPU's matrix products need aligned rows alone, a GPU's have fast kernels for aligned sizes only."""
    V = word_VD.shape[0]
    return V if word_VD.device.type == "cpu" else V + -V % _ALIGNMENT


class _Decoder:
    """Logits of a chunk, always into the same memory."""

    def __init__(self, name: str, head: Head, size: int) -> None:
        V, P = head.word_VD.shape[0], _columns(head.word_VD)
        self.hidden_RD = head.hidden_RD
        self.word_PD = F.pad(head.word_VD, (0, 0, 0, P - V)) if P > V else head.word_VD
        self.bias_P = F.pad(head.bias_V, (0, P - V)) if P > V else head.bias_V
        self.memory_CP = _memory(name, (size, P + -P % _ALIGNMENT), self.word_PD)[:, :P]

    def logits(self, span: slice) -> Tensor:
        """CP; columns from V on are filler."""
        hidden_CD = self.hidden_RD[span]
        return torch.addmm(self.bias_P, hidden_CD, self.word_PD.t(), out=self.memory_CP[: hidden_CD.shape[0]])


class _Gradients:
    """What is collected over chunks, without the common factor: that of the hidden states in their dtype, where it is
    of order 1; those of the decoder in fp32."""

    def __init__(self, hidden_RD: Tensor, word_VD: Tensor, bias_V: Tensor) -> None:
        self.hidden_RD, self.dtypes, self.V = hidden_RD, (word_VD.dtype, bias_V.dtype), word_VD.shape[0]
        P, D = _columns(word_VD), word_VD.shape[1]
        self.of_hidden_RD = torch.empty_like(hidden_RD)
        self.of_word_PD = word_VD.new_zeros(P, D, dtype=torch.float32)
        self.of_bias_P = word_VD.new_zeros(P, dtype=torch.float32)

    def add(self, span: slice, gradient_CP: Tensor, word_PD: Tensor) -> None:
        """The gradient with respect to a chunk's logits."""
        hidden_CD = self.hidden_RD[span]
        torch.mm(gradient_CP, word_PD, out=self.of_hidden_RD[span])
        if gradient_CP.dtype == torch.float32:
            self.of_word_PD.addmm_(gradient_CP.t(), hidden_CD)
        else:
            scratch_PD = _memory("gradient", tuple(self.of_word_PD.shape), gradient_CP)
            _accumulate(self.of_word_PD, torch.mm(gradient_CP.t(), hidden_CD, out=scratch_PD))
        ones_1C = gradient_CP.new_ones(1, gradient_CP.shape[0])  # a product is several times faster than a sum
        self.of_bias_P += (ones_1C @ gradient_CP)[0]

    def scaled(self, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times a factor, in fp32 before the cast: gradients of hidden states, word embedding and bias."""
        word, bias = self.dtypes
        of_hidden_RD = (self.of_hidden_RD.float() * factor).to(self.hidden_RD.dtype)
        self.of_word_PD *= factor
        return of_hidden_RD, self.of_word_PD[: self.V].to(word), (self.of_bias_P[: self.V] * factor).to(bias)


_kept: dict[str, Tensor] = {}


def _memory(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory of the dtype and on the device of another tensor. On CPUs, where the system's pages cost as much as many a
    kernel, it is kept from one micro-batch to the next."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    kept = _kept.get(name)
    if kept is None or kept.dtype != like.dtype or kept.numel() < math.prod(shape):
        kept = _kept[name] = like.new_empty(math.prod(shape))
    return kept[: math.prod(shape)].view(shape)


def _accumulate(into: Tensor, what: Tensor) -> None:
    """into += what, in fp32; torch would make a copy in fp32 first."""
    if into.device.type == "cpu" and what.dtype == torch.bfloat16 and (library := _library()):
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (into, what))
        library.accumulate(*pointers, ctypes.c_int64(into.numel()), ctypes.c_int32(torch.get_num_threads()))
    else:
        into += what


# Logits of student (overwritten by the gradient) and teacher CP, labels C, weights, V, whether the gradient is needed
# -> values fp32 [C, 5].
RowKernel = Callable[[Tensor, Tensor | None, Tensor, Weights, int, bool], Tensor]


def row_kernel(student: Head, teacher: Head | None) -> RowKernel:
    """The fastest row kernel for a device and dtype."""
    dtypes = {head.hidden_RD.dtype for head in (student, teacher) if head is not None}
    return _row_kernel(student.hidden_RD.device.type, *dtypes)


def form(device: torch.device, dtype: torch.dtype) -> str:
    """What computes the rows: "reference", or the row kernel's name."""
    return "reference" if kernels.selected() == "reference" else _row_kernel(device.type, dtype).__name__


def _row_kernel(device: str, *dtypes: torch.dtype) -> RowKernel:
    if len(dtypes) > 1:
        return eager_rows
    if device == "cpu" and dtypes[0] in (torch.float32, torch.bfloat16) and _library():
        return native_rows
    if device == "cuda" and dtypes[0] in (torch.float32, torch.bfloat16, torch.float16):
        return _triton_rows() or eager_rows
    return eager_rows


def eager_rows(
    student_CP: Tensor, teacher_CP: Tensor | None, labels_C: Tensor, weights: Weights, V: int, gradient: bool
) -> Tensor:
    """In torch, fp32 inside: what the kernels compute, by the formulas.

    d/ds of T^2 KL(softmax(t / T) || softmax(s / T)) is T (softmax(s / T) - softmax(t / T)); of the cross-entropy
    softmax(s) - onehot(label); of the squares 2 (s - t).
    """
    s_CV = student_CP[:, :V].float()
    labelled_C = labels_C >= 0
    label_C1 = labels_C.clamp(min=0)[:, None]
    values_C5 = torch.zeros(labels_C.numel(), len(VALUES), dtype=torch.float32, device=labels_C.device)
    log_p_CV = s_CV.log_softmax(-1)
    first_C = s_CV.argmax(-1)
    values_C5[:, 1] = torch.where(labelled_C, -log_p_CV.gather(1, label_C1)[:, 0], 0)
    values_C5[:, 3] = first_C == labels_C
    onto_CV = log_p_CV.exp_().scatter_add_(1, label_C1, torch.full_like(label_C1, -1.0, dtype=torch.float32))
    gradient_CV = torch.where(labelled_C[:, None], onto_CV * weights.mlm, 0)
    if teacher_CP is not None:
        T, t_CV = weights.temperature, teacher_CP[:, :V].float()
        log_s_CV, log_t_CV = (s_CV / T).log_softmax(-1), (t_CV / T).log_softmax(-1)
        p_t_CV = log_t_CV.exp()
        values_C5[:, 0] = (p_t_CV * (log_t_CV - log_s_CV)).sum(-1) * T**2
        values_C5[:, 2] = (s_CV - t_CV).square().sum(-1)
        values_C5[:, 4] = labelled_C & (first_C == t_CV.argmax(-1))
        if weights.ce:
            gradient_CV += (log_s_CV.exp_() - p_t_CV) * (weights.ce * T)
        if weights.mse:
            gradient_CV += (s_CV - t_CV) * (2 * weights.mse)
    if gradient:
        student_CP[:, :V] = gradient_CV
        student_CP[:, V:] = 0
    return values_C5


def native_rows(
    student_CP: Tensor, teacher_CP: Tensor | None, labels_C: Tensor, weights: Weights, V: int, gradient: bool
) -> Tensor:
    """In C++: distillation_rows.cpp, on torch's number of threads."""
    library = _library()
    stride = student_CP.stride(0)
    assert library and student_CP.stride(1) == 1 and labels_C.is_contiguous()
    assert teacher_CP is None or (teacher_CP.stride() == student_CP.stride() and teacher_CP.dtype == student_CP.dtype)
    values_C5 = torch.empty(labels_C.numel(), len(VALUES), dtype=torch.float32)
    rows = _Rows(
        student_CP.data_ptr(), teacher_CP.data_ptr() if teacher_CP is not None else None,
        labels_C.data_ptr(), values_C5.data_ptr(), labels_C.numel(), stride, V,
        weights.temperature, weights.ce, weights.mlm, weights.mse, gradient, student_CP.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )  # fmt: skip
    library.distillation_rows(ctypes.byref(rows))
    return values_C5


class _Rows(ctypes.Structure):
    """As in distillation_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("student", "teacher", "labels", "values")),
        *((name, ctypes.c_int64) for name in ("rows", "stride", "vocabulary")),
        *((name, ctypes.c_float) for name in ("temperature", "ce", "mlm", "mse")),
        *((name, ctypes.c_int32) for name in ("gradient", "bf16", "threads")),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return native.load(Path(__file__).with_name("distillation_rows.cpp"), "-fopenmp", "-ffp-contract=fast",
                           "-fno-math-errno", "-fno-trapping-math")  # fmt: skip
    except native.Unavailable as reason:
        logging.getLogger(__name__).warning("the distillation loss runs without its C++ kernel: %s", reason)
        return None


@functools.cache
def _triton_rows() -> RowKernel | None:
    try:
        from model.kernels.distillation_triton import triton_rows
    except ImportError as reason:
        logging.getLogger(__name__).warning("the distillation loss runs without its Triton kernel: %s", reason)
        return None
    return triton_rows
