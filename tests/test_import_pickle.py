"""data.import_pickle: what the original wrote becomes what data.binarize makes of the same lines."""

import dataclasses
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPECIALS, VOCABULARY, sentence, write_vocabulary
from test_binarize import content_of, documents_of

from data import import_pickle as module
from data import text
from data.binarize import Files as TextFiles
from data.binarize import binarize
from data.describe import verify
from data.import_pickle import Files, import_pickle
from data.indexed import Dataset
from data.manifest import CleaningCounts, CleaningRules
from launch.errors import ConfigError, DataError, run

RULES = CleaningRules()


def binarized(lines: list[str], tokenizer: Any, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """What the original's scripts/binarized_data.py pickles, and the lines in that order."""
    framed = [f"{tokenizer.cls_token} {line.strip()} {tokenizer.sep_token}" for line in lines]
    kind = np.uint16 if len(tokenizer) < 1 << 16 else np.int32
    pairs = [
        (kind(tokenizer.encode(line, add_special_tokens=False)), lines[i]) for i, line in enumerate(framed)
    ]  # fmt: skip
    random.Random(seed).shuffle(pairs)
    return [ids for ids, _ in pairs], [line for _, line in pairs]


def counts_of(arrays: list[np.ndarray], size: int) -> list[int]:
    """What its scripts/token_counts.py pickles."""
    counter: Counter = Counter()
    for ids in arrays:
        counter.update(ids.tolist())
    counts = [0] * size
    for token, number in counter.items():
        counts[token] = number
    return counts


def dump(path: Path, content: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return path


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Lines of all lengths, some of words that the vocabulary lacks, some very long."""
    generator = random.Random(3)
    odd = ["", " zebra" * 20, " the" * 700, " é 東"]
    return [sentence(generator, generator.randint(1, 40)) + generator.choice(odd) for _ in range(2_100)]


@pytest.fixture
def make(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Path]:
    """Import a list; returns the dataset's folder."""

    def run_it(content: Any, name: str = "out", rules: CleaningRules = RULES, counts: Any = None, **more: Any) -> Path:
        source = dump(tmp_path / f"{name}.pickle", content, **more)
        counted = None if counts is None else dump(tmp_path / "counts.pickle", counts)
        import_pickle(Files(source, str(tokenizer_folder), tmp_path / name, counted), rules)
        return tmp_path / name

    return run_it


def by_binarize(lines: list[str], tokenizer: Path, output: Path, rules: CleaningRules = RULES) -> Path:
    source = output.with_name("lines.txt")
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    binarize(TextFiles((str(source),), str(tokenizer), output), rules)
    return output


@pytest.mark.parametrize(
    ("rules", "protocol"),
    [(RULES, 4), (RULES, 5), (CleaningRules(64, 20, 0.3), 5), (CleaningRules(1_000, 2, 1.5), 5)],
)
def test_it_is_what_binarize_makes(make, lines, tokenizer, tokenizer_folder, tmp_path, rules, protocol) -> None:
    arrays, shuffled = binarized(lines, tokenizer)
    made = Dataset.open(make(arrays, rules=rules, protocol=protocol))
    expected = Dataset.open(by_binarize(shuffled, tokenizer_folder, tmp_path / "expected", rules))
    assert verify(made) == []
    assert documents_of(made.path) == documents_of(expected.path)
    assert made.counts().tolist() == expected.counts().tolist()
    assert (made.path / "tokenizer").is_dir()
    assert made.manifest
    assert expected.manifest
    for what in ("cleaning", "rules", "vocabulary", "dtype", "files"):
        assert getattr(made.manifest, what) == getattr(expected.manifest, what), what
    assert made.manifest.cleaning.lines == 2_100
    if rules == RULES:
        did = dataclasses.asdict(made.manifest.cleaning)
        assert min(did[what] for what in ("lines_split", "dropped_too_short", "dropped_unknown")) > 0


def test_by_hand(make) -> None:
    """`the of` are 5 and 6; 510 ids have room between [CLS] and [SEP]; of the last line 2 are left over."""
    long = [2, *([5, 6] * 256), 3]
    folder = make([np.uint16([2, 5, 6, 3]), np.uint16(long), np.uint16([2, *[1] * 6, *[5] * 4, 3])])
    assert documents_of(folder) == [[[*long[:511], 3]]]
    manifest = Dataset.open(folder).manifest
    assert manifest
    assert manifest.cleaning == CleaningCounts(
        lines=3, lines_split=1, pieces_of_split_lines=2, dropped_too_short=2, dropped_unknown=1
    )


def test_shards_and_their_places(make, lines, tokenizer, tmp_path: Path, monkeypatch) -> None:
    arrays, _ = binarized(lines, tokenizer)
    whole = documents_of(make(arrays, "whole"))
    monkeypatch.setattr(text, "_MEGABYTE", 7_500)  # shards of 60 kB
    folder = make(arrays)
    entries = Dataset.open(folder).manifest.shards
    assert len(entries) > 2
    assert documents_of(folder) == whole
    assert [entry.start for entry in entries] == [0, *(entry.end for entry in entries[:-1])]
    assert entries[-1].end == (tmp_path / "out.pickle").stat().st_size - 1
    assert {entry.source for entry in entries} == {"out.pickle"}


def test_a_killed_import_goes_on(make, lines, tokenizer, tmp_path: Path, monkeypatch) -> None:
    """What is complete stays; the bytes are the same."""
    monkeypatch.setattr(text, "_MEGABYTE", 7_500)
    arrays, _ = binarized(lines, tokenizer)
    undisturbed = make(arrays, "undisturbed")
    encode, calls = module.Encoded.of, []

    def die(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*given)

    source = dump(tmp_path / "undisturbed.pickle", arrays)
    files = Files(source, str(tmp_path / "undisturbed" / "tokenizer"), tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(module.Encoded, "of", die)
        with pytest.raises(KeyboardInterrupt):
            import_pickle(files, RULES)
    assert not (tmp_path / "again").exists()
    assert (tmp_path / "again.partial" / "build" / "00000.json").exists()
    with pytest.raises(ConfigError, match="changed: cleaning"):
        import_pickle(files, CleaningRules(512, 13, 0.5))
    import_pickle(files, RULES)
    assert content_of(tmp_path / "again") == content_of(undisturbed)
    assert not (tmp_path / "again.partial").exists()


def test_what_is_put_right_after_a_refusal_is_imported(tmp_path: Path, tokenizer_folder: Path) -> None:
    line = np.uint16([2, *[5] * 20, 3])
    files = Files(dump(tmp_path / "x.pickle", [line, "a line"]), str(tokenizer_folder), tmp_path / "out")
    with pytest.raises(DataError, match="item 1 of the list is of type str"):
        import_pickle(files, RULES)
    dump(files.input, [line, line.copy(), line.copy()])
    import_pickle(files, RULES)
    assert documents_of(files.output) == [[line.tolist()]] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.pickle"]


def test_a_vocabulary_beyond_16_bits(tmp_path: Path) -> None:
    """The original wrote int32 there. Just below, it wrote uint16 where Megatron's rule says int32."""
    for entries, kind in ((65_536, np.int32), (65_520, np.uint16)):
        write_vocabulary(tmp_path / str(entries), (*SPECIALS, *(f"w{i}" for i in range(entries - 5))))
        source = dump(tmp_path / "x.pickle", [kind([2, *range(entries - 20, entries), 3])])
        output = tmp_path / f"out{entries}"
        assert import_pickle(Files(source, str(tmp_path / str(entries)), output), RULES).dtype == "int32"
        assert documents_of(output) == [[[2, *range(entries - 20, entries), 3]]]


# --- counts ---


def test_token_counts_agree(make, lines, tokenizer, capsys) -> None:
    """They are of the text before cleaning."""
    arrays, _ = binarized(lines, tokenizer)
    folder = make(arrays, counts=counts_of(arrays, len(VOCABULARY)))
    total = sum(map(len, arrays))
    assert f"counts.pickle: agrees with the {total:,} ids of the arrays" in capsys.readouterr().out
    assert Dataset.open(folder).counts().sum() != total


def test_token_counts_of_something_else(make, lines, tokenizer, capsys) -> None:
    arrays, _ = binarized(lines, tokenizer)
    counts = counts_of(arrays, len(VOCABULARY))
    changed = [*counts[:5], counts[5] + 7, counts[6] - 9, *counts[7:]]
    make(arrays, counts=changed)
    said = capsys.readouterr().out
    assert f"2 of {len(counts)} counts differ, most that of id 6 ({counts[6] - 9:,}, but {counts[6]:,} in the" in said
    make(arrays, "other", counts=counts[:-1])
    assert f"counts {len(counts) - 1} ids, the tokenizer has {len(counts)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2, -3], "item 2 of the list, -3, is no number"),
        ([1, True], "item 1 of the list, True"),
        ([1 << 63], "item 0 of the list, 9223372036854775808"),
        ([None], "item 0 of the list, None"),
        (["x"], "item 0 of the list, 'x'"),
        ({1: 2}, r"byte \d+: opcode b'}'"),
        (np.zeros(3, np.int64), "no list"),
    ],
)
def test_counts_that_are_none(make, tmp_path: Path, counts: Any, message: str) -> None:
    """Said before anything is made."""
    with pytest.raises(DataError, match=rf"counts\.pickle.*{message}"):
        make([np.uint16([2, *[5] * 20, 3])], counts=counts)
    assert not list(tmp_path.glob("out*/"))


def test_a_count_that_nests_deep(tmp_path: Path) -> None:
    path = tmp_path / "counts.pickle"
    path.write_bytes(b"\x80\x04]\x94N" + b"\x85" * 5_000 + b"a.")
    with pytest.raises(DataError, match=r"item 0 of the list, \(\(.*, is no number of occurrences"):
        module.read_counts(path)


# --- what is no such file ---

LINE = [2, *[5] * 20, 3]


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ([4, *[5] * 20, 3], "begins with id 4, not with 2, which is [CLS]: was it made with another tokenizer?"),
        ([2, *[5] * 20, 6], "ends with id 6, not with 3, which is [SEP]: was it made with another tokenizer?"),
        ([2, 5, 600, 3], "holds id 600, outside the vocabulary of 44: was it made with another tokenizer?"),
        ([2, 5, -1, 3], "holds id -1, outside the vocabulary of 44"),
        ([2], "is an array of 1, not a line's array, [CLS] ids [SEP]"),
        ([], "is an array of 0, not a line's"),
    ],
)
@pytest.mark.parametrize("place", [0, 1_234])
def test_lines_of_another_tokenizer(make, strange: list[int], message: str, place: int) -> None:
    arrays = [np.int32(LINE) for _ in range(1_500)]
    arrays[place] = np.asarray(strange, np.int32)
    with pytest.raises(DataError) as error:
        make(arrays)
    assert f"out.pickle: item {place:,} of the list {message}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the list is empty"),
        ([1, 2], "item 0 of the list is of type int"),
        ([np.uint16(LINE), None], "item 1 of the list is of type NoneType"),
        ([LINE], "a list within the list"),
        ([np.float32(LINE)], "Nothing of the file was run"),
        ({"input_ids": [LINE]}, "Nothing of the file was run"),
    ],
)
def test_lists_of_something_else(make, tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"out\.pickle.*{message}"):
        make(content)
    assert not (tmp_path / "out").exists()


