"""Process group, rank, device, engine, seeds: the same for plain `python`, `deepspeed` and `torchrun`."""

import contextlib
import hashlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from launch import cpu  # noqa: F401  # isort: skip  (before torch)

import torch

# Read when DeepSpeed is first imported: without a GPU it warns, unless told that the CPU is meant.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# mpirun (`deepspeed --launcher openmpi`) numbers the ranks by names of its own.
if "RANK" not in os.environ and all(
    f"OMPI_COMM_WORLD_{name}" in os.environ for name in ("RANK", "LOCAL_RANK", "SIZE", "LOCAL_SIZE")
):
    os.environ |= {
        "RANK": os.environ["OMPI_COMM_WORLD_RANK"], "LOCAL_RANK": os.environ["OMPI_COMM_WORLD_LOCAL_RANK"],
        "WORLD_SIZE": os.environ["OMPI_COMM_WORLD_SIZE"], "LOCAL_WORLD_SIZE": os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"],
    }  # fmt: skip

import deepspeed
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger

from launch.args import require
from launch.errors import ConfigError, DilbertError

T = TypeVar("T")

# What DeepSpeed raises where a value in its JSON is of a wrong kind (pydantic's errors are ValueErrors).
_REFUSALS = (ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError, ImportError,
             RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class World:
    """This process among all ranks of the job."""

    rank: int
    ranks: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 prints, logs and writes what only one may write."""
        return self.rank == 0


def is_main() -> bool:
    """Whether this is rank 0, before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def device_type() -> str:
    """What this machine trains on: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def start(ranks: int | None = None) -> World:
    """Join the process group; must come before anything that allocates on a device.

    Args:
        ranks: as many as there should be; None: any number.

    Raises:
        ConfigError: the ranks can't meet, are too few or too many, or several tasks were started without ranks.
    """
    level = os.environ.get("DS_LOG_LEVEL", "error").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"DS_LOG_LEVEL is {level!r}: must be debug, info, warning, error or critical")
    deepspeed_logger.setLevel(level)
    # DeepSpeed 0.19 calls by its old name what torch 2.13 has renamed; once a rank and run is too often.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    _be_alone_unless_launched()
    made = _number("WORLD_SIZE", "1")  # each rank can tell by itself; a rank that waits for one that has ended can not
    rule = f"the launcher made {made}: look at hostfile, slots and --num_gpus"
    require(ranks in (None, made), "ranks", ranks, rule)
    # On CPUs DeepSpeed would build an extension for minutes, and leak 66 MB of shared memory a rank at every run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = _number("LOCAL_RANK", "0")
    if device_type() == "cuda":
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        _share_cores()
    try:
        deepspeed.init_distributed(verbose=False, distributed_port=_number("MASTER_PORT", "29500"))
    except dist.DistNetworkError as error:
        raise ConfigError(
            f"the ranks can't meet at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: {error}\n"
            "Another job on this host? Give this one a port of its own: deepspeed --master_port 29501 ..."
        ) from error
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def stop() -> None:
    """Leave the process group at the end of a job that went well, so that nothing warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this rank at once.

    After an error other ranks may sit in a collective: an orderly way out would wait for them, and they for it.
    """
    with contextlib.suppress(BrokenPipeError):  # a launcher that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def initialise(module: torch.nn.Module, groups: list[dict[str, Any]], config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around a module.

    Raises:
        ConfigError: what DeepSpeed does not accept in its JSON.
    """
    try:
        engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=config)
    except _REFUSALS as error:
        raise ConfigError(f"DeepSpeed refuses its configuration: {type(error).__name__}: {error}") from error
    return engine


def _be_alone_unless_launched() -> None:
    """Plain `python`: set what a launcher would; DeepSpeed would look for MPI otherwise."""
    if "RANK" in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")
        rank, ranks = _number("RANK", "0"), _number("WORLD_SIZE", "1")
        if rank >= ranks or not 0 < _number("MASTER_PORT", "29500") < 65536:
            port = os.environ.get("MASTER_PORT")
            raise ConfigError(f"RANK {rank}, WORLD_SIZE {ranks}, MASTER_PORT {port}: no launcher sets this; unset them")
        return
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if _number(name, "1") > 1:
            raise ConfigError(
                f"{name} is {os.environ[name]}, but RANK is not set: each task would train alone. Start the tasks with "
                "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or use deepspeed or torchrun"
            )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def _share_cores() -> None:
    """Give each rank of this host its share of the cores, unless the user has chosen."""
    if "OMP_NUM_THREADS" not in os.environ:
        local_ranks = _number("LOCAL_WORLD_SIZE" if os.environ.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE", "1")
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local_ranks)))


def _number(name: str, default: str) -> int:
    """A variable that launchers set.

    Raises:
        ConfigError: it is no whole number.
    """
    value = os.environ.get(name, default)
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise ConfigError(f"{name} is {value!r}, but launchers set a whole number: correct or unset it")
    return int(value)


def mean(value: torch.Tensor) -> float:
    """Of a scalar over all ranks."""
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on all of them."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def by_main(function: Callable[[], T]) -> T:
    """What the function returns on rank 0, which alone calls it, on every rank.

    Raises:
        DilbertError, OSError: on every rank, what it raised there, so that none waits for another.
    """
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [function()]
        except (DilbertError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Seed torch's generators for one micro-batch: a pure function, so no generator state needs saving."""
    digest = hashlib.blake2b(f"{seed} {step} {part}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
