"""data.loader: the law of the data stream, for every way of cutting a step, and the thread that works ahead of it."""

import dataclasses
import itertools
import shutil
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from conftest import VOCABULARY
from sparse_corpus import LENGTH, make_readable, write_corpus

from data import compiled, keyed, loader
from data.batching import MicroBatch
from data.corpora import Corpora, Rows, matching_counts
from data.indexed import Dataset
from data.loader import HeldOut, StreamSettings, Total, TrainingStream, prefetch
from data.masking import MaskingSettings
from data.order import OrderSettings, sequences_at
from data.shard_writer import ShardWriter
from data.token_counts import write_counts
from data.vocabulary import Vocabulary
from launch.errors import DataError

SETTINGS = StreamSettings(train_batch_size=32, seed=5, masking=MaskingSettings())
GOLDEN_STEP = (2, "f763129591dc3e4c")
CUTS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (4, 2), (3, 5), (1, 32)]

Sequence = tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...]]


@pytest.fixture(scope="module")
def vocabulary(dataset: Dataset) -> Vocabulary:
    assert dataset.vocabulary
    return dataset.vocabulary


@pytest.fixture(scope="module")
def stream(dataset: Dataset, vocabulary: Vocabulary) -> TrainingStream:
    return TrainingStream(Corpora.of(dataset), vocabulary, SETTINGS)


def unpack(batch: MicroBatch) -> list[Sequence]:
    """Every sequence of a micro-batch: its ids, what the model sees of them, and (position, label) of each gap."""
    whole = batch.input_ids.copy()
    whole[batch.masked_positions] = batch.labels
    rows = []
    for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
        inside = (batch.masked_positions >= start) & (batch.masked_positions < end)
        gaps = zip((batch.masked_positions[inside] - start).tolist(), batch.labels[inside].tolist(), strict=True)
        rows.append((tuple(whole[start:end].tolist()), tuple(batch.input_ids[start:end].tolist()), tuple(gaps)))
    return rows


def parts_of(stream: TrainingStream, step: int, ranks: int, accumulation: int) -> list[MicroBatch]:
    """The micro-batches of all ranks."""
    return [b for rank in range(ranks) for b in stream.micro_batches(step, rank, ranks, accumulation)]


def content(batches: Iterable[MicroBatch]) -> Counter:
    return Counter(row for batch in batches for row in unpack(batch))


def originals(dataset: Dataset, numbers: Iterable[int]) -> Counter:
    return Counter(tuple(dataset.gather(np.asarray([n]))[0].tolist()) for n in numbers)


# --- training ---


@pytest.mark.parametrize(("ranks", "accumulation"), CUTS)
@pytest.mark.parametrize("step", [0, 7, 10**6])  # step 7 straddles two epochs of 230 sequences
def test_a_step_is_the_same_however_it_is_cut(stream: TrainingStream, ranks: int, accumulation: int, step: int) -> None:
    (whole,) = stream.micro_batches(step)
    parts = parts_of(stream, step, ranks, accumulation)
    assert sorted(batch.part for batch in parts) == list(range(ranks * accumulation))
    assert content(parts) == content([whole])
    assert sum(batch.tokens for batch in parts) == whole.tokens
    assert {(b.step, b.step_tokens, b.step_masked) for b in parts} == {(step, whole.tokens, whole.labels.size)}


def test_a_part_is_the_same_on_whichever_rank_it_lands(stream: TrainingStream) -> None:
    for ranks, accumulation in [(2, 2), (1, 4)]:
        for one, other in zip(
            sorted(parts_of(stream, 3, 4, 1), key=lambda b: b.part),
            sorted(parts_of(stream, 3, ranks, accumulation), key=lambda b: b.part),
            strict=True,
        ):
            for field in dataclasses.fields(MicroBatch):
                assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


def test_a_rank_takes_every_ranks_th_part(stream: TrainingStream) -> None:
    assert [b.part for b in stream.micro_batches(0, rank=1, ranks=3, accumulation=4)] == [1, 4, 7, 10]


