"""Attention over packed sequences on CPUs: torch's batched matrix products, and row kernels in C++ between them.

Faster than torch's fused attention there, above all in bf16 and under dropout, for which that one has only plain
formulas. Scores of one sequence are alive at a time; the backward pass computes them anew, dropout included.

In bf16, sequences are filled up to multiples of 16: for each new shape oneDNN prepares a product for longer than most
of them take.

T tokens of all sequences, F the same with filler, N heads, H width of a head, L length of a sequence with filler.
"""

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels

DTYPES = (torch.float32, torch.bfloat16)
BLOCK = {torch.float32: 1, torch.bfloat16: 16}  # lengths are filled up to a multiple


def available() -> bool:
    """Whether the C++ part is, or can be, built."""
    return kernels.library("attention_rows") is not None


def attention(qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float) -> Tensor:
    """As `attention.packed_attention`, for fp32 and bf16 on the CPU: TNH."""
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    out_TNH: Tensor = _forward(qkv_T3NH, cu_seqlens, dropout, seed)
    return out_TNH


# Operators of torch, so that torch.compile takes them as they are.
@torch.library.custom_op("dilbert::attention_rows", mutates_args=(), device_types="cpu")
def _forward(qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float, seed: Tensor) -> Tensor:
    places = _Places.of(cu_seqlens, BLOCK[qkv_T3NH.dtype])
    q, k, v = (places.heads_first(x_TNH) for x_TNH in qkv_T3NH.unbind(1))
    out, number = torch.empty_like(q), int(seed)
    for one, (q_NLH, k_NLH, v_NLH, out_NLH) in places.sequences(q, k, v, out):
        scores_NLL = torch.bmm(q_NLH, k_NLH.transpose(1, 2))
        _rows(scores_NLL, None, one, dropout, number, q_NLH.shape[2])
        torch.bmm(scores_NLL, v_NLH, out=out_NLH)
    return places.tokens_first(out, qkv_T3NH.new_empty(qkv_T3NH.shape[0], *q.shape[1:]))


@torch.library.custom_op("dilbert::attention_rows_backward", mutates_args=(), device_types="cpu")
def _backward(of_out_TNH: Tensor, qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float, seed: Tensor) -> Tensor:
    places = _Places.of(cu_seqlens, BLOCK[qkv_T3NH.dtype])
    q, k, v, of_out = (places.heads_first(x_TNH) for x_TNH in (*qkv_T3NH.unbind(1), of_out_TNH))
    of_q, of_k, of_v = (torch.empty_like(q) for _ in range(3))
    number = int(seed)
    for one, sequence in places.sequences(q, k, v, of_out, of_q, of_k, of_v):
        q_NLH, k_NLH, v_NLH, of_out_NLH, of_q_NLH, of_k_NLH, of_v_NLH = sequence
        weights_NLL = torch.bmm(q_NLH, k_NLH.transpose(1, 2))
        of_scores_NLL = torch.bmm(of_out_NLH, v_NLH.transpose(1, 2))
        _rows(weights_NLL, of_scores_NLL, one, dropout, number, q_NLH.shape[2])
        torch.bmm(weights_NLL.transpose(1, 2), of_out_NLH, out=of_v_NLH)
        torch.bmm(of_scores_NLL, k_NLH, out=of_q_NLH)
        torch.bmm(of_scores_NLL.transpose(1, 2), q_NLH, out=of_k_NLH)
    of_qkv_T3NH = torch.empty_like(qkv_T3NH, memory_format=torch.contiguous_format)
    for part, gradient in enumerate((of_q, of_k, of_v)):
        places.tokens_first(gradient, of_qkv_T3NH[:, part])
    return of_qkv_T3NH


@_forward.register_fake
def _(qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float, seed: Tensor) -> Tensor:
    return qkv_T3NH.new_empty(qkv_T3NH.shape[0], *qkv_T3NH.shape[2:])


