"""data.describe: what it tells of a dataset is counted anew here; what it verifies is broken here in every way."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import VOCABULARY

from data import describe as module
from data.binarize import Files, binarize
from data.describe import Arguments, describe, histogram, samples, verify
from data.indexed import Dataset
from data.manifest import CleaningRules, Manifest
from data.shard_writer import ShardWriter
from launch.errors import ConfigError, DataError, run


@pytest.fixture
def folder(dataset_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(dataset_folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Two shards of a few sequences, one of them a split line."""
    path = tmp_path_factory.mktemp("tiny")
    (path / "a.txt").write_text("the of and to in a\nthe of and\n")
    (path / "b.txt").write_text("cats walked\nthe dog\nruns\n")
    files = Files((path / "a.txt", path / "b.txt"), str(tokenizer_folder), path / "tiny", 1)
    binarize(files, CleaningRules(6, 3, 0.5))
    return path / "tiny"


def faults_of(path: Path) -> list[str]:
    """What opening or verifying has to say."""
    try:
        return verify(Dataset.open(path))
    except DataError as error:
        return [str(error)]


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["data.describe", *map(str, words)])
    try:
        run(module.main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


# --- the description ---


def test_histogram_by_hand() -> None:
    rows = histogram(np.asarray([3, 15, 16, 31, 32, 512, 5000] + [64] * 8))
    assert [row.split()[-2:] if "#" in row else row.split()[-1:] for row in rows] == [
        ["2", "#" * 10], ["2", "#" * 10], ["1", "#" * 5], ["8", "#" * 40], ["0"], ["0"], ["2", "#" * 10],
    ]  # fmt: skip
    assert rows[0].split()[:3] == ["0", "..", "15"]
    assert rows[-1].split()[:3] == ["512", "and", "up"]


def test_description(dataset: Dataset) -> None:
    text = describe(dataset, 2)
    lengths = np.concatenate([shard.lengths for shard in dataset.shards])
    ids = np.concatenate([shard.ids for shard in dataset.shards])
    assert f"{len(lengths)} sequences, {len(ids):,} tokens, 3 shard(s), uint16" in text
    assert f"mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, shortest {min(lengths)}" in text
    assert f"{np.unique(ids).size} of {len(VOCABULARY)}, unknown {(ids == 1).mean():.4%}" in text
    assert "cleaned from 230 lines: 0 too short, 0 mostly unknown, 0 split into 0, 0 with invalid UTF-8" in text
    assert "\n  [0] [CLS] " in text
    assert f"\n  [{len(lengths) - 1}] [CLS] " in text


def test_samples_are_decoded_where_there_is_a_tokenizer(tiny: Path) -> None:
    assert samples(Dataset.open(tiny), 99) == [
        "  [0] [CLS] the of and to [SEP]", "  [1] [CLS] in a [SEP]", "  [2] [CLS] the of and [SEP]",
        "  [3] [CLS] cats walked [SEP]", "  [4] [CLS] the dog [SEP]", "  [5] [CLS] runs [SEP]",
    ]  # fmt: skip
    assert len(samples(Dataset.open(tiny), 3)) == 3
    ids = " ".join(str(VOCABULARY.index(token)) for token in ("[CLS]", "cat", "##s", "walk", "##ed", "[SEP]"))
    assert samples(Dataset.open(tiny / "00001"), 1) == [f"  [0] {ids}"]


def test_a_sample_is_a_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "width", lambda: 22)
    assert samples(Dataset.open(tiny), 99)[:2] == ["  [0] [CLS] the of ...", "  [1] [CLS] in a [SEP]"]


def test_without_samples_or_counts(folder: Path) -> None:
    (folder / "counts.npy").unlink()
    text = describe(Dataset.open(folder), 0)
    assert "samples:" not in text
    assert "token ids that occur" not in text


def test_a_bare_pair_is_described_and_verified(tmp_path: Path, monkeypatch, capsys) -> None:
    with ShardWriter(tmp_path / "x", np.dtype(np.int32)) as writer:
        writer.add(np.arange(2_000), np.asarray([1_500, 500]), np.asarray([2]))
        writer.close()
    assert command(monkeypatch, tmp_path / "x", "--verify", "--samples", "1") == 0
    out = capsys.readouterr().out
    assert "2 sequences, 2,000 tokens, 1 shard(s), int32" in out
    assert "vocabulary" not in out
    assert " ...\n" in out  # the long sample is cut
    assert out.endswith("verified: pointers, ids and counts are right\n")


