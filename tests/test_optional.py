"""Libraries that only some inputs need."""

import importlib
import sys
from pathlib import Path

import pytest

from data import optional
from launch.errors import ConfigError

NAME = "a_library_of_nobody"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders that Python searches, one after the other."""
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (second, first):
        place.mkdir()
        monkeypatch.syspath_prepend(place)
    monkeypatch.setitem(sys.modules, NAME, None)  # so that it is forgotten afterwards
    monkeypatch.delitem(sys.modules, NAME)
    importlib.invalidate_caches()
    return first, second


def test_a_library_that_is_missing_is_named_with_its_group() -> None:
    with pytest.raises(ConfigError, match=rf"--x needs the library `{NAME}`, .*`pip install --group some`, or not"):
        optional.module(NAME, "some", "--x", ", or not")


def test_a_folder_of_the_same_name_is_no_library(places: tuple[Path, Path]) -> None:
    """`datasets/` is where datasets are made, and the name of a library."""
    (places[0] / NAME / "english").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"the library `{NAME}`, which is not installed"):
        optional.module(NAME, "some", "--x")


def test_a_library_is_found_behind_a_folder_of_its_name(places: tuple[Path, Path]) -> None:
    first, second = places
    (first / NAME).mkdir()
    (second / NAME).mkdir()
    (second / NAME / "__init__.py").write_text("version = 3\n")
    assert optional.module(NAME, "some", "--x").version == 3
