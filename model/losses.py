"""The losses of distillation, in pre-training and on a task, and their weighted sum (Sanh et al., 2019, "DistilBERT").

Pure functions that return sums, in fp32 (of fp64 in fp64, for tests); the means are taken with the *global* counts of
a step, so that the result does not depend on how the step was cut into micro-batches.

R rows, V vocabulary, D hidden size; T tokens of S sequences, C columns.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from launch.args import flag, require
from model.kernels.attention import slots


@dataclass(frozen=True)
class Objective:
    """The objective (weights of the losses are 0 to leave one out)."""

    alpha_ce: float = flag(5.0, "weight of the soft-target loss: KL divergence to the teacher's distribution", "WEIGHT")
    alpha_mlm: float = flag(2.0, "weight of the masked-language-modelling cross-entropy", "WEIGHT")
    alpha_cos: float = flag(1.0, "weight of the cosine distance between last hidden states", "WEIGHT")
    alpha_mse: float = flag(0.0, "weight of the squared difference between logits", "WEIGHT")
    temperature: float = flag(2.0, "temperature of the soft targets", "T")
    restrict_ce_to_mask: bool = flag(False, "soft targets (and squared differences) on masked tokens only")

    def __post_init__(self) -> None:
        _check(self)

    @property
    def alphas(self) -> tuple[float, float, float, float]:
        """Weights of ce, mlm, cos and mse."""
        return self.alpha_ce, self.alpha_mlm, self.alpha_cos, self.alpha_mse

    def without_teacher(self) -> "Objective":
        """Plain masked language modelling: the cross-entropy as it is, with weight 1.

        Raises:
            ConfigError: weights or a temperature were chosen, that mean nothing here.
        """
        _refuse_chosen(self)
        return Objective(alpha_ce=0.0, alpha_mlm=1.0, alpha_cos=0.0, alpha_mse=0.0)


@dataclass(frozen=True)
class TaskObjective:
    """The objective on a task with --teacher (weights of the losses are 0 to leave one out)."""

    alpha_task: float = flag(
        0.5, "weight of the task's own loss: cross-entropy, or squared error of a regression", "WEIGHT"
    )
    alpha_ce: float = flag(
        0.5, "weight of the soft-target loss: KL divergence to the teacher, or squared difference", "WEIGHT"
    )
    temperature: float = flag(2.0, "temperature of the soft targets; a regression has none", "T")

    def __post_init__(self) -> None:
        _check(self)

    def without_teacher(self) -> "TaskObjective":
        """The task's loss as it is, with weight 1.

        Raises:
            ConfigError: weights or a temperature were chosen, that mean nothing here.
        """
        _refuse_chosen(self)
        return TaskObjective(alpha_task=1.0, alpha_ce=0.0)


def _check(objective: Objective | TaskObjective) -> None:
    """Weights make a sum, and a temperature is one.

    Raises:
        ConfigError: names the flag.
    """
    alphas = {name: value for name, value in vars(objective).items() if name.startswith("alpha_")}
    for name, alpha in alphas.items():
        require(alpha >= 0, name, alpha, "must not be negative")
    require(objective.temperature > 0, "temperature", objective.temperature, "must be positive")
    require(sum(alphas.values()) > 0, "alpha_ce", objective.alpha_ce, "all weights are 0: nothing would be learnt")


def _refuse_chosen(objective: Objective | TaskObjective) -> None:
    """Raise ConfigError if a field has another value than its default."""
    for field in fields(objective):
        chosen = getattr(objective, field.name)
        require(chosen == field.default, field.name, chosen, "means nothing without --teacher; leave it out")


def _fp32(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def soft_target_kl(student_RV: Tensor, teacher_RV: Tensor, temperature: float) -> Tensor:
    """T^2 * sum over rows of KL(softmax(t / T) || softmax(s / T)), summed over the vocabulary (Hinton et al., 2015).

    Args:
        student_RV, teacher_RV: logits of any floating dtype; computed in fp32.

    Returns:
        scalar, fp32, in nats.
    """
    log_s_RV = F.log_softmax(_fp32(student_RV) / temperature, -1)
    log_t_RV = F.log_softmax(_fp32(teacher_RV) / temperature, -1)
    return F.kl_div(log_s_RV, log_t_RV, reduction="sum", log_target=True) * temperature**2


def cross_entropy(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """Sum over rows of -log softmax(logits)[label]: scalar, fp32, in nats."""
    return F.cross_entropy(_fp32(logits_RV), labels_R, reduction="sum")


def span_cross_entropy(logits_T2: Tensor, labels_S2: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Sum over sequences of the mean of -log softmax(start)[label] and -log softmax(end)[label]: scalar, fp32, in nats.

    Args:
        logits_T2: of each token of packed sequences, to be start and end; the softmax is over the tokens of a sequence.
        labels_S2: int64, counted within the sequence.
        cu_seqlens, max_seqlen: boundaries, see `Encoder.encode`.
    """
    log_T2 = _log_softmax_within(_fp32(logits_T2), cu_seqlens, max_seqlen)
    return -log_T2.gather(0, cu_seqlens[:-1, None] + labels_S2).sum() / 2


