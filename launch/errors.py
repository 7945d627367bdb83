"""Error classes, each with its exit code, and the one place that turns an error into an exit.

0 done, 2 configuration, 3 data, 4 checkpoint, 5 non-finite loss or gradient, 6 a rank that hangs, 75 stopped on
request. A user's mistake never shows a traceback.
"""

import difflib
import errno
import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from launch.lines import folded, width


class DilbertError(Exception):
    """Base of the errors that a user can cause. The message says what, where (file, line, key, flag) and the cure."""

    exit_code = 1


class ConfigError(DilbertError):
    """A flag, a DeepSpeed JSON key, or a combination of them that can't work."""

    exit_code = 2


class DataError(DilbertError):
    """A text, tokenizer or dataset that can't be read, or is not what it claims to be."""

    exit_code = 3


class CheckpointError(DilbertError):
    """A checkpoint or model folder that can't be written, read or verified."""

    exit_code = 4


class NonFiniteError(DilbertError):
    """The loss or the gradient is NaN or infinite."""

    exit_code = 5


class HungError(DilbertError):
    """A rank makes no progress, or is no longer there."""

    exit_code = 6


class Stopped(DilbertError):
    """The run was stopped on request, and goes on at the next start."""

    exit_code = 75


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to standard output, or to `stream`; a reader that has gone, such as a launcher, is no reason to end."""
    try:
        print(text, file=stream or sys.stdout, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())


def reason(error: Exception) -> str:
    """What another library's error says, without all that it adds: its first two lines (one may be but a status)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def did_you_mean_path(path: str | Path, holding: Sequence[str] = ()) -> str:
    """The same for a path that is not there, by the names beside its first missing part; with the rest of the path,
    where that is there. A folder of very many files is not read to its end.

    Args:
        holding: names or patterns; what is meant holds one of them at least.
    """
    path = Path(path)
    try:
        missing = next((p for p in (path, *path.parents) if p.parent.is_dir()), path)
        if missing.exists():
            return ""
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, 10_000)]
        for name in difflib.get_close_matches(missing.name, names, n=3, cutoff=0.6):
            near = missing.parent / name
            whole = near / path.relative_to(missing)
            meant = whole if whole.exists() else near
            if not holding or any(any(meant.glob(pattern)) for pattern in holding):
                return f"; did you mean '{meant}'?"
    except (OSError, ValueError):
        pass
    return ""


# What a disk, or rights on it, can answer; other OSErrors are our own bugs.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.ENOTDIR,
         errno.EFBIG, errno.ENAMETOOLONG, errno.ENOLCK}  # fmt: skip


def of_disk(error: OSError, kind: type[DilbertError]) -> DilbertError | None:
    """A full or unwritable disk, or an unreadable file, as an error of a user's making; None: it is a bug of ours."""
    return kind(f"{error.filename or 'the disk'}: {error.strerror}") if error.errno in _DISK else None


def run(main: Callable[[], None], disk: type[DilbertError] = DataError) -> None:
    """Run an entry point; end the process with the error's exit code, and with its message on standard error. What
    standard output has no characters for becomes question marks.

    Args:
        disk: what a full or unwritable disk, or an unreadable file, counts as.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):  # standard error never fails
            sys.stdout.reconfigure(errors="replace")
        main()
        print(end="", flush=True)  # standard output may be closed
    except DilbertError as error:
        _end(error)
    except BrokenPipeError:  # `python -m data.describe D | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not (known := of_disk(error, disk)):
            raise
        _end(known)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _end(error: DilbertError) -> NoReturn:
    """Say it, and leave.

    All ranks of a job usually fail alike. A rank other than 0 holds its message back for a moment, in which the
    launcher ends it: the user reads the error once, and still reads the error of a rank that fails alone.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(2)
    where = f"[rank {rank}] " if rank != "0" else ""
    kind = "" if isinstance(error, Stopped) else "error: "
    text = f"{where}{kind}{error}"
    say(folded(text, width()) if sys.stderr.isatty() else text, sys.stderr)
    sys.exit(error.exit_code)
