"""Which inputs are meant, what they are, and what is said of those that can't be read."""

import bz2
import gzip
import os
import sys
from pathlib import Path

import pytest
from backports import zstd

from data import inputs, records
from launch.errors import ConfigError


def test_patterns(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "odd[1].txt"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    assert inputs.expand([f"{tmp_path}/?.txt", "-"]) == [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt", "-"]
    assert inputs.expand([f"{tmp_path}/odd[1].txt"]) == [f"{tmp_path}/odd[1].txt"], "a name that looks like a pattern"
    for given_paths, message in {
        (f"{tmp_path}/nothing*",): "no such file",
        (f"{tmp_path}/",): rf"is a folder: give its files, '{tmp_path}/\*'",
        (f"{tmp_path}/pipe",): "must be a regular file",
        (f"{tmp_path}/a.txt", f"{tmp_path}/../{tmp_path.name}/*.txt"): "is given twice",
    }.items():
        with pytest.raises(ConfigError, match=message):
            inputs.expand(given_paths)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 200_000)
    before = inputs.identity(str(path))
    assert inputs.identity(str(path)) == before
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    for content in (b"a" * 199_999, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        path.write_bytes(content)
        os.utime(path, ns=times)
        assert inputs.identity(str(path)) != before
    path.write_bytes(b"a" * 200_000)
    os.utime(path, ns=(times[0], times[1] + 1))
    assert inputs.identity(str(path)) != before


def test_kinds_by_the_first_bytes(tmp_path: Path) -> None:
    """The name has no say."""
    for name, content, stream in (
        ("a.gz", b"text\n", False),
        ("b.txt", gzip.compress(b"text\n"), True),
        ("c.txt", bz2.compress(b"text\n"), True),
        ("d.txt", zstd.compress(b"text\n"), True),
        ("e.txt", b"PAR1 and more", True),
        ("f.parquet", b"text\n", False),
        ("g", b"", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert inputs.is_stream(str(tmp_path / name)) == stream, name
    assert inputs.is_stream("-")
    assert inputs.is_stream("hub:someone/something")
    assert inputs.columns(str(tmp_path / "e.txt")) is records.of_parquet
    assert inputs.columns("hub:someone/something") is records.of_hub


def test_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ConfigError, match=r"x\.txt: is zip, not text"):
        inputs.expand([str(tmp_path / "x.txt")])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.zst", "parquet.txt"])
def test_records_need_a_field(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    Path(path).write_bytes(b"PAR1" if name.startswith("parquet") else b'{"text": "the"}\n')
    with pytest.raises(ConfigError, match=rf"--input {path}: holds records: say which field .*`--field text`"):
        inputs.expand([path])
    assert inputs.expand([path], "text") == [path]


@pytest.mark.parametrize("name", ["json.txt", "ajson", "a.jsonl.d"])
def test_names_that_only_resemble_json(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "text.txt" if name == "a.jsonl.d" else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("the\n")
    assert inputs.expand([str(path)]) == [str(path)]


@pytest.mark.parametrize(
    ("content", "library", "group"),
    [(zstd.compress(b"the\n"), inputs.ZSTD, "zstd"), (b"PAR1", "pyarrow", "parquet")],
)
def test_a_library_that_is_missing(tmp_path: Path, monkeypatch, content: bytes, library: str, group: str) -> None:
    """Said before anything is built."""
    path = str(tmp_path / "x")
    Path(path).write_bytes(content)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ConfigError, match=rf"--input {path} needs the library `{library}`.*`pip install --group {group}`"
    ):
        inputs.expand([path], "text")


def test_the_hub_among_files(tmp_path: Path, monkeypatch) -> None:
    """It gets the commit that it has now, which is what an unfinished build is compared with."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(inputs.hub, "pinned", lambda text: f"{text}@c0ffee")
    path = str(tmp_path / "a.parquet")
    assert inputs.expand([path, "hub:a/b"], "text") == [path, "hub:a/b@c0ffee"]
    assert inputs.identity("hub:a/b@c0ffee") == {"name": "hub:a/b@c0ffee"}
    assert inputs.name_of("hub:a/b@c0ffee") == "hub:a/b@c0ffee"
    assert inputs.name_of(path) == "a.parquet"
    with pytest.raises(ConfigError, match="hub:a/b@c0ffee: holds records"):
        inputs.expand(["hub:a/b"])
    with pytest.raises(ConfigError, match="hub:a/b@c0ffee: is given twice"):
        inputs.expand(["hub:a/b", "hub:a/b"], "text")
