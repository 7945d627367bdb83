"""What distillation costs, as formulas: FLOPs, bytes held, bytes sent, bytes on disk. Pure functions of plain numbers.

They count what this code does: packed sequences, so no padding; a teacher that only runs forward; the vocabulary's head
on every row whose loss is taken. `tests/test_plan.py` compares them with real runs.

d hidden size, f intermediate size, V vocabulary, N layers, T tokens, L length of a sequence. The product of an a x b
matrix and a b x c one is 2abc FLOPs; what is not a matrix product is not counted (about 1 %).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from launch import ds_config
from launch.errors import ConfigError

ALIGNMENT = 64  # columns of the logits, see model/kernels/distillation.py
ADAM = 12  # bytes a parameter: weight and two moments in fp32


class Shape(Protocol):
    """What costs depend on; `model.config.BertConfig` is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...


@dataclass(frozen=True)
class Tokens:
    """Sums over sequences, over any number of them.

    Attributes:
        count: of L, real tokens.
        squares: of L^2, pairs of tokens that attend to each other.
        rows: tokens whose logits are taken: all of them, or the masked ones (`--restrict-ce-to-mask`).
    """

    count: float
    squares: float
    rows: float

    @classmethod
    def of(cls, lengths: Iterable[int], rows: float | None = None) -> Self:
        """Of sequences by their lengths (`cu_seqlens.diff().tolist()`); rows: None: every token."""
        lengths = list(lengths)
        count = sum(lengths)
        return cls(count, sum(length * length for length in lengths), count if rows is None else rows)

    @classmethod
    def within(cls, ends: np.ndarray, tokens: int, rows: float | None = None) -> Self:
        """Of a micro-batch.

        Args:
            ends: cumulative lengths, 0 first; sequences beyond `tokens` are filler.
        """
        lengths = np.diff(ends[ends <= tokens]).astype(np.float64)
        return cls(tokens, float(lengths @ lengths), tokens if rows is None else rows)

    def __mul__(self, factor: float) -> "Tokens":
        return Tokens(self.count * factor, self.squares * factor, self.rows * factor)


# --- parameters ---


def embedding_parameters(shape: Shape) -> int:
    """Words, positions and token types, and their norm: (V + positions + types) d + 2d."""
    tables = shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size
    return tables * shape.hidden_size + 2 * shape.hidden_size


def parameters(shape: Shape) -> int:
    """Of the masked-language model: embeddings + N (4d^2 + 2df + 9d + f) + head d^2 + 3d + V (its matrix is tied)."""
    d, f = shape.hidden_size, shape.intermediate_size
    layer = 4 * d * d + 2 * d * f + 9 * d + f
    return embedding_parameters(shape) + shape.num_hidden_layers * layer + d * d + 3 * d + shape.vocab_size


# --- FLOPs ---


def encoder_flops(shape: Shape, tokens: Tokens) -> float:
    """Forward pass of all layers: N (8d^2 + 4df) T for the matrices, and 4d N sum(L^2) for attention."""
    d, f, N = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    return N * (8 * d * d + 4 * d * f) * tokens.count + N * 4 * d * tokens.squares


def head_flops(shape: Shape, tokens: Tokens) -> float:
    """Forward pass of the masked-language-model head: (2d^2 + 2dV) a row."""
    d = shape.hidden_size
    return (2 * d * d + 2 * d * shape.vocab_size) * tokens.rows


def forward_flops(shape: Shape, tokens: Tokens) -> float:
    """Encoder and head."""
    return encoder_flops(shape, tokens) + head_flops(shape, tokens)


def step_flops(teacher: Shape | None, student: Shape, tokens: Tokens) -> float:
    """Teacher forward, student forward and backward: F_teacher + 3 F_student. Nothing that is computed again counts
    (Chowdhery et al., 2022, appendix B), so divided by seconds and peak this is the MFU."""
    return (forward_flops(teacher, tokens) if teacher else 0.0) + 3 * forward_flops(student, tokens)


