"""Disks of a process's own: small ones, read-only ones, and such as no other process sees. Gone with it."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_trial = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "trial", "/tmp"], capture_output=True, text=True)

needs_mounts = pytest.mark.skipif(
    _trial.returncode != 0, reason=f"needs root, to mount disks of its own: {_trial.stderr.strip()}"
)


def own_mounts() -> None:
    """What this process, and those that it starts, mount from now on is theirs alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _mount("--make-rprivate", "/")


def disk(path: Path, size: int = 1 << 26) -> None:
    """An empty disk of so many bytes at `path`, for this process alone."""
    path.mkdir(parents=True, exist_ok=True)
    own_mounts()
    _mount("-t", "tmpfs", "-o", f"size={size}", "small", str(path))


def make_read_only(path: Path) -> None:
    """The disk that is mounted there."""
    _mount("-o", "remount,ro", str(path))


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
