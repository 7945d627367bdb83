"""DeepSpeed on many hosts, checked: `deepspeed` itself, with its own flags, between two looks.

    python -m launch.start --hostfile hosts train_dilbert.py --deepspeed_config ... --output runs/first ...
    python -m launch.start --hostfile hosts --launcher openmpi train_dilbert.py ...

All flags before the script are those of `deepspeed --help`. Before: the hostfile, `.deepspeed_env`, and whether every
host answers. Then the script gets `--ranks`, so that it refuses any other number of them. After: the exit code is 0
only with a new `DONE.json` in the run folder, and 75 with `STOPPED.json` (see launch/supervise.py).
"""

import argparse
import os
import re
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# Read when DeepSpeed is first imported: without a GPU it warns, unless told that the CPU is meant.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.accelerator import get_accelerator
from deepspeed.launcher import runner

from launch import config_file, deepspeed_env, hostfile, ssh
from launch.errors import ConfigError, run
from launch.supervise import Supervised

_PROGRAMS = {"pdsh": ("pdsh",), "openmpi": ("mpirun", "ompi_info")}
_SHELL = re.compile(r"[\"'$`\\;&|<>(){}*?!#\n]")
_NOT_HERE = {
    "no_ssh": "starts one host: on each host, use deepspeed itself",
    "no_python": "train_dilbert.py is Python",
    "module": "train_dilbert.py is a script",
    "autotuning": "tunes: use deepspeed itself",
}


@dataclass(frozen=True)
class Job:
    """What the command line asks for.

    Attributes:
        words: arguments of `deepspeed`.
        hosts: those that take part, and the ranks of each.
        folder: of the run.
    """

    words: list[str]
    launcher: str
    hosts: dict[str, int]
    folder: Path
    ssh_port: int | None


def read(words: list[str]) -> Job:
    """The command line, by DeepSpeed's own parser.

    Raises:
        ConfigError: what can't work, or would not do what it says.
    """
    args = runner.parse_args(words)
    for name, why in _NOT_HERE.items():
        if getattr(args, name):
            raise ConfigError(f"--{name}: {why}")
    launcher = args.launcher.lower()
    if launcher not in _PROGRAMS:
        raise ConfigError(f"--launcher {args.launcher}: pdsh or openmpi; under SLURM see launch/slurm/")
    if args.hostfile == runner.DLTS_HOSTFILE and not os.path.exists(args.hostfile):
        raise ConfigError("--hostfile: is missing; one host alone needs none: deepspeed train_dilbert.py ...")
    if launcher == "pdsh" and (word := next(filter(_SHELL.search, args.user_args), None)):
        raise ConfigError(f"{word}: pdsh hands it to the hosts' shells, which would read some of these characters")
    hosts = _active(args)
    flags, script = words[: -1 - len(args.user_args)], args.user_script
    own = ("--force_multi", *_for_mpi(args, launcher))  # a hostfile with one host would be a run on this one, otherwise
    given = ("--ranks", str(sum(hosts.values())), *args.user_args)
    return Job([*flags, *own, script, *given], launcher, hosts, _output(args), args.ssh_port)


def _active(args: argparse.Namespace) -> dict[str, int]:
    """Hosts and their ranks, after --include, --exclude, --num_nodes and --num_gpus."""
    pool = {host.name: host.slots for host in hostfile.read(Path(args.hostfile))}
    try:
        chosen = runner.parse_inclusion_exclusion(pool, args.include, args.exclude)
    except ValueError as error:
        raise ConfigError(f"--include {args.include!r} --exclude {args.exclude!r}: {error}") from error
    active = runner.apply_num_nodes_and_gpus(chosen, args.num_nodes, args.num_gpus)
    if args.num_nodes > len(chosen):
        raise ConfigError(f"--num_nodes {args.num_nodes}: {args.hostfile} has {len(chosen)} hosts")
    if over := [name for name, slots in active.items() if len(slots) > pool[name]]:
        raise ConfigError(f"--num_gpus {args.num_gpus}: {over[0]} has {pool[over[0]]} slots in {args.hostfile}")
    if not active:
        raise ConfigError(f"--exclude {args.exclude}: leaves no host")
    return {name: len(slots) for name, slots in active.items()}


def _for_mpi(args: argparse.Namespace, launcher: str) -> list[str]:
    """What DeepSpeed does not tell mpirun: the port. It takes the network to be called eth0."""
    if launcher != "openmpi":
        return []
    network, names = "btl_tcp_if_include", [name for _, name in socket.if_nameindex()]
    if network not in args.launcher_args and "eth0" not in names:
        raise ConfigError(
            f"--launcher openmpi: DeepSpeed takes network eth0, this host has {', '.join(names)}: "
            f'say which, --launcher_args "--mca {network} {names[-1]}"'
        )
    return ["--launcher_args", f"{args.launcher_args} -x MASTER_PORT={args.master_port}".strip()]


def _output(args: argparse.Namespace) -> Path:
    """The script's `--output`, or that of its `--config`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--config", type=Path)
    try:
        given = parser.parse_known_args(args.user_args)[0]
    except argparse.ArgumentError:
        given = argparse.Namespace(output=None, config=None)
    output = given.output
    if output is None and given.config:
        named = config_file.read(given.config).get("output")
        output = Path(named) if isinstance(named, str) else None
    if output is None:
        raise ConfigError(
            f"{args.user_script}: --output is missing: the run folder, whose DONE.json tells how it ended"
        )
    return output


def check(job: Job) -> None:
    """Whether it can start: programs, `.deepspeed_env`, hosts; says which variables stay behind.

    Raises:
        ConfigError: with the cure.
    """
    for program in _PROGRAMS[job.launcher]:
        if not shutil.which(program):
            raise ConfigError(f"--launcher {job.launcher}: {program} is not installed on this host")
    forwarded = deepspeed_env.read(job.launcher)
    if left := deepspeed_env.left_behind(forwarded, runner.EXPORT_ENVS + get_accelerator().export_envs()):
        print(
            f"warning: set here, but on no other host: {', '.join(left)} (NAME=value in .deepspeed_env hands them on)"
        )
    hostfile.check_reachable(list(job.hosts), job.ssh_port)


def environment() -> dict[str, str]:
    """Of the launcher: pdsh's ssh asks nothing either, and notices a host that is cut off."""
    given = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    return {**os.environ, "PDSH_SSH_ARGS_APPEND": " ".join([given, *ssh.OPTIONS]).strip()}


def main() -> None:
    """Command line."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    job = read(words)
    check(job)
    print(f"{sum(job.hosts.values())} ranks on {len(job.hosts)} hosts by {job.launcher}", flush=True)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *job.words]
    sys.exit(Supervised(command, job.folder, environment()).wait())


if __name__ == "__main__":
    run(main)
