"""Code that hides in files: in checkpoints, models and datasets. None of it ever runs."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import config_file, flags, make_models
from ranks import command_line, run_ranks, train

from launch import checkpoint, restore
from launch.errors import CheckpointError

FILES = (
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
)


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, models, dataset_folder) -> Path:
    """A run of two ranks at stage 2."""
    folder = tmp_path_factory.mktemp("saved")
    argv = flags(config_file(folder / "c.json", stage=2), dataset_folder, models, folder / "run", "--max-steps", "2")
    assert run_ranks(2, train, argv)[0][0] == 0
    return folder / "run"


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def marker(tmp_path) -> Path:
    """What is there if a payload has run."""
    return tmp_path / "ran"


def record(folder: Path) -> None:
    """Write into the manifest what the files are now."""
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = [(folder / name).stat().st_size, checkpoint._sha256(folder / name)]
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def export(argv: list[str]) -> tuple[int, str]:
    """`python -m model.export` in this rank."""
    from model import export

    return command_line(export.main, argv)


def everything(run: Path, data: Path, models: tuple[Path, Path]) -> dict[str, list[tuple[int, str]]]:
    """The ways to read a checkpoint: exit codes and outputs of all ranks."""
    argv = flags(config_file(run.parent / "c.json", stage=2), data, models, run, "--max-steps", "3")
    moved = shutil.copytree(run, run.with_name("moved"))
    elsewhere = [str(moved) if word == str(run) else word for word in argv]
    return {
        "export": run_ranks(1, export, [str(run), "--output", str(run.with_name("exported"))]),
        "as saved": run_ranks(2, train, argv),
        "on other ranks": run_ranks(1, train, elsewhere),
    }


def put(run: Path, name: str, content: Any, zipped: bool = True) -> Path:
    """In place of a file of the newest checkpoint, which looks whole all the same."""
    folder = checkpoint.committed(run / "checkpoints")[-1]
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    record(folder)
    assert checkpoint.newest(run / "checkpoints").path == folder
    return folder / name


@pytest.mark.parametrize("name", FILES)
def test_in_each_file_of_a_checkpoint(name, run, marker, models, dataset_folder):
    content = torch.load(checkpoint.committed(run / "checkpoints")[-1] / name, weights_only=False)
    file = put(run, name, content | {"payload": Payload(marker)})
    for way, results in everything(run, dataset_folder, models).items():
        for code, output in results:
            assert code == 4, (way, output)
            assert f"{name}: holds more than weights" in output
            assert "Traceback" not in output
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "it was there to run"


@pytest.mark.parametrize("name", FILES)
def test_in_the_older_format_of_files(name, run, marker):
    put(run, name, {"module": Payload(marker), "optimizer_state_dict": 1}, zipped=False)
    with pytest.raises(CheckpointError, match=f"{name}: can't be loaded as weights"):
        restore.fp32_weights(checkpoint.newest(run / "checkpoints"))
    assert not marker.exists()


@pytest.mark.parametrize("content", [[1, 2], {"other": 3}, torch.zeros(2)], ids=["list", "dict", "tensor"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_something_else(name, content, run):
    put(run, name, content)
    with pytest.raises(CheckpointError, match=f"{name}: is no file of DeepSpeed's: it does not hold"):
        restore.fp32_weights(checkpoint.newest(run / "checkpoints"))


def test_in_the_manifest_of_a_checkpoint(run, marker, models, dataset_folder):
    folder = checkpoint.committed(run / "checkpoints")[-1]
    (folder / checkpoint.MANIFEST).write_bytes(pickle.dumps(Payload(marker)))
    for results in everything(run, dataset_folder, models).values():
        for code, output in results:
            assert code == 4
            assert "MANIFEST.json: can't be read" in output
            assert "Traceback" not in output
    assert not marker.exists()


def test_scripts_beside_a_checkpoint_are_not_made_and_not_run(run, marker, models, dataset_folder):
    assert not list(run.rglob("*.py"))
    folder = checkpoint.committed(run / "checkpoints")[-1]
    for place in (run, folder.parent, folder):
        for name in ("zero_to_fp32.py", "zero_to_torch.py", "pickle.py", "json.py", "sitecustomize.py"):
            (place / name).write_text(f"import os\nos.makedirs({str(marker)!r})\n")
    for results in everything(run, dataset_folder, models).values():
        for code, output in results:
            assert code == 0, output
    assert not marker.exists()


def test_in_a_file_of_another_name(run, marker):
    """DeepSpeed looks for shards under an older name, too."""
    folder = checkpoint.committed(run / "checkpoints")[-1]
    torch.save({"payload": Payload(marker)}, folder / FILES[1].replace("_optim", "optim"))
    words = "MANIFEST.json: does not name zero_pp_rank_0_mp_rank_00optim_states.pt, which is there"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.newest(run / "checkpoints")


@pytest.mark.parametrize("which", ["--student", "--teacher"])
def test_in_a_model_folder(which, marker, models, dataset_folder, tmp_path):
    number = ["--teacher", "--student"].index(which)
    folder = shutil.copytree(models[number], tmp_path / "model")
    from safetensors.torch import load_file

    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"payload": Payload(marker)}, folder / "pytorch_model.bin")
    pair = (folder, models[1]) if which == "--teacher" else (models[0], folder)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, pair, tmp_path / "run", "--max-steps", "2")
    ((code, output),) = run_ranks(1, train, argv)
    assert code == 4, output
    assert "pytorch_model.bin: refused" in output
    assert "Traceback" not in output
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


def objects(path: Path, marker: Path) -> None:
    np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker)))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("counts.npy", objects),
        ("counts.npy", pickled),
        ("manifest.json", pickled),
        ("00000.idx", pickled),
        ("00000.bin", pickled),
    ],
)
def test_in_a_dataset(name, write, marker, models, dataset_folder, tmp_path):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    write(data / name, marker)
    argv = flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "2")
    ((code, output),) = run_ranks(1, train, argv)
    assert code == 3, output
    assert name.removesuffix(".bin") in output
    assert "Traceback" not in output
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
