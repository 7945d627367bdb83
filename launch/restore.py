"""Loading a checkpoint: into an engine like the one that saved it, or onto other ranks or another ZeRO stage.

DeepSpeed itself loads a checkpoint only as it was saved. For any other engine, each rank reads what all ranks saved, by
parameter name, cuts out the shard that it would have saved itself, and gives it to DeepSpeed's own loader. Nothing is
written, and every parameter is compared before the first step. (DeepSpeed's universal checkpoints go by way of hundreds
of files, leave out parameters that are not trained, and do not know stage 0.)
"""

import contextlib
import copy
import functools
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.checkpoint import MODEL_STATES, Checkpoint, shard_owner
from launch.distributed import by_main
from launch.errors import CheckpointError

GROUP_NAMES = "parameter_names"  # key of an optimizer's parameter group: the names of its parameters, in order
_ADDRESSES = "param_slice_mappings"  # per group: name -> where in this rank's flat partition its fragment lies
_FP32 = "single_partition_of_fp32_groups"
_OPTIMIZER = "base_optimizer_state"
_GLOBAL = ("loss_scaler", "dynamic_loss_scale", "overflow")


def load(engine: Any, checkpoint: Checkpoint) -> None:
    """Load weights, optimizer, loss scale, schedule and counters into the engine; all ranks call it.

    Hyperparameters of the optimizer stay those of the engine's JSON.

    Raises:
        CheckpointError: not for this model, or more than weights in it.
    """
    by_main(lambda: _open(checkpoint))
    as_saved = (checkpoint.ranks, checkpoint.stage) == (dist.get_world_size(), engine.zero_optimization_stage())
    with weights_only(), _hyperparameters_kept(engine):
        try:
            (_load_as_saved if as_saved else _load_elsewhere)(engine, checkpoint)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{checkpoint.path}: holds more than weights, and is not loaded: {error}") from error
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            raise CheckpointError(f"{checkpoint.path}: can't be loaded: {error!r}") from error
    if engine.global_steps != checkpoint.step:
        raise CheckpointError(f"{checkpoint.path}: loaded step {engine.global_steps}, expected {checkpoint.step}")


