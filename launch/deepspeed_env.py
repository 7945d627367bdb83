"""`.deepspeed_env`: the variables that DeepSpeed's launcher hands to all hosts, checked before it reads them.

It looks for the file in the home folder, then in the current one (another name: `DS_ENV_FILE`), takes a `NAME=value` a
line, and puts them before the command that each host's shell runs. An empty line ends it with a traceback; a comment
that holds a `=` comments out all that follows on every host: nothing runs, and the exit code is 0.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from launch.errors import ConfigError

_LINE = re.compile(r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=(?P<value>.*)", re.ASCII)
_PLAIN = re.compile(r"[\w@%+=:,./-]*")  # what DeepSpeed puts no quotes around
_SHELL = re.compile(r"[\"$`\\]")  # what means something to the shell, also within DeepSpeed's quotes
# The launcher numbers the ranks; a value for all would make each of them the same one.
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Variables that change how a rank computes, or what it finds.
_MATTER = ("DILBERT_", "DS_", "DEEPSPEED_", "HF_", "OMP_", "MKL_", "ONEDNN_", "MALLOC_", "GLOO_", "NCCL_", "TORCH",
           "TRITON_", "CUDA_", "LD_", "UCX_")  # fmt: skip
_HERE_ONLY = ("DS_ENV_FILE", "DS_ACCELERATOR")  # read by the launcher; found out by each rank itself


def files() -> list[Path]:
    """Those that DeepSpeed will read."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    return [path for folder in (Path.home(), Path()) if (path := folder / name).is_file()]


def read(launcher: str) -> dict[str, str]:
    """The variables of all files.

    Args:
        launcher: "pdsh" hands them to a shell, "openmpi" to none.

    Raises:
        ConfigError: a line that DeepSpeed would fail at, or read as something else.
    """
    found: dict[str, str] = {}
    for path in files():
        for number, line in enumerate(_lines(path), start=1):
            name, value = _variable(line, launcher, f"{path}, line {number}")
            found[name] = value
    return found


def _lines(path: Path) -> list[str]:
    """As DeepSpeed reads them; the end of the last line begins no other."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _variable(line: str, launcher: str, where: str) -> tuple[str, str]:
    words = _LINE.fullmatch(line)
    if not words:
        raise ConfigError(f"{where}: {line!r}: must be NAME=value; no comments, no empty lines, no `export`")
    name, value = words["name"], words["value"].strip()
    if name in _RANKS:
        raise ConfigError(f"{where}: {name} is the launcher's to set, for each rank another one; remove the line")
    if _SHELL.search(value):
        raise ConfigError(f'{where}: {name}={value}: no ", $, ` or \\: the shells of the hosts would read them')
    if launcher == "openmpi" and not _PLAIN.fullmatch(value):
        raise ConfigError(f"{where}: {name}={value}: for openmpi DeepSpeed would make quotes a part of the value")
    return name, value


def left_behind(
    forwarded: Iterable[str], prefixes: Iterable[str], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Variables that matter to a run, are set here, and reach no other host.

    Args:
        forwarded: names that `.deepspeed_env` holds.
        prefixes: what names begin with that DeepSpeed forwards by itself.
    """
    matter = {name for name in environment if name.startswith(_MATTER)} - set(_HERE_ONLY) - set(forwarded)
    return sorted(name for name in matter if not name.startswith(tuple(prefixes)))
