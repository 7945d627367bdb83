"""data.index_header: pairs that DeepSpeed's and Megatron-Core's own builders wrote, and those that look like them."""

import contextlib
import io
import struct
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from data.describe import verify
from data.index_header import AMBIGUOUS, MAGIC, dtype_of_ids
from data.indexed import Dataset, Shard
from data.shard_writer import ShardWriter
from data.token_counts import count_tokens
from launch.errors import DataError

DOCUMENTS = [[[2, 7, 3]], [[2, 9, 9, 3], [2, 3], [2, 1, 3]], [[2, 40_000, 3], [2, 5, 6, 7, 3]]]
SEQUENCES = [sequence for document in DOCUMENTS for sequence in document]


@pytest.fixture(scope="module")
def deepspeed() -> types.ModuleType:
    """DeepSpeed's own builder and reader; the import tells of the accelerator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.data_pipeline.data_sampling import indexed_dataset
    return indexed_dataset


def build(deepspeed, prefix: Path, dtype: type, documents: list[list[list[int]]], end_documents: bool = True) -> Path:
    """A pair by DeepSpeed's builder."""
    builder = deepspeed.MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_items([np.asarray(sequence) for sequence in document])
        if end_documents:
            builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def sequences_of(dataset: Dataset) -> list[list[int]]:
    ids, ends = dataset.gather(np.arange(len(dataset)))
    return [part.tolist() for part in np.split(ids, ends[1:-1])]


def random_documents(seed: int) -> list[list[list[int]]]:
    generator = np.random.default_rng(seed)
    return [
        [generator.integers(0, 100, generator.integers(1, 30)).tolist() for _ in range(generator.integers(1, 5))]
        for _ in range(generator.integers(1, 20))
    ]


def write_pair(prefix: Path, code: int, itemsize: int, lengths: list[int], tail: bytes = b"") -> Path:
    """Zeros, with any dtype code."""
    ends = np.cumsum(lengths) * itemsize
    index = MAGIC + struct.pack("<QBQQ", 1, code, len(lengths), 2) + np.asarray(lengths, "<i4").tobytes()
    index += np.concatenate([[0], ends[:-1]]).astype("<i8").tobytes() + np.asarray([0, len(lengths)], "<i8").tobytes()
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index + tail)
    prefix.with_name(f"{prefix.name}.bin").write_bytes(bytes(int(ends[-1])))
    return prefix


# --- what DeepSpeed wrote ---


@pytest.mark.parametrize(("dtype", "code", "read_as"), [
    (np.uint16, 6, "uint16"), (np.uint64, 8, "int64"), (np.int32, 4, "int32"), (np.int64, 5, "int64"),
])  # fmt: skip
def test_what_deepspeeds_builder_wrote(deepspeed, tmp_path: Path, dtype: type, code: int, read_as: str) -> None:
    """Read as DeepSpeed's own reader does."""
    prefix = build(deepspeed, tmp_path / "x", dtype, DOCUMENTS)
    assert (tmp_path / "x.idx").read_bytes()[17] == code
    dataset = Dataset.open(prefix)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = deepspeed.MMapIndexedDataset(str(prefix), skip_warmup=True)
    assert sequences_of(dataset) == [theirs[i].tolist() for i in range(len(theirs))] == SEQUENCES
    assert dataset.shards[0].document_ends.tolist() == theirs.doc_idx.tolist() == [0, 1, 4, 6]
    assert dataset.shards[0].dtype.name == read_as
    assert verify(dataset) == []
    assert count_tokens(dataset).tolist() == np.bincount(np.concatenate(SEQUENCES)).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("seed", range(6))
def test_any_shape_that_deepspeeds_builder_wrote(deepspeed, tmp_path: Path, dtype: type, seed: int) -> None:
    documents = random_documents(seed)
    prefix = build(deepspeed, tmp_path / "x", dtype, documents)
    assert sequences_of(Dataset.open(prefix)) == [sequence for document in documents for sequence in document]