def test_the_sequences_of_a_step_by_the_law(stream: TrainingStream, dataset: Dataset) -> None:
    """Positions kB to (k + 1)B - 1 of the endless stream."""
    for step in (0, 7, 100):
        _, numbers = sequences_at(np.arange(step * 32, step * 32 + 32), 230, keyed.key(5, 0, 0))
        (batch,) = stream.micro_batches(step)
        assert Counter(whole for whole, _, _ in unpack(batch)) == originals(dataset, numbers)


@pytest.mark.parametrize(("batch_size", "steps"), [(32, 115), (230, 3), (500, 23), (1, 230)])
def test_each_sequence_once_an_epoch(dataset: Dataset, vocabulary: Vocabulary, batch_size: int, steps: int) -> None:
    """Also where the batch doesn't divide the epoch, and where it holds more than one."""
    stream = TrainingStream(Corpora.of(dataset), vocabulary, dataclasses.replace(SETTINGS, train_batch_size=batch_size))
    seen: Counter = Counter()
    for step in range(steps):
        seen.update(whole for whole, _, _ in unpack(stream.micro_batches(step)[0]))
    epochs, left = divmod(batch_size * steps, 230)
    assert left == 0
    assert seen == Counter({ids: epochs * n for ids, n in originals(dataset, range(230)).items()})


def test_the_next_epoch_has_other_masks(stream: TrainingStream) -> None:
    first, second = (content(stream.micro_batches(k)[0] for k in steps) for steps in (range(7), range(8, 14)))
    both = {whole for whole, _, _ in first} & {whole for whole, _, _ in second}
    same = {row for row in first if row[0] in both} & set(second)
    assert len(both) > 100
    assert len(same) < 0.2 * len(both)


def test_the_step_is_the_whole_state(dataset_folder: Path, vocabulary: Vocabulary, stream: TrainingStream) -> None:
    for _ in range(3):
        stream.micro_batches(4)
    fresh = TrainingStream(Corpora.of(Dataset.open(dataset_folder)), vocabulary, SETTINGS)
    assert unpack(fresh.micro_batches(9)[0]) == unpack(stream.micro_batches(9)[0])


def test_a_micro_batch_is_packed(stream: TrainingStream) -> None:
    for batch in parts_of(stream, 2, 2, 3):
        lengths = np.diff(batch.cu_seqlens)
        assert (batch.cu_seqlens.dtype, batch.cu_seqlens[0]) == (np.int32, 0)
        assert batch.cu_seqlens[-1] == batch.input_ids.size == batch.positions.size == batch.tokens
        assert batch.max_seqlen == lengths.max()
        assert batch.positions.tolist() == [i for n in lengths for i in range(n)]
        assert {a.dtype for a in (batch.input_ids, batch.positions, batch.masked_positions, batch.labels)} == {
            np.dtype(np.int64)
        }
        assert set(batch.input_ids[batch.cu_seqlens[:-1]]) == {2}
        assert set(batch.input_ids[batch.cu_seqlens[1:] - 1]) == {3}


def test_parts_are_balanced(stream: TrainingStream) -> None:
    tokens = [batch.tokens for batch in parts_of(stream, 0, 4, 1)]
    assert max(tokens) / np.mean(tokens) < 1.03


def test_a_step_that_draws_nothing_can_be_divided_by(dataset: Dataset, vocabulary: Vocabulary) -> None:
    settings = StreamSettings(1, 0, MaskingSettings(mlm_mask_prop=1e-9))
    (batch,) = TrainingStream(Corpora.of(dataset), vocabulary, settings).micro_batches(0)
    assert (batch.labels.size, batch.step_masked) == (0, 1)


