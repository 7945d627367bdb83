"""`make quickstart` with a text of the user's: from nothing to a model folder, and again."""

import os
import random
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
