"""Checkpoints through DeepSpeed, committed as a whole, verified before they are trusted.

`checkpoints/step00001000/` holds DeepSpeed's files and `MANIFEST.json` (size and SHA-256 of each). DeepSpeed itself
writes `latest` before all ranks have finished, and loads a damaged file in silence. So every rank writes into a
temporary folder, syncs and hashes its own files; then rank 0 writes the manifest, renames the folder, and points
`latest` to it. A kill at any moment leaves the last whole checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launch import commit
from launch.errors import CheckpointError

MANIFEST = "MANIFEST.json"
_TAG = re.compile(r"step(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files are all there, unchanged."""

    path: Path
    step: int
    ranks: int
    stage: int


def tag(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step{step:08d}"


def save(engine: Any, root: Path) -> Path:
    """Commit a checkpoint of the engine's current step; all ranks call it. One that is there already stays.

    Raises:
        CheckpointError: the disk refuses.
    """
    final = root / tag(engine.global_steps)
    if final.exists():
        return final
    partial = root / f".partial-{final.name}"
    rank, ranks = dist.get_rank(), dist.get_world_size()
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            root.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        engine.save_checkpoint(str(root), tag=partial.name, save_latest=False)
        files: list[Any] = [None] * ranks
        dist.all_gather_object(files, {path.name: _sync_and_hash(path) for path in _own_files(partial, rank)})
        if rank == 0:
            merged = {name: entry for part in files for name, entry in part.items()}
            _publish(partial, final, {"step": engine.global_steps, "ranks": ranks,
                                      "stage": engine.zero_optimization_stage(), "files": merged})  # fmt: skip
        dist.barrier()
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise CheckpointError(f"{final}: can't be written: {error}; the last whole checkpoint is kept") from error
    return final


def newest(root: Path, on_damage: Any = print) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where there is none at all.

    Args:
        on_damage: called with a sentence for each damaged one that is passed over.

    Raises:
        CheckpointError: there are checkpoints, but not one verifies: a run must not start over in silence.
    """
    damaged = []
    for path in reversed(committed(root)):
        try:
            return verify(path)
        except CheckpointError as error:
            damaged.append(str(error))
            on_damage(f"skipping a damaged checkpoint: {error}")
    if damaged:
        raise CheckpointError(f"{root}: no checkpoint is whole:\n" + "\n".join(damaged))
    return None


def newest_for_all(root: Path) -> Checkpoint | None:
    """`newest`, looked up by rank 0 for every rank: one reader of all those files, and one answer.

    Damaged ones that are newer get another name (`damaged-step...`), so that their steps can be saved again.

    Raises:
        CheckpointError: on every rank, what rank 0 found.
    """
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [newest(root)]
            _move_aside([path for path in committed(root) if path.name > answer[0].path.name] if answer[0] else [])
        except (CheckpointError, OSError) as error:
            answer = [error if isinstance(error, CheckpointError) else CheckpointError(f"{root}: {error}")]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], CheckpointError):
        raise answer[0]
    return answer[0]


def _move_aside(damaged: list[Path]) -> None:
    for path in damaged:
        target = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        os.rename(path, target)


def committed(root: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in root.glob("step*") if _TAG.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[4:]))


def verify(path: Path) -> Checkpoint:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: names the file, what was expected and what was found.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        checkpoint = Checkpoint(path, manifest["step"], manifest["ranks"], manifest["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: can't be read: {error!r}") from error
    if path.name != tag(checkpoint.step):
        raise CheckpointError(f"{path / MANIFEST}: is of step {checkpoint.step}")
    for name, (size, digest) in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file}: {'missing' if found is None else f'{found:,} bytes'}, expected {size:,} bytes"
            )
        if (actual := _sha256(file)) != digest:
            raise CheckpointError(f"{file}: SHA-256 {actual[:16]}..., expected {digest[:16]}...: damaged")
    return checkpoint


def _own_files(folder: Path, rank: int) -> Iterator[Path]:
    """Files that this rank wrote: DeepSpeed names optimizer shards by rank, all else is rank 0's."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and shard_owner(path) == rank:
            yield path


def shard_owner(path: Path) -> int:
    """Rank that wrote a file of a checkpoint."""
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _sync_and_hash(path: Path) -> tuple[int, str]:
    commit.sync(path)
    return path.stat().st_size, _sha256(path)


def _publish(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    commit.write_text(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    os.rename(partial, final)
    commit.sync(final.parent)
    commit.write_text(final.parent / "latest", final.name)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
