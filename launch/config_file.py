"""Flags from a file: YAML or JSON, or the `config.json` that a run keeps of its own. They become words of a command
line, so that everything which holds there holds for them, too."""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launch.errors import ConfigError, did_you_mean, did_you_mean_path

_ASKING = ("config", "help", "print_config")  # nothing that a file would have
LENGTH = frozenset({"--max-steps", "--epochs"})  # each says how long: one on the command line puts out both of a file


def words(path: Path, given: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The file's flags as words, but for those that the command line gives.

    Args:
        given: the command line.

    Raises:
        ConfigError: the file can't be read, or has a flag that there is not, or a value that no flag can have; or it is
            a run's record, whose folder nobody means without saying so.
    """
    names, flags = names_in(given), read(path)
    if "output" in flags and "--output" not in names and record(path):
        raise ConfigError(
            f"--config {path}: is the record of a run. To go on with it, give --output {path.parent}; "
            "to repeat it, another --output"
        )
    names |= LENGTH if names & LENGTH else set()
    return [word for name, value in flags.items() for word in _words(path, name, value, names, parser)]


def names_in(given: Sequence[str]) -> set[str]:
    """The flags that a command line gives."""
    return {word.partition("=")[0] for word in given if word.startswith("--")}


def find(path: Path) -> Path:
    """The file itself; of a run's folder, the record in it."""
    return path / "config.json" if path.is_dir() else path


def read(path: Path) -> dict[str, Any]:
    """Flags by name.

    Raises:
        ConfigError: it can't be read as such, or a name stands there twice.
    """
    return _read(find(path))[0]


def record(path: Path) -> dict[str, Any]:
    """All that a run's record holds, which is more than flags; {} of another file.

    Raises:
        ConfigError: as `read`.
    """
    return _read(find(path))[1]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        body = json.loads(text, object_pairs_hook=_object) if path.suffix == ".json" else _yaml(text)
        of_run = body if isinstance(body, dict) and isinstance(body.get("flags"), dict) else {}
        flags = of_run.get("flags", body)
        if isinstance(flags, dict):
            return _object((str(name).replace("-", "_"), value) for name, value in flags.items()), of_run
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {path}: can't be read: {error}{did_you_mean_path(path)}") from error
    except Exception as error:  # yaml's own errors, which say line and column
        raise ConfigError(f"--config {path}: is no YAML: {' '.join(str(error).split())}") from error
    raise ConfigError(f"--config {path}: must hold flags by name, such as `max_steps: 1000`")


def _yaml(text: str) -> Any:
    """Words and numbers as they are written: to YAML 1.1, 12:30:00 is 45000, `off` is false and 010 is 8."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _object((key.value, value) for key, value in node.value)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:true|True|false|False)$"), list("tTfF"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("(?:~|null|Null|NULL)?$"), ["~", "n", "N", ""])
    return yaml.load(text, Loader)


def _object(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Raise ValueError if a key stands there twice."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if str(key) in found:
            raise ValueError(f"'{key}' stands there twice")
        found[str(key)] = value
    return found


def _words(
    path: Path, name: str, value: Any, given: set[str], parser: argparse.ArgumentParser
) -> Iterator[str]:  # fmt: skip
    flag = f"--{name.replace('_', '-')}"
    actions = parser._option_string_actions
    action = actions.get(flag)
    if flag == "--config":
        raise ConfigError(f"--config {path}: config: a file names no other one: put its flags here")
    if action is None or flag == "--help":
        known = (word.removeprefix("--") for word, meant in actions.items() if meant.dest not in _ASKING)
        raise ConfigError(f"--config {path}: unknown flag '{name}'{did_you_mean(flag.removeprefix('--'), known)}")
    if value is None or given & set(action.option_strings):
        return
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ConfigError(f"--config {path}: {name} {value}: must be true or false")
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
