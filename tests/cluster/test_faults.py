"""What goes wrong with ranks, hosts, launchers and the network: the end comes in bounded time, nothing is left behind,
and the same command goes on."""

import json
import signal

import numpy as np
import pytest

from cluster.conftest import losses_of
from cluster.hosts import FIRST, SECOND, Cluster, Launched, steps, wait_until

pytestmark = pytest.mark.cluster
_START, _END, _GONE = 120, 120, 25  # seconds, on a machine that has other things to do; ranks have 20 s to follow


def start(cluster: Cluster, job, run, *more: str) -> Launched:
    words = ["--hostfile", str(cluster.hostfile), "train_dilbert.py", *job, "--output", str(run), *more]
    return cluster.launch("-m", "launch.start", *words)


def under_way(cluster: Cluster, job, run, *more: str) -> Launched:
    """A job that has done some steps, and has a checkpoint."""
    launched = start(cluster, job, run, *more)
    wait_until(lambda: steps(run) > 15 or launched.process.poll() is not None, _START, "step 15")
    assert launched.process.poll() is None, launched.output
    return launched


def goes_on(cluster: Cluster, job, run, losses) -> None:
    launched = start(cluster, job, run)
    assert launched.wait(_START) == 0, launched.output
    assert "going on after step" in launched.output
    np.testing.assert_allclose(losses_of(run), losses, rtol=1e-6)


def all_gone(cluster: Cluster) -> None:
    wait_until(lambda: not cluster.left(), _GONE, f"the end of {cluster.left()}")


def test_a_killed_rank(cluster, job, losses, tmp_path):
    launched = under_way(cluster, job, tmp_path / "run")
    cluster.signal("KILL", SECOND, "python -u train_dilbert.py")
    assert launched.wait(_END) not in (0, 75)
    assert "no new DONE.json" in launched.output
    all_gone(cluster)
    goes_on(cluster, job, tmp_path / "run", losses)


def test_a_killed_host(cluster, job, tmp_path):
    launched = under_way(cluster, job, tmp_path / "run", "--max-steps", "100000")
    cluster.hosts("kill", SECOND)
    assert launched.wait(_END) not in (0, 75)
    cluster.hosts("boot", SECOND)
    all_gone(cluster)


def test_the_launchers_host_is_killed(cluster, job, tmp_path):
    under_way(cluster, job, tmp_path / "run", "--max-steps", "100000")
    cluster.hosts("kill", FIRST)
    wait_until(lambda: not cluster.processes(SECOND), _GONE, "the end of the other host's ranks")


LAUNCHERS = {
    "start": (FIRST, "-m launch.start"),
    "runner": (FIRST, "-m deepspeed.launcher.runner"),
    "pdsh": (FIRST, "^pdsh"),
    "launch": (SECOND, "-u -m deepspeed.launcher.launch"),
    "connection": (SECOND, "^sshd: root@notty"),
}


@pytest.mark.parametrize("who", LAUNCHERS)
def test_a_killed_launcher(who, cluster, job, tmp_path):
    """All ranks save and stop."""
    launched = under_way(cluster, job, tmp_path / "run", "--max-steps", "100000")
    cluster.signal("KILL", *LAUNCHERS[who])
    all_gone(cluster)
    assert json.loads((tmp_path / "run" / "STOPPED.json").read_text())["code"] == 75
    assert launched.wait(_END) == (-signal.SIGKILL if who == "start" else 75), launched.output


def test_a_cut_network(cluster, job, tmp_path):
    launched = under_way(cluster, job, tmp_path / "run", "--max-steps", "100000", "--hang-timeout", "10")
    cluster.hosts("cut", SECOND)
    assert launched.wait(_END) not in (0, 75)
    all_gone(cluster)


def test_stopped_and_resumed(cluster, job, losses, tmp_path):
    """Ctrl-C once: 75; then the same command."""
    launched = under_way(cluster, job, tmp_path / "run")
    cluster.signal("INT", FIRST, "-m launch.start")
    assert launched.wait(_END) == 75, launched.output
    all_gone(cluster)
    goes_on(cluster, job, tmp_path / "run", losses)


def test_an_unreachable_host(cluster, job, tmp_path):
    cluster.hosts("cut", SECOND)
    launched = start(cluster, job, tmp_path / "run")
    assert launched.wait(60) == 2
    assert f"1 of 2 hosts can't be reached by ssh:\n  {SECOND}: " in launched.output
    assert not (tmp_path / "run").exists()
