"""Stop signs, bad numbers, ranks that hang: what one rank meets, all ranks answer alike."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import faulty
import numpy as np
import pytest
from jobs import config_file, flags, make_models
from ranks import read_log, run_ranks, train

from launch import beats, checkpoint, launcher, stop
from launch.beats import Beat
from launch.errors import ConfigError
from launch.heartbeat import verdict
from launch.stop import StopSigns, Votes, seconds

STEPS = ["--max-steps", "30", "--checkpoint-interval", "100"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def signals_restored():
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def job(ranks: int, argv: list[str], fault: dict | None = None) -> list[tuple[int, str]]:
    """Exit code and output of each rank."""
    return run_ranks(ranks, train, argv, partial(faulty.install, fault) if fault else None)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, models, dataset_folder) -> list[float]:
    """30 steps on two ranks, with dropout."""
    folder = tmp_path_factory.mktemp("undisturbed")
    argv = flags(config_file(folder / "c.json", stage=2), dataset_folder, models, folder / "run", *STEPS)
    assert [code for code, _ in job(2, argv)] == [0, 0]
    return losses(folder / "run")


# --- pieces ---


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("90", 5400), ("01:30", 90), ("02:00:05", 7205), ("1-00", 86_400), ("1-02:03", 93_780), ("1-02:03:04", 93_784)],
)
def test_time_limits_as_slurm_writes_them(limit: str, expected: float) -> None:
    assert seconds(limit) == expected
    assert seconds(None) is None


@pytest.mark.parametrize("limit", ["soon", "", "1:2:3:4", "-5", "1h"])
def test_other_time_limits(limit: str) -> None:
    with pytest.raises(ConfigError, match="--time-limit"):
        seconds(limit)


def test_signs(tmp_path: Path, signals_restored, monkeypatch) -> None:
    signs = StopSigns(tmp_path, None)
    assert signs.reason() == 0
    (tmp_path / "STOP").touch()
    assert signs.reason() == 0, "not asked again within a second"
    signs.looked -= 1.1
    assert stop.REASONS[signs.reason() - 1] == "the file STOP"
    assert StopSigns(tmp_path / "other", 30.0).reason() - 1 == stop.REASONS.index("the time limit")
    assert StopSigns(tmp_path / "other", 300.0).reason() == 0
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 30))
    assert StopSigns(tmp_path / "other", None).reason() - 1 == stop.REASONS.index("the time limit")
    assert StopSigns(tmp_path / "other", 300.0).reason() == 0, "the flag rules"


def test_what_saving_takes_is_left_at_the_end(tmp_path: Path, signals_restored) -> None:
    signs = StopSigns(tmp_path, 300.0)
    signs.saving_took = 130.0
    assert signs.reason() - 1 == stop.REASONS.index("the time limit")


def test_signals_soon_after_the_first_are_the_same_request(tmp_path: Path, signals_restored) -> None:
    signs = StopSigns(tmp_path, None)
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert stop.REASONS[signs.reason() - 1] == "SIGUSR1"
    signs.first = (signs.first[0], signs.first[1] - 6.0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def vote(reasons: list[int]) -> list[str | None]:
    """This rank's votes, and what it hears."""
    import deepspeed
    import torch.distributed as dist

    from launch import distributed

    distributed.start()
    assert deepspeed
    votes = Votes()
    heard = [votes.cast(reason if dist.get_rank() == 1 else 0) for reason in reasons]
    distributed.stop()
    return heard


def test_votes_are_heard_one_step_later_by_all() -> None:
    heard = run_ranks(3, vote, [0, 0, 4, 0, 0])
    assert heard == [[None, None, None, "the file STOP (rank 1)", None]] * 3


def test_plain_python_has_no_launcher() -> None:
    """The shell that started a run may go; the run stays."""
    code = "import sys; sys.path.insert(0, '.'); from launch import launcher; print(launcher.ancestors())"
    found = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}"; true'], capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
    assert not launcher.gone([])
    assert launcher.gone([os.getppid() + 100_000])
    assert not launcher.gone([os.getppid()])


