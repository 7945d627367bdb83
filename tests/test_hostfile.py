"""Hostfiles: what is refused, and that DeepSpeed reads what is not as we do."""

import contextlib
from pathlib import Path

import pytest
from deepspeed.launcher import runner
from hypothesis import given
from hypothesis import strategies as st

from launch import hostfile, ssh
from launch.errors import ConfigError
from launch.hostfile import Host

EXAMPLE = Path(__file__).parents[1] / "launch" / "hostfile.example"


def write(folder: Path, text: str) -> Path:
    (folder / "hosts").write_text(text, encoding="utf-8")
    return folder / "hosts"


def test_hosts_in_their_order(tmp_path):
    text = "# the cluster\n\n  worker-2.site slots=8  # the large one\nworker_1\tslots=4\n10.0.0.7 slots=1\n"
    found = hostfile.read(write(tmp_path, text))
    assert found == (Host("worker-2.site", 8), Host("worker_1", 4), Host("10.0.0.7", 1))


def test_the_example():
    assert hostfile.read(EXAMPLE) == (Host("worker-1", 8), Host("worker-2", 8))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no host"),
        ("# a slots=1\n\n", "holds no host"),
        ("a\n", "line 1: 'a': a line is `name slots=ranks`"),
        ("a slots=1\nb slots=\n", "line 2: 'b slots=': a line is"),
        ("a slots=2x\n", "a line is"),
        ("a slots=2 max_slots=4\n", "a line is"),
        ("a slots=-1\n", "a line is"),
        ("a slots=0\n", "slots=0: must be 1 to 1024"),
        ("a slots=99999999999999999999\n", "must be 1 to 1024"),
        ("-oProxyCommand=reboot slots=1\n", "is no host name"),
        ("a-  slots=1\n", "is no host name"),
        ("a,b slots=1\n", "is no host name"),
        ("node[1-4] slots=8\n", "is no host name"),
        ("me@a slots=1\n", "user names and ports belong into ~/.ssh/config"),
        ("a;reboot slots=1\n", "is no host name"),
        ("wörker slots=1\n", "is no host name"),
        ("a slots=1\nb slots=1\na slots=2\n", "line 3: a stands there twice"),
    ],
)
def test_what_is_refused(text, reason, tmp_path):
    with pytest.raises(ConfigError) as caught:
        hostfile.read(write(tmp_path, text))
    assert reason in str(caught.value)
    assert str(tmp_path / "hosts") in str(caught.value)


def test_no_hostfile_is_no_local_run(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory; DeepSpeed alone would train on this host only"):
        hostfile.read(tmp_path / "hosts")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        hostfile.read(tmp_path / "binary")
    with pytest.raises(ConfigError, match="Is a directory"):
        hostfile.read(tmp_path)


LINES = st.lists(st.text("ab1-. \t#=0\x0b\u2028\rslots", max_size=12) | st.sampled_from(["a slots=1", "b slots=2 # x"]))


@given(LINES.map("\n".join))
def test_deepspeed_reads_the_same(tmp_path_factory, text):
    """Of any text: either it is refused, or DeepSpeed finds the same hosts in it."""
    path = write(tmp_path_factory.getbasetemp(), text)
    with contextlib.suppress(ConfigError):
        found = hostfile.read(path)
        assert runner.fetch_hostfile(str(path)) == {host.name: host.slots for host in found}


def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An `ssh` that does what the script says; $HOST is its host."""
    link = tmp_path / "ssh"
    link.write_text(f'#!/bin/sh\nfor last; do HOST="$before" before="$last"; done\n{script}\n')
    link.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_unreachable_hosts_are_named(tmp_path, monkeypatch):
    answers(tmp_path, monkeypatch, '[ "$HOST" = a ] || { echo "Permission denied (publickey)." >&2; exit 255; }')
    hostfile.check_reachable(["a"])
    with pytest.raises(ConfigError) as caught:
        hostfile.check_reachable(["a", "b", "c"])
    message = str(caught.value)
    assert "2 of 3 hosts can't be reached by ssh:\n  b: Permission denied (publickey).\n  c: " in message


def test_ssh_asks_nothing_and_does_not_wait(tmp_path, monkeypatch):
    answers(tmp_path, monkeypatch, 'echo "$@"; exec sleep 60')
    answer = ssh.on_all({"a": "true"}, port=2222, timeout=0.5)["a"]
    assert (answer.code, answer.reason) == (255, "no answer within 0.5 s")
    answers(tmp_path, monkeypatch, 'echo "$@"')
    words = ssh.on_all({"a": "true"}, port=2222)["a"].output
    assert "BatchMode=yes" in words
    assert "-p 2222 a true" in words


def test_without_ssh(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="ssh is not installed"):
        hostfile.check_reachable(["a"])
