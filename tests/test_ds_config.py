"""Checking, resolving and comparing DeepSpeed JSON."""

import json
from pathlib import Path

import pytest
from jobs import config_file

from launch import ds_config
from launch.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[1] / "ds_configs").glob("*.json"))


def test_what_deepspeed_calls_its_keys_is_known():
    """Every key of DeepSpeed's own constants that its configuration reads is either known or refused with a reason."""
    from deepspeed.runtime import constants

    names = [
        "TRAIN_BATCH_SIZE", "OPTIMIZER", "SCHEDULER", "FP16", "BFLOAT16", "GRADIENT_CLIPPING",
        "PRESCALE_GRADIENTS", "GRADIENT_PREDIVIDE_FACTOR", "GRADIENT_ALLREDUCE_OP", "STEPS_PER_PRINT",
        "WALL_CLOCK_BREAKDOWN", "DATA_TYPES", "MEMORY_BREAKDOWN", "DUMP_STATE", "CHECKPOINT",
        "COMMUNICATION_DATA_TYPE", "ZERO_ALLOW_UNTESTED_OPTIMIZER", "ZERO_FORCE_DS_CPU_OPTIMIZER",
        "TORCH_AUTOCAST", "DISABLE_ALLGATHER", "DISABLE_PYTHON_GC", "LOG_LEVEL",
    ]  # fmt: skip
    known = ds_config.KNOWN_KEYS | ds_config.UNSUPPORTED_KEYS.keys()
    assert {getattr(constants, name) for name in names} <= known


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_sound_and_explained(path):
    config = ds_config.load(path, "cuda")
    for ranks in (1, 2):
        resolved = ds_config.resolve(config, ranks, max_steps=1000, warmup_steps=50)
        assert "auto" not in ds_config.flatten(resolved).values()
        assert resolved["scheduler"]["params"]["warmup_max_lr"] == config["optimizer"]["params"]["lr"]
        if ds_config.precision(config) == "bf16":
            assert config["data_types"]["grad_accum_dtype"] == "fp32"
    explained = (path.parent / "README.md").read_text()
    assert path.name in explained
    for key in ds_config.flatten(config):
        assert key.rpartition(".")[2] in explained, f"{key} is not explained in ds_configs/README.md"


def test_resolve_fills_what_flags_determine(tmp_path):
    config = ds_config.load(config_file(tmp_path / "c.json", batch=32, micro=4), "cpu")
    resolved = ds_config.resolve(config, ranks=2, max_steps=100, warmup_steps=7)
    assert resolved["gradient_accumulation_steps"] == 4
    assert resolved["scheduler"]["params"] == {
        "warmup_type": "linear", "warmup_num_steps": 7, "total_num_steps": 100, "warmup_max_lr": 1e-3,
    }  # fmt: skip
    assert config["gradient_accumulation_steps"] == "auto", "the file's content is left as it is"


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}, 2, (64, 8, 4)),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, 2, (64, 8, 4)),
        ({"train_batch_size": 64}, 2, (64, 32, 1)),
        ({"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4}, 2, (64, 8, 4)),
        ({"train_micro_batch_size_per_gpu": 8}, 2, (16, 8, 1)),
    ],
)
def test_batch_equation_as_deepspeed_solves_it(given, ranks, expected):
    assert tuple(ds_config.batch_sizes(given, ranks).values()) == expected


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}, 3),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 3}, 2),
        ({"train_batch_size": 2, "train_micro_batch_size_per_gpu": 8}, 1),
        ({"train_batch_size": 1}, 2),
        ({}, 1),
    ],
)
def test_batch_equation_refused(given, ranks):
    with pytest.raises(ConfigError, match="train_batch_size"):
        ds_config.batch_sizes(given, ranks)


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{", '{"fp16": {}, "fp16": {}}', '{"fp16": 3}', '{"optimizer": []}'])
def test_not_an_object_as_expected(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.json"):
        ds_config.load(tmp_path / "c.json", "cpu")


@pytest.mark.parametrize("key", sorted(ds_config.UNSUPPORTED_KEYS))
def test_unsupported_keys_say_why(key, tmp_path):
    with pytest.raises(ConfigError, match=f"'{key}' is not supported: "):
        ds_config.load(config_file(tmp_path / "c.json", **{key: {}}), "cpu")


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
def test_batch_sizes_are_whole_numbers(value, tmp_path):
    path = config_file(tmp_path / "c.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train_batch_size": value}))
    with pytest.raises(ConfigError, match="train_batch_size"):
        ds_config.load(path, "cpu")


def test_changes_see_what_matters():
    old = {"optimizer": {"params": {"lr": 1.0}}, "zero_optimization": {"stage": 1}, "train_micro_batch_size_per_gpu": 4}
    new = {"optimizer": {"params": {"lr": 2.0}}, "zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}
    assert list(ds_config.changes(old, new)) == [("fp16.enabled", None, True), ("optimizer.params.lr", 1.0, 2.0)]


def test_precision_and_stage():
    assert ds_config.precision({}) == "fp32"
    assert ds_config.precision({"bf16": {"enabled": True}}) == "bf16"
    assert ds_config.precision({"fp16": {"enabled": False}}) == "fp32"
    assert ds_config.stage({}) == 0
