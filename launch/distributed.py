"""Process group, rank, device, engine, seeds: the same for plain `python`, `deepspeed` and `torchrun`."""

import hashlib
import os
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import Any, NoReturn

from launch import cpu  # noqa: F401  # isort: skip  (before torch)

import torch

# Read when DeepSpeed is first imported: without a GPU it warns, unless told that the CPU is meant.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch.distributed as dist
from deepspeed.utils import logger as deepspeed_logger

from launch.errors import ConfigError


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


def start() -> World:
    """Join the process group; must come before anything that allocates on a device.

    Raises:
        ConfigError: the ranks can't meet, or several tasks were started without ranks.
    """
    deepspeed_logger.setLevel(os.environ.get("DS_LOG_LEVEL", "error").upper())
    # DeepSpeed 0.19 calls by its old name what torch 2.13 has renamed; once a rank and run is too often.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    _be_alone_unless_launched()
    # On CPUs DeepSpeed would build an extension for minutes, and leak 66 MB of shared memory a rank at every run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type() == "cuda":
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        _share_cores()
    try:
        deepspeed.init_distributed(verbose=False)
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
    except (ValueError, TypeError, AssertionError, KeyError) as error:  # pydantic's errors are ValueErrors
        raise ConfigError(f"DeepSpeed refuses its configuration: {type(error).__name__}: {error}") from error
    return engine


def _be_alone_unless_launched() -> None:
    """Plain `python`: set what a launcher would; DeepSpeed would look for MPI otherwise."""
    if "RANK" in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")
        return
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(os.environ.get(name, "1")) > 1:
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
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))


def mean(value: torch.Tensor) -> float:
    """Of a scalar over all ranks."""
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Seed torch's generators for one micro-batch: a pure function, so no generator state needs saving."""
    digest = hashlib.blake2b(f"{seed} {step} {part}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