def test_a_truncated_pickle(make, tmp_path: Path, tokenizer_folder: Path) -> None:
    whole = pickle.dumps([np.uint16(LINE) for _ in range(2_500)])
    (tmp_path / "x.pickle").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"x\.pickle: ends after {len(whole) - 1:,} bytes within the list: truncated"):
        import_pickle(Files(tmp_path / "x.pickle", str(tokenizer_folder), tmp_path / "out"), RULES)
    assert not (tmp_path / "out").exists()


# --- the command ---


def test_command(tmp_path: Path, tokenizer_folder: Path, lines, tokenizer) -> None:
    arrays, _ = binarized(lines[:200], tokenizer)
    source = dump(tmp_path / "x.pickle", arrays)
    counts = dump(tmp_path / "counts.pickle", counts_of(arrays, len(VOCABULARY)))
    words = ["--input", source, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out", "--min_length", 20]
    line = [sys.executable, "-m", "data.import_pickle", *map(str, words), "--token-counts", str(counts)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(tmp_path / "out")
    assert f"out: {len(dataset)} sequences, {dataset.tokens:,} tokens in 1 shard(s), from 200 lines" in done.stdout
    assert "counts.pickle: agrees" in done.stdout
    assert dataset.manifest
    assert dataset.manifest.rules == CleaningRules(512, 20, 0.5)


def test_exit_codes(monkeypatch, capsys, tmp_path: Path, tokenizer_folder: Path) -> None:
    def code(*words: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["data.import_pickle", *map(str, words)])
        try:
            run(module.main)
        except SystemExit as error:
            return int(error.code or 0)
        return 0

    given = ["--tokenizer", tokenizer_folder, "--output", tmp_path / "out", "--input"]
    assert code(*given, tmp_path / "no.pickle") == 2
    assert "no.pickle: is no file" in capsys.readouterr().err
    (tmp_path / "x.pickle").write_bytes(b"")
    assert code(*given, tmp_path / "x.pickl") == 2
    assert f"x.pickl: is no file; did you mean '{tmp_path}/x.pickle'?" in capsys.readouterr().err
    (tmp_path / "x.pickle").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    assert code(*given, tmp_path / "x.pickle") == 3
    assert "Nothing of the file was run" in capsys.readouterr().err
    assert code(*given[:2], "--output", ".", "--input", tmp_path / "x.pickle") == 2
    assert "must be the name of a folder" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    assert code(*given, tmp_path / "x.pickle") == 2
    assert "exists already" in capsys.readouterr().err


def test_help_fits_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["import_pickle", "--help"])
    with pytest.raises(SystemExit):
        module.main()
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120
