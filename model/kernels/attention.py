"""Self-attention over packed sequences: attention never crosses a boundary.

T tokens of all sequences, S sequences, L the longest of them, N heads, H width of a head.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from model import kernels
from model.kernels import attention_rows


def packed_attention(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(H)) v within each sequence (Vaswani et al., 2017, eq. 1).

    Args:
        qkv_T3NH: queries, keys and values, sequences one after another.
        cu_seqlens: int32 [S + 1], cumulative lengths, 0 first. A sequence may be empty.
        max_seqlen: at least the longest sequence, known to the host so that nothing waits for the device.
        dropout: probability of dropping an attention weight; 0 in evaluation.

    Returns:
        TNH, the dtype of q.
    """
    return FORMS[form(qkv_T3NH.device, qkv_T3NH.dtype, dropout > 0)](qkv_T3NH, cu_seqlens, max_seqlen, dropout)


@torch.compiler.assume_constant_result
def form(device: torch.device, dtype: torch.dtype, dropout: bool) -> str:
    """The fastest of FORMS for this device and dtype that does dropout, if that is asked for."""
    return "reference" if kernels.selected() == "reference" else _fastest(device, dtype, dropout)


@functools.cache
def _fastest(device: torch.device, dtype: torch.dtype, dropout: bool) -> str:
    if device.type == "cpu":
        return "rows" if dtype in attention_rows.DTYPES and attention_rows.available() else "per sequence"
    flash = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and dtype in _16_BIT
    return ("flash" if dropout else "varlen") if flash else "padded"


def reference(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """The formula as it stands, over all pairs of tokens, those of different sequences masked out."""
    q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(1)
    T, _, H = q_TNH.shape
    sequence_T = torch.bucketize(torch.arange(T, device=q_TNH.device), cu_seqlens, right=True)
    scores_NTT = torch.einsum("tnh,snh->nts", q_TNH, k_TNH) * H**-0.5
    scores_NTT = scores_NTT.masked_fill(sequence_T[:, None] != sequence_T[None, :], float("-inf"))
    weights_NTT = F.dropout(scores_NTT.softmax(-1), dropout)
    return torch.einsum("nts,snh->tnh", weights_NTT, v_TNH)


def rows(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """torch's matrix products with row kernels in C++ between them: for CPUs, fp32 and bf16."""
    return attention_rows.attention(qkv_T3NH, cu_seqlens, dropout)


def varlen(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """torch's FlashAttention for packed sequences: 16 bit, compute capability 8.0 and later, no dropout."""
    assert not dropout
    q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(1)
    out_TNH = varlen_attn(q_TNH, k_TNH, v_TNH, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    assert isinstance(out_TNH, Tensor)  # a pair, where more is asked for
    return out_TNH


def flash(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """What is below `varlen`, which has no dropout."""
    return torch.ops.aten._flash_attention_forward(
        *qkv_T3NH.unbind(1), cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout, False, False
    )[0]


def per_sequence(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """One call of torch's attention for each sequence: no padding. Reads the boundaries on the host: for CPUs."""
    parts = []
    for qkv_L3NH in qkv_T3NH.split(cu_seqlens.diff().tolist()):
        q_1NLH, k_1NLH, v_1NLH = qkv_L3NH.permute(1, 2, 0, 3).unsqueeze(1)
        out_1NLH = F.scaled_dot_product_attention(q_1NLH, k_1NLH, v_1NLH, dropout_p=dropout)
        parts.append(out_1NLH.squeeze(0).transpose(0, 1))
    return torch.cat(parts)


def padded(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0) -> Tensor:
    """One call of torch's attention over sequences padded to the longest, without a host-device synchronisation."""
    q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(1)
    T, N, H = q_TNH.shape
    S, L = cu_seqlens.numel() - 1, max_seqlen
    slot_T = slots(cu_seqlens, L, T)

    def pad(x_TNH: Tensor) -> Tensor:
        x_SLNH = x_TNH.new_zeros(S * L, N, H).index_copy(0, slot_T, x_TNH).view(S, L, N, H)
        return x_SLNH.transpose(1, 2)

    mask_S11L = (torch.arange(L, device=q_TNH.device) < cu_seqlens.diff()[:, None])[:, None, None, :]
    out_SNLH = F.scaled_dot_product_attention(
        pad(q_TNH), pad(k_TNH), pad(v_TNH), attn_mask=mask_S11L, dropout_p=dropout
    )
    return out_SNLH.transpose(1, 2).reshape(S * L, N, H).index_select(0, slot_T)


def slots(cu_seqlens: Tensor, width: int, tokens: int) -> Tensor:
    """Each token's place in sequences padded to `width`, one after another: [tokens]. Nothing waits for the device."""
    sequences = torch.arange(cu_seqlens.numel() - 1, device=cu_seqlens.device)
    sequence_T = torch.repeat_interleave(sequences, cu_seqlens.diff(), output_size=tokens)
    return sequence_T * width + torch.arange(tokens, device=cu_seqlens.device) - cu_seqlens[sequence_T]


_16_BIT = (torch.bfloat16, torch.float16)
FORMS: dict[str, Callable[[Tensor, Tensor, int, float], Tensor]] = {
    "reference": reference, "rows": rows, "per sequence": per_sequence, "varlen": varlen, "flash": flash,
    "padded": padded,
}  # fmt: skip