def test_one_sequence_is_enough_to_tell(deepspeed, tmp_path: Path, megatron) -> None:
    """Code 8 of both, and equal indices but for the document ends."""
    build(deepspeed, tmp_path / "wide", np.uint64, [[[2, 7, 3]]])
    assert sequences_of(Dataset.open(tmp_path / "wide")) == [[2, 7, 3]]
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/narrow.bin", dtype=np.uint16)
    builder.add_document(np.asarray([2, 7, 3]), [3])
    builder.finalize(f"{tmp_path}/narrow.idx")
    assert (tmp_path / "narrow.idx").read_bytes() == (tmp_path / "wide.idx").read_bytes()
    assert sequences_of(Dataset.open(tmp_path / "narrow")) == [[2, 7, 3]]


def test_a_builder_that_was_never_told_to_end_a_document(deepspeed, megatron, tmp_path: Path) -> None:
    prefix = build(deepspeed, tmp_path / "x", np.uint16, DOCUMENTS, end_documents=False)
    assert sequences_of(Dataset.open(prefix)) == SEQUENCES
    assert verify(Dataset.open(prefix)) == []
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/y.bin", dtype=np.int32)
    for sequence in SEQUENCES:
        builder.add_item(torch.tensor(sequence))
    builder.finalize(f"{tmp_path}/y.idx")
    assert sequences_of(Dataset.open(tmp_path / "y")) == SEQUENCES


def test_an_id_beyond_int64_is_refused_not_misread(deepspeed, tmp_path: Path) -> None:
    builder = deepspeed.MMapIndexedDatasetBuilder(f"{tmp_path}/x.bin", dtype=np.uint64)
    builder.add_item_numpy(np.asarray([2, 2**63 + 5, 3], np.uint64))
    builder.finalize(f"{tmp_path}/x.idx")
    with pytest.raises(DataError, match="negative token id"):
        count_tokens(Dataset.open(tmp_path / "x"))


def test_deepspeeds_uint32_is_what_megatron_calls_float32(deepspeed, megatron, tmp_path: Path) -> None:
    """Both wrote these files; both have the same index."""
    build(deepspeed, tmp_path / "x", np.uint32, [[[2, 7, 3]]])
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/y.bin", dtype=np.float32)
    builder.add_document(np.asarray([2, 7, 3]), [3])
    builder.finalize(f"{tmp_path}/y.idx")
    assert (tmp_path / "x.idx").read_bytes() == (tmp_path / "y.idx").read_bytes()
    for name in "xy":
        message = rf"{name}\.idx: dtype code 7 is uint32 \(DeepSpeed\) or float32 \(Megatron\), and sizes don't tell"
        with pytest.raises(DataError, match=message):
            Dataset.open(tmp_path / name)


def test_deepspeeds_reader_reads_our_int32(deepspeed, tmp_path: Path) -> None:
    """Of what we write (uint16 and int32, by Megatron's codes) it takes uint16 for uint64."""
    with ShardWriter(tmp_path / "x", np.dtype(np.int32)) as writer:
        for document in DOCUMENTS:
            lengths = np.asarray([len(sequence) for sequence in document])
            writer.add(np.concatenate(document), lengths, np.asarray([len(document)]))
        writer.close()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = deepspeed.MMapIndexedDataset(str(tmp_path / "x"), skip_warmup=True)
    assert [theirs[i].tolist() for i in range(len(theirs))] == SEQUENCES
    assert theirs.doc_idx.tolist() == [0, 1, 4, 6]


# --- the sizes, by hand ---


@pytest.mark.parametrize(("code", "itemsize", "name"), [
    (1, 1, "uint8"), (2, 1, "int8"), (3, 2, "int16"), (4, 4, "int32"), (5, 8, "int64"),
    (6, 2, "uint16"), (8, 2, "uint16"), (8, 8, "int64"),
])  # fmt: skip
@pytest.mark.parametrize("lengths", [[1], [3, 1, 4], [512] * 9])
def test_item_sizes(tmp_path: Path, code: int, itemsize: int, name: str, lengths: list[int]) -> None:
    assert Shard(write_pair(tmp_path / "x", code, itemsize, lengths)).dtype.name == name


@pytest.mark.parametrize(("code", "itemsize", "name"), [(6, 8, "float64"), (6, 4, "float32"), (7, 8, "float64")])
def test_floats_are_no_ids(tmp_path: Path, code: int, itemsize: int, name: str) -> None:
    with pytest.raises(DataError, match=rf"x\.idx: dtype code {code}: its ids are {name} \(Megatron\): no token ids"):
        Shard(write_pair(tmp_path / "x", code, itemsize, [3, 5]))


