"""data.merge: the datasets one after another, however it is done; nothing unlike, damaged or twice the same goes in."""

import dataclasses
import os
import random
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import VOCABULARY, sentence, write_vocabulary

from data import merge as module
from data import pair
from data.binarize import Files, binarize
from data.describe import describe, samples, verify
from data.indexed import Dataset
from data.manifest import CleaningCounts, CleaningRules, Manifest
from data.merge import merge, merge_single, open_all
from data.shard_writer import ShardWriter
from data.token_counts import write_counts
from launch.errors import ConfigError, DataError, run

RULES = CleaningRules(24, 4, 0.9)


def write_texts(folder: Path, name: str, seed: int, lines: tuple[int, ...]) -> tuple[str, ...]:
    generator, paths = random.Random(seed), []
    for number, count in enumerate(lines):
        paths.append(folder / f"{name}{number}.txt")
        paths[-1].write_text("".join(f"{sentence(generator, generator.randint(1, 40))}\n" for _ in range(count)))
    return tuple(map(str, paths))


def make(texts: tuple[str, ...], tokenizer: Path, output: Path, rules: CleaningRules = RULES) -> Path:
    """A dataset with a shard for each text."""
    binarize(Files(texts, str(tokenizer), output, workers=1), rules)
    return output


@dataclasses.dataclass(frozen=True)
class Sources:
    """Datasets of two and of one shard, and one of both texts at once."""

    folder: Path
    a: Path
    b: Path
    both: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    a, b = write_texts(folder, "a", 1, (30, 20)), write_texts(folder, "b", 2, (25,))
    (folder / "sets").mkdir()
    return Sources(
        folder / "sets",
        make(a, tokenizer_folder, folder / "sets" / "a"),
        make(b, tokenizer_folder, folder / "sets" / "b"),
        make(a + b, tokenizer_folder, folder / "sets" / "both"),
    )


@pytest.fixture
def sources(made: Sources, tmp_path: Path) -> Sources:
    """A copy to move, damage or merge into."""
    folder = shutil.copytree(made.folder, tmp_path / "sets")
    return Sources(folder, folder / "a", folder / "b", folder / "both")


