"""The end of a block: layer norm of the residual sum, with dropout on what is added.

R rows, D columns.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels

_DTYPES = (torch.float32, torch.bfloat16)


def residual_norm(
    x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float, dropout: float = 0.0
) -> Tensor:
    """layer_norm(residual + dropout(x)) (Ba et al., 2016, eq. 4): RD, in the dtype of x.

    Args:
        dropout: probability of dropping an element of x; 0 in evaluation.
    """
    tensors = (x_RD, residual_RD, weight_D, bias_D)
    if _fused(tensors):
        return _ResidualNorm.apply(*tensors, epsilon, dropout)
    return reference(*tensors, epsilon, dropout)


def reference(
    x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float, dropout: float = 0.0
) -> Tensor:
    """The formula as it stands. On GPUs, torch.compile makes one kernel of it."""
    return F.layer_norm(residual_RD + F.dropout(x_RD, dropout), weight_D.shape, weight_D, bias_D, epsilon)


def form(device: torch.device, dtype: torch.dtype) -> str:
    """What computes it: "C++" or "torch"."""
    native = device.type == "cpu" and dtype in _DTYPES and kernels.selected() == "auto"
    return "C++" if native and kernels.library("residual_rows") else "torch"


def _fused(tensors: tuple[Tensor, ...]) -> bool:
    one_dtype = len({tensor.dtype for tensor in tensors}) == 1
    return one_dtype and not torch.compiler.is_compiling() and form(tensors[0].device, tensors[0].dtype) == "C++"


class _ResidualNorm(torch.autograd.Function):
    """In C++: residual_rows.cpp. What dropout drops is computed anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float, dropout: float
    ) -> Tensor:
        x_RD, residual_RD = x_RD.contiguous(), residual_RD.contiguous()
        needed = any(ctx.needs_input_grad)
        sum_RD = torch.empty_like(x_RD) if needed else None
        y_RD = torch.empty_like(x_RD)
        mean_R, rstd_R = (x_RD.new_empty(x_RD.shape[0], dtype=torch.float32) for _ in range(2))
        ctx.numbers = {"seed": int(torch.randint(2**62, ())) if dropout else 0, "dropout": dropout, "epsilon": epsilon}
        _call("residual_forward", x=x_RD, residual=residual_RD, sum=sum_RD, y=y_RD, weight=weight_D, bias=bias_D,
              mean=mean_R, rstd=rstd_R, **ctx.numbers)  # fmt: skip
        ctx.save_for_backward(sum_RD, weight_D, mean_R, rstd_R)
        return y_RD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sum_RD, weight_D, mean_R, rstd_R = ctx.saved_tensors
        gradient_RD = gradients[0].contiguous()
        of_residual_RD = torch.empty_like(sum_RD)
        of_x_RD = torch.empty_like(sum_RD) if ctx.numbers["dropout"] else None
        of_weight_D, of_bias_D = torch.zeros(2, weight_D.numel(), dtype=torch.float32)
        _call("residual_backward", sum=sum_RD, gradient=gradient_RD, of_x=of_x_RD, of_residual=of_residual_RD,
              weight=weight_D, mean=mean_R, rstd=rstd_R, of_weight=of_weight_D, of_bias=of_bias_D,
              **ctx.numbers)  # fmt: skip
        of_x_RD = of_residual_RD if of_x_RD is None else of_x_RD
        return of_x_RD, of_residual_RD, of_weight_D.to(weight_D.dtype), of_bias_D.to(weight_D.dtype), None, None


class _Block(ctypes.Structure):
    """As in residual_rows.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "x", "residual", "sum", "y", "gradient", "of_x", "of_residual", "weight", "bias", "mean", "rstd",
            "of_weight", "of_bias",
        )),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("dropout", "epsilon")),
        *((name, ctypes.c_int32) for name in ("bf16", "threads")),
    )  # fmt: skip


def _call(function: str, seed: int, dropout: float, epsilon: float, **tensors: Tensor | None) -> None:
    library, like = kernels.library("residual_rows"), tensors.get("x", tensors["sum"])
    assert library and like is not None
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}
    block = _Block(
        rows=like.shape[0], columns=like.shape[1], seed=seed, dropout=dropout, epsilon=epsilon,
        bf16=like.dtype == torch.bfloat16, threads=torch.get_num_threads(), **pointers,
    )  # fmt: skip
    getattr(library, function)(ctypes.byref(block))
