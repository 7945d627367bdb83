"""Who started this process, and whether they are still there: ranks that outlive their launcher are nobody's."""

import os
from pathlib import Path

_LAUNCHERS = ("deepspeed.launcher", "deepspeed", "torchrun", "torch.distributed", "mpirun", "mpiexec", "orted", "prted",
              "prterun", "slurmstepd")  # fmt: skip
_SHELLS = ("sh", "bash", "dash")
_MOST = 6  # steps up


def ancestors() -> list[int]:
    """Processes from the parent upwards that belong to the launch: empty for plain `python`, whose parent, a shell, may
    go while the run stays."""
    chain: list[int] = []
    pid, words = os.getppid(), _words(os.getppid())
    while len(chain) < _MOST and _launches(words):
        chain.append(pid)
        if Path(words[-1] if len(words) == 1 else words[1] if len(words) > 1 else "").name == "deepspeed":
            break  # what the user typed: above it is the user's own
        pid, words = _parent(pid), _words(_parent(pid))
        if connection := _connection(pid):
            return chain + connection
    return chain


def gone(chain: list[int]) -> bool:
    """Whether one of them is no longer what it was: the parent of the one before."""
    child = os.getpid()
    for pid in chain:
        if _parent(child) != pid:
            return True
        child = pid
    return False


def _launches(words: list[str]) -> bool:
    names = {Path(word).name for word in words[:3]}
    return bool(names & set(_LAUNCHERS)) or any(word.startswith("deepspeed.launcher") for word in words[:4])


def _connection(pid: int) -> list[int]:
    """sshd's process for the connection by which pdsh or ssh came, after the shell that it started, if that is still
    there: most shells become the last command of `-c`."""
    words = _words(pid)
    if words and words[0].startswith("sshd"):  # "sshd: name@notty"
        return [pid]
    is_command = len(words) > 1 and Path(words[0]).name in _SHELLS and words[1] == "-c"
    above = _connection(_parent(pid)) if is_command else []
    return [pid, *above] if above else []


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    if pid == os.getpid():
        return os.getppid()
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0
