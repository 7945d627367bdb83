"""data.token_counts against a count by Python's own Counter, for datasets and bare pairs, sound and damaged."""

import dataclasses
import shutil
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import VOCABULARY

from data import token_counts as module
from data.describe import verify
from data.indexed import Dataset
from data.manifest import Manifest, file_entry
from data.shard_writer import ShardWriter
from data.token_counts import count_tokens, write_counts
from launch.errors import DataError, run


def write_pair(prefix: Path, ids: list[int], dtype: type = np.int32) -> Path:
    with ShardWriter(prefix, np.dtype(dtype)) as writer:
        writer.add(np.asarray(ids), np.asarray([len(ids)]), np.asarray([1]))
        writer.close()
    return prefix


def counted(dataset: Dataset) -> dict[int, int]:
    return dict(Counter(i for shard in dataset.shards for i in shard.ids.tolist()))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("piece", [1, 3, 1000, 1 << 22])
def test_counts_of_a_dataset(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    counts = count_tokens(dataset)
    assert (counts.size, counts.dtype) == (len(VOCABULARY), np.int64)
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == counted(dataset)


@pytest.mark.usefixtures("form")
def test_every_id_of_a_uint16(tmp_path: Path) -> None:
    """Each from 0 to 65,535, so often as its last digit says, and once more."""
    ids = np.repeat(np.arange(1 << 16), np.arange(1 << 16) % 10 + 1)
    dataset = Dataset.open(write_pair(tmp_path / "x", np.random.default_rng(0).permutation(ids).tolist(), np.uint16))
    assert count_tokens(dataset).tolist() == [i % 10 + 1 for i in range(1 << 16)]


def test_binarize_counted_the_same_in_its_own_pass(dataset: Dataset) -> None:
    assert np.array_equal(dataset.counts(), count_tokens(dataset))


def test_counts_of_a_bare_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as its largest id asks for, wherever in the file that stands."""
    monkeypatch.setattr(module, "PIECE", 2)
    dataset = Dataset.open(write_pair(tmp_path / "x.y", [2, 9, 2, 0, 5, 3]))
    assert write_counts(dataset).tolist() == [1, 0, 2, 1, 0, 1, 0, 0, 0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.y.bin", "x.y.counts.npy", "x.y.idx"]
    assert dataset.counts().tolist() == [1, 0, 2, 1, 0, 1, 0, 0, 0, 1]


def test_a_dataset_that_lost_its_counts_gets_them_back(dataset_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "copy")
    (folder / "counts.npy").unlink()
    with pytest.raises(DataError, match=r"counts\.npy: missing; `python -m data\.token_counts"):
        Dataset.open(folder).counts()
    write_counts(Dataset.open(folder))
    assert (folder / "counts.npy").read_bytes() == (dataset_folder / "counts.npy").read_bytes()
    assert Manifest.read(folder) == Manifest.read(dataset_folder)
    assert verify(Dataset.open(folder)) == []


def test_wrong_counts_are_replaced_and_the_manifest_follows(dataset_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "copy")
    right = Manifest.read(folder)
    np.save(folder / "counts.npy", np.zeros(3, np.int64))
    dataclasses.replace(right, files={**right.files, "counts.npy": file_entry(folder / "counts.npy")}).write(folder)
    assert verify(Dataset.open(folder))
    write_counts(Dataset.open(folder))
    assert verify(Dataset.open(folder)) == []
    assert Manifest.read(folder) == right


@pytest.mark.parametrize(("ids", "message"), [
    ([2, -7, 3], r"x\.bin: holds the negative token id -7"),
    ([2, 2**31 - 1, 3], r"x\.bin: holds token id 2,147,483,647, above all that is counted"),
])  # fmt: skip
def test_ids_that_are_damage(tmp_path: Path, ids: list[int], message: str) -> None:
    """An array up to the id that one flipped bit makes would take 16 GB."""
    dataset = Dataset.open(write_pair(tmp_path / "x", ids))
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        count_tokens(dataset)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.usefixtures("form")
def test_an_id_outside_the_vocabulary(dataset_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "damaged")
    content = bytearray((folder / "00001.bin").read_bytes())
    content[8:10] = len(VOCABULARY).to_bytes(2, "little")
    (folder / "00001.bin").write_bytes(content)
    before = (folder / "counts.npy").read_bytes()
    with pytest.raises(DataError, match=rf"00001\.bin: holds token id {len(VOCABULARY)}, outside the vocabulary of"):
        write_counts(Dataset.open(folder))
    assert (folder / "counts.npy").read_bytes() == before


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    write_pair(tmp_path / "x", [2, 5, 5, 3])
    monkeypatch.setattr(sys, "argv", ["data.token_counts", str(tmp_path / "x")])
    run(module.main)
    assert capsys.readouterr().out == f"{tmp_path / 'x.counts.npy'}: 4 tokens, 3 of 6 ids occur\n"
    monkeypatch.setattr(sys, "argv", ["data.token_counts", str(tmp_path / "y")])
    with pytest.raises(SystemExit) as exit_:
        run(module.main)
    assert exit_.value.code == 3
    assert "neither a dataset folder nor a prefix" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["data.token_counts"])
    with pytest.raises(SystemExit) as exit_:
        run(module.main)
    assert exit_.value.code == 2
