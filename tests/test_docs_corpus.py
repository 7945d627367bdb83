"""The corpus of documentation: what survives bad files, and that the bytes never change."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from data import docs_corpus
from data.docs_corpus import Options, content_hash, sample, split
from launch.errors import ConfigError, DataError

RIVER = (
    "The river that runs through the old town was once the only road by which the grain of the valley "
    "could be brought to the sea."
)
MILL = (
    "A mill stood there for more than two hundred years, and its owner was free to take a tenth of all that he ground."
)
BRIDGE = (
    "When the bridge was built at last, the boats had no more work to do and most of them were left on the bank to rot."
)


def make_package(folder: Path, files: dict[str, str | bytes]) -> Path:
    """A folder with these files, by relative path."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def harvested(package: Path, workers: int = 1) -> docs_corpus.Harvest:
    skipped: Counter[str] = Counter()
    harvest = docs_corpus.harvest_all(list(docs_corpus.documents([package], skipped)), workers)
    harvest.skipped.update(skipped)
    return harvest


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["docs_corpus", *map(str, words), "--workers", "1"])
    docs_corpus.main()


# --- files ---


def test_docstrings_are_found_wherever_python_keeps_them_and_nothing_is_executed(tmp_path: Path) -> None:
    source = f'''"""{RIVER}"""
import sys
sys.exit("executed")
class Town:
    """{MILL}"""
    if True:
        async def bridge(self):
            """{BRIDGE}"""
            text = """{RIVER.replace("river", "canal")}"""
add_docstring(sys.exit, """
    Leave the town.

    {MILL.replace("mill", "tower")}
    """)
'''
    found_in_file = harvested(make_package(tmp_path, {"town.py": source})).sequences
    assert found_in_file == [RIVER, MILL, BRIDGE, f"Leave the town. {MILL.replace('mill', 'tower')}"]


def test_which_files_are_read(tmp_path: Path) -> None:
    metadata = f"Metadata-Version: 2.1\nName: town\nSummary: {BRIDGE}\n\n# Town\n\n{MILL}\n"
    unwanted = ["LICENSE.md", "licenses/a.txt", "tests/a.md", "site-packages/a.md", "a.dist-info/top.txt", "a.rs"]
    files = {name: BRIDGE for name in unwanted}
    files |= {"b/README.rst": RIVER, "a.dist-info/METADATA": metadata}
    assert harvested(make_package(tmp_path, files)).sequences == [MILL, RIVER]


def test_a_single_file_is_a_package(tmp_path: Path) -> None:
    page = make_package(tmp_path, {"page.md": RIVER}) / "page.md"
    assert harvested(page) == docs_corpus.Harvest([RIVER])


def test_bad_files_are_skipped_and_counted(tmp_path: Path) -> None:
    bad = {
        "syntax.py": f'"""{RIVER}"""\nthis is no Python',
        "null.py": b"\0" * 100,
        "deep.py": "x = 1" + " + 1" * 100_000,
        "latin.py": f'"""{RIVER} Caf'.encode() + b'\xe9."""',
        "coding.py": f'# coding: klingon\n"""{RIVER}"""',
        "binary.txt": bytes(range(256)),
        "large.md": f"{RIVER}\n\n" * 40_000,
        "empty.py": "",
        "empty.md": "",
        "nothing.txt": " \n\t\n",
        "good.py": f'"""{RIVER}"""',
    }
    make_package(tmp_path, bad)
    (tmp_path / "dangling.md").symlink_to("nowhere")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    result = harvested(tmp_path)
    assert result.sequences == [RIVER]
    assert result.skipped == {"syntax error": 3, "undecodable": 3, "unreadable": 2, "too large": 1}


def test_unreadable_files_and_folders_are_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package(tmp_path / "package", {"closed/a.md": MILL, "good.md": RIVER, "secret.md": BRIDGE})
    read, scan = Path.read_bytes, os.scandir

    def read_bytes(path: Path) -> bytes:
        if path.name == "secret.md":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    def scandir(path: str) -> object:  # tests may run as root, for whom no mode is unreadable
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "scandir", scandir)
    run_main(monkeypatch, "--output", tmp_path / "corpus.txt", "--packages", package)
    assert (tmp_path / "corpus.txt").read_text() == f"{RIVER}\n"
    assert capsys.readouterr().out.startswith("read 2 files, skipped 2 unreadable\n")


def test_invalid_escapes_of_others_are_no_warning_of_ours(tmp_path: Path) -> None:
    assert harvested(make_package(tmp_path, {"a.py": f'"""{RIVER}"""\nx = "\\d"\n'})).sequences == [RIVER]


# --- the same bytes ---


def test_processes_and_hash_seeds_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [MILL.replace("two", str(number)) for number in range(100, 140)]  # more than a process takes at once
    package = make_package(tmp_path, {f"{number}.md": f"{text}\n\nx = 3" for number, text in enumerate(texts, 100)})
    monkeypatch.setenv("PYTHONHASHSEED", "12345")  # of the worker processes
    one, two = harvested(package, workers=1), harvested(package, workers=2)
    assert one == two == docs_corpus.Harvest(texts, Counter({"no full sentence": 40}))


def test_the_order_in_which_a_folder_lists_its_files_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered = [MILL.replace("two", number) for number in ("three", "four", "five", "six", "seven", "eight", "nine")]
    files = {f"{letter}/x.md": text for letter, text in zip("cgafebd", numbered, strict=True)}
    package = make_package(tmp_path, files | {"b.md": BRIDGE, "a.md": RIVER})
    walk = os.walk

    def reversed_walk(*args: object, **options: object) -> object:
        for folder, folders, names in walk(*args, **options):
            folders.sort(reverse=True)
            yield folder, folders, sorted(names, reverse=True)

    expected = [RIVER, BRIDGE, *(text for _, text in sorted(files.items()))]
    assert harvested(package).sequences == expected
    monkeypatch.setattr(os, "walk", reversed_walk)
    assert harvested(package).sequences == expected


