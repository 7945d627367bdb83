"""data.gather against slices of the shards' arrays, and files that are cut short under its feet."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.gather import Reader
from data.indexed import Dataset, Shard
from data.shard_writer import ShardWriter
from launch.errors import DataError

ROOT = Path(__file__).parents[1]
DTYPES = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64)


def write(prefix: Path, dtype: type, sequences: int, seed: int) -> Shard:
    """A shard with ids over the whole range of its type."""
    generator, limits = np.random.default_rng(seed), np.iinfo(dtype)
    lengths = generator.integers(1, 40, sequences)
    with ShardWriter(prefix, np.dtype(dtype)) as writer:
        ids = generator.integers(limits.min, limits.max, lengths.sum(), dtype, endpoint=True)
        writer.add(ids, lengths, np.ones(sequences, np.int64))
        writer.close()
    return Shard(prefix)


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """One of each type of ids, of different sizes."""
    return [write(tmp_path / np.dtype(dtype).name, dtype, 20 + 7 * k, k) for k, dtype in enumerate(DTYPES)]


@pytest.mark.usefixtures("form")
def test_any_order_over_shards_of_every_type(shards: list[Shard]) -> None:
    everything = [shard.ids[p : p + n].tolist() for shard in shards
                  for p, n in zip(shard.pointers // shard.ids.itemsize, shard.lengths, strict=True)]  # fmt: skip
    wanted = np.random.default_rng(0).integers(0, len(everything), 700)
    reader = Reader(shards)
    extents = reader.extents(wanted)
    ids, ends = reader.ids(extents)
    assert [part.tolist() for part in np.split(ids, ends[1:-1])] == [everything[i] for i in wanted]
    assert extents.lengths.tolist() == [len(everything[i]) for i in wanted]
    assert {a.dtype for a in (ids, ends, extents.lengths, extents.first, extents.shard_of)} == {np.dtype(np.int64)}


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("wrong", [-1, 10**12])
def test_a_number_that_no_sequence_has_is_our_own_bug(shards: list[Shard], wrong: int) -> None:
    """Not even one behind the last; and no memory is read for it."""
    reader = Reader(shards)
    reader.extents(np.asarray([0, int(reader.starts[-1]) - 1]))
    for number in (wrong, int(reader.starts[-1])):
        with pytest.raises(AssertionError, match="no such sequence"):
            reader.extents(np.asarray([3, number, 4]))


@pytest.mark.usefixtures("form")
def test_nothing(shards: list[Shard]) -> None:
    ids, ends = Reader(shards).ids(Reader(shards).extents(np.zeros(0, np.int64)))
    assert (ids.size, ends.tolist()) == (0, [0])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("at", "value", "found"), [
    (34 + 4 * 5, np.int32(-3), "-3 tokens"), (34 + 4 * 5, np.int32(0), "0 tokens"),
    (34 + 4 * 5, np.int32(10**6), "1,000,000 tokens"), (34 + 4 * 20 + 8 * 5, np.int64(-1), "from -1 on"),
    (34 + 4 * 20 + 8 * 5, np.int64(2**62), "damaged"),
])  # fmt: skip
def test_a_damaged_index_is_named(shards: list[Shard], at: int, value: np.generic, found: str) -> None:
    path = shards[0].prefix.with_name("uint8.idx")
    content = bytearray(path.read_bytes())
    content[at : at + value.nbytes] = value.tobytes()
    path.write_bytes(content)
    reader = Reader([Shard(shards[0].prefix), *shards[1:]])
    assert reader.extents(np.asarray([4, 6, 30])).lengths.size == 3
    with pytest.raises(DataError, match=rf"uint8\.idx: sequence 5 has .*{found}"):
        reader.extents(np.asarray([30, 4, 5, 6]))


CUT_SHORT = """
import os, sys
import numpy as np
from data.indexed import Dataset
from data.loader import prefetch
from launch.errors import run

dataset = Dataset.open(sys.argv[1])
everything = np.arange(len(dataset))

def read(step):
    if step == 1:
        os.truncate(sys.argv[2], 0)
    return dataset.gather(everything)[0].size

run(lambda: print(*prefetch(read, range(3), depth=1)))
"""


def run_script(text: str, *words: object) -> subprocess.CompletedProcess:
    """In a process of its own: SIGBUS may end it."""
    return subprocess.run(
        [sys.executable, "-c", text, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize(("cut", "named"), [("bin", "x.bin: was cut short while it was read"), ("idx", "an index was")])
def test_a_file_cut_short_while_it_is_read_is_an_error_of_data(tmp_path: Path, cut: str, named: str) -> None:
    """Read by the thread that works ahead; without its guard the process would die of SIGBUS."""
    write(tmp_path / "x", np.uint16, 3_000, 0)
    done = run_script(CUT_SHORT, tmp_path / "x", tmp_path / f"x.{cut}")
    assert done.returncode == 3, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr


FAULT_ELSEWHERE = """
import os, sys
import numpy as np
from data.indexed import Dataset

dataset = Dataset.open(sys.argv[1])
dataset.gather(np.arange(len(dataset)))
os.truncate(sys.argv[1] + ".bin", 0)
print(dataset.shards[0].ids.sum())
"""


def test_a_fault_elsewhere_is_left_to_whom_it_concerns(tmp_path: Path) -> None:
    write(tmp_path / "x", np.uint16, 3_000, 0)
    assert run_script(FAULT_ELSEWHERE, tmp_path / "x").returncode == -7


def test_a_dataset_keeps_its_reader(dataset: Dataset) -> None:
    assert dataset.reader is dataset.reader
    assert dataset.reader.starts.tolist() == dataset.starts.tolist()
