"""One run per folder."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import Job, read_log, run_ranks, train

from launch import lock
from launch.errors import CheckpointError, ConfigError
from launch.lock import Lock, Owner

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No process group, and no SLURM."""
    monkeypatch.setattr(lock, "by_main", lambda function: function())
    monkeypatch.setattr(lock.agreement, "check_shared", lambda file, content: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


def owner(**changes) -> Owner:
    return dataclasses.replace(Owner.this(), **changes)


def leave_behind(folder: Path, silence: float = 0.0, **changes) -> Path:
    """A lock of another process, that was silent for so many seconds."""
    folder.mkdir(exist_ok=True)
    path = folder / lock.NAME
    path.write_text(json.dumps(dataclasses.asdict(owner(token="other", **changes))))
    os.utime(path, (time.time() - silence,) * 2)
    return path


@pytest.fixture
def process():
    """A process that only waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def started(pid: int) -> int:
    return lock._started(pid)


# --- taken and given back ---


def test_it_says_who_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with Lock(tmp_path) as held:
        held.take()
        found = json.loads((tmp_path / "LOCK.json").read_text())
        assert (found["host"], found["pid"], found["job"], found["requeued"]) == (HOST, os.getpid(), "4711", 2)
        assert found["started"] == started(os.getpid()) > 0
        assert [path.name for path in tmp_path.iterdir()] == ["LOCK.json"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ConfigError, KeyboardInterrupt, SystemExit])
def test_it_is_given_back_however_the_run_ends(error, tmp_path):
    (tmp_path / "mine").write_text("")

    def run() -> None:
        with Lock(tmp_path) as held:
            held.take()
            raise error("the end")

    with pytest.raises(error):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_folders_made_for_it_go_if_nothing_else_came(tmp_path):
    with Lock(tmp_path / "a" / "b" / "run") as held:
        held.take()
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / "a" / "b" / "run") as held:
        held.take()
        (tmp_path / "a" / "b" / "run" / "log").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b" / "run").iterdir()] == ["log"]


def test_one_that_was_not_taken_is_left_alone(tmp_path):
    path = leave_behind(tmp_path)
    with pytest.raises(ConfigError), Lock(tmp_path) as held:
        held.take()
    assert path.exists()
    with Lock(tmp_path):
        pass
    assert path.exists()


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file; give the name of a folder"), Lock(tmp_path / "run") as held:
        held.take()
    with (
        pytest.raises(CheckpointError, match="can't be written: Not a directory"),
        Lock(tmp_path / "run" / "x") as held,
    ):
        held.take()


# --- somebody else's ---


@pytest.mark.parametrize("job", ["", "4711"])
def test_a_living_one_is_refused_by_name(job, process, tmp_path):
    leave_behind(tmp_path, 500, pid=process.pid, started=started(process.pid), job=job)
    with pytest.raises(ConfigError) as caught, Lock(tmp_path) as held:
        held.take()
    assert f"--output {tmp_path}: another run is at work in it: process {process.pid} on host {HOST}" in str(
        caught.value
    )
    assert ("job 4711" in str(caught.value)) == bool(job)
    assert [path.name for path in tmp_path.iterdir()] == ["LOCK.json"]


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def only_kill(process: subprocess.Popen) -> None:
    """Its parent does not look at it: a zombie."""
    process.kill()
    while lock._stat(process.pid)[0] != "Z":
        time.sleep(0.01)


@pytest.mark.parametrize("end", [kill, only_kill])
def test_a_dead_process_of_this_machine_is_known_at_once(end, process, tmp_path, capsys):
    leave_behind(tmp_path, pid=process.pid, started=started(process.pid))
    end(process)
    with Lock(tmp_path) as held:
        held.take()
        assert Owner.of((tmp_path / "LOCK.json").read_text()) == held.owner
    said = capsys.readouterr().out
    assert f"left by process {process.pid} on host {HOST}" in said
    assert "but there is no such process any more: taken over" in said
    assert list(tmp_path.iterdir()) == []


def test_another_process_of_the_same_number(process, tmp_path):
    leave_behind(tmp_path, pid=process.pid, started=started(process.pid) - 1)
    with Lock(tmp_path) as held:
        held.take()


@pytest.mark.parametrize(("silence", "dead"), [(0, False), (170, False), (200, True), (1e6, True)])
def test_another_machine_counts_as_dead_after_a_silence(silence, dead, tmp_path, capsys):
    leave_behind(tmp_path, silence, machine="another", host="node7")
    with contextlib.nullcontext() if dead else pytest.raises(ConfigError) as caught, Lock(tmp_path) as held:
        held.take()
    if dead:
        assert "on host node7" in capsys.readouterr().out
    else:
        assert f"host node7, since {Owner.this().since[:10]}" in str(caught.value)
        assert f"last sign of life {silence} s ago" in str(caught.value)
        assert "counts as dead after 180 s" in str(caught.value)


@pytest.mark.parametrize(("before", "now", "taken"), [(0, 1, True), (1, 1, False), (2, 1, False)])
def test_a_requeued_job_knows_that_its_first_start_is_dead(before, now, taken, tmp_path, monkeypatch, capsys):
    leave_behind(tmp_path, machine="another", host="node7", job="4711", requeued=before)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(now))
    with contextlib.nullcontext() if taken else pytest.raises(ConfigError), Lock(tmp_path) as held:
        held.take()
    assert ("its job was requeued: taken over" in capsys.readouterr().out) == taken


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "17",
        "\udcff",
        '{"pid": 1}',
        "[" * 100_000,
        json.dumps(dataclasses.asdict(owner()) | {"pid": "x"}),
    ],
)
def test_a_lock_that_cannot_be_read_holds_until_it_is_old(content, tmp_path, capsys):
    (tmp_path / "LOCK.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="its lock can not be read"), Lock(tmp_path) as held:
        held.take()
    os.utime(tmp_path / "LOCK.json", (time.time() - 1000,) * 2)
    with Lock(tmp_path) as held:
        held.take()
    assert "it can't be read: taken over" in capsys.readouterr().out


def test_a_clock_that_is_behind_does_no_harm(tmp_path):
    leave_behind(tmp_path, -10_000, machine="another")
    with pytest.raises(ConfigError, match="last sign of life 0 s ago"), Lock(tmp_path) as held:
        held.take()


# --- both at once ---


def contend(folders: list[Path], start: float) -> list[str]:
    """In a rank: tries to take one lock after another, at the same moments as the other ranks."""
    answers = []
    for number, folder in enumerate(folders):
        own = Owner.this()
        time.sleep(max(0.0, start + 0.2 * number - time.time()))
        try:
            lock._put(folder / lock.NAME, json.dumps(dataclasses.asdict(own)), own)
            answers.append("taken")
        except ConfigError as error:
            answers.append(str(error))
    time.sleep(0.5)  # alive while the others look
    return answers


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_gets_it(stale, process, tmp_path):
    folders = [tmp_path / str(number) for number in range(10)]
    for folder in folders:
        folder.mkdir()
        if stale:
            leave_behind(folder, pid=process.pid, started=started(process.pid) - 1)
    for folder, *answers in zip(folders, *run_ranks(6, contend, folders, time.time() + 2), strict=True):
        assert answers.count("taken") == 1, answers
        assert all("another run is at work" in answer for answer in answers if answer != "taken"), answers
        assert [path.name for path in folder.iterdir()] == ["LOCK.json"]


def test_a_lock_that_is_new_is_put_back(tmp_path, monkeypatch):
    """Another start takes the dead lock over between our look and our rename."""
    leave_behind(tmp_path, pid=2**22 + 1)
    rename, faster = os.rename, dataclasses.asdict(owner(token="faster"))

    def overtaken(source, target):
        if Path(source).name == lock.NAME:
            Path(source).write_text(json.dumps(faster))
            monkeypatch.setattr(os, "rename", rename)
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    with (
        pytest.raises(ConfigError, match=f"another run is at work in it: process {os.getpid()}"),
        Lock(tmp_path) as held,
    ):
        held.take()
    assert json.loads((tmp_path / "LOCK.json").read_text()) == faster
    assert [path.name for path in tmp_path.iterdir()] == ["LOCK.json"]


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with Lock(tmp_path) as held:
        held.take()
        assert Owner.of((tmp_path / "LOCK.json").read_text()) == held.owner
        with pytest.raises(ConfigError, match="another run is at work"), Lock(tmp_path) as other:
            other.take()


# --- while it is held ---


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    path = tmp_path / "LOCK.json"
    with Lock(tmp_path) as held:
        held.take()
        for _ in range(3):
            os.utime(path, (0, 0))
            until(lambda: path.stat().st_mtime > 0)
        content = path.read_text()
        path.unlink()  # storage may be away for a while
        time.sleep(0.1)
        path.write_text(content)
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)
    assert not path.exists()


def test_a_run_that_lost_its_lock_ends(tmp_path, monkeypatch, capsys):
    codes = set()

    def leave(code: int) -> None:
        codes.add(code)
        raise OSError

    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "leave", leave)
    with Lock(tmp_path) as held:
        held.take()
        path = leave_behind(tmp_path, host="node7")
        until(lambda: codes)
    assert codes == {2}
    assert "was taken over by process" in capsys.readouterr().err
    assert path.exists(), "it is not ours any more"


def test_it_stays_in_place_when_the_run_is_moved_aside(tmp_path):
    with Lock(tmp_path / "run") as held:
        held.take()
        (tmp_path / "run" / "log").write_text("")
        os.rename(tmp_path / "run", tmp_path / "run.old-1")
        lock.carry(tmp_path / "run.old-1", tmp_path / "run")
        assert Owner.of((tmp_path / "run" / "LOCK.json").read_text()) == held.owner
        assert [path.name for path in (tmp_path / "run.old-1").iterdir()] == ["log"]
        os.rename(tmp_path / "run", tmp_path / "run.old-2")
        (tmp_path / "run").mkdir()
        with pytest.raises(ConfigError, match="another run has just begun in it"):
            lock.carry(tmp_path / "run.old-2", tmp_path / "run")


# --- real runs ---


@pytest.fixture
def running(models, dataset_folder, tmp_path):
    """Arguments of a run that is under way, and the number of its rank 0's process."""
    argv = flags(
        config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--checkpoint-interval", "2"
    )
    with Job(1, train, [*argv, "--max-steps", "100000"]) as job:
        until((tmp_path / "run" / "checkpoints" / "step00000002").exists)
        yield argv, job.processes[0].pid


def test_a_second_start_and_a_kill(running, tmp_path):
    argv, pid = running
    for more in ([], ["--fresh"]):
        for code, output in run_ranks(2, train, [*argv, "--max-steps", "100000", *more]):
            assert code == 2, output
            assert f"--output {tmp_path / 'run'}: another run is at work in it: process {pid} on host {HOST}" in output
            assert "Traceback" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "run"]
    os.kill(pid, signal.SIGKILL)
    steps = str(read_log(tmp_path / "run")[-1]["step"] + 4)
    (code, output), _ = run_ranks(2, train, [*argv, "--max-steps", "100000", "--stop-at-step", steps])
    assert code == 75, output
    assert f"left by process {pid} on host {HOST}" in output
    assert "taken over" in output and "going on after step" in output
    assert not (tmp_path / "run" / "LOCK.json").exists()


def test_an_error_gives_it_back(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    assert [code for code, _ in run_ranks(2, train, argv)] == [0, 0]
    (code, output), _ = run_ranks(2, train, [*argv, "--seed", "9"])
    assert code == 2 and "--seed: was 0, is 9" in output
    assert not list((tmp_path / "run").glob("LOCK*"))
