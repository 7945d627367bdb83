"""Tasks by name from the Hugging Face hub, with the `datasets` library, which is optional."""

from typing import Any

from data import hub


def load(dataset: str, config: str | None, split: str) -> Any:
    """The rows of a split, each a dict.

    Raises:
        ConfigError: the library is not installed, or the hub can't be reached and nothing is cached.
    """
    what = f"without --data, '{dataset}', of the Hugging Face hub,"
    return hub.load(dataset, config, split, what, "give the task's files as published: --data FOLDER")
