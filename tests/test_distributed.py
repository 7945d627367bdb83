"""Seeds, and the world of one process or several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from launch import distributed
from launch.distributed import seed_dropout
from launch.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]


def draw(seed: int, step: int, part: int) -> list[float]:
    seed_dropout(seed, step, part)
    return torch.rand(4).tolist()


def test_dropout_is_a_function_of_seed_step_and_part():
    assert draw(1, 2, 3) == draw(1, 2, 3)
    draws = [draw(*key) for key in ((1, 2, 3), (0, 2, 3), (1, 3, 2), (1, 2, 4), (12, 3, 0), (1, 23, 0))]
    assert len({tuple(d) for d in draws}) == len(draws)


def world() -> tuple:
    found = distributed.start()
    distributed.stop()
    return found.rank, found.ranks, found.device.type, found.is_main, torch.get_num_threads()


def alone() -> tuple:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return world()


def shares_cores() -> int:
    del os.environ["OMP_NUM_THREADS"]
    return world()[-1]


def test_two_ranks():
    assert [found[:4] for found in run_ranks(2, world)] == [(0, 2, "cpu", True), (1, 2, "cpu", False)]


def test_plain_python_is_a_world_of_one():
    assert run_ranks(1, alone)[0][:4] == (0, 1, "cpu", True)


def refused(environment: dict[str, str]) -> str:
    """What a rank says to variables of a launcher."""
    os.environ |= environment
    try:
        distributed.start()
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": ""}, "RANK is ''"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE is '1.5'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"RANK": "1"}, "RANK 1, WORLD_SIZE 1"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT 65536"),
        ({"DS_LOG_LEVEL": "loud"}, "DS_LOG_LEVEL is 'LOUD'"),
    ],
)
def test_odd_variables_are_refused_and_not_waited_for(environment, words):
    assert words in run_ranks(1, refused, environment)[0]


def too_few() -> str:
    with pytest.raises(ConfigError) as caught:
        distributed.start(ranks=3)
    return str(caught.value)


def test_another_number_of_ranks_is_refused():
    """Such as the one rank that DeepSpeed starts where it finds no hostfile."""
    words = "--ranks 3: the launcher made 2: look at hostfile, slots and --num_gpus"
    assert run_ranks(2, too_few) == [words] * 2


@pytest.mark.parametrize("missing", [None, "SIZE", "LOCAL_RANK"])
def test_mpirun_names_the_ranks_in_its_own_way(missing):
    names = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip
    names.pop(f"OMPI_COMM_WORLD_{missing}", None)
    code = "import os; from launch import distributed; print(*map(os.environ.get, %r))"
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    outside = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", code % (ours,)],
        env=outside | names,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == (["None"] * 4 if missing else ["3", "4", "1", "2"])


def test_ranks_of_a_host_share_its_cores():
    cores = len(os.sched_getaffinity(0))
    assert run_ranks(2, shares_cores) == [max(1, cores // 2)] * 2


def asks_main(fails: bool) -> tuple[list[int], str]:
    """In a rank: every rank's number, and what rank 0 alone is asked for."""
    distributed.start()

    def answer() -> str:
        if fails:
            raise DataError(f"not found by rank {os.environ['RANK']}")
        return f"found by rank {os.environ['RANK']}"

    ranks = distributed.gather(int(os.environ["RANK"]))
    try:
        return ranks, distributed.by_main(answer)
    except DataError as error:
        return ranks, str(error)


@pytest.mark.parametrize(("fails", "expected"), [(False, "found by rank 0"), (True, "not found by rank 0")])
def test_what_rank_0_finds_or_not_all_know(fails, expected):
    assert run_ranks(3, asks_main, fails) == [([0, 1, 2], expected)] * 3
