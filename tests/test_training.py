"""How a run ends, and what its folder says of it then."""

import errno
import json
import re
from pathlib import Path

import faulty
import pytest
import torch
from jobs import config_file, flags, make_models
from ranks import RankFailed, run_ranks, train

from launch import beats, heartbeat
from launch.beats import FAILED
from launch.distributed import World
from launch.heartbeat import Heartbeat
from launch.watch import View

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


def nan_on_rank_1() -> None:
    faulty.install({"kind": "value", "value": "nan", "rank": 1, "step": 1, "parts": 2})


def out_of_memory() -> None:
    faulty.FAULTS["memory"] = _out_of_memory
    faulty.install({"kind": "memory", "step": 0})


def _out_of_memory(_: dict) -> None:
    raise MemoryError("of the device")


def test_a_run_that_fails_says_why_until_it_begins_again(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    ended = run_ranks(2, train, [*argv, "--max-bad-steps", "1"], nan_on_rank_1)
    assert [code for code, _ in ended] == [5, 5], ended
    failed = json.loads((tmp_path / "run" / FAILED).read_text())
    assert (failed["code"], failed["step"]) == (5, 2) and "not finite 1 times in a row" in failed["message"]
    code, sentence = View.of(tmp_path / "run").state()
    assert code == 5 and sentence.startswith("failed after step 2 of 4: ") and failed["message"] in sentence
    refused = run_ranks(1, train, [*argv, "--seed", "7"])
    assert refused[0][0] == 2
    assert json.loads((tmp_path / "run" / FAILED).read_text()) == failed, "a refused start changes nothing"
    assert run_ranks(1, train, argv)[0][0] == 0
    assert not (tmp_path / "run" / FAILED).exists()


def test_an_error_of_no_class_of_ours_is_told_too(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    with pytest.raises(RankFailed, match="MemoryError"):
        run_ranks(1, train, argv, out_of_memory)
    assert View.of(tmp_path / "run").state() == (1, "failed after step 0 of 4: MemoryError: of the device")


def test_a_start_that_is_refused_has_not_failed(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    assert run_ranks(1, train, [*argv, "--ranks", "2"])[0][0] == 2
    assert not (tmp_path / "run" / FAILED).exists()


def test_a_finished_run_keeps_its_records(models, dataset_folder, tmp_path):
    """Started again: no step, no record of the second start; with more steps to do, it is recorded."""
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run")
    records = ("config.json", "ds_config.json", "environment.json")

    def start(*more: str) -> list[str]:
        assert run_ranks(1, train, [*argv, *more])[0][0] == 0
        return [(tmp_path / "run" / name).read_text() for name in records]

    first = start("--max-steps", "2")
    config_file(tmp_path / "c.json", micro=8)
    assert start("--max-steps", "2", "--keep-last", "7") == first
    assert json.loads((tmp_path / "run" / "DONE.json").read_text()) == {"step": 2}
    assert all(new != old for new, old in zip(start("--max-steps", "3", "--keep-last", "7"), first, strict=True))


def test_readme_explains_every_figure_of_the_log(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "1")
    more = ["--valid-data", str(dataset_folder), "--price-per-hour", "1", "--alpha-mse", "1"]
    assert run_ranks(1, train, [*argv, *more])[0][0] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    figures = {name for row in rows for name in row if not name.startswith("valid_loss_")} - {"step"}
    table = (ROOT / "README.md").read_text().split("\n| figure |")[1].split("\n\n")[0]
    told = {name for row in table.splitlines() for name in re.findall("`([a-z_]+)`", row.split("|")[1])}
    assert {"valid_loss", "valid_unigram_entropy", "cost"} <= figures <= told
    needs_a_gpu, of_tasks = {"mfu", "loss_scale"}, {"loss_task"}
    assert told - figures <= needs_a_gpu | of_tasks | {"valid_loss_mlm", "energy_kwh"}


def test_a_rank_that_hangs_leaves_the_reason(monkeypatch, tmp_path):
    ends = []
    monkeypatch.setattr(heartbeat.os, "_exit", ends.append)
    heart = Heartbeat(tmp_path, World(2, 4, 2, torch.device("cpu")), 60.0, 7)
    heart._end("")
    assert not (tmp_path / FAILED).exists(), "another rank speaks"
    heart._end("rank 1 makes no progress")
    assert ends == [6, 6]
    body = {"code": 6, "message": "rank 1 makes no progress", "rank": 2, "step": 7}
    assert json.loads((tmp_path / FAILED).read_text()) == body


def test_a_disk_that_is_full_is_no_bug(tmp_path):
    beats.failed(tmp_path, 0, 3, OSError(errno.ENOSPC, "No space left on device", "log.jsonl"))
    body = json.loads((tmp_path / FAILED).read_text())
    assert body == {"code": 4, "message": "log.jsonl: No space left on device", "rank": 0, "step": 3}
