"""data.indexed against Megatron-Core's builder and reader, a layout worked out by hand, and damage of every kind."""

import contextlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data.indexed import Dataset, Shard
from data.manifest import ShardEntry
from data.shard_writer import ShardWriter
from launch.errors import DataError

# Documents of one, three and two sequences.
DOCUMENTS = [[[2, 7, 3]], [[2, 9, 9, 3], [2, 3], [2, 1, 3]], [[2, 40_000, 3], [2, 5, 6, 7, 3]]]


def write_ours(prefix: Path, dtype: type, documents: list[list[list[int]]]) -> ShardEntry:
    """One `add` for each document."""
    with ShardWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            lengths = np.asarray([len(sequence) for sequence in document])
            writer.add(np.asarray([i for s in document for i in s]), lengths, np.asarray([len(document)]))
        return writer.close()


def write_megatrons(megatron, prefix: Path, dtype: type, documents: list[list[list[int]]]) -> None:
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        ids = np.asarray([i for sequence in document for i in sequence])  # it warns of torch's tensors
        builder.add_document(ids, [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


def random_documents(seed: int, largest: int) -> list[list[list[int]]]:
    generator = np.random.default_rng(seed)
    return [
        [generator.integers(0, largest, generator.integers(1, 30)).tolist() for _ in range(generator.integers(1, 5))]
        for _ in range(60)
    ]


def sequences_of(dataset: Dataset) -> list[list[int]]:
    ids, ends = dataset.gather(np.arange(len(dataset)))
    return [part.tolist() for part in np.split(ids, ends[1:-1])]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Prefix of a small uint16 pair."""
    write_ours(tmp_path / "pair", np.uint16, DOCUMENTS)
    return tmp_path / "pair"


def test_layout_by_hand(tmp_path: Path) -> None:
    write_ours(tmp_path / "x", np.uint16, [[[2, 7, 3]], [[2, 258, 9, 3], [2, 3]]])
    assert (tmp_path / "x.bin").read_bytes() == bytes([2, 0, 7, 0, 3, 0, 2, 0, 2, 1, 9, 0, 3, 0, 2, 0, 3, 0])
    header = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + b"\x08" + struct.pack("<QQ", 3, 3)
    body = struct.pack("<3i", 3, 4, 2) + struct.pack("<3q", 0, 6, 14) + struct.pack("<3q", 0, 1, 3)
    assert (tmp_path / "x.idx").read_bytes() == header + body


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 65_499), (np.int32, 250_000)])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_bytes_as_megatrons_builder(tmp_path: Path, megatron, dtype: type, largest: int, seed: int) -> None:
    documents = random_documents(seed, largest)
    write_ours(tmp_path / "ours", dtype, documents)
    write_megatrons(megatron, tmp_path / "theirs", dtype, documents)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_reads_ours(tmp_path: Path, megatron, dtype: type) -> None:
    documents = random_documents(7, 60_000)
    write_ours(tmp_path / "ours", dtype, documents)
    theirs = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert [theirs.get(i).tolist() for i in range(len(theirs))] == [s for document in documents for s in document]
    assert theirs.document_indices.tolist() == np.cumsum([0] + [len(document) for document in documents]).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_a_pair_written_by_megatron_opens(tmp_path: Path, megatron, dtype: type) -> None:
    documents = random_documents(8, 120)
    write_megatrons(megatron, tmp_path / "theirs", dtype, documents)
    dataset = Dataset.open(tmp_path / "theirs")
    assert sequences_of(dataset) == [sequence for document in documents for sequence in document]
    assert dataset.shards[0].dtype == dtype
    assert dataset.shards[0].document_ends.tolist() == np.cumsum([0] + [len(d) for d in documents]).tolist()
    assert dataset.tokens == sum(len(sequence) for document in documents for sequence in document)
    assert (dataset.manifest, dataset.vocabulary) == (None, None)


def test_written_in_any_pieces_it_is_the_same_file(tmp_path: Path) -> None:
    write_ours(tmp_path / "pieces", np.uint16, DOCUMENTS)
    sequences = [sequence for document in DOCUMENTS for sequence in document]
    ids, lengths = np.concatenate(sequences), np.asarray([len(s) for s in sequences])
    with ShardWriter(tmp_path / "whole", np.dtype(np.uint16)) as writer:
        writer.add(ids, lengths, np.asarray([len(document) for document in DOCUMENTS]))
        writer.add(ids[:0], lengths[:0], lengths[:0])
        writer.close()
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"pieces.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def test_the_entry_tells_sizes_and_checksums(tmp_path: Path) -> None:
    entry = write_ours(tmp_path / "a.b", np.int32, DOCUMENTS)  # a dot in the name is no suffix
    content, index = (tmp_path / "a.b.bin").read_bytes(), (tmp_path / "a.b.idx").read_bytes()
    assert (entry.name, entry.sequences, entry.documents, entry.tokens) == ("a.b", 6, 3, 20)
    assert (entry.bin_bytes, entry.idx_bytes) == (len(content), len(index)) == (80, 34 + 6 * 12 + 4 * 8)
    assert entry.bin_xxh3 == xxhash.xxh3_64_hexdigest(content)
    assert entry.idx_xxh3 == xxhash.xxh3_64_hexdigest(index)
    assert sequences_of(Dataset.open(tmp_path / "a.b")) == [s for document in DOCUMENTS for s in document]


def test_gather_reads_any_order_over_shards(dataset: Dataset) -> None:
    everything = [shard.ids[p : p + n].tolist() for shard in dataset.shards
                  for p, n in zip(shard.pointers // 2, shard.lengths, strict=True)]  # fmt: skip
    assert len(dataset.shards) == 3
    assert len(dataset) == len(everything) == sum(len(shard.lengths) for shard in dataset.shards)
    wanted = np.random.default_rng(0).integers(0, len(dataset), 500)
    ids, ends = dataset.gather(wanted)
    assert ids.dtype == ends.dtype == np.int64
    assert [part.tolist() for part in np.split(ids, ends[1:-1])] == [everything[i] for i in wanted]
    assert dataset.lengths(wanted).tolist() == [len(everything[i]) for i in wanted]


def test_gather_of_nothing(dataset: Dataset) -> None:
    ids, ends = dataset.gather(np.zeros(0, np.int64))
    assert ids.size == 0
    assert ends.tolist() == [0]


def read_all(path: Path) -> list[list[int]]:
    """Open a dataset and touch all that it holds."""
    dataset = Dataset.open(path)
    dataset.lengths(np.arange(len(dataset)))
    return sequences_of(dataset)


def test_no_flipped_byte_of_an_index_ends_in_another_error(pair: Path) -> None:
    """A bare pair has no checksum: some damage can't be seen. What is seen is a DataError, never a crash."""
    index, seen = pair.with_name("pair.idx").read_bytes(), 0
    for i in range(len(index)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(index)
            damaged[i] ^= mask
            pair.with_name("pair.idx").write_bytes(damaged)
            try:
                read_all(pair)
            except DataError:
                seen += 1
    assert seen > 0.8 * 3 * len(index)


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_truncation_is_seen_at_opening(pair: Path, suffix: str) -> None:
    path = pair.with_name(f"pair.{suffix}")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"pair\.{suffix}: (has|.* bytes are no whole|not an MMIDIDX)"):
            Dataset.open(pair)
    path.write_bytes(content + b"\x00\x00")
    with pytest.raises(DataError, match=rf"pair\.{suffix}: has"):
        Dataset.open(pair)


@pytest.mark.parametrize(("at", "value", "message"), [
    (0, b"MMIDIDY", "not an MMIDIDX index"),
    (9, struct.pack("<Q", 2), "version 2"),
    (17, b"\x07", r"has 40 bytes, but its index ends at 50, as uint32 \(DeepSpeed\) or 50, as float32"),
    (17, b"\x09", "dtype code 9"),
    (17, b"\x63", "dtype code 99"),
    (17, b"\x04", "truncated"),
    (18, struct.pack("<Q", 1 << 60), "its header says"),
    (26, struct.pack("<Q", 0), "its header says"),
    (34, struct.pack("<i", -1), "pointer 1 is 6, expected -2"),
    (34 + 8, struct.pack("<i", -1), "sequence 2 has -1 tokens"),
    (34 + 8, struct.pack("<i", 2**31 - 1), "sequence 2 has 2,147,483,647 tokens"),
    (34 + 24, struct.pack("<q", 2), "pointer 0 is 2, expected 0"),
    (34 + 32, struct.pack("<q", 2**63 - 1), "pointer 1 is 9223372036854775807, expected 6"),
    (34 + 40, struct.pack("<q", -2), "from -1 on"),
    (34 + 40, struct.pack("<q", 2**63 - 1), "damaged"),
    (34 + 72, struct.pack("<q", 1), "documents end"),
    (34 + 96, struct.pack("<q", 7), "documents end at 7 of 6"),
])  # fmt: skip
def test_a_damaged_index_is_named(pair: Path, at: int, value: bytes, message: str) -> None:
    path = pair.with_name("pair.idx")
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(pair)


def test_an_index_without_a_document_end(tmp_path: Path) -> None:
    """Not even the 0 that stands first; its size is what its header says."""
    (tmp_path / "x.idx").write_bytes(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 0, 0))
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(DataError, match="truncated or damaged"):
        Dataset.open(tmp_path / "x")


def test_an_error_while_writing_closes_the_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "x", np.dtype(np.uint16))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert writer.file.closed


