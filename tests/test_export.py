"""A run's checkpoint as a Hugging Face folder."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import reported
import torch
import transformers
from huggingface_hub import metadata_load
from jobs import config_file, flags, make_models
from ranks import run_ranks, train
from safetensors.torch import load_file, save_file

from launch import checkpoint, hub
from launch.errors import CheckpointError, ConfigError
from launch.run_folder import HEAD, MODEL, TOKENIZER, RunFolder
from model import export, heads, hf, onnx_export
from model.heads import TaskHead
from model.pretrained import DilBertForMaskedLM

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset_folder) -> dict[str, Path]:
    """Distillation at each stage on two ranks, and a BERT made without a teacher in bf16."""
    folder = tmp_path_factory.mktemp("export")
    teacher, student = make_models(folder)
    found = {}
    for name, models, options in (
        ("stage0", (teacher, student), {"stage": 0}),
        ("stage1", (teacher, student), {"stage": 1}),
        ("stage2", (teacher, student), {"stage": 2}),
        ("bert", (None, teacher), {"stage": 1, "precision": "bf16", "data_types": {"grad_accum_dtype": "fp32"}}),
    ):
        argv = flags(
            config_file(folder / f"{name}.json", **options), dataset_folder, models, folder / name, "--max-steps", "3"
        )
        code, output = run_ranks(2, train, [*argv, "--checkpoint-interval", "2"])[0]
        assert code == 0, output
        found[name] = folder / name
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("stage0", "DistilBert"), ("stage1", "DistilBert"), ("stage2", "DistilBert"), ("bert", "Bert")],
)
def test_stock_transformers_loads_it(name, kind, runs, tmp_path):
    output = tmp_path / "out"
    assert export.export(runs[name], output) < 1e-5
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert type(model).__name__ == f"{kind}ForMaskedLM"
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    answer = transformers.pipeline("fill-mask", model=str(output))("the [MASK] of a house")
    assert answer[0]["token"] < len(tokenizer)
    # The weights are those that were trained: fp32 masters, not the model's 16-bit copy.
    exported = DilBertForMaskedLM.from_pretrained(output).state_dict()
    source = checkpoint.verify(runs[name] / "checkpoints" / checkpoint.tag(3))
    for key, value in export.student_weights(source).items():
        assert torch.equal(exported[key], value), key
    if name == "bert":
        masters = exported["layers.0.qkv.weight"]
        assert not torch.equal(masters, masters.bfloat16().float())


def test_stages_export_the_same_student(runs, tmp_path):
    states = []
    for stage in (0, 1, 2):
        export.export(runs[f"stage{stage}"], tmp_path / f"out{stage}")
        states.append(DilBertForMaskedLM.from_pretrained(tmp_path / f"out{stage}").state_dict())
    for name, value in states[0].items():
        for other in states[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


def test_the_card_states_facts(runs, tmp_path):
    export.export(runs["stage1"], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    flags_of_run = json.loads((runs["stage1"] / "config.json").read_text())["flags"]
    assert flags_of_run["temperature"] == 2.0
    for word in (
        "distilled from `teacher`",
        "| steps | 3 |",
        "pipeline_tag: fill-mask",
        '"temperature": 2.0',
        transformers.__version__,
    ):
        assert word in card


def test_an_earlier_checkpoint_by_name_or_number(runs, tmp_path, capsys):
    export.export(runs["stage1"], tmp_path / "a", "2")
    assert "step00000002: step 2 of 3: the run is not done" in capsys.readouterr().err
    export.export(runs["stage1"], tmp_path / "b", "step00000002")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    with pytest.raises(CheckpointError, match=r"step00000002, step00000003"):
        export.export(runs["stage1"], tmp_path / "c", "7")
    with pytest.raises(CheckpointError, match="not in"):
        export.export(runs["stage1"], tmp_path / "c", "../stage2")
    assert not (tmp_path / "c").exists()


def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["stage2"], run)
    path = run / "checkpoints" / checkpoint.tag(3) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="zero_pp_rank_1"):
        export.export(run, tmp_path / "out", "3")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_does_not_pass_is_not_left(runs, tmp_path, monkeypatch):
    honest = hf.dump_state
    monkeypatch.setattr(
        hf, "dump_state", lambda module, config: {k: v * 1.01 for k, v in honest(module, config).items()}
    )
    with pytest.raises(CheckpointError, match="differ"):
        export.export(runs["stage1"], tmp_path / "out")
    monkeypatch.setattr(hf, "dump_state", lambda module, config: dict(list(honest(module, config).items())[:-1]))
    with pytest.raises(CheckpointError, match="missing_keys"):
        export.export(runs["stage1"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_or_exists(runs, tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        export.export(tmp_path, tmp_path / "out")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export.export(runs["stage1"], tmp_path / "there")


def test_of_several_seeds_it_names_the_one_nearest_to_the_median(tmp_path):
    scores = {0: 0.9, 1: 0.8, 2: 0.84}
    for seed in scores:
        (tmp_path / "run" / f"seed-{seed}").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"seeds: seed-0, seed-1, seed-2; give one of them$"):
        export.export(tmp_path / "run", tmp_path / "out")
    for seed, score in scores.items():
        reported.tuned(tmp_path / "run" / f"seed-{seed}", "start", score=score, seed=seed)
    with pytest.raises(ConfigError, match=r"give one of them, such as \S+/run/seed-2, the nearest to their median$"):
        export.export(tmp_path / "run", tmp_path / "out")


def test_the_card_has_the_name_that_the_model_gets(runs, tmp_path):
    """Of its folder, until it is on the hub."""
    card = tmp_path / "out" / "README.md"
    export.export(runs["stage1"], tmp_path / "out")
    assert "\n# out\n" in card.read_text()
    export.add(tmp_path / "out", export.Extras(), "me/dilbert")
    assert "\n# dilbert\n" in card.read_text()


def command(monkeypatch, *words: object) -> None:
    """`python -m model.export`."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, words)])
    export.main()


