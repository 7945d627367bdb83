"""`make quickstart` with a text of the user's: from nothing to a model folder, and again."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import sentence

ROOT = Path(__file__).parents[1]


def quickstart(folder: Path, corpus: Path) -> str:
    """What it prints. Models are trained for a few steps only."""
    settings = {"CORPUS": str(corpus), "OUT": str(folder / "q"), "TEACHER_STEPS": "3", "STUDENT_STEPS": "2"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "launch/quickstart.sh"], cwd=ROOT, env=os.environ | settings | {"PATH": path}, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("code", "made"), [(75, 0), (3, 2)])
def test_stopped_is_no_failure(code: int, made: int, tmp_path: Path) -> None:
    """The last line says how it goes on. All before the first training is there; programs are stand-ins."""
    last = "stopped; `make quickstart` goes on"
    for name in ("launch", "bin", "quickstart/data/train", "quickstart/data/valid", "quickstart/teacher-start"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("quickstart/valid.txt", "quickstart/teacher-start/vocab.txt"):
        (tmp_path / name).write_text("the\n")
    for name in ("Makefile", "launch/quickstart.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, body in (("python", "echo 0"), ("deepspeed", f"exit {code}")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    words = ["make", "--no-print-directory", "quickstart", "BIN=bin", "--old-file", ".venv/installed"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == made, done.stdout + done.stderr
    assert (done.stdout.splitlines()[-1] == last) == (code == 75)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_text_of_ones_own(tmp_path: Path) -> None:
    generator, corpus = random.Random(0), tmp_path / "mine.txt"
    corpus.write_text("".join(f"{sentence(generator, generator.randint(12, 40))} .\n" for _ in range(1500)))
    first = quickstart(tmp_path, corpus)
    assert "$ deepspeed" in first
    assert "agrees with teacher" in first
    (folder,) = tmp_path.glob("q-small-mine-*")
    assert {path.name for path in folder.iterdir()} >= {"data", "dilbert", "runs", "student-start", "teacher"}
    assert (folder / "data" / "valid" / "manifest.json").exists()
    again = quickstart(tmp_path, corpus)
    assert "Distillation\x1b[0m: " in again
    assert "$ deepspeed" not in again, "finished stages are reused"
    corpus.write_text(corpus.read_text() + "the cat is in the house with the dog and the tree is at the house .\n")
    assert "$ deepspeed" in quickstart(tmp_path, corpus), "another text is another folder"
    assert len(list(tmp_path.glob("q-small-mine-*"))) == 2
