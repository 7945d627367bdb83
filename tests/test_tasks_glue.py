"""GLUE: the published files of the nine tasks, tokens as `transformers` makes them, and each error of a file."""

import itertools
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import sentence

from data.tasks import TASKS, FeatureSettings
from data.tasks.glue import Sentences
from data.tokenizer import load_tokenizer
from launch.errors import ConfigError, DataError

# By task: folder, first line ("" for none), a line of data, and what it is. As in the published archive.
PUBLISHED = {
    "cola": ("CoLA", "", 'gj04\t0\t*\tThe "cat" sat .', (('The "cat" sat .',), 0)),
    "mnli": (
        "MNLI",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tA cat.\tA dog.\tentailment\tcontradiction",
        (("A cat.", "A dog."), 2),
    ),
    "mrpc": (
        "MRPC",
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t7\t8\tA \"cat.\tA 'dog",
        (('A "cat.', "A 'dog"), 1),
    ),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment", (("Who?", "He."), 1)),
    "qqp": ("QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tA?\tB?\t1", (("A?", "B?"), 1)),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", "9\tA.\tB.\tentailment", (("A.", "B."), 0)),
    "sst2": ("SST-2", "sentence\tlabel", "a fine film \t1", (("a fine film ",), 1)),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA.\tB.\t3.800",
        (("A.", "B."), 3.8),
    ),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", (("A.", "B."), 1)),
}  # fmt: skip
LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qnli": ("entailment", "not_entailment"),
    "qqp": ("not_duplicate", "duplicate"),
    "rte": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
    "stsb": (),
    "wnli": ("not_entailment", "entailment"),
}
MAIN = {"mnli": "matched_accuracy", "cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}
SETTINGS = FeatureSettings()


def write(path: Path, *lines: str, end: str = "\n", start: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(start + "".join(line + end for line in lines if line).encode())
    return path


def published(folder: Path, name: str, file: str = "train.tsv", copies: int = 1) -> tuple[Sentences, ...]:
    """Write a file of a task; what should be read from it."""
    _, header, line, (texts, label) = PUBLISHED[name]
    write(folder / file, header, *[line] * copies)
    return (Sentences(texts, label),) * copies


# --- what the tasks are ---


def test_the_nine_tasks() -> None:
    glue = {name: task for name, task in TASKS.items() if task.head != "span"}
    assert {name: task.labels for name, task in glue.items()} == LABELS
    assert {name: task.main for name, task in glue.items()} == dict.fromkeys(LABELS, "accuracy") | MAIN
    assert {name for name, task in glue.items() if task.head == "regression"} == {"stsb"}
    assert {name: task.splits for name, task in glue.items() if task.splits != ("dev",)} == {
        "mnli": ("matched", "mismatched")
    }
    assert all(task.name == name and task.max_length == 128 for name, task in glue.items())


# --- files ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(tmp_path: Path, name: str) -> None:
    """In the task's own folder, and in the folder of all tasks."""
    expected = list(published(tmp_path / PUBLISHED[name][0], name, copies=3))
    for data in (tmp_path / PUBLISHED[name][0], tmp_path):
        found = TASKS[name].read(data, "train")
        assert found == expected
        assert type(found[0].label) is (float if name == "stsb" else int)


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_files(tmp_path: Path, name: str) -> None:
    files = {"dev": "dev.tsv", "matched": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"}
    for copies, split in enumerate(TASKS[name].splits, 1):
        expected = published(tmp_path, name, files[split], copies)
        assert TASKS[name].read(tmp_path, split) == list(expected)


def test_mnli_is_measured_by_the_gold_label(tmp_path: Path) -> None:
    """Its dev sets have the labels of five people, too."""
    header = "sentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
    write(tmp_path / "dev_matched.tsv", header, "A\tB\tneutral\tneutral\tneutral\tentailment\tneutral\tentailment")
    assert TASKS["mnli"].read(tmp_path, "matched") == [Sentences(("A", "B"), 0)]


def microsoft(folder: Path, pairs: int) -> list[Sentences]:
    """MRPC's two files before GLUE; what is in the training file. Ids are 10, 11 ... and always 20."""
    published(folder, "mrpc", "msr_paraphrase_test.txt", 3)
    lines = [f"{n % 2}\t{n + 10}\t20\tfirst {n}\tsecond {n}" for n in range(pairs)]
    write(folder / "msr_paraphrase_train.txt", PUBLISHED["mrpc"][1], *lines)
    return [Sentences((f"first {n}", f"second {n}"), n % 2) for n in range(pairs)]


@pytest.mark.parametrize("folder", ["", "MRPC"])
def test_mrpc_by_its_first_names(tmp_path: Path, folder: str) -> None:
    """GLUE's dev set is what its list names of the training file, in the file's order."""
    task, own = TASKS["mrpc"], tmp_path / folder
    pairs = microsoft(own, 5)
    write(own / "dev_ids.tsv", "13\t20", "20\t10", "11\t20", "99\t99")
    assert task.read(tmp_path, "train") == [pairs[n] for n in (0, 2, 4)]
    assert task.read(tmp_path, "dev") == [pairs[n] for n in (1, 3)]
    assert task.name_of("dev", tmp_path) == "dev"
    glue = [list(published(own, "mrpc", name, copies)) for name, copies in (("train.tsv", 5), ("dev.tsv", 6))]
    assert [task.read(tmp_path, split) for split in ("train", "dev")] == glue


def test_the_test_set_of_mrpc_is_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = microsoft(tmp_path, 5)
    task = TASKS["mrpc"]
    assert task.read(tmp_path, "train") == pairs
    assert not caplog.records
    assert task.read(tmp_path, "dev") == list(published(tmp_path / "expected", "mrpc", copies=3))
    (record,) = caplog.records
    assert "msr_paraphrase_test.txt is MRPC's test set, and measured as such" in record.getMessage()
    assert "dev_ids.tsv" in record.getMessage()
    assert [task.name_of(split, tmp_path) for split in ("train", "dev")] == ["train", "test"]
    assert task.name_of("dev", None) == "dev"


def test_a_list_of_other_pairs_than_those_of_mrpc(tmp_path: Path) -> None:
    microsoft(tmp_path, 5)
    write(tmp_path / "dev_ids.tsv", "10\t99")
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=r"dev_ids\.tsv: none of these pairs is in .*msr_paraphrase_train\.txt"):
            TASKS["mrpc"].read(tmp_path, split)
    write(tmp_path / "dev_ids.tsv", "10 20")
    with pytest.raises(DataError, match=r"dev_ids\.tsv, line 1: 1 fields, expected 2 \(#1 ID, #2 ID\)"):
        TASKS["mrpc"].read(tmp_path, "dev")
    (tmp_path / "msr_paraphrase_train.txt").unlink()
    with pytest.raises(
        DataError, match=r"of which dev_ids\.tsv lists a part, is not there; looked for msr_paraphrase_train"
    ):
        TASKS["mrpc"].read(tmp_path, "dev")


def test_byte_order_mark_carriage_returns_and_blank_lines(tmp_path: Path) -> None:
    _, header, line, (texts, label) = PUBLISHED["mrpc"]
    path = write(tmp_path / "train.tsv", header, line, line, end="\r\n", start=b"\xef\xbb\xbf")
    path.write_bytes(path.read_bytes() + b"\r\n\n")
    assert TASKS["mrpc"].read(tmp_path, "train") == [Sentences(texts, label)] * 2


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    odd = "a\x0bb\x0cc\u2028d\x85e\rf"
    write(tmp_path / "train.tsv", "sentence\tlabel", f"{odd}\t0")
    assert TASKS["sst2"].read(tmp_path, "train") == [Sentences((odd,), 0)]


def test_the_last_line_may_lack_its_end(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t0\nb\t1")
    assert [e.label for e in TASKS["sst2"].read(tmp_path, "train")] == [0, 1]


def test_broken_rows_of_qqp_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A question of the published file holds a line feed: two rows that lack fields; the hub's version has neither."""
    _, header, line, (texts, label) = PUBLISHED["qqp"]
    write(tmp_path / "train.tsv", header, line, '7\t3\t4\t"Is it', '"\tIs it?\t0', line)
    assert TASKS["qqp"].read(tmp_path, "train") == [Sentences(texts, label)] * 2
    assert "2 lines lack fields" in caplog.text
    assert "train.tsv, line 3" in caplog.text
    write(tmp_path / "train.tsv", header, line, '7\t3\t4\t"Is it')
    with pytest.raises(DataError, match="line 3: the last line lacks fields; the file seems to be cut off"):
        TASKS["qqp"].read(tmp_path, "train")
    write(tmp_path / "train.tsv", header, line + "\t1")
    with pytest.raises(DataError, match="line 2: 7 fields, expected 6"):
        TASKS["qqp"].read(tmp_path, "train")


# --- bad files ---


def refuses(tmp_path: Path, name: str, *lines: str) -> str:
    """What is said of a training file."""
    write(tmp_path / "train.tsv", *lines)
    with pytest.raises(DataError) as error:
        TASKS[name].read(tmp_path, "train")
    assert str(tmp_path) in str(error.value)
    assert error.value.exit_code == 3
    return str(error.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; it should hold train.tsv or SST-2/train.tsv"):
        TASKS["sst2"].read(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("name", "split", "names"),
    [
        ("rte", "train", "RTE's train set is not there; looked for train.tsv, RTE/train.tsv"),
        ("mnli", "mismatched", "looked for dev_mismatched.tsv, MNLI/dev_mismatched.tsv"),
        ("mrpc", "dev", "looked for dev.tsv, dev_ids.tsv, msr_paraphrase_test.txt, MRPC/dev.tsv, MRPC/dev_ids.tsv"),
    ],
)
def test_no_such_file(tmp_path: Path, name: str, split: str, names: str) -> None:
    with pytest.raises(DataError) as error:
        TASKS[name].read(tmp_path, split)
    assert names in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_empty_file(tmp_path: Path) -> None:
    assert "train.tsv: the file is empty" in refuses(tmp_path, "sst2")
    (tmp_path / "train.tsv").write_text("\n\r\n\n")
    with pytest.raises(DataError, match=r"train\.tsv: the file is empty"):
        TASKS["cola"].read(tmp_path, "train")


def test_a_header_alone(tmp_path: Path) -> None:
    assert "train.tsv: no examples in it" in refuses(tmp_path, "sst2", "sentence\tlabel")


def test_a_missing_column(tmp_path: Path) -> None:
    message = refuses(tmp_path, "rte", "index\tsentence1\tsentence_2\tlabel", "0\ta\tb\tentailment")
    assert "train.tsv, line 1: no column 'sentence2'; did you mean 'sentence_2'?" in message
    assert "'index', 'sentence1', 'sentence_2', 'label'" in message


def test_commas_for_tabs(tmp_path: Path) -> None:
    assert "separated by tabs" in refuses(tmp_path, "sst2", "sentence,label", "a,0")


@pytest.mark.parametrize("line", ["a", "a\t0\t", "a\tb\t0"])
def test_a_wrong_number_of_fields(tmp_path: Path, line: str) -> None:
    message = refuses(tmp_path, "sst2", "sentence\tlabel", "a\t0", line)
    assert f"train.tsv, line 3: {line.count(chr(9)) + 1} fields, expected 2 (sentence, label)" in message


def test_cola_has_no_header(tmp_path: Path) -> None:
    message = refuses(tmp_path, "cola", "sentence\tlabel", "a\t1")
    assert "line 1: 2 fields, expected 4 (source, label, mark, sentence)" in message


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("sst2", "a\tpositive", "line 2: unknown label 'positive'; SST-2 has 0, 1"),
        ("sst2", "a\t2", "line 2: unknown label '2'; SST-2 has 0, 1"),
        ("rte", "0\ta\tb\t0", "line 2: unknown label '0'; RTE has entailment, not_entailment"),
        (
            "stsb",
            "0\tm\tM\t12\t1\tn\tn\tA\tB\thigh",
            "line 2: 'high' is no score; those of STS-B are numbers from 0 to 5",
        ),
        ("stsb", "0\tm\tM\t12\t1\tn\tn\tA\tB\t5.1", "line 2: '5.1' is no score"),
        ("stsb", "0\tm\tM\t12\t1\tn\tn\tA\tB\tnan", "line 2: 'nan' is no score"),
    ],
)
def test_an_unknown_label(tmp_path: Path, name: str, line: str, expected: str) -> None:
    assert expected in refuses(tmp_path, name, PUBLISHED[name][1], line)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\na\t0\ncaf\xe9\t1\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 3: not UTF-8: .*, byte 4 of the line"):
        TASKS["sst2"].read(tmp_path, "train")


# --- the hub ---


def hub_with(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    """A `datasets` library that answers with `load`."""
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


@pytest.mark.parametrize(
    ("name", "split", "asked", "row"),
    [
        ("cola", "train", ("cola", "train"), {"sentence": "A.", "label": 1, "idx": 0}),
        ("mnli", "mismatched", ("mnli", "validation_mismatched"), {"premise": "A.", "hypothesis": "B.", "label": 1}),
        ("mrpc", "dev", ("mrpc", "validation"), {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0}),
        ("qqp", "dev", ("qqp", "validation"), {"question1": "A.", "question2": "B.", "label": 1, "idx": 0}),
    ],
)  # fmt: skip
def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, split: str, asked: tuple, row: dict) -> None:
    def load(dataset: str, config: str, split: str) -> list[dict]:
        assert dataset == "nyu-mll/glue"
        assert (config, split) == asked
        return [row] * 2

    hub_with(monkeypatch, load)
    texts = ("A.",) if name == "cola" else ("A.", "B.")
    assert TASKS[name].read(None, split) == [Sentences(texts, 1)] * 2


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("cola", {"sentnce": "A.", "label": 1}, "row 0: no column 'sentence' (but sentnce, label); did you mean"),
        ("cola", {"sentence": "A.", "label": -1}, "row 0: label -1 is none of CoLA's, which are 0 to 1"),
        ("stsb", {"sentence1": "A.", "sentence2": "B.", "label": 5.1}, "label 5.1 is none of STS-B's, which are 0"),
        ("cola", {"sentence": "A.", "label": None}, "label None is none"),
    ],
)  # fmt: skip
def test_other_rows_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, row: dict, message: str) -> None:
    hub_with(monkeypatch, lambda *_, **__: [row])
    with pytest.raises(DataError) as error:
        TASKS[name].read(None, "dev")
    assert message in str(error.value)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"(?s)nyu-mll/glue.*`datasets`, which is not installed.*--group hub.*--data"):
        TASKS["cola"].read(None, "train")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nand more")

    hub_with(monkeypatch, load)
    with pytest.raises(
        ConfigError, match=r"(?s)nyu-mll/glue.*\(Couldn't reach .* on the Hub and more\)\..*--data FOLDER"
    ):
        TASKS["cola"].read(None, "train")


