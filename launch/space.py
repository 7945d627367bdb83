"""Space on the disk: what a checkpoint takes, and whether there is room for it."""

import logging
import os
from pathlib import Path
from typing import Any

from launch import costs
from launch.distributed import by_main
from launch.errors import CheckpointError


def forecast(engine: Any) -> int:
    """Bytes of a checkpoint, all ranks' files together: by formula, for AdamW; names and counters are not counted."""
    parameters = list(engine.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    element = parameters[0].element_size()
    shape = costs.Engine(stage=engine.zero_optimization_stage(), element=element)
    return int(costs.checkpoint_bytes(trained, shape)) + frozen * element


def check(engine: Any, root: Path, count: int) -> None:
    """Before the first save: is there room for a checkpoint, and for as many as there will be? All ranks call it.

    What lies there already counts as room, as it makes way. A disk with room for one, but not for all, is a warning.

    Args:
        root: where they will be.
        count: most that will be there at once; 0: none will be saved.

    Raises:
        CheckpointError: there is no room for one, or nobody may write there.
    """
    one = forecast(engine)
    if count:
        by_main(lambda: _check(root, one, count))


def _check(root: Path, one: int, count: int) -> None:
    folder = root if root.exists() else root.parent
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"{folder}: no checkpoint could be saved there: read-only, or no right to write")
    if missing := shortage(folder, one, sum(map(size, root.glob(".*")))):
        raise CheckpointError(f"{folder}: {missing}. Free as much, or give another --output")
    if missing := shortage(folder, count * one, size(root)):
        logging.getLogger(__name__).warning(
            "warning: %s: %d checkpoints (--keep-last, --keep-every, and one more while it is saved): %s",
            folder, count, missing,
        )  # fmt: skip


def shortage(folder: Path, needed: int, reusable: int = 0) -> str:
    """What is missing on the disk of a folder that exists; "" if it has room.

    Args:
        needed: bytes.
        reusable: bytes of what will make way.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize + reusable
    if free >= needed:
        return ""
    return f"about {needed:,} bytes are needed, {free:,} bytes are free: {needed - free:,} bytes are missing"


def size(folder: Path) -> int:
    """Bytes of all files in a folder, if it is there."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