def sequences_of(dataset: Dataset) -> list[list[int]]:
    ids, ends = dataset.gather(np.arange(len(dataset)))
    return [part.tolist() for part in np.split(ids, ends[1:-1])]


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["data.merge", *map(str, words)])
    try:
        run(module.main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def write_pair(prefix: Path, documents: list[list[list[int]]], dtype: type = np.uint16) -> Path:
    with ShardWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            lengths = np.asarray([len(sequence) for sequence in document])
            writer.add(np.concatenate(document), lengths, np.asarray([len(document)]))
        writer.close()
    return prefix


# --- folders ---


@pytest.mark.parametrize("copy", [False, True])
def test_merged_is_what_binarize_makes_of_all_texts(sources: Sources, copy: bool) -> None:
    """The texts make the same shards alone and together, so all but the place of the shards must be equal."""
    manifest = merge(open_all([sources.a, sources.b]), sources.folder / "merged", copy)
    merged, whole = Dataset.open(sources.folder / "merged"), Dataset.open(sources.both)
    assert sequences_of(merged) == sequences_of(whole)
    assert sequences_of(merged) == sequences_of(Dataset.open(sources.a)) + sequences_of(Dataset.open(sources.b))
    assert merged.counts().tolist() == whole.counts().tolist()
    assert merged.fingerprint() == whole.fingerprint()
    assert verify(merged) == []
    assert whole.manifest is not None
    assert manifest == Manifest.read(merged.path)
    names = [shard.name for shard in manifest.shards]
    assert names == (["00000", "00001", "00002"] if copy else ["../a/00000", "../a/00001", "../b/00000"])
    shards = tuple(dataclasses.replace(s, name=f"{i:05d}") for i, s in enumerate(manifest.shards))
    assert dataclasses.replace(manifest, shards=shards) == whole.manifest


def test_nothing_is_copied_by_default(sources: Sources) -> None:
    merge(open_all([sources.a, sources.b]), sources.folder / "merged")
    tokenizer = [f"tokenizer/{path.name}" for path in (sources.a / "tokenizer").iterdir()]
    assert names_in(sources.folder / "merged") == sorted(["counts.npy", "manifest.json", *tokenizer])
    assert sorted(path.name for path in sources.folder.iterdir()) == ["a", "b", "both", "merged"]


def test_a_copy_stands_alone(sources: Sources) -> None:
    merge(open_all([sources.a, sources.b]), sources.folder / "merged", copy=True)
    whole = sequences_of(Dataset.open(sources.both))
    shutil.rmtree(sources.a)
    shutil.rmtree(sources.b)
    (sources.folder / "merged").rename(sources.folder / "elsewhere")
    assert sequences_of(Dataset.open(sources.folder / "elsewhere")) == whole
    assert verify(Dataset.open(sources.folder / "elsewhere")) == []


def test_the_order_is_that_of_the_arguments(sources: Sources) -> None:
    merge(open_all([sources.b, sources.a]), sources.folder / "merged")
    merged = Dataset.open(sources.folder / "merged")
    assert sequences_of(merged) == sequences_of(Dataset.open(sources.b)) + sequences_of(Dataset.open(sources.a))
    assert merged.fingerprint() != Dataset.open(sources.both).fingerprint()


@pytest.mark.parametrize("copy", [False, True])
def test_merging_merged_datasets(sources: Sources, tmp_path: Path, tokenizer_folder: Path, copy: bool) -> None:
    """The one in between isn't needed any more."""
    c = make(write_texts(tmp_path, "c", 3, (15,)), tokenizer_folder, tmp_path / "c")
    merge(open_all([sources.a, sources.b]), tmp_path / "deep" / "er" / "ab")
    merge(open_all([tmp_path / "deep" / "er" / "ab", c]), tmp_path / "abc", copy)
    shutil.rmtree(tmp_path / "deep")
    merged = Dataset.open(tmp_path / "abc")
    assert verify(merged) == []
    assert sequences_of(merged) == sequences_of(Dataset.open(sources.both)) + sequences_of(Dataset.open(c))
    assert merged.manifest is not None
    if not copy:
        places = ["sets/a/00000", "sets/a/00001", "sets/b/00000", "c/00000"]
        assert [shard.name for shard in merged.manifest.shards] == [f"../{place}" for place in places]


def test_the_fingerprint_knows_nothing_of_places(sources: Sources, tmp_path: Path) -> None:
    here, copied = sources.folder / "merged", tmp_path / "far" / "off" / "merged"
    merge(open_all([sources.a, sources.b]), here)
    merge(open_all([sources.a, sources.b]), copied, copy=True)
    merge(open_all([copied]), tmp_path / "again")
    fingerprints = {Dataset.open(path).fingerprint() for path in (here, copied, tmp_path / "again", sources.both)}
    assert len(fingerprints) == 1


def test_all_moved_together_it_still_opens(sources: Sources, tmp_path: Path, monkeypatch) -> None:
    """Also from any working directory, by a relative path, and through a symbolic link to it or to a source."""
    monkeypatch.chdir(sources.folder)
    (sources.folder / "link").symlink_to("b")
    merge(open_all([Path("a"), Path("link")]), Path("merged"))
    whole = sequences_of(Dataset.open(sources.both))
    assert sequences_of(Dataset.open("merged")) == whole
    moved = shutil.move(sources.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert sequences_of(Dataset.open("moved/merged")) == whole
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "link").symlink_to(moved / "merged")
    assert sequences_of(Dataset.open("somewhere/link")) == whole


@pytest.mark.parametrize("gone", ["a", "a/00001.bin", "b/00000.idx"])
def test_a_source_that_is_gone(sources: Sources, gone: str) -> None:
    merge(open_all([sources.a, sources.b]), sources.folder / "merged")
    (sources.folder / gone).rename(sources.folder / "gone")
    where = f"merged/../{gone[0]}/0000"
    with pytest.raises(DataError, match=rf"merged: refers to .*{where}\d\.bin and \.idx, which are not there: moved"):
        Dataset.open(sources.folder / "merged")


def test_a_source_that_changed(sources: Sources) -> None:
    """Another dataset of the same sizes would open: the checksum knows better."""
    merge(open_all([sources.a, sources.b]), sources.folder / "merged")
    path = sources.b / "00000.bin"
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    faults = verify(Dataset.open(sources.folder / "merged"))
    assert any("merged/../b/00000.bin: checksum" in fault for fault in faults)
    content.pop()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"b/00000\.bin: has"):
        Dataset.open(sources.folder / "merged")


def test_rules_and_counts_of_cleaning_cover_all(sources: Sources, tmp_path: Path, tokenizer_folder: Path) -> None:
    long = make(
        write_texts(tmp_path, "long", 4, (9,)), tokenizer_folder, tmp_path / "long", CleaningRules(512, 12, 0.3)
    )
    manifest = merge(open_all([sources.a, long]), tmp_path / "merged")
    assert manifest.rules == CleaningRules(512, 4, 0.9)
    assert manifest.cleaning.lines == 59
    assert manifest.cleaning == Manifest.read(sources.a).cleaning + Manifest.read(long).cleaning
    assert manifest.cleaning != CleaningCounts(lines=59)
    assert verify(Dataset.open(tmp_path / "merged")) == []


