"""The DeepSpeed JSON: load, check, resolve `"auto"`, compare with an earlier run's.

DeepSpeed itself passes over unknown top-level keys and nonsense values in silence. What is checked here is what would
otherwise train something else than the file says.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.errors import ConfigError, did_you_mean, did_you_mean_path

Json = dict[str, Any]

KNOWN_KEYS = frozenset(
    [
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "optimizer",
        "scheduler",
        "fp16",
        "bf16",
        "torch_autocast",
        "gradient_clipping",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "disable_allgather",
        "disable_python_gc",
        "flops_profiler",
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "tensorboard",
        "wandb",
        "csv_monitor",
        "comet",
        "checkpoint",
        "data_types",
        "log_level",
        "compile",
        "timers",
        "datastates_ckpt",
    ]
)
UNSUPPORTED_KEYS = {
    "gradient_allreduce_op": "the losses are weighted for DeepSpeed's mean",
    "managed_gradient_accumulation": "a step's micro-batches are dealt by the data stream",
    "data_efficiency": "the data stream is the project's own",
    "curriculum_learning": "the data stream is the project's own",
    "elasticity": "DeepSpeed has removed it",
    "pipeline": "the model is one stage",
    "tensor_parallel": "67M parameters fit on one device",
    "expert_parallel": "there are no experts",
    "sequence_parallel_size": "sequences have 512 tokens at most",
    "data_parallel_size": "every rank is a data-parallel rank",
    "hybrid_engine": "nothing is generated",
    "dataloader_drop_last": "the data stream is the project's own",
    "seq_parallel_communication_data_type": "sequences have 512 tokens at most",
    "use_data_before_expert_parallelism": "there are no experts",
    "autotuning": "choose the micro-batch yourself",
    "compression_training": "DeepSpeed has removed it",
    "sparse_gradients": "DeepSpeed has removed it",
    "amp": "use fp16 or bf16",
    "weight_quantization": "training only",
}

# Objects, each after the one that holds it.
SECTIONS = ("optimizer", "optimizer.params", "scheduler", "scheduler.params", "zero_optimization", "fp16", "bf16",
            "zero_optimization.offload_optimizer", "data_types", "torch_autocast", "flops_profiler",
            "activation_checkpointing", "aio", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet",
            "checkpoint", "compile", "timers", "datastates_ckpt")  # fmt: skip

# Where "auto" has a meaning: what a flag or the launch determines.
AUTO_PATHS = ("gradient_accumulation_steps", "scheduler.params.total_num_steps", "scheduler.params.warmup_num_steps")


def load(path: Path, device: str) -> Json:
    """Read a DeepSpeed JSON file and check all that does not depend on the number of ranks.

    Args:
        path: of the file, or of a run's `config.json`: then it is the JSON that the run was given.
        device: "cpu" or "cuda", what it will train on.

    Raises:
        ConfigError: not JSON, or a key or value that DeepSpeed would pass over or misread; the key is named.
    """
    config = read(path)
    try:
        for check in (_check_keys, _check_auto, _check_values, _check_precision, _check_optimizer, _check_scheduler):
            check(config)
        _check_device(config, device)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def read(path: Path) -> Json:
    """A DeepSpeed JSON, or the one in a run's record, unchecked.

    Raises:
        ConfigError: it can't be read, or is no JSON object.
    """
    try:
        config = json.loads(path.read_text(), object_pairs_hook=_refuse_duplicates)
    except OSError as error:
        raise ConfigError(f"--deepspeed-config {path}: {error.strerror}{did_you_mean_path(path)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--deepspeed-config {path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"--deepspeed-config {path}: must be a JSON object")
    recorded = config.get("deepspeed_config") if "flags" in config else None
    return recorded if isinstance(recorded, dict) else config


def refuse_changed(path: Path | None, recorded: Json, record: Path) -> None:
    """A DeepSpeed JSON is still what it was when a run was recorded; keys that a resume may change may differ.

    Args:
        recorded: the JSON as the run was given it.
        record: the run's `config.json`.

    Raises:
        ConfigError: it is not, or it can't be read any more.
    """
    if path is None:
        return
    now = f", or --deepspeed-config {path} for what it is now"
    try:
        rows = [f"key '{key}': was {old!r}, is {new!r}" for key, old, new in changes(recorded, read(path))]
    except ConfigError as error:
        rows, now = [str(error)], ""
    if rows:
        raise ConfigError(
            f"--config {record}: its DeepSpeed JSON, {path}, is not what it was:\n  " + "\n  ".join(rows) + "\n"
            f"Give --deepspeed-config {record} for what the run was given{now}"
        )


def resolve(config: Json, ranks: int, max_steps: int, warmup_steps: int) -> Json:
    """The JSON that DeepSpeed gets: every "auto" replaced, the three batch sizes explicit, the peak lr stated.

    Raises:
        ConfigError: the batch sizes and the number of ranks, or the schedule and the flags, contradict each other.
    """
    config = json.loads(json.dumps(config))
    config.update(batch_sizes(config, ranks))
    params = config.get("scheduler", {}).get("params", {})
    for key, value in (("total_num_steps", max_steps), ("warmup_num_steps", warmup_steps)):
        if params.get(key, value) not in ("auto", value):
            raise ConfigError(
                f"key 'scheduler.params.{key}': {params[key]} contradicts the flags, which say {value}; write \"auto\""
            )
        if key in params:
            params[key] = value
    if config.get("scheduler", {}).get("type") in ("WarmupLR", "WarmupDecayLR"):
        params["warmup_max_lr"] = config["optimizer"]["params"]["lr"]  # DeepSpeed's own default is 0.001
    return config


def precision(config: Json) -> str:
    """ "fp16", "bf16" or "fp32"."""
    return next((name for name in ("fp16", "bf16") if _enabled(config, name)), "fp32")


def stage(config: Json) -> int:
    """ZeRO stage."""
    return config.get("zero_optimization", {}).get("stage", 0)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, dict):
        return {prefix: config}
    inner = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {path: value for part in inner for path, value in part.items()}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise ValueError(f"key '{twice}' stands twice")
    return dict(pairs)


def _check_keys(config: Json) -> None:
    for key in config:
        if key in UNSUPPORTED_KEYS:
            raise ConfigError(f"key '{key}' is not supported: {UNSUPPORTED_KEYS[key]}")
        if key not in KNOWN_KEYS:
            raise ConfigError(f"unknown key '{key}'{did_you_mean(key, KNOWN_KEYS)}")
    for path in SECTIONS:
        value: Any = config
        for key in path.split("."):
            value = value.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"key '{path}': must be an object, not {value!r}")


def _check_auto(config: Json) -> None:
    for path, value in flatten(config).items():
        if value == "auto" and path not in AUTO_PATHS:
            raise ConfigError(f"key '{path}': \"auto\" has no meaning here, only in {', '.join(AUTO_PATHS)}")


def _check_values(config: Json) -> None:
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        value = config.get(key, 1)
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31):
            raise ConfigError(f"key '{key}': {value!r} is no positive whole number (less than 2^31)")
    every = config.get("steps_per_print", 1)
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ConfigError(f"key 'steps_per_print': {every!r} is no positive whole number")
    clipping = config.get("gradient_clipping", 0)
    if not isinstance(clipping, int | float) or not 0 <= clipping < math.inf:
        raise ConfigError(f"key 'gradient_clipping': {clipping!r} must be a number, 0 (off) or more")
    for name in ("fp16", "bf16"):
        enabled = config.get(name, {}).get("enabled", False)
        if not isinstance(enabled, bool):
            raise ConfigError(f"key '{name}.enabled': {enabled!r} must be true or false")
    for name in ("optimizer", "scheduler"):
        if name in config and not isinstance(config[name].get("type"), str):
            raise ConfigError(f"key '{name}.type': {config[name].get('type')!r} must be a name in quotes")
    if isinstance(stage(config), bool) or stage(config) not in (0, 1, 2):
        raise ConfigError(f"key 'zero_optimization.stage': {stage(config)!r}; stages 0, 1 and 2 are supported")


def _check_precision(config: Json) -> None:
    if _enabled(config, "fp16") and _enabled(config, "bf16"):
        raise ConfigError("keys 'fp16' and 'bf16': enable one of them")
    if stage(config) == 0 and precision(config) != "fp32":
        raise ConfigError(
            f"key '{precision(config)}': needs ZeRO; without it DeepSpeed does not scale the loss (fp16) and keeps no "
            'fp32 weights (bf16). Say "zero_optimization": {"stage": 1}'
        )
    for section, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if config.get(section, {}).get(key) is False:
            raise ConfigError(f"key '{section}.{key}': false would let a gradient that is not finite reach the weights")


def _check_optimizer(config: Json) -> None:
    optimizer = config.get("optimizer", {})
    if "type" not in optimizer:
        raise ConfigError("key 'optimizer.type': missing; for example \"AdamW\"")
    rate = optimizer.get("params", {}).get("lr")
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
        raise ConfigError(f"key 'optimizer.params.lr': {rate!r} must be a positive number (the peak learning rate)")


def _check_scheduler(config: Json) -> None:
    """DeepSpeed's warm-up schedulers default to a peak of 0.001 and a logarithmic rise: both must be meant."""
    kind = config.get("scheduler", {}).get("type", "")
    params = config.get("scheduler", {}).get("params", {})
    if not kind.startswith("Warmup"):
        return
    if params.get("warmup_type") not in ("linear", "log"):
        raise ConfigError(
            f'key \'scheduler.params.warmup_type\': {params.get("warmup_type")!r}; say "linear" (or "log", which '
            f"DeepSpeed takes where nothing is said)"
        )
    peak = config["optimizer"]["params"]["lr"]
    if params.get("warmup_max_lr", peak) != peak:
        raise ConfigError(
            f"key 'scheduler.params.warmup_max_lr': {params['warmup_max_lr']} contradicts optimizer.params.lr {peak}; "
            "leave it out, the optimizer's lr is the peak"
        )


