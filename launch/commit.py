"""Files and folders that appear under their name only when complete: write beside, sync, rename."""

import contextlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launch.errors import ConfigError


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by `content`: a reader sees the old file or the new one, whole, also after a power cut."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")  # others may write the same file now
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """`write_bytes` of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def refuse_existing(output: Path) -> None:
    """Raise ConfigError if `output` is there already: nothing of the user's is ever overwritten."""
    if os.path.lexists(output):
        raise ConfigError(f"--output {output}: exists already; choose another name, or remove it first")


@contextlib.contextmanager
def folder(output: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it gets its own name when the block ends well, and is removed otherwise.

    What a killed process left under the temporary name is removed at the next start.

    Raises:
        ConfigError: the output exists, or can't be made.
    """
    refuse_existing(output)
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: can't be made: {error.strerror}") from error
    try:
        yield partial
        publish(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, output: Path) -> None:
    """Sync a folder with all that is in it, and give it its name."""
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    os.rename(partial, output)
    sync(output.parent)
