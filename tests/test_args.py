"""Flags from frozen dataclasses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from launch.args import flag, parse, positional, require
from launch.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """An example group."""

    name: str = flag(help="a name")
    folder: Path = flag(Path("here"), "a folder")
    count_of: int = flag(3, "how many, 100 % of them")
    share: float | None = flag(None, "a share")
    layers: tuple[int, ...] = flag((0, 1), "some layers")
    mode: Literal["a", "b"] = flag("a", "a mode")
    fast: bool = flag(True, "be fast")

    def __post_init__(self) -> None:
        require(self.count_of > 0, "count_of", self.count_of, "must be positive")


@dataclass(frozen=True)
class Place:
    """A positional argument."""

    path: Path = positional("where", "PATH")


def read(*words: str) -> Example:
    return parse("A program.", Example, argv=words, example="  program --name x", prog="program")[0]


def test_numbers_of_any_size_are_not_taken():
    assert read("--name", "x", "--count-of", str(2**53)).count_of == 2**53
    with pytest.raises(ConfigError, match=r"--count-of: 99999999999999999999\.\.\. is too large"):
        read("--name", "x", "--count-of", "9" * 30)
    with pytest.raises(ConfigError, match=r"--count-of: invalid int value: '1\.5'"):
        read("--name", "x", "--count-of", "1.5")


def test_two_hyphens_are_no_value():
    with pytest.raises(ConfigError, match="argument '--share=--': -- is no value"):
        read("--name", "x", "--share=--")


def test_defaults_and_types():
    assert read("--name", "x") == Example("x", Path("here"), 3, None, (0, 1), "a", True)
    words = [
        "--name=y",
        "--folder",
        "f",
        "--count-of",
        "5",
        "--share",
        "0.5",
        "--layers",
        "2",
        "3",
        "--mode",
        "b",
        "--no-fast",
    ]
    assert read(*words) == Example("y", Path("f"), 5, 0.5, (2, 3), "b", False)


def test_a_flag_given_twice_collects():
    assert read("--name", "x", "--layers", "2", "3", "--layers", "4").layers == (2, 3, 4)


def test_underscores_are_hyphens_but_values_stay():
    assert read("--name", "a_b", "--count_of=7").count_of == 7
    assert read("--name=--a_b").name == "--a_b"
    assert read("--name", "x", "--folder", "my_folder").folder == Path("my_folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "x", "--count-off", "1"], "did you mean '--count-of'?"),
        (["--name", "x", "--zzzzzz"], "unknown argument '--zzzzzz'"),
        (["--name", "x", "--coun", "1"], "unknown argument"),
        (["--name", "x", "--count-of", "many"], "--count-of"),
        (["--name", "x", "--mode", "c"], "--mode"),
        (["--name", "x", "--count-of", "0"], "--count-of 0: must be positive"),
        (["--name"], "--name"),
        (["stray", "--name", "x"], "stray"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match="(?s)" + __import__("re").escape(message)):
        read(*words)


def test_missing_flags_are_all_named_with_an_example():
    with pytest.raises(ConfigError) as caught:
        read()
    assert "--name" in str(caught.value)
    assert "a name" in str(caught.value)
    assert "program --name x" in str(caught.value)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "An example group",
        "how many, 100 % of them (default: 3)",
        "--no-fast",
        "(default: 0 1)",
        "program --name x",
    ):
        assert word in text


@dataclass(frozen=True)
class Places:
    """Several positional arguments."""

    paths: tuple[Path, ...] = positional("where", "PATH")
    fast: bool = flag(False, "be fast")


def test_positional_tuple():
    assert parse("", Places, argv=["a", "b_c", "--fast"])[0] == Places((Path("a"), Path("b_c")), True)
    assert parse("", Places, argv=["--fast", "a"])[0].paths == (Path("a"),)
    with pytest.raises(ConfigError, match="PATH"):
        parse("", Places, argv=["--fast"])


def test_positional():
    assert parse("", Place, argv=["there"])[0].path == Path("there")
    with pytest.raises(ConfigError, match="PATH"):
        parse("", Place, argv=[])