def test_content_hashes_are_pinned() -> None:
    """A changed hash would move sequences between training and validation of corpora that exist."""
    assert content_hash("The river.", b"valid") == pytest.approx(0xF5241C62E1B097F7 / 2**64, abs=1e-15)
    assert content_hash("The river.", b"sample") == pytest.approx(0x908870305D3475D5 / 2**64, abs=1e-15)


def test_split_is_stable_disjoint_and_of_the_right_size() -> None:
    some = [f"Sequence {number}" for number in range(10_000)]
    train, valid = split(some, 0.1)
    assert sorted(train + valid) == sorted(some)
    assert abs(len(valid) - 1000) < 120  # four standard deviations
    more_train, more_valid = split([f"Other {number}" for number in range(1000)] + some[::-1], 0.1)
    assert set(valid) <= set(more_valid)
    assert set(train) <= set(more_train)
    assert set(valid) < set(split(some, 0.2)[1])


def test_sample_fits_and_grows_by_adding() -> None:
    some = [f"Sequence {number:04d}" for number in range(1000)]  # 14 bytes a line
    small, large = sample(some, 1400), sample(some, 7013)
    assert (len(small), len(large)) == (100, 500)
    assert set(small) < set(large)
    assert small == sorted(small)
    assert small != some[:100]
    assert abs(sum(sequence in set(some[:500]) for sequence in small) - 50) < 20  # four standard deviations
    assert sample(some, 14_000) == some


# --- the command ---


def test_main_writes_both_files_and_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"a.md": f"{RIVER}\n\n{MILL}", "b.md": f"{RIVER}\n\n{BRIDGE}\n\nx = 3", "c.py": "("}
    package = make_package(tmp_path / "package", files)
    output, valid = tmp_path / "corpus.txt", tmp_path / "valid.txt"
    output.write_text("older\n")
    monkeypatch.setattr(docs_corpus, "content_hash", lambda text, purpose: 0.01 if text == MILL else 0.5)
    run_main(monkeypatch, "--output", output, "--valid-output", valid, "--packages", package)
    assert output.read_text() == f"{RIVER}\n{BRIDGE}\n"
    assert valid.read_text() == f"{MILL}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "package", "valid.txt"]
    printed = capsys.readouterr()
    assert (
        printed.out.split()
        == (
            "read 3 files, skipped 1 syntax error\n"
            f"kept sequences: {output} 2 (0.00 MB), {valid} 1 (0.00 MB)\n"
            "dropped sequences: 1 repeated, 0 over --max-megabytes; sentences: 1 no full sentence\n"
        ).split()
    )
    assert printed.err == ""  # no progress bar where there is no terminal


def test_reasons_keep_within_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reasons = [f"{number} of the reasons" for number in range(9)]
    text = docs_corpus.summary(3, docs_corpus.Harvest([], Counter(reasons)), 0, {})
    assert [len(line) <= 80 for line in text.splitlines()] == [True] * 6
    assert all(f"1 {reason}" in " ".join(text.split()) for reason in reasons)


def test_main_caps_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(tmp_path / "package", {"a.md": f"{RIVER}\n\n{MILL}\n\n{BRIDGE}"})
    run_main(monkeypatch, "--output", tmp_path / "x", "--packages", package, "--max-megabytes", "0.00025")
    lines = (tmp_path / "x").read_text().splitlines()
    assert len(lines) == 2
    assert set(lines) < {RIVER, MILL, BRIDGE}


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_package(tmp_path / "package", {"a.md": RIVER})
    output = tmp_path / "corpus.txt"
    output.write_text("older\n")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        run_main(monkeypatch, "--output", output, "--packages", package)
    assert output.read_text() == "older\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "package"]


@pytest.mark.parametrize("content", ["", "x = 3"])
def test_no_prose_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    package = make_package(tmp_path / "package", {"a.md": content})
    with pytest.raises(DataError, match=r"corpus\.txt would be empty: read more --packages"):
        run_main(monkeypatch, "--output", tmp_path / "corpus.txt", "--packages", package)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid_fraction": 0.0}, "--valid-fraction 0.0: must lie between 0 and 1"),
        ({"valid_fraction": 1.0}, "--valid-fraction 1.0: must lie between 0 and 1"),
        ({"max_megabytes": 0.0}, "--max-megabytes 0.0: must be more than 0"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"output": Path(".")}, "--output .: is a folder; name a file"),
        ({"output": Path("no/where")}, "--output no/where: lies in a folder that doesn't exist; create it"),
        ({"valid_output": Path("no/where")}, "--valid-output no/where: lies in a folder that doesn't exist; create it"),
        ({"valid_output": Path("x/../corpus.txt")}, "--valid-output x/../corpus.txt: must differ from --output"),
        ({"packages": (Path("no"),)}, "--packages no: doesn't exist"),
    ],
)
def test_bad_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Options(**({"output": Path("corpus.txt")} | change))
    assert str(caught.value) == message


def test_every_flag_is_a_decision() -> None:
    assert list(Options.__dataclass_fields__) == [
        "output", "valid_output", "valid_fraction", "packages", "max_megabytes", "workers",
    ]  # fmt: skip


def test_default_packages_are_site_packages_and_the_standard_library() -> None:
    folders = docs_corpus.installed_packages()
    assert {Path(pytest.__file__).resolve().parents[1], Path(os.__file__).resolve().parent} <= set(folders)
    assert len(folders) == len(set(folders))
