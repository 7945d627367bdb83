"""Records become lines; whatever is wrong with one has its place."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import records
from launch.errors import DataError


def of_json(block: bytes, field: str = "text") -> bytes:
    return records.of_json(block, field, lambda number: f"x.jsonl, line {number + 1}")


# --- JSON lines ---


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "the of"}', b"the of"),
        (b'{"id": 3, "text": "the", "more": {"text": "of"}}', b"the"),
        (b'  {"text": "the"}  \r', b"the"),
        (b'{"text": "the\\nof\\n\\nand\\r\\nto"}', b"the of  and\r to"),
        (b'{"text": "\\u00e9 \\ud83d\\ude00 \\u2028"}', "é \U0001f600 \u2028".encode()),
        ('{"text": "é東"}'.encode(), "é東".encode()),
        (b'{"text": ""}', b""),
        (b'{"text": null}', b""),
        (b"", b""),
        (b"   \r", b""),
        (b'{"text": "the", "text": "of"}', b"of"),  # as `json` has it
        (b'{"text": "the \xff of"}', b"the \xed\xb3\xbf of"),  # stays invalid, and is counted later on
        (b'{"text": "the \\ud83d of"}', b"the \xed\xa0\xbd of"),
    ],
)
def test_a_json_line(line: bytes, text: bytes) -> None:
    assert of_json(line + b"\n") == text + b"\n"
    assert of_json(b'{"text": "a"}\n' + line + b"\n") == b"a\n" + text + b"\n"


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=8), ascii_=st.booleans())
def test_any_text(texts: list[str], ascii_: bool) -> None:
    block = "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=ascii_) + "\n" for text in texts).encode()
    expected = "".join(text.replace("\n", " ") + "\n" for text in texts).encode()
    assert of_json(block) == of_json(block[:-1]) == expected
    assert of_json(block).count(b"\n") == len(texts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "the"', "no JSON object: Expecting ',' delimiter, column 15"),
        (b"the of and", "no JSON object: Expecting value, column 1"),
        (b'{"text": "the"} {"text": "of"}', "no JSON object: Extra data, column 17"),
        (b'["the"]', "a list, no JSON object"),
        (b'"the"', "a str, no JSON object"),
        (b"[" * 100_000, "no JSON object: "),
        (b'{"text": ' + b"9" * 5_000 + b"}", "no JSON object: "),
        (b'{"txt": "the"}', "no field 'text' (but txt); did you mean 'txt'?"),
        (b'{"id": 1, "body": "the"}', "no field 'text' (but id, body)"),
        (b"{}", "no field 'text' (but none)"),
        (b'{"text": 3}', "field 'text' is a int, not text"),
        (b'{"text": ["the"]}', "field 'text' is a list, not text"),
        (b'{"text": {"en": "the"}}', "field 'text' is a dict, not text"),
        (b'{"text": false}', "field 'text' is a bool, not text"),
        (b'{"text": "the\x00"}', "no JSON object: Invalid control character at, column 14"),
    ],
)
def test_json_lines_that_are_refused(line: bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        of_json(b'{"text": "a"}\n' * 2 + line + b'\n{"text": "b"}\n')
    assert str(error.value).startswith(f"x.jsonl, line 3: {message}")


# --- Parquet ---


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


TEXTS = ["the of", None, "the\nof\n", "", "é東", "x" * 5_000, *(f"number {i}" for i in range(2_500))]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), "dictionary"])
@pytest.mark.parametrize(
    "options", [{}, {"row_group_size": 7, "compression": "zstd"}, {"use_dictionary": False, "compression": "gzip"}]
)
def test_a_column(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    column = pyarrow.array(TEXTS).dictionary_encode() if kind == "dictionary" else pyarrow.array(TEXTS, kind)
    path = write_parquet(tmp_path / "x", {"id": range(len(TEXTS)), "text": column}, **options)
    expected = [(text or "").replace("\n", " ").encode() + b"\n" for text in TEXTS]
    assert list(records.of_parquet(str(path), "text")) == expected


def test_a_column_that_is_not_utf8(tmp_path: Path) -> None:
    """Arrow does not look; the bytes pass through, to be counted later on."""
    column = pyarrow.array([b"the \xff of", b"and"]).view(pyarrow.string())
    path = write_parquet(tmp_path / "x", {"text": column})
    assert list(records.of_parquet(str(path), "text")) == [b"the \xff of\n", b"and\n"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["the"]}, r"x: no column 'text' \(but txt\); did you mean 'txt'\?"),
        ({"text": [1, 2]}, "x: column 'text' is of type int64, not text"),
        ({"text": [["the"]]}, "x: column 'text' is of type list.*, not text"),
        ({"text": [b"the"]}, "x: column 'text' is of type binary, not text"),
        ({"text": pyarrow.array([1, 2]).dictionary_encode()}, "x: column 'text' is of type int64, not text"),
        ({"text": [{"en": "the"}]}, "x: column 'text' is of type struct.*, not text"),
    ],
)
def test_columns_that_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(records.of_parquet(str(write_parquet(tmp_path / "x", columns)), "text"))


def test_a_damaged_file(tmp_path: Path) -> None:
    """Cut off anywhere it can't be opened; with bits flipped it may be opened, and its pages have checksums."""
    generator = random.Random(0)
    texts = ["".join(generator.choices("the of and", k=40)) for _ in range(5_000)]
    options = {"row_group_size": 1_000, "use_dictionary": False, "write_page_checksum": True}
    whole = write_parquet(tmp_path / "x", {"text": texts}, **options).read_bytes()
    for size in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:size])
        with pytest.raises(DataError, match="x: can't be read as Parquet"):
            list(records.of_parquet(str(tmp_path / "x"), "text"))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "x").write_bytes(flipped)
    rows = records.of_parquet(str(tmp_path / "x"), "text")
    assert next(rows) == texts[0].encode() + b"\n"
    with pytest.raises(DataError, match=r"x: can't be read on after row [23],000: "):
        list(rows)