# --- verification ---


def test_a_sound_dataset_has_no_fault(dataset: Dataset, tiny: Path) -> None:
    assert verify(dataset) == []
    assert faults_of(tiny) == []


@pytest.mark.parametrize("name", ["00000.idx", "00001.bin", "counts.npy", "manifest.json", "tokenizer/tokenizer.json"])
def test_every_flipped_byte_is_a_fault(tiny: Path, tmp_path: Path, name: str) -> None:
    """But for white space of the manifest that stays white space."""
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    manifest = Manifest.read(folder)
    path = folder / name
    content = path.read_bytes()
    for i in range(0, len(content), max(1, len(content) // 400)):
        path.write_bytes(content[:i] + bytes([content[i] ^ (0x01, 0x08, 0x80, 0xFF)[i % 4]]) + content[i + 1 :])
        faults = faults_of(folder)
        assert faults or (
            name == "manifest.json" and Manifest.read(folder) == manifest and content[i : i + 1].isspace()
        )
        assert all(str(folder) in fault for fault in faults)


@pytest.mark.parametrize("name", ["00000.idx", "00000.bin", "00001.bin", "counts.npy", "manifest.json"])
def test_every_truncation_is_a_fault(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    content = (folder / name).read_bytes()
    for size in range(0, len(content.rstrip(b"\n")), max(1, len(content) // 100)):  # a last line end means nothing
        (folder / name).write_bytes(content[:size])
        assert faults_of(folder), size


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "aside")
    (folder / other).rename(folder / one)
    (folder / "aside").rename(folder / other)


def swap_pairs(folder: Path) -> None:
    swap(folder, "00000.bin", "00001.bin")
    swap(folder, "00000.idx", "00001.idx")


def overwrite_ids(*ids: int, at: int) -> Callable[[Path], None]:
    """Put other ids into the first shard."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / "00000.bin").read_bytes())
        content[2 * at : 2 * (at + len(ids))] = np.asarray(ids, np.uint16).tobytes()
        (folder / "00000.bin").write_bytes(content)

    return damage


def other_counts(folder: Path) -> None:
    counts = np.load(folder / "counts.npy")
    counts[[5, 6]] += [1, -1]
    np.save(folder / "counts.npy", counts)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: swap(folder, "00000.bin", "00001.bin"), "00000.bin: has"),
    (lambda folder: swap(folder, "00000.idx", "00001.idx"), "00000.bin: has"),
    (swap_pairs, "00000: (sequences, documents, tokens, dtype, bytes of"),
    (lambda folder: (folder / "00002.bin").unlink(), "00002.bin: No such file"),
    (lambda folder: (folder / "00002.idx").unlink(), "00002.idx: No such file"),
    (lambda folder: (folder / "counts.npy").unlink(), "counts.npy: checksum missing"),
    (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer.json: checksum missing"),
    (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{}"), "tokenizer.json: checksum"),
    (other_counts, "counts.npy: count of token id 5 is wrong"),
    (overwrite_ids(5, at=0), "00000: sequence 0 is not [CLS] ... [SEP]"),
    (overwrite_ids(60_000, at=3), "00000.bin: holds token id 60,000, outside the vocabulary"),
    (overwrite_ids(4, at=3), "00000.bin: checksum"),
])  # fmt: skip
def test_faults_are_named(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    assert any(message in fault for fault in faults_of(folder)), faults_of(folder)


def test_a_folder_of_datasets_names_them(tiny: Path, tmp_path: Path) -> None:
    for name in ("valid", "train"):
        shutil.copytree(tiny, tmp_path / name)
    with pytest.raises(DataError, match=rf"not a dataset \(it holds: {tmp_path}/train, {tmp_path}/valid\)$"):
        Dataset.open(tmp_path)


def test_a_document_that_ends_elsewhere_is_told_by_the_checksum(tiny: Path, tmp_path: Path) -> None:
    """Ends 0, 2, 3 become 0, 1, 3: nothing else contradicts that."""
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    index = bytearray((folder / "00000.idx").read_bytes())
    assert np.frombuffer(index[-24:], "<i8").tolist() == [0, 2, 3]
    index[-16] = 1
    (folder / "00000.idx").write_bytes(index)
    (fault,) = faults_of(folder)
    assert fault.startswith(f"{folder}/00000.idx: checksum")


def test_swapped_shards_of_equal_size_are_told_by_their_checksums(tmp_path: Path, tokenizer_folder: Path) -> None:
    for name, words in (("a", "the of and"), ("b", "to in a")):
        (tmp_path / f"{name}.txt").write_text(f"{words}\n")
    files = Files((tmp_path / "a.txt", tmp_path / "b.txt"), str(tokenizer_folder), tmp_path / "out", 1)
    binarize(files, CleaningRules(512, 3, 0.5))
    swap_pairs(tmp_path / "out")
    faults = faults_of(tmp_path / "out")
    assert [fault.split(":")[0][-9:] for fault in faults] == ["00000.bin", "00001.bin"]


def test_faults_of_an_index_that_opens(tmp_path: Path) -> None:
    """A bare pair, with lengths and pointers that don't follow from each other."""
    with ShardWriter(tmp_path / "x", np.dtype(np.uint16)) as writer:
        writer.add(np.arange(9), np.asarray([4, 3, 2]), np.asarray([1, 2]))
        writer.close()
    index = (tmp_path / "x.idx").read_bytes()

    def with_int(at: int, value: int, size: int) -> list[str]:
        (tmp_path / "x.idx").write_bytes(index[:at] + value.to_bytes(size, "little", signed=True) + index[at + size :])
        return faults_of(tmp_path / "x")

    assert with_int(34, 5, 4) == [f"{tmp_path}/x.idx: pointer 1 is 8, expected 10"]
    assert f"{tmp_path}/x.idx: sequence 1 has length -1" in with_int(38, -1, 4)
    assert with_int(34 + 12 + 8, 7, 8) == [f"{tmp_path}/x.idx: pointer 1 is 7, expected 8"]
    assert with_int(34 + 36 + 8, 4, 8) == [f"{tmp_path}/x.idx: document ends are not ascending"]


def test_a_sequence_longer_than_the_rules_allow(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, rules=CleaningRules(5, 3, 0.5)).write(folder)
    assert faults_of(folder) == [f"{folder}/{n}: sequence 0 has 6 tokens, allowed are 5" for n in ("00000", "00001")]


def test_a_longest_sequence_that_is_not_there(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    manifest = Manifest.read(folder)
    first, second = manifest.shards
    dataclasses.replace(manifest, shards=(dataclasses.replace(first, longest=9), second)).write(folder)
    assert faults_of(folder) == [f"{folder}/00000: the longest sequence has 6 tokens, the manifest says 9"]


# --- the command ---


def test_command(monkeypatch, capsys, folder: Path) -> None:
    assert command(monkeypatch, folder, "--samples", "1") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}: 230 sequences")
    assert "verified" not in out
    assert command(monkeypatch, folder, "--verify") == 0
    assert capsys.readouterr().out.endswith("verified: checksums, pointers, frames, ids and counts are right\n")


def test_command_on_a_damaged_dataset(monkeypatch, capsys, folder: Path) -> None:
    """All faults at once, each on its line, and nothing that looks like a description."""
    overwrite_ids(5, at=0)(folder)
    other_counts(folder)
    assert command(monkeypatch, folder, "--verify") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {folder}: 4 fault(s):\n")
    assert len(err.strip().splitlines()) == 5


def test_no_damage_of_an_index_ends_in_a_traceback(monkeypatch, capsys, tiny: Path, tmp_path: Path) -> None:
    """Without --verify too: it describes what it can read, or exits with 3."""
    folder = shutil.copytree(tiny, tmp_path / "damaged")
    content = (folder / "00000.idx").read_bytes()
    for i in range(0, len(content), 3):
        (folder / "00000.idx").write_bytes(content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :])
        assert command(monkeypatch, folder) in (0, 3)
        assert command(monkeypatch, folder, "--verify") == 3


def test_refusals(monkeypatch, capsys, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--samples -1: must not be negative"):
        Arguments(tmp_path, -1, False)
    assert command(monkeypatch, tmp_path / "nothing") == 3
    assert command(monkeypatch) == 2
    assert command(monkeypatch, tmp_path, "--verfy") == 2
    assert "did you mean '--verify'?" in capsys.readouterr().err
