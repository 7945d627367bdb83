"""The one encoder for teacher and student, on packed sequences, and its masked-language-model head.

BERT as Devlin et al. (2019) describe it, with the layer norm after each residual sum. DilBERT is the same network with
fewer layers and without token types.

T tokens of all sequences of a micro-batch, D hidden size, N heads, H width of a head, V vocabulary; B sequences padded
to length L.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import BertConfig
from model.kernels.attention import packed_attention
from model.kernels.distillation import Head
from model.kernels.residual import residual_norm


def activation(name: str, x: Tensor) -> Tensor:
    """`gelu` (exact, by erf), `gelu_new` (by tanh) or `relu`."""
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_new" else "none")


class Embeddings(nn.Module):
    """Sum of word, position and (for BERT) token-type embeddings, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids_T: Tensor, positions_T: Tensor, token_types_T: Tensor | None = None) -> Tensor:
        """Embedding of each token: TD. Token types, where the model has them, are 0 unless given."""
        x_TD = self.word(input_ids_T)
        if self.token_type is not None:
            if token_types_T is None:
                x_TD = x_TD + self.token_type.weight[0]
            else:
                x_TD = x_TD + self.token_type(token_types_T)
        x_TD = x_TD + self.position(positions_T)
        return self.dropout(self.norm(x_TD))


class Layer(nn.Module):
    """Self-attention and feed-forward network, each with a residual sum and a layer norm after it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        self.hidden_act = config.hidden_act
        self.qkv = nn.Linear(D, 3 * D)
        self.attention_output = nn.Linear(D, D)
        self.attention_output_dropout = config.attention_output_dropout
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(D, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, D)
        self.output_dropout = config.hidden_dropout
        self.output_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)

    def forward(self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """TD -> TD."""
        T, D = x_TD.shape
        qkv_T3NH = self.qkv(x_TD).view(T, 3, self.heads, D // self.heads)
        a_TD = packed_attention(qkv_T3NH, cu_seqlens, max_seqlen, self._rate(self.attention_dropout)).reshape(T, D)
        x_TD = self._end(self.attention_output(a_TD), x_TD, self.attention_norm, self.attention_output_dropout)
        f_TD = self.output(activation(self.hidden_act, self.intermediate(x_TD)))
        return self._end(f_TD, x_TD, self.output_norm, self.output_dropout)

    def _end(self, y_TD: Tensor, x_TD: Tensor, norm: nn.LayerNorm, dropout: float) -> Tensor:
        return residual_norm(y_TD, x_TD, norm.weight, norm.bias, norm.eps, self._rate(dropout))

    def _rate(self, dropout: float) -> float:
        return dropout if self.training else 0.0


class Encoder(nn.Module):
    """Embeddings and layers: token ids -> hidden states."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        initialise(self, config)

    def set_attention_dropout(self, probability: float) -> None:
        """Of all layers, and in the config."""
        self.config = dataclasses.replace(self.config, attention_dropout=probability)
        for layer in self.layers:
            setattr(layer, "attention_dropout", probability)  # noqa: B010  (mypy takes the attribute for a module)

    def encode(
        self,
        input_ids_T: Tensor,
        positions_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        token_types_T: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states of packed sequences.

        Args:
            input_ids_T: integers.
            positions_T: integers, restarting at 0 in each sequence.
            cu_seqlens: int32 [sequences + 1], cumulative lengths, 0 first.
            max_seqlen: the longest sequence.
            token_types_T: integers; None: all 0. Ignored by a model without token types.

        Returns:
            TD, in the dtype of the weights.
        """
        x_TD = self.embeddings(input_ids_T, positions_T, token_types_T)
        for layer in self.layers:
            x_TD = layer(x_TD, cu_seqlens, max_seqlen)
        return x_TD

    def encode_padded(self, input_ids_BL: Tensor, mask_BL: Tensor | None, token_types_BL: Tensor | None) -> Tensor:
        """Last hidden states of padded sequences: BLD, 0 where the mask is 0. A token's position is its column."""
        B, L = input_ids_BL.shape
        if L > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise ValueError(f"sequences of {L} tokens; this model has {limit} positions (truncate when tokenizing)")
        real_BL = torch.ones_like(input_ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL.bool()
        slots_T = real_BL.flatten().nonzero().squeeze(1)
        lengths = real_BL.sum(1)
        lengths = lengths[lengths > 0]  # a row of nothing but padding is no sequence
        hidden_BLD = torch.zeros(B * L, self.config.hidden_size, dtype=self.dtype, device=input_ids_BL.device)
        if slots_T.numel():
            hidden_TD = self.encode(
                input_ids_BL.flatten()[slots_T],
                slots_T % L,
                F.pad(lengths.cumsum(0), (1, 0)).int(),
                int(lengths.max()),
                None if token_types_BL is None else token_types_BL.flatten()[slots_T],
            )
            hidden_BLD = hidden_BLD.index_copy(0, slots_T, hidden_TD)
        return hidden_BLD.view(B, L, -1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embeddings.word.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embeddings.word.weight.dtype


class MaskedLMHead(nn.Module):
    """Transform and bias; the decoder's matrix is the word embedding's, which stays where it is."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.hidden_act = config.hidden_act
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """What the decoder is applied to: TD."""
        return self.norm(activation(self.hidden_act, self.transform(hidden_TD)))


class MaskedLM(Encoder):
    """The encoder with its masked-language-model head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.head = MaskedLMHead(config)
        initialise(self.head, config)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Scores over the vocabulary: TV."""
        return F.linear(self.head(hidden_TD), self.embeddings.word.weight, self.head.bias)

    def unprojected(self, hidden_TD: Tensor) -> Head:
        """What logits are made of, for losses that never hold all of them."""
        return Head(self.head(hidden_TD), self.embeddings.word.weight, self.head.bias)


@torch.no_grad()
def initialise(module: nn.Module, config: BertConfig) -> None:
    """Hugging Face's initialisation: N(0, initializer_range) for matrices, 0 for biases and the padding row."""
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            child.weight.normal_(0.0, config.initializer_range)
        if isinstance(child, nn.Linear):
            child.bias.zero_()
        if isinstance(child, nn.Embedding) and child.padding_idx is not None:
            child.weight[child.padding_idx].zero_()
    if isinstance(module, Encoder) and config.sinusoidal_positions:
        module.embeddings.position.weight.copy_(sinusoids(config.max_position_embeddings, config.hidden_size))


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines in the even columns, cosines in the odd ones (Vaswani et al., 2017, section 3.5): [positions, width]."""
    # In fp32, an angle of some hundreds is already wrong in the fifth digit.
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    angle = torch.arange(positions)[:, None] * frequency
    table = torch.empty(positions, width)
    table[:, 0::2] = angle.sin()
    table[:, 1::2] = angle[:, : width // 2].cos()
    return table
