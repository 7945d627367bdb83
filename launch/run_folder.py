"""The folder of a run: what it was started with, and how it ended.

`config.json` (all flags, the folder they were given in, the DeepSpeed JSON as given, the model's architecture),
`ds_config.json` (as DeepSpeed got it), `environment.json`; `DONE.json`, `STOPPED.json` or `FAILED.json` (launch.beats).
A second start in the same folder goes on with the run, if nothing that shapes it has changed.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist

from launch import agreement, commit, ds_config, lock
from launch.args import option, plain
from launch.beats import FAILED
from launch.distributed import World, by_main
from launch.energy import counters
from launch.errors import CheckpointError, ConfigError, did_you_mean
from launch.stop import STOP

MODEL = "model"  # key of config.json: the student's architecture, as Hugging Face's config.json
HEAD = "head"  # kind and labels of a task's head; pre-training has none
IDENTITY = ("fingerprint", MODEL, HEAD, "teacher")  # the data stream, the student's architecture, the teacher's weights
# What they are, for people, and the flags by which they come.
MEANS = {"fingerprint": "fingerprint (of data, batch, masks and order)", "teacher": "teacher (its weights)"}
WHERE = {"fingerprint": ("data",), MODEL: ("student", "model"), HEAD: ("model",), "teacher": ("teacher",)}
# Flags that say how to start, not what to run: a run that is repeated by its config.json does not repeat them.
OF_A_START = frozenset({"fresh", "allow_change", "local_rank", "stop_at_step", "ranks", "deepspeed", "dry_run"})
TOKENIZER = "tokenizer"  # folder: the tokenizer's files
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run; rank 0 writes, every rank may read."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    def move_aside(self) -> None:
        """Give an existing run another name, NAME.old-1, -2 ...; nothing is deleted. A lock stays in place."""
        if self.path.exists():
            number = 1
            while (target := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
                number += 1
            os.rename(self.path, target)
            lock.carry(target, self.path)

    def clear(self) -> None:
        """Remove all but the lock."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != lock.NAME:
                path.unlink()

    def recorded(self) -> dict[str, Any] | None:
        """The `config.json` of an earlier start, if there was one."""
        path = self.path / "config.json"
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            if not isinstance(record, dict) or not isinstance(record.get("flags"), dict):
                raise ValueError("holds no flags of a run")
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: can't be read: {error}; `--fresh` starts over beside it") from error
        return record

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files; {} where there is none."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}

    def write(self, name: str, body: dict[str, Any]) -> None:
        """Write one of the folder's JSON files."""
        self.path.mkdir(parents=True, exist_ok=True)
        commit.write_text(self.path / name, json.dumps(body, indent=2, default=str) + "\n")

    def check(
        self, record: dict[str, Any], free: frozenset[str], allowed: tuple[str, ...], fresh: bool, home: Self
    ) -> None:
        """Whether this start may go on with the run in the folder; all ranks call it. Changes nothing but for `fresh`.

        Args:
            record: what this start was given, see `refuse_changes`.
            fresh: move an earlier run aside first.
            home: the run itself, which is this one, or another where this is but a rehearsal of it.

        Raises:
            ConfigError: the run was started with other settings, or not all ranks were.
        """
        flags = {option(name): value for name, value in record["flags"].items() if name not in free}
        agreement.same({**flags, **{name: record.get(name) for name in ("deepspeed_config", *IDENTITY)}})
        if fresh and home == self:
            by_main(self.move_aside)
        if not fresh and (recorded := home.recorded()):
            refuse_changes(recorded, record, free, allowed)
        dist.barrier()  # every rank has read the old record before rank 0 writes the new one

    def begin(self, finished: bool = False, **records: dict[str, Any]) -> None:
        """The run is under way: write `NAME.json` for each record; it has not ended in any way. For rank 0.

        Args:
            finished: no step is left. Where it is done as well, its records and DONE.json stay as they are.
        """
        ends = ["STOPPED.json", FAILED, STOP]
        if not (finished and (self.path / "DONE.json").exists()):
            ends.append("DONE.json")
            for name, body in records.items():
                self.write(f"{name}.json", body)
        for name in ends:
            (self.path / name).unlink(missing_ok=True)

    def end(self, name: str, body: dict[str, Any], world: World) -> None:
        """How the run ended: `DONE.json` or `STOPPED.json`. No rank leaves before it is there: a launcher may end the
        others then."""
        if world.is_main:
            self.write(name, body)
            (self.path / STOP).unlink(missing_ok=True)
        dist.barrier()