def span_kl(student_T2: Tensor, teacher_T2: Tensor, temperature: float, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """T^2 * sum over sequences of the mean of the KL divergences of start and end: scalar, fp32, in nats.

    Args:
        student_T2, teacher_T2, cu_seqlens, max_seqlen: see `span_cross_entropy`.
    """
    log_s_T2 = _log_softmax_within(_fp32(student_T2) / temperature, cu_seqlens, max_seqlen)
    log_t_T2 = _log_softmax_within(_fp32(teacher_T2) / temperature, cu_seqlens, max_seqlen)
    return F.kl_div(log_s_T2, log_t_T2, reduction="sum", log_target=True) * temperature**2 / 2


def _log_softmax_within(x_TC: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """log_softmax over the tokens of each sequence, column by column: TC."""
    T, C = x_TC.shape
    S, L = cu_seqlens.numel() - 1, max_seqlen
    slot_T = slots(cu_seqlens, L, T)
    padded_SLC = x_TC.new_full((S * L, C), float("-inf")).index_copy(0, slot_T, x_TC).view(S, L, C)
    return padded_SLC.log_softmax(1).flatten(0, 1).index_select(0, slot_T)


def hidden_cosine(student_RD: Tensor, teacher_RD: Tensor) -> Tensor:
    """Sum over rows of 1 - cos(student, teacher): scalar, fp32."""
    return (1.0 - F.cosine_similarity(_fp32(student_RD), _fp32(teacher_RD), dim=-1)).sum()


def logit_mse(student_RV: Tensor, teacher_RV: Tensor) -> Tensor:
    """Sum over rows and vocabulary of the squared difference of logits: scalar, fp32."""
    return F.mse_loss(_fp32(student_RV), _fp32(teacher_RV), reduction="sum")


@dataclass(frozen=True)
class LossSums:
    """Unweighted sums of one micro-batch: fp32 scalars."""

    ce: Tensor
    mlm: Tensor
    cos: Tensor
    mse: Tensor

    def means(self, objective: Objective, tokens: int, masked: int) -> Tensor:
        """This micro-batch's share of the step's mean losses: fp32 [4], in the order ce, mlm, cos, mse; 0 where the
        objective leaves one out.

        Args:
            tokens: real tokens of the whole step.
            masked: masked tokens of the whole step.
        """
        rows = masked if objective.restrict_ce_to_mask else tokens
        means = (self.ce / rows, self.mlm / masked, self.cos / tokens, self.mse / rows)
        used = zip(means, objective.alphas, strict=True)
        return torch.stack([mean if alpha else torch.zeros_like(mean) for mean, alpha in used])


def weighted(means: Tensor, objective: Objective) -> Tensor:
    """alpha_ce * ce + alpha_mlm * mlm + alpha_cos * cos + alpha_mse * mse: scalar."""
    # A loss left out is left out of the sum, too: 0 x inf is not 0.
    return torch.stack([alpha * mean for alpha, mean in zip(objective.alphas, means, strict=True) if alpha]).sum()
