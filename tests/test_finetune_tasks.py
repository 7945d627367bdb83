"""finetune_dilbert.py on each kind of task, from published files to an export, its card and a report."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import transformers
from jobs import WORDS, config_file, make_models, write_squad, write_sst2
from ranks import command_line, run_ranks

from launch.errors import ConfigError
from launch.reporting import runs
from launch.reporting.document import Measured, document
from launch.run_folder import RunFolder
from model.export import export

# Of each: the files' columns, how labels are written, and the figure that counts.
PAIRS = {
    "mnli": (("sentence1", "sentence2", "gold_label"), ("entailment", "neutral", "contradiction"), "matched_accuracy"),
    "mrpc": (("#1 String", "#2 String", "Quality"), ("0", "1"), "f1"),
    "qnli": (("question", "sentence", "label"), ("entailment", "not_entailment"), "accuracy"),
    "qqp": (("question1", "question2", "is_duplicate"), ("0", "1"), "f1"),
    "rte": (("sentence1", "sentence2", "label"), ("entailment", "not_entailment"), "accuracy"),
    "stsb": (("sentence1", "sentence2", "score"), ("0.5", "2.25", "5"), "pearson"),
    "wnli": (("sentence1", "sentence2", "label"), ("0", "1"), "accuracy"),
}
CHECKED = {**{name: main for name, (_, _, main) in PAIRS.items()}, "cola": "matthews", "squad_v2": "f1"}


def start(argv: list[str]) -> tuple[int, str]:
    """`finetune_dilbert.py` in this rank: exit code and output."""
    import finetune_dilbert

    return command_line(finetune_dilbert.main, argv)


def tune(*words: object, expect: int = 0) -> str:
    ((code, said),) = run_ranks(1, start, [str(word) for word in words])
    assert code == expect, said
    return said


def write_task(name: str, folder: Path) -> Path:
    """Some examples in the task's published format."""
    folder.mkdir(exist_ok=True)
    generator = random.Random(name)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))

    if name == "squad_v2":
        write_squad(folder)
        for part in ("train", "dev"):
            body = json.loads((folder / f"{part}-v1.1.json").read_text())
            for paragraph in body["data"][0]["paragraphs"][::3]:
                paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
            (folder / f"{part}-v2.0.json").write_text(json.dumps(body))
        return folder
    dev = ("dev_matched", "dev_mismatched") if name == "mnli" else ("dev",)
    for part, count in (("train", 48), *((part, 12) for part in dev)):
        if name == "cola":
            rows = [f"src\t{number % 2}\t\t{text()}" for number in range(count)]
        else:
            columns, labels, _ = PAIRS[name]
            rows = ["\t".join(columns)]
            rows += [f"{text()}\t{text()}\t{labels[number % len(labels)]}" for number in range(count)]
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_file(tmp_path_factory.mktemp("config") / "c.json")


@pytest.mark.parametrize("task", CHECKED)
def test_from_files_to_a_report(task, models, config, tmp_path):
    """A BERT learns the task, a student learns it from that; what each leaves behind is read by all that follows."""
    data = write_task(task, tmp_path / "data")
    common = ["--task", task, "--data", data, "--deepspeed_config", config, "--max-steps", 2, "--max-length", 40]
    if task == "squad_v2":
        common += ["--doc-stride", 8, "--max-query-length", 8]
    tune(*common, "--model", models[0], "--output", tmp_path / "bert", "--log-interval", 1)
    export(tmp_path / "bert", tmp_path / "teacher")
    tune(*common, "--model", models[1], "--teacher", tmp_path / "teacher", "--output", tmp_path / "student",
         "--log-interval", 1)  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "student" / "log.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss_ce" in row]
    assert len(losses) == 2
    assert all(row["loss_ce"] > 0 and row["loss_task"] > 0 and np.isfinite(row["grad_norm"]) for row in losses)
    export(tmp_path / "student", tmp_path / "model")
    kind = "QuestionAnswering" if task == "squad_v2" else "SequenceClassification"
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").architectures == [f"DistilBertFor{kind}"]
    assert (tmp_path / "model" / "README.md").read_text().startswith("---\n")

    result = RunFolder(tmp_path / "student").read("result.json")
    assert (result["main"], result["precision"]) == (CHECKED[task], "fp32")
    assert result["main"] in result["metrics"]
    read = runs.read([tmp_path / "bert", tmp_path / "student"])
    body = document("2026-01-31", str(models[0]), str(models[1]), read, Measured())
    (row,) = body["tasks"]
    assert row["scores"].keys() == {"teacher", "student, distilled again"}
    assert row["scores"]["student, distilled again"]["metrics"] == pytest.approx(result["metrics"])

    tune("--task", task, "--data", data, "--model", tmp_path / "model", "--eval-only", "--output", tmp_path / "eval",
         *common[8:])  # fmt: skip
    assert RunFolder(tmp_path / "eval").read("result.json")["metrics"] == pytest.approx(result["metrics"])


