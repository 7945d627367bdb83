"""Task heads on the encoder, as Hugging Face's BERT and DistilBERT have them: classification or regression of a
sequence, and question answering.

    model = heads.load("models/dilbert", "classification", ("negative", "positive"))
    model(input_ids, attention_mask).logits          # padded [batch, length] -> [batch, labels]

T tokens of S sequences, B padded sequences of length L, D hidden size, C labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from launch.errors import ConfigError
from model import hf
from model.bert import Encoder, initialise
from model.config import BertConfig, read_values

logger = logging.getLogger(__name__)

Kind = Literal["classification", "regression", "span"]

# Kind -> what Hugging Face's classes end in.
_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "span": "ForQuestionAnswering",
}
# What drops before the last layer: key of `config.json`. A BERT has nothing of the kind before a span.
_DROPOUT_KEYS = {
    ("bert", "ForSequenceClassification"): "classifier_dropout",
    ("distilbert", "ForSequenceClassification"): "seq_classif_dropout",
    ("distilbert", "ForQuestionAnswering"): "qa_dropout",
}


@dataclass(frozen=True)
class TaskHead:
    """What a task head predicts: a class of the sequence, a number for it, or the first and last token of an answer.

    Attributes:
        labels: names of the classes, in the order of the logits; the name of the number, or none; none of a span.
        dropout: before the last layer; None: the architecture's own.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    dropout: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"a task head of kind '{self.kind}': must be one of {', '.join(get_args(Kind))}")
        count = len(self.labels)
        fits = {"classification": count > 1, "regression": count < 2, "span": count == 0}[self.kind]
        if not fits or len(set(self.labels)) < count:
            raise ConfigError(f"a head for {self}: these labels don't make one")
        if self.dropout is not None and not (isinstance(self.dropout, int | float) and 0 <= self.dropout <= 1):
            raise ConfigError(f"the dropout of a task head, {self.dropout!r}, must be from 0 to 1")

    def __str__(self) -> str:
        name = "question answering" if self.kind == "span" else self.kind
        return f"{name} ({', '.join(self.labels)})" if self.labels else name

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a run's record."""
        return cls(values["kind"], tuple(values["labels"]), values.get("dropout"))

    def to_dict(self) -> dict[str, Any]:
        """For a run's record."""
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TaskHead | None":
        """The task head that a `config.json` tells of; None: it has none that is computed here.

        Raises:
            ConfigError: its labels can't be read.
        """
        architecture, problem = _architecture(values), values.get("problem_type")
        if architecture.endswith(_CLASSES["span"]):
            return cls("span")
        if not architecture.endswith(_CLASSES["classification"]) or problem == "multi_label_classification":
            return None
        labels = _labels(values)
        if len(labels) == 1:
            return cls("regression", () if labels == _unnamed(1) else labels)
        return None if problem == "regression" else cls("classification", labels)

    def to_config(self, config: BertConfig) -> dict[str, Any]:
        """Its keys of `config.json`, by which `transformers` knows the class and names the labels."""
        name = {"bert": "Bert", "distilbert": "DistilBert"}[config.model_type]
        values: dict[str, Any] = {"architectures": [name + _CLASSES[self.kind]]}
        key = self._dropout_key(config)
        if key and self.dropout is not None:
            values[key] = self.dropout
        if self.kind == "span":
            return values
        labels = self.labels or _unnamed(1)
        values["id2label"] = {str(number): label for number, label in enumerate(labels)}
        values["label2id"] = {label: number for number, label in enumerate(labels)}
        values["problem_type"] = "regression" if self.kind == "regression" else "single_label_classification"
        return values

    def with_dropout_of(self, config: BertConfig, values: Mapping[str, Any]) -> Self:
        """The same, with the dropout that a `config.json` asks for, whatever its own head is."""
        key = self._dropout_key(config)
        return replace(self, dropout=values.get(key)) if key else self

    def dropout_in(self, config: BertConfig) -> float:
        """The probability with this network, Hugging Face's defaults included."""
        if self.dropout is not None:
            return self.dropout
        if config.model_type == "bert":
            return 0.0 if self.kind == "span" else config.hidden_dropout
        return 0.1 if self.kind == "span" else 0.2

    def order(self, other: "TaskHead") -> list[int] | None:
        """Which of its logits mean those of another head, one after the other; None: they mean something else. Case
        does not count, and labels without names (LABEL_0) only by number."""
        if self.kind != other.kind:
            return None
        mine, theirs = ([label.casefold() for label in head.labels] for head in (self, other))
        places = list(range(max(1, len(mine))))
        if self.kind != "classification" or mine == theirs or (not self.named and len(mine) == len(theirs)):
            return places
        return [mine.index(label) for label in theirs] if sorted(mine) == sorted({*theirs}) else None

    @property
    def named(self) -> bool:
        """Whether the classes have names."""
        return self.kind != "classification" or self.labels != _unnamed(len(self.labels))

    def _dropout_key(self, config: BertConfig) -> str | None:
        return _DROPOUT_KEYS.get((config.model_type, _CLASSES[self.kind]))


