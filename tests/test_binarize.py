"""data.binarize against a plain line-by-line implementation of the same rules, read back by Megatron-Core's reader."""

import codecs
import dataclasses
import gc
import gzip
import itertools
import json
import random
import subprocess
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import transformers
from backports import zstd
from conftest import SPECIALS, VOCABULARY, sentence, write_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

from data import binarize as module
from data import shards, text
from data.binarize import Cleaning, Files, Lines, binarize
from data.describe import verify
from data.indexed import Dataset
from data.manifest import CleaningCounts, CleaningRules, Manifest
from data.tokenizer import load_tokenizer, vocabulary_of
from launch.errors import ConfigError, DataError, run

Documents = list[list[list[int]]]
EVERYTHING = CleaningRules(512, 2, 1.5)  # nothing is too short or too unknown
RULES = CleaningRules()
UNKNOWN, CLS, SEP = 1, 2, 3


def reference(content: bytes, tokenizer, rules: CleaningRules) -> tuple[Documents, CleaningCounts]:
    """One line after another, by the letter of the rules."""
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    documents, counts = [], dict.fromkeys((field.name for field in dataclasses.fields(CleaningCounts)), 0)
    for line in lines:
        counts["lines"] += 1
        if line.endswith(b"\r"):
            line = line[:-1]
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            text = line.decode("utf-8", errors="replace")
            counts["lines_with_invalid_utf8"] += 1
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        room = rules.max_length - 2
        pieces = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        if len(pieces) > 1:
            counts["lines_split"] += 1
            counts["pieces_of_split_lines"] += len(pieces)
        document = []
        for piece in pieces:
            sequence = [tokenizer.cls_token_id, *piece, tokenizer.sep_token_id]
            if len(sequence) < rules.min_length:
                counts["dropped_too_short"] += 1
            elif Fraction(sequence.count(tokenizer.unk_token_id), len(sequence)) >= Fraction(str(rules.max_unknown)):
                counts["dropped_unknown"] += 1
            else:
                document.append(sequence)
        if document:
            documents.append(document)
    return documents, CleaningCounts(**counts)


def documents_of(folder: Path) -> Documents:
    """What a dataset holds, by way of our reader."""
    documents: Documents = []
    for shard in Dataset.open(folder).shards:
        sequences = np.split(np.asarray(shard.ids), np.cumsum(shard.lengths)[:-1])
        ends = shard.document_ends.tolist()
        documents += [[s.tolist() for s in sequences[a:b]] for a, b in itertools.pairwise(ends)]
    return documents


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., tuple[Path, Manifest]]:
    """Binarize some content, each `bytes` a file of its own; returns the folder and its manifest."""

    def run_it(*contents: bytes, rules: CleaningRules = EVERYTHING, name: str = "out") -> tuple[Path, Manifest]:
        paths = []
        for number, content in enumerate(contents):
            paths.append(str(tmp_path / f"input{number}.txt"))
            if not Path(paths[-1]).exists() or Path(paths[-1]).read_bytes() != content:  # a file's time is its own
                Path(paths[-1]).write_bytes(content)
        (manifest,) = binarize(Files(tuple(paths), str(tokenizer_folder), tmp_path / name, 1), rules)
        return tmp_path / name, manifest

    return run_it


def words(*counts: int) -> bytes:
    """Lines of so many ids each, none unknown."""
    return b"".join(b" ".join(b"the of and to in".split()[i % 5] for i in range(n)) + b"\n" for n in counts)


# --- lines ---


@pytest.mark.parametrize("content", [
    b"the of\nand to\n", b"the of\nand to", b"the of\r\nand to\r\n", b"the of\r\nand to\r", b"\n\n", b"\n", b"the",
    b"the\r\r\nof\rand\n", "the\u2028of\u2029and\nto\n".encode(), b"the\x0bof\x0cand\x1cto\x1din\x1ea\n",
    "the\x85of\nand\n".encode(), b"the\x00of\n", "\ufeffthe of\nand\n".encode(), b"the \xff of\nand \xe6\x9d to\n\xc3",
    b"\xc3\n\xa9\n", "é 東 東京 e\u0301 \U0001f600\n".encode(), b"[CLS] the [MASK] of [SEP]\n", b"   \n\t\n the \n",
    b"the" * 200 + b"\n",
])  # fmt: skip
def test_lines_by_the_letter_of_the_rules(make, tokenizer, content: bytes) -> None:
    documents, counts = reference(content, tokenizer, EVERYTHING)
    folder, manifest = make(content)
    assert documents_of(folder) == documents
    assert manifest.cleaning == counts


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_a_line_feed_ends_a_line(make, separator: str) -> None:
    """`str.splitlines` would make two lines of each."""
    _, manifest = make(f"the of{separator}and to\n".encode())
    assert (manifest.cleaning.lines, manifest.sequences) == (1, 1)