def test_a_bare_pair_trains_too(tmp_path: Path, dataset: Dataset, vocabulary: Vocabulary) -> None:
    """The same sequences, order and masks as from a folder that holds them."""
    ids, ends = dataset.gather(np.arange(len(dataset)))
    with ShardWriter(tmp_path / "pair", np.dtype(np.uint16)) as writer:
        writer.add(ids, np.diff(ends), np.ones(len(dataset), np.int64))
        writer.close()
    pair = Dataset.open(tmp_path / "pair")
    with pytest.raises(DataError, match=r"python -m data\.token_counts"):
        TrainingStream(Corpora.of(pair), vocabulary, SETTINGS)
    write_counts(pair)
    ours = TrainingStream(Corpora.of(dataset), vocabulary, SETTINGS).micro_batches(3)
    assert content(TrainingStream(Corpora.of(pair), vocabulary, SETTINGS).micro_batches(3)) == content(ours)


@pytest.mark.parametrize("order", [OrderSettings(), OrderSettings("blocks", order_block=16, order_window=4)])
def test_the_same_with_and_without_a_compiler(dataset, vocabulary, monkeypatch, order: OrderSettings) -> None:
    stream = TrainingStream(Corpora.of(dataset), vocabulary, dataclasses.replace(SETTINGS, order=order))
    fast = {step: parts_of(stream, step, 2, 2) for step in (0, 7, 10**9)}
    monkeypatch.setattr(compiled, "operations", lambda name: None)
    for step, batches in fast.items():
        for one, other in zip(batches, parts_of(stream, step, 2, 2), strict=True):
            for field in dataclasses.fields(MicroBatch):
                assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.usefixtures("form")
def test_golden_step(stream: TrainingStream) -> None:
    """A change here gives every run other sequences or masks: bump `LAW` in data.loader with it."""
    digest = xxhash.xxh3_64()
    for batch in parts_of(stream, 7, 2, 2):
        for array in (batch.input_ids, batch.cu_seqlens, batch.masked_positions, batch.labels):
            digest.update(array.tobytes())
    assert (loader.LAW, digest.hexdigest()) == GOLDEN_STEP


def test_a_huge_corpus_costs_no_more_than_a_small_one(tmp_path: Path, dataset: Dataset, vocabulary: Vocabulary) -> None:
    """A hundred million sequences in sparse files, at a late step; what is not there reads as damage."""
    folder, late = write_corpus(tmp_path / "huge", dataset, 10**8), 10**9
    tracemalloc.start()
    stream = TrainingStream(Corpora.open((str(folder),)), vocabulary, SETTINGS)
    stream.fingerprint()
    make_readable(folder, stream.rows(late).sequences, 10**8, dataset.shards[0].dtype)
    (batch,) = stream.micro_batches(late)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (batch.tokens, batch.cu_seqlens.size) == (32 * LENGTH, 33)
    assert peak < 10_000_000
    with pytest.raises(DataError, match="has 0 tokens"):
        stream.micro_batches(late + 1)


# --- several corpora ---