def test_command_line(runs, tmp_path, monkeypatch, capsys):
    command(monkeypatch, runs["stage1"], "--output", tmp_path / "out", "--license", "mit", "--language", "en", "de")
    assert "logits agree" in capsys.readouterr().out
    metadata = metadata_load(tmp_path / "out" / "README.md")
    assert (metadata["license"], metadata["language"]) == ("mit", ["en", "de"])


def test_the_report_tells_of_the_run(runs, tmp_path):
    export.export(runs["stage1"], tmp_path / "out", "2")
    body = json.loads((tmp_path / "out" / "report.json").read_text())
    record = json.loads((runs["stage1"] / "config.json").read_text())
    log = [json.loads(line) for line in (runs["stage1"] / "log.jsonl").read_text().splitlines()]
    found = body["export"]
    assert found["step"] == 2
    assert (found["flags"], found["fingerprint"]) == (record["flags"], record["fingerprint"])
    assert found["deepspeed"]["train_batch_size"] == 16
    assert found["environment"]["ranks"] == 2
    assert found["figures"]["loss"] == next(row["loss"] for row in log if row["step"] == 2)
    assert found["tokens"] == pytest.approx(
        sum(row["tokens_per_second"] * row["seconds_per_step"] for row in log if row["step"] <= 2)
    )
    weights = export.student_weights(checkpoint.verify(runs["stage1"] / "checkpoints" / checkpoint.tag(2)))
    assert found["model"]["parameters"] == sum(value.numel() for value in weights.values())
    assert body["pretraining"][0]["curves"]["loss"]["step"] == [1, 2]


def test_a_folder_that_is_there(runs, tmp_path, monkeypatch, capsys):
    """It is verified, and its card made again; nothing else changes."""
    folder = tmp_path / "out"
    export.export(runs["stage1"], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command(monkeypatch, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "logits agree" in capsys.readouterr().out
    command(monkeypatch, folder, "--language", "en")
    assert metadata_load(folder / "README.md")["language"] == ["en"]
    command(monkeypatch, folder, "--license", "mit")
    assert metadata_load(folder / "README.md")["language"] == ["en"]
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"README.md", "report.json"}


def test_a_folder_of_others(tmp_path, monkeypatch):
    """Weights that nothing takes are no error there; it has no report, and gets none."""
    _, student = make_models(tmp_path)
    weights = load_file(student / "model.safetensors")
    save_file(weights | {"pooler.weight": torch.zeros(3)}, student / "model.safetensors", metadata={"format": "pt"})
    files = sorted(path.name for path in student.iterdir())
    command(monkeypatch, student, "--language", "en")
    assert sorted(path.name for path in student.iterdir()) == files
    with pytest.raises(ConfigError, match=r"--report .*has no report\.json"):
        command(monkeypatch, student, "--report", tmp_path / "report.json")
    del weights["vocab_transform.weight"]
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"vocab_transform\.weight"):
        command(monkeypatch, student)


