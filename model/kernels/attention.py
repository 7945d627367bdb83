"""Self-attention over packed sequences: attention never crosses a boundary.

T tokens of all sequences, S sequences, L the longest of them, N heads, H width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels


def packed_attention(
    q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v within each sequence (Vaswani et al., 2017, eq. 1).

    Args:
        q_TNH, k_TNH, v_TNH: sequences one after another, in the same floating dtype.
        cu_seqlens: int32 [S + 1], cumulative lengths, 0 first.
        max_seqlen: the longest sequence, known to the host so that nothing waits for the device.
        dropout: probability of dropping an attention weight; 0 in evaluation.

    Returns:
        TNH, the dtype of q.
    """
    if kernels.selected() == "reference":
        return reference(q_TNH, k_TNH, v_TNH, cu_seqlens, dropout)
    if q_TNH.device.type == "cpu":
        return per_sequence(q_TNH, k_TNH, v_TNH, cu_seqlens, dropout)
    return padded(q_TNH, k_TNH, v_TNH, cu_seqlens, max_seqlen, dropout)


def reference(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, cu_seqlens: Tensor, dropout: float = 0.0) -> Tensor:
    """The formula as it stands, over all pairs of tokens, those of different sequences masked out."""
    T, _, H = q_TNH.shape
    sequence_T = torch.bucketize(torch.arange(T, device=q_TNH.device), cu_seqlens, right=True)
    scores_NTT = torch.einsum("tnh,snh->nts", q_TNH, k_TNH) * H**-0.5
    scores_NTT = scores_NTT.masked_fill(sequence_T[:, None] != sequence_T[None, :], float("-inf"))
    weights_NTT = F.dropout(scores_NTT.softmax(-1), dropout)
    return torch.einsum("nts,snh->tnh", weights_NTT, v_TNH)


def per_sequence(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, cu_seqlens: Tensor, dropout: float = 0.0) -> Tensor:
    """One call of torch's attention for each sequence: no padding. Reads the boundaries on the host: for CPUs."""
    lengths = cu_seqlens.diff().tolist()
    parts = []
    for q, k, v in zip(q_TNH.split(lengths), k_TNH.split(lengths), v_TNH.split(lengths), strict=True):
        q_1NLH, k_1NLH, v_1NLH = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out_1NLH = F.scaled_dot_product_attention(q_1NLH, k_1NLH, v_1NLH, dropout_p=dropout)
        parts.append(out_1NLH.squeeze(0).transpose(0, 1))
    return torch.cat(parts)


def padded(
    q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0
) -> Tensor:
    """One call of torch's attention over sequences padded to the longest, without a host-device synchronisation."""
    T, N, H = q_TNH.shape
    S, L = cu_seqlens.numel() - 1, max_seqlen
    lengths_S = cu_seqlens.diff()
    sequence_T = torch.repeat_interleave(torch.arange(S, device=q_TNH.device), lengths_S, output_size=T)
    slot_T = sequence_T * L + torch.arange(T, device=q_TNH.device) - cu_seqlens[sequence_T]

    def pad(x_TNH: Tensor) -> Tensor:
        x_SLNH = x_TNH.new_zeros(S * L, N, H).index_copy(0, slot_T, x_TNH).view(S, L, N, H)
        return x_SLNH.transpose(1, 2)

    mask_S11L = (torch.arange(L, device=q_TNH.device) < lengths_S[:, None])[:, None, None, :]
    out_SNLH = F.scaled_dot_product_attention(
        pad(q_TNH), pad(k_TNH), pad(v_TNH), attn_mask=mask_S11L, dropout_p=dropout
    )
    return out_SNLH.transpose(1, 2).reshape(S * L, N, H).index_select(0, slot_T)
