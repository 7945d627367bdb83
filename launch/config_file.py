"""Flags from a file: YAML or JSON, or the `config.json` that a run keeps of its own. They become words of a command
line, so that everything which holds there holds for them, too."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.errors import ConfigError, did_you_mean, did_you_mean_path


def words(path: Path, given: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The file's flags as words, but for those that the command line gives.

    Args:
        given: the command line.

    Raises:
        ConfigError: the file can't be read, or has a flag that there is not, or a value that no flag can have.
    """
    names = {word.partition("=")[0] for word in given if word.startswith("--")}
    return [word for name, value in read(path).items() for word in _words(path, name, value, names, parser)]


def read(path: Path) -> dict[str, Any]:
    """Flags by name.

    Raises:
        ConfigError: it can't be read as such.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            body = json.loads(text)
        else:
            import yaml

            body = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: can't be read: {error}{did_you_mean_path(path)}") from error
    except Exception as error:  # yaml's own errors, which say line and column
        raise ConfigError(f"--config {path}: is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(body, dict) and isinstance(body.get("flags"), dict):
        body = body["flags"]  # a run's record, which holds more than flags
    if not isinstance(body, dict):
        raise ConfigError(f"--config {path}: must hold flags by name, such as `max_steps: 1000`")
    return {str(name): value for name, value in body.items()}


def _words(
    path: Path, name: str, value: Any, given: set[str], parser: argparse.ArgumentParser
) -> Iterator[str]:  # fmt: skip
    flag = f"--{name.replace('_', '-')}"
    actions = parser._option_string_actions
    action = actions.get(flag)
    if action is None or flag in ("--help", "--config"):
        known = (word.removeprefix("--") for word in actions)
        raise ConfigError(f"--config {path}: unknown flag '{name}'{did_you_mean(flag.removeprefix('--'), known)}")
    if value is None or given & set(action.option_strings):
        return
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ConfigError(f"--config {path}: {name} {value!r}: must be true or false")
        yield flag if value else f"--no-{flag.removeprefix('--')}"
    elif action.nargs:
        values = value if isinstance(value, list) else [value]
        if values:
            yield from (flag, *(_text(path, name, each) for each in values))
    else:
        yield f"{flag}={_text(path, name, value)}"


def _text(path: Path, name: str, value: Any) -> str:
    if isinstance(value, bool | list | Mapping) or value is None:
        raise ConfigError(f"--config {path}: {name} {value!r}: must be a word or a number")
    return str(value)