def test_versions_of_the_library_are_all_named(sources: Sources) -> None:
    for folder, version in ((sources.a, "0.22"), (sources.b, "0.21")):
        dataclasses.replace(Manifest.read(folder), tokenizers_version=version).write(folder)
    assert merge(open_all([sources.a, sources.b]), sources.folder / "ab").tokenizers_version == "0.21, 0.22"
    assert merge(open_all([sources.folder / "ab"]), sources.folder / "abc").tokenizers_version == "0.21, 0.22"


def test_lost_counts_are_counted_anew(sources: Sources) -> None:
    merge(open_all([sources.a, sources.b]), sources.folder / "merged")
    right = (sources.folder / "merged" / "counts.npy").read_bytes()
    (sources.folder / "merged" / "counts.npy").unlink()
    write_counts(Dataset.open(sources.folder / "merged"))
    assert (sources.folder / "merged" / "counts.npy").read_bytes() == right
    assert verify(Dataset.open(sources.folder / "merged")) == []


def test_description(sources: Sources) -> None:
    merge(open_all([sources.a, sources.b]), sources.folder / "merged")
    merged, whole = Dataset.open(sources.folder / "merged"), Dataset.open(sources.both)
    assert "\nshards in ../a, ../b\n" in describe(merged, 0)
    assert "shards in" not in describe(whole, 0)
    assert samples(merged, 5) == samples(whole, 5)


# --- what is refused ---


def again_by_path(sources: Sources) -> Path:
    return sources.a / "." / ".." / "a"


def again_by_link(sources: Sources) -> Path:
    (sources.folder / "link").symlink_to(sources.a)
    return sources.folder / "link"


def again_by_content(sources: Sources) -> Path:
    return shutil.copytree(sources.a, sources.folder / "copy")


def again_within_a_merged_one(sources: Sources) -> Path:
    merge(open_all([sources.b, sources.a]), sources.folder / "merged")
    return sources.folder / "merged"


def again_as_a_pair(sources: Sources) -> Path:
    return sources.a / "00001"


@pytest.mark.parametrize(
    "again", [again_by_path, again_by_link, again_by_content, again_within_a_merged_one, again_as_a_pair]
)
def test_the_same_sequences_twice(sources: Sources, again: Callable[[Sources], Path]) -> None:
    other = again(sources)
    with pytest.raises(DataError, match=f"{other}: its sequences are in {sources.a}, too"):
        open_all([sources.a, other])


def test_another_tokenizer(sources: Sources, tmp_path: Path) -> None:
    """As many words, in another order."""
    other = write_vocabulary(tmp_path / "other", (*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]))
    c = make(write_texts(tmp_path, "c", 3, (15,)), other, tmp_path / "c")
    a, b = (Manifest.read(path).vocabulary.tokenizer_hash for path in (sources.a, c))
    with pytest.raises(DataError, match=f"{sources.a} has tokenizer {a}, {c} has {b}: they can't be merged"):
        open_all([sources.a, sources.b, c])


def test_another_dtype(tmp_path: Path) -> None:
    narrow, wide = write_pair(tmp_path / "narrow", [[[2, 3]]]), write_pair(tmp_path / "wide", [[[2, 3]]], np.int32)
    with pytest.raises(DataError, match=f"{narrow} has dtype uint16, {wide} has int32: they can't be merged"):
        open_all([narrow, wide])


def test_a_bare_pair_has_no_manifest(sources: Sources, tmp_path: Path) -> None:
    write_pair(tmp_path / "x", [[[2, 5, 3]]])
    with pytest.raises(DataError, match=f"{tmp_path}/x: a bare Megatron pair has no manifest to merge; --single takes"):
        merge(open_all([sources.a, tmp_path / "x"]), sources.folder / "merged")