def _check_device(config: Json, device: str) -> None:
    """On a CPU, DeepSpeed would try to build FusedAdam for minutes."""
    optimizer = config["optimizer"]
    adam = optimizer["type"].lower() in ("adam", "adamw") and not optimizer["params"].get("torch_adam")
    offload = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    if device == "cpu" and adam and not offload:
        raise ConfigError("key 'optimizer.params.torch_adam': must be true on a CPU, FusedAdam is for GPUs")


def batch_sizes(config: Json, ranks: int) -> Json:
    """The three sizes of DeepSpeed's equation train = micro x accumulation x ranks, from two of them.

    Raises:
        ConfigError: they contradict each other, or say nothing of the global batch.
    """
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    train, micro, accumulation = (config.get(name) for name in names)
    accumulation = None if accumulation == "auto" else accumulation
    if train is None and micro is not None:
        train = micro * (accumulation or 1) * ranks
    elif train is not None and micro is None:
        micro = train // ((accumulation or 1) * ranks)
    elif train is None:
        raise ConfigError("key 'train_batch_size': missing (sequences per optimizer step, over all ranks)")
    assert train is not None and micro is not None
    if accumulation is None:
        if micro < 1 or train % (micro * ranks):
            raise ConfigError(f"{names[0]} {train} is no multiple of {names[1]} {micro} x {ranks} rank(s)")
        accumulation = train // (micro * ranks)
    if micro * accumulation * ranks != train:
        raise ConfigError(
            f"train_batch_size {train} != train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps "
            f"{accumulation} x {ranks} rank(s) = {micro * accumulation * ranks}"
        )
    return dict(zip(names, (train, micro, accumulation), strict=True))


def _enabled(config: Json, section: str) -> bool:
    return bool(config.get(section, {}).get("enabled", False))


# A resume may change these keys: they say how a step is computed, not what it computes.
FREE_KEYS = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print", "wall_clock_breakdown",
             "zero_optimization.", "tensorboard.", "wandb.", "csv_monitor.", "comet.", "flops_profiler.", "log_level",
             "comms_logger.", "memory_breakdown", "dump_state", "activation_checkpointing.", "aio.", "checkpoint.",
             "timers.", "compile.", "disable_python_gc")  # fmt: skip


def changes(old: Json, new: Json) -> Iterator[tuple[str, Any, Any]]:
    """Keys that a resume must not change in silence: (path, old value, new value)."""
    before, after = flatten(old), flatten(new)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and not path.startswith(FREE_KEYS):
            yield path, before.get(path), after.get(path)
