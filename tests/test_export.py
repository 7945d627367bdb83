"""A run's checkpoint as a Hugging Face folder."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from launch import checkpoint
from launch.errors import CheckpointError, ConfigError
from model import export
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


def test_an_earlier_checkpoint_by_name_or_number(runs, tmp_path):
    export.export(runs["stage1"], tmp_path / "a", "2")
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
    from model import hf

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


def test_command_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", str(runs["stage1"]), "--output", str(tmp_path / "out")])
    export.main()
    assert "logits agree" in capsys.readouterr().out
