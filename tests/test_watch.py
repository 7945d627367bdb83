"""launch.watch: what a run folder says of its run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from launch import beats, skipped, watch
from launch.errors import ConfigError, DataError, HungError
from launch.watch import View, sparkline

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run at step 120 of 1,000 on two ranks, 30 steps a minute."""
    run = tmp_path / "run"
    (run / beats.FOLDER).mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "environment.json").write_text(json.dumps({"ranks": 2, "steps": 1000}))
    rows = [
        {"step": step, "loss": 8 - step / 50, "loss_mlm": 3.0, "lr": 1e-4, "tokens_per_second": 1234.5,
         "seconds_per_step": 2.0, "data_wait": 0.01} for step in range(10, 121, 10)
    ]  # fmt: skip
    rows.insert(5, {"step": 50, "valid_loss_mlm": 3.25, "valid_accuracy": 0.5})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rank in (0, 1):
        beat = {"rank": rank, "host": f"host{rank}", "pid": 1, "step": 120, "progress": 9, "phase": "backward",
                "time": 0, "stack": ""}  # fmt: skip
        beats.path(run / beats.FOLDER, rank).write_text(json.dumps(beat))
    return run


def silence(folder: Path, rank: int, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(beats.path(folder / beats.FOLDER, rank), (then, then))


def text(folder: Path) -> str:
    return "\n".join(View.of(folder).lines())


def test_a_run_under_way(folder):
    assert View.of(folder).state() == (0, "step 120 of 1,000 (12.0%), 29:20 left")
    shown = text(folder)
    assert "step 120 | loss 5.6 mlm 3 | lr 1.00e-04 | 1,234 tok/s | data wait 1.0%" in shown
    assert "step 50 held out | mlm 3.25 | accuracy 0.5" in shown
    assert "rank 1 on host1: is at step 120, backward" in shown
    assert "from 7.8000 to 5.6000" in shown
    assert "warning" not in shown


def test_before_the_first_log_line(folder):
    (folder / "log.jsonl").unlink()
    assert View.of(folder).state() == (0, "step 120 of 1,000 (12.0%)")
    assert len(text(folder).splitlines()) == 3


def test_a_silent_rank_and_a_silent_run(folder):
    silence(folder, 1, 130)
    assert View.of(folder).state()[0] == 0
    assert "rank 1 on host1: no sign of life for 02:10, was at step 120, backward" in text(folder)
    silence(folder, 0, 75)
    assert View.of(folder).state() == (6, "no sign of life for 01:15, after step 120 of 1,000")


def test_how_it_ended(folder):
    (folder / "STOPPED.json").write_text(json.dumps({"code": 75, "step": 120, "why": "SIGTERM (rank 1)"}))
    expected = "stopped at step 120 of 1,000: SIGTERM (rank 1); the same command goes on"
    assert View.of(folder).state() == (75, expected)
    (folder / "STOPPED.json").write_text(json.dumps({"code": 75, "step": 120, "why": "--stop-at-step"}))
    expected = "stopped at step 120 of 1,000: --stop-at-step; without --stop-at-step it goes on"
    assert View.of(folder).state() == (75, expected)
    (folder / "DONE.json").write_text("{}")
    assert View.of(folder).state() == (0, "done: 120 steps")


@pytest.mark.parametrize("rank", [0, 3])
def test_why_it_failed(folder, rank):
    error = HungError("rank 1 (host1, process 1) makes no progress:\n  File here\n  File there")
    beats.failed(folder, rank, 120, error)
    beats.failed(folder, 1, 120, DataError("later"))
    whose = "[rank 3] " if rank else ""
    message = f"failed after step 120 of 1,000: {whose}rank 1 (host1, process 1) makes no progress:"
    assert View.of(folder).state() == (6, message)
    assert text(folder).startswith(f"{folder}: {message}\n      File here\n      File there\n")
    assert "is at step" not in text(folder)
    assert View.of(folder).ended


@pytest.mark.parametrize("body", [{}, {"code": 0, "message": None}, {"code": "x", "message": "", "rank": None}])
def test_a_failure_that_says_nothing(folder, body):
    (folder / beats.FAILED).write_text(json.dumps(body))
    assert View.of(folder).state() == (1, "failed after step 120 of 1,000: no reason given")


def test_warnings(folder):
    with open(folder / skipped.FILE, "w") as file:
        file.writelines(json.dumps({"step": step, "why": "not finite"}) + "\n" for step in range(4))
    assert skipped.FILE == watch.SKIPPED
    (folder / "checkpoints" / "damaged-step00000100").mkdir(parents=True)
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": 130, "data_wait": 0.4}) + "\n")
    warnings = list(View.of(folder).warnings())
    assert warnings == [
        *(f"step {step} was skipped: not finite" for step in (1, 2, 3)),
        "damaged-step00000100: a checkpoint that was found damaged",
        "40% of the time is spent waiting for data",
    ]


def test_damaged_files_are_passed_over(folder):
    (folder / "environment.json").write_text("{")
    (folder / "log.jsonl").write_text('{"step": 1\n')
    beats.path(folder / beats.FOLDER, 0).write_text("[]")
    beats.path(folder / beats.FOLDER, 1).write_text("")
    assert View.of(folder).state() == (6, "no sign of life yet, after step 0")


def test_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        View.of(tmp_path)
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(ConfigError, match=f"no run .*; give its runs: {tmp_path}/seed-0$"):
        View.of(tmp_path)


def test_help_says_the_exit_codes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["watch", "--help"])
    with pytest.raises(SystemExit):
        watch.main()
    assert "75 stopped" in capsys.readouterr().out