# --- tokens ---


def random_examples(pairs: bool) -> list[Sentences]:
    generator = random.Random(1)
    texts = [sentence(generator, generator.randint(0, 40)) for _ in range(120)]
    return [Sentences(pair if pairs else pair[:1], 0) for pair in zip(texts[::2], texts[1::2], strict=True)]


@pytest.mark.parametrize("max_length", [8, 24, None])
@pytest.mark.parametrize("name", ["sst2", "rte"])
def test_tokens_are_those_of_transformers(
    tokenizer: Any, tokenizer_folder: Path, name: str, max_length: int | None
) -> None:
    examples = random_examples(pairs=name == "rte")
    features = TASKS[name].features(examples, tokenizer, FeatureSettings(max_length=max_length), training=True)
    texts = list(zip(*(e.texts for e in examples), strict=True))
    reference: Any = load_tokenizer(str(tokenizer_folder))  # called so, it keeps its truncation on
    theirs = reference(*map(list, texts), truncation=True, max_length=max_length or 128, return_token_type_ids=True)
    assert len(features) == len(examples)
    assert features.longest <= (max_length or 128)
    for i, (a, b) in enumerate(itertools.pairwise(features.ends.tolist())):
        assert features.ids[a:b].tolist() == theirs["input_ids"][i]
        assert features.types[a:b].tolist() == theirs["token_type_ids"][i]
    assert features.example.tolist() == list(range(len(examples)))
    dtypes = [a.dtype for a in (features.ids, features.types, features.ends, features.labels, features.example)]
    assert dtypes == [np.int32, np.uint8, np.int64, np.int64, np.int64]


