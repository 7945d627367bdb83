"""Each way to start a job on two hosts: the same losses as on one host."""

import numpy as np
import pytest

from cluster.conftest import losses_of
from cluster.hosts import Cluster

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