def test_lines_by_hand(make) -> None:
    """Ids of the small vocabulary: the 5, of 6, and 7; one carriage return is dropped, a second one is white space."""
    folder, manifest = make(b"the of\r\n\nand\r\r\nof")
    assert documents_of(folder) == [[[2, 5, 6, 3]], [[2, 3]], [[2, 7, 3]], [[2, 6, 3]]]
    assert manifest.cleaning == CleaningCounts(lines=4)


LINE = st.lists(st.sampled_from([*b"the of\r\n\x85\xc3\xa9\xff\x00", *b"   "]), min_size=1, max_size=60).map(bytes)


@settings(deadline=None, max_examples=60)
@given(content=LINE, rules=st.sampled_from([EVERYTHING, CleaningRules(5, 3, 0.5), CleaningRules(3, 3, 1.0)]))
def test_any_bytes_equal_the_reference(tokenizer, content: bytes, rules: CleaningRules) -> None:
    documents, counts = reference(content, tokenizer, rules)
    recipe = shards.Recipe(tokenizer.backend_tokenizer.to_str(), vocabulary_of(tokenizer), rules, Lines().selection)
    (encoded,) = shards.Builder(recipe).encode(content, head=True)
    sequences = encoded.sequences
    parts = np.split(sequences.ids, np.cumsum(sequences.lengths)[:-1]) if sequences.lengths.size else []
    ends = [0, *np.cumsum(sequences.documents).tolist()]
    assert [[s.tolist() for s in parts[a:b]] for a, b in itertools.pairwise(ends)] == documents
    assert encoded.cleaning == counts


# --- cleaning ---


@pytest.mark.parametrize(("ids", "pieces"), [
    (10, [12]), (509, [511]), (510, [512]), (511, [512, 3]), (1020, [512, 512]), (1021, [512, 512, 3]),
    (1530, [512] * 3),
])  # fmt: skip
def test_splitting_at_510_ids(make, ids: int, pieces: list[int]) -> None:
    folder, manifest = make(words(ids))
    (document,) = documents_of(folder)
    assert [len(sequence) for sequence in document] == pieces
    assert all(sequence[0] == CLS and sequence[-1] == SEP for sequence in document)
    assert [i for sequence in document for i in sequence[1:-1]] == [5 + i % 5 for i in range(ids)]
    split = len(pieces) > 1
    assert manifest.cleaning == CleaningCounts(1, 0, int(split), len(pieces) if split else 0)
    assert (manifest.shards[0].documents, manifest.sequences) == (1, len(pieces))


def test_too_short_at_the_border(make) -> None:
    folder, manifest = make(words(9, 10, 11, 0, 519, 520), rules=CleaningRules())
    lengths = [[len(sequence) for sequence in document] for document in documents_of(folder)]
    assert lengths == [[12], [13], [512], [512, 12]]  # 11 and 2 tokens are dropped, and the last 9 ids of 519
    assert manifest.cleaning == CleaningCounts(6, 0, 2, 4, 3, 0)


@pytest.mark.parametrize(("unknown", "total", "share", "kept"), [
    (5, 12, 0.5, True), (6, 12, 0.5, False), (6, 13, 0.5, True), (7, 13, 0.5, False),
    (7, 100, 0.07, False), (6, 100, 0.07, True),  # 0.07 * 100 is above 7 in floating point
    (28, 50, 0.56, False), (27, 50, 0.56, True), (10, 12, 1.0, True), (10, 12, 1.5, True), (0, 12, 0.01, True),
])  # fmt: skip
def test_too_unknown_at_the_border(make, unknown: int, total: int, share: float, kept: bool) -> None:
    """Shares are of all tokens, [CLS] and [SEP] too."""
    line = b"zebra " * unknown + b"the " * (total - 2 - unknown) + b"\n" + words(20)
    folder, manifest = make(line, rules=CleaningRules(512, 12, share))
    assert [len(document[0]) for document in documents_of(folder)] == [total, 22][not kept :]
    assert manifest.cleaning == CleaningCounts(lines=2, dropped_unknown=int(not kept))


