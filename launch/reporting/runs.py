"""Run folders as a report reads them: what was fine-tuned, what was pre-trained, and what is left out, and why."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import ds_config, hub
from launch.args import option
from launch.errors import ConfigError, DataError, did_you_mean_path
from launch.log import LOG, read_log

Row = dict[str, Any]
RESULT = {"task": str, "main": str, "metrics": dict, "model": str, "teacher": str | None, "seed": int | None,
          "step": int | None, "examples": dict, "hashes": dict | None, "precision": str | None,
          "production": list | None}  # fmt: skip
FORM = {"form": str, "bytes": int, "length": int | float, "seconds": int | float, "tokens_per_second": int | float,
        "metrics": dict, "machine": str}  # fmt: skip
CONFIG = {"flags": dict, "model": dict, "deepspeed_config": dict}
MOVED_ASIDE = re.compile(r"\.old-\d+$")  # what --fresh calls an earlier run


@dataclass(frozen=True)
class Tuned:
    """A model's figures on a task, from `finetune_dilbert.py`.

    Attributes:
        main: the metric that counts, one of `metrics`; these are fractions.
        teacher: whose outputs were learnt, too; None: nobody's.
        seed, step: None where a model was measured as it was.
        examples: how many there are, by name of the split.
        hashes: of inputs and labels, by name of the set; {}: not recorded.
        model_type: "bert" or "distilbert"; None: not recorded.
        flags, deepspeed: as the run was started; {} where a model was measured as it was.
        precision: of the weights that were measured, "fp32", "bf16" or "fp16"; None: not recorded.
        production: what `--onnx` measured, see `launch.task_forms.measure`.
    """

    path: Path
    task: str
    main: str
    metrics: dict[str, float]
    model: str
    teacher: str | None
    seed: int | None
    step: int | None
    examples: dict[str, int]
    hashes: dict[str, str]
    model_type: str | None
    log: list[Row]
    flags: dict[str, Any]
    deepspeed: dict[str, Any]
    precision: str | None
    production: list[Row]


@dataclass(frozen=True)
class PreTrained:
    """A run of `train_dilbert.py`: its records, as they are, and its log."""

    path: Path
    flags: dict[str, Any]
    fingerprint: str | None
    environment: dict[str, Any]
    log: list[Row]


@dataclass(frozen=True)
class Runs:
    """All that were given.

    Attributes:
        left_out: folder and reason.
    """

    tuned: tuple[Tuned, ...] = ()
    pretrained: tuple[PreTrained, ...] = ()
    left_out: tuple[tuple[Path, str], ...] = ()

    def pair(self) -> tuple[str | None, str | None]:
        """Teacher and student, where it is plain who they are: the only BERT that was fine-tuned, and the only
        DistilBERT."""
        return self._only("bert"), self._only("distilbert")

    def _only(self, model_type: str) -> str | None:
        names = {identity(run.model): run.model for run in self.tuned if run.model_type == model_type}
        return next(iter(names.values())) if len(names) == 1 else None


def identity(name: str) -> Path:
    """The same for all ways to write a model folder or hub name."""
    return Path(hub.resolve(name)).resolve()


def read(folders: Iterable[Path]) -> Runs:
    """The runs of these folders, each once; a folder of seeds stands for the runs in it.

    Raises:
        ConfigError: no such folder.
        DataError: a record is damaged, or contradicts another.
    """
    tuned, pretrained, left_out = [], [], []
    for folder in _each(folders):
        run = _read(folder)
        if isinstance(run, Tuned):
            tuned.append(run)
        elif isinstance(run, PreTrained):
            pretrained.append(run)
        else:
            left_out.append((folder, run))
    _check_alike(tuned)
    return Runs(tuple(tuned), tuple(pretrained), tuple(left_out))


def _each(folders: Iterable[Path]) -> list[Path]:
    """Without repetition, in their order; of a folder of seeds, those that its result.json has the median of."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"--runs {folder}: no such folder{did_you_mean_path(folder)}")
        named = read_json(folder / "result.json", seeds=dict).get("seeds", {})
        seeds = [path for path in sorted(folder.glob("seed-*/")) if not named or path.name.partition("-")[2] in named]
        for path in seeds or [folder]:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _read(folder: Path) -> Tuned | PreTrained | str:
    """A run, or why it is left out."""
    config, result = read_json(folder / "config.json", **CONFIG), read_json(folder / "result.json")
    flags = config.get("flags", {})
    if not result and not flags:
        return "no run: neither result.json nor a config.json with flags"
    if MOVED_ASIDE.search(folder.name):
        return "moved aside by --fresh"
    as_it_is = bool(result) and result.get("step") is None
    if not as_it_is and not (folder / "DONE.json").exists():
        stopped = read_json(folder / "STOPPED.json")
        return f"not finished: stopped at step {stopped.get('step')}" if stopped else "not finished: no DONE.json"
    if not result and "task" in flags:
        raise DataError(f"{folder}: DONE.json is there, but no result.json; run the same command again")
    log = read_log(folder / LOG)
    if result:
        return _tuned(folder, config, result, log)
    environment = read_json(folder / "environment.json", packages=dict, data=list)
    return PreTrained(folder, flags, config.get("fingerprint"), environment, log)


