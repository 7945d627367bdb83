"""data.pair: a pair appears whole or not at all; its index is written in pieces as it would be at once."""

import io
from pathlib import Path

import numpy as np
import pytest
import xxhash
from tqdm import tqdm

from data import pair
from data.indexed import Shard
from data.shard_writer import ShardWriter
from launch.errors import DataError


def write_pair(prefix: Path, lengths: list[int], documents: list[int]) -> Shard:
    with ShardWriter(prefix, np.dtype(np.uint16)) as writer:
        writer.add(np.arange(sum(lengths)), np.asarray(lengths), np.asarray(documents))
        writer.close()
    return Shard(prefix)


def fill(partial: Path) -> None:
    for ending in pair.ENDINGS:
        pair.beside(partial, ending).write_text(ending)


def test_all_files_appear_under_their_names(tmp_path: Path) -> None:
    output = tmp_path / "new" / "a.b"
    with pair.committed(output) as partial:
        fill(partial)
        assert not any(path.name.startswith("a.b.") and ".partial" not in path.name for path in output.parent.iterdir())
    assert {path.name: path.read_text() for path in output.parent.iterdir()} == {
        "a.b.bin": ".bin", "a.b.idx": ".idx", "a.b.counts.npy": ".counts.npy",
    }  # fmt: skip


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("renamed", range(3))
def test_an_end_at_any_moment_leaves_nothing(tmp_path: Path, monkeypatch, error: type, renamed: int) -> None:
    """Also between two renames; and the index, which makes it a dataset, is the last to appear."""
    names = []

    def rename(path: Path, target: Path) -> None:
        names.append(target.name)
        if len(names) > renamed:
            raise error
        original(path, target)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(error), pair.committed(tmp_path / "x") as partial:
        fill(partial)
    assert names == ["x.counts.npy", "x.bin", "x.idx"][: renamed + 1]
    assert list(tmp_path.iterdir()) == []


def test_append_compares_with_the_checksum(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pair, "PIECE", 3)
    (tmp_path / "x").write_bytes(b"0123456789")
    right = xxhash.xxh3_64_hexdigest(b"0123456789")
    target, bar = io.BytesIO(), tqdm(disable=True)
    pair.append(tmp_path / "x", target, right, bar)
    pair.append(tmp_path / "x", target, None, bar)
    assert target.getvalue() == b"01234567890123456789"
    with pytest.raises(DataError, match=rf"x: checksum {right}, expected 0: damaged"):
        pair.append(tmp_path / "x", target, "0", bar)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
def test_an_index_in_pieces(tmp_path: Path, monkeypatch, piece: int) -> None:
    """As the writer of shards makes it of everything at once."""
    monkeypatch.setattr(pair, "PIECE", piece)
    lengths, documents = [3, 1, 4, 1, 5, 9, 2], [2, 1, 3, 1]
    parts = [
        write_pair(tmp_path / "a", lengths[:3], documents[:2]),
        write_pair(tmp_path / "b", lengths[3:], documents[2:]),
    ]
    pair.write_index(tmp_path / "joined.idx", parts)
    write_pair(tmp_path / "whole", lengths, documents)
    assert (tmp_path / "joined.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
@pytest.mark.parametrize("wrong", [2, 3, 5])
def test_sequences_that_do_not_follow_one_another(tmp_path: Path, monkeypatch, piece: int, wrong: int) -> None:
    monkeypatch.setattr(pair, "PIECE", piece)
    write_pair(tmp_path / "x", [3, 1, 4, 1, 5, 9, 2], [7])
    index = bytearray((tmp_path / "x.idx").read_bytes())
    at = 34 + 4 * 7 + 8 * wrong
    right = int.from_bytes(index[at : at + 8], "little")
    index[at : at + 8] = (right + 2).to_bytes(8, "little")
    (tmp_path / "x.idx").write_bytes(index)
    with pytest.raises(DataError, match=rf"x\.idx: pointer {wrong} is {right + 2}, expected {right}"):
        pair.write_index(tmp_path / "joined.idx", [Shard(tmp_path / "x")])
