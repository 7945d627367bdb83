"""Every command, file, flag, link and message of the documents is what it says; and the commands do what they say."""

import json
import pickle
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import documents
import numpy as np
import pytest
import transformers
from conftest import VOCABULARY, sentence, write_vocabulary
from documents import ROOT, Command, Shell
from jobs import config_file, make_models, write_squad, write_sst2
from ranks import run_ranks

from launch import ds_config, plan
from launch.costs import parameters
from launch.errors import ConfigError
from model.config import BertConfig

RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.sh"))
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ds_configs/README.md", "launch/recipes/README.md")]
MODULES = [ROOT / f"{name.replace('.', '/')}.py" for name in documents.entry_points()]
COMMANDS = [
    *(command for page in PAGES for command in documents.in_markdown(page)),
    *(command for module in MODULES for command in documents.in_python(module)),
    *(command for script in (*RECIPES, *sorted((ROOT / "launch" / "slurm").glob("*"))) for command in documents.in_head(script)),
]  # fmt: skip
FULL = [command for command in dict.fromkeys(COMMANDS) if not command.abbreviated]
TEACHERS = {"base": 30522, "cased": 28996, "german": 30000, "multilingual": 119547}  # tokens that they know
WORDS = (*VOCABULARY, *(f"[unused{number}]" for number in range(30522 - len(VOCABULARY))))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository to its user: small stand-ins under the names that the documents use."""
    folder, generator = tmp_path_factory.mktemp("home"), random.Random(0)
    for name in ("launch", "train_dilbert.py", "finetune_dilbert.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "ds_configs").mkdir()
    for path in (ROOT / "ds_configs").glob("*.json"):
        config_file(folder / "ds_configs" / path.name)

    (folder / "texts" / "de").mkdir(parents=True)
    for name in ("en", "de", "fr", "es", "zh", "de/de"):
        lines = [f"{sentence(generator, generator.randint(12, 40))} ." for _ in range(1100)]
        (folder / "texts" / f"{name}.txt").write_text("\n".join(lines))
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "records.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    write_pickles(folder / "data")
    (folder / "P").symlink_to("data/binarized_text.bert-base-uncased.pickle")
    (folder / "binarized_text.bert-base-uncased.pickle").symlink_to("data/binarized_text.bert-base-uncased.pickle")
    (folder / "hosts").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    for write, name in ((write_sst2, "glue/SST-2"), (write_squad, "squad")):
        (folder / name).mkdir(parents=True)
        write(folder / name)

    teacher, student = make_models(folder / "quickstart", vocab_size=len(WORDS), max_position_embeddings=512)
    for model in (teacher, student):
        (model / "tokenizer.json").unlink(missing_ok=True)
        write_vocabulary(model, WORDS)
    student.rename(folder / "quickstart" / "student-start")
    for name in ("uncased", "cased", "german-cased", "multilingual-cased"):
        (folder / f"bert-base-{name}").symlink_to(teacher)
    (folder / "dilbert-base-uncased").symlink_to(folder / "quickstart" / "student-start")
    return folder


def write_pickles(folder: Path) -> None:
    """What the original's scripts write: arrays of ids, and how often each occurs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = [np.array([2, *generator.integers(5, 40, 30), 3], np.uint16) for _ in range(200)]
    counts = np.bincount(np.concatenate(rows), minlength=len(WORDS)).tolist()
    for name, body in (("binarized_text", rows), ("token_counts", counts)):
        (folder / f"{name}.bert-base-uncased.pickle").write_bytes(pickle.dumps(body, pickle.HIGHEST_PROTOCOL))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path, steps=2) as shell:
        yield shell


# --- commands ---


@pytest.mark.parametrize("command", FULL, ids=str)
def test_a_command_can_be_given(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher and its entry point take it as it stands; it names DeepSpeed's JSON that can be loaded."""
    monkeypatch.chdir(home)
    start = documents.start_of(command.words)
    for name in re.findall(r"ds_configs/\w+\.json", command.text):
        assert ds_config.load(ROOT / name, "cpu" if "cpu" in name or "fp32" in name else "cuda")
    if start and start.argv:
        assert documents.read(start, monkeypatch)


def test_abbreviated_commands_name_flags_that_there_are(flags_known: dict[str, set[str]]) -> None:
    for command in (command for command in COMMANDS if command.abbreviated):
        for flag in re.findall(r"--[a-z][\w-]+", command.text):
            assert documents.plain(flag) in flags_known["all"], command


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.block], ids=str)
def test_a_command_says_what_it_needs(command: Command) -> None:
    """Beside it or above it: other hosts, the internet."""
    note = command.note.lower()
    if re.search(r"mpirun|launch\.start|sbatch|launch\.doctor", command.text):
        assert re.search("needs? a cluster", note)
    if "--push-to-hub" in command.text:
        assert "needs the internet" in note


def test_the_commands_are_there() -> None:
    """What finds them has not gone blind."""
    found = [command.text for command in COMMANDS]
    assert len(found) > 120
    for text in ("make quickstart", "python -m launch.watch runs/first --once", "python -m launch.compare runs/A runs/B --output compare"):
        assert any(text in command for command in found), text
    assert {start.module for command in FULL if (start := quiet_start(command))} >= set(documents.entry_points()) - {"launch.probe"}
