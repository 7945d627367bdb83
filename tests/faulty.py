"""A training job whose ranks fail on purpose: each rank a process of its own, started as a launcher would.

    python tests/faulty.py FAULT [arguments of train_dilbert.py]

FAULT is JSON: {"kind": ..., "rank": ..., "step": ...} and what the kind needs; see FAULTS.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def start(ranks: int, argv: list[str], fault: dict[str, Any] | None = None, **environment: str) -> list:
    """The processes of a job, one a rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                           "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(ranks)} | environment  # fmt: skip
    command = [sys.executable, str(Path(__file__)), json.dumps(fault or {"kind": "none"}), *argv]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def finish(job: list, timeout: float = 200) -> list[tuple[int, str]]:
    """Exit code and output of each rank; a job that hangs is killed, and fails the test."""
    end = time.monotonic() + timeout
    try:
        return [_end(process, end) for process in job]
    finally:
        for process in job:
            process.kill()


def _end(process: subprocess.Popen, end: float) -> tuple[int, str]:
    output, _ = process.communicate(timeout=max(end - time.monotonic(), 1))
    return process.returncode, output


# --- in the rank ---


def _hang(fault: dict[str, Any]) -> None:
    time.sleep(3600)


def _signal(fault: dict[str, Any]) -> None:
    os.kill(os.getpid(), getattr(signal, fault["signal"]))


def _touch(fault: dict[str, Any]) -> None:
    Path(fault["file"]).touch()
    time.sleep(1.2)  # files are looked for once a second


FAULTS: dict[str, Callable[[dict[str, Any]], None]] = {"hang": _hang, "signal": _signal, "touch": _touch}


def install(fault: dict[str, Any]) -> None:
    """Let the fault happen in the forward pass of its rank and step (from 0)."""
    from model.distiller import Distiller

    forward, happened = Distiller.forward, []

    def faulty(self, batch):
        step = len(happened) // fault.get("parts", 1)
        happened.append(step)
        loss, terms = forward(self, batch)
        here = fault.get("rank", 0) == int(os.environ.get("RANK", "0")) and fault.get("step") in (step, "all")
        if here and fault["kind"] == "value":
            return loss * float(fault["value"]), terms * float(fault["value"])
        if here and fault["kind"] == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        elif here:
            FAULTS[fault["kind"]](fault)
        return loss, terms

    Distiller.forward = faulty


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    fault = json.loads(sys.argv[1])
    sys.argv = ["train_dilbert.py", *sys.argv[2:]]
    import train_dilbert
    from launch import distributed
    from launch.errors import CheckpointError, run

    if fault["kind"] != "none":
        install(fault)
    try:
        run(train_dilbert.main, disk=CheckpointError)
        distributed.stop()
    except SystemExit as end:
        distributed.leave(int(end.code or 0))
