"""`report.json` of an exported model: the report's document about the run that made it, and what its card says besides.

    export  {run, step, flags, deepspeed (its JSON), fingerprint, environment, seconds, tokens, energy_kwh and
             cost where the log has them: as of the checkpoint,
             figures: {name: last value in the log}, result: {task, main, metrics, examples} or null,
             model: {name (of its folder), model_type, kind (of its task head, or null), labels, parameters, layers,
                     hidden_size, positions, difference (from `transformers`), transformers (its version), base_model,
                     hub, license, language, onnx: [see model.onnx_export.Form]},
             card: digest of the card that was made of all this}

The rest is of `launch.reporting.document`; `with_figures` takes it from a report of teacher and student.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from launch import commit
from launch.args import require
from launch.errors import DataError, say
from launch.log import LOG, read_log, totals
from launch.reporting.card import card
from launch.reporting.curves import taken
from launch.reporting.document import FORMAT, Measured, document
from launch.reporting.runs import PreTrained, Runs, identity, read, read_json

REPORT, CARD = "report.json", "README.md"

Json = dict[str, Any]


def exported(date: str, run: Path, step: int, model: Json) -> Json:
    """What is known of a checkpoint when it is exported.

    Args:
        date: YYYY-MM-DD.
        step: of the checkpoint; what the log says of later ones is left out.

    Raises:
        DataError: a record of the run is damaged.
    """
    config = read_json(run / "config.json", flags=dict)
    environment = read_json(run / "environment.json", packages=dict, data=list)
    flags, fingerprint = config["flags"], config.get("fingerprint")
    log = [row for row in read_log(run / LOG) if row["step"] <= step]
    if "task" in flags:
        runs = Runs(tuned=tuple(tuned for tuned in read([run]).tuned if tuned.step == step))  # else of other weights
    else:
        runs = Runs(pretrained=(PreTrained(run, flags, fingerprint, environment, log),))
    names = ("task", "main", "metrics", "examples", "precision")
    results = [{name: getattr(tuned, name) for name in names} for tuned in runs.tuned]
    seconds, tokens = taken(log) or (None, None)
    export = {
        "run": str(run),
        "step": step,
        "flags": flags,
        "deepspeed": read_json(run / "ds_config.json"),
        "fingerprint": fingerprint,
        "environment": environment,
        "seconds": seconds,
        "tokens": tokens,
        **totals(log),
        "figures": last_figures(log),
        "result": results[0] if results else None,
        "model": model,
    }
    return document(date, None, None, runs, Measured()) | {"export": export}


def known(folder: Path) -> Json:
    """What a model folder says of itself; {}: it was not exported by us."""
    body = read_json(folder / REPORT, export=dict)
    return body if "export" in body else {}


def last_figures(log: list[Json]) -> dict[str, float]:
    """The last losses and held-out figures."""
    rows = (item for row in log for item in row.items())
    named = {name: value for name, value in rows if name.startswith(("loss", "valid_")) and name != "loss_scale"
             and isinstance(value, int | float) and math.isfinite(value)}  # fmt: skip
    return named


def with_figures(own: Json, report: Path | None, folder: Path) -> Json:
    """The figures of a report of `launch.report`, if there is one, in place of the run's own.

    Args:
        own: of the exported folder; {}: it has none.

    Raises:
        ConfigError: the folder has none.
        DataError: it is no report, or neither about this folder nor about its run.
    """
    if report is None:
        return own
    require(bool(own), "report", report, f"{folder} has no {REPORT}, of which cards are made; export its run again")
    body = read_json(report)
    if body.get("format") != FORMAT or not own.keys() - {"export"} <= body.keys():
        raise DataError(f"{report}: no report in format {FORMAT}; make it by `python -m launch.report`")
    rows = (row["run"] for row in (*body["pretraining"], *body["finetuning"]))
    subjects = [name for name in (body["teacher"], body["student"], *rows) if name]
    if {identity(str(folder)), identity(own["export"]["run"])}.isdisjoint(map(identity, subjects)):
        raise DataError(f"{report}: not about {folder} or {own['export']['run']}, but about {', '.join(subjects)}")
    return body | {"export": own["export"]}


def write(folder: Path, report: Json) -> None:
    """`report.json` and the card. A card that somebody has edited stays, and a line says so."""
    path, text = folder / CARD, card(report).encode()
    known = report["export"].get("card")
    edited = path.exists() and _digest(path.read_bytes()) != known
    if edited:
        say(f"{path}: edited since it was made, and left as it is; remove it, and the next call makes it again")
    else:
        commit.write_bytes(path, text)
        known = _digest(text)
    body = report | {"export": report["export"] | {"card": known}}
    commit.write_text(folder / REPORT, json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
