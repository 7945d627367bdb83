"""launch.doctor and hosts that are not ready."""

import sys

import pytest

from cluster.hosts import FIRST, ROOT, SECOND, Cluster

pytestmark = pytest.mark.cluster
HOLDER = "import socket, time; server = socket.create_server(('', 29500)); time.sleep(60)"


def doctor(cluster: Cluster, *more: str) -> tuple[int, str]:
    done = cluster.on(FIRST, sys.executable, "-m", "launch.doctor", "--hostfile", str(cluster.hostfile), *more)
    return done.returncode, done.stdout + done.stderr


def test_ready(cluster):
    code, printed = doctor(cluster)
    assert code == 0, printed
    lines = printed.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [[FIRST, "ok"], [SECOND, "ok"]]
    assert "reached" in lines[2]
    assert lines[3] == "ready: hosts 2, ranks 2"


def test_all_that_can_be_wrong_with_a_host(cluster, tmp_path, monkeypatch):
    """A small /dev/shm, a folder that is not shared, other code; a port that is taken, and a wrong .deepspeed_env."""
    other, env = tmp_path / "errors.py", tmp_path / "env"
    other.write_text((ROOT / "launch/errors.py").read_text() + "# another version\n")
    env.write_text("# OMP_NUM_THREADS=1\n")
    monkeypatch.setitem(cluster.variables, "DS_ENV_FILE", str(env))
    (tmp_path / "shared").mkdir()
    for words in (
        ("-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"),
        ("-t", "tmpfs", "tmpfs", str(tmp_path / "shared")),
        ("--bind", str(other), str(ROOT / "launch/errors.py")),
    ):
        assert cluster.on(SECOND, "mount", *words).returncode == 0
    holder = cluster.launch("-c", HOLDER)
    code, printed = doctor(cluster, "--shared", str(tmp_path / "shared"))
    cluster.signal("KILL", FIRST, "socket.create_server")
    holder.wait(10)
    cluster.hosts("kill", SECOND)  # and its mounts with it
    assert code == 2, printed
    assert f"{FIRST}: port 29500 taken: Address already in use" in printed
    assert f"{SECOND}: does not see the shared folder" in printed
    assert f"{SECOND}: /dev/shm has 16 MiB, 128 MiB a rank are needed" in printed
    assert f"{SECOND}: the code is " in printed
    assert f"{env}, line 1: '# OMP_NUM_THREADS=1': must be NAME=value" in printed
    assert "not ready: 5 problem(s)" in printed


def test_a_host_that_does_not_answer(cluster):
    cluster.hosts("cut", SECOND)
    code, printed = doctor(cluster)
    assert code == 2
    assert "not ready: 1 problem(s)" in printed
    assert f"{SECOND}: no ssh: " in printed
