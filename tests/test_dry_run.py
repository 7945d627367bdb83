"""train_dilbert.py --dry-run: what it says of a run, and that it leaves nothing behind."""

import json
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import write_vocabulary
from jobs import config_file, flags, make_models
from ranks import read_log, run_ranks, train

from data import binarize
from data.manifest import CleaningRules
from launch import dry_run
from launch.log import LOG

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def job(ranks: int, argv: list[str], expect: int = 0) -> str:
    results = run_ranks(ranks, train, argv)
    assert [code for code, _ in results] == [expect] * ranks, results
    return results[0][1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_real_start_afterwards_is_a_fresh_run(ranks, models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "6")
    argv += ["--valid-data", str(dataset_folder), "--eval-interval", "5"]
    for _ in range(2):
        said = job(ranks, [*argv, "--dry-run"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [dry_run.FOLDER]
    left = {path.name for path in (tmp_path / "run" / dry_run.FOLDER).iterdir()}
    assert left == {"config.json", "ds_config.json", "environment.json", "tokenizer", "report.txt"}
    assert f"16   4 x {4 // ranks} accumulation x {ranks} rank(s)" in said
    assert re.search(r"held-out data +\d+\.\d+ s   2 times\n  checkpoint +\d+\.\d+ s   once", said)
    job(ranks, argv)
    other = [*argv[: argv.index("--output")], *argv[argv.index("--output") + 2 :], "--output", str(tmp_path / "other")]
    ended = job(ranks, other)
    assert [row["loss"] for row in read_log(tmp_path / "run")] == [row["loss"] for row in read_log(tmp_path / "other")]
    assert re.search(r"memory of a rank: \d\.\d\d GB at most, forecast \d\.\d\d GB", ended)


def test_a_run_that_is_there_is_left_alone(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    job(1, argv)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert f"The run in {tmp_path / 'run'} is moved aside." in job(1, [*argv, "--dry-run", "--fresh"])
    assert f"The run in {tmp_path / 'run'} has no step left to take." in job(1, [*argv, "--dry-run"])
    said = job(2, [*argv, "--seed", "9", "--dry-run"], expect=2)
    assert "--seed: was 0, is 9" in said, "as the start would be"
    assert {path: path.read_bytes() for path in before} == before


def test_it_counts_from_where_a_start_would_go_on(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "9")
    argv += ["--checkpoint-interval", "4"]
    job(1, [*argv, "--stop-at-step", "5"], expect=75)
    said = job(2, [*argv, "--dry-run"])
    assert f"The run in {tmp_path / 'run'} goes on after step00000005." in said
    assert re.search(r"run +\S+   4 steps, after 5 that are done\n", said)
    assert re.search(r"  checkpoint +\S+ s   2 times", said), "at 8 and 9"
    for start in ([], ["--dry-run"]):
        assert "--stop-at-step 4: the run has done 5 steps" in job(1, [*argv, "--stop-at-step", "4", *start], expect=2)


@pytest.mark.parametrize(
    ("todo", "interval", "times"), [(range(9), 4, 3), (range(8), 4, 2), (range(5, 9), 4, 2), (range(5, 5), 4, 0)]
)
def test_what_is_done_each_so_many_steps_and_at_the_end(todo, interval, times):
    assert dry_run._due(todo, interval) == times


def test_the_curve_is_that_of_the_run(models, dataset_folder, tmp_path):
    """Of each of 40 steps; the run's own log says what the rates were."""
    from deepspeed.runtime.lr_schedules import WarmupDecayLR
    from torch import nn, optim

    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "40")
    job(1, argv)
    found = [row["lr"] for row in read_log(tmp_path / "run")]

    def engine(steps: int, warmup: int) -> types.SimpleNamespace:
        optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=1e-3)
        steps_of = {"total_num_steps": steps, "warmup_num_steps": warmup}
        return types.SimpleNamespace(
            lr_scheduler=WarmupDecayLR(optimizer, **steps_of, warmup_max_lr=1e-3, warmup_type="linear")
        )

    short = engine(40, 2)
    now = short.lr_scheduler.last_batch_iteration
    np.testing.assert_allclose(dry_run.learning_rates(short, range(40)), found, rtol=1e-9)
    assert short.lr_scheduler.last_batch_iteration == now
    rates, top = dry_run.curve(engine(100_000, 5_000), 100_000)
    assert len(rates) == 70 and max(rates) < 0.994e-3, "the peak is between two of them"
    assert top == pytest.approx(1e-3, rel=1e-4)


def test_the_plot():
    lines = dry_run.plot([0.0, 0.5, 1.0, 0.5], 1.0, 4000).splitlines()
    assert len(lines) == 9
    assert lines[0] == " 1.0e+00 |  █ "
    assert lines[3] == "         |  █ "
    assert lines[4] == "         | ███"
    assert lines[7] == "       0 | ███"
    assert lines[8] == "    step  14,000"
    assert dry_run.plot([0.0, 0.0], 0.0, 2).startswith(" 0.0e+00 |  \n")
    assert max(map(len, dry_run.plot([1.0] * dry_run._WIDTH, 1.0, 4000).splitlines())) == 80


def test_damaged_data_is_found(models, dataset_folder, tmp_path):
    damaged = tmp_path / "data"
    shutil.copytree(dataset_folder, damaged)
    path = sorted(damaged.glob("*.bin"))[0]
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    argv = flags(config_file(tmp_path / "c.json"), damaged, models, tmp_path / "run", "--max-steps", "2")
    assert "checksum" in job(2, [*argv, "--dry-run"], expect=3)
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / LOG).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "width"), [(2, 128), (4, 256), (6, 512)])
def test_the_memory_forecast_holds(layers, width, tmp_path):
    """Within 15 % of the peak of the rehearsal, and of the run; for pairs of 1.5 to 40 million parameters."""
    import subprocess
    import sys

    words = [f"word{number}" for number in range(20_000)]
    tokenizer = write_vocabulary(tmp_path / "tokenizer", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words))
    generator = np.random.default_rng(0)
    lines = (" ".join(words[i] for i in generator.integers(0, len(words), size)) for size in [40, 90, 200] * 100)
    (tmp_path / "text").write_text("\n".join(lines))
    files = binarize.Files((str(tmp_path / "text"),), str(tokenizer), tmp_path / "data", 1)
    binarize.binarize(files, CleaningRules())
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
             "intermediate_size": 4 * width, "vocab_size": len(words) + 5, "max_position_embeddings": 512}  # fmt: skip
    models = make_models(tmp_path / "models", **sizes)
    for model in models:
        shutil.copyfile(tokenizer / "vocab.txt", model / "vocab.txt")
        (model / "tokenizer.json").unlink(missing_ok=True)
    argv = flags(ROOT / "ds_configs" / "cpu.json", tmp_path / "data", models, tmp_path / "run", "--max-steps", "12")

    def own_process(*more: str) -> str:
        command = [sys.executable, "train_dilbert.py", *argv, *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    said = own_process("--dry-run")
    forecast, measured = map(float, re.search(r"in all +(\S+) GB +measured: (\S+) GB", said).groups())
    assert forecast == pytest.approx(measured, rel=0.15), said
    said = own_process()
    measured, forecast = map(float, re.search(r"rank: (\S+) GB at most, forecast (\S+) GB", said).groups())
    assert forecast == pytest.approx(measured, rel=0.15), said
    record = json.loads((tmp_path / "run" / dry_run.FOLDER / "config.json").read_text())
    assert record["flags"]["max_steps"] == 12
