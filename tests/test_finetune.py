"""finetune_dilbert.py, end to end: like pre-training, it does not depend on how it is cut or interrupted."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from jobs import NO_DROPOUT, config_file, make_models, write_squad, write_sst2
from ranks import command_line, read_log, run_ranks
from safetensors.torch import load_file, save_file

from data.tasks import TASKS
from launch import report
from launch.run_folder import RunFolder
from model import export, onnx_export

NEVER = {"seq_classif_dropout": 0.0, "qa_dropout": 0.0}
WINDOWS = ["--max-length", 20, "--doc-stride", 4, "--max-query-length", 4]  # several a question


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A BERT and a student, without dropout."""
    bert, student = make_models(tmp_path_factory.mktemp("models"), **NO_DROPOUT)
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | NEVER))
    return bert, student


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("sst2"))


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("squad"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_file(tmp_path_factory.mktemp("config") / "c.json")


def start(argv: list[str]) -> tuple[int, str]:
    """`finetune_dilbert.py` in this rank: exit code and output."""
    import finetune_dilbert

    return command_line(finetune_dilbert.main, argv)


def tune(argv: list, ranks: int = 1, expect: int = 0) -> str:
    """A job of finetune_dilbert.py; its rank 0's output."""
    results = run_ranks(ranks, start, [str(word) for word in argv])
    assert [code for code, _ in results] == [expect] * ranks, results
    return results[0][1]


def words(task: str, data: Path, model: Path, output: Path, *more: object) -> list:
    return ["--task", task, "--data", data, "--model", model, "--output", output, "--log-interval", 1, *more]


def losses(run: Path) -> np.ndarray:
    return np.array([[row["loss"], row["grad_norm"]] for row in read_log(run)])


@pytest.fixture(scope="module")
def finished(models, sst2, config, tmp_path_factory) -> Path:
    """A student that has learnt what a cat is."""
    run = tmp_path_factory.mktemp("runs") / "sst2"
    tune(words("sst2", sst2, models[1], run, "--deepspeed_config", config, "--epochs", 4))
    return run


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "sst2"
    export.export(finished, folder)
    return folder


@pytest.fixture(scope="module")
def answering(models, squad, config, tmp_path_factory) -> Path:
    """A BERT that finds the tree: its `run`, `answers.json`, and `model`, exported."""
    folder = tmp_path_factory.mktemp("answering")
    run, train = folder / "run", ["--deepspeed_config", config, "--epochs", 20, "--predict", folder / "answers.json"]
    tune(words("squad", squad, models[0], run, *train, "--max-length", 48, "--doc-stride", 8, "--max-query-length", 8))
    export.export(run, folder / "model")
    return folder


def test_it_learns(finished):
    result = RunFolder(finished).read("result.json")
    assert (result["task"], result["main"], result["step"], result["seed"]) == ("sst2", "accuracy", 100, 0)
    assert result["examples"] == {"dev": 60}
    assert result["hashes"].keys() == {"train", "dev"}
    assert result["metrics"]["accuracy"] > 0.95
    assert RunFolder(finished).read("DONE.json") == {"step": 100}
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert rows[-1] == {"step": 100, "valid_accuracy": result["metrics"]["accuracy"]}


@pytest.mark.parametrize("kind", [0, 1], ids=["bert", "student"])
def test_ranks_and_accumulation_do_not_matter(kind, models, sst2, tmp_path):
    for name, ranks, micro in (("one", 1, 16), ("two", 2, 2)):
        config = config_file(tmp_path / f"{name}.json", stage=ranks, micro=micro)
        more = ["--deepspeed_config", config, "--max-steps", 8]
        tune(words("sst2", sst2, models[kind], tmp_path / name, *more), ranks)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    one, two = (RunFolder(tmp_path / name).read("result.json")["metrics"] for name in ("one", "two"))
    assert one == two


def test_a_stopped_run_goes_on(models, sst2, config, tmp_path):
    more = ["--deepspeed_config", config, "--max-steps", 8]
    tune(words("sst2", sst2, models[0], tmp_path / "whole", *more))
    argv = words("sst2", sst2, models[0], tmp_path / "cut", *more)
    tune([*argv, "--stop-at-step", 3], expect=75)
    tune(argv)
    assert np.array_equal(losses(tmp_path / "cut"), losses(tmp_path / "whole"))
    assert "going on after step 8" in tune(argv), "a run that is done is measured again"
    assert (tmp_path / "cut" / "DONE.json").exists()


def test_changes_are_refused(models, sst2, config, tmp_path):
    argv = words("sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--max-steps", 2)
    tune(argv)
    assert "--max-length: was None, is 16" in tune([*argv, "--max-length", 16], expect=2)
    assert "--seed: was 0, is 1" in tune([*argv, "--seed", 1], expect=2)


@pytest.fixture(scope="module")
def bert_that_knows(models, sst2, config, tmp_path_factory) -> Path:
    """A teacher for SST-2."""
    folder = tmp_path_factory.mktemp("teacher")
    tune(words("sst2", sst2, models[0], folder / "run", "--deepspeed_config", config, "--epochs", 4))
    export.export(folder / "run", folder / "model")
    return folder / "model"


def changed(model: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor], **values: object) -> Path:
    """A copy with another last layer, and other values in its config.json."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("onnx"))
    state = load_file(folder / "model.safetensors")
    state |= {name: change(state[name]).contiguous() for name in ("classifier.weight", "classifier.bias")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(body | values))
    return folder


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["start", "dry run"])
def test_a_teacher_whose_labels_have_another_order(more, bert_that_knows, models, sst2, config, tmp_path):
    """Without names, as many published models are, it would teach the opposite; with names it is understood."""
    argv = words("sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--max-steps", 2, *more)
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    turned = changed(bert_that_knows, tmp_path / "turned", lambda rows: rows.flip(0), **names)
    said = tune([*argv, "--teacher", turned], ranks=2, expect=2)
    assert f"--teacher {turned}: its labels have no names; in the task's order it is right in 0.0% of the held" in said
    cure = {"id2label": {"0": "positive", "1": "negative"}}
    assert (
        f"but in 100.0% if they are positive, negative. Name them so in a copy's config.json: {json.dumps(cure)[1:-1]}"
        in said
    )
    assert not (tmp_path / "run" / "config.json").exists()
    named = changed(turned, tmp_path / "named", torch.clone, **cure)
    said = tune([*argv, "--teacher", named], ranks=2)
    assert "its labels are in another order; taken by their names: positive, negative" in said
    assert "sst2 | teacher | accuracy 1.0000" in said


def test_measured_alone_labels_have_an_order_too(exported, sst2, tmp_path):
    def measure(model: Path, expect: int) -> str:
        return tune([*words("sst2", sst2, model, tmp_path / "run")[:-2], "--eval-only"], expect=expect)

    unnamed, named = (
        {"id2label": dict(enumerate(names))} for names in (("LABEL_0", "LABEL_1"), ("positive", "negative"))
    )
    turned = changed(exported, tmp_path / "turned", lambda rows: rows.flip(0), **unnamed)
    assert "but in 100.0% if they are positive, negative" in measure(turned, 2)
    assert not (tmp_path / "run" / "result.json").exists()
    assert "accuracy 1.0000" in measure(changed(turned, tmp_path / "named", torch.clone, **named), 0)


def test_outputs_that_are_not_finite_are_no_result(exported, sst2, tmp_path):
    changed(exported, tmp_path / "lost", lambda rows: rows * torch.nan)
    argv = [*words("sst2", sst2, tmp_path / "lost", tmp_path / "run")[:-2], "--eval-only"]
    assert "outputs for 60 of 60 held-out inputs are not finite" in tune(argv, ranks=2, expect=5)
    assert not (tmp_path / "run" / "result.json").exists()


def test_distillation_follows_the_teacher(bert_that_knows, models, sst2, config, tmp_path):
    """A teacher with all its labels turned round: without labels of its own, the student learns those."""
    turned = changed(bert_that_knows, tmp_path / "turned", torch.neg)
    argv = words("sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--epochs", 4)
    tune([*argv, "--teacher", turned, "--alpha-task", 0, "--alpha-ce", 1])
    assert RunFolder(tmp_path / "run").read("result.json")["metrics"]["accuracy"] < 0.05
    assert all("loss_ce" in row and "loss_task" not in row for row in read_log(tmp_path / "run"))


def test_exported_as_a_pipeline(exported):
    classify = transformers.pipeline("text-classification", model=str(exported))
    found = classify(["the cat is in the house", "the dog is in the house"])
    assert [row["label"] for row in found] == ["positive", "negative"]


def test_evaluation_alone(exported, finished, sst2, tmp_path):
    output = tune(
        [*words("sst2", sst2, exported, tmp_path / "run")[:-2], "--eval-only", "--predict", tmp_path / "p.tsv"]
    )
    result, trained = (RunFolder(path).read("result.json") for path in (tmp_path / "run", finished))
    assert result["metrics"] == trained["metrics"]
    assert (result["step"], result["seed"]) == (None, None)
    assert f"accuracy {result['metrics']['accuracy']:.4f}" in output
    header, *rows = (tmp_path / "p.tsv").read_text().splitlines()
    gold = [line.split("\t")[1] for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    assert header == "index\tprediction"
    right = [row.split("\t")[1] == label for row, label in zip(rows, gold, strict=True)]
    assert np.mean(right) == result["metrics"]["accuracy"]


def test_the_test_set_that_a_server_marks(exported, sst2, tmp_path):
    rows = [line.split("\t")[0] for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
    numbered = "".join(f"{number}\t{text}\n" for number, text in enumerate(rows))
    (tmp_path / "test.tsv").write_text(f"index\tsentence\n{numbered}")
    argv = words("sst2", tmp_path, exported, tmp_path / "run")[:-2]
    tune([*argv, "--eval-only", "--test", "--predict", tmp_path / "p.tsv"], ranks=2)
    found = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    assert found[0] == ["index", "prediction"]
    assert [int(index) for index, _ in found[1:]] == list(range(len(rows)))
    cats = ["1" if "cat" in text.split() else "0" for text in rows]
    assert np.mean([answer == cat for (_, answer), cat in zip(found[1:], cats, strict=True)]) > 0.9
    assert not (tmp_path / "run" / "result.json").exists()
    assert "give --eval-only and --predict FILE" in tune([*argv, "--test"], expect=2)


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_the_batch_of_an_evaluation_does_not_matter(task, exported, sst2, answering, squad, tmp_path):
    """Nor where a batch ends: windows of one question may be in several."""
    model, data, more = {"sst2": (exported, sst2, []), "squad": (answering / "model", squad, WINDOWS)}[task]
    for size in (1, 7):
        argv = words(task, data, model, tmp_path / f"run{size}", *more)
        tune([*argv, "--eval-only", "--eval-batch", size, "--predict", tmp_path / f"{size}.txt"], ranks=size % 2 + 1)
    assert (tmp_path / "1.txt").read_text() == (tmp_path / "7.txt").read_text()
    one, seven = (RunFolder(tmp_path / name).read("result.json")["metrics"] for name in ("run1", "run7"))
    assert one == seven
    if task == "squad":
        one, seven = (
            [c["probability"] for answers in json.loads((tmp_path / name).read_text()).values() for c in answers]
            for name in ("1_nbest.txt", "7_nbest.txt")
        )
        assert one == pytest.approx(seven, rel=1e-4)


def test_several_seeds(models, sst2, config, tmp_path):
    argv = words("sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--max-steps", 12)
    output = tune([*argv, "--seeds", 3, "--seed", 4])
    assert "sst2 | seed 5: run 2 of 3" in output
    result = RunFolder(tmp_path / "run").read("result.json")
    each = [RunFolder(tmp_path / "run" / f"seed-{seed}").read("result.json") for seed in (4, 5, 6)]
    assert [one["seed"] for one in each] == [4, 5, 6]
    flags = RunFolder(tmp_path / "run" / "seed-5").read("config.json")["flags"]
    assert (flags["seed"], flags["seeds"]) == (5, 1), "repeated by its record, it is one run"
    assert result["seeds"] == {str(one["seed"]): one["metrics"] for one in each}
    assert len({json.dumps(one["hashes"]) for one in each}) == 1, "seeds change no data"
    assert result["metrics"]["accuracy"] == sorted(one["metrics"]["accuracy"] for one in each)[1]
    assert RunFolder(tmp_path / "run").read("DONE.json") == {"seeds": [4, 5, 6]}
    assert f"median of 3 seeds | accuracy {result['metrics']['accuracy']:.4f}" in output
    assert not np.array_equal(losses(tmp_path / "run" / "seed-4"), losses(tmp_path / "run" / "seed-5"))


def test_several_seeds_stop_and_go_on(models, sst2, config, tmp_path):
    argv = words(
        "sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--max-steps", 4, "--seeds", 2
    )
    said = tune([*argv, "--stop-at-step", 2], expect=75)
    assert "without --stop-at-step it goes on" in said
    said = tune([*argv, "--dry-run"])
    assert f"The run in {tmp_path / 'run' / 'seed-0'} goes on after step00000002." in said
    assert RunFolder(tmp_path / "run").read("STOPPED.json")["why"].startswith("seed 0: stopped at step 2 of 4")
    tune(argv)
    assert not (tmp_path / "run" / "STOPPED.json").exists()
    assert RunFolder(tmp_path / "run").read("DONE.json") == {"seeds": [0, 1]}


def test_a_dry_run(models, sst2, config, tmp_path):
    argv = words(
        "sst2", sst2, models[1], tmp_path / "run", "--deepspeed_config", config, "--max-steps", 4, "--seeds", 2
    )
    said = tune([*argv, "--dry-run"], ranks=2)
    assert "learning rate (at most 0.001)" in said
    assert "memory of a rank" in said and "logits" not in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["dry-run"]
    assert not (tmp_path / "run" / "dry-run" / "log.jsonl").exists()


def test_squad(answering, squad):
    result = RunFolder(answering / "run").read("result.json")
    assert (result["main"], result["metrics"]["f1"] > 0.8) == ("f1", True), result
    found = json.loads((answering / "answers.json").read_text())
    paragraphs = json.loads((squad / "dev-v1.1.json").read_text())["data"][0]["paragraphs"]
    right = [found[p["qas"][0]["id"]] == p["qas"][0]["answers"][0]["text"] for p in paragraphs]
    assert np.mean(right) == pytest.approx(result["metrics"]["exact"])
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(answering / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(answering / "model")
    same = []
    for paragraph in paragraphs:
        question, context = paragraph["qas"][0]["question"], paragraph["context"]
        inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0]
        with torch.no_grad():
            output = theirs(**inputs)
        first = 2 + int((inputs["input_ids"][0] == tokenizer.sep_token_id).nonzero()[0])
        begin, end = (int(x[0, first - 1 : -1].argmax()) + first - 1 for x in (output.start_logits, output.end_logits))
        if begin <= end:
            same.append(context[offsets[begin][0] : offsets[end][1]] == found[paragraph["qas"][0]["id"]])
    assert np.mean(same) > 0.9, "what the best start and end of `transformers` say"


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_production_forms_from_an_export_to_a_report(
    task, exported, sst2, answering, squad, tmp_path, monkeypatch, capsys
):
    """ONNX files score what torch does, and a report shows it, with size and latency."""
    for library in onnx_export.LIBRARIES:
        pytest.importorskip(library, reason="writes and runs ONNX files: the dependency group onnx")
    source, data, more = {"sst2": (exported, sst2, []), "squad": (answering / "model", squad, WINDOWS)}[task]
    model, run = shutil.copytree(source, tmp_path / "model"), tmp_path / "run"
    argv = [*words(task, data, model, run, *more), "--eval-only", "--onnx"]
    assert "has no onnx/model.onnx: `python -m model.export" in tune(argv, expect=2)
    export.add(model, export.Extras(int8=True), None)
    assert "--onnx True: measures latency: start one process alone" in tune(argv, ranks=2, expect=2)
    said = tune(argv)

    result = RunFolder(run).read("result.json")
    main, (stock, onnx, int8) = result["main"], result["production"]
    assert [row["form"] for row in result["production"]] == ["torch fp32", "ONNX", "ONNX int8"]
    assert stock["metrics"] == onnx["metrics"] == result["metrics"]
    assert result["metrics"][main] > 0.8
    assert int8["metrics"][main] == pytest.approx(result["metrics"][main], abs=0.1)
    files = [model / name for name in ("model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx")]
    assert [row["bytes"] for row in result["production"]] == [file.stat().st_size for file in files]
    assert all(row["seconds"] * row["tokens_per_second"] == pytest.approx(row["length"]) for row in (onnx, int8))
    if task == "sst2":
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        texts = [line.split("\t")[0] for line in (sst2 / "dev.tsv").read_text().splitlines()[1:]]
        assert onnx["length"] == pytest.approx(np.mean([len(tokenizer(text)["input_ids"]) for text in texts]))
    assert f"ONNX int8 | {main if task == 'sst2' else 'exact'} {next(iter(int8['metrics'].values())):.4f}" in said

    monkeypatch.setattr(sys, "argv", ["report", "--runs", str(run), "--output", str(tmp_path / "report")])
    report.main()
    printed = [cell.strip() for cell in capsys.readouterr().out.split(" | ")]
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["production"]
    assert [(row["form"], row["task"], row["score"]) for row in rows] == [
        (row["form"], task, row["metrics"][main]) for row in result["production"]
    ]
    at = printed.index("ONNX int8")
    title, size = {"sst2": "SST-2", "squad": "SQuAD 1.1"}[task], f"{int8['bytes'] / 1e6:.1f}"
    assert printed[at + 1 : at + 3] == [f"{title}, {main}", size]
    assert f'<td class="word">{title}, {main}</td><td>{size}</td>' in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_wrong_starts(ranks, models, sst2, squad, exported, config, tmp_path):
    """Each ends with its exit code, a message, and no run folder."""
    bert, student = models
    train = ["--deepspeed_config", config, "--max-steps", 2]
    needed = "needed is one for classification (negative, positive)"
    cases = [
        (words("sst2", sst2, student, tmp_path / "a"), 2, "--deepspeed-config: give a DeepSpeed JSON"),
        (words("sst2", squad, student, tmp_path / "b", *train), 3, "train.tsv"),
        (words("squad", sst2, student, tmp_path / "c", *train), 3, "train-v1.1.json"),
        (words("sst2", sst2, tmp_path, tmp_path / "d", *train), 2, "neither tokenizer.json nor vocab.txt"),
        (words("sst2", sst2, student, tmp_path / "e", *train, "--teacher", bert), 2, needed),
        (words("rte", sst2, student, tmp_path / "f", "--eval-only"), 3, "no column 'sentence1'"),
        (words("sst2", sst2, student, tmp_path / "g", "--eval-only"), 2, needed),
        (words("sst2", sst2, student, tmp_path / "h", *train, "--alpha-ce", 0.3), 2, "means nothing without --teacher"),
        (words("sst2", sst2, student, tmp_path / "i", *train, "--seeds", 0), 2, "--seeds 0: must be positive"),
        (words("sst3", sst2, student, tmp_path / "j", *train), 2, "sst2"),
    ]
    for argv, code, message in cases[:: 1 if ranks == 1 else 4]:
        said = tune(argv, ranks, expect=code)
        assert message in said, (argv, said)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_tasks_are_those_of_the_data_side():
    import typing

    import finetune_dilbert

    assert set(typing.get_args(typing.get_type_hints(finetune_dilbert.Paths)["task"])) == TASKS.keys()
