"""Model cards: out of report.json alone, valid for the Hugging Face hub, true to the run; and their code runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard, metadata_load
from jobs import make_models

from data.tasks import TASKS
from data.tasks.glue import Glue
from launch import hub
from launch.errors import ConfigError, DataError
from launch.reporting import card as cards
from launch.reporting import exported, tables, terminal
from launch.reporting.card import card
from launch.reporting.document import Measured, document
from launch.reporting.runs import read
from model import export, heads, verify

LOG = (
    {"step": 10, "loss": 0.7, "lr": 1e-4, "seconds_per_step": 0.5, "tokens_per_second": 100.0},
    {"step": 10, "valid_accuracy": 0.6},
    {"step": 15, "loss": 0.5, "lr": 1e-4, "seconds_per_step": 2.0, "tokens_per_second": 50.0, "loss_scale": 8.0},
    {"step": 15, "valid_accuracy": 0.8125},
)
ENVIRONMENT = {
    "packages": {"torch": "2.13.0", "deepspeed": "0.19.8"},
    "python": "3.11.7",
    "git_commit": "0123456789abcdef+",
    "host": "secret-host",
    "ranks": 8,
    "device": "H100",
    "data": [{"path": "/secret/datasets/web", "share": 1.0, "sequences": 23496, "tokens": 1007084}],
}
DEEPSPEED = {
    "train_batch_size": 4096,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-4}},
    "gradient_clipping": 5.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
}
ABOUT = {"name": "first", "model_type": "distilbert", "kind": None, "labels": [], "parameters": 66985530, "layers": 6,
         "hidden_size": 768, "positions": 512, "difference": 1.2e-7, "transformers": "5.23.0", "base_model": None,
         "hub": None, "license": None, "language": [], "onnx": []}  # fmt: skip
METRICS = {
    "sst2": {"accuracy": 0.9128},
    "cola": {"matthews": 0.5126, "accuracy": 0.8},
    "stsb": {"pearson": 0.87, "spearman": 0.86},
    "mnli": {"matched_accuracy": 0.8217, "mismatched_accuracy": 0.8256},
    "squad": {"exact": 0.777, "f1": 0.85812},
    "squad_v2": {"exact": 0.6, "f1": 0.63, "HasAns_exact": 0.5, "HasAns_f1": 0.56, "NoAns_exact": 0.7, "NoAns_f1": 0.7},
}
KINDS = {"stsb": "regression", "squad": "span", "squad_v2": "span"}


def write(folder: Path, **bodies: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in bodies.items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    return folder


def pretrained(folder: Path, **flags: Any) -> Path:
    """A run folder of train_dilbert.py, as a report reads it."""
    given = {"data": ["/secret/datasets/web"], "teacher": "/secret/models/big", "temperature": 2.0, "valid_data": None,
             "output": str(folder)}  # fmt: skip
    return write(
        folder, config={"flags": given | flags, "fingerprint": "97694ba775b1faad"}, environment=ENVIRONMENT,
        ds_config=DEEPSPEED, DONE={"step": 15},
    )  # fmt: skip


def tuned(folder: Path, task: str, step: int = 15, **flags: Any) -> Path:
    """A run folder of finetune_dilbert.py."""
    flags = {"task": task, "data": None, "model": "distilbert-base-uncased", "teacher": None} | flags
    result = {"task": task, "main": next(iter(METRICS[task])), "metrics": METRICS[task], "model": flags["model"],
              "teacher": flags["teacher"], "seed": 0, "step": step, "examples": {"dev": 872}}  # fmt: skip
    config = {"flags": flags, "fingerprint": "f", "model": {"model_type": "distilbert"}}
    return write(folder, config=config, environment=ENVIRONMENT, ds_config=DEEPSPEED, result=result, DONE={"step": 15})


def made(run: Path, step: int = 15, **about: Any) -> dict[str, Any]:
    """report.json of an export of this run."""
    return exported.exported("2026-11-24", run, step, ABOUT | about)


def parsed(text: str, folder: Path) -> dict[str, Any]:
    """The metadata, as two parsers of `huggingface_hub` read it."""
    path = folder / "README.md"
    path.write_text(text)
    metadata = metadata_load(path)
    assert ModelCard.load(path).data.to_dict() == ModelCard(text).data.to_dict() == metadata
    return metadata


def rows(text: str) -> dict[str, str]:
    """The facts by their names."""
    return dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", text, re.MULTILINE))


def test_a_distilled_model(tmp_path):
    text = card(made(pretrained(tmp_path / "first"), base_model="google-bert/bert-base-uncased", license="apache-2.0",
                     language=["en"]))  # fmt: skip
    assert parsed(text, tmp_path) == {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["distilbert", "distillation"],
        "base_model": "google-bert/bert-base-uncased",
    }
    assert "# first\n\nA DistilBERT of 6 layers, a masked language model, distilled from `big` with DilBERT." in text
    found = rows(text)
    assert found["parameters"] == "66,985,530; 6 layers x 768, at most 512 tokens"
    assert found["steps"] == "15"
    assert found["batch and optimizer"] == (
        "4,096 sequences a step, AdamW, learning rate 0.0005, gradient norm at most 5; bf16, ZeRO stage 2"
    )
    assert found["data"] == "`web`: 1,007,084 tokens (fingerprint 97694ba775b1faad)"
    assert (found["loss"], found["valid_accuracy"]) == ("0.5000", "0.8125")
    assert found["training time"] == "00:15, 1,000 tokens"  # 10 x 0.5 s at 100 tokens/s, 5 x 2 s at 50
    assert found["hardware"] == "8 x H100"
    assert found["made with"] == "Python 3.11.7, torch 2.13.0, deepspeed 0.19.8"
    assert found["code"] == "commit 0123456789abcdef+"
    assert found["verified"] == "`transformers` 5.23.0 computes the same logits, to 1.2e-07"
    flags = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    assert flags == {"data": ["web"], "teacher": "big", "temperature": 2.0}
    assert "secret" not in text
    assert "loss_scale" not in text


def test_a_run_that_is_not_done_is_said_to_be_so(tmp_path):
    folder = pretrained(tmp_path / "first")
    environment = json.loads((folder / "environment.json").read_text())
    for steps, told in ((40, "10 of 40: the run is not done"), (10, "10"), ("many", "10")):
        (folder / "environment.json").write_text(json.dumps(environment | {"steps": steps}))
        assert rows(card(made(folder, step=10)))["steps"] == told


def test_a_checkpoint_before_the_end(tmp_path):
    found = rows(card(made(pretrained(tmp_path / "first"), step=10)))
    assert (found["steps"], found["loss"], found["training time"]) == ("10", "0.7000", "00:05, 500 tokens")


def test_what_is_not_known_is_left_out(tmp_path):
    run = pretrained(tmp_path / "first", teacher=None)
    for name in ("environment.json", "ds_config.json", "log.jsonl"):
        (run / name).unlink()
    text = card(made(run))
    assert parsed(text, tmp_path) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["distilbert"],
    }
    assert "pre-trained with DilBERT" in text
    found = rows(text)
    assert found["data"] == "`web` (fingerprint 97694ba775b1faad)"
    assert found["code"] == "commit unknown"
    assert not found.keys() & {"batch and optimizer", "training time", "made with", "loss"}
    assert "None" not in text


def results(metadata: dict[str, Any]) -> list[tuple[str, ...]]:
    """Data set, configuration and split, and each metric with its value."""
    (model,) = metadata["model-index"]
    return [
        (result["dataset"]["type"], result["dataset"]["config"], result["dataset"]["split"], metric["type"],
         metric["value"])
        for result in model["results"]
        for metric in result["metrics"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "pipeline", "dataset", "config", "metrics"),
    [
        ("sst2", "text-classification", "nyu-mll/glue", "sst2", {"accuracy": 0.9128}),
        ("cola", "text-classification", "nyu-mll/glue", "cola", {"matthews_correlation": 0.5126, "accuracy": 0.8}),
        ("stsb", "text-classification", "nyu-mll/glue", "stsb", {"pearsonr": 0.87, "spearmanr": 0.86}),
        ("squad", "question-answering", "rajpurkar/squad", "plain_text", {"exact_match": 0.777, "f1": 0.8581}),
        ("squad_v2", "question-answering", "rajpurkar/squad_v2", "squad_v2", {"exact_match": 0.6, "f1": 0.63}),
    ],
)
def test_results_of_a_fine_tuned_model(task, pipeline, dataset, config, metrics, tmp_path):
    kind = KINDS.get(task, "classification")
    text = card(
        made(tuned(tmp_path / "run", task), kind=kind, labels=["no", "yes"] if kind == "classification" else [])
    )
    metadata = parsed(text, tmp_path)
    assert metadata["pipeline_tag"] == pipeline
    assert metadata["datasets"] == [dataset]
    assert results(metadata) == [(dataset, config, "validation", name, value) for name, value in metrics.items()]
    (entry,) = ModelCard(text).data.eval_results[:1]
    assert (entry.task_type, entry.dataset_name) == (pipeline, tables.task_title(task))
    assert tables.task_title(task) in text
    assert "fine-tuned from `distilbert-base-uncased` with DilBERT" in text


def test_both_splits_of_mnli(tmp_path):
    metadata = parsed(card(made(tuned(tmp_path / "run", "mnli"), kind="classification")), tmp_path)
    assert results(metadata) == [
        ("nyu-mll/glue", "mnli", "validation_matched", "accuracy", 0.8217),
        ("nyu-mll/glue", "mnli", "validation_mismatched", "accuracy", 0.8256),
    ]


def test_a_second_distillation_from_files_of_ones_own(tmp_path):
    text = card(made(tuned(tmp_path / "run", "sst2", data="glue/SST-2", teacher="models/bert-sst2"), labels=["-", "+"],
                     kind="classification"))  # fmt: skip
    metadata = parsed(text, tmp_path)
    assert "datasets" not in metadata
    assert metadata["tags"] == ["distilbert", "distillation"]
    assert (
        "for SST-2 (-, +), fine-tuned from `distilbert-base-uncased` under the teacher `models/bert-sst2` with" in text
    )


@pytest.mark.parametrize("why", ["other weights", "not finished"])
def test_scores_of_other_weights_are_left_out(why, tmp_path):
    run = tuned(tmp_path / "run", "sst2")
    if why == "not finished":
        (run / "DONE.json").unlink()
    text = card(made(run, step=10 if why == "other weights" else 15, kind="classification"))
    assert "model-index" not in parsed(text, tmp_path)
    assert "91.3" not in text


def test_tables_are_those_of_the_report(tmp_path):
    run = tuned(tmp_path / "run", "sst2")
    report = made(run, kind="classification")
    assert terminal.markdown([tables.tasks(report)]) in card(report)
    assert "91.3" in card(report)


def full_report(run: Path, student: str) -> dict[str, Any]:
    """Of a student with its teacher."""
    size = {"layers": 6, "hidden_size": 768, "parameters": 66985530, "without_embeddings": 43119360, "bytes": 267954768}
    form = {"role": "student", "form": "ONNX int8", "bytes": 67376887, "length": 128, "seconds": 0.066,
            "tokens_per_second": 1939.0, "accuracy": 0.4321}  # fmt: skip
    measured = Measured(models=[{"role": "student", "name": student, **size}], production=[form])
    return document("2026-11-25", None, student, read([run]), measured)


def test_the_figures_of_a_report(tmp_path):
    run, path = pretrained(tmp_path / "first"), tmp_path / "report.json"
    own = made(run)
    for student in (str(tmp_path / "elsewhere"), str(tmp_path / "models" / "dilbert")):
        path.write_text(json.dumps(full_report(run, student)))
        report = exported.with_figures(own, path, tmp_path / "models" / "dilbert")
        text = card(report)
        for table in (tables.sizes(report), tables.production(report)):
            assert terminal.markdown([table]) in text
        assert "| student | ONNX int8 | masked words right |     67.4 |    128 | 66.0 |" in text
        assert "67.4" not in card(own)
        assert report["export"] == own["export"]
        assert rows(text)["steps"] == "15"


def test_reports_that_are_not_about_it(tmp_path):
    own, path = made(pretrained(tmp_path / "first")), tmp_path / "report.json"
    path.write_text(json.dumps(full_report(pretrained(tmp_path / "second"), "models/other")))
    with pytest.raises(DataError, match=r"not about .*dilbert or .*first, but about models/other, .*second"):
        exported.with_figures(own, path, tmp_path / "dilbert")
    for body in ("{}", '{"format": 1}', '{"format": 99}', "[]", "no JSON"):
        path.write_text(body)
        with pytest.raises(DataError, match=r"report\.json"):
            exported.with_figures(own, path, tmp_path / "dilbert")
    with pytest.raises(DataError, match="no report"):
        exported.with_figures(own, tmp_path / "gone.json", tmp_path / "dilbert")
    with pytest.raises(ConfigError, match=r"has no report\.json, of which cards are made"):
        exported.with_figures({}, path, tmp_path / "dilbert")
    assert exported.with_figures(own, None, tmp_path / "dilbert") is own


def test_onnx_files(tmp_path):
    forms = [{"file": "onnx/model.onnx", "bytes": 267815006, "difference": 8.3e-7, "agreement": 1.0},
             {"file": "onnx/model_int8.onnx", "bytes": 67376887, "difference": 0.028, "agreement": 0.98}]  # fmt: skip
    run = pretrained(tmp_path / "first")
    text = card(made(run, onnx=forms))
    assert (
        "| `onnx/model.onnx` | 267.8 | 8.3e-07 | 100.0 % |\n| `onnx/model_int8.onnx` | 67.4 | 2.8e-02 | 98.0 % |"
        in text
    )
    assert "Inputs: `input_ids`, `attention_mask`, int64" in text
    numbers = [form | {"agreement": None} for form in forms]
    text = card(made(run, onnx=numbers, model_type="bert"))
    assert "| 8.3e-07 | - |" in text
    assert "`attention_mask`, `token_type_ids`, int64" in text


def test_a_card_survives_its_json(tmp_path):
    run = pretrained(tmp_path / "first")
    folder = tmp_path / "model"
    folder.mkdir()
    exported.write(folder, made(run))
    known = exported.known(folder)
    assert card(known) == (folder / "README.md").read_text()
    assert known["pretraining"] == document("", None, None, read([run]), Measured())["pretraining"]
    assert exported.known(run) == {}


def test_an_edited_card_stays(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    exported.write(folder, made(pretrained(tmp_path / "first")))
    again = exported.known(folder)
    exported.write(folder, again | {"export": again["export"] | {"step": 77}})
    assert "| steps | 77 |" in (folder / "README.md").read_text()
    assert capsys.readouterr().out == ""
    (folder / "README.md").write_text("mine")
    for _ in range(2):
        exported.write(folder, exported.known(folder))
        assert (folder / "README.md").read_text() == "mine"
        assert "README.md: edited since it was made, and left as it is" in capsys.readouterr().out
    (folder / "README.md").unlink()
    exported.write(folder, exported.known(folder))
    assert "| steps | 77 |" in (folder / "README.md").read_text()


def test_the_tables_of_tasks_know_all_of_ours(tmp_path):
    single = {name for name, task in TASKS.items() if isinstance(task, Glue) and len(task.texts) == 1}
    assert set(cards.ONE_TEXT) == single
    assert {name: task.on_hub for name, task in TASKS.items() if not isinstance(task, Glue)} == {
        name: dataset for name, (dataset, _) in cards.DATASETS.items()
    }
    assert {metric for task in TASKS.values() if isinstance(task, Glue) for metric in task.metrics} < set(cards.METRICS)


# The code in it.


def code_of(text: str, folder: Path) -> str:
    """What a user would copy."""
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("FOLDER", str(folder))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A teacher and a student, `big` and `small`, with each head."""
    folder = tmp_path_factory.mktemp("models")
    for family, source in zip(("bert", "distilbert"), make_models(folder), strict=True):
        source.rename(folder / family)
        for kind, labels in (("classification", ("no", "yes")), ("regression", ()), ("span", ())):
            model = heads.load(folder / family, kind, labels)
            model.save_pretrained(folder / f"{family}-{kind}")
            hub.copy_tokenizer(folder / family, folder / f"{family}-{kind}")
    return folder


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("task", ["", "sst2", "mnli", "stsb", "squad"])
def test_its_code_runs(task, family, models, tmp_path, capsys):
    kind = KINDS.get(task, "classification") if task else ""
    folder = models / (f"{family}-{kind}" if kind else family)
    run = tuned(tmp_path / "run", task) if task else pretrained(tmp_path / "run")
    model = verify.load(folder)
    text = card(made(run, **export.facts("run", {}, model, 0.0)))
    assert f"{sum(p.numel() for p in model.parameters()):,}; {model.config.num_hidden_layers} layers" in text
    capsys.readouterr()
    code = code_of(text, folder)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if kind == "span":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        pair = tokenizer("Where is the cat?", "The cat is in the house.", return_tensors="pt")
        with torch.no_grad():
            outputs = model(**pair)
        start, end = int(outputs.start_logits.argmax()), int(outputs.end_logits.argmax())
        assert printed.strip() == tokenizer.decode(pair["input_ids"][0, start : end + 1]).strip()
    else:
        assert {"": "token_str", "classification": "'label': '", "regression": "'label': 'LABEL_0'"}[kind] in printed
    assert ("text_pair" in code) == (task in ("mnli", "stsb"))
    assert ("The score is the predicted number" in text) == (task == "stsb")


def test_on_the_hub_it_names_itself(tmp_path):
    """In its title, in the code and in its metadata; elsewhere it has its folder's name."""
    run = tuned(tmp_path / "first", "sst2")
    for hub_name, name in (("me/dilbert", "dilbert"), (None, "folder")):
        text = card(made(run, kind="classification", name="folder", hub=hub_name))
        assert f"\n# {name}\n" in text
        assert f'pipeline("text-classification", "{hub_name or "FOLDER"}")' in text
        assert parsed(text, tmp_path)["model-index"][0]["name"] == name
