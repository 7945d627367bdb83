"""A teacher in FP8: scales by hand, products against fp64, how far it moves, and the gate in a run."""

from pathlib import Path

import pytest
import torch
from jobs import NO_DROPOUT, config_file, flags, make_models
from ranks import read_log, run_ranks, train
from test_shapes import distiller, micro_batch
from torch import Tensor, nn

from launch import distributed
from launch.errors import ConfigError
from model.distiller import Batch
from model.kernels import fp8
from model.losses import Objective

CPU = torch.device("cpu")


def test_quantising_by_hand() -> None:
    """The largest of a row becomes 448; e4m3 has 3 bits behind the point: 0.3 x 448 = 134.4 is nearest to 128."""
    x8, scale = fp8.quantise(torch.tensor([[1.0, -0.3, 0.0], [0.0, 0.0, 0.0], [448.0, 8.0, 9.0]]))
    assert x8.dtype == torch.float8_e4m3fn
    assert x8.float().tolist() == [[448.0, -128.0, 0.0], [0.0, 0.0, 0.0], [448.0, 8.0, 9.0]]
    assert scale[:, 0].tolist() == pytest.approx([1 / 448, 1e-12 / 448, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_linear_layer(dtype: torch.dtype) -> None:
    """Against the exact product of the quantised factors, and of the ones before."""
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32).to(dtype), torch.randn(50, 64).to(dtype)
    x[7] *= 1000  # a token with large activations costs the others nothing
    found = fp8.Float8Linear(linear)(x)
    assert found.dtype == dtype

    def rounded(rows: Tensor) -> Tensor:
        values, scale = fp8.quantise(rows)
        return values.double() * scale

    bias = linear.bias.double()
    errors = (found.double() - rounded(x) @ rounded(linear.weight).T - bias).norm(dim=1)
    sizes = (x.double() @ linear.weight.double().T + bias).norm(dim=1)
    assert (errors / sizes < 5e-3).all(), "rounding of bf16 alone"
    exact = (found.double() - x.double() @ linear.weight.double().T - bias).norm(dim=1)
    assert (exact / sizes < 0.06).all()  # 3 bits: 1/16 at most, less in a sum


def test_all_linear_layers_and_no_others() -> None:
    module = distiller(Objective())
    teacher = module.teacher
    fp8.convert(teacher.layers)
    kinds = {
        name: type(part) for name, part in teacher.named_modules() if isinstance(part, nn.Linear | fp8.Float8Linear)
    }
    layers = {name for name, kind in kinds.items() if kind is fp8.Float8Linear}
    parts = ("qkv", "attention_output", "intermediate", "output")
    assert layers == {f"layers.{i}.{part}" for i in range(3) for part in parts}
    assert [name for name in kinds if name not in layers] == ["head.transform"]


def test_how_far_the_teacher_moves() -> None:
    """The figure against the formula over all logits, in fp64."""
    module = distiller(Objective())
    for name, parameter in module.teacher.named_parameters():
        parameter.data *= 10 if name.endswith("weight") and parameter.ndim > 1 else 1  # logits of some size
    batch = Batch.of(micro_batch([40, 9, 33]), CPU)

    def log_probabilities() -> Tensor:
        with torch.no_grad():
            return module.teacher.logits(module._encode(module.teacher, batch)).double().log_softmax(-1)

    before = log_probabilities()
    found = float(module.teacher_in_fp8(batch))
    after = log_probabilities()
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert found == pytest.approx(expected, rel=1e-3)
    assert 1e-5 < found < 0.1


def run(folder: Path, data: Path, models: tuple[Path, Path], *more: str) -> tuple[int, str]:
    argv = flags(config_file(folder / "c.json"), data, models, folder / "run", "--max-steps", "3", *more)
    return run_ranks(2, train, argv)[0]


def test_a_run(dataset_folder: Path, tmp_path: Path) -> None:
    """It trains nearly as under the teacher in 16 bit, says what FP8 does, and refuses what moves too far."""
    models = make_models(tmp_path / "models", **NO_DROPOUT)
    (tmp_path / "plain").mkdir()
    code, output = run(tmp_path / "plain", dataset_folder, models)
    assert (code, "FP8" in output) == (0, False)
    code, output = run(tmp_path, dataset_folder, models, "--teacher-fp8", "0.5")
    assert code == 0, output
    assert "teacher in FP8: KL divergence from 16 bit 0.0" in output
    plain, found = ([row["loss"] for row in read_log(folder / "run")] for folder in (tmp_path / "plain", tmp_path))
    assert found == pytest.approx(plain, rel=0.05)
    assert found != plain
    code, output = run(tmp_path, dataset_folder, models, "--teacher-fp8", "1e-9", "--fresh")
    assert code == ConfigError.exit_code
    assert "--teacher-fp8" in output and "nats a token; leave it in 16 bit" in output
    assert "Traceback" not in output


def test_where_there_is_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, there in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert fp8.available(torch.device("cuda")) == there


@pytest.mark.parametrize(("teacher", "there", "rule"), [(False, True, "no --teacher"), (True, False, "8.9")])
def test_refusals(teacher: bool, there: bool, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import train_dilbert

    monkeypatch.setattr(fp8, "available", lambda device: there)
    module, batch = distiller(Objective(), teacher), Batch.of(micro_batch([9]), CPU)
    world = distributed.World(0, 1, 0, CPU)
    with pytest.raises(ConfigError, match=rule):
        train_dilbert.teacher_in_fp8(module if teacher else distiller(Objective(), False), batch, 0.1, world)
