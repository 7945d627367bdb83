"""Rows of bench_data: text -> dataset, against the usual loops, and with more processes and MPI ranks."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.binarize import Files, binarize
from data.manifest import CleaningRules
from data.tokenizer import load_tokenizer
from tests.bench.table import Row, best

ROOT = Path(__file__).parents[2]
COPIES = 10  # of the dump for one core
MORE_COPIES = 90  # for whole commands, so that their start counts little
LINES = 3_000  # of the dump for the loops


def building(dump: Path, tokenizer: str, output: Path, cores: set[int]) -> list[Row]:
    """All included on our side: reading, tokenizing, cleaning, counting, checking, checksums, writing, syncing."""
    rows = one_core(dump, tokenizer, output)
    if len(cores) > 1:
        rows += two_cores(dump, tokenizer, output, cores)
    return rows


def one_core(dump: Path, tokenizer: str, output: Path) -> list[Row]:
    """Ours, and both loops, which do nothing but tokenize, count and write."""
    text, made = output / "text.txt", output / "built"
    text.write_bytes(dump.read_bytes() * COPIES)
    tokens = 0

    def build() -> None:
        nonlocal tokens
        shutil.rmtree(made, ignore_errors=True)
        (manifest,) = binarize(Files((str(text),), tokenizer, made, workers=1), CleaningRules())
        tokens = manifest.tokens

    ours = best(build, 2)
    ours = tokens / 1e6 / ours
    lines, loaded = dump.read_text(errors="replace").split("\n")[:LINES], load_tokenizer(tokenizer)
    rows = []
    for name, loop in (("tokenizer(line), line by line", line_by_line), ("encode_batch_fast, 1000 lines", by_batches)):
        count = 0

        def go(loop: Callable = loop) -> None:
            nonlocal count
            count = loop(lines, loaded, output / "peer.bin")

        seconds = best(go, 2)
        rows.append(Row("binarize", name, "Mtok/s", ours, count / 1e6 / seconds))
    text.unlink()
    return rows


def line_by_line(lines: list[str], tokenizer: Any, path: Path) -> int:
    """As scripts usually do it; the number of tokens."""
    counts: Counter = Counter()
    tokens = 0
    with open(path, "wb") as file:
        for line in lines:
            ids = tokenizer(line)["input_ids"]
            counts.update(ids)
            file.write(np.array(ids, np.uint16).tobytes())
            tokens += len(ids)
    return tokens


def by_batches(lines: list[str], tokenizer: Any, path: Path) -> int:
    """The library at its best on one core."""
    counts, tokens = np.zeros(1 << 16, np.int64), 0
    with open(path, "wb") as file:
        for start in range(0, len(lines), 1000):
            for encoding in tokenizer.backend_tokenizer.encode_batch_fast(lines[start : start + 1000]):
                ids = np.array(encoding.ids, np.uint16)
                file.write(ids.tobytes())
                tokens += ids.size
                np.add.at(counts, ids, 1)
    return tokens


def two_cores(dump: Path, tokenizer: str, output: Path, cores: set[int]) -> list[Row]:
    """Seconds of whole commands, their start included."""
    text = output / "text.txt"
    with open(text, "wb") as file:
        for _ in range(MORE_COPIES):
            file.write(dump.read_bytes())
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    commands = {"processes": lambda n: ([], ["--workers", str(n)])}
    if mpirun:
        commands["MPI ranks"] = lambda n: ([mpirun, "--oversubscribe", "-n", str(n)], [])
    rows = []
    for what, command in commands.items():
        seconds = []
        for number in (1, 2):
            before, behind = command(number)
            words = [*before, sys.executable, "-m", "data.binarize", "--input", text, "--tokenizer", tokenizer]
            seconds.append(min(timed([*words, "--output", output / "built", *behind], output, cores) for _ in range(2)))
        size = f"{text.stat().st_size / 1e6:.0f} MB of text"
        rows.append(Row(f"binarize, 2 {what}", f"1 of them, {size}", "s", seconds[1], seconds[0]))
    text.unlink()
    return rows


def timed(words: list[object], output: Path, cores: set[int]) -> float:
    """Seconds of a command that may use all cores."""
    shutil.rmtree(output / "built", ignore_errors=True)
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    start = time.perf_counter()
    subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment, check=True, capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return time.perf_counter() - start
