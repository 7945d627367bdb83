"""Each way to start a job on two hosts: the same losses as on one host."""

import numpy as np
import pytest

from cluster.conftest import losses_of
from cluster.hosts import FIRST, Cluster

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("launcher", ["pdsh", "openmpi"])
def test_a_hostfile(launcher, cluster: Cluster, job, losses, tmp_path):
    run = tmp_path / "run"
    words = [
        "--hostfile",
        str(cluster.hostfile),
        "--launcher",
        launcher,
        "train_dilbert.py",
        *job,
        "--output",
        str(run),
    ]
    rehearsed = cluster.launch("-m", "launch.start", *words, "--dry-run")
    assert rehearsed.wait(180) == 0, rehearsed.output
    assert [path.name for path in run.iterdir()] == ["dry-run"]
    assert "ready." in rehearsed.output
    launched = cluster.launch("-m", "launch.start", *words)
    assert launched.wait(180) == 0, launched.output
    np.testing.assert_allclose(losses_of(run), losses, rtol=1e-6)
    assert not cluster.left()


def test_data_by_mpirun_and_the_same_hostfile(cluster: Cluster, dataset_folder, texts, tokenizer_folder, tmp_path):
    """A rank on each host; the same bytes as from one process."""
    words = ["--input", *map(str, texts), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "made")]
    mpirun = ["mpirun", "--hostfile", str(cluster.hostfile), "-x", "PATH", "-n", "2"]  # each has one slot
    done = cluster.on(FIRST, *mpirun, "python", "-m", "data.binarize", *words)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "made").glob("*.*") if path.suffix in (".bin", ".idx")}
    assert made == {path.name: path.read_bytes() for path in dataset_folder.glob("*.*") if path.name in made}
    assert len(made) == 6