def fp32_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All parameters of the wrapped module in fp32, by name, put together from the optimizer shards of all ranks.

    DeepSpeed's own `zero_to_fp32` does not know the files of its BF16_Optimizer (bf16, stage 1, fp32 accumulation);
    the fragment map that every shard carries is the same for all of them.

    Raises:
        CheckpointError: shards or fragments are missing.
    """
    return Content(checkpoint).weights


class Content:
    """What a checkpoint holds, by parameter name, whoever saved it; files are mapped, and read when they are needed.

    Attributes:
        model_states: rank 0's file: module, schedule and counters.
        shards: the optimizer states of all ranks, in their order; none at stage 0.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            CheckpointError: a shard is missing, or a file holds something else than a checkpoint's weights.
        """
        self.model_states = _read(checkpoint.path / MODEL_STATES, "module")
        paths = sorted(checkpoint.path.glob("*_optim_states.pt"), key=shard_owner) if checkpoint.stage else []
        if checkpoint.stage and len(paths) != checkpoint.ranks:
            raise CheckpointError(f"{checkpoint.path}: {len(paths)} optimizer shards of {checkpoint.ranks} ranks")
        self.shards = [_read(path, "optimizer_state_dict")["optimizer_state_dict"] for path in paths]

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """fp32; parameters that are not trained are as the module has them.

        Raises:
            CheckpointError: fragments are missing.
        """
        weights = {name: value.float() for name, value in self.model_states["module"].items()}
        for group in range(self._groups):
            weights |= self._join(group, lambda shard, g: shard[_FP32][g])
        return weights

    @functools.cached_property
    def optimizer(self) -> dict[str, dict[str, Any]]:
        """Name -> the optimizer's state of the parameter: tensors of its shape, and scalars such as the step count;
        nothing before the first step that was not skipped."""
        if not self.shards:
            saved = self.model_states["optimizer"]
            return {n: saved["state"].get(i, {}) for group in saved["param_groups"] for i, n in _indexed(group)}
        states: dict[str, dict[str, Any]] = {}
        for group in range(self._groups):
            names = {name for shard in self.shards for name in shard[_ADDRESSES][group]}
            states |= {name: {} for name in names}
            for key, value in self.shards[0][_OPTIMIZER]["state"].get(group, {}).items():
                if _is_flat(value):
                    joined = self._join(group, lambda shard, g, key=key: shard[_OPTIMIZER]["state"][g][key])
                else:
                    joined = dict.fromkeys(names, value)
                for name, whole in joined.items():
                    states[name][key] = whole
        return states

    @property
    def rates(self) -> list[float]:
        """Learning rate of each parameter group at the next step."""
        saved = self.shards[0][_OPTIMIZER] if self.shards else self.model_states["optimizer"]
        return [group["lr"] for group in saved["param_groups"]]

    @property
    def common(self) -> dict[str, Any]:
        """What all shards say alike: the loss scale."""
        return {key: self.shards[0][key] for key in _GLOBAL if key in self.shards[0]} if self.shards else {}

    @property
    def _groups(self) -> int:
        """Parameter groups of the optimizer that have shards."""
        return len(self.shards[0][_ADDRESSES]) if self.shards else 0

    def _join(self, group: int, flat: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors by parameter name, from the ranks' fragments of one group's flat partitions.

        Args:
            flat: shard, group -> the shard's partition.
        """
        fragments: dict[str, list[torch.Tensor]] = {}
        for shard in self.shards:
            for name, at in shard[_ADDRESSES][group].items():
                fragments.setdefault(name, []).append(flat(shard, group)[_span(at)].detach())
        joined = {}
        for name, parts in fragments.items():
            shape = self.model_states["module"][name].shape
            whole = torch.cat(parts)
            if whole.numel() != shape.numel():
                raise CheckpointError(f"{whole.numel()} of {shape.numel()} values of {name} are in the shards")
            joined[name] = whole.view(shape)
        return joined


def _open(checkpoint: Checkpoint) -> None:
    """Every file, before DeepSpeed opens any: a file that is refused is known to all ranks."""
    Content(checkpoint)


def _load_as_saved(engine: Any, checkpoint: Checkpoint) -> None:
    """DeepSpeed's own way. (Its BF16_Optimizer prints a line of debugging.)"""
    with contextlib.redirect_stdout(io.StringIO()):
        engine.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)


def _load_elsewhere(engine: Any, checkpoint: Checkpoint) -> None:
    """As `engine.load_checkpoint` does it, with a shard that no rank has saved."""
    content = Content(checkpoint)
    states = content.model_states
    engine.load_module_state_dict(checkpoint=states)
    if engine.zero_optimization_stage():
        shards: list[Any] = [None] * dist.get_world_size()
        shards[dist.get_rank()] = _own_shard(engine, content)
        with contextlib.redirect_stdout(io.StringIO()):
            engine.optimizer.load_state_dict(shards, load_optimizer_states=True, load_from_fp32_weights=True)
    else:
        engine.optimizer.load_state_dict(_own_states(engine.optimizer, content))
    if engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(states["lr_scheduler"])
        for group, rate in zip(engine.optimizer.param_groups, content.rates, strict=True):
            group["lr"] = rate
    engine.global_steps, engine.skipped_steps = states["global_steps"], states["skipped_steps"]
    engine.global_samples = states["global_samples"]
    _compare(engine, content)


def _own_states(optimizer: torch.optim.Optimizer, content: Content) -> dict[str, Any]:
    """The state dict that a torch optimizer over whole parameters would have saved."""
    saved = optimizer.state_dict()
    names = {index: name for group in saved["param_groups"] for index, name in _indexed(group)}
    # A deep copy, because optimizers count steps in place, and the count that comes from a shard is one for a group.
    saved["state"] = {i: copy.deepcopy(content.optimizer[n]) for i, n in names.items() if content.optimizer[n]}
    return saved


