"""Tasks by name from the Hugging Face hub, with the `datasets` library, which is optional."""

from typing import Any

from launch.errors import ConfigError


def load(dataset: str, config: str | None, split: str) -> Any:
    """The rows of a split, each a dict.

    Raises:
        ConfigError: the library is not installed, or the hub can't be reached and nothing is cached.
    """
    cure = "or give the task's files as published: --data FOLDER"
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"without --data, '{dataset}' comes from the Hugging Face hub by the library `datasets`, which is not "
            f"installed: `pip install --group hub`, {cure}"
        ) from error
    try:
        return datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # of many kinds: of the network, of the hub, of the cache
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"'{dataset}' could not be fetched from the Hugging Face hub ({reason}).\nOffline? Fetch it once on a "
            f"connected machine that shares the cache, {cure}"
        ) from error
