"""Checkpoints: committed as a whole, verified before they are trusted."""

import json
import shutil
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from launch import checkpoint
from launch.errors import CheckpointError


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset_folder) -> Path:
    """Two ranks at stage 2, checkpoints after steps 2 and 4, position embeddings frozen."""
    folder = tmp_path_factory.mktemp("checkpoint")
    models = make_models(folder)
    argv = flags(config_file(folder / "c.json", stage=2), dataset_folder, models, folder / "run", "--max-steps", "4")
    code, output = run_ranks(2, train, [*argv, "--checkpoint-interval", "2", "--freeze-pos-embs"])[0]
    assert code == 0, output
    return folder / "run"


@pytest.fixture
def root(run, tmp_path) -> Path:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_what_is_on_the_disk(run):
    folders = checkpoint.committed(run / "checkpoints")
    assert [path.name for path in folders] == ["step00000002", "step00000004"]
    assert (run / "checkpoints" / "latest").read_text() == "step00000004"
    assert not list((run / "checkpoints").glob(".partial*"))
    found = checkpoint.verify(folders[1])
    assert (found.step, found.ranks, found.stage) == (4, 2, 2)
    manifest = json.loads((folders[1] / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folders[1].iterdir()} - {"MANIFEST.json"}


def every_file(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "remove"])
def test_every_damage_to_every_file_is_found(how, root, capsys):
    good, bad = checkpoint.committed(root)
    for name in every_file(bad):
        content = (bad / name).read_bytes()
        if how == "remove":
            (bad / name).unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
            (bad / name).write_bytes({"truncate": content[:-1], "flip": flipped, "empty": b""}[how])
        if name != "MANIFEST.json" or not still_says_the_same(bad, content):
            named = None if name == "MANIFEST.json" else name.replace(".", r"\.")  # a false record blames its file
            with pytest.raises(CheckpointError, match=named):
                checkpoint.verify(bad)
            assert checkpoint.newest(root).path == good
            assert "skipping a damaged checkpoint" in capsys.readouterr().out
        (bad / name).write_bytes(content)
        assert checkpoint.newest(root).path == bad


def still_says_the_same(folder: Path, original: bytes) -> bool:
    """White space more or less changes nothing."""
    try:
        return json.loads((folder / "MANIFEST.json").read_bytes()) == json.loads(original)
    except (OSError, ValueError):
        return False


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(root, tmp_path):
    for folder in checkpoint.committed(root):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        checkpoint.newest(root)
    assert checkpoint.newest(tmp_path / "none") is None


def test_unfinished_and_foreign_folders_are_passed_over(root):
    (root / ".partial-step00000009").mkdir()
    (root / "step9").mkdir()
    (root / "step00000009.old").mkdir()
    assert [path.name for path in checkpoint.committed(root)] == ["step00000002", "step00000004"]


def limited_disk() -> None:
    """In a rank: no file may grow beyond 20 kB, as on a disk that is nearly full."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_while_saving_is_exit_4(dataset_folder, tmp_path):
    models = make_models(tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "1")
    code, output = run_ranks(1, train, argv, limited_disk)[0]
    assert code == 4, output
    assert "can't be written" in output
    assert "Traceback" not in output
    assert checkpoint.committed(tmp_path / "run" / "checkpoints") == []


def save_to_a_full_disk(folder: str) -> str:
    """In a rank: a save into a folder that can't be written."""
    from types import SimpleNamespace

    import torch.distributed as dist

    dist.init_process_group("gloo")
    engine = SimpleNamespace(global_steps=7)
    try:
        checkpoint.save(engine, Path(folder))
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_an_unwritable_folder_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "can't be written" in run_ranks(1, save_to_a_full_disk, str(tmp_path / "file" / "checkpoints"))[0]
