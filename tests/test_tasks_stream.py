"""data.tasks.stream: the law of a task's batches, for every way of cutting a step; evaluation in order."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from data.tasks import Features
from data.tasks.stream import TaskBatch, TaskStream, in_order

CUTS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (3, 5), (1, 32)]
N, BATCH = 100, 32


def features(n: int = N, labels: np.ndarray | None = None, seed: int = 0) -> Features:
    """Inputs that begin with their own number, of 3 to 40 tokens; labels are the numbers, too."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 40, n)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(1000, 2000, ends[-1]).astype(np.int32)
    ids[ends[:-1]] = np.arange(n)
    types = (np.arange(ends[-1]) % 2).astype(np.uint8)
    return Features(ids, types, ends, np.arange(n) if labels is None else labels, np.arange(n))


@pytest.fixture(scope="module")
def stream() -> TaskStream:
    return TaskStream(features(), BATCH, seed=3, identity="numbers")


def unpack(batch: TaskBatch) -> list[tuple]:
    """Every input of a micro-batch: ids, types, label."""
    return [
        (tuple(batch.input_ids[a:b].tolist()), tuple(batch.token_types[a:b].tolist()), np.asarray(label).tolist())
        for (a, b), label in zip(itertools.pairwise(batch.cu_seqlens.tolist()), batch.labels, strict=True)
    ]


def content(batches: Iterable[TaskBatch]) -> Counter:
    return Counter(row for batch in batches for row in unpack(batch))


def parts_of(stream: TaskStream, step: int, ranks: int, accumulation: int) -> list[TaskBatch]:
    return [b for rank in range(ranks) for b in stream.micro_batches(step, rank, ranks, accumulation)]


def rows_of(features: Features, numbers: Iterable[int]) -> Counter:
    rows = []
    for n in numbers:
        inside = slice(features.ends[n], features.ends[n + 1])
        rows.append(
            (tuple(features.ids[inside].tolist()), tuple(features.types[inside].tolist()), int(features.labels[n]))
        )
    return Counter(rows)


# --- training ---


@pytest.mark.parametrize(("ranks", "accumulation"), CUTS)
@pytest.mark.parametrize("step", [0, 3, 10**6])  # step 3 straddles two epochs of 100 inputs
def test_a_step_is_the_same_however_it_is_cut(stream: TaskStream, step: int, ranks: int, accumulation: int) -> None:
    parts = parts_of(stream, step, ranks, accumulation)
    assert content(parts) == rows_of(stream.features, stream.numbers(step)["features"])
    assert sorted(batch.part for batch in parts) == list(range(ranks * accumulation))
    assert {(batch.step, batch.step_examples) for batch in parts} == {(step, BATCH)}


def test_a_part_is_the_same_on_whichever_rank_it_lands(stream: TaskStream) -> None:
    by_part = {b.part: b for b in parts_of(stream, 3, 4, 1)}
    for ranks, accumulation in [(2, 2), (1, 4)]:
        for batch in parts_of(stream, 3, ranks, accumulation):
            for field in dataclasses.fields(TaskBatch):
                assert np.array_equal(getattr(batch, field.name), getattr(by_part[batch.part], field.name)), field.name
    assert [b.part for b in stream.micro_batches(0, rank=1, ranks=3, accumulation=4)] == [1, 4, 7, 10]


@pytest.mark.parametrize(("n", "batch"), [(100, 32), (100, 100), (7, 32), (1, 5)])
def test_each_input_once_an_epoch(n: int, batch: int) -> None:
    """Also where a step holds several epochs."""
    stream = TaskStream(features(n), batch, seed=0, identity="")
    assert stream.epoch_size == n
    for step in range(n):
        numbers = stream.numbers(step)
        assert numbers["epochs"] == [place // n for place in range(step * batch, (step + 1) * batch)]
    seen = Counter(f for step in range(n) for f in stream.numbers(step)["features"])
    assert seen == Counter(dict.fromkeys(range(n), batch))
    assert content(stream.micro_batches(0)) == rows_of(stream.features, stream.numbers(0)["features"])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, step: int) -> list[int]:
        return TaskStream(features(), N, seed, "").numbers(step)["features"]

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(N))]
    assert len({tuple(order) for order in orders}) == 4
    assert order(0, 1) == orders[1]


def test_a_micro_batch_is_packed(stream: TaskStream) -> None:
    for batch in parts_of(stream, 2, 2, 3):
        lengths = np.diff(batch.cu_seqlens)
        assert (batch.cu_seqlens.dtype, batch.cu_seqlens[0]) == (np.int32, 0)
        assert batch.cu_seqlens[-1] == batch.input_ids.size == batch.token_types.size == batch.tokens
        assert batch.max_seqlen == lengths.max()
        assert type(batch.max_seqlen) is int
        assert batch.positions.tolist() == [i for n in lengths for i in range(n)]
        for array in (batch.input_ids, batch.token_types, batch.positions, batch.labels):
            assert array.dtype == np.int64
        assert batch.input_ids[batch.cu_seqlens[:-1]].tolist() == batch.labels.tolist()


def test_parts_are_balanced(stream: TaskStream) -> None:
    tokens = [batch.tokens for batch in parts_of(stream, 0, 4, 1)]
    assert max(tokens) / np.mean(tokens) < 1.03
    assert len(parts_of(stream, 0, BATCH, 1)) == BATCH  # as many parts as inputs: each has one


@pytest.mark.parametrize(
    "labels", [np.linspace(0, 5, N, dtype=np.float32), np.stack([np.arange(N), np.arange(N) + 2], 1)]
)
def test_labels_of_other_kinds_follow_their_inputs(labels: np.ndarray) -> None:
    stream = TaskStream(features(labels=labels), BATCH, seed=3, identity="")
    for batch in parts_of(stream, 1, 2, 2):
        assert batch.labels.dtype == labels.dtype
        numbers = batch.input_ids[batch.cu_seqlens[:-1]]
        assert np.array_equal(batch.labels, labels[numbers])


def test_the_fingerprint_holds_all_that_fixes_the_stream(stream: TaskStream) -> None:
    def fingerprint(
        features: Features = stream.features, batch: int = BATCH, seed: int = 3, name: str = "numbers"
    ) -> str:
        return TaskStream(features, batch, seed, name).fingerprint()

    own = stream.features
    assert fingerprint() == stream.fingerprint()
    changed = [fingerprint(batch=33), fingerprint(seed=4), fingerprint(name="x"), fingerprint(features(n=99))]
    for name in ("ids", "types", "ends", "labels"):
        array = getattr(own, name).copy()
        array[5] += 1
        changed.append(fingerprint(dataclasses.replace(own, **{name: array})))
    assert len({fingerprint(), *changed}) == 1 + len(changed)


# --- evaluation ---


@pytest.mark.parametrize("size", [1, 8, 33, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_evaluation_sees_each_input_once(size: int, ranks: int) -> None:
    own = features(30)
    shares = [list(in_order(own, size, rank, ranks)) for rank in range(ranks)]
    numbers = [n for share in shares for chosen, _ in share for n in chosen.tolist()]
    assert sorted(numbers) == list(range(30))
    assert sum(map(len, shares)) == -(-30 // size)
    for chosen, batch in itertools.chain(*shares):
        assert chosen.dtype == np.int64
        assert unpack(batch) == list(rows_of(own, chosen.tolist()))
        assert chosen.size == batch.step_examples <= size
