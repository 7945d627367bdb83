"""`.deepspeed_env`: what is refused, and that DeepSpeed's launcher reads the rest as we do."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from launch import deepspeed_env
from launch.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only one there is."""
    monkeypatch.setenv("DS_ENV_FILE", "env")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "env"


def test_deepspeed_reads_the_same(file):
    file.write_text("OMP_NUM_THREADS=4\nHF_HOME = /data/hf home\nNCCL_DEBUG=INFO\nEMPTY=\nURL=a=b")
    found = deepspeed_env.read("pdsh")
    runner = PDSHRunner(SimpleNamespace(user_args=[], user_script=""), "")
    for line in file.read_text().splitlines(keepends=True):
        runner.add_export(*line.split("=", maxsplit=1))
    assert {name: value.strip('"') for name, value in runner.exports.items()} == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A=1\n\nB=2\n", "line 2: '': must be NAME=value"),
        ("# A=1\n", "line 1: '# A=1': must be NAME=value; no comments"),
        ("export A=1\n", "no `export`"),
        ("A\n", "must be NAME=value"),
        ("1A=1\n", "must be NAME=value"),
        ("RANK=0\n", "RANK is the launcher's to set"),
        ("A=1\nMASTER_PORT=29501\n", "line 2: MASTER_PORT is the launcher's to set"),
        ("A=$HOME\n", "the shells of the hosts would read them"),
        ("A=`date`\n", "the shells of the hosts would read them"),
        ('A="b"\n', "the shells of the hosts would read them"),
    ],
)
def test_what_is_refused(text, reason, file):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        deepspeed_env.read("pdsh")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("env, line")


def test_mpi_has_no_shell(file):
    file.write_text("A=b c\n")
    assert deepspeed_env.read("pdsh") == {"A": "b c"}
    with pytest.raises(ConfigError, match="quotes a part of the value"):
        deepspeed_env.read("openmpi")


def test_home_and_current_folder(file, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "env").write_text("A=1\nB=1\n")
    file.write_text("B=2\n")
    assert deepspeed_env.read("pdsh") == {"A": "1", "B": "2"}


def test_what_stays_behind():
    environment = {"OMP_NUM_THREADS": "4", "HF_HOME": "/x", "NCCL_DEBUG": "INFO", "DS_ENV_FILE": "e", "EDITOR": "vi"}
    assert deepspeed_env.left_behind(["HF_HOME"], ["PYTHON"], environment) == ["NCCL_DEBUG", "OMP_NUM_THREADS"]
    assert deepspeed_env.left_behind(["HF_HOME"], ["PYTHON", "NCCL"], environment) == ["OMP_NUM_THREADS"]