def task_flops(teacher: Shape | None, student: Shape, tokens: Tokens) -> float:
    """Fine-tuning, as `step_flops`; the head of a task is next to nothing."""
    return (encoder_flops(teacher, tokens) if teacher else 0.0) + 3 * encoder_flops(student, tokens)


def backward_flops(student: Shape, tokens: Tokens) -> float:
    """What runs after the loss is known: 2 (encoder + transform); the decoder's gradient comes with the loss."""
    return 2 * (encoder_flops(student, tokens) + 2 * student.hidden_size**2 * tokens.rows)


# --- what DeepSpeed holds and sends ---


@dataclass(frozen=True)
class Engine:
    """What the DeepSpeed JSON says of bytes.

    Attributes:
        stage: of ZeRO, 0 to 2.
        element: bytes of a weight, an activation, a gradient.
        accumulated: bytes of a gradient that is summed over micro-batches.
        wire: bytes of a gradient on its way between ranks.
        bucket: gradients that are reduced at once.
        overlap: while the backward pass runs.
        flat: one buffer of gradients for the whole model, reduced at the end (DeepSpeed's BF16_Optimizer).
        offload: optimizer on the host.
    """

    stage: int = 1
    element: int = 2
    accumulated: int = 4
    wire: int = 2
    bucket: int = 500_000_000
    overlap: bool = False
    flat: bool = False
    offload: bool = False

    @property
    def adam(self) -> int:
        """Bytes a parameter of the optimizer, all ranks together; at stage 0, where the fp32 weights are the model's
        own, of each rank."""
        return ADAM if self.stage else ADAM - 4

    def rounds(self, accumulation: int) -> int:
        """How often gradients are reduced in a step of so many micro-batches."""
        return accumulation if self.stage == 2 else 1


def engine(config: ds_config.Json) -> Engine:
    """What DeepSpeed 0.19 makes of its JSON: gradients travel in `communication_data_type` or, where that is not said,
    as the weights are; bf16 with fp32 sums at stage 1 is its BF16_Optimizer, which overlaps nothing.

    Raises:
        ConfigError: a size of buckets that is none.
    """
    precision, zero = ds_config.precision(config), config.get("zero_optimization", {})
    element = _bytes(precision)
    accumulated = _bytes(config.get("data_types", {}).get("grad_accum_dtype") or precision)
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    stage, bucket = ds_config.stage(config), zero.get("reduce_bucket_size", 5e8)
    if not isinstance(bucket, int | float) or bucket < 1:
        raise ConfigError(f"key 'zero_optimization.reduce_bucket_size': {bucket!r} must be a positive number")
    return Engine(
        stage=stage,
        element=element,
        accumulated=accumulated,
        wire=_bytes(config.get("communication_data_type") or precision),
        bucket=int(bucket),
        overlap=bool(zero.get("overlap_comm")),
        flat=precision == "bf16" and stage == 1 and accumulated == 4 and not offload,
        offload=offload,
    )


def _bytes(dtype: object) -> int:
    """Of a type by DeepSpeed's names."""
    return 2 if "16" in str(dtype) or dtype == "half" else 4


def optimizer_bytes(count: int, engine: Engine, ranks: int) -> float:
    """Of one rank: fp32 weights and AdamW's two moments, 12 / ranks a parameter (Rajbhandari et al., 2020, section 5);
    at stage 0 the moments of all, 8."""
    if engine.offload:
        return 0.0
    return engine.adam * count / (ranks if engine.stage else 1)


def gradient_bytes(count: int, engine: Engine, ranks: int) -> dict[str, float]:
    """Of one rank: gradients as they are computed; their sums, whole at stage 1 and 1 / ranks at stage 2; and what
    DeepSpeed reduces from: buckets of a fixed size, two of them with `overlap_comm`, or a copy in the wire's type."""
    separate = engine.accumulated != engine.element
    sums = count * engine.accumulated * (1 / ranks if engine.stage == 2 else separate)
    buckets: float = engine.bucket * engine.element * (2 if engine.overlap else 1)
    if engine.flat or not engine.stage:
        buckets = count * engine.wire * (engine.wire != engine.accumulated)
    return {"gradients": count * engine.element, "their sums": sums, "reduction buffers": buckets}


