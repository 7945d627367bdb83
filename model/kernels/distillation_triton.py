"""The row kernel of the vocabulary losses on CUDA, in Triton. What it computes is said by `eager_rows`.

A program has one row and goes over it twice: for the statistics, under maxima that rise on the way (Milakov and
Gimelshein, 2018, algorithm 3), then for the gradient, while the logits are still in the L2 cache. A block is L x N
columns: a thread's N are neighbours, which one instruction loads, and its maxima and sums need no other thread.

C rows of a chunk, V vocabulary, P from one row to the next; L threads of a program, N columns of a thread.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.distillation import VALUES, Weights

# Two programs fit into a multiprocessor as long as a thread needs 64 registers at most. A program's row is 122 KB of
# logits (16 bit, 30,522 words): those of all programs that run at a time fit into the L2 cache.
WARPS = 16
THREADS = 32 * WARPS
BYTES = 16  # of logits, the most that a thread loads by one instruction
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4e38)  # finite: the difference of two maxima that are still this must not be NaN


def triton_rows(
    student_CP: Tensor, teacher_CP: Tensor | None, labels_C: Tensor, weights: Weights, V: int, gradient: bool
) -> Tensor:
    """A RowKernel: see distillation.py. Logits in fp32, bf16 or fp16."""
    assert student_CP.stride(1) == 1 and labels_C.is_contiguous()
    assert teacher_CP is None or (teacher_CP.stride() == student_CP.stride() and teacher_CP.dtype == student_CP.dtype)
    C, P, taught, every = student_CP.shape[0], student_CP.stride(0), teacher_CP is not None, not gradient
    soft = taught and (every or weights.ce > 0)
    values_C5 = torch.empty(C, len(VALUES), dtype=torch.float32, device=student_CP.device)
    with torch.cuda.device_of(student_CP):
        row_kernel[(C,)](
            student_CP, teacher_CP, labels_C, values_C5, P, V,
            weights.temperature, weights.ce, weights.mlm, weights.mse,
            SOFT=soft, WORDS=every or weights.mlm > 0, SQUARES=taught and (every or weights.mse > 0),
            GRADIENT=gradient, HALVES=soft and weights.temperature == 2,
            L=THREADS, N=BYTES // student_CP.element_size(), num_warps=WARPS,
        )  # fmt: skip
    return values_C5


@triton.jit
def row_kernel(
    student: tl.tensor, teacher: tl.tensor, labels: tl.tensor, values: tl.tensor, P: tl.constexpr, V: tl.constexpr,
    temperature: tl.tensor, ce: tl.tensor, mlm: tl.tensor, mse: tl.tensor,
    SOFT: tl.constexpr, WORDS: tl.constexpr, SQUARES: tl.constexpr, GRADIENT: tl.constexpr, HALVES: tl.constexpr,
    L: tl.constexpr, N: tl.constexpr,
) -> None:  # fmt: skip
    """Values of a row, and the gradient over the student's logits.

    SOFT, WORDS and SQUARES say which losses are wanted; HALVES, that e^(x / 2) is at hand, whose square e^x is.
    """
    row = tl.program_id(0).to(tl.int64)
    student += row * P
    if SOFT or SQUARES:
        teacher += row * P
    label = tl.load(labels + row)
    own = tl.load(student + label, mask=label >= 0, other=0).to(tl.float32)  # now: later, another warp may write there
    cold = LOG2E / temperature  # e^(x / T) = 2^(cold x)

    # Statistics of each thread's columns, relative to its own largest logits so far; a and b are logits minus these.
    most_s_L = tl.full([L], LOWEST, tl.float32)
    most_t_L = most_s_L
    sum_s_L = tl.zeros([L], tl.float32)
    sum_t_L = sum_s_L
    cross_L = sum_s_L
    words_L = sum_s_L
    squares_L = sum_s_L
    for at in range(0, V, L * N):
        column_LN = _columns(at, L, N)
        s_LN = _logits(student, column_LN, P, V)
        most_s_L, fall_s_L, a_LN = _raised(most_s_L, s_LN)
        if SOFT or SQUARES:
            t_LN = _logits(teacher, column_LN, P, V)
        if SOFT:
            most_t_L, fall_t_L, b_LN = _raised(most_t_L, t_LN)
            e_s_LN, e_t_LN = tl.exp2(a_LN * cold), tl.exp2(b_LN * cold)
            cross_L = (cross_L + sum_t_L * (fall_t_L - fall_s_L)) * tl.exp2(fall_t_L * cold)
            cross_L += tl.sum(tl.where(column_LN < V, e_t_LN * (b_LN - a_LN), 0.0), 1)
            sum_s_L = sum_s_L * tl.exp2(fall_s_L * cold) + tl.sum(e_s_LN, 1)
            sum_t_L = sum_t_L * tl.exp2(fall_t_L * cold) + tl.sum(e_t_LN, 1)
        if SQUARES:
            apart_LN = tl.where(column_LN < V, s_LN - t_LN, 0.0)
            squares_L += tl.sum(apart_LN * apart_LN, 1)
        if WORDS and label >= 0:
            e_LN = e_s_LN * e_s_LN if HALVES else tl.exp2(a_LN * LOG2E)
            words_L = words_L * tl.exp2(fall_s_L * LOG2E) + tl.sum(e_LN, 1)

    # Of the row, relative to its largest logits; and the factors of the gradient's terms.
    most_s, most_t = tl.max(most_s_L, 0), tl.max(most_t_L, 0)
    fall_s_L, fall_t_L = most_s_L - most_s, most_t_L - most_t
    of_s, of_t, of_words = 0.0, 0.0, 0.0
    kl, words, right, agree = 0.0, 0.0, 0.0, 0.0
    if SOFT:
        sum_s = tl.sum(sum_s_L * tl.exp2(fall_s_L * cold), 0)
        sum_t = tl.sum(sum_t_L * tl.exp2(fall_t_L * cold), 0)
        cross = tl.sum((cross_L + sum_t_L * (fall_t_L - fall_s_L)) * tl.exp2(fall_t_L * cold), 0)
        kl = (cross / (temperature * sum_t) + tl.log(sum_s) - tl.log(sum_t)) * temperature * temperature
        of_s, of_t = ce * temperature / sum_s, ce * temperature / sum_t
    if WORDS and label >= 0:
        sum_words = tl.sum(words_L * tl.exp2(fall_s_L * LOG2E), 0)
        words = tl.log(sum_words) + most_s - own
        of_words = mlm / sum_words
        if not GRADIENT:
            first_s, first_t = _firsts(student, teacher, most_s, most_t, SOFT, P, V, L, N)
            right = (first_s == label).to(tl.float32)
            if SOFT:
                agree = (first_s == first_t).to(tl.float32)
    tl.store(values + row * 5, kl)
    tl.store(values + row * 5 + 1, words)
    tl.store(values + row * 5 + 2, tl.sum(squares_L, 0))
    tl.store(values + row * 5 + 3, right)
    tl.store(values + row * 5 + 4, agree)

    if GRADIENT:
        for at in range(0, P, L * N):
            column_LN = _columns(at, L, N)
            s_LN = _logits(student, column_LN, P, V)
            g_LN = tl.zeros([L, N], tl.float32)
            if SOFT or SQUARES:
                t_LN = _logits(teacher, column_LN, P, V)
            if SOFT:
                e_s_LN, e_t_LN = tl.exp2((s_LN - most_s) * cold), tl.exp2((t_LN - most_t) * cold)
                g_LN = e_s_LN * of_s - e_t_LN * of_t
            if SQUARES:
                g_LN += (s_LN - t_LN) * (2 * mse)
            if WORDS and label >= 0:
                e_LN = e_s_LN * e_s_LN if HALVES else tl.exp2((s_LN - most_s) * LOG2E)
                g_LN += e_LN * of_words - tl.where(column_LN == label, mlm, 0.0)
            g_LN = tl.where(column_LN < V, g_LN, 0.0)
            tl.store(student + column_LN, g_LN.to(student.dtype.element_ty), mask=column_LN < P)


@triton.jit
def _columns(at: tl.tensor, L: tl.constexpr, N: tl.constexpr) -> tl.tensor:
    return at + tl.arange(0, L)[:, None] * N + tl.arange(0, N)[None, :]


@triton.jit
def _logits(row: tl.tensor, column_LN: tl.tensor, P: tl.constexpr, V: tl.constexpr) -> tl.tensor:
    """In fp32, -inf from V on. It is P that bounds the load: N divides it, so that no thread's columns are cut."""
    x_LN = tl.load(row + column_LN, mask=column_LN < P, other=0)
    return tl.where(column_LN < V, x_LN.to(tl.float32), float("-inf"))


