"""Which checkpoints stay, and how the others go."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from launch import checkpoint, retention
from launch.errors import ConfigError
from launch.retention import Retention, prune


def make(root: Path, *steps: int) -> list[Path]:
    """Checkpoints of stage 0 that verify."""
    for step in steps:
        folder = root / checkpoint.tag(step)
        folder.mkdir(parents=True)
        content = f"weights after {step}".encode()
        (folder / checkpoint.MODEL_STATES).write_bytes(content)
        entry = [len(content), hashlib.sha256(content).hexdigest()]
        manifest = {"step": step, "ranks": 1, "stage": 0, "files": {checkpoint.MODEL_STATES: entry}}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    return [root / checkpoint.tag(step) for step in steps]


def left(root: Path) -> list[int]:
    return [int(path.name[4:]) for path in checkpoint.committed(root)]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Retention(), [60, 70, 80]),
        (Retention(keep_last=2), [70, 80]),
        (Retention(keep_last=20), [10, 20, 30, 40, 50, 60, 70, 80]),
        (Retention(keep_last=2, keep_every=40), [40, 70, 80]),
        (Retention(keep_last=2, keep_every=20), [20, 40, 60, 70, 80]),
    ],
)
def test_what_stays(keep, expected, tmp_path):
    make(tmp_path, *range(10, 90, 10))
    prune(tmp_path, keep)
    assert left(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.tag(step) for step in expected]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"keep_last": 1}, "--keep-last 1: must be 2 at least"), ({"keep_every": 0}, "--keep-every 0: must be positive")],
)
def test_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Retention(**wrong)


def test_steps_of_any_length_and_foreign_folders(tmp_path):
    make(tmp_path, 99_999_998, 99_999_999, 100_000_000)
    for name in ("step9", "step0000000012", "step" + 8 * "\u0661", "damaged-step00000001", "step00000001.old"):
        (tmp_path / name).mkdir()
    prune(tmp_path, Retention(keep_last=2))
    assert left(tmp_path) == [99_999_999, 100_000_000]
    assert len(list(tmp_path.iterdir())) == 7, "what is no checkpoint is nobody's to delete"


@pytest.mark.parametrize("damage", ["shorter", "no manifest"])
def test_a_damaged_one_does_not_count_as_one_that_is_left(damage, tmp_path):
    _, _, third, _ = make(tmp_path, 1, 2, 3, 4)
    if damage == "shorter":
        (third / checkpoint.MODEL_STATES).write_text("cut")
    else:
        (third / checkpoint.MANIFEST).unlink()
    prune(tmp_path, Retention(keep_last=2))
    assert left(tmp_path) == [2, 3, 4]


def test_nothing_is_deleted_if_the_new_one_is_damaged(tmp_path, caplog):
    *_, new = make(tmp_path, 1, 2, 3)
    content = bytearray((new / checkpoint.MODEL_STATES).read_bytes())
    content[3] ^= 1
    (new / checkpoint.MODEL_STATES).write_bytes(content)
    prune(tmp_path, Retention(keep_last=2))
    assert left(tmp_path) == [1, 2]
    assert (tmp_path / "damaged-step00000003").is_dir()
    assert "the new checkpoint is damaged, older ones stay" in caplog.text
    assert "SHA-256" in caplog.text
    make(tmp_path, 4)
    prune(tmp_path, Retention(keep_last=2))
    assert left(tmp_path) == [2, 4], "the damaged one is none of those that are left"


@pytest.mark.parametrize("where", ["rename", "rmtree"])
def test_a_failing_deletion_is_a_warning(where, tmp_path, monkeypatch, caplog):
    make(tmp_path, 1, 2, 3, 4)
    real = {"rename": os.rename, "rmtree": shutil.rmtree}[where]

    def fail(path, *more, **options):
        if "step00000001" in str(path) and not options:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **options)

    monkeypatch.setattr({"rename": os, "rmtree": shutil}[where], where, fail)
    prune(tmp_path, Retention(keep_last=2))
    assert left(tmp_path) == ([1, 3, 4] if where == "rename" else [3, 4]), "half a folder is no checkpoint"
    assert "step00000001: can't be deleted" in caplog.text
    assert "Permission denied" in caplog.text
    monkeypatch.undo()
    make(tmp_path, 5)
    checkpoint.sweep(tmp_path)  # as the next save does
    prune(tmp_path, Retention(keep_last=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step00000004", "step00000005"]


def test_a_link_to_a_checkpoint_elsewhere_is_left_alone(tmp_path):
    (elsewhere,) = make(tmp_path / "elsewhere", 1)
    make(tmp_path / "run", 2, 3, 4)
    (tmp_path / "run" / elsewhere.name).symlink_to(elsewhere)
    prune(tmp_path / "run", Retention(keep_last=2))
    assert left(tmp_path / "run") == [1, 3, 4]
    assert checkpoint.verify(elsewhere).step == 1


@pytest.mark.parametrize(
    ("keep", "now", "last", "interval", "expected"),
    [
        (Retention(), 0, 100, 10, 4),  # three and the one that is being saved
        (Retention(), 0, 20, 10, 2),  # only two are ever saved
        (Retention(), 0, 5, 10, 1),
        (Retention(), 100, 100, 10, 0),  # nothing is left to do
        (Retention(keep_last=2, keep_every=50), 0, 100, 10, 3 + 2),
        (Retention(keep_last=2, keep_every=15), 0, 100, 10, 3 + 3),  # steps 30, 60, 90
    ],
)
def test_how_many_there_will_be(keep, now, last, interval, expected):
    assert keep.most(now, last, interval) == expected


def test_a_run_keeps_what_it_was_told_to(dataset_folder, tmp_path):
    models, config = make_models(tmp_path), config_file(tmp_path / "c.json")

    def go_on(steps: int, *more: str) -> list[str]:
        argv = flags(config, dataset_folder, models, tmp_path / "run", "--checkpoint-interval", "1")
        (code, output), _ = run_ranks(2, train, [*argv, "--max-steps", str(steps), *more])
        assert code == 0, output
        return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())

    names = go_on(9, "--keep-last", "2", "--keep-every", "4")
    assert names == ["latest", "step00000004", "step00000008", "step00000009"]
    names = go_on(10)  # may change on the way
    assert names == ["latest", "step00000008", "step00000009", "step00000010"]


def test_too_few_are_refused_before_anything_happens(dataset_folder, tmp_path):
    models = make_models(tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    ((code, output),) = run_ranks(1, train, [*argv, "--keep-last", "1"])
    assert code == 2
    assert "--keep-last 1: must be 2 at least" in output
    assert not (tmp_path / "run").exists()
    assert retention.Retention().keep_last == 3