def _own_shard(engine: Any, content: Content) -> dict[str, Any]:
    """The optimizer shard that this rank of this engine would have saved."""
    shard = engine.optimizer.state_dict() | content.common
    base = shard[_OPTIMIZER] = engine.optimizer.optimizer.state_dict()
    sizes = [group["params"][0].numel() for group in engine.optimizer.optimizer.param_groups]  # padded
    shard[_FP32] = [torch.zeros(size) for size in sizes]
    base["state"] = {}
    for name, parameter in engine.module.named_parameters():
        fragment = getattr(parameter, "_hp_mapping", None)
        if fragment is None:  # not trained, or other ranks'
            continue
        source, target = _span(fragment.lp_fragment_address), _span(fragment.hp_fragment_address)
        group = fragment.param_group_index
        shard[_FP32][group][target] = content.weights[name].flatten()[source]
        for key, value in content.optimizer[name].items():
            state = base["state"].setdefault(group, {})
            if _is_flat(value):
                state.setdefault(key, torch.zeros(sizes[group]))[target] = value.flatten()[source]
            else:
                state[key] = value
    return shard


def _compare(engine: Any, content: Content) -> None:
    """Every parameter is the checkpoint's, on every rank; all ranks call it.

    Raises:
        CheckpointError: names the first parameter that is not.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        expected = content.model_states["module"][name]
        same = torch.equal(parameter.detach().cpu(), expected.to(parameter.dtype))
        whole = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if whole is not None:
            same = same and torch.equal(whole.cpu(), content.weights[name])
        if not same:
            raise CheckpointError(f"parameter {name} differs from the checkpoint's after loading it")


@contextlib.contextmanager
def _hyperparameters_kept(engine: Any) -> Iterator[None]:
    """DeepSpeed's loader brings back the hyperparameters of the checkpoint; but the JSON rules, also where a change
    was allowed. The learning rate is the schedule's, where there is one."""
    moved = {"params", "lr"} if engine.lr_scheduler is not None else {"params"}
    before = [{k: v for k, v in group.items() if k not in moved} for group in engine.optimizer.param_groups]
    yield
    for group, values in zip(engine.optimizer.param_groups, before, strict=True):
        group.update(values)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = engine.gradient_clipping()


def _indexed(group: dict[str, Any]) -> Iterator[tuple[int, str]]:
    return zip(group["params"], group[GROUP_NAMES], strict=True)


def _is_flat(value: Any) -> bool:
    """Whether a value of an optimizer's state has an entry for each weight (a step count has not)."""
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _span(address: Any) -> slice:
    return slice(address.start, address.start + address.numel)


def _read(path: Path, key: str) -> dict[str, Any]:
    """A file of a checkpoint, which holds `key`."""
    try:
        with weights_only():
            content = torch.load(path, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than weights, and is not loaded: {error}") from error
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path}: can't be loaded as weights: {error}") from error
    if not isinstance(content, dict) or key not in content:
        raise CheckpointError(f"{path}: is no file of DeepSpeed's: it does not hold '{key}'")
    return content


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """While it is open, every `torch.load`, DeepSpeed's own included, refuses a pickle with more than weights in it."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(kind: Any, name: Any) -> Any:
        """What Python 3.11.2, that of Debian 12, writes for a member: `getattr(ZeroStageEnum, name)`, and no other."""
        if kind is not ZeroStageEnum or not isinstance(name, str) or name not in ZeroStageEnum.__members__:
            raise pickle.UnpicklingError(f"getattr of {name!r:.40}")
        return getattr(ZeroStageEnum, name)

    safe = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (member, "builtins.getattr")]
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals(safe):
            yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before