def test_a_launcher_and_its_caller(tmp_path: Path) -> None:
    """`deepspeed` starts launch.py, which starts ranks: both are watched, and not the shell above."""
    (tmp_path / "deepspeed").write_text("import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])\n")
    rank = "import sys, os; sys.path.insert(0, '.'); from launch import launcher; print(len(launcher.ancestors()))"
    (tmp_path / "torchrun").write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])\n")
    command = [sys.executable, str(tmp_path / "deepspeed"), str(tmp_path / "torchrun")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "2"


# --- whole jobs ---


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "STOP"])
def test_any_rank_stops_all_at_the_same_step(name, models, dataset_folder, undisturbed, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json", stage=2), dataset_folder, models, tmp_path / "run", *STEPS)
    fault = {"kind": "signal", "signal": name, "rank": 1, "step": 5, "parts": 2}
    if name == "STOP":
        fault |= {"kind": "touch", "file": str(tmp_path / "run" / "STOP")}
    ended = job(2, argv, fault)
    assert [code for code, _ in ended] == [75, 75], ended
    record = json.loads((tmp_path / "run" / "STOPPED.json").read_text())
    assert 6 <= record["step"] < 30 and record["code"] == 75
    assert name in record["why"]
    assert not (tmp_path / "run" / "STOP").exists()
    assert [path.name for path in checkpoint.committed(tmp_path / "run" / "checkpoints")] == [
        checkpoint.tag(record["step"])
    ]
    assert f"stopped at step {record['step']} of 30" in "".join(output for _, output in ended)
    assert [code for code, _ in job(2, argv)] == [0, 0]
    assert losses(tmp_path / "run") == undisturbed


def test_the_time_limit(models, dataset_folder, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *STEPS)
    ((code, output),) = job(1, [*argv, "--time-limit", "00:59"])
    assert (code, "the time limit (rank 0)" in output) == (75, True), output


PRECISIONS = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]


@pytest.mark.parametrize(("precision", "stage"), PRECISIONS)
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_bad_numbers_never_reach_the_weights(kind, precision, stage, models, dataset_folder, tmp_path) -> None:
    """One rank's bad step 4 is skipped by both, written down, and the run goes on; its losses stay finite."""
    more = {"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}
    config = config_file(tmp_path / "c.json", stage=stage, precision=precision, **more)
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "8")
    fault = {"kind": "gradient" if kind == "gradient" else "value", "value": kind, "rank": 1, "step": 3, "parts": 2}
    ended = job(2, argv, fault)
    assert [code for code, _ in ended] == [0, 0], ended
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert (row["step"], row["why"], row["loss_scale"]) == (4, "not finite", None)
    assert len(row["sequences"]) == len(row["corpora"]) == len(row["epochs"]) == 16
    assert "step 4: skipped" in ended[0][1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["loss"] is None] == [4]
    assert rows[-1]["skipped_steps"] == 1
    assert all(np.isfinite(row["loss"]) for row in rows if row["step"] != 4)


def test_too_many_in_a_row(models, dataset_folder, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "8")
    fault = {"kind": "value", "value": "nan", "rank": 0, "step": "all"}
    ended = job(2, [*argv, "--max-bad-steps", "3"], fault)
    assert [code for code, _ in ended] == [5, 5], ended
    text = "".join(output for _, output in ended)
    assert "not finite 3 times in a row" in text and "skipped.jsonl" in text and "Traceback" not in text
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found.step == 3
    assert [code for code, _ in job(2, argv)] == [0, 0], "the weights are still good"


