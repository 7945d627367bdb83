"""Datasets of the hub by name: addresses, the commit, and rows as they stream. First the `datasets` library is played,
then the hub alone."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from played_hub import COMMIT, served

from data import hub, records
from data.binarize import Files, binarize
from data.hub import Address
from data.manifest import CleaningRules
from data.tasks.glue import Sentences
from data.tasks.windows import Answer, Question
from launch.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "address", "whole"),
    [
        ("hub:wikitext", Address("wikitext"), "hub:wikitext::train"),
        ("hub:a/b", Address("a/b"), "hub:a/b::train"),
        ("hub:a/b:en", Address("a/b", None, "en"), "hub:a/b:en:train"),
        ("hub:a/b::valid", Address("a/b", None, None, "valid"), "hub:a/b::valid"),
        ("hub:a/b@v1:en:valid", Address("a/b", "v1", "en", "valid"), "hub:a/b@v1:en:valid"),
        ("hub:a/b@v1", Address("a/b", "v1"), "hub:a/b@v1::train"),
    ],
)
def test_addresses(text: str, address: Address, whole: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == whole
    assert Address.parse(whole) == address


@pytest.mark.parametrize("text", ["hub:", "hub::en", "hub:@v1", "hub:a:b:c:d"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"--input {text}: must be hub:NAME"):
        Address.parse(text)


def test_the_commit(monkeypatch) -> None:
    asked = []

    def info(_: Any, name: str, revision: str | None = None) -> Any:
        asked.append((name, revision))
        return types.SimpleNamespace(sha="c0ffee")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    assert hub.pinned("hub:a/b:en") == "hub:a/b@c0ffee:en:train"
    assert hub.pinned("hub:a/b@v1") == "hub:a/b@c0ffee::train"
    assert asked == [("a/b", None), ("a/b", "v1")]

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(
        ConfigError, match=r"'a/b' could not be fetched from the Hugging Face hub \(no route to the hub\)\."
    ):
        hub.pinned("hub:a/b")


def test_without_the_library(monkeypatch) -> None:
    """Said before the hub is asked."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    with pytest.raises(ConfigError, match=r"--input hub:a/b needs the library `datasets`.*`pip install --group hub`"):
        hub.pinned("hub:a/b")


class Rows:
    """As `datasets.IterableDataset`, of what is used here."""

    def __init__(self, values: list[Any], names: list[str] | None, broken_after: int | None) -> None:
        self.values, self.column_names, self.broken_after = values, names, broken_after

    def select_columns(self, names: list[str]) -> "Rows":
        assert names == ["text"]
        return self

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.values), batch_size):
            if self.broken_after is not None and start >= self.broken_after:
                raise ConnectionError("the line is dead")
            yield {"text": self.values[start : start + batch_size]}


@pytest.fixture
def serve(monkeypatch) -> Callable[..., list[Any]]:
    """Put rows on the hub; what was asked for."""

    def put(values: list[Any], names: list[str] | None = None, broken_after: int | None = None) -> list[Any]:
        asked: list[Any] = []

        def build(name: str, config: str | None, revision: str) -> Any:
            asked.append((name, config, revision))
            return types.SimpleNamespace(hash="c0ffee", as_streaming_dataset=lambda split: asked.append(split) or rows)

        rows = Rows(values, names, broken_after)
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset_builder=build))
        return asked

    return put


@pytest.mark.parametrize("names", [None, ["id", "text"]])
def test_rows(serve, names: list[str] | None) -> None:
    asked = serve(["the of", None, "the\nof\n", "", "é"], names)
    found = list(records.of_hub("hub:a/b@c0ffee:en:valid", "text"))
    assert found == [b"the of\n", b"\n", b"the of \n", b"\n", "é\n".encode()]
    assert asked == [("a/b", "en", "c0ffee"), "valid"]


def test_rows_that_are_no_text(serve) -> None:
    serve(["the"] * 1_500 + [3])
    with pytest.raises(DataError, match=r"hub:a/b@c0ffee, row 1,500: field 'text' is a int, not text"):
        list(records.of_hub("hub:a/b@c0ffee", "text"))
    serve([], ["id", "text"])
    with pytest.raises(DataError, match=r"hub:a/b@c0ffee: no column 'txt' \(but id, text\); did you mean 'text'\?"):
        list(records.of_hub("hub:a/b@c0ffee", "txt"))


def test_a_connection_that_breaks(serve) -> None:
    serve(["the"] * 3_000, broken_after=2_000)
    rows = records.of_hub("hub:a/b@c0ffee", "text")
    assert [next(rows) for _ in range(2_000)] == [b"the\n"] * 2_000
    with pytest.raises(DataError, match=r"hub:a/b@c0ffee: can't be read on after row 2,000: the line is dead"):
        next(rows)