def test_what_the_command_line_refuses(runs, tmp_path, monkeypatch):
    for words, message in (
        ((runs["stage1"],), r"--output: needed to export a run"),
        ((tmp_path,), r"--output: needed to export a run"),
        ((runs["stage1"], "--checkpoint", "2"), "--checkpoint 2: is a run's"),
        ((runs["stage1"], "--output", tmp_path / "out", "--language", "English"), "--language English: must be"),
        ((runs["stage1"], "--output", tmp_path / "out", "--push-to-hub", "mine"), "--push-to-hub mine: must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            command(monkeypatch, *words)
    assert list(tmp_path.iterdir()) == []


# Fine-tuned runs.

HEADS = {
    "classification": TaskHead("classification", ("ham", "spam", "eggs")),
    "regression": TaskHead("regression"),
    "span": TaskHead("span"),
}
TUNED = [(family, kind) for family in ("teacher", "student") for kind in HEADS]


def tune(folder: Path) -> None:
    """A job that fine-tunes a BERT and a student on each kind of task, the student under that BERT, as the ranks of a
    script would: a few steps, a checkpoint, and the record of the run."""
    from tiny_models import pack, sequences

    from launch import distributed, ds_config
    from launch.run_folder import environment
    from model.distiller import parameter_groups
    from model.finetuner import FineTuner, TaskInputs, TaskObjective

    world = distributed.start(None)
    raw = ds_config.load(folder / "tune.json", "cpu")
    config = ds_config.resolve(raw, world.ranks, 4, 1)
    packed = pack(sequences([9, 5, 12, 7], vocabulary=30, seed=world.rank))
    inputs = {name.removesuffix("_T"): value for name, value in packed.items()}
    labels = {
        "classification": torch.tensor([0, 1, 2, 1]),
        "regression": torch.tensor([0.5, -1.0, 2.0, 0.0]),
        "span": torch.tensor([[0, 0], [1, 3], [4, 11], [2, 2]]),
    }
    for family, kind in TUNED:
        torch.manual_seed(0)
        student = heads.load(folder / family, HEADS[kind].kind, HEADS[kind].labels).train()
        teacher = heads.load(folder / "teacher", HEADS[kind].kind, HEADS[kind].labels) if family == "student" else None
        tuner = FineTuner(student, teacher, TaskObjective(), parts=2)
        engine = distributed.initialise(tuner, parameter_groups(tuner), config)
        types = (packed["positions_T"] > 3).long()
        batch = TaskInputs(**inputs, token_types=types, labels=labels[kind], step_examples=8)
        for _ in range(4):  # the rate of the first two is 0
            loss, _ = engine(batch)
            engine.backward(loss)
            engine.step()
        run = RunFolder(folder / f"{family}-{kind}")
        checkpoint.save(engine, run.checkpoints)
        if world.is_main:
            record = {"flags": {"data": None, "task": kind, "teacher": None}, "fingerprint": "f"}
            record |= {MODEL: student.config.to_dict(), HEAD: student.task.to_dict()}
            run.begin(config=record, environment=environment(world))
            shutil.copytree(folder / "tokenizer", run.path / TOKENIZER)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """Runs by the names `student-span`, `teacher-regression` ..."""
    folder = tmp_path_factory.mktemp("tuned")
    make_models(folder)
    config_file(folder / "tune.json", micro=4, batch=8)
    run_ranks(2, tune, folder)
    return folder


@pytest.mark.parametrize(("family", "kind"), TUNED)
def test_stock_transformers_loads_a_fine_tuned_run(family, kind, tuned, tmp_path):
    """The class, the trained weights and the labels' names; with token types where there are any."""
    run, output = tuned / f"{family}-{kind}", tmp_path / "out"
    assert export.export(run, output) < 1e-5
    suffix = "QuestionAnswering" if kind == "span" else "SequenceClassification"
    auto = getattr(transformers, f"AutoModelFor{suffix}")
    model, info = auto.from_pretrained(output, output_loading_info=True)
    assert type(model).__name__ == {"teacher": "Bert", "student": "DistilBert"}[family] + f"For{suffix}"
    assert not any(info.values()), info
    if kind == "classification":
        assert model.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    exported = heads.load(output, HEADS[kind].kind, HEADS[kind].labels, known=True)
    weights = export.student_weights(checkpoint.newest(run / "checkpoints"))
    assert weights.keys() == exported.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in exported.state_dict().items())
    start = heads.load(tuned / family, HEADS[kind].kind, HEADS[kind].labels)
    assert not torch.equal(start.layers[0].qkv.weight, exported.layers[0].qkv.weight)  # it was trained
    assert (output / "README.md").exists()


@pytest.mark.parametrize("family", ["teacher", "student"])
def test_the_pipeline_names_labels(family, tuned, tmp_path):
    for kind in ("classification", "regression"):
        export.export(tuned / f"{family}-{kind}", tmp_path / kind)
    texts = ["the cat is in the house", "walking to a tree ."]
    model = heads.load(tmp_path / "classification", "classification", HEADS["classification"].labels, known=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "classification")
    with torch.no_grad():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for text in texts]
    found = transformers.pipeline("text-classification", model=str(tmp_path / "classification"))(texts, top_k=None)
    for answers, probabilities in zip(found, expected, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        wanted = dict(zip(HEADS["classification"].labels, probabilities.tolist(), strict=True))
        assert scores == pytest.approx(wanted, abs=1e-5)
    # A number comes out as it is: no sigmoid.
    model = heads.load(tmp_path / "regression", "regression", known=True)
    (answer,) = transformers.pipeline("text-classification", model=str(tmp_path / "regression"))(texts[0])
    with torch.no_grad():
        number = float(model(**tokenizer(texts[0], return_tensors="pt")).logits)
    assert answer["score"] == pytest.approx(number, abs=1e-5)


@pytest.mark.parametrize("family", ["teacher", "student"])
def test_a_question_is_answered(family, tuned, tmp_path):
    """`transformers` 5 has no pipeline for it: tokenizer and model as they are, pair and token types included."""
    export.export(tuned / f"{family}-span", tmp_path / "out")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("the cat", "it is in the house with the dog .", return_tensors="pt")
    mine = heads.load(tmp_path / "out", "span", known=True)
    assert ("token_type_ids" in batch) == (family == "teacher")
    with torch.no_grad():
        expected, found = theirs(**batch), mine(**batch)
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["teacher", "student"])
def test_its_tokenizer_gives_what_its_model_takes(family, tuned, tmp_path):
    """Also where the model's positions end."""
    export.export(tuned / f"{family}-classification", tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer("the cat " * 300, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, model.config.max_position_embeddings) == (1, 80)
    assert batch.keys() <= inspect.signature(model.forward).parameters.keys()
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "out"))
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1).max()
    (answer,) = classify("the cat " * 300, truncation=True)
    assert answer["score"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", ["teacher", "student"])
def test_the_onnx_file_takes_what_its_tokenizer_gives(family, tuned, tmp_path):
    for library in onnx_export.LIBRARIES:
        pytest.importorskip(library, reason="writes and runs ONNX files: the dependency group onnx")
    import onnxruntime

    export.export(tuned / f"{family}-span", tmp_path / "out", extras=export.Extras(onnx=True))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    pair = ("the cat", "it is in the house with the dog .")
    found = session.run(["start_logits"], dict(tokenizer(*pair, return_tensors="np")))
    with torch.no_grad():
        expected = model(**tokenizer(*pair, return_tensors="pt")).start_logits
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=0, atol=1e-5)


