"""Runs side by side: what differs, figures and curves by hand, and what page and terminal show of them."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import run_ranks, train
from reported import read

from launch import compare, errors
from launch.lines import width
from launch.reporting import comparison as comparisons
from launch.reporting import comparison_page, tables, terminal
from launch.reporting.comparison import Run, comparison
from launch.reporting.curves import Pace, taken

ROOT = Path(__file__).parents[1]
FLAGS = {"data": ["web", "books"], "teacher": "big", "student": "start", "output": "runs/a", "alpha_ce": 5.0,
         "restrict_ce_to_mask": False, "valid_data": None, "allow_change": []}  # fmt: skip
DEEPSPEED = {"train_batch_size": 16, "optimizer": {"type": "AdamW", "params": {"lr": 0.001, "betas": [0.9, 0.98]}}}
MODEL = {"model_type": "distilbert", "n_layers": 2}
ENVIRONMENT = {"packages": {"torch": "2.13.0", "numpy": "2.4.6"}, "python": "3.12.1", "git_commit": "a" * 40,
               "host": "h", "ranks": 2, "device": "H100", "cores": 8, "steps": 40, "energy_counters": [],
               "data": [{"path": "web", "tokens": 500}]}  # fmt: skip
# 10 steps of 0.5 s at 100 tokens/s, then 10 of 2 s at 50 tokens/s.
LOG = (
    {"step": 10, "loss": 4.0, "loss_mlm": 2.0, "seconds_per_step": 0.5, "tokens_per_second": 100.0, "memory_gb": 3.5},
    {"step": 15, "valid_loss": 3.0, "valid_accuracy": 0.5, "valid_unigram_entropy": 7.0},
    {"step": 20, "loss": 2.0, "loss_mlm": 1.0, "seconds_per_step": 2.0, "tokens_per_second": 50.0, "memory_gb": 3.0,
     "loss_scale": 8.0},
    {"step": 20, "valid_loss": 3.5, "valid_accuracy": 0.75},
)  # fmt: skip


def write(path: Path, body: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def made(folder: Path, log=LOG, end: str | None = "DONE.json", config: dict | None = None, environment=None,
         deepspeed=None, **changes: object) -> Path:  # fmt: skip
    """A run folder; changes are of its flags."""
    body = {"flags": FLAGS | changes, "deepspeed_config": {}, "fingerprint": "f", "model": MODEL, "teacher": "t"}
    write(folder / "config.json", body | (config or {}))
    write(folder / "ds_config.json", DEEPSPEED | (deepspeed or {}))
    write(folder / "environment.json", ENVIRONMENT | (environment or {}))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    if end:
        write(folder / end, {"step": 20, "why": "SIGTERM (rank 0)"})
    return folder


def scaled(factor: float) -> list[dict]:
    """The log with losses so many times as large."""
    return [{name: value * factor if "loss" in name else value for name, value in row.items()} for row in LOG]


def compared(*folders: Path) -> dict:
    body = comparison("2026-01-31", [Run.read(folder) for folder in folders])
    return json.loads(json.dumps(body, allow_nan=False))


def command(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
    compare.main()


# --- what differs ---


def test_only_what_differs_is_told(tmp_path):
    body = compared(
        made(tmp_path / "a"),
        made(tmp_path / "b", output="runs/b", alpha_ce=0.0, teacher=None, restrict_ce_to_mask=True,
             config={"teacher": None, "model": MODEL | {"n_layers": 3}, "fingerprint": "g"},
             deepspeed={"optimizer": {"type": "AdamW", "params": {"lr": 0.002, "betas": [0.9, 0.999]}}},
             environment={"git_commit": "b" * 40, "packages": {"torch": "2.14.0", "numpy": "2.4.6"}, "ranks": 4,
                          "data": [{"path": "web", "tokens": 500}, {"path": "books", "tokens": 9}]}),
    )  # fmt: skip
    assert body["differences"] == {
        "flags": {"--teacher": ["big", None], "--alpha-ce": [5.0, 0.0], "--restrict-ce-to-mask": [False, True]},
        "DeepSpeed JSON": {
            "optimizer.params.lr": [0.001, 0.002], "optimizer.params.betas": [[0.9, 0.98], [0.9, 0.999]],
        },
        "model": {"n_layers": [2, 3]},
        "data": {"fingerprint": ["f", "g"], "2.path": [None, "books"], "2.tokens": [None, 9]},
        "teacher": {"weights": ["t", "none"]},
        "code": {"commit": ["a" * 40, "b" * 40]},
        "versions": {"torch": ["2.13.0", "2.14.0"]},
        "hardware": {"ranks": [2, 4]},
    }  # fmt: skip
    assert body["same"] == body["unknown"] == []


def test_what_is_the_same_is_named_and_so_is_what_nobody_knows(tmp_path):
    unknown = {"config": {"teacher": None}, "environment": {"git_commit": None}}  # without a teacher, as it says
    body = compared(made(tmp_path / "a", **unknown), made(tmp_path / "b", **unknown, output="runs/b"))
    assert body["differences"] == {}
    assert body["same"] == ["flags", "DeepSpeed JSON", "model", "data", "teacher", "versions", "hardware"]
    assert body["unknown"] == ["code"]
    (runs, _) = comparison_page.tables(body)
    assert runs.note == (
        "The same in all of them: flags, DeepSpeed JSON, model, data, teacher, versions, hardware. Not recorded: code."
    )


def test_a_commit_with_changes_is_like_no_other(tmp_path):
    changed = {"environment": {"git_commit": "a" * 40 + "+"}}
    body = compared(made(tmp_path / "a", **changed), made(tmp_path / "b", **changed))
    assert body["differences"] == {"code": {"commit": ["a" * 40 + "+"] * 2}}


def test_a_flag_that_an_older_run_did_not_have_is_no_difference_unless_it_is_set(tmp_path):
    old, new = made(tmp_path / "a"), made(tmp_path / "b", time_limit=None, keep_last=3)
    assert compared(old, new)["differences"] == {"flags": {"--keep-last": [None, 3]}}


def test_names_and_states(tmp_path):
    folders = [made(tmp_path / "x" / "run"), made(tmp_path / "y" / "run", end="STOPPED.json"),
               made(tmp_path / "y" / "other", end=None)]  # fmt: skip
    runs = compared(*folders)["runs"]
    assert [run["name"] for run in runs] == ["x/run", "y/run", "other"]
    assert [run["state"] for run in runs] == [
        "done: 20 steps",
        "stopped at step 20 of 40: SIGTERM (rank 0); the same command goes on",
        "no sign of life yet, after step 20 of 40",
    ]
    assert [run["run"] for run in runs] == [str(folder) for folder in folders]


# --- figures ---


def test_figures_by_hand(tmp_path):
    body = compared(made(tmp_path / "a"), made(tmp_path / "b", scaled(1.5)), made(tmp_path / "c", LOG[:1]))
    figures = body["figures"]
    assert list(figures) == [
        "steps", "seconds", "tokens", "tokens_per_second", "loss", "loss_mlm", "valid_loss", "valid_accuracy",
        "valid_unigram_entropy", "best_valid_loss", "best_valid_accuracy", "memory_gb",
    ]  # fmt: skip
    assert figures["steps"] == {"values": [20, 20, 10], "differences": [0, 0, -10], "ratios": [1, 1, 0.5]}
    assert figures["seconds"]["values"] == [10 * 0.5 + 10 * 2.0, 25.0, 5.0]
    assert figures["tokens"]["values"] == [5 * 100 + 20 * 50, 1500.0, 500.0]
    assert figures["tokens_per_second"]["values"] == [60.0, 60.0, 100.0]
    assert figures["loss"] == {"values": [2.0, 3.0, 4.0], "differences": [0, 1.0, 2.0], "ratios": [1, 1.5, 2.0]}
    assert figures["valid_loss"] == {
        "values": [3.5, 5.25, None],
        "differences": [0, 1.75, None],
        "ratios": [1, 1.5, None],
    }
    assert figures["best_valid_loss"]["values"] == [3.0, 4.5, None], "the lowest"
    assert figures["best_valid_loss"]["steps"] == [15, 15, None]
    assert figures["best_valid_accuracy"]["values"] == [0.75, 0.75, None], "the highest"
    assert figures["best_valid_accuracy"]["steps"] == [20, 20, None]
    assert figures["memory_gb"]["values"] == [3.5] * 3, "the most"


def test_figures_that_the_first_run_does_not_have(tmp_path):
    figures = compared(made(tmp_path / "a", LOG[:1]), made(tmp_path / "b"))["figures"]
    assert figures["valid_loss"] == {"values": [None, 3.5], "differences": [None, None], "ratios": [None, None]}


def test_energy_and_cost_where_they_are_known(tmp_path):
    rows = [row | {"energy_kwh": 0.25 * row["step"], "cost": 0.1 * row["step"]} for row in LOG]
    body = compared(made(tmp_path / "a"), made(tmp_path / "b", rows))
    assert body["figures"]["energy_kwh"]["values"] == [None, 5.0]
    table = list(comparison_page.tables(body))[1]
    assert [row for row in table.rows if row[0] in ("energy, kWh", "cost")] == [
        ("energy, kWh", "-", "5", "-", "-"), ("cost", "-", "2.00", "-", "-"),
    ]  # fmt: skip
    assert "cost" not in compared(made(tmp_path / "a"), made(tmp_path / "c"))["figures"]


def test_a_run_of_fine_tuning_beside_one_of_pre_training(tmp_path):
    tuned = made(tmp_path / "b", task="sst2", config={"head": {"kind": "classification"}})
    write(tuned / "result.json", {"metrics": {"accuracy": 0.9}})
    body = compared(made(tmp_path / "a"), tuned)
    assert [run["kind"] for run in body["runs"]] == ["pre-training", "sst2"]
    assert body["figures"]["result_accuracy"]["values"] == [None, 0.9]
    assert body["differences"]["model"] == {"head.kind": [None, "classification"]}


def test_the_cells_of_figures(tmp_path):
    rows = [*scaled(0.5)[:3], LOG[3] | {"step": 1200}]
    table = list(comparison_page.tables(compared(made(tmp_path / "a"), made(tmp_path / "b", rows))))[1]
    cells = {row[0]: row[1:] for row in table.rows}
    assert table.head == ("", "a", "b", "difference", "ratio")
    assert cells["steps"] == ("20", "1,200", "+1,180", "60.000")
    assert cells["time"] == ("00:25", "00:25", "00:00", "1.000")
    assert cells["loss, training"] == ("2.0000", "1.0000", "-1.0000", "0.500")
    assert cells["accuracy, best held out"] == ("0.7500 (20)", "0.7500 (1,200)", "0.0000", "1.000")


# --- curves ---


def test_how_far_a_run_had_come():
    pace = Pace.of(LOG)
    assert [pace.at(step) for step in (0, 5, 10, 15, 20)] == [
        (0.0, 0.0), (2.5, 250.0), (5.0, 500.0), (15.0, 1000.0), (25.0, 1500.0),
    ]  # fmt: skip
    assert pace.at(20.5) is None, "no line tells"
    assert taken(LOG) == (25.0, 1500.0)
    assert Pace.of(LOG[1:2]).at(0) is None
    doubled = [
        LOG[0],
        LOG[0] | {"loss": 1.0},
    ]  # no step stands twice in a whole log; a damaged one is no reason to fail
    assert Pace.of(doubled).at(10) == (5.0, 500.0)


def test_curves_over_tokens_and_hours_by_hand(tmp_path):
    late = {"step": 30, "valid_loss": 2.5}  # its line with rates is not there yet
    curves = compared(made(tmp_path / "a", [*LOG, late], end=None), made(tmp_path / "b", LOG[:1]))["curves"]
    assert list(curves) == ["loss", "valid_loss", "loss_mlm", "valid_accuracy"]
    assert curves["valid_loss"] == [
        {"step": [15, 20, 30], "value": [3.0, 3.5, 2.5], "hours": [15 / 3600, 25 / 3600, None],
         "tokens": [1000.0, 1500.0, None]},
        None,
    ]  # fmt: skip
    assert curves["loss"][1] == {"step": [10], "value": [4.0], "hours": [5 / 3600], "tokens": [500.0]}


def test_many_lines_are_smoothed_and_held_out_figures_are_not(tmp_path):
    rows = [{"step": step, "loss": step % 2} for step in range(1, 2 * comparisons.SMOOTH + 1)]
    held_out = [{"step": step, "valid_loss": step % 2} for step in range(1, 2 * comparisons.SMOOTH + 1)]
    curves = compared(made(tmp_path / "a", [*rows, *held_out]), made(tmp_path / "b"))["curves"]
    assert curves["loss"][0]["value"] == [0.5] * comparisons.SMOOTH
    assert curves["loss"][0]["step"][:2] == [1.5, 3.5]
    assert curves["loss"][0]["tokens"] == [None] * comparisons.SMOOTH, "a log without rates"
    assert set(curves["valid_loss"][0]["value"]) == {0, 1}


def test_plots_are_over_steps_tokens_and_hours_as_far_as_they_are_known(tmp_path):
    body = compared(made(tmp_path / "a"), made(tmp_path / "b", [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 2.0}]))
    text = comparison_page.page(body)
    drawn = {title: re.findall(r'class="line s(\d+)"', plot) for title, plot in
             re.findall(r"<svg viewBox[^>]*><title>([^<]*)</title>(.*?)</svg>", text)}  # fmt: skip
    assert drawn["loss, training, over steps"] == ["1", "2"]
    assert drawn["loss, training, over tokens"] == drawn["loss, training, over hours"] == ["1"]
    assert drawn["accuracy, held out, over hours"] == ["1"]


# --- page and terminal ---


def many(folder: Path, count: int) -> list[Path]:
    """Runs that differ in much, under names and values that are long, or no HTML."""
    return [
        made(folder / f"<b>run & {number} of a sweep over rates", scaled(1 + number / 7), alpha_ce=number * 1.0,
             teacher=f"/a/long/way/to/the/models/of/somebody/else/number-{number}",
             environment={"git_commit": f"{number:x}" * 40 + "+"}, deepspeed={"train_batch_size": 16 + number})
        for number in range(count)
    ]  # fmt: skip


def test_the_page_is_html_that_needs_nothing_and_shows_the_same_cells(tmp_path):
    body = compared(*many(tmp_path, 3))
    text = comparison_page.page(body)
    reader = read(text)
    assert reader.tables == [[list(row) for row in (table.head, *table.rows)] for table in comparison_page.tables(body)]
    assert "<b>run & 1 of a sweep over rates" in reader.text
    assert "Tokens: tokens a second x seconds a step x steps" in reader.text
    assert text.count("<svg viewBox") == text.count("<title>") - 1 == 3 * len(body["curves"])
    assert "prefers-color-scheme: dark" in text


def test_every_series_has_its_colour(tmp_path):
    text = comparison_page.page(compared(*many(tmp_path, len(comparison_page.SERIES))))
    for series in comparison_page.SERIES:
        assert text.count(f"--s{series}: ") == 2, "light and dark"
        assert f".s{series} {{ --c: var(--s{series}); }}" in text


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_terminal_has_80_to_120_columns(tmp_path, count, monkeypatch):
    shown = list(comparison_page.tables(compared(*many(tmp_path, count))))
    for wide, lines in ((60, 80), (80, 80), (99, 99), (200, 120)):
        monkeypatch.setenv("COLUMNS", str(wide))
        assert max(map(len, terminal.columns(shown, width()).splitlines())) <= lines == width()
    text = terminal.columns(shown)
    for table in shown:
        assert text.count(f"{table.title}\n===") == 1
        pieces = "".join(text.split())
        for cell in itertools.chain(*(row for row in table.rows)):
            assert len(cell) > 12 or "".join(cell.split()) in pieces, cell
    assert (text.count("\nloss, training ") > 1) == (count > 3), "what has no room comes below"


def test_a_run_that_is_lost_says_so(tmp_path):
    """The last finite loss is not its last loss."""
    lost = [*LOG, {"step": 25, "loss": None, "loss_mlm": None}, {"step": 25, "valid_loss": None, "valid_new": None}]
    body = compared(made(tmp_path / "a"), made(tmp_path / "b", lost, end="FAILED.json"))
    figures = body["figures"]
    assert figures["loss"] == {
        "values": [2.0, None], "differences": [0.0, None], "ratios": [1.0, None], "not_finite": [False, True],
    }  # fmt: skip
    assert (figures["best_valid_loss"]["values"], figures["best_valid_loss"]["steps"]) == ([3.0, 3.0], [15, 15])
    assert "not_finite" not in figures["valid_accuracy"]
    _, table, *_ = comparison_page.tables(body)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["loss, training"] == ("2.0000", "not finite", tables.NONE, tables.NONE)
    assert rows["new, held out"] == (tables.NONE, "not finite", tables.NONE, tables.NONE)
    first, *_ = compared(tmp_path / "b", tmp_path / "a")["figures"]["loss"]["ratios"]
    assert first is None


def test_figures_of_other_tasks_are_not_measured_against_each_other(tmp_path):
    figures = compared(made(tmp_path / "a"), made(tmp_path / "b", task="sst2"), made(tmp_path / "c"))["figures"]
    assert figures["loss"]["values"] == [2.0, 2.0, 2.0]
    assert figures["loss"]["ratios"] == figures["valid_accuracy"]["ratios"] == [1.0, None, 1.0]
    assert figures["tokens_per_second"]["ratios"] == [1.0, 1.0, 1.0]


def test_columns_without_room_come_below_with_the_first_ones():
    rows = [("name", "1", "2", "+1", "3", "+2"), ("another", "4", "5", "+1", "6", "+2")]
    head = ("", "one", "two", "difference", "three", "difference")
    table = tables.Table("T", head, rows, fixed=2, group=2)
    blocks = terminal.columns([table], 60).split("\n\n")[1:]
    assert [[line.split() for line in block.splitlines() if "---" not in line] for block in blocks] == [
        [["one", "two", "difference"], ["name", "1", "2", "+1"], ["another", "4", "5", "+1"]],
        [["one", "three", "difference"], ["name", "1", "3", "+2"], ["another", "4", "6", "+2"]],
    ]


def test_long_cells_take_several_lines():
    table = tables.Table("T", ("", "run"), [("key", "x" * 50), ("no", "")], words=2, note="A note.")
    assert terminal.columns([table]) == (
        f"T\n=\n\n     run\n---  {'-' * 40}\nkey  {'x' * 40}\n     {'x' * 10}\nno\n\nA note."
    )


def test_the_document_says_what_is_in_it(tmp_path):
    body = compared(*many(tmp_path, 2))
    assert body["format"] == comparisons.FORMAT == 1
    parts = (body, body["runs"][0], body["figures"]["best_valid_loss"], body["curves"]["loss"][0])
    assert [name for part in parts for name in part if name not in comparisons.__doc__] == []


# --- the command ---


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    folders = many(tmp_path, 2)
    command(monkeypatch, *folders, "--output", tmp_path / "compare")
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "compare").iterdir()) == ["compare.json", "index.html"]
    body = json.loads((tmp_path / "compare" / "compare.json").read_text())
    assert body == compared(*folders) | {"date": body["date"]}
    assert (tmp_path / "compare" / "index.html").read_text() == comparison_page.page(body)
    assert terminal.columns(comparison_page.tables(body)) in printed
    with pytest.raises(errors.ConfigError, match="exists already"):
        command(monkeypatch, *folders, "--output", tmp_path / "compare")
    command(monkeypatch, *folders)
    assert capsys.readouterr().out == terminal.columns(comparison_page.tables(body)) + "\n"


def damage(folder: Path, how: str) -> None:
    made(folder)
    if how == "no folder":
        folder.rename(folder.with_name("moved"))
    elif how == "a model":
        write(folder / "config.json", {"model_type": "bert"})
    elif how == "no line":
        (folder / "log.jsonl").write_text('{"step": 1')
    elif how == "no log":
        (folder / "log.jsonl").unlink()
    elif how == "seeds":
        (folder / "config.json").rename(folder / "seed-0")
    else:
        name, _, content = how.partition(" ")
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("no folder", 2, "b: no such folder"),
        ("a model", 2, "b: no run (it has no config.json with flags); give folders that training scripts have made"),
        ("seeds", 2, "b/seed-0"),
        ("no line", 3, "b/log.jsonl: no line to compare"),
        ("no log", 3, "b/log.jsonl: no line to compare"),
        ("config.json {", 3, "b/config.json: can't be read as JSON"),
        ("config.json [1]", 3, "b/config.json: holds no JSON object"),
        ('config.json {"flags": 3}', 3, "b/config.json: 'flags' is 3; must be of type dict"),
        ('environment.json {"packages": "torch"}', 3, "b/environment.json: 'packages' is 'torch'"),
        ('environment.json {"ranks": "two"}', 3, "b/environment.json: 'ranks' is 'two'"),
        ("ds_config.json {", 3, "b/ds_config.json: can't be read as JSON"),
        ('result.json {"metrics": 1}', 3, "b/result.json: 'metrics' is 1"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, how, code, message):
    damage(tmp_path / "b", how)
    monkeypatch.setattr(sys, "argv", ["compare", str(made(tmp_path / "a")), str(tmp_path / "b")])
    with pytest.raises(SystemExit) as caught:
        errors.run(compare.main)
    assert caught.value.code == code
    assert message in capsys.readouterr().err


def test_too_few_too_many_and_the_same_twice(tmp_path, monkeypatch):
    folder = made(tmp_path / "a")
    for folders, message in (
        ([folder], "1 run.* given: 2 to 10"),
        ([folder] * 11, "11 run.* given: 2 to 10"),
        ([folder, tmp_path / "." / "a" / ".." / "a"], "a and .*a: the same run"),
    ):
        with pytest.raises(errors.ConfigError, match=message):
            command(monkeypatch, *folders)


def test_it_starts_without_torch():
    program = "import launch.compare, sys; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_real_runs(dataset_folder, tmp_path, monkeypatch, capsys):
    models = make_models(tmp_path)
    for name, *more in (("a",), ("b", "--alpha-cos", "0.5", "--price-per-hour", "1")):
        argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / name, "--max-steps", "2",
                     "--valid-data", str(dataset_folder), *more)  # fmt: skip
        assert [code for code, _ in run_ranks(1, train, argv)] == [0]
    body = compared(tmp_path / "a", tmp_path / "b")
    assert body["differences"].pop("code", None) or "code" in (*body["same"], *body["unknown"])
    assert body["differences"] == {"flags": {"--alpha-cos": [1.0, 0.5], "--price-per-hour": [None, 1.0]}}
    assert {"loss_ce", "valid_loss_mlm", "valid_agreement"} <= body["curves"].keys()
    assert body["figures"]["cost"]["values"][1] > 0
    command(monkeypatch, tmp_path / "a", tmp_path / "b", "--output", tmp_path / "compare")
    read((tmp_path / "compare" / "index.html").read_text())
    assert "--alpha-cos" in capsys.readouterr().out
