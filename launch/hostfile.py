"""A hostfile, checked before DeepSpeed sees it: some of its mistakes would become a local run, others a job that hangs.

A line a host, `name slots=ranks`; `#` begins a comment. See `launch/hostfile.example`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import ssh
from launch.errors import ConfigError

_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[0-9]+)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", re.ASCII)
_FORM = "a line is `name slots=ranks`, such as `worker-1 slots=8`"
_MOST = 1024  # slots: more is a slip of the finger


@dataclass(frozen=True)
class Host:
    """A line of a hostfile: as many ranks as `slots` run on host `name`."""

    name: str
    slots: int


def read(path: Path) -> tuple[Host, ...]:
    """All hosts, in their order: the first one has rank 0.

    Raises:
        ConfigError: no such file, or what is wrong in which line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # no other ends: DeepSpeed knows none
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is no text"
        raise ConfigError(f"--hostfile {path}: {what}; DeepSpeed alone would train on this host only") from error
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        if words := line.partition("#")[0].strip():
            host = _host(words, f"--hostfile {path}, line {number}")
            if host.name in hosts:
                raise ConfigError(f"--hostfile {path}, line {number}: {host.name} stands there twice; add its slots up")
            hosts[host.name] = host
    if not hosts:
        raise ConfigError(f"--hostfile {path}: holds no host; {_FORM}")
    return tuple(hosts.values())


def _host(words: str, where: str) -> Host:
    found = _LINE.fullmatch(words)
    if not found:
        raise ConfigError(f"{where}: {words!r}: {_FORM}")
    name, slots = found["name"], int(found["slots"][:9])
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {name!r} is no host name: letters, digits, '.', '-' and '_', and no '-' or '.' at either end; "
            "user names and ports belong into ~/.ssh/config"
        )
    if not 0 < slots <= _MOST:
        raise ConfigError(f"{where}: slots={found['slots']}: must be 1 to {_MOST}: ranks on {name}, one a GPU")
    return Host(name, slots)


def check_reachable(names: Sequence[str], port: int | None = None) -> None:
    """Whether every host answers.

    Args:
        port: of ssh; None: as ssh is configured.

    Raises:
        ConfigError: names each host that does not, with what ssh says of it.
    """
    answers = ssh.on_all(dict.fromkeys(names, "true"), port)
    silent = [f"  {name}: {answer.reason}" for name, answer in answers.items() if answer.code]
    if silent:
        raise ConfigError(
            f"{len(silent)} of {len(names)} hosts can't be reached by ssh:\n" + "\n".join(silent) + "\n"
            "`ssh HOST true` must work from here without a question: host up, name known, your key in its "
            "~/.ssh/authorized_keys, its key in your ~/.ssh/known_hosts. Or take the host out of the hostfile"
        )