@pytest.mark.parametrize("suffix", ["idx", "bin"])
def test_half_a_pair(pair: Path, suffix: str) -> None:
    pair.with_name(f"pair.{suffix}").unlink()
    with pytest.raises(DataError, match=r"neither a dataset folder|pair\.bin: No such file"):
        Dataset.open(pair)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a dataset folder nor a prefix"):
        Dataset.open(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no manifest\.json.*data\.binarize"):
        Dataset.open(tmp_path)
    write_ours(tmp_path / "empty", np.uint16, [])
    assert len(Shard(tmp_path / "empty").lengths) == 0
    with pytest.raises(DataError, match="holds no sequence"):
        Dataset.open(tmp_path / "empty")


def test_a_pair_of_two_others_does_not_open(tmp_path: Path) -> None:
    write_ours(tmp_path / "a", np.uint16, DOCUMENTS)
    write_ours(tmp_path / "b", np.uint16, DOCUMENTS[:2])
    shutil.copy(tmp_path / "a.idx", tmp_path / "b.idx")
    with pytest.raises(DataError, match=r"b\.bin: has 24 bytes, but its index ends at 40"):
        Dataset.open(tmp_path / "b")


def test_a_shard_that_the_manifest_does_not_describe(dataset_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "damaged")
    write_ours(folder / "00001", np.uint16, DOCUMENTS)
    with pytest.raises(DataError, match=r"00001: .* are \(6, 3, 20, 'uint16', 40, 138\), the manifest says"):
        Dataset.open(folder)
    (folder / "00001.idx").unlink()
    with pytest.raises(DataError, match=r"00001\.idx: No such file"):
        Dataset.open(folder)


def test_counts_are_missing_or_of_another_dataset(pair: Path) -> None:
    dataset = Dataset.open(pair)
    with pytest.raises(DataError, match=r"pair\.counts\.npy: missing; `python -m data\.token_counts"):
        dataset.counts()
    counts = np.bincount(np.concatenate([s for document in DOCUMENTS for s in document]))
    np.save(dataset.counts_path, counts)
    assert np.array_equal(dataset.counts(), counts)
    for wrong, message in ((counts + 1, "counts 40,021 tokens, the dataset has 20"), (counts / 1, "float64"),
                           (counts[None], r"int64 \[1, 40001\]"), (counts.astype("m8[s]"), "timedelta64")):  # fmt: skip
        np.save(dataset.counts_path, wrong)
        with pytest.raises(DataError, match=message):
            dataset.counts()


def test_no_damage_of_counts_ends_in_another_error(dataset_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "damaged")
    dataset, path = Dataset.open(folder), folder / "counts.npy"
    content, right = path.read_bytes(), dataset.counts()
    for i in range(len(content)):
        for damaged in (content[:i], content[:i] + bytes([content[i] ^ 0x0C]) + content[i + 1 :]):
            path.write_bytes(damaged)
            with contextlib.suppress(DataError):
                assert dataset.counts().sum() == right.sum()  # a letter of the header that numpy doesn't mind


def test_the_fingerprint_of_a_pair(tmp_path: Path) -> None:
    write_ours(tmp_path / "a", np.uint16, DOCUMENTS)
    write_ours(tmp_path / "b", np.uint16, DOCUMENTS)
    write_ours(tmp_path / "c", np.uint16, DOCUMENTS[::-1])
    write_ours(tmp_path / "d", np.int32, DOCUMENTS)
    write_ours(tmp_path / "e", np.uint16, DOCUMENTS)
    with open(tmp_path / "e.bin", "r+b") as file:
        file.seek(4)
        file.write(b"\x01")
    a, b, c, d, e = (Dataset.open(tmp_path / name).fingerprint() for name in "abcde")
    assert a == b
    assert len({a, c, d, e}) == 4
