"""What launch.doctor makes of the facts, and the facts of this host. Real hosts: tests/cluster."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import doctor, probe
from launch.diagnosis import COLUMNS, Patient, problems, row
from launch.probe import Question

ROOT = Path(__file__).parents[1]
FACTS: dict[str, Any] = {
    "host": "a", "python": "3.11.7", "packages": {"torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0"},
    "code": "0123abcd", "commit": "89ef+", "gpus": ["H100"] * 2, "token": "secret", "shm": 8 << 30, "port": "free",
}  # fmt: skip
FIRST = Patient("a", 2, True, facts=FACTS, clock=0.1, doubt=0.2)


def second(**changes: Any) -> Patient:
    facts = {**FACTS, "host": "b", "port": "reached", **{k: v for k, v in changes.items() if k in FACTS}}
    return replace(FIRST, name="b", facts=facts, **{k: v for k, v in changes.items() if k not in FACTS})


def test_nothing_wrong():
    assert problems([FIRST, second()], "secret") == []
    cells = row(FIRST, "secret")
    assert len(cells) == len(COLUMNS)
    assert cells == ("a", "ok", "3.11.7", "2.13.0", "0.19.8", "5.23.0", "89ef+ 0123abcd", "2 x H100", "free", "seen",
                     "±0.2 s", "8.0 GiB")  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"slots": 4}, "4 slots, but 2 GPUs"),
        ({"gpus": [], "slots": 2}, "the GPU is none, on a H100: must be the same"),
        ({"gpus": ["A100", "H100"]}, "the GPU is A100, H100, on a H100: must be the same"),
        ({"packages": {**FACTS["packages"], "torch": "2.12.0"}}, "torch is 2.12.0, on a 2.13.0: must be the same"),
        ({"packages": {**FACTS["packages"], "deepspeed": None}}, "deepspeed is missing: `make setup`"),
        ({"python": "3.12.1"}, "Python is 3.12.1, on a 3.11.7: must be the same"),
        ({"code": "ffff0000"}, "the code is ffff0000, on a 0123abcd: must be the same"),
        ({"token": None}, "does not see the shared folder"),
        ({"token": "old"}, "does not see the shared folder"),
        ({"port": "10.0.0.1:29500 not reached: timed out"}, "port 10.0.0.1:29500 not reached: timed out: "),
        ({"clock": -7.5}, "its clock is -7.5 s off: run NTP"),
        ({"shm": 64 << 20}, "/dev/shm has 64 MiB, 128 MiB a rank are needed"),
        ({"host": "a"}, "is the same host as a; name it once, with the slots of both"),
    ],
)
def test_one_thing_is_wrong(changes, found):
    (line,) = problems([FIRST, second(**changes)], "secret")
    assert line.startswith(f"b: {found}")


def test_a_clock_that_can_not_be_told():
    assert problems([FIRST, second(clock=-7.5, doubt=6.0)], "secret") == []


def test_a_silent_host():
    silent = Patient("b", 2, False, "no ssh: Connection refused")
    assert problems([FIRST, silent], "secret") == ["b: no ssh: Connection refused"]
    assert row(silent, "secret")[:3] == ("b", "no", "-")


def test_this_host(tmp_path, monkeypatch, capsys):
    """Without a hostfile, by the real probe."""
    monkeypatch.chdir(ROOT)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        argv = ["doctor", "--shared", str(tmp_path), "--master-port"]
        monkeypatch.setattr(sys, "argv", [*argv, str(port)])
        with pytest.raises(doctor.ConfigError) as caught:
            doctor.main()
        why = "Address already in use: another job has it; --master_port takes another, here and for the start"
        assert str(caught.value) == f"not ready: 1 problem(s)\n  this host: port {port} taken: {why}"
    monkeypatch.setattr(sys, "argv", [*argv, str(port)])
    doctor.main()
    assert capsys.readouterr().out.endswith("ready: hosts 1, ranks 1\n")
    assert list(tmp_path.iterdir()) == []


def test_flags(tmp_path):
    for words in (["--master-port", "0"], ["--shared", str(tmp_path / "none")], ["--hostfile", str(tmp_path / "none")]):
        sys.argv = ["doctor", *words]
        with pytest.raises(doctor.ConfigError, match=words[0]):
            doctor.main()


def test_hosts_find_each_other(tmp_path, monkeypatch):
    """The listener waits for as many as it was told."""
    from concurrent.futures import ThreadPoolExecutor

    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(probe._listen, port, 1)
        assert probe._visit(f"127.0.0.1:{port}") == "reached"
        assert first.result(timeout=30) == "free"
    monkeypatch.setattr(probe, "PATIENCE", 0.3)
    assert probe._listen(port, 1) == "free"
    assert probe._visit(f"127.0.0.1:{port}") == f"127.0.0.1:{port} not reached: Connection refused"


def test_facts_of_this_host(tmp_path):
    (tmp_path / "token").write_text("secret")
    facts = probe.answer(Question(tmp_path / "token"))
    assert facts.keys() == FACTS.keys()
    assert facts["packages"]["torch"]
    assert (facts["token"], facts["port"]) == ("secret", "")
    assert facts["code"] == probe.code()
    assert probe.answer(Question(tmp_path / "none"))["token"] is None


def test_a_terminal_that_has_ascii_alone():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "launch.doctor"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert re.search(r"this host  ok .* \?\d\.\d s ", done.stdout)
