"""The module that DeepSpeed wraps: student and objective; a micro-batch goes in, its loss and its terms come out.

T tokens of a micro-batch, M masked ones, D hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.bert import MaskedLM
from model.kernels import attention, distillation, fp8
from model.kernels.distillation import Head, Weights, vocabulary_losses
from model.losses import LossSums, Objective, hidden_cosine, weighted
from model.wrapped import Packed, Wrapped

TERMS = ("loss", "loss_ce", "loss_mlm", "loss_cos", "loss_mse")


@dataclass(frozen=True)
class Batch(Packed):
    """A micro-batch on the device; see data.batching.MicroBatch for the meaning of the fields."""

    masked_positions: Tensor
    labels: Tensor
    step_tokens: int
    step_masked: int
    filler: int = 0
    static: bool = False

    def real(self, x_TD: Tensor) -> Tensor:
        """Without the rows of filler."""
        return x_TD[: x_TD.shape[0] - self.filler]


class Distiller(Wrapped[MaskedLM]):
    """Student, with a frozen teacher beside it, under the objective of pre-training."""

    terms = TERMS
    objective: Objective

    def __init__(self, student: MaskedLM, teacher: MaskedLM | None, objective: Objective, parts: int = 1) -> None:
        """
        Args:
            teacher: None for plain masked language modelling.
            parts: see `Wrapped`.
        """
        super().__init__(student, teacher, parts)
        self.objective = objective if teacher is not None else objective.without_teacher()
        self.compiled, self._warm = False, 0

    @torch.no_grad()
    def teacher_in_fp8(self, batch: Batch) -> Tensor:
        """Put the teacher's layers into FP8, in place.

        Returns:
            KL(as it was || in FP8) over the tokens of a micro-batch, in nats a token: scalar, fp64.
        """
        assert self.teacher
        before = self.teacher.unprojected(self._encode(self.teacher, batch))
        fp8.convert(self.teacher.layers)
        after = self.teacher.unprojected(self._encode(self.teacher, batch))
        nothing = torch.full_like(batch.input_ids, -1)
        return vocabulary_losses(after, before, nothing, Weights(1.0, ce=1.0))[1][0] / nothing.numel()

    def should_compile(self, choice: str) -> bool:
        """What `--compile` comes to; "auto": where attention takes boundaries that are filled up at no cost."""
        weight, dropout = self.student.embeddings.word.weight, self.student.config.attention_dropout > 0
        fixed = attention.form(weight.device, weight.dtype, dropout) in ("varlen", "flash")
        return choice == "on" or (choice == "auto" and fixed)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what micro-batches of equal shape have in common: all but the losses. `engine.compile` calls this.

        Args:
            args, kwargs: of `torch.compile`; shapes are fixed unless `dynamic` says otherwise.
        """
        kwargs.setdefault("dynamic", False)
        for model in filter(None, (self.student, self.teacher)):
            head = [model.head] if self.dense else []  # else its rows are the masked tokens: a number that varies
            for part in (model.embeddings, *model.layers, *head):
                part.forward = torch.compile(part.forward, *args, **kwargs)
        self.compiled = True

    def warm_up(self, batch: Batch) -> None:
        """Compile for its shape, forward and backward, without leaving a gradient."""
        self._warm += 1
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * self._warm)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        torch.autograd.grad(self(batch)[0], trained)

    def _compiled_only(self, static: bool) -> AbstractContextManager[Any]:
        """A shape that nothing was compiled for runs as it is, instead of being compiled."""
        eager = self.compiled and not static
        return torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext()

    def _forms(self) -> dict[str, str]:
        weight = self.student.embeddings.word.weight
        return super()._forms() | {"vocabulary losses": distillation.form(weight.device, weight.dtype)}

    @property
    def dense(self) -> bool:
        """Whether every token is a row of the losses over the vocabulary; else those alone that are predicted."""
        return self.objective.alpha_ce + self.objective.alpha_mse > 0 and not self.objective.restrict_ce_to_mask

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
        with self._compiled_only(batch.static):
            loss, values_5, cos = self._losses(batch, weights)
        loss = loss + objective.alpha_cos * cos / tokens
        ce, mlm, mse, *_ = values_5.float()
        return self._result(loss, LossSums(ce, mlm, cos.detach(), mse).means(objective, tokens, masked))

    def _losses(self, batch: Batch, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted loss and values of `vocabulary_losses`, and the sum of the cosine losses."""
        student, teacher, zero = self.student, self.teacher, torch.zeros((), device=batch.input_ids.device)
        labels = batch.labels
        if self.dense:
            nothing = torch.full_like(batch.real(batch.input_ids), -1)
            labels = nothing.index_copy_(0, batch.masked_positions, labels)
        hidden_s_TD = self._encode(student, batch)
        head_s = self._head(student, hidden_s_TD, batch)
        if teacher is None:
            return *vocabulary_losses(head_s, None, labels, weights), zero
        with torch.no_grad():
            hidden_t_TD = self._encode(teacher, batch)
            head_t = self._head(teacher, hidden_t_TD, batch)
        cos = hidden_cosine(batch.real(hidden_s_TD), batch.real(hidden_t_TD)) if self.objective.alpha_cos else zero
        return *vocabulary_losses(head_s, head_t, labels, weights), cos

    def _head(self, model: MaskedLM, hidden_TD: Tensor, batch: Batch) -> Head:
        """Of the tokens that the losses over the vocabulary are about."""
        if self.dense:
            head = model.unprojected(hidden_TD)
            return Head(batch.real(head.hidden_RD), head.word_VD, head.bias_V)
        return model.unprojected(hidden_TD.index_select(0, batch.masked_positions))

    @staticmethod
    def _encode(model: MaskedLM, batch: Batch) -> Tensor:
        return model.encode(batch.input_ids, batch.positions, batch.cu_seqlens, batch.max_seqlen)

    @torch.no_grad()
    def guesses(self, batch: Batch, count: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The likeliest words at each masked position, dropout off, by "teacher" and "student": ids, and their
        probabilities in fp32, [M, count] each."""
        models, found = {"teacher": self.teacher, "student": self.student}, {}
        with self._evaluating(), self._compiled_only(False):
            for name, model in models.items():
                if model is not None:
                    hidden_MD = self._encode(model, batch).index_select(0, batch.masked_positions)
                    best = model.logits(hidden_MD).float().softmax(-1).topk(count)
                    found[name] = (best.indices, best.values)
        return found

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> Tensor:
        """Sums over held-out batches, dropout off: float64 [8] on the student's device.

        In order: real tokens, masked tokens, sums of ce, mlm, cos and mse, masked tokens where the student's first
        choice is the label, and where it is the teacher's first choice. All are plain sums, so those of several ranks
        add up.
        """
        total = torch.zeros(8, dtype=torch.float64, device=next(self.parameters()).device)
        with self._evaluating():
            for batch in batches:
                with self._compiled_only(False):
                    values_5, cos = self._losses(batch, Weights(1.0, temperature=self.objective.temperature))[1:]
                ce, mlm, mse, correct, agree = values_5
                sizes = [total.new_full((), x.numel()) for x in (batch.real(batch.input_ids), batch.labels)]
                total += torch.stack([*sizes, ce, mlm, cos.double(), mse, correct, agree])
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
