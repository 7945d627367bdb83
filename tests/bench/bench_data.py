"""How fast is the data? Each stage against what is usual, on one core, in one run.

    python -m tests.bench.bench_data --data FOLDER --tokenizer NAME [--output bench-data]

FOLDER holds dump.train.txt, one sequence a line. Prints one table and writes data.csv. Rates are in real tokens; both
sides of a row get the same sequences, and the better of several goes each. The corpora of 100 million and a billion
sequences are sparse files: only what a step needs is in them. Finished datasets are reused. Hardware: one core (two for
the rows that say so), 2 GB, about three minutes.
"""

import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data import binarize
from data.corpora import Corpora
from data.indexed import Dataset
from data.loader import StreamSettings, TrainingStream
from data.manifest import CleaningRules
from data.masking import Masker, MaskingSettings
from data.shard_writer import ShardWriter
from data.token_counts import count_tokens
from data.vocabulary import Vocabulary
from launch.args import flag, parse
from launch.errors import DataError, run
from tests.bench.build_rows import building
from tests.bench.data_peers import InMemory, SliceReader, TorchMasking, grouped_by_length, pad, pad_lists
from tests.bench.table import Row, best, each, show
from tests.sparse_corpus import make_readable, write_corpus

BATCH = 128  # sequences of a micro-batch
TOKENS = 20_000_000  # of the dataset that sequences are gathered from


@dataclass(frozen=True)
class Arguments:
    """What is measured on what."""

    data: Path = flag(help="folder with dump.train.txt", metavar="FOLDER")
    tokenizer: str = flag(help="folder or hub name of a BERT tokenizer", metavar="NAME")
    output: Path = flag(Path("bench-data"), "where datasets and data.csv are kept", "FOLDER")


# --- datasets ---


def prepare(arguments: Arguments) -> tuple[Dataset, Dataset]:
    """The text as a dataset, and as many copies of it in one pair as make TOKENS."""
    dump, folder, pair = arguments.data / "dump.train.txt", arguments.output / "train", arguments.output / "many"
    if not dump.is_file():
        raise DataError(f"{dump}: missing")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        binarize.binarize(binarize.Files((str(dump),), arguments.tokenizer, folder), CleaningRules())
    dataset = Dataset.open(folder)
    if not pair.with_name("many.idx").exists():
        ids, ends = dataset.gather(np.arange(len(dataset)))
        with ShardWriter(pair, dataset.shards[0].dtype) as writer:
            for _ in range(math.ceil(TOKENS / ids.size)):
                writer.add(ids, np.diff(ends), np.ones(len(dataset), np.int64))
            writer.close()
    return dataset, Dataset.open(pair)


def random_batches(count: int, sequences: int) -> list[np.ndarray]:
    """Numbers of the sequences of `count` batches."""
    return list(np.random.default_rng(0).integers(0, sequences, (count, BATCH)))


# --- gather ---


def gather(dataset: Dataset) -> list[Row]:
    """Batches of random sequences out of many."""
    batches = [(batch,) for batch in random_batches(200, len(dataset))]
    tokens = sum(int(dataset.lengths(batch).sum()) for (batch,) in batches) / 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Megatron's import warns of what it misses
        from megatron.core.datasets.indexed_dataset import IndexedDataset
    ours = tokens / best(each(dataset.gather, batches))
    rows = []
    for against, reader in (
        ("np.frombuffer, a slice a sequence", SliceReader(dataset)),
        ("Megatron's IndexedDataset", IndexedDataset(str(dataset.path))),
    ):
        peer = best(each(lambda batch, reader=reader: [reader[i] for i in batch], batches))
        rows.append(Row("gather", against, "Mtok/s", ours, tokens / peer))
    return [*rows, arrow(dataset, batches[:10], ours)]


def arrow(dataset: Dataset, batches: Sequence[tuple[np.ndarray]], ours: float) -> Row:
    """The same out of an Arrow table of Hugging Face's `datasets`, which is no requirement of ours."""
    against = "datasets (Arrow), a batch at once"
    try:
        import datasets
        import pyarrow
    except ImportError as error:
        return Row("gather", against, "Mtok/s", ours, note=f"left out: {error}")
    ids, ends = dataset.gather(np.arange(len(dataset)))
    column = pyarrow.ListArray.from_arrays(ends.astype(np.int32), ids.astype(np.int32))
    table = datasets.Dataset(pyarrow.table({"input_ids": column}), fingerprint="bench").with_format("numpy")
    tokens = sum(int(dataset.lengths(batch).sum()) for (batch,) in batches) / 1e6
    return Row(
        "gather", against, "Mtok/s", ours, tokens / best(each(lambda batch: table[batch]["input_ids"], batches), 3)
    )


# --- masking ---


