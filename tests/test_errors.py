"""Exit codes, and what the user reads."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.CheckpointError, 4),
        (errors.NonFiniteError, 5),
        (errors.Stopped, 75),
    ],
)
def test_exit_codes(error, code, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def main() -> None:
        raise error("the reason")

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == code
    printed = capsys.readouterr().err
    assert printed == ("the reason\n" if error is errors.Stopped else "error: the reason\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_lines_that_fit(terminal, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    message = "a few words and " * 8 + "the end\n  cure"

    def main() -> None:
        raise errors.ConfigError(message)

    with pytest.raises(SystemExit):
        errors.run(main)
    printed = capsys.readouterr().err
    assert " ".join(printed.split()) == " ".join(f"error: {message}".split())
    assert [len(line) <= 80 for line in printed.splitlines()] == ([True] * 3 if terminal else [False, True])
    assert printed.endswith("the end\n  cure\n")


def test_our_own_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        errors.run(lambda: 1 / 0)


def test_a_full_disk_is_no_bug(capsys):
    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    with pytest.raises(SystemExit) as caught:
        errors.run(main, disk=errors.CheckpointError)
    assert caught.value.code == 4
    assert capsys.readouterr().err == "error: /data/x: No space left on device\n"


def test_other_system_errors_are_bugs():
    def main() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        errors.run(main)


def test_interrupt(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == 130


def test_other_ranks_say_who_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)

    def main() -> None:
        raise errors.DataError("gone")

    with pytest.raises(SystemExit):
        errors.run(main)
    assert capsys.readouterr().err == "[rank 3] error: gone\n"


def test_did_you_mean():
    assert errors.did_you_mean("optimiser", ["optimizer", "scheduler"]) == "; did you mean 'optimizer'?"
    assert errors.did_you_mean("xyz", ["optimizer"]) == ""


def test_did_you_mean_for_paths(tmp_path, monkeypatch):
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    (tmp_path / "train.json").touch()
    monkeypatch.chdir(tmp_path)
    for typed, near in [
        ("trian.json", "train.json"), ("models/techer", "models/teacher"), ("modls/teacher/config.json", "models"),
        ("./modles", "models"), ("modles/teacher", "models/teacher"),
        (tmp_path / "models" / "teachr", f"{tmp_path}/models/teacher"),
    ]:  # fmt: skip
        assert errors.did_you_mean_path(typed) == f"; did you mean '{near}'?"
    for typed in ("quite/other", "train.json", "models", "models/teacher", "train.json/x", "", "\0", "x" * 5000):
        assert errors.did_you_mean_path(typed) == "", typed


def test_did_you_mean_only_what_holds_the_files(tmp_path):
    for folder in ("models-of-ours", "models"):
        (tmp_path / folder / "teacher").mkdir(parents=True)
    assert errors.did_you_mean_path(tmp_path / "model", ("config.json", "*.bin")) == ""
    (tmp_path / "models" / "x.bin").touch()
    near = f"; did you mean '{tmp_path}/models'?"
    assert errors.did_you_mean_path(tmp_path / "model", ("config.json", "*.bin")) == near
    assert errors.did_you_mean_path(tmp_path / "model" / "teacher", ("*.bin",)) == ""


def test_a_reader_that_has_gone_ends_nobody(tmp_path):
    """As `deepspeed ... | tee log` ends, or a launcher is killed: what comes later goes nowhere, the exit is ours."""
    code = "from launch.errors import say; import pathlib, sys\nfor _ in range(3): say('x'); say('y', sys.stderr)\n"
    code += f"pathlib.Path({str(tmp_path / 'there')!r}).touch(); sys.exit(75)"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=write, cwd=Path(__file__).parents[1])
    os.close(write)
    assert done.returncode == 75
    assert (tmp_path / "there").exists()


@pytest.mark.parametrize(("encoding", "written"), [("ascii", b"l?uft\n"), ("latin-1", b"l\xe4uft\n")])
def test_what_an_output_has_no_character_for_ends_nobody(encoding, written):
    code = "from launch.errors import run; run(lambda: print('l\\xe4uft'))"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, cwd=Path(__file__).parents[1], env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, written, b"")


@pytest.mark.parametrize("output", [io.StringIO(), None])
def test_outputs_of_every_kind(output, monkeypatch):
    """One that a caller has put there, or none, where it is closed."""
    monkeypatch.setattr(sys, "stdout", output)
    errors.run(lambda: print("läuft"))
    assert output is None or output.getvalue() == "läuft\n"