def activation_bytes(shape: Shape, engine: Engine, tokens: float, masks: int = 1) -> float:
    """Kept for the backward pass of a micro-batch, where attention keeps no scores and no kernel joins operations:
    N (9d + 2f) + 8d elements a token, N masks d bytes of dropout and, in 16 bit, 8d bytes for the cosine in fp32
    (counted as by Korthikanti et al., 2022, section 4.1).

    Args:
        tokens: of the micro-batch.
        masks: dropouts in a layer.
    """
    d, f, N = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    cosine = 8 * d * (engine.element < 4)
    return tokens * (engine.element * (N * (9 * d + 2 * f) + 8 * d) + N * masks * d + cosine)


def transient_bytes(shape: Shape, engine: Engine, tokens: float) -> float:
    """A layer of the teacher at work: 2d + 2f elements a token; nothing of it is kept."""
    return tokens * engine.element * 2 * (shape.hidden_size + shape.intermediate_size)


def logits_bytes(shape: Shape, engine: Engine, rows: float, models: int = 2) -> float:
    """Of a chunk of rows, by a kernel that writes the gradient over the student's logits. P is V filled up to a
    multiple of 64. Logits of the models, their embeddings of P words, a chunk's gradient of one: models (rows P + P d)
    + P d elements; and the sum of such gradients in fp32: 4 P d bytes."""
    P, d = shape.vocab_size + -shape.vocab_size % ALIGNMENT, shape.hidden_size
    return engine.element * (models * (rows * P + P * d) + P * d) + 4 * P * d


def memory(
    teacher: Shape | None, student: Shape, engine: Engine, ranks: int, tokens: float, chunk: int
) -> dict[str, float]:
    """Bytes of one GPU by part. Their sum is an upper bound: not all are alive at once.

    Args:
        tokens: of a micro-batch.
        chunk: rows of logits at once.
    """
    count, models = parameters(student), 2 if teacher else 1
    return {
        "teacher": parameters(teacher) * engine.element if teacher else 0.0,
        "student": count * engine.element,
        **gradient_bytes(count, engine, ranks),
        "optimizer": optimizer_bytes(count, engine, ranks),
        "activations": activation_bytes(student, engine, tokens),
        "teacher at work": transient_bytes(teacher, engine, tokens) if teacher else 0.0,
        "logits": logits_bytes(student, engine, min(chunk, tokens), models),
    }


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank sends in a step, in a ring of all ranks.

    Attributes:
        gradients: all-reduced.
        weights: gathered after the update.
    """

    gradients: float
    weights: float


def traffic(count: int, engine: Engine, ranks: int, accumulation: int) -> Traffic:
    """A rank in a ring of n sends (n - 1) / n of a message to scatter or to gather it, twice that to all-reduce it
    (Patarasuk and Yuan, 2009). DeepSpeed 0.19 all-reduces gradients at every stage: in each step at stages 0 and 1, in
    each micro-batch at stage 2; and gathers the weights at stages 1 and 2."""
    ring = (ranks - 1) / ranks
    weights = count * engine.element if engine.stage else 0
    return Traffic(2 * ring * engine.rounds(accumulation) * count * engine.wire, ring * weights)


def hideable(student: Shape, engine: Engine) -> float:
    """Share of the gradients that can be reduced while the backward pass runs: full buckets, before the embeddings'
    gradient, which is complete at the very end (the word embedding is the decoder, too)."""
    if not engine.overlap or engine.flat or not engine.stage:
        return 0.0
    count = parameters(student)
    early = count - embedding_parameters(student)
    return early // engine.bucket * engine.bucket / count


# --- disk ---


def checkpoint_bytes(count: int, engine: Engine) -> float:
    """A checkpoint, all ranks' files together: weights as they are trained, and the optimizer."""
    return count * (engine.element + engine.adam)


def dataset_bytes(tokens: float, sequences: float, item: int) -> float:
    """Shards: `item` bytes a token, 12 in the index for each sequence, 8 for each document (a line; here one for each
    sequence)."""
    return item * tokens + 20 * sequences
