"""What a student kept of its teacher: scores on tasks, size, speed, masked words, and the curves of the runs.

python -m launch.report --teacher T --student S --runs runs/* --data VALID --train-data TRAIN --output report

`report/index.html` is one page that needs nothing else; `report/report.json` holds the same numbers
(launch/reporting/document.py says which).
"""

import json
import logging
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from data.masking import MaskingSettings
from launch import commit
from launch.args import flag, parse, require
from launch.errors import DataError, run, say
from launch.measuring import Measuring, Model, Models, measured
from launch.reporting import runs as run_folders
from launch.reporting import tables, terminal
from launch.reporting.document import STUDENT, TEACHER, document
from launch.reporting.page import page
from launch.reporting.runs import Runs

DESCRIPTION = "What a student kept of its teacher, as a page, as JSON, and as tables."
EXAMPLE = """\
  python -m launch.report --teacher bert-base-uncased --student models/dilbert --runs runs/* \\
      --data datasets/valid --train-data datasets/train --output report"""
PRINTED = (tables.tasks, tables.sizes, tables.speed, tables.production, tables.held_out, tables.pretraining,
           tables.gaps)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """What is reported."""

    output: Path = flag(help="new folder, for index.html and report.json", metavar="FOLDER")
    teacher: str | None = flag(None, "masked language model, folder or hub name, that was distilled", "NAME")
    student: str | None = flag(None, "masked language model, folder or hub name, that was made of it", "NAME")
    runs: tuple[Path, ...] | None = flag(
        None, "run folders of fine-tuning and of pre-training; alone, they say who teacher and student are: the only "
        "BERT and the only DistilBERT that were fine-tuned", "RUN",
    )  # fmt: skip

    def __post_init__(self) -> None:
        given = self.teacher or self.student or self.runs
        require(bool(given), "teacher", self.teacher, "give --teacher and --student, or --runs, or all of them")


def who(arguments: Arguments, measuring: Measuring, runs: Runs) -> tuple[str | None, str | None, Models]:
    """Names of teacher and student, and those of them that are opened.

    Raises:
        ConfigError, CheckpointError: a model can't be opened, or there is none for --data.
    """
    if not arguments.teacher and not arguments.student:
        require(measuring.data is None, "data", measuring.data, "measures --teacher and --student; name them")
        return *runs.pair(), {}
    named = ((TEACHER, arguments.teacher), (STUDENT, arguments.student))
    wanted = measuring.measure != "nothing"
    return arguments.teacher, arguments.student, {role: Model.load(name) for role, name in named if name and wanted}


def report(arguments: Arguments, measuring: Measuring, masking: MaskingSettings) -> dict[str, Any]:
    """Write the folder.

    Returns:
        What is in report.json.

    Raises:
        DilbertError: nothing to report, or a run, model or dataset that can't be read.
    """
    commit.refuse_existing(arguments.output)
    runs = run_folders.read(arguments.runs or ())
    teacher, student, models = who(arguments, measuring, runs)
    if not models and not runs.tuned and not runs.pretrained:
        why = "".join(f"\n  {path}: {reason}" for path, reason in runs.left_out)
        raise DataError(f"nothing to report: no model is measured, and no run is finished{why}")
    figures = measured(models, measuring, masking)
    body = document(date.today().isoformat(), teacher, student, runs, figures)
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with commit.folder(arguments.output) as folder:
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "index.html").write_text(page(json.loads(text)), encoding="utf-8")
    return json.loads(text)


def main() -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    arguments, *settings = parse(
        DESCRIPTION, Arguments, Measuring, MaskingSettings, example=EXAMPLE, prog="launch.report"
    )
    body = report(arguments, *settings)
    say(terminal.markdown(table for make in PRINTED if (table := make(body))))
    say(f"\n{arguments.output / 'index.html'}\n{arguments.output / 'report.json'}")


if __name__ == "__main__":
    run(main)