@triton.jit
def _raised(most_L: tl.tensor, x_LN: tl.tensor) -> tl.tensor:
    """The largest logits with those of another block, by how much the old ones are below them (<= 0), and the block's
    logits minus them."""
    raised_L = tl.maximum(most_L, tl.max(x_LN, 1))
    return raised_L, most_L - raised_L, x_LN - raised_L[:, None]


@triton.jit
def _firsts(
    student: tl.tensor, teacher: tl.tensor, most_s: tl.tensor, most_t: tl.tensor, TAUGHT: tl.constexpr,
    P: tl.constexpr, V: tl.constexpr, L: tl.constexpr, N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The first columns of the largest logits. (A loop for each model would be unrolled into 128 registers.)"""
    first_s_L = tl.full([L], V, tl.int32)
    first_t_L = first_s_L
    for at in range(0, V, L * N):
        column_LN = _columns(at, L, N)
        s_LN = _logits(student, column_LN, P, V)
        first_s_L = tl.minimum(first_s_L, tl.min(tl.where(s_LN == most_s, column_LN, V), 1))
        if TAUGHT:
            t_LN = _logits(teacher, column_LN, P, V)
            first_t_L = tl.minimum(first_t_L, tl.min(tl.where(t_LN == most_t, column_LN, V), 1))
    return tl.min(first_s_L, 0), tl.min(first_t_L, 0)