def flags_of(*groups: Any) -> dict[str, Any]:
    """All flags of a run by field name, as JSON holds them, but for those of a single start."""
    return {name: value for name, value in plain(*groups).items() if name not in OF_A_START}


def refuse_changes(
    recorded: dict[str, Any], now: dict[str, Any], free: frozenset[str], allowed: tuple[str, ...]
) -> None:
    """Compare a run's record with what this start was given.

    Args:
        recorded, now: {"flags": ..., "deepspeed_config": ..., and what IDENTITY names}.
        free: flags that a resume may change.
        allowed: flags and keys that the user allows to change (`--allow-change`).

    Raises:
        ConfigError: names every changed flag or key with its old and its new value.
    """
    before, after = recorded.get("flags", {}), now["flags"]
    json_before, json_after = recorded.get("deepspeed_config", {}), now["deepspeed_config"]
    keys = ds_config.flatten(json_before) | ds_config.flatten(json_after)
    known = {_key(name): name for name in (*map(option, before | after), *keys, *IDENTITY)}
    for name in allowed:
        if _key(name) not in known:
            near = did_you_mean(name, known.values())
            raise ConfigError(f"--allow-change {name}: the run has no such flag or key{near}")
    names = sorted((before.keys() | after.keys()) - free)
    changed = [
        (option(name), before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]
    changed += ds_config.changes(json_before, json_after)
    for name in IDENTITY:
        if recorded.get(name) != now.get(name):
            changed.append((name, recorded.get(name), now.get(name)))
    refused = [row for row in changed if _key(row[0]) not in set(map(_key, allowed))]
    if refused:
        paths = [f"  {line}" for name, *_ in refused for line in _moved(WHERE.get(name, ()), before, after)]
        rows = "\n".join([*(f"  {line}" for row in refused for line in _change(*row)), *dict.fromkeys(paths)])
        raise ConfigError(
            f"this run was started with other settings:\n{rows}\n"
            "Give the old values, another --output, or --fresh; or allow a change with --allow-change KEY"
        )


def _change(name: str, old: object, new: object) -> Iterator[str]:
    """What has changed, a line for each key of a model's architecture."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"{name}: {key} was {old.get(key)!r}, is {new.get(key)!r}"
    else:
        yield f"{MEANS.get(name, name)}: was {old!r}, is {new!r}"


def _moved(names: tuple[str, ...], before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Paths that may have led to other contents."""
    for name in names:
        if before.get(name) != after.get(name):
            yield f"{option(name)}: was {before.get(name)!r}, is {after.get(name)!r}"


def _key(name: str) -> str:
    """`--max-steps`, `max-steps` and `max_steps` are the same key."""
    return name.removeprefix("--").replace("-", "_")


def environment(world: World, **facts: Any) -> dict[str, Any]:
    """Versions, commit and hardware."""
    return {
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "host": platform.node(),
        "ranks": world.ranks,
        "device": device_name(world.device),
        "cores": len(os.sched_getaffinity(0)),
        "energy_counters": sorted({counter.kind for counter in counters(world)}),
        **facts,
    }


def device_name(device: torch.device) -> str:
    """Of the GPU; of the processor where the kernel tells it, else its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git_commit() -> str | None:
    """Commit of the code, "+" if it has been changed since; None outside a repository."""
    here = Path(__file__).parent
    try:
        run = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
        return subprocess.run(run, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