@pytest.mark.parametrize(("code", "wrong"), [(code, size) for code in range(1, 9) for size in (1, 2, 3, 4, 8, 16)])
def test_a_size_that_no_meaning_has(tmp_path: Path, code: int, wrong: int) -> None:
    right = {np.dtype(name).itemsize for name in AMBIGUOUS.get(code, {})} or {{1: 1, 2: 1, 3: 2, 4: 4, 5: 8}[code]}
    if wrong not in right:
        with pytest.raises(
            DataError, match=r"x\.bin: has .* bytes, but its index ends at .*: truncated or not its pair"
        ):
            Shard(write_pair(tmp_path / "x", code, wrong, [3, 5]))


def test_both_readings_are_said(tmp_path: Path) -> None:
    message = r"ends at 16, as uint16 \(Megatron\) or 46, as uint64 \(DeepSpeed\)"
    prefix = write_pair(tmp_path / "x", 8, 2, [3, 5])
    (tmp_path / "x.bin").write_bytes(bytes(20))
    with pytest.raises(DataError, match=message):
        Shard(prefix)


def test_an_empty_last_sequence_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"dtype code 8 is uint16 \(Megatron\) or uint64 \(DeepSpeed\), and sizes don't"
    ):
        Shard(write_pair(tmp_path / "x", 8, 2, [3, 0]))
    assert Shard(write_pair(tmp_path / "x", 4, 4, [3, 0])).dtype == np.int32


def test_a_bin_that_grew_to_the_other_reading(tmp_path: Path) -> None:
    """By exactly what makes its last sequence one of 8 bytes an id: the second pointer says no."""
    prefix = write_pair(tmp_path / "x", 8, 2, [3, 5])
    (tmp_path / "x.bin").write_bytes(bytes(6 + 5 * 8))
    with pytest.raises(DataError, match=r"x\.idx: pointer 1 is 6, expected 24"):
        Shard(prefix)


@pytest.mark.parametrize("code", [6, 7, 8, 4])
def test_nothing_can_be_misread_where_nothing_is(code: int) -> None:
    assert dtype_of_ids(Path("x"), 0, code, 0, 0).kind in "iu"


# --- other kinds of files ---


def test_fairseqs_old_format_is_named(deepspeed, tmp_path: Path) -> None:
    with open(tmp_path / "x.idx", "wb") as file:
        file.write(b"TNTIDX\x00\x00" + struct.pack("<5Q", 1, 4, 4, 1, 1))
    assert deepspeed.infer_dataset_impl(str(tmp_path / "x")) is None  # half a pair
    (tmp_path / "x.bin").write_bytes(bytes(12))
    assert deepspeed.infer_dataset_impl(str(tmp_path / "x")) == "cached"
    with pytest.raises(
        DataError, match=r"x\.idx: a TNTIDX index \(fairseq's .*'lazy' or 'cached' data\): not read here"
    ):
        Dataset.open(tmp_path / "x")


def test_fairseqs_mmididx_has_no_documents(tmp_path: Path) -> None:
    """Its header ends with the number of sequences."""
    lengths, pointers = np.asarray([3, 5], "<i4"), np.asarray([0, 6], "<i8")
    index = MAGIC + struct.pack("<QBQ", 1, 8, 2) + lengths.tobytes() + pointers.tobytes()
    (tmp_path / "x.idx").write_bytes(index)
    (tmp_path / "x.bin").write_bytes(bytes(16))
    with pytest.raises(DataError, match=r"x\.idx: has no document ends: fairseq's own MMIDIDX"):
        Dataset.open(tmp_path / "x")


def test_megatrons_multimodal_data_is_named(megatron, tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/x.bin", dtype=np.uint16, multimodal=True)
    for document in DOCUMENTS:
        builder.add_document(np.concatenate(document), [len(s) for s in document], [1] * len(document))
    builder.finalize(f"{tmp_path}/x.idx")
    with pytest.raises(DataError, match=r"x\.idx: has a byte more for each sequence: modes of Megatron's multimodal"):
        Dataset.open(tmp_path / "x")
