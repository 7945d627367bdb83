"""Space for checkpoints: forecast, checked at the start, and what happens when it runs out."""

import logging
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jobs import config_file, flags, make_models
from mounts import disk, make_read_only, needs_mounts
from ranks import run_ranks, train

from launch import checkpoint, space
from launch.errors import CheckpointError

WIDE = {"hidden_size": 128, "intermediate_size": 384}  # so that a checkpoint is weights, and not names
FREE = SimpleNamespace(f_bavail=1000, f_frsize=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def engine(stage: int, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """100 parameters that are trained, 10 that are not."""
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (100, 10)])
    module[1].requires_grad_(False)
    return SimpleNamespace(module=module, zero_optimization_stage=lambda: stage)


@pytest.mark.parametrize(
    ("stage", "dtype", "expected"),
    [
        (0, torch.float32, 100 * (4 + 8) + 10 * 4),
        (1, torch.float32, 100 * (4 + 12) + 10 * 4),
        (2, torch.bfloat16, 100 * (2 + 12) + 10 * 2),
    ],
)
def test_forecast_by_hand(stage, dtype, expected):
    assert space.forecast(engine(stage, dtype)) == expected


def forecasts() -> None:
    """In a rank: prints the forecast before each save."""
    save = checkpoint.save

    def telling(engine, root):
        print("forecast", space.forecast(engine))
        return save(engine, root)

    checkpoint.save = telling


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32")])
def test_forecast_of_real_runs(stage, precision, dataset_folder, tmp_path):
    models = make_models(tmp_path, **WIDE)
    config = config_file(tmp_path / "c.json", stage=stage, precision=precision)
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "1", "--freeze-pos-embs")
    (code, output), _ = run_ranks(2, train, argv, forecasts)
    assert code == 0, output
    forecast = int(output.partition("forecast ")[2].split()[0])
    assert space.size(tmp_path / "run" / "checkpoints") == pytest.approx(forecast, rel=0.05)


@pytest.fixture
def alone(monkeypatch):
    """1,000 bytes are free; no process group."""
    monkeypatch.setattr(space, "by_main", lambda function: function())
    monkeypatch.setattr(os, "statvfs", lambda path: FREE)


def test_no_room_for_one(alone, tmp_path):
    words = r"about 1,640 bytes are needed, 1,000 bytes are free: 640 bytes are missing\. Free as much"
    with pytest.raises(CheckpointError, match=words):
        space.check(engine(1), tmp_path / "checkpoints", 1)
    space.check(engine(1), tmp_path / "checkpoints", 0)  # none is saved


def test_what_makes_way_counts_as_room(alone, tmp_path, caplog):
    (tmp_path / ".partial-1").mkdir()
    (tmp_path / ".partial-1" / "weights").write_bytes(bytes(640))
    with caplog.at_level(logging.WARNING):
        space.check(engine(1), tmp_path, 1)
        assert not caplog.text
        space.check(engine(1), tmp_path, 4)
    assert "4 checkpoints (--keep-last, --keep-every, and one more while it is saved)" in caplog.text
    assert "6,560 bytes are needed, 1,640 bytes are free: 4,920 bytes are missing" in caplog.text


# --- real disks ---


def on_a_disk(argv: list[str], size: int, ballast: int = 0) -> tuple[int, str, list[str], list[str]]:
    """In a rank: a run whose folder is a disk of its own; exit code, output, checkpoints that verify, all names."""
    folder = Path(argv[argv.index("--output") + 1])
    disk(folder, size)
    (folder / "ballast").write_bytes(bytes(ballast))
    code, output = train(argv)
    root = folder / "checkpoints"
    whole = [checkpoint.verify(path).path.name for path in checkpoint.committed(root)]
    return code, output, whole, sorted(path.name for path in root.iterdir()) if root.exists() else []


