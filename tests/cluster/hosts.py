"""Two hosts, what runs on them, and what goes wrong with them; see hosts.sh and slurm.sh."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HOSTS = FIRST, SECOND = "dilbert0", "dilbert1"
# What jobs consist of.
_OURS = r"train_dilbert|deepspeed\.launcher|launch\.start|launch\.supervise|^pdsh|^prte|binarize"
_NEEDED = {
    "iproute2": ("ip",),
    "util-linux": ("nsenter", "unshare"),
    "openssh-client": ("ssh", "ssh-keygen"),
    "openssh-server": ("/usr/sbin/sshd",),
    "procps": ("ps",),
    "pdsh": ("pdsh",),
    "munge": ("munged",),
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch"),
}


def why_not() -> str | None:
    """Why this machine can't be several hosts; None: it can."""
    if os.geteuid() != 0:
        return "needs root: for network namespaces, sshd and SLURM's daemons"
    if missing := [name for name, programs in _NEEDED.items() if not all(map(shutil.which, programs))]:
        return f"needs Debian's {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    return f"needs root of a whole machine, for namespaces: {tried.stderr.strip()}" if tried.returncode else None


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The condition's first value that is true.

    Raises:
        AssertionError: there was none in time.
    """
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


@dataclass
class Launched:
    """A command that runs on a host."""

    process: subprocess.Popen
    log: Path

    def wait(self, seconds: float) -> int:
        """Its exit code; fails the test, with what it printed, if it has none in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.output}") from None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")


@dataclass
class Cluster:
    """Two hosts; `folder` has their keys, logs and hostfile."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    launched: list[Launched] = field(default_factory=list)

    @property
    def hostfile(self) -> Path:
        return self.folder / "hostfile"

    def script(self, name: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """hosts.sh or slurm.sh."""
        options = {"capture_output": True, "text": True, "timeout": 120, "cwd": ROOT, "env": self.environment()} | more
        return subprocess.run(["bash", str(HERE / name), *words], **options)

    def environment(self) -> dict[str, str]:
        """What a user's shell on a host would have."""
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": programs, "CLUSTER": str(self.folder), **self.variables}

    def hosts(self, *words: str) -> str:
        """hosts.sh, which must succeed; what it printed."""
        done = self.script("hosts.sh", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def slurm(self, *words: str) -> str:
        """slurm.sh, which must succeed; what it printed."""
        done = self.script("slurm.sh", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def on(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        return self.script("hosts.sh", "on", host, *words)

    def launch(self, *words: str, host: str = FIRST) -> Launched:
        """Start a Python module or script of the repository on a host."""
        log = self.folder / f"launched{len(self.launched)}.log"
        command = ["bash", str(HERE / "hosts.sh"), "on", host, sys.executable, *words]
        with open(log, "w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                env=self.environment(), start_new_session=True,
            )  # fmt: skip
        self.launched.append(Launched(process, log))
        return self.launched[-1]

    def processes(self, host: str, pattern: str = _OURS) -> dict[int, str]:
        """Living processes on a host whose command line has the pattern in it: number there -> command line."""
        found = {}
        for line in self.on(host, "ps", "-eo", "pid=,stat=,args=").stdout.splitlines():
            number, state, args = line.split(maxsplit=2)
            if not state.startswith("Z") and re.search(pattern, args):
                found[int(number)] = args
        return found

    def tidy(self) -> None:
        """Both hosts up and connected, and nothing of a job on them."""
        for host in HOSTS:
            self.hosts("join", host)
            if self.on(host, "true").returncode:
                self.hosts("boot", host)
            for number in self.processes(host):
                self.on(host, "kill", "-9", str(number))
        for launched in self.launched:
            launched.process.wait(10)

    def left(self) -> dict[str, str]:
        """Processes of jobs on all hosts."""
        return {f"{host}:{number}": args for host in HOSTS for number, args in self.processes(host).items()}

    def signal(self, name: str, host: str, pattern: str) -> None:
        """Send a signal to the one process on a host that has the pattern in its command line."""
        ((number, _),) = self.processes(host, pattern).items()
        assert self.on(host, "kill", f"-{name}", str(number)).returncode == 0


def steps(run: Path) -> int:
    """How many steps a run has logged; its last line may be under way."""
    log = run / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0
