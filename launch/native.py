"""C++ operations, built at first use as DeepSpeed builds its own, and loaded by ctypes.

A library is cached by its content: source, headers beside it, compiler, flags and the processor's features, so that
nodes that share a home folder but not a processor each find their own. `DILBERT_NATIVE=0` does without; every operation
has a plain form.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

# Without contraction a product and a sum are two roundings, as in numpy: operations that must equal a numpy form can.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++20", "-shared", "-fPIC", "-Wall", "-Wextra")


class Unavailable(Exception):
    """An operation can't be had here; the message says why."""


def cache() -> Path:
    """Folder of what is made once a machine: `DILBERT_CACHE`, else `dilbert` in the user's cache folder.

    Raises:
        Unavailable: there is no such folder.
    """
    if chosen := os.environ.get("DILBERT_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dilbert"
    except RuntimeError as error:  # a user without a home
        raise Unavailable(f"no folder for it: set DILBERT_CACHE ({error})") from error


@functools.cache
def load(source: Path, *flags: str) -> ctypes.CDLL:
    """The library of one C++ file, built now unless the cache has it.

    Args:
        flags: of the compiler, after FLAGS.

    Raises:
        Unavailable: no compiler, or it refuses the source, or `DILBERT_NATIVE=0`.
    """
    if os.environ.get("DILBERT_NATIVE") == "0":
        raise Unavailable("DILBERT_NATIVE=0")
    compiler = _compiler()
    content = hashlib.sha256(source.read_bytes())
    for header in sorted(source.parent.glob("*.h")):
        content.update(header.read_bytes())
    for part in (*FLAGS, *flags, compiler, _output(compiler, "--version"), _processor()):
        content.update(part.encode())
    library = cache() / f"{source.stem}-{content.hexdigest()[:16]}.so"
    if not library.exists():
        _build([compiler, *FLAGS, *flags], source, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unavailable(f"{library}: can't be loaded: {error}") from error


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable("no C++ compiler (g++) on this machine")


def _build(command: list[str], source: Path, library: Path) -> None:
    """Compile beside, then rename: processes that build the same at the same time don't disturb each other."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            subprocess.run([*command, "-o", str(made), str(source)], check=True, capture_output=True, text=True)
            os.replace(made, library)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} refuses {source.name}: {error.stderr.strip()[:2000]}") from error
    except OSError as error:
        raise Unavailable(f"{library}: can't be written: {error.strerror}") from error


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"{command[0]}: {error}") from error


def _processor() -> str:
    """The processor's features, on which `-march=native` depends."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + " ".join(os.uname()[4:])
