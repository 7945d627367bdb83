"""What test files share: a small vocabulary, a text, the dataset made of it, and the data beside the repository.

Session fixtures are read-only: a test that damages something copies it first.
"""

import os
import random
import types
import warnings
from pathlib import Path

# Before torch is imported: all but `make test-gpu` is for CPUs, also on a machine with one GPU and two ranks.
os.environ |= {} if os.environ.get("DILBERT_TEST_GPU") == "1" else {"CUDA_VISIBLE_DEVICES": ""}
os.environ["COLUMNS"] = "120"  # whatever terminal the tests are started from

import hypothesis
import pytest

from data import binarize, compiled
from data.indexed import Dataset
from data.manifest import CleaningRules
from data.tokenizer import load_tokenizer

DEVICE = "cuda" if os.environ.get("DILBERT_TEST_GPU") == "1" else "cpu"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
WORDS = (
    "the", "of", "and", "to", "in", "a", "is", "that", "it", "was", "for", "on", "are", "with", "as", "at", "be",
    "this", "have", "from", "or", "had", "by", "but",
)  # fmt: skip
PIECES = ("run", "walk", "talk", "##ing", "##ed", "##s", "cat", "dog", "tree", "house", ".", ",", "!", "é", "東")
VOCABULARY = (*SPECIALS, *WORDS, *PIECES)

if os.environ.get("DILBERT_NO_SKIPS") == "1":  # continuous integration judges a change, not the luck of a draw
    hypothesis.settings.register_profile("fixed", derandomize=True)
    hypothesis.settings.load_profile("fixed")


def write_vocabulary(folder: Path, tokens: tuple[str, ...] = VOCABULARY) -> Path:
    """A tokenizer folder that holds nothing but BERT's vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return folder


def sentence(generator: random.Random, words: int) -> str:
    """Words of the vocabulary, the first ones far more often, and a few that it doesn't hold."""
    pool = [*WORDS, "running", "walked", "cats", "dogs", "tree", "house", ",", "zebra"]
    return " ".join(generator.choices(pool, [1 / (i + 1) for i in range(len(pool))], k=words))


LONG = ("test_triton", "test_faults", "test_documents", "test_train_errors", "test_building", "test_finetune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first: side by side, files then end at about the same time."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """With DILBERT_NO_SKIPS=1 (continuous integration) a skipped test is a failed one, unless it is for rights that
    only root of a whole machine has."""
    report = yield
    if report.skipped and os.environ.get("DILBERT_NO_SKIPS") == "1" and "needs root" not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path):
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three small text files, 230 lines in all."""
    folder, generator = tmp_path_factory.mktemp("texts"), random.Random(0)
    paths = []
    for number, lines in enumerate((120, 70, 40)):
        paths.append(folder / f"part{number}.txt")
        paths[-1].write_text("".join(f"{sentence(generator, generator.randint(10, 60))} .\n" for _ in range(lines)))
    return tuple(paths)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory, texts: tuple[Path, ...], tokenizer_folder: Path) -> Path:
    """A dataset of three shards, made by `data.binarize`."""
    output = tmp_path_factory.mktemp("datasets") / "small"
    files = binarize.Files(tuple(map(str, texts)), str(tokenizer_folder), output, 1)
    binarize.binarize(files, CleaningRules())
    return output


@pytest.fixture(scope="session")
def dataset(dataset_folder: Path) -> Dataset:
    return Dataset.open(dataset_folder)


@pytest.fixture(params=["C++", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with the compiled operations of `data`, and with their numpy forms."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled, "operations", lambda name: None)
    elif not compiled.operations("stream"):
        pytest.skip("no C++ compiler: only the numpy forms can run")
    return request.param


@pytest.fixture(scope="session")
def megatron() -> types.ModuleType:
    """Megatron-Core's own reader and builder; its import warns of what it misses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and the real vocabulary; they are no part of the repository."""
    path = Path(__file__).parents[1] / ".." / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real data not there: ../shared/data, beside the repository, is not part of it")
    return path.resolve()