def masking(dataset: Dataset, vocabulary: Vocabulary) -> list[Row]:
    """Packed sequences against the same ones padded: taken at random, and of nearly one length."""
    counts, settings = dataset.counts(), MaskingSettings()
    masker, theirs = Masker(settings, vocabulary, counts), TorchMasking(counts, vocabulary, settings)
    by_length = np.argsort(dataset.lengths(np.arange(len(dataset))), kind="stable")
    grouped = [by_length[first : first + BATCH] for first in range(BATCH, len(by_length) - BATCH, len(by_length) // 20)]
    keys = np.random.default_rng(1).integers(0, 2**64, BATCH, np.uint64)
    rows = []
    for name, batches in (("random", random_batches(20, len(dataset))), ("length-grouped", grouped)):
        packed = [dataset.gather(batch) for batch in batches]
        padded = [pad(np.split(ids, ends[1:-1])) for ids, ends in packed]
        tokens = sum(ids.size for ids, _ in packed) / 1e6
        ours = best(each(masker.mask, [(*pair, keys, masker.draws(keys, np.diff(pair[1]))) for pair in packed]))
        against = f"torch.multinomial, padded {name} batch"
        rows.append(Row("masking", against, "Mtok/s", tokens / ours, tokens / best(each(theirs, padded))))
    return rows


# --- the whole loader ---


def loader(dataset: Dataset, vocabulary: Vocabulary) -> list[Row]:
    """From the number of a step to masked micro-batches, without a thread or process beside it."""
    stream = TrainingStream(Corpora.of(dataset), vocabulary, StreamSettings(8 * BATCH, 0, MaskingSettings()))
    theirs = TorchMasking(stream.counts, vocabulary, stream.settings.masking)
    lengths = dataset.lengths(np.arange(len(dataset)))
    steps = [(step, 0, 1, 8) for step in range(20)]
    tokens = sum(int(lengths[stream.rows(step).sequences].sum()) for step, *_ in steps) / 1e6
    ours = tokens / best(each(stream.micro_batches, steps))
    batches = list(itertools.islice(grouped_by_length(lengths, BATCH), 60))
    real = sum(int(lengths[batch].sum()) for batch in batches) / 1e6
    rows = []
    for name, collate in (("the original's lists", pad_lists), ("pad_sequence", pad)):
        batched = torch.utils.data.DataLoader(InMemory(dataset), batch_sampler=batches, collate_fn=collate)
        peer = real / best(lambda batched=batched: each(theirs, batched)(), 3)
        rows.append(Row("loader, end to end", f"length-grouped DataLoader, {name}", "Mtok/s", ours, peer))
    return rows


# --- start-up ---


def sparse(folder: Path, like: Dataset, sequences: int, settings: StreamSettings, steps: Sequence[int]) -> Path:
    """A corpus of so many sequences, of which those of some steps can be read."""
    if not folder.exists():
        write_corpus(folder, like, sequences)
        dataset = Dataset.open(folder)
        assert dataset.vocabulary
        stream = TrainingStream(Corpora.of(dataset), dataset.vocabulary, settings)
        wanted = np.concatenate([stream.rows(step).sequences for step in steps])
        make_readable(folder, wanted, sequences, dataset.shards[0].dtype)
    return folder


def anonymous_memory() -> float:
    """Megabytes of this process that no file stands for."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def start_up(output: Path, like: Dataset, vocabulary: Vocabulary) -> list[Row]:
    """Opening, the first step, and going on at a late one, of a corpus ten times as large as another."""
    settings, late = StreamSettings(1024, 0, MaskingSettings()), 10**9
    folders = [sparse(output / f"sparse-{n}", like, n, settings, (0, late)) for n in (10**8, 10**9)]

    def start(folder: Path, step: int) -> list[object]:
        stream = TrainingStream(Corpora.open((str(folder),)), vocabulary, settings)
        return [stream.fingerprint(), stream.micro_batches(step, ranks=8)]

    smaller = seconds_and_memory(lambda: Dataset.open(folders[0]))
    rows = [Row("open, 100 M sequences", "", "ms", smaller[0] * 1e3, note=f"{smaller[1]:.1f} MB of memory")]
    for title, step in (("start, to step 0", 0), (f"resume at step {late:,}", late)):
        (peer, _), (ours, memory) = (seconds_and_memory(lambda f=f, k=step: start(f, k)) for f in folders)
        rows.append(
            Row(
                f"{title}, 1 G sequences", "100 M sequences", "ms", ours * 1e3, peer * 1e3, f"{memory:.1f} MB of memory"
            )
        )
    return rows


def seconds_and_memory(work: Callable[[], object]) -> tuple[float, float]:
    """Of the fastest go; and megabytes that a result takes, those of mapped files not counted."""
    work()
    before = anonymous_memory()
    kept = [work() for _ in range(10)]
    return best(work), (anonymous_memory() - before) / len(kept)


# --- counts ---


def counting(dataset: Dataset) -> list[Row]:
    """Occurrences of each id."""
    few = dataset.shards[0].ids[:2_000_000].tolist()

    def loop() -> None:
        counter: Counter = Counter()
        for token in few:
            counter[token] += 1

    ours = dataset.tokens / 1e6 / best(lambda: count_tokens(dataset))
    against = {"Counter, a loop over ints": loop, "Counter(ints)": lambda: Counter(few)}
    return [Row("token_counts", name, "Mtok/s", ours, len(few) / 1e6 / best(work, 3)) for name, work in against.items()]


def main() -> None:
    """Measure every stage."""
    (arguments,) = parse("How fast is the data?", Arguments, prog="tests.bench.bench_data")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    dataset, many = prepare(arguments)
    vocabulary = dataset.vocabulary
    assert vocabulary
    rows = building(arguments.data / "dump.train.txt", arguments.tokenizer, arguments.output, cores)
    rows += gather(many) + masking(dataset, vocabulary) + loader(dataset, vocabulary) + counting(many)
    rows += start_up(arguments.output, dataset, vocabulary)
    show(rows, arguments.output)


if __name__ == "__main__":
    run(main)