def test_a_short_line_of_unknown_words_counts_once(make) -> None:
    _, manifest = make(b"zebra zebra\n" + words(20), rules=CleaningRules())
    assert manifest.cleaning == CleaningCounts(lines=2, dropped_too_short=1)


def test_a_line_that_loses_a_piece_in_the_middle_is_one_document(make) -> None:
    folder, manifest = make(b"the " * 4 + b"zebra " * 4 + b"of " * 4 + b"\n", rules=CleaningRules(6, 3, 0.5))
    assert documents_of(folder) == [[[2, 5, 5, 5, 5, 3], [2, 6, 6, 6, 6, 3]]]
    assert manifest.cleaning == CleaningCounts(1, 0, 1, 3, 0, 1)


def test_real_english_equals_the_reference(shared_data: Path, tmp_path: Path) -> None:
    """The real vocabulary on 500 real lines, with lengths that many of them pass."""
    content = (shared_data / "corpus" / "dump.valid.txt").read_bytes()
    path, real = tmp_path / "valid.txt", load_tokenizer(str(shared_data / "bert-base-uncased"))
    path.write_bytes(content)
    rules = CleaningRules(128, 30, 0.5)
    documents, counts = reference(content, real, rules)
    files = Files((str(path),), str(shared_data / "bert-base-uncased"), tmp_path / "out", 1)
    (manifest,) = binarize(files, rules)
    assert documents_of(tmp_path / "out") == documents
    assert manifest.cleaning == counts
    assert min(counts.lines_split, counts.dropped_too_short) > 0
    assert manifest.vocabulary.size == 30_522


# --- blocks and shards ---