def _tuned(folder: Path, config: dict[str, Any], result: dict[str, Any], log: list[Row]) -> Tuned:
    """Check what result.json says."""
    path, task = folder / "result.json", config.get("flags", {}).get("task")
    _check_kinds(path, {**dict.fromkeys(RESULT), **result}, RESULT)
    if task not in (None, result["task"]):
        raise DataError(f"{path}: figures of task {result['task']}, in a run of {task} (config.json)")
    production = result.get("production") or []
    for row in production:
        _check_kinds(path, {**dict.fromkeys(FORM), **(row if isinstance(row, dict) else {})}, FORM)
    for metrics in (result["metrics"], *(row["metrics"] for row in production)):
        _check_metrics(path, metrics, result["main"])
    return Tuned(
        folder, result["task"], result["main"], result["metrics"], result["model"], result.get("teacher"),
        result.get("seed"), result.get("step"), result["examples"], result.get("hashes") or {},
        config.get("model", {}).get("model_type"), log,
        config.get("flags", {}), config.get("deepspeed_config", {}), result.get("precision"), production,
    )  # fmt: skip


def _check_metrics(path: Path, metrics: dict[str, Any], main: str) -> None:
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1:
            raise DataError(f"{path}: {name} is {value!r}; must be a fraction, from -1 to 1")
    if main not in metrics:
        raise DataError(f"{path}: the main metric, {main}, is none of {', '.join(metrics) or 'none'}")


def _check_alike(tuned: Iterable[Tuned]) -> None:
    """Runs of a task are measured alike, or can't be compared; those whose median is taken differ in their seeds."""
    first: dict[str, Tuned] = {}
    for run in tuned:
        other = first.setdefault(run.task, run)
        for name in ("main", "examples"):
            if getattr(run, name) != getattr(other, name):
                raise DataError(
                    f"{run.path} and {other.path}: {name} of {run.task} is {getattr(run, name)} here and "
                    f"{getattr(other, name)} there; figures on different data can't be compared, leave one of them out"
                )
    same: dict[tuple[str, Path, bool], list[Tuned]] = {}
    for run in tuned:
        others = same.setdefault((run.task, identity(run.model), run.teacher is not None), [])
        if others and (difference := next(_differences(others[0], run), None)):
            name, here, there = difference
            raise DataError(
                f"{others[0].path} and {run.path}: {name} is {here} and {there}; a median is of runs that differ in "
                "their seeds alone, leave one of them out"
            )
        if twice := next((other for other in others if run.seed is not None and run.seed == other.seed), None):
            raise DataError(f"{twice.path} and {run.path}: both are of seed {run.seed}; leave one of them out")
        others.append(run)


def _differences(one: Tuned, other: Tuned) -> Iterator[tuple[str, Any, Any]]:
    """What two runs of the same model and task were given: name, value here, value there."""
    from launch.flags import FREE  # brings torch, which a comparison does without

    if not (one.flags and other.flags):
        return
    if identity(one.teacher or "") != identity(other.teacher or ""):
        yield "--teacher", one.teacher, other.teacher
    for name in sorted((one.flags.keys() | other.flags.keys()) - FREE - {"seed", "model"}):
        if one.flags.get(name) != other.flags.get(name):
            yield option(name), one.flags.get(name), other.flags.get(name)
    for name in sorted(one.hashes.keys() & other.hashes.keys()):
        if one.hashes[name] != other.hashes[name]:
            yield f"the hash of the {name} set", one.hashes[name], other.hashes[name]
    yield from ds_config.changes(one.deepspeed, other.deepspeed)
    if one.step != other.step:
        yield "the number of steps", one.step, other.step


def read_json(path: Path, **kinds: Any) -> dict[str, Any]:
    """A JSON file's object; {} where there is no file.

    Args:
        kinds: types of those keys that are there.

    Raises:
        DataError: damaged, no object, or a value of another type.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as JSON: {error}; leave this run out, or mend the file") from error
    if not isinstance(body, dict):
        raise DataError(f"{path}: holds no JSON object")
    _check_kinds(path, body, kinds)
    return body


def _check_kinds(path: Path, body: dict[str, Any], kinds: Mapping[str, Any]) -> None:
    """Values of the keys that are there."""
    for name, kind in kinds.items():
        if name in body and not isinstance(body[name], kind):
            rule = f"must be of type {getattr(kind, '__name__', kind)}"
            raise DataError(f"{path}: '{name}' is {body[name]!r}; {rule}")
