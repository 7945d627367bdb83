"""data.corpora: what `--data` may say, and several datasets read as one."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data import keyed
from data.corpora import Corpora, Rows, matching_counts
from data.indexed import Dataset
from data.order import OrderSettings
from data.shard_writer import ShardWriter
from data.token_counts import write_counts
from data.vocabulary import Vocabulary
from launch.errors import ConfigError, DataError

VOCABULARY = Vocabulary(50, 2, 3, 4, 0, 1, (0, 1, 2, 3, 4), "")
RANDOM = OrderSettings()


def write(prefix: Path, sequences: int, dtype: type = np.uint16) -> Path:
    """A counted bare pair: sequence i is [CLS] 5 + i % 40, i + 1 times [SEP]."""
    lengths = np.arange(sequences) + 3
    ids = np.concatenate([[2, *[5 + i % 40] * (i + 1), 3] for i in range(sequences)])
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(prefix, np.dtype(dtype)) as writer:
        writer.add(ids, lengths, np.ones(sequences, np.int64))
        writer.close()
    write_counts(Dataset.open(prefix))
    return prefix


@pytest.fixture
def two(tmp_path: Path) -> Corpora:
    """7 and 4 sequences, of different types of ids; the first has three quarters of the stream."""
    return Corpora.open((f"{write(tmp_path / 'a', 7)}:3", f"{write(tmp_path / 'b', 4, np.int32)}:1"))


# --- what --data says ---


def test_one_path(tmp_path: Path) -> None:
    corpora = Corpora.open((str(write(tmp_path / "a", 7)),))
    assert (len(corpora.datasets), corpora.epoch_size, corpora.names) == (1, 7, ["a"])
    assert corpora.identity() == Corpora.of(corpora.datasets[0]).identity()
    weighted = Corpora.open((f"{tmp_path / 'a'}:0.7",))
    assert weighted.identity() == corpora.identity()


def test_weights_are_shares_whatever_they_add_up_to(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 7), write(tmp_path / "b", 4)
    for one, other in (("0.75", "0.25"), ("3", "1"), ("3e2", "100")):
        corpora = Corpora.open((f"{a}:{one}", f"{b}:{other}"))
        assert corpora.schedule.quotas.tolist() == [49_152, 16_384]
        assert [dataset.path for dataset in corpora.datasets] == [a, b]


def test_a_path_may_hold_colons(tmp_path: Path, dataset_folder: Path) -> None:
    """What exists is a path, whatever it ends with."""
    pair = write(tmp_path / "x:0.5", 7)
    folder = shutil.copytree(dataset_folder, tmp_path / "web:2024")
    assert Corpora.open((str(pair),)).datasets[0].path == pair
    assert Corpora.open((str(folder),)).datasets[0].path == folder
    both = Corpora.open((f"{pair}:1", f"{folder}:2"))
    assert [dataset.path for dataset in both.datasets] == [pair, folder]


@pytest.mark.parametrize(("weights", "message"), [
    (("", ""), r"a: several corpora need weights, as in --data .*a:0\.7 .*b:0\.3; .*data\.merge"),
    ((":1", ""), r"b: several corpora need weights"),
    ((":0", ":1"), r"a:0: the weight must be positive"),
    ((":-1", ":1"), r"a:-1: the weight must be positive"),
    ((":nan", ":1"), r"a:nan: the weight must be positive"),
    ((":1", ":inf"), r"b:inf: the weight must be positive"),
    ((":1", ":1e-9"), r"the weight 1e-09 of 1 is below 1 sequence in 65,536"),
])  # fmt: skip
def test_weights_that_are_refused(tmp_path: Path, weights: tuple[str, str], message: str) -> None:
    words = [f"{write(tmp_path / name, 3)}{weight}" for name, weight in zip("ab", weights, strict=True)]
    with pytest.raises(ConfigError, match=message):
        Corpora.open(words)


def test_a_corpus_given_twice_is_refused(tmp_path: Path) -> None:
    a = write(tmp_path / "a", 3)
    with pytest.raises(ConfigError, match="a: given twice"):
        Corpora.open((f"{a}:1", f"{a}:2"))


@pytest.mark.parametrize("word", ["nothing", "nothing:0.5", "nothing:half"])
def test_what_is_not_there(word: str) -> None:
    with pytest.raises(DataError, match=r"nothing.*neither a dataset folder nor a prefix"):
        Corpora.open((word,))


# --- several as one ---


def rows_of(corpora: Corpora, positions: np.ndarray, order: OrderSettings = RANDOM) -> Rows:
    return corpora.rows(positions, [keyed.key(9, number) for number in range(len(corpora.datasets))], order)


@pytest.mark.parametrize("order", [RANDOM, OrderSettings("blocks", 2, 2)])
def test_each_sequence_of_each_corpus_once_in_its_own_epoch(two: Corpora, order: OrderSettings) -> None:
    rows = rows_of(two, np.arange(300), order)
    for number, dataset in enumerate(two.datasets):
        mine = rows[rows.corpora == number]
        assert (np.diff(mine.epochs) >= 0).all()
        for epoch in range(int(mine.epochs[-1])):  # the last may be cut
            assert sorted(mine.sequences[mine.epochs == epoch].tolist()) == list(range(len(dataset)))
    assert np.bincount(rows.corpora).tolist() == [225, 75]


def test_rows_are_a_pure_function_of_the_position(two: Corpora) -> None:
    start = 10**9 * 4096
    together = rows_of(two, np.arange(start, start + 50))
    alone = [rows_of(two, np.asarray([start + i])) for i in range(50)]
    for name in ("corpora", "epochs", "sequences"):
        assert getattr(together, name).tolist() == [int(getattr(row, name)[0]) for row in alone]
    assert together.epochs[together.corpora == 0].tolist()[0] == int(two.schedule.before(start)[0]) // 7


def test_corpora_of_the_same_size_have_orders_of_their_own(tmp_path: Path) -> None:
    corpora = Corpora.open([f"{write(tmp_path / name, 30)}:1" for name in "ab"])
    rows = rows_of(corpora, np.arange(60))
    orders = [rows.sequences[rows.corpora == number].tolist() for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]


def test_keys_tell_corpus_epoch_and_sequence_apart() -> None:
    columns = np.asarray(np.meshgrid([0, 1], [0, 1, 2], range(10))).reshape(3, -1)
    assert np.unique(Rows(*columns).keys(keyed.key(1))).size == 60


@pytest.mark.usefixtures("form")
def test_reading_over_corpora(two: Corpora) -> None:
    rows = rows_of(two, np.arange(40))
    ids, ends = two.read(two.extents(rows), VOCABULARY)
    expected = [
        two.datasets[c].gather(np.asarray([s]))[0].tolist() for c, s in zip(rows.corpora, rows.sequences, strict=True)
    ]
    assert [part.tolist() for part in np.split(ids, ends[1:-1])] == expected
    assert two.extents(rows).lengths.tolist() == (rows.sequences + 3).tolist()


@pytest.mark.usefixtures("form")
def test_an_id_outside_the_vocabulary_names_its_corpus(two: Corpora, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "b.bin").read_bytes())
    content[4 * 9 : 4 * 10] = (60_000).to_bytes(4, "little")  # in the third sequence
    (tmp_path / "b.bin").write_bytes(content)
    rows = Rows(np.asarray([0, 1, 1, 0]), np.zeros(4, np.int64), np.asarray([5, 0, 2, 1]))
    with pytest.raises(
        DataError, match=rf"^{tmp_path / 'b'}: holds token id 60000, .*data\.describe {tmp_path / 'b'} "
    ):
        two.read(two.extents(rows), VOCABULARY)
    two.read(two.extents(rows[np.asarray([0, 1, 3])]), VOCABULARY)


# --- counts ---


def test_counts_of_one_corpus_are_its_own(two: Corpora) -> None:
    for dataset in two.datasets:
        assert np.array_equal(Corpora.of(dataset).counts(VOCABULARY), matching_counts(dataset, VOCABULARY))


def test_counts_by_shares(two: Corpora, tmp_path: Path) -> None:
    """Of 11 sequences 8.25 are of the first corpus: its 7 count 8.25 / 7 times, the other's 4 count 2.75 / 4 times."""
    first, second = (matching_counts(dataset, VOCABULARY) for dataset in two.datasets)
    assert two.counts(VOCABULARY).tolist() == np.rint(8.25 / 7 * first + 2.75 / 4 * second).tolist()
    by_size = Corpora.open((f"{tmp_path / 'a'}:{7 / 11}", f"{tmp_path / 'b'}:{4 / 11}"))
    assert np.abs(by_size.counts(VOCABULARY) - (first + second)).max() <= 1