def mixed_text(seed: int = 1, lines: int = 150) -> bytes:
    """Lines of all lengths, with every kind of trouble, no line end at the end."""
    generator = random.Random(seed)
    odd = [b"", b"\r", b"\xff\xfe", "é\u2028東 ".encode(), b"the " * 700, b"zebra " * 20]
    rows = [sentence(generator, generator.randint(1, 40)).encode() + generator.choice(odd) for _ in range(lines)]
    return b"\n".join(rows)


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_the_same_bytes_whatever_the_block_size(make, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    whole, _ = make(mixed_text(), rules=CleaningRules(), name="whole")
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    cut, _ = make(mixed_text(), rules=CleaningRules(), name="cut")
    assert content_of(whole) == content_of(cut)
    assert not verify(Dataset.open(cut))


@pytest.mark.parametrize("size", [200, 3_000, 20_000])
def test_many_shards_hold_what_one_holds(make, tokenizer, megatron, monkeypatch, size: int) -> None:
    """Lines of up to 4 kB are longer than the smallest shards; Megatron reads every sequence of every shard."""
    content = mixed_text()
    documents, counts = reference(content, tokenizer, CleaningRules())
    monkeypatch.setattr(text, "_MEGABYTE", size)
    folder, manifest = make(content, rules=CleaningRules())
    assert manifest.cleaning == counts
    assert documents_of(folder) == documents
    assert not verify(Dataset.open(folder))
    assert sum(entry.end - entry.start for entry in manifest.shards) <= len(content)
    read = []
    for entry in manifest.shards:
        shard = megatron.IndexedDataset(str(folder / entry.name))
        sequences, ends = [shard.get(i).tolist() for i in range(len(shard))], shard.document_indices.tolist()
        read += [sequences[a:b] for a, b in itertools.pairwise(ends)]
    assert read == documents
    assert len(manifest.shards) > 1


def test_a_range_that_leaves_nothing_makes_no_shard(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_MEGABYTE", 40)
    folder, manifest = make(words(12) + b"zebra\n" * 10 + words(12), rules=CleaningRules())
    assert [entry.name for entry in manifest.shards] == ["00000", "00002"]
    assert sorted(path.stem for path in folder.glob("*.bin")) == [entry.name for entry in manifest.shards]
    assert len(Dataset.open(folder)) == 2


def test_several_files_follow_each_other(make) -> None:
    folder, manifest = make(words(1, 2), b"", words(3))
    assert [[len(s) for s in document] for document in documents_of(folder)] == [[3], [4], [5]]
    assert [(entry.source, entry.start, entry.end) for entry in manifest.shards] == [
        ("input0.txt", 0, 11), ("input2.txt", 0, 11),
    ]  # fmt: skip


def test_the_manifest_tells_all_of_it(make, tokenizer) -> None:
    folder, manifest = make(words(600, 3, 20), words(30), rules=CleaningRules())
    assert Manifest.read(folder) == manifest
    assert manifest.rules == CleaningRules(512, 12, 0.5)
    assert manifest.vocabulary == vocabulary_of(tokenizer)
    assert manifest.cleaning == CleaningCounts(4, 0, 1, 2, 1, 0)
    assert (manifest.sequences, manifest.tokens) == (4, 512 + 92 + 22 + 32)
    assert [(entry.sequences, entry.documents, entry.longest) for entry in manifest.shards] == [(3, 2, 512), (1, 1, 32)]
    assert manifest.dtype == "uint16"
    listed = {f"{entry.name}.{suffix}" for entry in manifest.shards for suffix in ("bin", "idx")} | set(manifest.files)
    assert set(content_of(folder)) == listed | {"manifest.json"}
    assert np.load(folder / "counts.npy").tolist() == np.bincount(
        np.concatenate([s for document in documents_of(folder) for s in document]), minlength=len(VOCABULARY)
    ).tolist()  # fmt: skip


def test_the_same_bytes_from_another_place(make, tokenizer_folder: Path, tmp_path: Path) -> None:
    """No dates, no paths."""
    first, _ = make(mixed_text(), rules=CleaningRules(), name="first")
    elsewhere = tmp_path / "deep" / "er"
    write_vocabulary(elsewhere / "tokenizer")
    (elsewhere / "input0.txt").write_bytes(mixed_text())
    files = Files((str(elsewhere / "input0.txt"),), str(elsewhere / "tokenizer"), elsewhere / "second", 1)
    binarize(files, CleaningRules())
    assert content_of(elsewhere / "second") == content_of(first)


def test_the_dataset_brings_its_tokenizer(dataset_folder: Path, tokenizer) -> None:
    assert vocabulary_of(load_tokenizer(str(dataset_folder / "tokenizer"))) == vocabulary_of(tokenizer)


@pytest.mark.parametrize(("entries", "dtype"), [(65_499, "uint16"), (65_500, "int32")])
def test_the_type_of_ids_by_megatrons_rule(tmp_path: Path, megatron, entries: int, dtype: str) -> None:
    tokens = (*SPECIALS, *(f"w{i}" for i in range(entries - 5)))
    write_vocabulary(tmp_path / "tokenizer", tokens)
    (tmp_path / "x.txt").write_text(f"w0 w1 w{entries - 6}\n")
    files = Files((str(tmp_path / "x.txt"),), str(tmp_path / "tokenizer"), tmp_path / "out", 1)
    assert binarize(files, EVERYTHING)[0].dtype == dtype == megatron.DType.optimal_dtype(entries).__name__
    assert documents_of(tmp_path / "out") == [[[2, 5, 6, entries - 1, 3]]]
    assert megatron.IndexedDataset(str(tmp_path / "out" / "00000")).get(0).tolist() == [2, 5, 6, entries - 1, 3]
    assert not verify(Dataset.open(tmp_path / "out"))


def test_a_vocabulary_that_says_a_token_twice(tmp_path: Path) -> None:
    """Its last id is then the number of its tokens, not one less."""
    write_vocabulary(tmp_path / "tokenizer", (*SPECIALS, "the", "of", "the"))
    (tmp_path / "x.txt").write_text("the of\n")
    binarize(Files((str(tmp_path / "x.txt"),), str(tmp_path / "tokenizer"), tmp_path / "out", 1), EVERYTHING)
    assert documents_of(tmp_path / "out") == [[[2, 7, 6, 3]]]
    assert np.load(tmp_path / "out" / "counts.npy").size == 8


# --- what can go wrong ---


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b"zebra " * 20 + b"\n", b"the of\n"])
def test_nothing_left_is_an_error_and_leaves_nothing(make, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no sequence is left"):
        make(content, rules=CleaningRules())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input0.txt"]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, MemoryError])
def test_after_an_error_in_the_middle_the_same_command_goes_on(make, monkeypatch, tmp_path: Path, kind, capsys) -> None:
    """Shards that are complete stay; no file is left open: pytest would fail of the warning."""
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    monkeypatch.setattr(text, "_MEGABYTE", 3_000)
    undisturbed, _ = make(mixed_text(), rules=CleaningRules(), name="undisturbed")
    calls, clean = [], shards.clean

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 20:
            raise kind
        return clean(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "clean", fail)
        with pytest.raises(kind):
            make(mixed_text(), rules=CleaningRules())
    gc.collect()
    assert not (tmp_path / "out").exists()
    done = len(list((tmp_path / "out.partial" / "build").glob("0*.json")))
    assert done > 0
    capsys.readouterr()
    folder, manifest = make(mixed_text(), rules=CleaningRules())
    assert f"going on: {done} of {len(manifest.shards)} shards are complete" in capsys.readouterr().out
    assert content_of(folder) == content_of(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input0.txt", "out", "undisturbed"]


def test_an_existing_output_is_refused_untouched(make, tmp_path: Path) -> None:
    folder, _ = make(words(20))
    before = content_of(folder)
    with pytest.raises(ConfigError, match=r"--output .*out: exists already") as caught:
        make(words(30))
    assert caught.value.exit_code == 2
    assert content_of(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        make(words(30), name="file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_run_left_is_cleared(make, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "00007.bin").write_text("old")
    (tmp_path / "out.partial" / "build").mkdir()
    folder, _ = make(words(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["input0.txt", "out"]
    assert not (folder / "00007.bin").exists()


def test_the_output_is_made_where_there_is_no_folder_yet(make, tmp_path: Path) -> None:
    make(words(20), name="a/b/out")
    assert len(Dataset.open(tmp_path / "a" / "b" / "out")) == 1
    with pytest.raises(ConfigError, match="can't be made"):
        make(words(20), name="input0.txt/out")


@pytest.mark.parametrize(("arguments", "named"), [
    ({"max_length": 2}, "--max-length 2"), ({"max_length": 20, "min_length": 21}, "--min-length 21"),
    ({"max_unknown": 0.0}, "--max-unknown 0.0"), ({"max_unknown": float("nan")}, "--max-unknown nan"),
])  # fmt: skip
def test_settings_that_are_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Cleaning(**{"max_length": 512, "min_length": 12, "max_unknown": 0.5, **arguments})


def test_inputs_are_looked_for_before_the_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\*\.txt: no such file"):
        binarize(Files((f"{tmp_path}/*.txt",), str(tmp_path / "nothing"), tmp_path / "out"), CleaningRules())


def test_files_that_are_refused(tmp_path: Path) -> None:
    for name in ("shard_megabytes", "workers"):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} 0: must be positive"):
            Files(("x",), "t", tmp_path / "out", **{name: 0})
    with pytest.raises(ConfigError, match="--field : must be a name"):
        Files(("x",), "t", tmp_path / "out", field="")


@pytest.mark.parametrize(("arguments", "named"), [
    ({"limit": 0}, "--limit 0"), ({"sample": 0.0}, "--sample 0.0"), ({"sample": 1.5}, "--sample 1.5"),
    ({"valid_fraction": 1.0}, "--valid-fraction 1.0"), ({"valid_fraction": -0.1}, "--valid-fraction -0.1"),
])  # fmt: skip
def test_lines_that_are_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Lines(**arguments)


# --- records ---

FORMS = ("a.jsonl", "a.ndjson.gz", "a.json.zst", "a.parquet", "hub:a/b", "a.txt.zst")


def write_as(
    form: str, texts: list[str | None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str | None]:
    """Put texts into an input of some form; its name, and the field."""
    path = folder / form.removeprefix("hub:").replace("/", "-")
    if form.startswith("hub:"):
        rows = types.SimpleNamespace(column_names=["text"])
        rows.select_columns = lambda _: rows
        rows.iter = lambda size: ({"text": texts[i : i + size]} for i in range(0, len(texts), size))
        builder = types.SimpleNamespace(hash="c0ffee", as_streaming_dataset=lambda _: rows)
        library = types.SimpleNamespace(load_dataset_builder=lambda *_, **__: builder)
        monkeypatch.setitem(sys.modules, "datasets", library)
        monkeypatch.setattr("data.hub.pinned", lambda text: f"{text}@c0ffee::train")
        return form, "text"
    if form.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"n": range(len(texts)), "text": texts}), path, row_group_size=40)
        return str(path), "text"
    plain = form == "a.txt.zst"
    rows = [(t or "").replace("\n", " ") if plain else json.dumps({"n": i, "text": t}) for i, t in enumerate(texts)]
    pack = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
    path.write_bytes(pack("".join(row + "\n" for row in rows).encode()))
    return str(path), None if plain else "text"


@pytest.mark.parametrize("lines", [Lines(), Lines(limit=101), Lines(sample=0.6, valid_fraction=0.3)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_text_gives_the_same(
    form: str, lines: Lines, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line's fate, too, is that of its text. Blocks of 500 bytes, and many shards."""
    texts: list[str | None] = [line.decode(errors="replace") for line in mixed_text().split(b"\n")]
    texts[3], texts[5], texts[7] = None, "the of\nand to\n\nin a house with a tree and a cat", ""
    plain = "".join((text or "").replace("\n", " ") + "\n" for text in texts)
    (tmp_path / "plain.txt").write_text(plain, encoding="utf-8", newline="")
    expected = binarize(Files((str(tmp_path / "plain.txt"),), str(tokenizer_folder), tmp_path / "plain"), RULES, lines)
    name, field = write_as(form, texts, tmp_path, monkeypatch)
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    monkeypatch.setattr(text, "_MEGABYTE", 4_000)
    files = Files((name,), str(tokenizer_folder), tmp_path / "out", 1, field=field)
    made = binarize(files, RULES, lines)
    for which, a, b in zip(lines.selection.datasets, made, expected, strict=True):
        assert documents_of(tmp_path / "out" / which) == documents_of(tmp_path / "plain" / which)
        assert a.cleaning == b.cleaning
        assert len(a.shards) > 1
        assert verify(Dataset.open(tmp_path / "out" / which)) == []
        assert {entry.source for entry in a.shards} == {"hub:a/b@c0ffee::train" if "hub" in form else Path(name).name}


def test_bytes_that_are_not_utf8_are_counted(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"the \xff of\nand \xe6\x9d to\nin\n")
    (tmp_path / "x.jsonl").write_bytes(b'{"t": "the \xff of"}\n{"t": "and \\ud83d to"}\n{"t": "in"}\n')
    for name, field in (("x.txt", None), ("x.jsonl", "t")):
        files = Files((str(tmp_path / name),), str(tokenizer_folder), tmp_path / f"out-{name}", field=field)
        assert binarize(files, EVERYTHING)[0].cleaning.lines_with_invalid_utf8 == 2
    assert documents_of(tmp_path / "out-x.txt") == documents_of(tmp_path / "out-x.jsonl")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_a_mark_of_utf8_before_the_first_record(
    pack: Callable, workers: int, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before a text; in front of a later line it is an error, also where a range or a block begins."""
    monkeypatch.setattr("data.building.WORTH_A_WORKER", 1)
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    monkeypatch.setattr(text, "_MEGABYTE", 4_000)
    row, mark = json.dumps({"text": "the cat of the house is in the tree"}).encode() + b"\n", codecs.BOM_UTF8

    def made(name: str, content: bytes) -> Path:
        (tmp_path / f"{name}.jsonl").write_bytes(pack(content))
        files = Files((str(tmp_path / f"{name}.jsonl"),), str(tokenizer_folder), tmp_path / name, 1, workers, "text")
        assert len(binarize(files, EVERYTHING)[0].shards) > 1
        return tmp_path / name

    assert documents_of(made("marked", mark + row * 300)) == documents_of(made("plain", row * 300))
    for before in (0, 1, next(n for n in range(300) if n * len(row) >= 4_000)):
        with pytest.raises(DataError, match=rf"line {before + 1}: no JSON object"):
            made(f"odd-{before}", row * before + mark * (1 if before else 2) + row * 200)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_broken_record_is_named_by_file_and_line(
    pack: Callable, workers: int, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far into the file, in a shard of its own, in another process."""
    row = json.dumps({"text": "the cat of the house is in the tree"}).encode() + b"\n"
    (tmp_path / "x.jsonl").write_bytes(pack(row * 31_233 + b'{"txt": "the"}\n' + row * 31_000))
    monkeypatch.setattr("data.building.WORTH_A_WORKER", 1)
    files = Files((str(tmp_path / "x.jsonl"),), str(tokenizer_folder), tmp_path / "out", 1, workers, "text")
    words = r"x\.jsonl, line 31,234: no field 'text' \(but txt\); did you mean 'txt'\?"
    with pytest.raises(DataError, match=words):
        binarize(files, RULES)
    assert not (tmp_path / "out").exists()


def test_records_by_the_command(monkeypatch, capsys, tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "the cat of the house is in the tree and the dog is at the house ."}\n')
    given = ["--input", tmp_path / "x.jsonl", "--tokenizer", tokenizer_folder, "--output", tmp_path / "out"]
    assert command(monkeypatch, *given) == 2
    assert "x.jsonl: holds records: say which field of them is the text" in capsys.readouterr().err
    assert command(monkeypatch, *given, "--field", "text") == 3
    assert "error: " in (said := capsys.readouterr().err)
    assert "x.jsonl, line 1: no field 'text' (but body)" in said
    assert command(monkeypatch, *given, "--field", "body") == 0
    assert "from 1 lines" in capsys.readouterr().out


# --- the command ---


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Exit code of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["data.binarize", *map(str, words)])
    try:
        run(module.main)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_command(tmp_path: Path, tokenizer_folder: Path, texts: tuple[Path, ...]) -> None:
    words = ["--input", *texts, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out", "--min_length", "40"]
    line = [sys.executable, "-m", "data.binarize", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    assert f"out: {len(dataset)} sequences, {dataset.tokens:,} tokens in 3 shard(s), from 230 lines" in done.stdout
    assert dataset.manifest
    assert dataset.manifest.rules == CleaningRules(512, 40, 0.5)
    assert f"dropped: {dataset.manifest.cleaning.dropped_too_short} too short" in done.stdout


def test_exit_codes(monkeypatch, capsys, tmp_path: Path, tokenizer_folder: Path, texts: tuple[Path, ...]) -> None:
    given = ["--input", texts[0], "--tokenizer", tokenizer_folder, "--output"]
    assert command(monkeypatch, *given, tmp_path / "out") == 0
    assert command(monkeypatch, *given, tmp_path / "out") == 2
    assert "error: --output" in capsys.readouterr().err
    assert command(monkeypatch, *given, tmp_path / "other", "--max-unknown", 0.001, "--min-length", 500) == 3
    assert "error: no sequence is left of 120 lines" in capsys.readouterr().err
    assert command(monkeypatch, "--input", texts[0]) == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert command(monkeypatch, *given, tmp_path / "other", "--min-lenght", 5) == 2
    assert "did you mean '--min-length'?" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# --- other tokenizers ---


def test_robertas_kind_of_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Byte-level BPE, by the reference alone: spaces are part of tokens, so no chunk can be looked at by itself."""
    text_file = tmp_path / "x.txt"
    text_file.write_bytes(mixed_text(3, 60))
    bpe = tokenizers.ByteLevelBPETokenizer()
    names = ("cls", "pad", "sep", "unk", "mask")
    specials = {f"{name}_token": f"<{name}>" for name in names}
    lines = ["the of and to in a house and a tree"] * 9
    bpe.train_from_iterator(lines, vocab_size=300, special_tokens=[*specials.values()])
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **specials).save_pretrained(tmp_path / "bpe")
    bpe_tokenizer = load_tokenizer(str(tmp_path / "bpe"))
    binarize(Files((str(text_file),), str(tmp_path / "bpe"), tmp_path / "out"), CleaningRules())
    assert "no fast form: its model is no WordPiece" in capsys.readouterr().out
    documents, _ = reference(text_file.read_bytes(), bpe_tokenizer, CleaningRules())
    assert documents_of(tmp_path / "out") == documents
    assert documents[0][0][0] == bpe_tokenizer.cls_token_id


def test_a_cased_vocabulary_of_many_languages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Multilingual BERT's kind: more than 65,536 entries, case and accents kept."""
    words = (*VOCABULARY, "The", "É", "##É", "москва", "##ва", "日", "本", "é", *(f"w{i}" for i in range(66_000)))
    write_vocabulary(tmp_path / "many", words)
    config = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "many" / "tokenizer_config.json").write_text(json.dumps(config))
    many = load_tokenizer(str(tmp_path / "many"))
    assert many.backend_tokenizer.normalizer.normalize_str("É") == "É"
    content = "The the É e\u0301 É москва Москва 日本 w65999 \u0301\u0323\n".encode() * 3
    (tmp_path / "x.txt").write_bytes(content)
    (manifest,) = binarize(Files((str(tmp_path / "x.txt"),), str(tmp_path / "many"), tmp_path / "out"), EVERYTHING)
    assert "WordPiece in C++" in capsys.readouterr().out
    assert manifest.dtype == "int32"
    assert documents_of(tmp_path / "out") == reference(content, many, EVERYTHING)[0]