# --- the library itself, and a hub on this machine ---

TEXTS = [f"{word} of the house is in the tree and the cat walked to it" for word in ("the", "a", "dog", "cat")]
READ = """
from data.tasks import TASKS
print([TASKS[name].read(None, split) for name, split in (("mrpc", "dev"), ("stsb", "train"), ("squad", "train"))])
"""
ASK = """
from data import hub, records
from launch.errors import DilbertError
for text, field in (("hub:some/texts", "txt"), ("hub:some/where", "text"), ("hub:nyu-mll/glue", "sentence1")):
    try:
        print(list(records.of_hub(hub.pinned(text), field)))
    except DilbertError as error:
        print(error)
"""
EXAMPLES = [
    [Sentences(("one", "é"), 1), Sentences(("two", "東"), 0)],
    [Sentences(("one", "é"), 2.25)],
    [Question("a", "who walked?", "the cat walked", (Answer("the cat", 0),))],
]


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets with the features, files and cards that they have on the hub; and texts as a table, without a card."""
    datasets = pytest.importorskip("datasets", reason="reads the hub: the dependency group hub")
    string, whole, number = (datasets.Value(kind) for kind in ("string", "int32", "float32"))
    pair = {"sentence1": string, "sentence2": string}
    classes = datasets.ClassLabel(names=["not_equivalent", "equivalent"])
    answers = {"text": datasets.List(string), "answer_start": datasets.List(whole)}
    published: dict[str, dict] = {
        "nyu-mll/glue": {
            ("mrpc", "validation"): (
                pair | {"label": classes, "idx": whole},
                [("one", "é", 1, 0), ("two", "東", 0, 1)],
            ),
            ("stsb", "train"): (pair | {"label": number, "idx": whole}, [("one", "é", 2.25, 0)]),
        },
        "rajpurkar/squad": {
            ("plain_text", "train"): (
                {"id": string, "title": string, "context": string, "question": string, "answers": answers},
                [("a", "t", "the cat walked", "who walked?", {"text": ["the cat"], "answer_start": [0]})],
            )
        },
    }
    folder = tmp_path_factory.mktemp("hub")
    for name, parts in published.items():
        files = [{"config_name": c, "data_files": [{"split": s, "path": f"{c}/{s}-*"}]} for c, s in parts]
        for (config, split), (columns, rows) in parts.items():
            path = folder / name / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True)
            table = [dict(zip(columns, row, strict=True)) for row in rows]
            datasets.Dataset.from_list(table, features=datasets.Features(columns)).to_parquet(path)
        (folder / name / "README.md").write_text(f"---\n{json.dumps({'configs': files})}\n---\n")
    (folder / "some" / "texts").mkdir(parents=True)
    (folder / "some" / "texts" / "train.csv").write_text("text,number\n" + "".join(f"{text},1\n" for text in TEXTS))
    return folder


def python(home: Path, hub: str | None, *words: str, code: int = 0) -> str:
    """What it says in a process of its own, at `home`, with the hub at this address; None: offline."""
    where = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub} if hub else {"HF_HUB_OFFLINE": "1"}
    environment = os.environ | where | {"HF_HOME": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, *words], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_tasks_by_the_library_online_and_then_offline(hub_folder, tmp_path) -> None:
    with served(hub_folder) as address:
        assert python(tmp_path, address, "-c", READ) == f"{EXAMPLES}\n"
    assert python(tmp_path, None, "-c", READ) == f"{EXAMPLES}\n"
    # What was fetched for that is of one commit; another is not taken for it.
    source = f"hub:nyu-mll/glue@{'0' * 40}:mrpc:validation"
    of_another = f"from data import records; list(records.of_hub('{source}', 'sentence1'))"
    assert "but not as of commit 000" in python(tmp_path, None, "-c", of_another, code=1)


def test_a_dataset_of_the_hub_as_text(hub_folder, tokenizer_folder, tmp_path) -> None:
    (tmp_path / "plain.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    binarize(Files((str(tmp_path / "plain.txt"),), str(tokenizer_folder), tmp_path / "plain"), CleaningRules())
    words = ["--input", "hub:some/texts", "--field", "text", "--tokenizer", str(tokenizer_folder), "--output", "out"]
    with served(hub_folder) as address:
        python(tmp_path, address, "-m", "data.binarize", *words)
        said = python(tmp_path, address, "-c", ASK)
    assert "no column 'txt' (but text, number); did you mean 'text'?" in said
    assert "404 Client Error. Repository Not Found for url: " in said
    assert "Please pick one among the available configs: ['mrpc', 'stsb']" in said
    assert f"hub:some/texts@{COMMIT}::train" in (tmp_path / "out" / "manifest.json").read_text()
    for name in ("00000.bin", "00000.idx", "counts.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
