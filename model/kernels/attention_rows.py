"""Attention over packed sequences on CPUs: torch's batched matrix products, and row kernels in C++ between them.

Faster than torch's fused attention there, above all in bf16 and under dropout, for which that one has only plain
formulas. Scores of one sequence are alive at a time; the backward pass computes them anew, dropout included.

T tokens of all sequences, N heads, H width of a head, L length of a sequence.
"""

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from model import kernels

DTYPES = (torch.float32, torch.bfloat16)


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
    q, k, v = (_heads_first(x_TNH, cu_seqlens) for x_TNH in qkv_T3NH.unbind(1))
    out, number = torch.empty_like(q), int(seed)
    for at, (q_NLH, k_NLH, v_NLH, out_NLH) in _sequences(cu_seqlens, q, k, v, out):
        scores_NLL = torch.bmm(q_NLH, k_NLH.transpose(1, 2))
        _rows(scores_NLL, None, at, dropout, number, q_NLH.shape[2])
        torch.bmm(scores_NLL, v_NLH, out=out_NLH)
    return _tokens_first(out, cu_seqlens, torch.empty_like(out))


@torch.library.custom_op("dilbert::attention_rows_backward", mutates_args=(), device_types="cpu")
def _backward(of_out_TNH: Tensor, qkv_T3NH: Tensor, cu_seqlens: Tensor, dropout: float, seed: Tensor) -> Tensor:
    q, k, v, of_out = (_heads_first(x_TNH, cu_seqlens) for x_TNH in (*qkv_T3NH.unbind(1), of_out_TNH))
    of_q, of_k, of_v = (torch.empty_like(q) for _ in range(3))
    number = int(seed)
    for at, sequence in _sequences(cu_seqlens, q, k, v, of_out, of_q, of_k, of_v):
        q_NLH, k_NLH, v_NLH, of_out_NLH, of_q_NLH, of_k_NLH, of_v_NLH = sequence
        weights_NLL = torch.bmm(q_NLH, k_NLH.transpose(1, 2))
        of_scores_NLL = torch.bmm(of_out_NLH, v_NLH.transpose(1, 2))
        _rows(weights_NLL, of_scores_NLL, at, dropout, number, q_NLH.shape[2])
        torch.bmm(weights_NLL.transpose(1, 2), of_out_NLH, out=of_v_NLH)
        torch.bmm(of_scores_NLL, k_NLH, out=of_q_NLH)
        torch.bmm(of_scores_NLL.transpose(1, 2), q_NLH, out=of_k_NLH)
    of_qkv_T3NH = q.new_empty(q.shape[0], 3, *q.shape[1:])
    for part, gradient in enumerate((of_q, of_k, of_v)):
        _tokens_first(gradient, cu_seqlens, of_qkv_T3NH[:, part])
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


def _sequences(cu_seqlens: Tensor, *packed: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """For each sequence, its first token's number and its NLH of each tensor, contiguous."""
    _, N, H = packed[0].shape
    ends = cu_seqlens.tolist()
    for start, end in itertools.pairwise(ends):
        if end > start:
            yield start, [x[start:end].view(N, end - start, H) for x in packed]


class _Scores(ctypes.Structure):
    """As in attention_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "first")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("scale", "dropout")),
        *((name, ctypes.c_int32) for name in ("bf16", "threads")),
    )


def _rows(scores_NLL: Tensor, gradient_NLL: Tensor | None, at: int, dropout: float, seed: int, H: int) -> None:
    """Scores become weights after dropout; the gradient of those becomes that of the scores."""
    N, L, _ = scores_NLL.shape
    rows = _Scores(
        scores_NLL.data_ptr(), gradient_NLL.data_ptr() if gradient_NLL is not None else None, N * L, L, at * N, seed,
        H**-0.5, dropout, scores_NLL.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    _library().attention_rows(ctypes.byref(rows))


class _Layout(ctypes.Structure):
    """As in attention_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "heads", "ends")),
        *((name, ctypes.c_int64) for name in ("sequences", "count", "stride", "width")),
        *((name, ctypes.c_int32) for name in ("inverse", "threads")),
    )


def _heads_first(x_TNH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The same numbers, those of each sequence in the order NLH: shape TNH."""
    if x_TNH.stride()[1:] != (x_TNH.shape[2], 1):
        x_TNH = x_TNH.contiguous()
    out = torch.empty_like(x_TNH, memory_format=torch.contiguous_format)
    _lay_out(x_TNH, out, cu_seqlens, inverse=False)
    return out


def _tokens_first(x: Tensor, cu_seqlens: Tensor, out_TNH: Tensor) -> Tensor:
    """The inverse of `_heads_first`, into memory that is there."""
    _lay_out(out_TNH, x, cu_seqlens, inverse=True)
    return out_TNH


def _lay_out(tokens_TNH: Tensor, heads: Tensor, cu_seqlens: Tensor, inverse: bool) -> None:
    assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
    _, N, H = heads.shape
    size = heads.element_size()
    layout = _Layout(
        tokens_TNH.data_ptr(), heads.data_ptr(), cu_seqlens.data_ptr(), cu_seqlens.numel() - 1, N,
        tokens_TNH.stride(0) * size, H * size, inverse, torch.get_num_threads(),
    )  # fmt: skip
    _library().attention_layout(ctypes.byref(layout))


def _library() -> ctypes.CDLL:
    library = kernels.library("attention_rows")
    assert library
    return library
