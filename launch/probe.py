"""What `launch.doctor` asks a host, answered there: one JSON object.

python -m launch.probe --token FILE [--port 29500 | --master 10.0.0.1:29500]
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.args import flag, parse
from launch.errors import run

PACKAGES = ("torch", "deepspeed", "transformers")
PATIENCE = 20.0  # seconds in which hosts wait for each other
_CODE = ("*.py", "model/**/*.py", "model/**/*.cpp", "data/**/*.py", "data/**/*.cpp", "launch/**/*.py")
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Question:
    """What to look at."""

    token: Path = flag(help="file on the shared file system, whose content is given back", metavar="FILE")
    port: int = flag(0, "to listen at, until so many --hosts have been there", "PORT")
    hosts: int = flag(0, "that will come to --port")
    master: str = flag("", "where to go to: ADDRESS:PORT")


def answer(question: Question) -> dict[str, Any]:
    """Facts about this host; those that can't be found out are None or empty."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code(),
        "commit": _commit(),
        "gpus": _gpus(),
        "token": _read(question.token),
        "shm": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0,
        "port": _listen(question.port, question.hosts) if question.port else _visit(question.master),
    }


def code() -> str:
    """Hash of all source files, committed or not."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _CODE for path in _ROOT.glob(pattern)}):
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    words = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=7", "--dirty=+"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _gpus() -> list[str]:
    """Names, as torch sees them: a driver without a torch for it counts as none."""
    try:
        import torch
    except ImportError:
        return []
    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _listen(port: int, hosts: int) -> str:
    """ "free", or why nothing can listen there; stays until all hosts have been there."""
    try:
        server = socket.create_server(("", port), backlog=hosts + 1)
    except OSError as error:
        return f"{port} taken: {os.strerror(error.errno or 0)}"
    until = time.monotonic() + PATIENCE
    with server:
        for _ in range(hosts):
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                server.accept()[0].close()
            except TimeoutError:
                break
    return "free"


def _visit(master: str) -> str:
    """ "reached", or why not; "" without a master."""
    if not master:
        return ""
    address, _, port = master.rpartition(":")
    until, reason = time.monotonic() + PATIENCE, "no answer"
    while time.monotonic() < until:
        try:
            socket.create_connection((address, int(port)), timeout=2).close()
            return "reached"
        except OSError as error:
            reason = error.strerror or "no answer"
            time.sleep(0.2)
    return f"{master} not reached: {reason}"


def main() -> None:
    """Command line."""
    json.dump(answer(*parse("What launch.doctor asks a host.", Question, prog="launch.probe")), sys.stdout)


if __name__ == "__main__":
    run(main)