def test_in_bf16_the_result_says_so(models, tmp_path):
    data, config = write_task("rte", tmp_path / "data"), config_file(tmp_path / "c.json", precision="bf16")
    tune("--task", "rte", "--data", data, "--deepspeed_config", config, "--max-steps", 2, "--model", models[1],
         "--output", tmp_path / "run")  # fmt: skip
    assert RunFolder(tmp_path / "run").read("result.json")["precision"] == "bf16"
    export(tmp_path / "run", tmp_path / "model")
    assert "| data | RTE, files in `data` (fingerprint " in (tmp_path / "model" / "README.md").read_text()
    assert "| scores measured in | bf16" in (tmp_path / "model" / "README.md").read_text()


def test_results_are_not_written_over(models, config, tmp_path):
    """By a measurement, by several seeds, or by one run among the seeds."""
    data = write_sst2(tmp_path)
    one = ["--task", "sst2", "--data", data, "--model", models[1], "--output", tmp_path / "run"]
    train = [*one, "--deepspeed_config", config, "--max-steps", 2]
    tune(*train)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
    export(tmp_path / "run", tmp_path / "model")
    for words in ([*one, "--eval-only", "--model", tmp_path / "model"], [*train, "--seeds", 2]):
        assert "holds a single run" in tune(*words, expect=2)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == before
    tune(*train, "--output", tmp_path / "seeds", "--seeds", 2)
    for words in (train, [*train, "--dry-run"], [*one, "--eval-only", "--model", tmp_path / "model"]):
        said = tune(*words, "--output", tmp_path / "seeds", expect=2)
        assert "has runs of several seeds (seed-0, seed-1)" in said
    with pytest.raises(ConfigError, match=r"seeds: seed-0, seed-1; give one of them, such as \S+/seeds/seed-\d, "):
        export(tmp_path / "seeds", tmp_path / "exported")
    export(tmp_path / "seeds" / "seed-1", tmp_path / "exported")
    assert "\n# exported\n" in (tmp_path / "exported" / "README.md").read_text()


def test_a_test_set_in_place_of_a_dev_set_is_called_so(models, config, tmp_path):
    """MRPC's, in Microsoft's files."""
    data = write_task("mrpc", tmp_path / "data")
    (data / "train.tsv").rename(data / "msr_paraphrase_train.txt")
    (data / "dev.tsv").rename(data / "msr_paraphrase_test.txt")
    said = tune("--task", "mrpc", "--data", data, "--deepspeed_config", config, "--max-steps", 2, "--model", models[1],
                "--output", tmp_path / "run")  # fmt: skip
    assert said.count("msr_paraphrase_test.txt is MRPC's test set") == 1
    assert RunFolder(tmp_path / "run").read("result.json")["examples"] == {"test": 12}


def test_what_measuring_alone_does_not_take(models, tmp_path):
    data = write_sst2(tmp_path)
    one = ["--task", "sst2", "--data", data, "--model", models[1], "--output", tmp_path / "run", "--eval-only"]
    assert "with --eval-only nothing is learnt" in tune(*one, "--teacher", models[0], expect=2)
    assert "there is no folder" in tune(*one, "--predict", tmp_path / "nowhere" / "p.tsv", expect=2)
    assert "must be a file" in tune(*one, "--predict", tmp_path, expect=2)
    assert not (tmp_path / "run").exists()
