"""On a GPU: whole runs under ZeRO-1 and 2 in bf16 and fp16, and the curve of an fp32 run beside the CPU's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import NO_DROPOUT, config_file, flags, make_models

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Heads of 32, as flash attention wants them; no dropout, so that devices can be compared."""
    return make_models(tmp_path_factory.mktemp("models"), hidden_size=64, intermediate_size=128, **NO_DROPOUT)


def run(argv: list[str], **environment: str) -> tuple[list[dict[str, float]], str]:
    """The rows of a run's log, and its output."""
    command = [sys.executable, "train_dilbert.py", *argv]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = Path(argv[argv.index("--output") + 1]) / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()], done.stdout


@pytest.mark.parametrize("dropout", ["0", "0.1"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_learns(precision: str, stage: int, dropout: str, models, dataset_folder: Path, tmp_path: Path) -> None:
    """With compiled models, the attention that the dropout allows, and the Triton kernel; then it goes on."""
    more = {"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}
    config = config_file(tmp_path / "c.json", stage=stage, precision=precision, **more)
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "40", "--attention-dropout", dropout)
    rows, output = run(argv)
    attention = "varlen" if dropout == "0" else "flash"
    assert f"kernels: attention {attention}, teacher's varlen" in output
    assert "vocabulary losses triton_rows" in output and "compiling for" in output
    assert sum(row["loss"] for row in rows[-5:]) < 0.9 * sum(row["loss"] for row in rows[:5])
    assert sum(row["uncompiled"] for row in rows) == 0
    argv[argv.index("40")] = "50"
    assert "going on after step 40" in run(argv)[1]


def test_fp32_has_the_curve_of_the_cpu(models, dataset_folder: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path / "c.json", stage=1)
    found = {}
    for name, environment in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        argv = flags(config, dataset_folder, models, tmp_path / name, "--max-steps", "20")
        found[name] = [row["loss"] for row in run(argv, **environment)[0]]
    assert found["gpu"] == pytest.approx(found["cpu"], rel=1e-4)
    assert found["cpu"][-1] < found["cpu"][0]
