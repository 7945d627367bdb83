"""What the modules that DeepSpeed wraps have in common: packed micro-batches, a student, and a teacher beside it.

The teacher is no submodule, so it is neither cast, partitioned, optimised nor saved.

T tokens of S sequences.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from model.bert import Encoder
from model.kernels import attention, residual
from model.losses import Objective, TaskObjective

Model = TypeVar("Model", bound=Encoder)


@dataclass(frozen=True)
class Packed:
    """Sequences one after another, on the device: integers [T], and their boundaries, see `Encoder.encode`."""

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, micro_batch: object, device: torch.device) -> Self:
        """Tensors of a micro-batch (any object with these fields, as numpy arrays), on the host, ready to be sent."""
        values = {}
        for field in fields(cls):
            value = getattr(micro_batch, field.name)
            if not isinstance(value, int):
                tensor = torch.from_numpy(value)
                value = tensor.pin_memory() if device.type == "cuda" else tensor
            values[field.name] = value
        return cls(**values)

    def to(self, device: torch.device) -> Self:
        """On the device."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


class Wrapped(nn.Module, Generic[Model]):
    """A student, with a frozen teacher beside it, under one objective.

    Attributes:
        terms: names of the losses, the whole one first: `loss_ce` has the weight `alpha_ce`.
    """

    terms: ClassVar[tuple[str, ...]]
    objective: Objective | TaskObjective
    student: Model

    def __init__(self, student: Model, teacher: Model | None, parts: int) -> None:
        """
        Args:
            teacher: it is put into evaluation mode.
            parts: ranks x accumulation steps. DeepSpeed averages gradients over them; the loss is a share of the
                step's mean, to be summed, so it is multiplied by this number.
        """
        super().__init__()
        self.student = student
        self._teacher = [teacher.eval()] if teacher is not None else []  # in a list: not a submodule
        self.parts = parts

    @property
    def teacher(self) -> Model | None:
        """The teacher, in evaluation mode; it runs without gradients."""
        return self._teacher[0] if self._teacher else None

    @property
    def active_terms(self) -> tuple[str, ...]:
        """Those of `terms` that the objective does not leave out."""
        return ("loss", *(name for name in self.terms[1:] if getattr(self.objective, name.replace("loss", "alpha"))))

    def kernels(self) -> str:
        """What computes: one line."""
        return ", ".join(f"{name} {form}" for name, form in self._forms().items())

    def _forms(self) -> dict[str, str]:
        weight, config = self.student.embeddings.word.weight, self.student.config
        forms = {"attention": attention.form(weight.device, weight.dtype, config.attention_dropout > 0)}
        if self.teacher:
            forms["teacher's"] = attention.form(weight.device, self.teacher.embeddings.word.weight.dtype, False)
        return forms | {"residual norm": residual.form(weight.device, weight.dtype)}

    def _result(self, loss: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, of the weighted loss and the terms beside it."""
        loss = loss * (loss.detach() * 0 + 1)  # a loss that is not finite has no finite gradient, and is skipped
        return loss * self.parts, torch.cat([loss.detach()[None], means])

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the block."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:  # one by one: parts may stand in other modes than the whole
                module.training = training
