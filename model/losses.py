"""The three losses of distillation, and their weighted sum (Sanh et al., 2019, "DistilBERT").

Pure functions that return sums, in fp32 (of fp64 in fp64, for tests); the means are taken with the *global* counts of
a step, so that the result does not depend on how the step was cut into micro-batches.

R rows, V vocabulary, D hidden size.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from launch.args import flag, require


@dataclass(frozen=True)
class Objective:
    """The objective (weights of the losses are 0 to leave one out)."""

    alpha_ce: float = flag(5.0, "weight of the soft-target loss: KL divergence to the teacher's distribution")
    alpha_mlm: float = flag(2.0, "weight of the masked-language-modelling cross-entropy")
    alpha_cos: float = flag(1.0, "weight of the cosine distance between last hidden states")
    alpha_mse: float = flag(0.0, "weight of the squared difference between logits")
    temperature: float = flag(2.0, "temperature of the soft targets")
    restrict_ce_to_mask: bool = flag(False, "soft targets (and squared differences) on masked tokens only")

    def __post_init__(self) -> None:
        for name in ("alpha_ce", "alpha_mlm", "alpha_cos", "alpha_mse"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        total = self.alpha_ce + self.alpha_mlm + self.alpha_cos + self.alpha_mse
        require(total > 0, "alpha_ce", self.alpha_ce, "all four weights are 0: nothing would be learnt")

    @property
    def alphas(self) -> tuple[float, float, float, float]:
        """Weights of ce, mlm, cos and mse."""
        return self.alpha_ce, self.alpha_mlm, self.alpha_cos, self.alpha_mse

    def without_teacher(self) -> "Objective":
        """Plain masked language modelling: the cross-entropy as it is, with weight 1.

        Raises:
            ConfigError: weights or a temperature were chosen, that mean nothing here.
        """
        for field in fields(self):
            chosen = getattr(self, field.name)
            require(chosen == field.default, field.name, chosen, "means nothing without --teacher; leave it out")
        return Objective(alpha_ce=0.0, alpha_mlm=1.0, alpha_cos=0.0, alpha_mse=0.0)


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


def mlm_cross_entropy(logits_RV: Tensor, labels_R: Tensor) -> Tensor:
    """Sum over rows of -log softmax(logits)[label]: scalar, fp32, in nats."""
    return F.cross_entropy(_fp32(logits_RV), labels_R, reduction="sum")


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
