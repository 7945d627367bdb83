"""Datasets by name from the Hugging Face hub, with the `datasets` library, which is optional."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from data import optional
from launch.errors import ConfigError, reason

PREFIX = "hub:"


@dataclass(frozen=True)
class Address:
    """`hub:NAME[@REVISION][:CONFIG[:SPLIT]]`; an empty part is one that was not given."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

        Raises:
            ConfigError: no name, or too many parts.
        """
        place, config, split, *more = (*text.removeprefix(PREFIX).split(":"), "", "")
        name, _, revision = place.partition("@")
        if not name or any(more):
            raise ConfigError(f"--input {text}: must be {PREFIX}NAME[@REVISION][:CONFIG[:SPLIT]]")
        return cls(name, revision or None, config or None, split or "train")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{revision}:{self.config or ''}:{self.split}"


def pinned(text: str) -> str:
    """The address with the commit that its revision is now: a dataset may change, a commit does not.

    Raises:
        ConfigError: no such dataset, or the hub can't be reached.
    """
    address = Address.parse(text)
    optional.module("datasets", "hub", f"--input {text}")
    from huggingface_hub import HfApi

    with _asking(address.name):
        commit = HfApi().dataset_info(address.name, revision=address.revision).sha
    return str(dataclasses.replace(address, revision=commit))


def load(dataset: str, config: str | None, split: str, what: str, cure: str) -> Any:
    """The rows of a split, each a dict; where the hub can't be reached, those that were fetched before.

    Args:
        what: needs them.
        cure: what else can be done where there is no connection.

    Raises:
        ConfigError: the library is not installed, or there is no such dataset to be had.
    """
    datasets = optional.module("datasets", "hub", what, f", or {cure}")
    with _asking(dataset, f"\nOffline? Fetch it once on a connected machine that shares the cache, or {cure}"):
        return datasets.load_dataset(dataset, config, split=split)


def stream(address: Address) -> Any:
    """The rows of a pinned address as they come over the network: a `datasets.IterableDataset`.

    Raises:
        ConfigError: the library is not installed, or the hub can't be reached or has no such dataset.
    """
    datasets = optional.module("datasets", "hub", f"--input {address}")
    with _asking(address.name):
        builder = datasets.load_dataset_builder(address.name, address.config, revision=address.revision)
        if builder.hash != address.revision:  # the library takes what there is, and says nothing
            raise LookupError(f"found in a folder here or in the cache, but not as of commit {address.revision}")
        return builder.as_streaming_dataset(address.split)


@contextlib.contextmanager
def _asking(dataset: str, cure: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many kinds: of the network, of the hub, of the cache
        why = reason(error)
        raise ConfigError(f"'{dataset}' could not be fetched from the Hugging Face hub ({why}).{cure}") from error
