"""The module that DeepSpeed wraps in fine-tuning: a model with a task head, a teacher of the same task beside it.

T tokens of S sequences (examples), C labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.heads import TaskModel
from model.losses import TaskObjective, cross_entropy, logit_mse, soft_target_kl, span_cross_entropy, span_kl
from model.wrapped import Packed, Wrapped

TERMS = ("loss", "loss_task", "loss_ce")


@dataclass(frozen=True)
class TaskInputs(Packed):
    """A micro-batch of a task on the device.

    Attributes:
        token_types: integers [T]; a model without token types passes them over.
        labels: of each sequence, a class (int64 [S]), a number (fp32 [S]), or first and last token of the answer,
            counted within the sequence (int64 [S, 2]; 0, 0: no answer).
        step_examples: sequences of the whole step.
    """

    token_types: Tensor
    labels: Tensor
    step_examples: int


class FineTuner(Wrapped[TaskModel]):
    """A model that learns a task, from its labels and, with a frozen teacher beside it, from the teacher's outputs."""

    terms = TERMS
    objective: TaskObjective

    def __init__(self, student: TaskModel, teacher: TaskModel | None, objective: TaskObjective, parts: int = 1) -> None:
        """
        Args:
            teacher: None for plain fine-tuning.
            parts: see `Wrapped`.
        """
        super().__init__(student, teacher, parts)
        self.objective = objective if teacher is not None else objective.without_teacher()

    def forward(self, batch: TaskInputs) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch.

        Returns:
            loss: scalar, fp32, to be given to `engine.backward`.
            terms: fp32 [3], this micro-batch's share of the step's losses, named by TERMS; summed over all parts of a
                step they are the step's losses, means over its examples. Detached.
        """
        logits, zero = self._logits(self.student, batch), torch.zeros((), device=batch.input_ids.device)
        task = self._task(logits, batch) / batch.step_examples if self.objective.alpha_task else zero
        soft = self._soft(logits, batch) / batch.step_examples if self.objective.alpha_ce else zero
        loss = self.objective.alpha_task * task + self.objective.alpha_ce * soft
        return self._result(loss, torch.stack([task, soft]).detach())

    def _task(self, logits: Tensor, batch: TaskInputs) -> Tensor:
        """Sum over examples of the loss by their labels: scalar, fp32."""
        match self.student.task.kind:
            case "classification":
                return cross_entropy(logits, batch.labels)
            case "regression":
                return logit_mse(logits.squeeze(1), batch.labels)
            case "span":
                return span_cross_entropy(logits, batch.labels, batch.cu_seqlens, batch.max_seqlen)

    def _soft(self, logits: Tensor, batch: TaskInputs) -> Tensor:
        """Sum over examples of the distance from the teacher's outputs: scalar, fp32."""
        assert self.teacher
        with torch.no_grad():
            target = self._logits(self.teacher, batch)
        match self.student.task.kind:
            case "classification":
                return soft_target_kl(logits, target, self.objective.temperature)
            case "regression":  # the KL divergence over a single logit is 0, whatever it is
                return logit_mse(logits, target)
            case "span":
                return span_kl(logits, target, self.objective.temperature, batch.cu_seqlens, batch.max_seqlen)

    @torch.no_grad()
    def outputs(self, batch: TaskInputs) -> list[Tensor]:
        """The student's logits for each example, dropout off, fp32 on the host: [C] or, of a span, [length, 2]."""
        with self._evaluating():
            logits = self._logits(self.student, batch).float().cpu()
        return list(logits.split(batch.cu_seqlens.diff().tolist()) if self.student.task.kind == "span" else logits)

    @staticmethod
    def _logits(model: TaskModel, batch: TaskInputs) -> Tensor:
        """SC, or T2 of a span."""
        hidden_TD = model.encode(
            batch.input_ids, batch.positions, batch.cu_seqlens, batch.max_seqlen, batch.token_types
        )
        return model.logits(hidden_TD, batch.cu_seqlens)
