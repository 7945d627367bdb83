"""Text is cut by what it holds alone; every line is read once."""

import bz2
import gzip
import io
import itertools
import lzma
import random
from pathlib import Path

import pytest
from backports import zstd
from conftest import sentence
from hypothesis import given
from hypothesis import strategies as st

from data import inputs, text
from data.text import Range, Selection, Stream
from launch.errors import DataError


def mixed(seed: int = 2, lines: int = 20) -> bytes:
    generator = random.Random(seed)
    odd = [b"", b"\r", b"\xff\xfe", b"the " * 700]
    return b"\n".join(
        sentence(generator, generator.randint(1, 40)).encode() + generator.choice(odd) for _ in range(lines)
    )


# --- ranges ---


@pytest.mark.parametrize("size", [1, 2, 10, 64, 1000, 10**6])
@pytest.mark.parametrize("content", [
    b"", b"\n", b"\n\n\n", b"a", b"a\nb", b"a\nb\n", b"aaaaaaaaaa\n" * 5, b"x" * 300 + b"\n" + b"a\n" * 50, b"y" * 99,
    mixed(),
])  # fmt: skip
def test_ranges_cover_the_file_once_in_whole_lines(tmp_path: Path, content: bytes, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    ranges, _ = text.plan([str(path)], size, None)
    assert b"".join(content[part.start : part.end] for part in ranges) == content
    ends = [part.end for part in ranges]
    assert [part.start for part in ranges] == [0, *ends[:-1]][: len(ends)]
    assert [part.number for part in ranges] == list(range(len(ranges)))
    for part in ranges[:-1]:  # each ends with the line that reaches the next multiple of the size
        assert part.end == content.index(b"\n", (part.start // size + 1) * size - 1) + 1


def test_a_line_longer_than_a_shard_makes_no_shards_of_crumbs(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 300 + b"\n" + b"a\n" * 50)
    assert [(part.start, part.end) for part in text.plan([str(path)], 100, None)[0]] == [(0, 301), (301, 401)]


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_blocks_are_the_range_in_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    (tmp_path / "x").write_bytes(b"skipped\na\r\nb\r\r\n\r\n\nc\rd\ne\r")
    found = list(text.blocks(Range(0, str(tmp_path / "x"), 8, 24)))
    assert b"".join(found) == b"a\r\nb\r\r\n\r\n\nc\rd\ne\r"
    assert all(part.endswith(b"\n") for part in found[:-1])


def test_a_text_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"the\n")
    with pytest.raises(DataError, match="x: shrank while it was read"):
        list(text.blocks(Range(0, str(tmp_path / "x"), 0, 400)))


@pytest.mark.parametrize("limit", range(9))
def test_a_limit_counts_lines_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 4)
    contents = [b"a\n\nccc\n", b"d\ne", b"f\n"]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    paths = [str(tmp_path / str(number)) for number in range(3)]
    ranges, left = text.plan(paths, 100, limit)
    taken = b"".join(Path(part.path).read_bytes()[part.start : part.end] for part in ranges)
    lines = [b"a\n", b"\n", b"ccc\n", b"d\n", b"e", b"f\n"]
    assert taken == b"".join(lines[:limit])
    assert left == max(limit - 6, 0)
    (tmp_path / "all").write_bytes(b"".join(lines))
    assert b"".join(text.stream_blocks(str(tmp_path / "all"), limit)).count(b"\n") == min(limit, 5)


def test_shards_are_sized_by_the_input(tmp_path: Path) -> None:
    for megabytes, expected in ((1, 8), (640, 10), (100_000, 256)):
        with open(tmp_path / "x", "wb") as file:
            file.truncate(megabytes * 1_000_000)  # sparse
        assert text.shard_bytes([str(tmp_path / "x")], None) == expected * 1_000_000
    assert text.shard_bytes([str(tmp_path / "x")], 3) == 3_000_000
    with open(tmp_path / "x", "wb") as file:
        file.truncate(8 * 10**12)
    assert 8 * 10**12 / text.shard_bytes([str(tmp_path / "x")], None) <= text.MOST_SHARDS + 1
    assert text.shard_bytes(["-"], None) == 256_000_000


# --- streams ---


def pzstd(content: bytes) -> bytes:
    """As pzstd writes: a frame that is skipped, with the size of the next one, before each."""
    frames = (zstd.compress(content[:1000]), zstd.compress(content[1000:]))
    return b"".join(b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + len(f).to_bytes(4, "little") + f for f in frames)


@pytest.mark.parametrize(("ending", "compress"), [
    (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd.compress), (".pzst", pzstd),
    (".more.gz", lambda content: gzip.compress(content[:1000]) + gzip.compress(content[1000:])),
    (".long.zst", lambda content: zstd.compress(content, options={zstd.CompressionParameter.window_log: 30})),
])  # fmt: skip
def test_compressed_text(tmp_path: Path, monkeypatch, ending: str, compress) -> None:
    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    content, path = mixed(lines=60), tmp_path / f"x{ending}"
    path.write_bytes(compress(content))
    assert inputs.is_stream(str(path))
    stream = Stream(str(path), 3_000, None, number=7)
    pieces = list(stream)
    assert b"".join(piece.block for piece in pieces) == content
    assert (stream.bytes, stream.lines) == (len(content), 60)
    heads = [piece for piece in pieces if piece.head]
    assert [piece.number for piece in heads] == list(range(7, 7 + stream.shards))
    assert stream.shards > 2
    for piece, following in itertools.pairwise(heads):
        assert following.start - piece.start >= 3_000
    path.write_bytes(compress(content)[:-10])
    with pytest.raises(DataError, match=f"x{ending}: can't be decompressed"):
        list(Stream(str(path), 3_000, None, 0))
    path.rename(tmp_path / "x.TXT")  # the name has no say
    assert inputs.is_stream(str(tmp_path / "x.TXT"))
    path.write_bytes(b"nothing of the kind")
    assert not inputs.is_stream(str(path))


def test_a_file_that_grows_is_found(tmp_path: Path) -> None:
    """Its last line was not complete when the ranges were cut."""
    (tmp_path / "x").write_bytes(b"the\nof the house\n")
    with pytest.raises(DataError, match="x: changed while it was read"):
        list(text.blocks(Range(0, str(tmp_path / "x"), 0, 7)))


def test_standard_input(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\nc\n")))
    assert list(text.stream_blocks("-", 2)) == [b"a\nb\n"]


# --- which lines ---


@given(lines=st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line), min_size=1), last=st.booleans())
def test_a_line_has_the_same_fate_anywhere(lines: list[bytes], last: bool) -> None:
    selection = Selection(sample=0.6, valid_fraction=0.3)
    block = b"\n".join(lines) + (b"\n" if last or not lines[-1] else b"")
    (train, valid), left_out = selection.split(block)
    found = {b: [line.removesuffix(b"\r") for line in b.split(b"\n")[:-1]] for b in (train, valid)}
    assert len(found[train]) + len(found[valid]) + left_out == len(lines) or train == valid == b""
    for line in lines:
        (alone_train, alone_valid), out = selection.split(line + b"\n")
        content = line.removesuffix(b"\r")
        assert (content in found[train]) >= bool(alone_train)
        assert (content in found[valid]) >= bool(alone_valid)
        assert (bool(alone_train) + bool(alone_valid) + out) == 1


def test_shares_are_what_was_asked_for() -> None:
    lines = b"".join(f"line {i}\n".encode() for i in range(20_000))
    (train, valid), left_out = Selection(sample=0.5, valid_fraction=0.1).split(lines)
    assert abs(left_out / 20_000 - 0.5) < 0.02
    assert abs(valid.count(b"\n") / 10_000 - 0.1) < 0.02
    assert not set(train.split(b"\n")[:-1]) & set(valid.split(b"\n")[:-1])
    assert Selection().split(lines) == ([lines], 0)
    assert Selection().datasets == (".",)


def test_line_ends_have_no_say() -> None:
    selection = Selection(valid_fraction=0.5)
    for i in range(50):
        unix, windows = (selection.split(f"line {i}{end}".encode())[0] for end in ("\n", "\r\n"))
        assert [bool(part) for part in unix] == [bool(part) for part in windows]
