"""The module that DeepSpeed wraps: student and objective; a micro-batch goes in, its loss and its terms come out.

The teacher stands beside it, not inside: it is no submodule, so it is neither cast, partitioned, optimised nor saved.

T tokens of a micro-batch, M masked ones, D hidden size, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from model.bert import MaskedLM
from model.kernels.distillation import Weights, vocabulary_losses
from model.losses import LossSums, Objective, hidden_cosine, weighted

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
        objective, tokens, masked = self.objective, batch.step_tokens, batch.step_masked
        rows = masked if objective.restrict_ce_to_mask else tokens
        weights = Weights(
            common=1 / rows, ce=objective.alpha_ce, mlm=objective.alpha_mlm * rows / masked, mse=objective.alpha_mse,
            temperature=objective.temperature,
        )  # fmt: skip
        loss, values_5, cos = self._losses(batch, weights)
        loss = loss + objective.alpha_cos * cos / tokens
        ce, mlm, mse, *_ = values_5.float()
        means = LossSums(ce, mlm, cos.detach(), mse).means(objective, tokens, masked)
        return loss * self.parts, torch.cat([loss.detach()[None], means])

    def _losses(self, batch: Batch, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted loss and values of `vocabulary_losses`, and the sum of the cosine losses."""
        objective, student, teacher = self.objective, self.student, self.teacher
        dense = objective.alpha_ce + objective.alpha_mse > 0 and not objective.restrict_ce_to_mask
        labels = batch.labels
        if dense:  # every token is a row; else those alone that are predicted
            labels = torch.full_like(batch.input_ids, -1).index_copy_(0, batch.masked_positions, labels)

        def rows(hidden_TD: Tensor) -> Tensor:
            return hidden_TD if dense else hidden_TD.index_select(0, batch.masked_positions)

        hidden_s_TD = self._encode(student, batch)
        head_s = student.unprojected(rows(hidden_s_TD))
        if teacher is None:
            return *vocabulary_losses(head_s, None, labels, weights), hidden_s_TD.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            hidden_t_TD = self._encode(teacher, batch)
            head_t = teacher.unprojected(rows(hidden_t_TD))
        zero = hidden_s_TD.new_zeros((), dtype=torch.float32)
        cos = hidden_cosine(hidden_s_TD, hidden_t_TD) if objective.alpha_cos else zero
        return *vocabulary_losses(head_s, head_t, labels, weights), cos

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
                values_5, cos = self._losses(batch, Weights(1.0, temperature=self.objective.temperature))[1:]
                ce, mlm, mse, correct, agree = values_5
                sizes = [total.new_full((), x.numel()) for x in (batch.input_ids, batch.labels)]
                total += torch.stack([*sizes, ce, mlm, cos.double(), mse, correct, agree])
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