@needs_mounts
def test_a_disk_without_room_is_refused_at_the_start(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    ((code, output, *_),) = run_ranks(1, on_a_disk, argv, 500_000, 300_000)
    assert code == 4, output
    assert "bytes are needed" in output and "bytes are missing" in output
    assert "step 1/2" not in output
    assert "Traceback" not in output


@needs_mounts
def test_a_disk_that_fills_up(models, dataset_folder, tmp_path):
    """Room for two checkpoints of 380 kB, where four are wanted: a warning, and the third save fails."""
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "6")
    ((code, output, whole, names),) = run_ranks(1, on_a_disk, [*argv, "--checkpoint-interval", "1"], 1_000_000)
    assert code == 4, output
    assert "warning:" in output and "4 checkpoints" in output
    assert "step00000003: can't be written" in output
    assert "bytes are free: " in output and "bytes are missing; the last whole checkpoint is kept" in output
    assert whole == ["step00000001", "step00000002"]
    assert names == ["latest", *whole], "nothing half written is left"
    assert "Traceback" not in output


def becomes_read_only(folder: Path) -> None:
    """In a rank: the disk of the checkpoints can't be written any more from the second save on."""
    save = checkpoint.save
    disk(folder)

    def failing(engine, root):
        if engine.global_steps == 2:
            make_read_only(root)
        return save(engine, root)

    checkpoint.save = failing


def on_a_failing_disk(argv: list[str], folder: Path) -> tuple[int, str, list[str]]:
    code, output = train(argv, partial(becomes_read_only, folder))
    return code, output, [checkpoint.verify(path).path.name for path in checkpoint.committed(folder)]


@needs_mounts
def test_a_disk_that_becomes_read_only(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "6")
    checkpoints = tmp_path / "run" / "checkpoints"
    ((code, output, whole),) = run_ranks(1, on_a_failing_disk, [*argv, "--checkpoint-interval", "1"], checkpoints)
    assert code == 4, output
    assert "step00000002: can't be written" in output
    assert "Read-only file system" in output and "the last whole checkpoint is kept" in output
    assert "missing" not in output, "it is not for want of space"
    assert whole == ["step00000001"]
    assert "Traceback" not in output


def read_only_disk(folder: Path) -> None:
    """In a rank: what is there, on a disk that can't be written."""
    import shutil

    copy = shutil.copytree(folder, folder.with_name("copy"))
    disk(folder)
    shutil.copytree(copy, folder, dirs_exist_ok=True)
    make_read_only(folder)


@needs_mounts
@pytest.mark.parametrize("where", ["run", "run/checkpoints"])
def test_a_read_only_disk_is_refused_at_the_start(where, models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    assert run_ranks(1, train, [*argv, "--stop-at-step", "2"])[0][0] == 75
    ((code, output),) = run_ranks(1, train, argv, partial(read_only_disk, tmp_path / where))
    assert code == 4, output
    words = {"run": f"--output {tmp_path / 'run'}: can't be written: Read-only file system",
             "run/checkpoints": "no checkpoint could be saved there: read-only, or no right to write"}  # fmt: skip
    assert words[where] in output
    assert "step 3/4" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize("broken", [0, 1])
def test_one_rank_that_cannot_write_ends_all(broken, models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json")
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "4", "--checkpoint-interval", "1")
    results = run_ranks(2, train, argv, partial(limited_from_step_two, broken))
    for code, output in results:
        assert code == 4, output
        assert f"step00000002: can't be written: rank {broken}: " in output
        assert "Traceback" not in output
    root = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step00000001"]
    assert checkpoint.newest(root).step == 1


def limited_from_step_two(broken: int) -> None:
    """In one rank, no file may grow beyond 20 kB from the second save on, as on a disk that is nearly full."""
    import resource

    save = checkpoint.save

    def limited(engine, root):
        if engine.global_steps == 2 and os.environ["RANK"] == str(broken):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return save(engine, root)

    checkpoint.save = limited