def test_a_tokenizer_that_does_not_fit(tuned, tmp_path, monkeypatch, capsys, caplog):
    """Of an export it is an error; of a folder of others, a line warns."""
    monkeypatch.setattr(hf, "write_tokenizer", lambda folder, source, config: hub.copy_tokenizer(source, folder))
    fault = (
        r"tokenizer_config\.json: the tokenizer gives token_type_ids, which the model does not take; write \"model_in"
    )
    with pytest.raises(CheckpointError, match=fault):
        export.export(tuned / "student-span", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert export.export(tuned / "teacher-span", tmp_path / "out") < 1e-5
    command(monkeypatch, tmp_path / "out")
    assert caplog.text == ""
    command(monkeypatch, tuned / "student")
    assert re.search(fault, caplog.text)
    shutil.copytree(tuned / "student", tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    command(monkeypatch, tmp_path / "damaged")
    assert "damaged: its model does not run on what its tokenizer gives: " in caplog.text


def test_a_head_that_the_checkpoint_does_not_have(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned / "student-classification", run)
    record = json.loads((run / "config.json").read_text())
    for head in ({"kind": "classification", "labels": ["a", "b"]}, {"kind": "span", "labels": []}, None):
        (run / "config.json").write_text(json.dumps(record | {HEAD: head}))
        with pytest.raises(CheckpointError, match="not the weights of this architecture"):
            export.export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["teacher-classification", "student-regression", "teacher-span"])
def test_a_fine_tuned_folder_that_does_not_pass_is_not_left(name, tuned, tmp_path, monkeypatch):
    honest = hf.dump_state

    def changed(module, config):
        """The head's last layer is not what it was."""
        state = honest(module, config)
        return state | {key: value * 1.01 for key, value in state.items() if key.startswith(("classifier", "qa_"))}

    monkeypatch.setattr(hf, "dump_state", changed)
    with pytest.raises(CheckpointError, match="differ"):
        export.export(tuned / name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