@_backward.register_fake
def _(of_out_TNH: Tensor, qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float, seed: Tensor) -> Tensor:
    return qkv_T3NH.new_empty(qkv_T3NH.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv_T3NH, cu_seqlens, ctx.dropout, seed = inputs
    ctx.save_for_backward(qkv_T3NH, cu_seqlens, seed)


def _gradient(ctx: Any, of_out_TNH: Tensor) -> tuple[Tensor | None, ...]:
    qkv_T3NH, cu_seqlens, seed = ctx.saved_tensors
    return _backward(of_out_TNH, qkv_T3NH, cu_seqlens, ctx.dropout, seed), None, None, None


_forward.register_autograd(_gradient, setup_context=_save)


@dataclass(frozen=True)
class _Sequence:
    """Its first token's number, and its tokens."""

    start: int
    length: int


@dataclass(frozen=True)
class _Places:
    """Where sequences begin and end: int32 [sequences + 1] each.

    Attributes:
        ends: cumulative lengths.
        filled: the same with filler.
    """

    ends: Tensor
    filled: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, block: int) -> "_Places":
        assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
        lengths = (cu_seqlens.diff() + (block - 1)) // block * block
        return cls(cu_seqlens, F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)))

    def sequences(self, *packed: Tensor) -> Iterator[tuple[_Sequence, list[Tensor]]]:
        """Each sequence, and its NLH of each tensor, contiguous."""
        _, N, H = packed[0].shape
        borders = zip(itertools.pairwise(self.ends.tolist()), itertools.pairwise(self.filled.tolist()), strict=True)
        for (start, end), (first, last) in borders:
            if end > start:
                yield _Sequence(start, end - start), [x[first:last].view(N, last - first, H) for x in packed]

    def heads_first(self, x_TNH: Tensor) -> Tensor:
        """The same numbers, those of each sequence in the order NLH, filler 0: shape FNH."""
        if x_TNH.stride()[1:] != (x_TNH.shape[2], 1):
            x_TNH = x_TNH.contiguous()
        out = x_TNH.new_empty(int(self.filled[-1]), *x_TNH.shape[1:])
        self._lay_out(x_TNH, out, inverse=False)
        return out

    def tokens_first(self, x: Tensor, out_TNH: Tensor) -> Tensor:
        """The inverse of `heads_first`, into memory that is there."""
        self._lay_out(out_TNH, x, inverse=True)
        return out_TNH

    def _lay_out(self, tokens_TNH: Tensor, heads: Tensor, inverse: bool) -> None:
        _, N, H = heads.shape
        size = heads.element_size()
        layout = _Layout(
            tokens_TNH.data_ptr(), heads.data_ptr(), self.ends.data_ptr(), self.filled.data_ptr(),
            self.ends.numel() - 1, N, tokens_TNH.stride(0) * size, H * size, inverse, torch.get_num_threads(),
        )  # fmt: skip
        _library().attention_layout(ctypes.byref(layout))


class _Scores(ctypes.Structure):
    """As in attention_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "gradient")),
        *((name, ctypes.c_int64) for name in ("heads", "length", "columns", "first")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("scale", "dropout")),
        *((name, ctypes.c_int32) for name in ("bf16", "threads")),
    )


def _rows(scores_NLL: Tensor, gradient_NLL: Tensor | None, one: _Sequence, dropout: float, seed: int, H: int) -> None:
    """Scores become weights after dropout; the gradient of those becomes that of the scores."""
    N, L, _ = scores_NLL.shape
    rows = _Scores(
        scores_NLL.data_ptr(), gradient_NLL.data_ptr() if gradient_NLL is not None else None, N, one.length, L,
        one.start * N, seed, H**-0.5, dropout, scores_NLL.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    _library().attention_rows(ctypes.byref(rows))


class _Layout(ctypes.Structure):
    """As in attention_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "heads", "ends", "places")),
        *((name, ctypes.c_int64) for name in ("sequences", "count", "stride", "width")),
        *((name, ctypes.c_int32) for name in ("inverse", "threads")),
    )


def _library() -> ctypes.CDLL:
    library = kernels.library("attention_rows")
    assert library
    return library
