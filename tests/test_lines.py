"""Lines that fit a terminal."""

import io
import sys

import pytest

from launch.lines import bars, folded, width, wrapped


@pytest.mark.parametrize(("columns", "expected"), [("20", 80), ("97", 97), ("300", 120)])
def test_a_width_that_can_be_read(columns: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width() == expected


def test_parts_stay_together_where_there_is_room() -> None:
    assert wrapped("one | two | three", 12) == ["one | two", "    three"]
    assert wrapped("one or two", 7) == ["one or", "    two"]


def test_lines_are_cut_between_words_and_keep_their_indentation() -> None:
    assert folded("one two three", 8) == "one two\nthree"
    assert folded("first\n\n  one two-three\n  four", 8) == "first\n\n  one\n  two-three\n  four"
    assert folded("a   table of  words", 20) == "a   table of  words"


def test_paths_and_commands_stay_whole() -> None:
    path = "/a/folder/with-a/long-name"
    assert folded(f"{path}: no such folder", 10) == f"{path}:\nno such\nfolder"
    command = "  python -m data.describe DATASET --verify"
    assert folded(f"A full example:\n{command}", 20) == f"A full example:\n{command}"


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", "▁▂▃▄▅▆▇█"), ("ascii", ".:-=+*%#"), ("latin-1", ".:-=+*%#")]
)
def test_bars_that_can_be_written(encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert bars() == expected
    for without in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", without)
        assert bars() == "▁▂▃▄▅▆▇█"
