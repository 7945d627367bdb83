"""A task's data as features, and a model's marks on it."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import xxhash

from data.tasks import TASKS, Example, Features, FeatureSettings, Task
from data.tasks.stream import in_order
from data.tokenizer import load_tokenizer, vocabulary_of
from launch import distributed
from launch.args import require
from launch.distributed import World
from launch.errors import NonFiniteError
from launch.evaluate import shape_of
from launch.preflight import Shape, check_features
from model.finetuner import FineTuner, TaskInputs
from model.heads import TaskModel


@dataclass(frozen=True)
class Inputs:
    """The task's examples, and what they are as tokens.

    Attributes:
        source: the tokenizer, by the name of its model.
        train: None where nothing is trained.
        held_out: by name of the split: most tasks have one.
        labelled: whether the held-out data have labels.
    """

    task: Task
    settings: FeatureSettings
    source: Shape
    train: Features | None
    held_out: dict[str, tuple[list[Example], Features]]
    labelled: bool

    @classmethod
    def read(
        cls, name: str, data: Path | None, model: str, settings: FeatureSettings, trains: bool, test: bool = False
    ) -> Self:
        """Read the task's files, and make features of them by a model's tokenizer.

        Args:
            name: of the task.
            data: folder; None: the hub.
            trains: whether the training examples are needed.
            test: take the task's test sets, which have no labels, for held-out data.

        Raises:
            DataError, ConfigError: files or tokenizer are missing, damaged, or not what they should be.
        """
        task, tokenizer = TASKS[name], load_tokenizer(model)

        def features(examples: list[Example], training: bool) -> Features:
            return task.features(examples, tokenizer, settings, training)

        train = features(task.read(data, "train"), True) if trains else None
        require(not test or bool(task.tests), "test", test, f"{name} has no test set that is published without labels")
        splits = task.tests if test else task.splits
        read = {task.name_of(split, data): task.read(data, split) for split in splits}
        held_out = {split: (examples, features(examples, False)) for split, examples in read.items()}
        vocabulary = vocabulary_of(tokenizer)
        source = Shape(model, vocabulary.size, tokenizer_hash=vocabulary.tokenizer_hash)
        return cls(task, settings, source, train, held_out, labelled=not test)

    def hashes(self) -> dict[str, str]:
        """By name of the set: changes with any of its inputs, or their labels."""
        sets = {
            **({"train": self.train} if self.train else {}),
            **{k: found for k, (_, found) in self.held_out.items()},
        }
        return {name: xxhash.xxh3_64_hexdigest(" ".join(features.hashes()).encode()) for name, features in sets.items()}

    def check(self, *models: tuple[str | None, TaskModel | None]) -> None:
        """Models and features agree: vocabulary, tokenizer, positions; or ConfigError says what to do."""
        parts = [self.train] if self.train else []
        parts += [features for _, features in self.held_out.values()]
        shapes = [shape_of(name, model) for name, model in models if name and model]
        types = max(int(features.types.max()) for features in parts) + 1
        check_features(self.source, max(features.longest for features in parts), types, *shapes)

    def score(self, outputs: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
        """The task's metrics on the held-out data; with several splits, their names stand before them.

        Args:
            outputs: of each split, as `Task.score` takes them.
        """
        found: dict[str, float] = {}
        for name, (examples, features) in self.held_out.items():
            prefix = f"{name}_" if len(self.held_out) > 1 else ""
            scores = self.task.score(examples, features, outputs[name], self.settings)
            found |= {f"{prefix}{metric}": value for metric, value in scores.items()}
        return found


class Examiner:
    """Measures a model on the task's held-out data; all ranks take part.

    Attributes:
        metrics: of the last time; {} before.
    """

    def __init__(self, tuner: FineTuner, inputs: Inputs, world: World, size: int) -> None:
        """
        Args:
            size: sequences at once.
        """
        self.tuner, self.inputs, self.world, self.size = tuner, inputs, world, size
        self.outputs: dict[str, list[np.ndarray]] = {}
        self.metrics: dict[str, float] = {}

    @property
    def batches(self) -> int:
        """That each rank goes through, about."""
        held_out = self.inputs.held_out.values()
        return sum(math.ceil(len(features) / (self.size * self.world.ranks)) for _, features in held_out)

    def measure(self, alive: Callable[[str], None] = lambda _: None) -> dict[str, float]:
        """The task's metrics, the same on all ranks; none of data without labels.

        Args:
            alive: called before each batch.

        Raises:
            NonFiniteError: on all ranks: outputs are not finite, and any score of them would be made up.
        """
        held_out = self.inputs.held_out.items()
        self.outputs = {name: self._outputs(features, alive) for name, (_, features) in held_out}
        self.metrics = self.inputs.score(self.outputs) if self.inputs.labelled else {}
        return self.metrics

    def _outputs(self, features: Features, alive: Callable[[str], None]) -> list[np.ndarray]:
        """Of each feature, in order: every rank computes its share and gets all."""
        world, found = self.world, dict[int, np.ndarray]()
        for numbers, batch in in_order(features, self.size, world.rank, world.ranks):
            alive("measuring on held-out data")
            answers = self.tuner.outputs(TaskInputs.of(batch, world.device).to(world.device))
            found |= zip(numbers.tolist(), (answer.float().cpu().numpy() for answer in answers), strict=True)
        everything = {number: answer for share in distributed.gather(found) for number, answer in share.items()}
        if lost := sum(not np.isfinite(answer).all() for answer in everything.values()):
            raise NonFiniteError(
                f"the model's outputs for {lost:,} of {len(features):,} held-out inputs are not finite"
            )
        return [everything[number] for number in range(len(features))]

    def check_labels(self, flag: str, name: str) -> None:
        """Whether a model whose labels have no names means them in the data's order, by what was measured last.

        Args:
            flag, name: of the model, for the message.

        Raises:
            ConfigError: in another order they would fit far better: by more than four standard errors of chance.
        """
        if not self.tuner.student.guessed:
            return
        count = len(self.inputs.task.labels)
        right = np.zeros((count, count), np.int64)  # examples by label, and by the model's answer
        for split, (_, features) in self.inputs.held_out.items():
            np.add.at(right, (features.labels, np.stack(self.outputs[split]).argmax(1)), 1)
        hits = {order: sum(right[order[i], i] for i in range(count)) for order in itertools.permutations(range(count))}
        best, examples = max(hits, key=lambda order: hits[order]), right.sum()
        now = hits[tuple(range(count))]
        labels = ", ".join(self.inputs.task.labels[i] for i in best)
        require(
            hits[best] - now <= 4 * math.sqrt(examples), flag, name,
            f"its labels have no names; in the task's order it is right in {now / examples:.1%} of the held-out "
            f"examples, but in {hits[best] / examples:.1%} if they are {labels}. Name them so in a copy's config.json: "
            f'"id2label": {json.dumps({str(i): self.inputs.task.labels[label] for i, label in enumerate(best)})}',
        )  # fmt: skip

    def write(self, path: Path) -> None:
        """The predictions of the last time; of several splits, into a file each, with its name before the suffix."""
        for name, (examples, features) in self.inputs.held_out.items():
            target = path if len(self.inputs.held_out) == 1 else path.with_stem(f"{path.stem}_{name}")
            self.inputs.task.write_predictions(target, examples, features, self.outputs[name], self.inputs.settings)
