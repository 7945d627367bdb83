"""All ranks see the same files, or all of them end."""

import os
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from mounts import disk, needs_mounts
from ranks import run_ranks, train

from launch import agreement
from launch.errors import DataError, DilbertError

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def rank() -> int:
    return int(os.environ["RANK"])


def refused(results: list[tuple[int, str]], *words: str) -> None:
    """All ranks end with exit code 2, and say all these words; no traceback."""
    for code, output in results:
        assert code == 2, output
        assert "Traceback" not in output
        for word in words:
            assert word in output, output


# --- the run folder ---


def hide(folder: Path) -> None:
    """In rank 1: another host's disk at the place of the run folder."""
    agreement.PATIENCE = 0.5
    if rank() == 1:
        disk(folder)


@needs_mounts
@pytest.mark.parametrize("old_run", [False, True], ids=["new", "to go on"])
def test_a_run_folder_that_one_host_does_not_share(old_run, models, dataset_folder, tmp_path):
    folder = tmp_path / "run"
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, folder, "--max-steps", "2")
    if old_run:
        assert run_ranks(1, train, argv)[0][0] == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    results = run_ranks(2, train, argv, partial(hide, folder))
    refused(results, f"--output {folder}: is not the same folder on every host", f"rank 0 on host {HOST}",
            f"host {HOST} (rank 1) can't read", "storage that all hosts share")  # fmt: skip
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(argv: list[str], flag: str, other: str) -> tuple[int, str]:
    """In a rank: rank 1 is given something else."""
    agreement.PATIENCE = 0.5
    if rank() == 1:
        argv = [*argv]
        argv[argv.index(flag) + 1] = other
    return train(argv)


def test_another_run_folder(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    results = run_ranks(2, elsewhere, argv, "--output", str(tmp_path / "other"))
    refused(results, "is not the same folder on every host", "(rank 1) can't read")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "other").exists()


# --- what is read ---


def test_a_dataset_that_one_host_does_not_see(models, dataset_folder, tmp_path):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    argv = flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "2")
    results = run_ranks(2, elsewhere, argv, "--data", str(tmp_path / "no"))
    refused(results, f"host {HOST} (rank 1) can't read what the others can", str(tmp_path / "no"), "shared storage")
    assert not (tmp_path / "run").exists()


def test_a_read_only_dataset_is_left_as_it_is(models, dataset_folder, tmp_path):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.rglob("*") if path.is_file()}
    argv = flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "1")
    assert [code for code, _ in run_ranks(2, train, argv)] == [0, 0]
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.rglob("*") if path.is_file()}


def test_a_dataset_that_is_another_one_on_one_host(models, texts, dataset_folder, tokenizer_folder, tmp_path):
    from data import binarize
    from data.manifest import CleaningRules

    files = binarize.Files(tuple(map(str, texts[:2])), str(tokenizer_folder), tmp_path / "other", 1)
    binarize.binarize(files, CleaningRules())
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    results = run_ranks(2, elsewhere, argv, "--data", str(tmp_path / "other"))
    refused(results, "not all ranks were given the same", "fingerprint: ", f"for host {HOST} (rank 1)")
    assert not (tmp_path / "run").exists()


def test_another_teacher_on_one_host(models, dataset_folder, tmp_path):
    from model.pretrained import DilBertForMaskedLM

    other = shutil.copytree(models[0], tmp_path / "other")
    changed = DilBertForMaskedLM.from_pretrained(other)
    changed.head.bias.data[3] += 1
    changed.save_pretrained(other)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    refused(run_ranks(2, elsewhere, argv, "--teacher", str(other)), "not all ranks were given the same", "teacher: ")


def test_another_flag_on_one_host(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    results = run_ranks(2, elsewhere, [*argv, "--alpha-ce", "5"], "--alpha-ce", "4")
    refused(results, f"--alpha-ce: 5.0 for rank 0 on host {HOST}, 4.0 for host {HOST} (rank 1)")


# --- the parts ---


def meet(wrong: tuple[int, ...]) -> str:
    """In a rank: some ranks can't read something."""
    from launch import distributed

    distributed.start()
    try:
        with agreement.together():
            if rank() in wrong:
                raise DataError(f"what rank {rank()} met")
    except DilbertError as error:
        return f"{type(error).__name__}: {error}"
    return "all is well"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ((), ["all is well"] * 3),
        ((0, 1, 2), [f"DataError: what rank {number} met" for number in range(3)]),
        ((0, 2), [f"ConfigError: host {HOST} (ranks 0 2) can't read what the others can: what rank 0 met"] * 3),
    ],
)
def test_one_for_all(wrong, expected):
    assert [answer.splitlines()[0] for answer in run_ranks(3, meet, wrong)] == expected
