"""launch.start: what DeepSpeed is called with, and what is refused before. Real launches: tests/cluster."""

import socket
from pathlib import Path

import pytest
from deepspeed.launcher import runner

from launch import start
from launch.errors import ConfigError

SCRIPT = ["train_dilbert.py", "--data", "a:0.7", "--output", "runs/first"]


@pytest.fixture
def hosts(tmp_path: Path) -> str:
    (tmp_path / "hosts").write_text("a slots=2\nb slots=2\nc slots=1\n")
    return str(tmp_path / "hosts")


def test_deepspeed_gets_the_same_words_and_the_number_of_ranks(hosts):
    job = start.read(["--hostfile", hosts, "--master_port", "29501", *SCRIPT])
    assert job.words == ["--hostfile", hosts, "--master_port", "29501", "--force_multi", "train_dilbert.py", "--ranks",
                         "5", *SCRIPT[1:]]  # fmt: skip
    assert (job.launcher, job.hosts, job.folder) == ("pdsh", {"a": 2, "b": 2, "c": 1}, Path("runs/first"))
    args = runner.parse_args(job.words)
    assert (args.user_script, args.user_args) == ("train_dilbert.py", ["--ranks", "5", *SCRIPT[1:]])


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        (["--include", "b"], {"b": 2}),
        (["--include", "a:1@c"], {"a": 1, "c": 1}),
        (["--exclude", "a"], {"b": 2, "c": 1}),
        (["--num_nodes", "2"], {"a": 2, "b": 2}),
        (["--num_gpus", "1"], {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_part_of_the_hosts(words, ranks, hosts):
    job = start.read(["--hostfile", hosts, *words, *SCRIPT])
    assert job.hosts == ranks
    assert job.words[job.words.index("--ranks") + 1] == str(sum(ranks.values()))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--include", "d"], "--include 'd' --exclude '': Hostname 'd' not found"),
        (["--num_nodes", "4"], "--num_nodes 4: .* has 3 hosts"),
        (["--num_gpus", "2"], "--num_gpus 2: c has 1 slots"),
        (["--exclude", "a@b@c"], "leaves no host"),
        (["--launcher", "slurm"], "pdsh or openmpi; under SLURM see launch/slurm/"),
        (["--no_ssh"], "--no_ssh: starts one host"),
        (["--autotuning", "run"], "--autotuning: tunes"),
    ],
)
def test_what_is_refused(words, reason, hosts):
    with pytest.raises(ConfigError, match=reason):
        start.read(["--hostfile", hosts, *words, *SCRIPT])


def test_no_hostfile(tmp_path):
    with pytest.raises(ConfigError, match="--hostfile: is missing; one host alone needs none"):
        start.read(SCRIPT)
    with pytest.raises(ConfigError, match="No such file"):
        start.read(["--hostfile", str(tmp_path / "none"), *SCRIPT])


@pytest.mark.parametrize("words", [["train_dilbert.py"], ["train_dilbert.py", "--output"]])
def test_no_run_folder(words, hosts):
    with pytest.raises(ConfigError, match=r"train_dilbert\.py: --output is missing"):
        start.read(["--hostfile", hosts, *words])


def test_the_run_folder_of_a_config_file(hosts, tmp_path):
    (tmp_path / "c.yaml").write_text("output: runs/other\nmax_steps: 3\n")
    words = ["--hostfile", hosts, "train_dilbert.py", "--config", str(tmp_path / "c.yaml")]
    assert start.read(words).folder == Path("runs/other")
    assert start.read([*words, "--output", "runs/first"]).folder == Path("runs/first")


@pytest.mark.parametrize("word", ["a b'c", "*.txt", "$HOME", "a;b"])
def test_words_that_shells_would_change(word, hosts):
    with pytest.raises(ConfigError, match="pdsh hands it to the hosts' shells"):
        start.read(["--hostfile", hosts, *SCRIPT, "--teacher", word])
    assert word in start.read(["--hostfile", hosts, "--launcher", "openmpi", *MPI, *SCRIPT, "--teacher", word]).words


MPI = ["--launcher_args", "--mca btl_tcp_if_include lo"]


def test_mpi_gets_port_and_network(hosts, monkeypatch):
    words = ["--hostfile", hosts, "--launcher", "openmpi", "--master_port", "29501"]
    job = start.read([*words, *MPI, *SCRIPT])
    assert runner.parse_args(job.words).launcher_args == "--mca btl_tcp_if_include lo -x MASTER_PORT=29501"
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "ens3")])
    with pytest.raises(ConfigError, match='--launcher_args "--mca btl_tcp_if_include ens3"'):
        start.read([*words, *SCRIPT])
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    args = runner.parse_args(start.read([*words, *SCRIPT]).words)
    assert args.launcher_args == "-x MASTER_PORT=29501"


def test_checks_before_the_start(hosts, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(start.hostfile, "check_reachable", lambda names, port: asked.append((names, port)))
    monkeypatch.setattr(start.shutil, "which", lambda name: name)
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "env"))
    (tmp_path / "env").write_text("HF_HOME=/x\n")
    monkeypatch.setenv("HF_HOME", "/x")
    monkeypatch.setenv("DILBERT_NATIVE", "0")
    job = start.read(["--hostfile", hosts, "--ssh_port", "2222", "--exclude", "c", *SCRIPT])
    start.check(job)
    assert asked == [(["a", "b"], 2222)]
    printed = capsys.readouterr().out
    assert "DILBERT_NATIVE" in printed
    assert "HF_HOME" not in printed
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="--launcher pdsh: pdsh is not installed on this host"):
        start.check(job)