# --- what the user is told ---


def test_epochs_and_words(two: Corpora) -> None:
    assert two.epoch_size is None
    assert two.epochs(0) == {"epoch_a": 0, "epoch_b": 0}
    assert two.epochs(4 * 28) == {"epoch_a": 3 * 28 / 7, "epoch_b": 28 / 4}
    assert two.summary(112) == "a 75.00%, 12.00 epochs of 7 sequences; b 25.00%, 7.00 epochs of 4 sequences"
    assert [(fact["share"], fact["sequences"]) for fact in two.facts()] == [(0.75, 7), (0.25, 4)]
    one = Corpora.of(two.datasets[0])
    assert one.epochs(14) == {"epoch": 2}
    assert one.summary(10) == "1.43 epochs of 7 sequences"


def test_corpora_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "web", 3) for folder in ("old", "new")]
    assert Corpora.open([f"{path}:1" for path in paths]).names == [str(path) for path in paths]


def test_the_identity_tells_datasets_order_and_shares_apart(two: Corpora, tmp_path: Path) -> None:
    words = [("a:3", "b:1"), ("b:1", "a:3"), ("a:1", "b:3"), ("a:1",), ("b:1",)]
    found = [repr(Corpora.open([f"{tmp_path}/{word}" for word in pair]).identity()) for pair in words]
    assert len(set(found)) == len(found)
    assert found[0] == repr(two.identity())
