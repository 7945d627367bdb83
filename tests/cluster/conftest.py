"""The hosts, brought up once; SLURM on them, where a test asks for it; and the job that all tests run."""

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs import config_file, flags, make_models
from ranks import read_log, run_ranks, train

from cluster.hosts import Cluster, why_not

STEPS = 150


@pytest.fixture(scope="session")
def machines() -> Iterator[Cluster]:
    """Two hosts without SLURM."""
    if reason := why_not():
        pytest.skip(f"no hosts: {reason}")
    with tempfile.TemporaryDirectory(prefix="dilbert-hosts-") as folder, open("/tmp/dilbert-hosts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # names of namespaces are the machine's: one suite at a time
        cluster = Cluster(Path(folder))
        (Path(folder) / "environment").write_text("OMP_NUM_THREADS=1\n")
        cluster.variables = {
            "DS_ENV_FILE": f"{folder}/environment", "OMP_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }  # fmt: skip
        try:
            cluster.hosts("up", "2")
            yield cluster
        finally:
            cluster.hosts("down")


@pytest.fixture
def cluster(machines: Cluster) -> Iterator[Cluster]:
    """Both hosts up and connected; what a test leaves running ends with it."""
    yield machines
    machines.tidy()


@pytest.fixture
def slurm(cluster: Cluster) -> Iterator[Cluster]:
    """The hosts with SLURM on them."""
    try:
        cluster.slurm("up")
        yield cluster
    finally:
        cluster.slurm("down")


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, dataset_folder: Path) -> list[str]:
    """Arguments of train_dilbert.py, without --output."""
    folder = tmp_path_factory.mktemp("job")
    words = flags(config_file(folder / "c.json"), dataset_folder, make_models(folder), Path("-"))
    words[words.index("--output") : words.index("--output") + 2] = []
    return [*words, "--max-steps", str(STEPS), "--checkpoint-interval", "10"]


@pytest.fixture(scope="session")
def losses(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Of the same job on one host with two ranks, undisturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    assert [code for code, _ in run_ranks(2, train, [*job, "--output", str(output)])] == [0, 0]
    return losses_of(output)


def losses_of(run: Path) -> np.ndarray:
    rows = read_log(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([row["loss"] for row in rows])
