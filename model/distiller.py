"""The module that DeepSpeed wraps: student and objective; a micro-batch goes in, its loss and its terms come out.

The teacher stands beside it, not inside: it is no submodule, so it is neither cast, partitioned, optimised nor saved.

T tokens of a micro-batch, M masked ones, D hidden size, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from model.bert import MaskedLM
from model.losses import (
    LossSums,
    Objective,
    hidden_cosine,
    logit_mse,
    mlm_cross_entropy,
    soft_target_kl,
    weighted,
)

TERMS = ("loss", "loss_ce", "loss_mlm", "loss_cos", "loss_mse")


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the device; see data.batching.MicroBatch for the meaning of the fields."""

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    masked_positions: Tensor
    labels: Tensor
    step_tokens: int
    step_masked: int

    @classmethod
    def on_device(cls, micro_batch: object, device: torch.device) -> "Batch":
        """Copy the arrays of a micro-batch (any object with these fields, as numpy arrays) to the device."""
        values = {}
        for field in fields(cls):
            value = getattr(micro_batch, field.name)
            if not isinstance(value, int):
                tensor = torch.from_numpy(value)
                value = tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
            values[field.name] = value
        return cls(**values)


class Distiller(nn.Module):
    """Student, with a frozen teacher beside it, under one objective."""

    def __init__(self, student: MaskedLM, teacher: MaskedLM | None, objective: Objective, parts: int = 1) -> None:
        """
        Args:
            teacher: None for plain masked language modelling. It is put into evaluation mode.
            parts: ranks x accumulation steps. DeepSpeed averages gradients over them; the loss is a share of the
                step's mean, to be summed, so it is multiplied by this number.
        """
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval()] if teacher is not None else []  # in a list: not a submodule
        self.objective = objective if teacher is not None else objective.without_teacher()
        self.parts = parts

    @property
    def teacher(self) -> MaskedLM | None:
        """The teacher, in evaluation mode; it runs without gradients."""
        return self._teacher[0] if self._teacher else None

    @property
    def active_terms(self) -> tuple[str, ...]:
        """Those of TERMS that the objective does not leave out."""
        return ("loss", *(name for name in TERMS[1:] if getattr(self.objective, name.replace("loss", "alpha"))))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch.

        Returns:
            loss: scalar, fp32, to be given to `engine.backward`.
            terms: fp32 [5], this micro-batch's share of the step's losses, named by TERMS; summed over all parts of a
                step they are the step's losses. Detached.
        """
        sums = self._sums(batch)[0]
        means = sums.means(self.objective, batch.step_tokens, batch.step_masked)
        loss = weighted(means, self.objective)
        return loss * self.parts, torch.cat([loss[None], means]).detach()

    def _sums(self, batch: Batch) -> tuple[LossSums, Tensor, Tensor | None]:
        """Sums of the losses, and the logits of student and teacher on masked tokens (MV)."""
        objective, student = self.objective, self.student
        dense = objective.alpha_ce + objective.alpha_mse > 0 and not objective.restrict_ce_to_mask
        hidden_s_TD = self._encode(student, batch)
        rows_s_RV = student.logits(hidden_s_TD if dense else hidden_s_TD.index_select(0, batch.masked_positions))
        masked_s_MV = rows_s_RV.index_select(0, batch.masked_positions) if dense else rows_s_RV
        zero = rows_s_RV.new_zeros((), dtype=torch.float32)
        mlm = mlm_cross_entropy(masked_s_MV, batch.labels) if objective.alpha_mlm else zero
        if self.teacher is None:
            return LossSums(zero, mlm, zero, zero), masked_s_MV, None
        with torch.no_grad():
            hidden_t_TD = self._encode(self.teacher, batch)
            rows_t_RV = self.teacher.logits(hidden_t_TD if dense else hidden_t_TD[batch.masked_positions])
        sums = LossSums(
            ce=soft_target_kl(rows_s_RV, rows_t_RV, objective.temperature) if objective.alpha_ce else zero,
            mlm=mlm,
            cos=hidden_cosine(hidden_s_TD, hidden_t_TD) if objective.alpha_cos else zero,
            mse=logit_mse(rows_s_RV, rows_t_RV) if objective.alpha_mse else zero,
        )
        return sums, masked_s_MV, rows_t_RV.index_select(0, batch.masked_positions) if dense else rows_t_RV

    @staticmethod
    def _encode(model: MaskedLM, batch: Batch) -> Tensor:
        return model.encode(batch.input_ids, batch.positions, batch.cu_seqlens, batch.max_seqlen)

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> Tensor:
        """Sums over held-out batches, dropout off: float64 [8] on the student's device.

        In order: real tokens, masked tokens, sums of ce, mlm, cos and mse, masked tokens where the student's first
        choice is the label, and where it is the teacher's first choice. All are plain sums, so those of several ranks
        add up.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        total = torch.zeros(8, dtype=torch.float64, device=next(self.parameters()).device)
        try:
            for batch in batches:
                sums, masked_s_MV, masked_t_MV = self._sums(batch)
                choice_M = masked_s_MV.argmax(-1)
                correct = (choice_M == batch.labels).sum()
                agree = (
                    (choice_M == masked_t_MV.argmax(-1)).sum() if masked_t_MV is not None else torch.zeros_like(correct)
                )
                sizes = [total.new_full((), x.numel()) for x in (batch.input_ids, batch.labels)]
                row = [*sizes, sums.ce, sums.mlm, sums.cos, sums.mse, correct, agree]
                total += torch.stack([value.double() for value in row])
        finally:
            for module, training in modes:  # one by one: parts may stand in other modes than the whole
                module.training = training
        return total


def held_out_figures(total: Tensor, distiller: Distiller) -> dict[str, float]:
    """Means of `Distiller.measure`'s sums: losses in nats per token, and shares of masked tokens."""
    objective = distiller.objective
    tokens, masked, ce, mlm, cos, mse, correct, agree = total.tolist()
    masked = max(masked, 1.0)
    rows = masked if objective.restrict_ce_to_mask else tokens
    means = torch.tensor([ce / rows, mlm / masked, cos / tokens, mse / rows], dtype=torch.float64)
    losses = dict(zip(TERMS, [float(weighted(means, objective)), *means.tolist()], strict=True))
    figures = {name: losses[name] for name in distiller.active_terms}
    figures["accuracy"] = correct / masked
    if distiller.teacher:
        figures["agreement"] = agree / masked
    return figures


def parameter_groups(module: nn.Module) -> list[dict]:
    """Trainable parameters for the optimizer, in two groups: biases and norm weights are not decayed.

    The names go with them, so that a checkpoint of the optimizer says whose state is whose.
    """
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in trainable if p.ndim > 1]
    others = [(name, p) for name, p in trainable if p.ndim == 1]
    groups = [
        {"params": [p for _, p in named], "parameter_names": [name for name, _ in named]}
        for named in (matrices, others)
    ]
    groups[1]["weight_decay"] = 0.0
    return [group for group in groups if group["params"]]