HELD_OUT = {"valid_loss": 10.56714, "valid_loss_ce": 0.25231, "valid_loss_mlm": 4.61701, "valid_loss_cos": 0.071712,
            "valid_loss_mse": 1234.567, "valid_accuracy": 0.26919, "valid_agreement": 0.55691,
            "valid_unigram_entropy": 6.90951}  # fmt: skip


def test_figures_that_are_not_finite(folder):
    row = {"step": 121, "loss": None, "loss_mlm": None, "lr": 1e-4, "tokens_per_second": 1.0, "seconds_per_step": 2.0,
           "data_wait": 0.0}  # fmt: skip
    with open(folder / "log.jsonl", "a") as file:
        for body in (row, {"step": 121} | dict.fromkeys(HELD_OUT)):
            file.write(json.dumps(body) + "\n")
    shown = text(folder)
    assert "step 121 | loss nan mlm nan | lr 1.00e-04" in shown
    assert "step 121 held out | loss nan ce nan mlm nan cos nan mse nan | accuracy nan | agreement nan" in shown


@pytest.mark.parametrize("columns", [40, 80, 100, 120, 200])
def test_lines_are_as_wide_as_the_terminal(folder, monkeypatch, columns):
    """Every figure is there, and each in one piece."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(folder.parent)  # a path is as long as it is
    rates = {"lr": 4.967e-4, "tokens_per_second": 12_345_678.9, "seconds_per_step": 2.0, "data_wait": 0.4}
    losses = {name.removeprefix("valid_"): value for name, value in HELD_OUT.items() if "loss" in name}
    with open(folder / "log.jsonl", "a") as file:
        file.writelines(json.dumps({"step": 900_000} | row) + "\n" for row in (losses | rates, HELD_OUT))
    for step in range(10):
        (folder / "checkpoints" / f"step{step:08d}").mkdir(parents=True)
    (folder / "STOPPED.json").write_text(json.dumps({"why": "a long " * 20 + "reason"}))
    shown = watch.shown(View.of(Path("run"))).splitlines()
    assert max(map(len, shown)) <= min(max(columns, 80), 120)
    figures = ("900,000 held out", "loss 10.57 ce 0.2523 mlm 4.617 cos 0.07171 mse 1235", "accuracy 0.2692",
               "agreement 0.5569", "unigram 6.91", "12,345,679 tok/s", "data wait 40.0%", "step00000009;")  # fmt: skip
    assert all(any(figure in line for line in shown) for figure in figures)


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0]) == "▁"
    assert len(sparkline(list(range(1000)))) == 40


def look(folder: Path, *more: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "launch.watch", str(folder), *more]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_terminal_without_blocks(folder, monkeypatch):
    """A path may hold what it has no character for."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = look(folder.rename(folder.with_name("läuft")), "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "l?uft: step 120 of 1,000" in done.stdout
    assert "  loss #%%*++==-::.  from 7.8000 to 5.6000\n" in done.stdout


def test_a_real_run(dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, make_models(tmp_path), tmp_path / "run",
                 "--max-steps", "3")  # fmt: skip
    assert [code for code, _ in run_ranks(2, train, argv)] == [0, 0]
    for more in ((), ("--once",)):
        done = look(tmp_path / "run", *more)
        assert done.returncode == 0
        assert done.stdout.startswith(f"{tmp_path / 'run'}: done: 3 steps\n  step 3 | loss ")
        assert "rank 1 on " not in done.stdout, "it is no longer there"
    assert [beat.phase for beat in beats.read(tmp_path / "run" / beats.FOLDER, 2)] == ["at the end"] * 2


def test_following_a_run_to_its_end(folder):
    with subprocess.Popen(
        [sys.executable, "-m", "launch.watch", str(folder), "--interval", "0.1"], cwd=ROOT, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "step 120 of 1,000 (12.0%), 29:20 left\n"
        (folder / "STOPPED.json").write_text(json.dumps({"why": "the file STOP (rank 0)"}))
        assert "stopped at step 120 of 1,000: the file STOP (rank 0)" in " ".join(process.stdout.read().split())
        assert process.wait(10) == 75