@pytest.fixture(scope="module")
def mixed(dataset_folder: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> TrainingStream:
    """Three quarters of the stream are the dataset's 230 sequences, one is a copy of its last 50, as a bare pair."""
    dataset, prefix = Dataset.open(dataset_folder), tmp_path_factory.mktemp("pair") / "copy"
    ids, ends = dataset.gather(np.arange(180, 230))
    with ShardWriter(prefix, np.dtype(np.int32)) as writer:
        writer.add(ids, np.diff(ends), np.ones(50, np.int64))
        writer.close()
    write_counts(Dataset.open(prefix))
    return TrainingStream(Corpora.open((f"{dataset_folder}:3", f"{prefix}:1")), vocabulary, SETTINGS)


@pytest.mark.parametrize(("ranks", "accumulation"), CUTS)
@pytest.mark.parametrize("step", [0, 7, 10**9])
def test_a_mixed_step_is_the_same_however_it_is_cut(mixed, ranks: int, accumulation: int, step: int) -> None:
    (whole,) = mixed.micro_batches(step)
    parts = parts_of(mixed, step, ranks, accumulation)
    assert content(parts) == content([whole])
    assert {(b.step_tokens, b.step_masked) for b in parts} == {(whole.tokens, whole.labels.size)}
    assert whole.cu_seqlens.size == 33


def test_each_corpus_has_its_share_and_its_own_epochs(mixed: TrainingStream, dataset: Dataset) -> None:
    """115 steps of 32 are 2,760 of the first corpus, 12 epochs, and 920 of the second, 18 epochs and 20 sequences."""
    seen: Counter = Counter()
    for step in range(115):
        seen.update(whole for whole, _, _ in unpack(mixed.micro_batches(step)[0]))
    first, second = originals(dataset, range(180)), originals(dataset, range(180, 230))
    assert sum(seen.values()) == 115 * 32
    for ids, times in first.items():
        assert second[ids] or seen[ids] == 12 * times
    for ids, times in second.items():
        assert first[ids] or 30 * times <= seen[ids] <= 31 * times


def test_corpora_of_equal_content_have_masks_of_their_own(mixed: TrainingStream) -> None:
    packer, columns = mixed.packer, np.arange(50)
    zeros = np.zeros(50, np.int64)
    one, other = (
        packer.pack(packer.plan(Rows(zeros + corpus, zeros, columns + first)), 0, Total(0, 1, 1))
        for corpus, first in ((0, 180), (1, 0))
    )
    assert [whole for whole, _, _ in unpack(one)] == [whole for whole, _, _ in unpack(other)]
    same = [a == b for a, b in zip(unpack(one), unpack(other), strict=True)]
    assert sum(same) < 10


def test_a_weight_alone_changes_nothing(dataset_folder: Path, vocabulary: Vocabulary, stream: TrainingStream) -> None:
    weighted = TrainingStream(Corpora.open((f"{dataset_folder}:0.7",)), vocabulary, SETTINGS)
    assert weighted.fingerprint() == stream.fingerprint()
    assert unpack(weighted.micro_batches(3)[0]) == unpack(stream.micro_batches(3)[0])


def test_the_fingerprint_changes_with_the_shares(mixed: TrainingStream, vocabulary: Vocabulary, stream) -> None:
    a, b = (str(dataset.path) for dataset in mixed.corpora.datasets)
    words = [(f"{a}:3", f"{b}:1"), (f"{a}:3.001", f"{b}:1"), (f"{b}:1", f"{a}:3"), (f"{b}:1",)]
    prints = [TrainingStream(Corpora.open(pair), vocabulary, SETTINGS).fingerprint() for pair in words]
    assert prints[0] == mixed.fingerprint()
    assert len({*prints, stream.fingerprint()}) == 5


# --- the fingerprint ---


def changed_settings() -> list[StreamSettings]:
    masking = [
        {"mlm_mask_prop": 0.2}, {"word_mask": 0.7, "word_keep": 0.2}, {"word_keep": 0.0, "word_rand": 0.2},
        {"mlm_smoothing": 0.0},
    ]  # fmt: skip
    return [
        dataclasses.replace(SETTINGS, seed=6),
        dataclasses.replace(SETTINGS, train_batch_size=33),
        dataclasses.replace(SETTINGS, order=OrderSettings("blocks")),
        dataclasses.replace(SETTINGS, order=OrderSettings("blocks", order_block=16)),
        *(dataclasses.replace(SETTINGS, masking=MaskingSettings(**change)) for change in masking),
    ]


def test_the_fingerprint_changes_with_every_ingredient(
    dataset_folder: Path, vocabulary: Vocabulary, stream: TrainingStream, tmp_path: Path, monkeypatch
) -> None:
    (dataset,) = stream.corpora.datasets
    prints = [stream.fingerprint()]
    prints += [
        TrainingStream(Corpora.of(dataset), vocabulary, settings).fingerprint() for settings in changed_settings()
    ]
    for changes in ({"size": 100}, {"mask_id": 3}, {"special_ids": (0, 1, 2, 3, 4, 5)}, {"tokenizer_hash": "other"}):
        prints.append(
            TrainingStream(Corpora.of(dataset), dataclasses.replace(vocabulary, **changes), SETTINGS).fingerprint()
        )
    folder = shutil.copytree(dataset_folder, tmp_path / "other counts")
    counts = np.load(folder / "counts.npy")
    counts[[5, 6]] += [1, -1]
    np.save(folder / "counts.npy", counts)
    prints.append(TrainingStream(Corpora.of(Dataset.open(folder)), vocabulary, SETTINGS).fingerprint())
    folder = shutil.copytree(dataset_folder, tmp_path / "other order")
    assert dataset.manifest
    dataclasses.replace(dataset.manifest, shards=dataset.manifest.shards[::-1]).write(folder)
    prints.append(TrainingStream(Corpora.of(Dataset.open(folder)), vocabulary, SETTINGS).fingerprint())
    monkeypatch.setattr(loader, "LAW", loader.LAW + 1)
    prints.append(stream.fingerprint())
    assert len(set(prints)) == len(prints) == 16


def test_the_fingerprint_does_not_depend_on_the_place(dataset_folder: Path, vocabulary, stream, tmp_path: Path) -> None:
    copy = Dataset.open(shutil.copytree(dataset_folder, tmp_path / "moved"))
    assert TrainingStream(Corpora.of(copy), vocabulary, SETTINGS).fingerprint() == stream.fingerprint()


# --- damage ---


def test_counts_over_this_vocabulary(dataset: Dataset, vocabulary: Vocabulary) -> None:
    larger, smaller = (dataclasses.replace(vocabulary, size=vocabulary.size + n) for n in (7, -1))
    assert matching_counts(dataset, larger).tolist() == [*dataset.counts().tolist(), *[0] * 7]
    with pytest.raises(DataError, match=rf"counts {len(VOCABULARY)} token ids, the model knows {len(VOCABULARY) - 1}"):
        matching_counts(dataset, smaller)


def test_an_id_outside_the_vocabulary_is_named(dataset_folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = shutil.copytree(dataset_folder, tmp_path / "damaged")
    file = folder / "00000.bin"
    file.write_bytes(b"\x02\x00\xff\xee" + file.read_bytes()[4:])
    damaged = Dataset.open(folder)
    stream = TrainingStream(Corpora.of(damaged), vocabulary, dataclasses.replace(SETTINGS, train_batch_size=230))
    with pytest.raises(
        DataError, match=r"holds token id 61183, outside the vocabulary of .*data\.describe .* --verify"
    ):
        stream.micro_batches(0)
    held_out = HeldOut(damaged, vocabulary, MaskingSettings(), damaged.counts())
    with pytest.raises(DataError, match="holds token id 61183"):
        list(held_out.micro_batches(8))


@pytest.mark.parametrize(("error", "why"), [
    (MemoryError("Unable to allocate 3 TiB"), "MemoryError: Unable to allocate 3 TiB"),
    (OSError(5, "Input/output error"), r"OSError: \[Errno 5\] Input/output error"),
    (IndexError("index 7 is out of bounds"), "IndexError: index 7 is out of bounds"),
])  # fmt: skip
def test_whatever_fails_in_the_thread_is_an_error_of_data_that_says_where(
    dataset, vocabulary, monkeypatch, error: Exception, why: str
) -> None:
    stream = TrainingStream(Corpora.of(dataset), vocabulary, SETTINGS)
    read, calls = stream.corpora.reader.ids, itertools.count()

    def fail(extents) -> tuple[np.ndarray, np.ndarray]:
        if next(calls) == 4:
            raise error
        return read(extents)

    monkeypatch.setattr(stream.corpora.reader, "ids", fail)
    batches = prefetch(lambda step: stream.micro_batches(step, rank=1, ranks=2, accumulation=2), range(5, 10))
    assert [batch[0].step for batch in itertools.islice(batches, 2)] == [5, 6]
    with pytest.raises(
        DataError, match=rf"^the data of step 7, rank 1 can't be had: {why} \(test_loader\.py, line \d+\)"
    ):
        next(batches)
    assert not prefetchers()


# --- held-out ---


@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (8, 1), (230, 1), (1000, 1), (8, 2), (7, 3), (1, 4), (100, 5)])
def test_held_out_takes_each_sequence_once_with_the_same_mask(dataset, vocabulary, size: int, ranks: int) -> None:
    held_out = HeldOut(dataset, vocabulary, MaskingSettings(), dataset.counts())
    batches = [batch for rank in range(ranks) for batch in held_out.micro_batches(size, rank, ranks)]
    assert all(batch.cu_seqlens.size - 1 <= size for batch in batches)
    assert content(batches) == content(held_out.micro_batches(len(dataset)))
    assert Counter(whole for batch in batches for whole, _, _ in unpack(batch)) == originals(dataset, range(230))


