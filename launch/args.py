"""Command-line flags from frozen dataclasses: a field is a flag, the class's docstring heads its group in `--help`.

    @dataclass(frozen=True)
    class Cadence:
        "How often things happen."
        log_interval: int = flag(10, "steps between two log lines")

    (cadence,) = parse("What this program does.", Cadence)

`--log-interval` and `--log_interval` are the same flag; a boolean field has both forms, `--x` and `--no-x`; a field
without default is required. Values are checked where the dataclass is constructed (`require`).
"""

import argparse
import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch import config_file
from launch.errors import ConfigError, did_you_mean

REQUIRED = dataclasses.MISSING


def flag(
    default: Any = REQUIRED, help: str = "", metavar: str | None = None,
    recorded: Callable[[Any, Any, Path], None] | None = None,
) -> Any:  # fmt: skip
    """A dataclass field with its default (none: the flag is required) and the sentence that `--help` shows.

    Args:
        recorded: where a run's record gives the flag, called with its value, what the record holds beside the flags
            under the same name, and the record's path; raises ConfigError if they disagree.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "recorded": recorded})


def positional(help: str, metavar: str) -> Any:
    """A dataclass field that is given without a flag's name before it; one or more values if it is a tuple."""
    return dataclasses.field(metadata={"help": help, "metavar": metavar, "positional": True})


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise ConfigError unless `condition`: the flag of field `name` has `value` (None: was not given), but `rule` says
    what it must be."""
    if not condition:
        raise ConfigError(f"{option(name)}{'' if value is None else f' {value}'}: {rule}")


def require_named(name: str, folder: Path) -> None:
    """Raise ConfigError where a folder that is to be made has no name of its own, such as `.`, which "" is, too."""
    require(folder.name not in ("", ".."), name, folder, "must be the name of a folder")


def option(name: str) -> str:
    """The flag of a field: `max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """Flags from a file."""

    config: Path | None = flag(
        None, "flags by name, as YAML or JSON, or a run, for its own; what the command line says counts more", "FILE"
    )
    print_config: bool = flag(False, "show all flags with their values, as such a file, and end")


class _Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError, and knows its options' names for "did you mean"."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n`{self.prog} --help` explains every flag.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


class _Collect(argparse.Action):
    """Values of a flag that may be given more than once: `--x a b --x c` is a, b and c; any replaces the default."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else []), *values])


def _canonical(argv: Sequence[str]) -> list[str]:
    """Write underscores in option names as hyphens; leave values alone."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return words


def _add(group: Any, field: dataclasses.Field, hint: Any) -> None:
    """Add one field as a flag; its annotation says how the words after it are read."""
    hint = _without_none(hint)
    options: dict[str, Any]
    if field.metadata.get("positional"):
        many = typing.get_origin(hint) is tuple
        options = {"nargs": "+", "type": typing.get_args(hint)[0]} if many else {"type": hint}
        group.add_argument(field.name, help=field.metadata["help"], metavar=field.metadata["metavar"], **options)
        return
    text = field.metadata.get("help", "")
    options = {"dest": field.name}
    if field.default is REQUIRED:
        options["required"] = True
    else:
        options["default"] = field.default
        if field.default not in (None, ()):
            text += f" (default: {_show(field.default)})"
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is tuple:
        options |= {"nargs": "+", "action": _Collect, "type": typing.get_args(hint)[0]}
    elif typing.get_origin(hint) is typing.Literal:
        options["choices"] = typing.get_args(hint)
    else:
        options["type"] = _whole_number if hint is int else hint
    if hint is not bool:
        options["metavar"] = field.metadata.get("metavar")
    group.add_argument(option(field.name), help=text.replace("%", "%%"), **options)


def _whole_number(text: str) -> int:
    """Of a size that all arithmetic has room for."""
    value = int(text)
    if abs(value) > 1 << 53:
        raise argparse.ArgumentTypeError(f"{text[:20]}... is too large")
    return value


_whole_number.__name__ = "int"  # in argparse's message: invalid int value


def _without_none(hint: Any) -> Any:
    """`int | None` -> int; any other annotation -> itself."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = [part for part in typing.get_args(hint) if part is not type(None)]
        return inner
    return hint


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def build(description: str, *groups: type, example: str = "", prog: str | None = None) -> argparse.ArgumentParser:
    """The parser whose groups are the given dataclasses, in that order."""
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n{example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for cls in groups:
        title = (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")
        group = parser.add_argument_group(title)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _add(group, field, hints[field.name])
    return parser


def parse(
    description: str, *groups: type, argv: Sequence[str] | None = None, example: str = "", prog: str | None = None,
    config: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """Read the command line into one instance of each dataclass.

    Args:
        groups: one may have MOVED: by flags of other programs, what has taken their place.
        config: flags may come from a file, too: see `ConfigFile`. With `--print-config` the process ends here.

    Raises:
        ConfigError: an unknown flag (with the nearest known one), a missing one, or a value that a dataclass refuses.
    """
    every = (*groups, ConfigFile) if config else groups
    parser = build(description, *every, example=example, prog=prog)
    words = given = _canonical(sys.argv[1:] if argv is None else argv)
    path = _config_in(given, parser) if config else None
    if path:
        words = [*config_file.words(path, given, parser), *given]
    moved = {name: place for cls in groups for name, place in getattr(cls, "MOVED", {}).items()}
    _refuse_missing(parser, words, example, moved)
    if nothing := next((word for word in words if word.startswith("--") and word.endswith("=--")), None):
        parser.error(f"argument '{nothing}': -- is no value")  # argparse would take it for none at all
    values, unknown = parser.parse_known_args(words)
    _refuse_unknown(parser, unknown, moved)
    if path:
        _check_recorded(path, given, groups, values)
    instances = []
    for cls in groups:
        taken = {field.name: getattr(values, field.name) for field in dataclasses.fields(cls)}
        instances.append(cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in taken.items()}))
    first = os.environ.get("RANK", "0") == "0"
    if config and values.print_config:
        if first:
            print(json.dumps(plain(*instances), indent=2))
        sys.exit(0)
    if path and first and (folder := config_file.record(path).get("folder", os.getcwd())) != os.getcwd():
        print(f"note: relative paths in --config {path} are those of a start in {folder}", file=sys.stderr)
    return tuple(instances)


def plain(*groups: Any) -> dict[str, Any]:
    """Flags by field name, as JSON holds them."""
    values = {key: value for group in groups for key, value in dataclasses.asdict(group).items()}
    return json.loads(json.dumps(values, default=str))


def _config_in(words: Sequence[str], parser: argparse.ArgumentParser) -> Path | None:
    """The file that a command line names, unless it asks for help."""
    if {"-h", "--help"} & set(words):
        return None
    finder = _Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(words)[0].config
    return path and config_file.find(path)


def _check_recorded(path: Path, given: Sequence[str], groups: Sequence[type], values: argparse.Namespace) -> None:
    """What the flags of a run's record name is still what the record holds of it."""
    names, record = config_file.names_in(given), config_file.record(path)
    for field in (field for cls in groups for field in dataclasses.fields(cls)):
        check = field.metadata.get("recorded")
        if check and field.name in record and option(field.name) not in names:
            check(getattr(values, field.name), record[field.name], path)


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str], moved: Mapping[str, str]) -> None:
    """Name the first word that is no argument, with the nearest one, or with what has taken its place."""
    if unknown:
        name = unknown[0].partition("=")[0]
        cure = f": {moved[name]}" if name in moved else did_you_mean(name, parser._option_string_actions)
        parser.error(f"unknown argument '{unknown[0]}'{cure}")


def _refuse_missing(
    parser: argparse.ArgumentParser, words: list[str], example: str, moved: Mapping[str, str]
) -> None:  # fmt: skip
    """Name every required flag that is missing, each with its meaning, and show a full example; but first one that is
    misspelt, since it may be the missing one."""
    given = [word.partition("=")[0] for word in words]
    if {"-h", "--help"} & set(given):
        return
    missing = [a for a in parser._actions if a.required and a.option_strings and not {*given} & {*a.option_strings}]
    if missing:
        flags = [word for word in given if word.startswith("--") and word != "--"]
        _refuse_unknown(parser, [word for word in flags if word not in parser._option_string_actions], moved)
        lines = [f"  {a.option_strings[0]:22s} {a.help}" for a in missing]
        tail = f"\nA full example:\n{example}" if example else ""
        raise ConfigError("required, but missing:\n" + "\n".join(lines) + tail)
