"""GLUE and SQuAD: their files, features, decoding and metrics. Knows no networks: outputs come as arrays."""

from typing import Any

from data.tasks.glue import GLUE, Sentences
from data.tasks.squad import SQUAD, Question
from data.tasks.task import Features, FeatureSettings, Task

__all__ = ["TASKS", "Example", "FeatureSettings", "Features", "Task"]

TASKS: dict[str, Task[Any, Any]] = {task.name: task for task in (*GLUE, *SQUAD)}

Example = Sentences | Question
