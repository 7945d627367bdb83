"""launch.supervise: how a run ended is what its folder says. The launchers here are short shell scripts."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch import dry_run, stop, supervise

ROOT = Path(__file__).parents[1]
DONE, STOPPED = ("echo '{\"step\": 9}' >new && mv new " + name for name in ("DONE.json", "STOPPED.json"))
UNTIL_STOP = "until [ -e STOP ]; do sleep 0.1; done; rm STOP"
# What the shells would wait for long is killed soon.
PROGRAM = "import sys; from launch import errors, supervise; supervise._GRACE = 1.0; {more}; errors.run(supervise.main)"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@contextmanager
def begin(run: Path, script: str, more: str = "pass") -> Iterator[subprocess.Popen]:
    """A launcher's script under launch.supervise, in the run folder."""
    command = ["sh", "-c", f"cd {run}; {script}"]
    words = [sys.executable, "-c", PROGRAM.format(more=more), str(run), *command]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def supervised(run: Path, script: str, more: str = "pass") -> tuple[int, str]:
    """Exit code and what was said."""
    with begin(run, script, more) as process:
        said = process.communicate(timeout=60)[1]
    return process.returncode, said


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_names_are_those_of_training():
    assert supervise.STOP == stop.STOP
    assert supervise.ENDS == {"DONE.json": 0, "STOPPED.json": 75, "dry-run/report.txt": 0}
    assert supervise.DRY_RUN == f"{dry_run.FOLDER}/{dry_run.REPORT}"


def test_a_dry_run_ends_with_its_report(run):
    (run / "dry-run").mkdir()
    (run / "dry-run" / "report.txt").touch()
    assert supervised(run, "exit 0")[0] == 1, "an earlier one's"
    assert supervised(run, "echo ready >dry-run/new && mv dry-run/new dry-run/report.txt") == (0, "")


@pytest.mark.parametrize(("script", "code"), [(DONE, 0), (f"{DONE}; exit 1", 0), (f"{STOPPED}; exit 1", 75)])
def test_the_folder_counts_and_not_the_launchers_code(script, code, run):
    found, said = supervised(run, script)
    assert found == code
    assert f"{run}: {'DONE' if code == 0 else 'STOPPED'}.json: step 9" in said


@pytest.mark.parametrize(
    ("script", "code", "how"),
    [("exit 0", 1, "with exit code 0"), ("exit 3", 3, "with exit code 3"), ("kill -9 $$", 1, "by signal 9")],
)
def test_files_of_an_earlier_start_do_not_count(script, code, how, run):
    (run / "dry-run").mkdir()
    for name in supervise.ENDS:
        (run / name).write_text("{}")
    found, said = supervised(run, script)
    assert found == code
    assert f"error: {run}: the launcher ended {how}, and there is no new DONE.json or STOPPED.json" in said


def test_a_folder_that_comes_later(tmp_path):
    (tmp_path / "run").mkdir()
    later = tmp_path / "run" / "later"
    assert supervised(later, f"mkdir -p {later}; cd {later}; {DONE}")[0] == 0


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "USR1"])
def test_a_signal_becomes_a_file(name, run):
    """A run that only starts clears the file away, once; the launcher itself gets no signal."""
    script = f"trap 'touch signalled' INT TERM HUP USR1; touch ready; {UNTIL_STOP}; {UNTIL_STOP}; {STOPPED}; exit 1"
    with begin(run, script) as process:
        wait_for(run / "ready")
        process.send_signal(getattr(signal, f"SIG{name}"))
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert not (run / "STOP").exists()
    assert not (run / "signalled").exists()


def test_a_second_signal_ends_the_launcher(run):
    with begin(run, "touch ready; exec sleep 60", more="supervise._SAME_REQUEST = 0.5") as process:
        wait_for(run / "ready")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # the same request
        wait_for(run / "STOP")
        time.sleep(0.7)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "the launcher ended by signal 15" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert not (run / "STOP").exists()


def test_orphans_are_asked_to_stop(run):
    """Also in a session of their own, as pdsh's are."""
    (run / "orphan.sh").write_text(f"touch ready; {UNTIL_STOP}; {STOPPED}")
    orphan = "setsid sh orphan.sh &"
    launcher = f"{orphan} until [ -e ready ]; do sleep 0.1; done; kill -9 $$"
    code, said = supervised(run, launcher, "supervise._GRACE = 30.0")
    assert code == 75, said


def test_a_start_that_fails_stops_no_other(run):
    """Two starts in one folder: the second is refused, and the first goes on."""
    code, _ = supervised(run, "setsid sleep 1 & exit 2", "supervise._GRACE = 30.0; supervise.Path.touch = None")
    assert code == 2


def test_orphans_that_do_not_stop_are_killed(run):
    code, _ = supervised(run, "setsid sleep 60 & echo $! >orphan; kill -9 $$")
    assert code == 1
    assert not alive(int((run / "orphan").read_text()))


def test_the_launcher_does_not_outlive_its_supervisor(run):
    with begin(run, "trap 'touch ended; exit' TERM; touch ready; while :; do sleep 0.1; done") as process:
        wait_for(run / "ready")
        process.kill()
        wait_for(run / "ended")


def test_usage():
    done = subprocess.run([sys.executable, "-m", "launch.supervise"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "python -m launch.supervise runs/first srun" in done.stderr