class TaskModel(Encoder):
    """The encoder with a task head.

    Attributes:
        guessed: its labels had no names where it was loaded from; that they are in the task's order is a guess.
    """

    guessed = False

    def __init__(self, config: BertConfig, task: TaskHead) -> None:
        super().__init__(config)
        self.task = task
        self.dropout = nn.Dropout(task.dropout_in(config))

    def logits(self, hidden_TD: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Scores from the hidden states of packed sequences: of each sequence SC, or of each token T2."""
        raise NotImplementedError

    def padded_logits(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """`logits` of a padded batch: BC, or (BL)2."""
        hidden_BLD = self.encode_padded(input_ids, attention_mask, token_type_ids)
        B, L, _ = hidden_BLD.shape
        return self.logits(hidden_BLD.flatten(0, 1), torch.arange(0, (B + 1) * L, L, device=input_ids.device))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; stock `transformers` loads them, labels' names included."""
        hf.write_folder(Path(folder), self, self.config, **self.task.to_config(self.config))


class SequenceClassifier(TaskModel):
    """A class or a number for each sequence, out of the hidden state of its first token."""

    def __init__(self, config: BertConfig, task: TaskHead) -> None:
        super().__init__(config, task)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, max(1, len(task.labels)))
        for layer in (self.pooler, self.classifier):
            initialise(layer, config)

    def logits(self, hidden_TD: Tensor, cu_seqlens: Tensor) -> Tensor:
        """SC."""
        pooled_SD = self.pooler(hidden_TD.index_select(0, cu_seqlens[:-1]))
        pooled_SD = pooled_SD.tanh() if self.config.model_type == "bert" else pooled_SD.relu()
        return self.classifier(self.dropout(pooled_SD))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Of a padded batch.

        Args:
            input_ids: integers [batch, length].
            attention_mask: [batch, length], 1 for real tokens; None: all are.
            token_type_ids: [batch, length]; only for a BERT.

        Returns:
            `logits`: [batch, labels].
        """
        logits: Any = self.padded_logits(input_ids, attention_mask, token_type_ids)
        return SequenceClassifierOutput(logits=logits)


class SpanPredictor(TaskModel):
    """For each token, whether the answer starts there, and whether it ends there."""

    def __init__(self, config: BertConfig, task: TaskHead) -> None:
        super().__init__(config, task)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self.qa_outputs, config)

    def logits(self, hidden_TD: Tensor, cu_seqlens: Tensor) -> Tensor:
        """T2: start and end."""
        return self.qa_outputs(self.dropout(hidden_TD))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> QuestionAnsweringModelOutput:
        """Of a padded batch, as `SequenceClassifier`.

        Returns:
            `start_logits` and `end_logits`: [batch, length]; at padding, they mean nothing.
        """
        logits_BL2 = self.padded_logits(input_ids, attention_mask, token_type_ids).view(*input_ids.shape, 2)
        start: Any = logits_BL2[..., 0]
        end: Any = logits_BL2[..., 1]
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


def build(config: BertConfig, task: TaskHead) -> TaskModel:
    """A model with random weights, drawn from torch's global generator."""
    return SpanPredictor(config, task) if task.kind == "span" else SequenceClassifier(config, task)


def load(name: str | Path, kind: Kind, labels: Sequence[str] = (), known: bool = False) -> TaskModel:
    """Any BERT or DistilBERT by folder or hub name, with a head for the task, in fp32 and evaluation mode.

    The last layer is the file's where that was trained for the same labels, in whatever order, else new, like what the
    file does not have: drawn from torch's global generator, and named in a log line.

    Args:
        labels: names of the classes, in the order of the data's numbers.
        known: the model must know the task: nothing may be new.

    Raises:
        ConfigError: no such model, another architecture or, with `known`, another task or other labels.
        CheckpointError: weights are missing, damaged, or of other shapes.
    """
    folder = hf.fetch(str(name))
    config, values = BertConfig.read(folder), read_values(folder)
    try:
        task = TaskHead(kind, tuple(labels)).with_dropout_of(config, values)
        own = TaskHead.of(values)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    order = own.order(task) if own else None
    moved = order is not None and order != sorted(order)
    if known and order is None:
        _refuse(name, own, _architecture(values), task)
    model = build(config, task)
    state = hf.read_folder(folder)
    if order is None:
        state = {key: value for key, value in state.items() if not key.startswith(("classifier.", "qa_outputs."))}
    elif moved:
        last = {key: state[key] for key in ("classifier.weight", "classifier.bias") if key in state}
        state |= {key: rows[order] for key, rows in last.items() if len(rows) == len(order)}  # else refused below
    report = hf.load_state(model, config, state, str(name))
    new = set() if known else set(report.missing) & _head_names(model)
    hf.refuse_missing([key for key in report.missing if key not in new], str(name))
    unnamed = task.labels if order and own and not own.named else ()
    for what, names in {
        "its labels are in another order; taken by their names": own.labels if own and moved else (),
        "its labels have no names; taken for these, in this order": unnamed,
        "new, with random weights": sorted(new),
        "not used": report.of_other_tasks,
    }.items():
        if names:
            logger.warning("%s: %s: %s", name, what, ", ".join(names))
    model.guessed = bool(unnamed)
    return model.eval()


def _refuse(name: str | Path, own: TaskHead | None, architecture: str, task: TaskHead) -> None:
    what = f"is a model for {own}" if own else f"is a {architecture or 'model that names no architecture'}"
    raise ConfigError(f"{name} {what}; needed is one for {task}: give one that was fine-tuned on this task")


def _head_names(model: TaskModel) -> set[str]:
    """Hugging Face's names of all parameters that are not the encoder's."""
    own = (name for name, _ in model.named_parameters() if not name.startswith(("embeddings.", "layers.")))
    return {theirs for name in own for theirs in hf.names_of(name, model.config.model_type)}


def _architecture(values: Mapping[str, Any]) -> str:
    """The class that a `config.json` names, or an empty string."""
    names = values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _labels(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the labels in a `config.json`; where it has none, `transformers` takes it for two."""
    names = values.get("id2label")
    try:
        if names is None:
            return _unnamed(values.get("num_labels", 2))
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise ConfigError(f"config.json: id2label {names!r} can't be read as names by number") from error


def _unnamed(count: int) -> tuple[str, ...]:
    """What `transformers` calls labels of which it knows nothing else."""
    return tuple(f"LABEL_{number}" for number in range(count))
