"""Programs of ours where the environment is not active: an interpreter without any library."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words",
    [
        ["train_dilbert.py"], ["finetune_dilbert.py", "--help"], ["-m", "data.binarize"], ["-m", "data.describe"],
        ["-m", "launch.plan"], ["-m", "launch.evaluate"], ["-m", "model.export", "--help"],
    ],
)  # fmt: skip
def test_a_program_says_which_library_it_lacks(words: list[str]) -> None:
    ended = bare(*words)
    assert ended.returncode == 2
    name, *_ = ended.stderr.removeprefix("error: ").split()
    cure = "`make setup`, then `source .venv/bin/activate`"
    assert ended.stderr == f"error: {name} is not installed for {sys.executable}: {cure}\n"


@pytest.mark.parametrize("module", ["launch.doctor", "launch.probe"])
def test_what_needs_no_library_runs_without_any(module: str) -> None:
    ended = bare("-m", module, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_who_imports_the_rooms_gets_the_exception() -> None:
    ended = bare("-c", "import model")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.endswith("ModuleNotFoundError: No module named 'torch'\n")
    caught = bare("-c", "try: import model\nexcept ModuleNotFoundError as error: print(error.name)")
    assert (caught.returncode, caught.stdout) == (0, "torch\n")
