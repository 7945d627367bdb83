"""Are the hosts of a job ready for it? `python -m launch.doctor [--hostfile hosts]`: a table, a verdict, what to do.

Each host is asked by ssh for Python, versions, code, GPUs, /dev/shm and its clock, whether it sees a file that was just
written, and whether it reaches the first host's port as the ranks will. Exit code 0: ready; 2: not.
"""

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads
from pathlib import Path

from launch import deepspeed_env, hostfile, ssh
from launch.args import flag, parse, require
from launch.diagnosis import COLUMNS, Patient, problems, row
from launch.errors import ConfigError, run
from launch.hostfile import Host

DESCRIPTION = "Are the hosts of a job ready for it? Without --hostfile: is this one?"
EXAMPLE = "  python -m launch.doctor --hostfile hosts"
THIS_HOST = ""


@dataclass(frozen=True)
class Examination:
    """What is looked at."""

    hostfile: Path | None = flag(None, "the job's hosts, see launch/hostfile.example", "FILE")
    shared: Path = flag(Path(), "folder that all hosts must see; the run folder's parent, say", "FOLDER")
    master_port: int = flag(29500, "port of the first host at which the ranks will meet", "PORT")
    ssh_port: int | None = flag(None, "port of ssh (default: as configured)", "PORT")

    def __post_init__(self) -> None:
        require(0 < self.master_port < 65536, "master_port", self.master_port, "must be 1 to 65535")
        require(self.shared.is_dir(), "shared", self.shared, "is no folder")


def examine(wanted: Examination, token: Path) -> list[Patient]:
    """Ask all hosts.

    Raises:
        ConfigError: a hostfile that can't be read.
    """
    hosts = hostfile.read(wanted.hostfile) if wanted.hostfile else (Host(THIS_HOST, 1),)
    calls = ssh.on_all({host.name: "date +%s.%N && hostname -I" for host in hosts}, wanted.ssh_port)
    reached = [host for host in hosts if calls[host.name].code == 0]
    addresses = calls[reached[0].name].output.split()[1:] if reached else []
    master = addresses[0] if addresses else ""  # the one that DeepSpeed takes, too
    questions = {host.name: _question(host, reached, master, wanted, token) for host in reached}
    answers = ssh.on_all(questions, wanted.ssh_port, timeout=120)
    return [_patient(host, calls[host.name], answers.get(host.name)) for host in hosts]


def _question(host: Host, hosts: Sequence[Host], master: str, wanted: Examination, token: Path) -> str:
    words = [sys.executable, "-m", "launch.probe", "--token", str(token)]
    if host is hosts[0]:
        words += ["--port", str(wanted.master_port), "--hosts", str(len(hosts) - 1)]
    else:
        words += ["--master", f"{master}:{wanted.master_port}"]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(words)}"


def _patient(host: Host, call: ssh.Answer, answer: ssh.Answer | None) -> Patient:
    name = host.name or "this host"
    if answer is None:
        return Patient(
            name, host.slots, False, f"no ssh: {call.reason}; `ssh {name} true` must work without a question"
        )
    middle, doubt = (call.began + call.ended) / 2, (call.ended - call.began) / 2
    clock = float(call.output.split()[0]) - middle
    if answer.code:
        trouble = f"{answer.reason}; repository and environment must be at the same path as here"
        return Patient(name, host.slots, True, trouble, None, clock, doubt)
    return Patient(name, host.slots, True, "", loads(answer.output.splitlines()[-1]), clock, doubt)


def local_problems(wanted: Examination) -> list[str]:
    """What this host lacks for starting a job on others."""
    if not wanted.hostfile:
        return []
    found = [] if shutil.which("pdsh") else ["this host: pdsh is not installed (or use --launcher openmpi, or srun)"]
    try:
        deepspeed_env.read("pdsh")
    except ConfigError as error:
        found.append(str(error))
    return found


@contextmanager
def token_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """A new file with a random text, and the text."""
    path, text = (folder / f".doctor-{secrets.token_hex(4)}").absolute(), secrets.token_hex(16)
    path.write_text(text)
    try:
        yield path, text
    finally:
        path.unlink(missing_ok=True)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """In columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows
    )


def main() -> None:
    """Command line."""
    (wanted,) = parse(DESCRIPTION, Examination, example=EXAMPLE, prog="launch.doctor")
    with token_in(wanted.shared) as (path, token):
        patients = examine(wanted, path)
    print(table([COLUMNS, *(row(patient, token) for patient in patients)]))
    found = problems(patients, token) + local_problems(wanted)
    if found:
        raise ConfigError(f"not ready: {len(found)} problem(s)\n" + "\n".join(f"  {line}" for line in found))
    print(f"ready: hosts {len(patients)}, ranks {sum(patient.slots for patient in patients)}")


if __name__ == "__main__":
    run(main)