@pytest.mark.parametrize("name", ["counts.npy", "tokenizer/tokenizer.json", "00001.bin", "00001.idx"])
def test_damage_gets_no_new_checksum(sources: Sources, name: str) -> None:
    """Where it is read at all: shards that are only referred to keep their checksums."""
    path = sources.a / name
    content = bytearray(path.read_bytes())
    if name == "counts.npy":  # two counts change places: the sum stays what it was
        five = 128 + 8 * 5  # behind numpy's header
        content[five : five + 16] = content[five + 8 : five + 16] + content[five : five + 8]
    else:
        content[len(content) // 2] ^= 4
    assert content != path.read_bytes()
    path.write_bytes(content)
    datasets, output = open_all([sources.a, sources.b]), sources.folder / "merged"
    for attempt in (lambda: merge(datasets, output, copy=True), lambda: merge_single(datasets, output)):
        with pytest.raises(DataError, match=rf"{path}: checksum"):
            attempt()
    if "0000" in name:
        merge(datasets, output)
        assert any(f"{name}: checksum" in fault for fault in verify(Dataset.open(output)))
    else:
        with pytest.raises(DataError, match=rf"{path}: checksum"):
            merge(datasets, output)
        assert names_in(sources.folder) == [name for name in names_in(sources.folder) if "merged" not in name]


@pytest.mark.parametrize("single", [False, True])
def test_an_interruption_leaves_nothing(sources: Sources, monkeypatch, single: bool) -> None:
    copied = []

    def interrupted(source: Path, *rest: object) -> None:
        if len(copied) == 2:
            raise KeyboardInterrupt
        copied.append(source)
        original(source, *rest)

    original = pair.append
    before = names_in(sources.folder)
    monkeypatch.setattr(pair, "append", interrupted)
    option = "--single" if single else "--copy"
    assert command(monkeypatch, sources.a, sources.b, "--output", sources.folder / "merged", option) == 130
    assert len(copied) == 2
    assert names_in(sources.folder) == before
    assert not (sources.folder / "merged.partial").exists()
    monkeypatch.setattr(pair, "append", original)
    assert command(monkeypatch, sources.a, sources.b, "--output", sources.folder / "merged", option) == 0


# --- one pair ---


def test_a_single_pair_in_megatrons_reader(sources: Sources, megatron, tmp_path: Path) -> None:
    merge_single(open_all([sources.a, sources.b]), tmp_path / "one.pair")
    theirs = megatron.IndexedDataset(str(tmp_path / "one.pair"))
    whole = Dataset.open(sources.both)
    assert [theirs.get(i).tolist() for i in range(len(theirs))] == sequences_of(whole)
    documents = [np.diff(shard.document_ends) for shard in whole.shards]
    assert theirs.document_indices.tolist() == np.cumsum([0, *np.concatenate(documents)]).tolist()
    assert theirs.index.dtype == np.uint16
    single = Dataset.open(tmp_path / "one.pair")
    assert verify(single) == []
    assert np.array_equal(single.counts(), whole.counts())


def test_a_single_pair_is_the_bytes_that_megatrons_builder_joins(sources: Sources, megatron, tmp_path: Path) -> None:
    merge_single(open_all([sources.b, sources.a]), tmp_path / "ours")
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/theirs.bin", dtype=np.uint16)
    for prefix in (sources.b / "00000", sources.a / "00000", sources.a / "00001"):
        builder.add_index(str(prefix))
    builder.finalize(f"{tmp_path}/theirs.idx")
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_bare_pairs_of_any_type_in_any_pieces(megatron, tmp_path: Path, monkeypatch, dtype: type) -> None:
    monkeypatch.setattr(pair, "PIECE", 3)
    documents = [[[[2, 7, 3]], [[2, 9, 9, 3], [2, 3]]], [[[2, 100, 3], [2, 3], [5]], [[6]]]]
    prefixes = [write_pair(tmp_path / f"p{i}", part, dtype) for i, part in enumerate(documents)]
    merge_single(open_all(prefixes), tmp_path / "one")
    theirs = megatron.IndexedDataset(str(tmp_path / "one"))
    assert theirs.index.dtype == dtype
    assert [theirs.get(i).tolist() for i in range(len(theirs))] == [s for part in documents for d in part for s in d]
    assert theirs.document_indices.tolist() == [0, 1, 3, 6, 7]
    counts = np.bincount(np.concatenate([s for part in documents for d in part for s in d]))
    assert Dataset.open(tmp_path / "one").counts().tolist() == counts.tolist()


def test_a_folder_and_a_pair(sources: Sources, megatron, tmp_path: Path) -> None:
    write_pair(tmp_path / "x", [[[2, 5, 3], [2, 38, 3]]])
    merge_single(open_all([sources.a, tmp_path / "x"]), tmp_path / "one")
    theirs = megatron.IndexedDataset(str(tmp_path / "one"))
    assert [theirs.get(i).tolist() for i in (-2, -1)] == [[2, 5, 3], [2, 38, 3]]
    added = np.bincount([2, 5, 3, 2, 38, 3], minlength=len(VOCABULARY))
    assert np.array_equal(Dataset.open(tmp_path / "one").counts(), Dataset.open(sources.a).counts() + added)


def test_deepspeeds_pairs_become_megatrons(megatron, tmp_path: Path) -> None:
    """Also sequences of no document, which Megatron's own joining would give to the next one."""
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDatasetBuilder

    for dtype, code in ((np.uint16, 8), (np.uint64, 5)):
        prefixes = [tmp_path / f"{code}-{i}" for i in range(2)]
        for prefix, sequences in zip(prefixes, ([[2, 5, 3], [2, 3]], [[2, 6, 3]]), strict=True):
            builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
            builder.add_items([np.asarray(sequence) for sequence in sequences])
            builder.finalize(f"{prefix}.idx")
        merge_single(open_all(prefixes), tmp_path / f"{code}")
        assert (tmp_path / f"{code}.idx").read_bytes()[17] == code
        theirs = megatron.IndexedDataset(str(tmp_path / f"{code}"))
        assert [theirs.get(i).tolist() for i in range(3)] == [[2, 5, 3], [2, 3], [2, 6, 3]]
        assert theirs.document_indices.tolist() == [0, 2, 3]


def test_sequences_that_do_not_follow_one_another(tmp_path: Path) -> None:
    """A pair may say so; what is copied as a whole would not."""
    prefix = write_pair(tmp_path / "x", [[[2, 7, 3], [2, 3], [2, 3], [4, 5]]])
    index = bytearray((tmp_path / "x.idx").read_bytes())
    pointers = 34 + 4 * 4
    index[pointers + 16 : pointers + 24] = index[pointers + 8 : pointers + 16]
    (tmp_path / "x.idx").write_bytes(index)
    with pytest.raises(DataError, match=r"x\.idx: pointer 2 is 6, expected 10"):
        merge_single(open_all([prefix]), tmp_path / "one")
    assert names_in(tmp_path) == ["x.bin", "x.idx"]


def test_a_single_pair_is_never_held_in_memory(tmp_path: Path, monkeypatch) -> None:
    """40 MB of ids through pieces of 64 KB."""
    monkeypatch.setattr(pair, "PIECE", 1 << 16)
    with ShardWriter(tmp_path / "x", np.dtype(np.int32)) as writer:
        for _ in range(10):
            writer.add(np.zeros(1_000_000, np.int32), np.full(1000, 1000), np.full(100, 10))
        writer.close()
    np.save(tmp_path / "x.counts.npy", np.asarray([10_000_000]))
    datasets = open_all([tmp_path / "x"])
    tracemalloc.start()
    merge_single(datasets, tmp_path / "one")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert (tmp_path / "one.idx").read_bytes() == (tmp_path / "x.idx").read_bytes()


def test_a_pair_beside_which_something_is_refused(sources: Sources, tmp_path: Path) -> None:
    datasets = open_all([sources.a])
    for name in ("one", "one.bin", "one.idx", "one.counts.npy"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name}: exists already"):
            merge_single(datasets, tmp_path / "one")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be made"):
        merge_single(datasets, tmp_path / "file" / "one")


# --- the command ---


def test_command(monkeypatch, capsys, sources: Sources) -> None:
    output, whole = sources.folder / "merged", Dataset.open(sources.both)
    said = f"{len(whole):,} sequences, {whole.tokens:,} tokens in"
    assert command(monkeypatch, sources.a, sources.b, "--output", output) == 0
    assert capsys.readouterr().out == f"{output}: {said} 3 shard(s), which stay where they are\n"
    assert command(monkeypatch, sources.a, sources.b, "--copy", "--output", f"{output}2") == 0
    assert capsys.readouterr().out == f"{output}2: {said} 3 shard(s)\n"
    assert command(monkeypatch, sources.a, sources.b, "--single", "--output", f"{output}3") == 0
    assert capsys.readouterr().out == f"{output}3: {said} 1 shard(s)\n"


@pytest.mark.parametrize(("words", "code", "message"), [
    (["a", "b"], 2, "--output"),
    (["--output", "c"], 2, "DATASET"),
    (["a", "a", "--output", "c"], 3, "too: nothing is merged twice"),
    (["a", "nothing", "--output", "c"], 3, "neither a dataset folder nor a prefix"),
    (["a", "--output", "b"], 2, "exists already"),
    (["a", "--output", "c", "--copy", "--single"], 2, "--single copies anyway"),
    (["a", "b/00000", "--output", "c"], 3, "--single takes it"),
])  # fmt: skip
def test_refusals(monkeypatch, capsys, sources: Sources, words: list[str], code: int, message: str) -> None:
    monkeypatch.chdir(sources.folder)
    assert command(monkeypatch, *words) == code
    assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == ["a", "b", "both"]
