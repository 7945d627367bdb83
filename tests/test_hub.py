"""Datasets of the hub by name: addresses, the commit, and rows as they stream. The `datasets` library is played."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub
import pytest

from data import hub, records
from data.hub import Address
from launch.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "address", "whole"),
    [
        ("hub:wikitext", Address("wikitext"), "hub:wikitext::train"),
        ("hub:a/b", Address("a/b"), "hub:a/b::train"),
        ("hub:a/b:en", Address("a/b", None, "en"), "hub:a/b:en:train"),
        ("hub:a/b::valid", Address("a/b", None, None, "valid"), "hub:a/b::valid"),
        ("hub:a/b@v1:en:valid", Address("a/b", "v1", "en", "valid"), "hub:a/b@v1:en:valid"),
        ("hub:a/b@v1", Address("a/b", "v1"), "hub:a/b@v1::train"),
    ],
)
def test_addresses(text: str, address: Address, whole: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == whole
    assert Address.parse(whole) == address


@pytest.mark.parametrize("text", ["hub:", "hub::en", "hub:@v1", "hub:a:b:c:d"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--input {text}: must be hub:NAME"):
        Address.parse(text)


def test_the_commit(monkeypatch) -> None:
    asked = []

    def info(_: Any, name: str, revision: str | None = None) -> Any:
        asked.append((name, revision))
        return types.SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    assert hub.pinned("hub:a/b:en") == "hub:a/b@c0ffee:en:train"
    assert hub.pinned("hub:a/b@v1") == "hub:a/b@c0ffee::train"
    assert asked == [("a/b", None), ("a/b", "v1")]

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(ConfigError, match=r"'a/b' could not be fetched from the Hugging Face hub \(no route\)\."):
        hub.pinned("hub:a/b")


def test_without_the_library(monkeypatch) -> None:
    """Said before the hub is asked."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    with pytest.raises(ConfigError, match=r"--input hub:a/b needs the library `datasets`.*`pip install --group hub`"):
        hub.pinned("hub:a/b")


class Rows:
    """As `datasets.IterableDataset`, of what is used here."""

    def __init__(self, values: list[Any], names: list[str] | None, broken_after: int | None) -> None:
        self.values, self.column_names, self.broken_after = values, names, broken_after

    def select_columns(self, names: list[str]) -> "Rows":
        assert names == ["text"]
        return self

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.values), batch_size):
            if self.broken_after is not None and start >= self.broken_after:
                raise ConnectionError("the line is dead")
            yield {"text": self.values[start : start + batch_size]}


@pytest.fixture
def serve(monkeypatch) -> Callable[..., list[tuple]]:
    """Put rows on the hub; what was asked for."""

    def put(values: list[Any], names: list[str] | None = None, broken_after: int | None = None) -> list[tuple]:
        asked: list[tuple] = []

        def load(*given: Any, **options: Any) -> Rows:
            asked.append((given, options))
            return Rows(values, names, broken_after)

        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
        return asked

    return put


@pytest.mark.parametrize("names", [None, ["id", "text"]])
def test_rows(serve, names: list[str] | None) -> None:
    asked = serve(["the of", None, "the\nof\n", "", "é"], names)
    found = list(records.of_hub("hub:a/b@c0ffee:en:valid", "text"))
    assert found == [b"the of\n", b"\n", b"the of \n", b"\n", "é\n".encode()]
    assert asked == [(("a/b", "en"), {"split": "valid", "revision": "c0ffee", "streaming": True})]


def test_rows_that_are_no_text(serve) -> None:
    serve(["the"] * 1_500 + [3])
    with pytest.raises(DataError, match=r"hub:a/b, row 1,500: field 'text' is a int, not text"):
        list(records.of_hub("hub:a/b", "text"))
    serve([], ["id", "text"])
    with pytest.raises(DataError, match=r"hub:a/b: no column 'txt' \(but id, text\); did you mean 'text'\?"):
        list(records.of_hub("hub:a/b", "txt"))


def test_a_connection_that_breaks(serve) -> None:
    serve(["the"] * 3_000, broken_after=2_000)
    rows = records.of_hub("hub:a/b", "text")
    assert [next(rows) for _ in range(2_000)] == [b"the\n"] * 2_000
    with pytest.raises(DataError, match=r"hub:a/b: can't be read on after row 2,000: the line is dead"):
        next(rows)