def test_held_out_with_more_ranks_than_sequences(dataset, vocabulary, tmp_path: Path) -> None:
    """A bare pair without counts of its own: the masks are drawn with the training counts."""
    ids, ends = dataset.gather(np.arange(3))
    with ShardWriter(tmp_path / "valid", np.dtype(np.uint16)) as writer:
        writer.add(ids, np.diff(ends), np.ones(3, np.int64))
        writer.close()
    held_out = HeldOut(Dataset.open(tmp_path / "valid"), vocabulary, MaskingSettings(), dataset.counts())
    shares = [list(held_out.micro_batches(1, rank, 5)) for rank in range(5)]
    assert [len(share) for share in shares] == [1, 1, 1, 0, 0]
    assert Counter(w for share in shares for b in share for w, _, _ in unpack(b)) == originals(dataset, range(3))


def test_held_out_masks_follow_the_training_counts(dataset, vocabulary) -> None:
    first, second = (HeldOut(dataset, vocabulary, MaskingSettings(), counts) for counts in
                     (dataset.counts(), dataset.counts()[::-1].copy()))  # fmt: skip
    assert content(first.micro_batches(50)) != content(second.micro_batches(50))


# --- prefetching ---


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_prefetch_keeps_the_order(depth: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))
        return step * step

    assert list(prefetch(make, range(20), depth)) == [k * k for k in range(20)]
    assert list(prefetch(make, [], depth)) == []
    assert not prefetchers()