@pytest.mark.parametrize("stage", [1, 2])
def test_overflows_of_fp16_are_told_apart(stage, models, dataset_folder, tmp_path) -> None:
    """A loss scale that is too high is no bad step; a NaN is; a scale at its minimum explains itself."""
    from ranks import allow_fp16

    def start(name: str, fp16: dict, patch) -> tuple[int, str]:
        config = config_file(tmp_path / "c.json", stage=stage, fp16={"enabled": True, **fp16})
        argv = flags(config, dataset_folder, models, tmp_path / name, "--max-steps", "6", "--max-bad-steps", "1")
        return run_ranks(1, train, argv, patch)[0]

    code, output = start("high", {"initial_scale_power": 24}, allow_fp16)
    assert code == 0, output
    rows = [json.loads(line) for line in (tmp_path / "high" / "skipped.jsonl").read_text().splitlines()]
    assert rows and {row["why"] for row in rows} == {"the loss scale was too high"}
    code, output = start("nan", {"initial_scale_power": 8}, nan_in_fp16)
    assert (code, "not finite 1 times in a row" in output) == (5, True), output
    minimum = {"initial_scale_power": 2, "min_loss_scale": 4, "hysteresis": 1}
    code, output = start("low", minimum, bad_gradient_in_fp16)
    assert (code, "smallest loss scale" in output, "Traceback" in output) == (5, True, False), output
    assert checkpoint.newest(tmp_path / "low" / "checkpoints").step == 0


def nan_in_fp16() -> None:
    from ranks import allow_fp16

    allow_fp16()
    faulty.install({"kind": "value", "value": "nan", "rank": 0, "step": 2, "parts": 4})


def bad_gradient_in_fp16() -> None:
    from ranks import allow_fp16

    allow_fp16()
    faulty.install({"kind": "gradient", "rank": 0, "step": "all"})


# --- ranks that hang ---


def beat(rank: int, progress: int, age: float = 0.0) -> Beat:
    return Beat(rank, "host", 100 + rank, 7, progress, "forward", f"stack of {rank}", age)


def test_who_is_to_blame() -> None:
    """Who is behind; who is silent; all, if none is behind. The first of the others speaks."""
    behind = [beat(0, 10), beat(1, 9), beat(2, 10)]
    assert "rank 1 (host, process 101) makes no progress: step 7, forward" in verdict(behind, 0, 5.0)
    assert "stack of 1" in verdict(behind, 0, 5.0)
    assert (verdict(behind, 1, 5.0), verdict(behind, 2, 5.0)) == ("", "")
    silent = [beat(0, 10, age=50.0), beat(1, 11), beat(2, 11)]
    assert "rank 0 (host, process 100) has given no sign of life for 50 s" in verdict(silent, 1, 5.0)
    assert verdict([beat(0, 5), beat(1, 5)], 1, 5.0).count("makes no progress") == 2


def test_a_rank_that_hangs_is_named_with_its_stack(models, dataset_folder, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *STEPS)
    fault = {"kind": "hang", "rank": 1, "step": 3}
    ended = faulty.finish(faulty.start(2, [*argv, "--hang-timeout", "6"], fault))
    assert [code for code, _ in ended] == [6, 6], ended
    assert "error: rank 1 (" in ended[0][1] and "makes no progress" in ended[0][1]
    assert "faulty.py" in ended[0][1] and "in _hang" in ended[0][1]


def test_a_rank_that_is_stopped_is_named(models, dataset_folder, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *STEPS)
    fault = {"kind": "signal", "signal": "SIGSTOP", "rank": 1, "step": 3}
    started = faulty.start(2, [*argv, "--hang-timeout", "6"], fault)
    ((code, output),) = faulty.finish(started[:1])
    started[1].kill()
    started[1].communicate()
    assert code == 6
    assert "rank 1 (" in output and "no sign of life" in output


def test_heartbeats_tell_where_each_rank_is(models, dataset_folder, tmp_path) -> None:
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    assert [code for code, _ in job(2, argv)] == [0, 0]
    found = beats.read(tmp_path / "run" / beats.FOLDER, ranks=2)
    assert [beat.rank for beat in found] == [0, 1]
    rows = read_log(tmp_path / "run")
    assert all(row["slowest_rank"] in (0, 1) and row["slowest_forward"] > 0 for row in rows)
    assert all(row["slowest_data_wait"] >= row["data_wait"] >= 0 for row in rows)
