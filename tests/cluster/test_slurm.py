"""The scripts of launch/slurm under a real SLURM: the same losses; stopped, queued again and gone on by its rules."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.conftest import losses_of
from cluster.hosts import HOSTS, Cluster, steps, wait_until

pytestmark = pytest.mark.cluster
_START, _END = 120, 120  # seconds, on a machine that has other things to do
SMALL = ("--partition=all", "--ntasks-per-node=1")  # where the scripts name a partition of GPUs, and a task each


def submit(cluster: Cluster, script: str, output: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    """The job's number."""
    own = (*SMALL, f"--output={output}.out", "--parsable", *options)
    return cluster.slurm("sbatch", *own, f"launch/slurm/{script}.sbatch", *words)


def state(cluster: Cluster, number: str) -> str:
    shown = cluster.slurm("scontrol", "show", "job", number)
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]


def printed(output: Path) -> str:
    return Path(f"{output}.out").read_text(errors="replace")


def until(cluster: Cluster, number: str, ends: str, output: Path) -> None:
    """Wait for a job's last state."""
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    found = wait_until(lambda: next((s for s in ended if s == state(cluster, number)), None), _END, "the job's end")
    assert found == ends, printed(output) + cluster.slurm("scontrol", "show", "job", number)


def when(run: Path, more_than: int) -> Callable[[], bool]:
    return lambda: steps(run) > more_than


def start_again(cluster: Cluster, number: str) -> None:
    """SLURM waits two minutes before it starts a job that was queued again, so that all of it has gone: seconds do."""
    steps_of_it = r"slurmstepd:|slurm_script"
    wait_until(lambda: state(cluster, number) == "PENDING", _END, "the job back in the queue")
    wait_until(lambda: not any(cluster.processes(host, steps_of_it) for host in HOSTS), _END, "the end of its steps")
    cluster.slurm("scontrol", "update", f"JobId={number}", "StartTime=now+5")
    wait_until(lambda: state(cluster, number) != "PENDING", _START, "another start of the job")


@pytest.mark.parametrize("script", ["srun", "hostfile"])
def test_the_same_losses(script, slurm, job, losses, tmp_path):
    number = submit(slurm, script, tmp_path / script, str(tmp_path / "run"), *job)
    until(slurm, number, "COMPLETED", tmp_path / script)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses, rtol=1e-6)
    assert not slurm.left()


def test_data_by_mpi(slurm, dataset_folder, texts, tokenizer_folder, tmp_path):
    """The same bytes as from one process."""
    words = ["--input", *map(str, texts), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "made")]
    number = submit(slurm, "data", tmp_path / "data", *words)
    until(slurm, number, "COMPLETED", tmp_path / "data")
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").glob("*.*") if path.suffix in (".bin", ".idx")}
    assert made == {path.name: path.read_bytes() for path in dataset_folder.glob("*.*") if path.name in made}
    assert len(made) == 6


@pytest.mark.parametrize("script", ["srun", "hostfile"])
def test_a_signal_stops_and_queues_again(script, slurm, job, losses, tmp_path):
    run = tmp_path / "run"
    number = submit(slurm, script, tmp_path / script, str(run), *job)
    wait_until(when(run, 15), _START, "step 15")
    slurm.slurm("scancel", "--batch", "--signal=USR1", number)
    wait_until((run / "STOPPED.json").exists, _END, "the stop")
    assert json.loads((run / "STOPPED.json").read_text())["why"].startswith("the file STOP")
    start_again(slurm, number)
    until(slurm, number, "COMPLETED", tmp_path / script)
    assert "going on after step" in printed(tmp_path / script)
    np.testing.assert_allclose(losses_of(run), losses, rtol=1e-6)


def test_queued_again_by_hand(slurm, job, losses, tmp_path):
    """`scontrol requeue`, as SLURM does it when a job is preempted."""
    run = tmp_path / "run"
    number = submit(slurm, "srun", tmp_path / "srun", str(run), *job)
    wait_until(when(run, 15), _START, "step 15")
    slurm.slurm("scontrol", "requeue", number)
    start_again(slurm, number)
    until(slurm, number, "COMPLETED", tmp_path / "srun")
    assert "going on after step" in printed(tmp_path / "srun")
    np.testing.assert_allclose(losses_of(run), losses, rtol=1e-6)


def test_a_time_limit(slurm, job, tmp_path):
    """Stopped before it is up, queued again, and gone on."""
    run, limits = tmp_path / "run", ("--time=1", "--signal=B:USR1@5")
    number = submit(slurm, "srun", tmp_path / "srun", str(run), *job, "--max-steps", "1000000", options=limits)
    wait_until(when(run, 0), _START, "step 1")
    wait_until((run / "STOPPED.json").exists, _START, "the stop in time")
    stopped = json.loads((run / "STOPPED.json").read_text())["step"]
    start_again(slurm, number)
    wait_until(lambda: f"going on after step {stopped}" in printed(tmp_path / "srun"), _START, "the second start")
    slurm.slurm("scancel", number)
    until(slurm, number, "CANCELLED", tmp_path / "srun")
    wait_until(lambda: not slurm.left(), 25, f"the end of {slurm.left()}")


def test_what_is_never_queued_again(slurm, job, tmp_path):
    """A run that was told where to stop, and one that can't start."""
    run = tmp_path / "run"
    told = submit(slurm, "srun", tmp_path / "told", str(run), *job, "--stop-at-step", "3", options=("--nodes=1",))
    wrong = submit(slurm, "srun", tmp_path / "wrong", str(run) + "2", *job, "--seed", "x", options=("--nodes=1",))
    until(slurm, told, "FAILED", tmp_path / "told")
    until(slurm, wrong, "FAILED", tmp_path / "wrong")
    assert json.loads((run / "STOPPED.json").read_text())["step"] == 3
    assert "--seed" in printed(tmp_path / "wrong")