def test_prefetch_works_ahead_but_no_further_than_it_may() -> None:
    made: list[int] = []
    with_depth = prefetch(lambda step: made.append(step) or step, itertools.count(), depth=3)
    for taken in range(4):
        assert next(with_depth) == taken
        assert wait_until(lambda: len(made) == taken + 1 + 3 + 1)  # noqa: B023 - 3 wait, one more is in hand
        time.sleep(0.15)  # longer than the thread waits for room
        assert len(made) == taken + 1 + 3 + 1
    with_depth.close()
    assert not prefetchers()


def test_prefetch_raises_an_error_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise DataError("step 3 is damaged")
        return step

    items = prefetch(make, range(10), depth=8)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="step 3 is damaged"):
        next(items)
    assert not prefetchers()


def test_prefetch_raises_an_error_of_its_steps() -> None:
    def steps():
        yield 1
        raise RuntimeError("no more steps")

    items = prefetch(lambda step: step, steps())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="no more steps"):
        next(items)


@pytest.mark.parametrize("leave", ["break", "error"])
def test_prefetch_ends_its_thread_when_the_consumer_leaves(leave: str) -> None:
    def consume() -> None:
        for item in prefetch(lambda step: step, itertools.count()):
            if item == 2:
                assert len(prefetchers()) == 1
                if leave == "error":
                    raise RuntimeError("leaving")
                break

    if leave == "error":
        with pytest.raises(RuntimeError, match="leaving"):
            consume()
    else:
        consume()
    assert not prefetchers()


def test_prefetch_starts_nothing_until_it_is_asked() -> None:
    made: list[int] = []
    prefetch(made.append, range(5)).close()
    assert (made, prefetchers()) == ([], [])
