"""Runs side by side: what differs in what they were given, their figures, and their curves.

python -m launch.compare runs/A runs/B --output compare

A terminal shows the tables; `compare/index.html` also has the curves, over steps, tokens and hours, and
needs nothing else; `compare/compare.json` holds the same numbers (launch/reporting/comparison.py says which). Runs that
are under way or stopped are taken as far as they have come.
"""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from launch import commit
from launch.args import flag, parse, positional
from launch.errors import ConfigError, run, say
from launch.lines import width
from launch.reporting import comparison_page, terminal
from launch.reporting.comparison import Run, comparison

DESCRIPTION = "Runs side by side: what differs in what they were given, their figures, and their curves."
EXAMPLE = "  python -m launch.compare runs/A runs/B --output compare"


@dataclass(frozen=True)
class Arguments:
    """What is compared."""

    runs: tuple[Path, ...] = positional("run folders; the others are measured against the first", "RUN")
    output: Path | None = flag(None, "new folder, for index.html and compare.json", "FOLDER")

    def __post_init__(self) -> None:
        most = len(comparison_page.SERIES)
        if not 1 < len(self.runs) <= most:
            raise ConfigError(f"{len(self.runs)} run(s) given: 2 to {most} can be compared (and told apart in a plot)")


def read(folders: tuple[Path, ...]) -> list[Run]:
    """Each of them.

    Raises:
        ConfigError: no run folder, or one that is given twice.
        DataError: a record is damaged, or a log has no line.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if (other := found.setdefault(folder.resolve(), folder)) is not folder:
            raise ConfigError(f"{other} and {folder}: the same run")
    return [Run.read(folder) for folder in folders]


def main() -> None:
    """Command line."""
    (arguments,) = parse(DESCRIPTION, Arguments, example=EXAMPLE, prog="launch.compare")
    if arguments.output:
        commit.refuse_existing(arguments.output)
    text = json.dumps(comparison(date.today().isoformat(), read(arguments.runs)), indent=1, ensure_ascii=False) + "\n"
    body = json.loads(text)
    say(terminal.columns(comparison_page.tables(body), width()))
    if arguments.output:
        with commit.folder(arguments.output) as folder:
            (folder / "compare.json").write_text(text, encoding="utf-8")
            (folder / "index.html").write_text(comparison_page.page(body), encoding="utf-8")
        say(f"\n{arguments.output / 'index.html'}\n{arguments.output / 'compare.json'}")


if __name__ == "__main__":
    run(main)