def test_numbers_are_labels_of_a_regression(tokenizer: Any) -> None:
    examples = [Sentences(("a", "b"), 3.8), Sentences(("a", "b"), 0.0)]
    labels = TASKS["stsb"].features(examples, tokenizer, SETTINGS, training=True).labels
    assert labels.dtype == np.float32
    assert labels.tolist() == [pytest.approx(3.8), 0.0]


def test_truncation_is_never_left_on(tokenizer: Any) -> None:
    TASKS["rte"].features(random_examples(pairs=True), tokenizer, FeatureSettings(max_length=9), training=True)
    assert tokenizer.backend_tokenizer.truncation is None
    with pytest.raises(TypeError):
        TASKS["sst2"].features([Sentences((5,), 0)], tokenizer, SETTINGS, training=True)  # type: ignore[arg-type]
    assert tokenizer.backend_tokenizer.truncation is None


def test_many_blocks(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = random_examples(pairs=False)
    whole = TASKS["sst2"].features(examples, tokenizer, SETTINGS, training=True)
    monkeypatch.setattr("data.tasks.task._BLOCK", 7)
    blocks = TASKS["sst2"].features(examples, tokenizer, SETTINGS, training=True)
    assert np.array_equal(whole.ids, blocks.ids)
    assert np.array_equal(whole.ends, blocks.ends)


# --- settings ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 7}, "--max-length 7: must be 8 at least"),
        ({"doc_stride": -1}, "--doc-stride -1: must not be negative"),
        ({"max_query_length": 0}, "--max-query-length 0: must be positive"),
        ({"max_answer_length": 0}, "--max-answer-length 0: must be positive"),
        ({"n_best": 0}, "--n-best 0: must be positive"),
        ({"null_threshold": float("nan")}, "--null-threshold nan: must be a finite number"),
    ],
)
def test_refused_settings(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureSettings(**wrong)


# --- outputs ---


def outputs_of(rows: list[list[float]]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_score_and_predictions_of_classes(tmp_path: Path, tokenizer: Any) -> None:
    task = TASKS["mnli"]
    examples = [Sentences(("a", "b"), label) for label in (0, 1, 2, 2)]
    features = task.features(examples, tokenizer, SETTINGS, training=False)
    outputs = outputs_of([[3, 1, 2], [1, 2, 3], [0, 0, 1], [-1, -3, -2]])
    assert task.score(examples, features, outputs, SETTINGS) == {"accuracy": 0.5}
    task.write_predictions(tmp_path / "new" / "m.tsv", examples, features, outputs, SETTINGS)
    expected = "index\tprediction\n0\tentailment\n1\tcontradiction\n2\tcontradiction\n3\tentailment\n"
    assert (tmp_path / "new" / "m.tsv").read_text() == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.tsv"]


def test_classes_that_the_files_number_are_numbered_in_predictions(tokenizer: Any) -> None:
    task = TASKS["sst2"]
    examples = [Sentences(("a",), label) for label in (0, 1, 1)]
    features = task.features(examples, tokenizer, SETTINGS, training=False)
    outputs = outputs_of([[0, 1], [0, 1], [1, 0]])
    assert task.score(examples, features, outputs, SETTINGS) == {"accuracy": pytest.approx(1 / 3)}
    assert task.predictions(examples, features, outputs, SETTINGS) == {"": "index\tprediction\n0\t1\n1\t1\n2\t0\n"}


def test_score_and_predictions_of_numbers(tokenizer: Any) -> None:
    task = TASKS["stsb"]
    examples = [Sentences(("a", "b"), label) for label in (0.0, 1.0, 2.0, 5.0)]
    features = task.features(examples, tokenizer, SETTINGS, training=False)
    outputs = outputs_of([[1], [3], [7], [5.0625]])
    found = task.score(examples, features, outputs, SETTINGS)
    assert (list(found), found["spearman"]) == (["pearson", "spearman"], pytest.approx(0.8))
    rows = "0\t1.000\n1\t3.000\n2\t7.000\n3\t5.062\n"
    assert task.predictions(examples, features, outputs, SETTINGS) == {"": f"index\tprediction\n{rows}"}


def test_all_metrics_of_a_task(tokenizer: Any) -> None:
    for name, expected in {
        "cola": {"matthews", "accuracy"},
        "mrpc": {"f1", "accuracy"},
        "qqp": {"f1", "accuracy"},
    }.items():
        examples = [Sentences(("a",) * len(TASKS[name].texts), label) for label in (0, 1)]  # type: ignore[attr-defined]
        features = TASKS[name].features(examples, tokenizer, SETTINGS, training=False)
        found = TASKS[name].score(examples, features, outputs_of([[1, 0], [0, 1]]), SETTINGS)
        assert found == dict.fromkeys(expected, 1.0)
        assert next(iter(found)) == TASKS[name].main


# --- real data ---


def test_real_files(shared_data: Path) -> None:
    sizes = {("sst2", "train"): 67_349, ("sst2", "dev"): 872, ("rte", "train"): 1244, ("rte", "dev"): 139}
    for (name, split), size in sizes.items():
        examples = TASKS[name].read(shared_data / "glue", split)
        assert len(examples) == size
        assert {e.label for e in examples} == {0, 1}
        assert {len(e.texts) for e in examples} == {1 if name == "sst2" else 2}
    positive = sum(e.label for e in TASKS["sst2"].read(shared_data / "glue" / "SST-2", "dev"))
    assert positive == 444  # of 872, as published


def test_real_tokens(shared_data: Path) -> None:
    tokenizer: Any = load_tokenizer(str(shared_data / "bert-base-uncased"))
    examples = TASKS["rte"].read(shared_data / "glue", "dev")
    features = TASKS["rte"].features(examples, tokenizer, SETTINGS, training=False)
    theirs = tokenizer(*(list(texts) for texts in zip(*(e.texts for e in examples), strict=True)),
                       truncation=True, max_length=128)  # fmt: skip
    assert features.ids.tolist() == [token for ids in theirs["input_ids"] for token in ids]
    assert features.types.tolist() == [token for types in theirs["token_type_ids"] for token in types]
    assert features.longest == 128


# As in the published archive: without the label's column, and CoLA with a head.
TESTS = {
    "cola": ("index\tsentence", '0\tThe "cat" sat .'),
    "mnli": ("index\tgenre\tsentence1\tsentence2", "0\tfiction\tA cat.\tA dog."),
    "mrpc": ("index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\tA \"cat.\tA 'dog"),
    "qnli": ("index\tquestion\tsentence", "0\tWho?\tHe."),
    "qqp": ("id\tquestion1\tquestion2", "0\tA?\tB?"),
    "rte": ("index\tsentence1\tsentence2", "0\tA.\tB."),
    "sst2": ("index\tsentence", "0\ta fine film "),
    "stsb": ("index\tgenre\tsentence1\tsentence2", "0\tmain\tA.\tB."),
    "wnli": ("index\tsentence1\tsentence2", "0\tA.\tB."),
}


@pytest.mark.parametrize("name", sorted(TESTS))
def test_test_sets_have_no_labels(name: str, tmp_path: Path) -> None:
    task, (head, line) = TASKS[name], TESTS[name]
    assert task.tests == (("test_matched", "test_mismatched") if name == "mnli" else ("test",))
    for split in task.tests:
        (tmp_path / f"{split}.tsv").write_text(f"{head}\n{line}\n", encoding="utf-8")
        assert task.read(tmp_path, split) == [Sentences(PUBLISHED[name][3][0], 0)]
    assert not any(TASKS[squad].tests for squad in ("squad", "squad_v2"))
