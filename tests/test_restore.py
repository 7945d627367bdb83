"""A checkpoint goes on anywhere: on other ranks, at another ZeRO stage, in any precision."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import NO_DROPOUT, config_file, flags, make_models
from ranks import allow_fp16, read_log, run_ranks, train

from launch import checkpoint, restore
from launch.errors import CheckpointError

STEPS = 18


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def still_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Without dropout."""
    return make_models(tmp_path_factory.mktemp("still"), **NO_DROPOUT)


def start(ranks: int, argv: list[str], patch=None, expect: int = 0) -> str:
    results = run_ranks(ranks, train, argv, patch)
    assert [code for code, _ in results] == [expect] * ranks, results
    return results[0][1]


def losses(output: Path, *names: str) -> np.ndarray:
    """[steps, figures]: the loss, its parts and the gradient's norm, or the figures named."""
    names = names or ("loss", "loss_ce", "loss_mlm", "loss_cos", "grad_norm")
    return np.array([[row[name] for name in names] for row in read_log(output)])


def relay(folder: Path, legs, data: Path, models, *more: str, patch=None, **config) -> Path:
    """One run of STEPS steps in several starts, each on (ranks, stage, micro-batch) of its own."""
    for number, (ranks, stage, micro) in enumerate(legs):
        json = config_file(folder / f"{number}.json", stage=stage, micro=micro, **config)
        argv = flags(json, data, models, folder / "run", "--max-steps", str(STEPS), *more)
        last = number == len(legs) - 1
        stop = [] if last else ["--stop-at-step", str(STEPS * (number + 1) // len(legs))]
        start(ranks, [*argv, *stop], patch, expect=0 if last else 75)
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, still_models, dataset_folder) -> np.ndarray:
    """One rank, stage 1, fp32, no dropout, position embeddings frozen."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return losses(relay(folder, [(1, 1, 4)], dataset_folder, still_models, "--freeze-pos-embs"))


RELAYS = {
    "2-1-2 ranks": [(2, 1, 4), (1, 1, 4), (2, 1, 4)],
    "1-2-4 ranks": [(1, 2, 4), (2, 2, 4), (4, 2, 2)],
    "stage 1-2-1": [(1, 1, 4), (1, 2, 4), (1, 1, 4)],
    "stage 0-2-0": [(1, 0, 4), (2, 2, 8), (2, 0, 4)],
}


@pytest.mark.parametrize("legs", RELAYS.values(), ids=RELAYS)
def test_losses_do_not_see_where_a_run_goes_on(legs, undisturbed, still_models, dataset_folder, tmp_path):
    found = losses(relay(tmp_path, legs, dataset_folder, still_models, "--freeze-pos-embs"))
    assert found.shape == undisturbed.shape == (STEPS, 5)
    np.testing.assert_allclose(found[:, 0], undisturbed[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found, undisturbed, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_come_along(still_models, dataset_folder, tmp_path):
    from model.pretrained import DilBertForMaskedLM

    run = relay(tmp_path, [(2, 1, 4), (1, 2, 4)], dataset_folder, still_models, "--freeze-pos-embs")
    before = DilBertForMaskedLM.from_pretrained(still_models[1]).state_dict()
    after = restore.fp32_weights(checkpoint.newest(run / "checkpoints"))
    assert torch.equal(before["embeddings.position.weight"], after["student.embeddings.position.weight"])


def test_with_dropout_where_the_parts_stay(models, dataset_folder, tmp_path):
    """4 parts a step: 2 ranks x 2, 1 rank x 4."""
    (tmp_path / "whole").mkdir()
    whole = losses(relay(tmp_path / "whole", [(2, 1, 4)], dataset_folder, models))
    found = losses(relay(tmp_path, [(2, 1, 4), (1, 2, 4), (2, 2, 4)], dataset_folder, models))
    np.testing.assert_allclose(found[:, 0], whole[:, 0], rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_low_precision(precision, still_models, dataset_folder, tmp_path):
    """bf16 with fp32 accumulation is another optimizer of DeepSpeed's at stage 1 than at stage 2."""
    if precision == "bf16":
        more, patch, names = {"data_types": {"grad_accum_dtype": "fp32"}}, None, ("loss", "lr", "skipped_steps")
    else:  # a scale that doubles after 8 steps, and is small enough never to overflow, on whatever ranks
        more = {"fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 8}}
        patch, names = allow_fp16, ("loss", "lr", "skipped_steps", "loss_scale")
    figures = []
    for name, legs in (("whole", [(1, 1, 4)]), ("relay", [(2, 1, 4), (1, 2, 4), (2, 1, 4)])):
        (tmp_path / name).mkdir()
        run = relay(
            tmp_path / name, legs, dataset_folder, still_models, patch=patch, **{precision: {"enabled": True}} | more
        )
        figures.append(losses(run, *names))
    np.testing.assert_allclose(figures[1][:, 0], figures[0][:, 0], rtol=3e-3)
    np.testing.assert_array_equal(figures[1][:, 1:], figures[0][:, 1:])
    if precision == "fp16":
        assert set(figures[0][:, 3]) == {16.0, 32.0, 64.0}


def test_moments_and_counts_come_along(still_models, dataset_folder, tmp_path):
    """All that the optimizer knows of a parameter is the same before and after a change of ranks and stage."""
    run = relay(tmp_path, [(2, 1, 4)], dataset_folder, still_models)
    before = restore.Content(checkpoint.newest(run / "checkpoints"))
    assert len(before.optimizer) == len(before.weights)
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in before.optimizer.values())
    assert {float(state["step"]) for state in before.optimizer.values()} == {STEPS}
    found = run_ranks(1, reload, str(tmp_path), str(still_models[1]))[0]
    assert found.keys() == before.optimizer.keys()
    for name, (weight, *moments) in found.items():
        assert np.array_equal(weight, before.weights[name])
        for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            assert moment.any()
            assert np.array_equal(moment, before.optimizer[name][key])


def reload(folder: str, student: str) -> dict[str, list[np.ndarray]]:
    """In a rank: the run's newest checkpoint at stage 2; weights and moments, as DeepSpeed shows them to a user."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from launch import distributed, ds_config
    from model.distiller import Distiller, parameter_groups
    from model.losses import Objective
    from model.pretrained import DilBertForMaskedLM

    world = distributed.start()
    config = ds_config.load(config_file(Path(folder) / "2.json", stage=2), "cpu")
    distiller = Distiller(DilBertForMaskedLM.from_pretrained(student), None, Objective())
    engine = distributed.initialise(
        distiller, parameter_groups(distiller), ds_config.resolve(config, world.ranks, STEPS, 1)
    )
    restore.load(engine, checkpoint.newest(Path(folder) / "run" / "checkpoints"))
    engine.optimizer._lazy_init_hp_params_optimizer_state()  # DeepSpeed links the moments at the first step
    return {
        name: [
            safe_get_full_fp32_param(p).numpy(),
            *(safe_get_full_optimizer_state(p, key).numpy() for key in ("exp_avg", "exp_avg_sq")),
        ]
        for name, p in engine.module.named_parameters()
    }


@pytest.mark.parametrize("ranks", [1, 2], ids=["as saved", "elsewhere"])
def test_an_allowed_change_of_the_optimizer_takes_effect(ranks, models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json")
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    start(1, [*argv, "--stop-at-step", "2"], expect=75)
    config.write_text(config.read_text().replace('"weight_decay": 0.01', '"weight_decay": 0.25').replace("5.0", "0.5"))
    allowed = ["--allow-change", "gradient_clipping", "optimizer.params.weight_decay"]
    start(ranks, [*argv, *allowed])
    path = checkpoint.newest(tmp_path / "run" / "checkpoints").path
    saved = torch.load(next(path.glob("*_optim_states.pt")), weights_only=False)["optimizer_state_dict"]
    assert [group["weight_decay"] for group in saved["base_optimizer_state"]["param_groups"]] == [0.25, 0.0]
    assert saved["clip_grad"] == 0.5


def test_a_parameter_that_was_not_loaded_is_found():
    module = torch.nn.Linear(2, 2)
    state = {name: p.detach().clone() for name, p in module.named_parameters()}
    content = SimpleNamespace(model_states={"module": state}, weights=state)
    restore._compare(SimpleNamespace(module=module), content)
    state["bias"][1] += 1e-6
    with pytest.raises(CheckpointError, match="parameter bias differs"):
        restore._compare(SimpleNamespace(module=module), content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, models, dataset_folder) -> Path:
    """Checkpoints of two ranks at stage 2, position embeddings frozen."""
    folder = tmp_path_factory.mktemp("saved")
    argv = flags(config_file(folder / "c.json", stage=2), dataset_folder, models, folder / "run", "--max-steps", "4")
    start(2, [*argv, "--freeze-pos-embs"])
    return folder / "run" / "checkpoints"


def test_fp32_weights_equal_deepspeeds_own_conversion(saved):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    ours = restore.fp32_weights(checkpoint.newest(saved))
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(saved), tag="step00000004")
    assert ours.keys() == theirs.keys()
    assert "student.embeddings.position.weight" in ours, "frozen parameters are part of the model"
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_a_missing_shard_is_an_error(saved, tmp_path):
    import shutil

    shutil.copytree(saved, tmp_path / "checkpoints")
    found = checkpoint.newest(tmp_path / "checkpoints")
    next(found.path.glob("zero_pp_rank_1_*")).unlink()
    with pytest.raises(CheckpointError, match="1 optimizer shards of 2 ranks"):
        restore.fp32_weights(found)


def test_weights_only_is_forced_and_given_back(monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with restore.weights_only():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert "deepspeed" in sys.modules


class Getattr:
    """Pickled as `getattr(kind, name)`."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return getattr, self.arguments


def test_a_stage_as_other_versions_of_python_write_it(tmp_path):
    """Python 3.11.2 has getattr in a checkpoint; of anything else it is refused, as all code is."""
    import pickle

    from deepspeed.runtime.zero.config import ZeroStageEnum

    path = tmp_path / "file.pt"
    torch.save({"zero_stage": Getattr(ZeroStageEnum, "gradients")}, path)
    with restore.weights_only():
        assert torch.load(path) == {"zero_stage": ZeroStageEnum.gradients}
        for arguments in ((ZeroStageEnum, "__class__"), (torch.Tensor, "numpy")):
            torch.save(Getattr(*arguments), path)
            with pytest.raises(pickle.UnpicklingError):
                torch.load(path)
