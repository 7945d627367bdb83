"""What a student kept of its teacher, as a document: scores, shares, run folders and their logs."""

import json
import re
from pathlib import Path

import pytest
from reported import FORM, LOG, made, pretrained, task_of, tuned, write

from launch.errors import ConfigError, DataError
from launch.reporting import page as pages
from launch.reporting import published, runs, tables, terminal
from launch.reporting.curves import curves, taken, thinned

# --- scores and retention ---


def test_medians_and_retention_by_hand(tmp_path):
    seeds = [tuned(tmp_path / f"t{seed}", "t", score=score, seed=seed) for seed, score in enumerate((0.9, 0.8, 0.84))]
    two = [tuned(tmp_path / f"s{seed}", "s", score=score, seed=seed) for seed, score in enumerate((0.7, 0.77))]
    cola = [tuned(tmp_path / "tc", "t", "cola", score=0.6), tuned(tmp_path / "sc", "s", "cola", score=0.3)]
    body = made(*seeds, *two, *cola)
    sst2 = task_of(body)
    assert sst2["scores"]["teacher"] == {"metrics": {"accuracy": 0.84}, "runs": 3, "lowest": 0.8, "highest": 0.9}
    assert sst2["scores"]["student"]["metrics"]["accuracy"] == pytest.approx(0.735)
    assert sst2["retention"] == {"student": pytest.approx(0.875)}
    assert task_of(body, "cola")["retention"] == {"student": pytest.approx(0.5)}
    average = body["average"]["student"]
    assert average["tasks"] == ["cola", "sst2"]
    assert (average["teacher"], average["score"]) == (pytest.approx(0.72), pytest.approx(0.5175))
    assert average["retention"] == pytest.approx(0.71875)
    assert average["published"]["tasks"] == ["cola", "sst2"]
    paper = [average["published"][name] for name in ("teacher", "student", "retention")]
    assert paper == pytest.approx([0.745, 0.713, 0.713 / 0.745])
    assert body["columns"] == ["teacher", "student"]


def test_the_mean_is_over_glue_alone_and_all_nine_are_compared_as_printed(tmp_path):
    scores = {"cola": 0.5, "mnli": 0.6, "mrpc": 0.7, "qnli": 0.8, "qqp": 0.9, "rte": 0.6, "sst2": 0.7, "stsb": 0.8,
              "wnli": 0.4}  # fmt: skip
    folders = []
    for task, score in scores.items():
        for model in "ts":
            folder = tuned(tmp_path / f"{task}-{model}", model, main="m", metrics={"m": score})
            result = json.loads((folder / "result.json").read_text())
            write(folder / "result.json", result | {"task": task})
            folders.append(folder)
    folders += [tuned(tmp_path / f"squad-{model}", model, "squad") for model in "ts"]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        config["flags"]["task"] = json.loads((folder / "result.json").read_text())["task"]
        write(folder / "config.json", config)
    average = made(*folders)["average"]["student"]
    assert average["score"] == pytest.approx(sum(scores.values()) / 9)
    assert (average["published"]["teacher"], average["published"]["student"]) == (0.795, 0.77)
    assert average["published"]["retention"] == pytest.approx(0.770 / 0.795)


def test_scores_on_a_test_set_do_not_stand_beside_those_on_dev_sets(tmp_path):
    """Of MRPC; the paper's are of dev sets. So the mean with that of SST-2 has nothing beside it, either."""
    names = [(model, task) for model in "ts" for task in ("mrpc", "sst2")]
    sets = {"mrpc": {"test": 1725}, "sst2": {"dev": 872}}
    body = made(*(tuned(tmp_path / f"{model}-{task}", model, task, examples=sets[task]) for model, task in names))
    assert task_of(body, "mrpc")["published"] is None
    rows = {row[0]: row for row in tables.tasks(body).rows}
    assert rows["MRPC"][-4:] == (tables.NONE, tables.NONE, tables.NONE, "1,725 (test)")
    assert rows["SST-2"][-4:] == ("92.7", "91.3", "98.5", "872")
    assert rows["GLUE, mean of 2"][-4:] == (tables.NONE, tables.NONE, tables.NONE, "")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flags", {"max_length": 64}, "--max-length is None and 64"),
        ("flags", {"teacher": "other"}, "--teacher is t1 and t2"),
        ("deepspeed_config", {"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr is None and 1"),
        ("step", 30, "the number of steps is 15 and 30"),
        ("seed", 0, "both are of seed 0"),
        ("hashes", {"train": "other", "dev": "d"}, "the hash of the train set is t and other"),
    ],
)  # fmt: skip
def test_medians_are_of_seeds_alone(name, change, message, tmp_path):
    teachers = ("t1", "t2") if change == {"teacher": "other"} else ("t1", "t1")
    one, other = (
        tuned(tmp_path / str(n), "s", seed=n, teacher=teachers[n], hashes={"train": "t", "dev": "d"}) for n in (0, 1)
    )
    if isinstance(change, dict) and name != "hashes":
        config = json.loads((other / "config.json").read_text())
        write(other / "config.json", config | {name: config.get(name, {}) | change})
    else:
        write(other / "result.json", json.loads((other / "result.json").read_text()) | {name: change})
    with pytest.raises(DataError) as error:
        runs.read([one, other])
    assert message in str(error.value)
    assert str(one) in str(error.value) and str(other) in str(error.value)


def test_what_only_one_of_them_has_is_in_no_average(tmp_path):
    body = made(
        tuned(tmp_path / "a", "t"), tuned(tmp_path / "b", "s", score=0.45), tuned(tmp_path / "c", "s", "cola"),
        tuned(tmp_path / "d", "t", "stsb"),
    )  # fmt: skip
    assert body["average"]["student"]["tasks"] == ["sst2"]
    assert task_of(body, "cola")["retention"] == task_of(body, "stsb")["retention"] == {}


def test_a_teacher_that_scores_nothing_leaves_no_share(tmp_path):
    body = made(tuned(tmp_path / "a", "t", "cola", score=0.0), tuned(tmp_path / "b", "s", "cola", score=0.1))
    assert task_of(body, "cola")["retention"] == {"student": None}
    assert body["average"]["student"]["retention"] is None
    assert "0.0" in pages.page(body)


def test_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/t").mkdir(parents=True)
    body = made(
        tuned(tmp_path / "1", str(tmp_path / "models" / "t")),
        tuned(tmp_path / "2", "dilbert-base-uncased", score=0.72),
        tuned(tmp_path / "3", "distilbert/distilbert-base-uncased", score=0.81, teacher="models/t-sst2"),
        tuned(tmp_path / "4", "/some/where/alone", score=0.45),
        tuned(tmp_path / "5", "/some/where/alone", score=0.63, teacher="models/t-sst2"),
        teacher="models/../models/t/", student="distilbert/distilbert-base-uncased",
    )  # fmt: skip
    assert body["columns"] == [
        "teacher", "student", "student, distilled again", "/some/where/alone", "/some/where/alone, distilled again",
    ]  # fmt: skip
    shares = [body["average"][column]["retention"] for column in body["columns"][1:]]
    assert shares == pytest.approx([0.8, 0.9, 0.5, 0.7])
    head = tables.tasks(body).head
    assert "alone" in head
    assert "alone, distilled again: kept" in head


def test_names_are_as_long_as_it_takes():
    assert tables.short(["teacher", "/a/b/x", "/a/c/x", "hub/y"]) == {
        "teacher": "teacher", "/a/b/x": "b/x", "/a/c/x": "c/x", "hub/y": "y",
    }  # fmt: skip


def test_published_figures():
    rows = published.GLUE.values()
    assert sum(row.student for row in rows) / 9 == pytest.approx(published.GLUE_SCORE.student, abs=5e-4)
    assert sum(row.teacher for row in rows) / 9 == pytest.approx(published.GLUE_SCORE.teacher, abs=2.5e-3)
    assert f"{published.GLUE_SCORE.retention:.0%}" == "97%"
    assert published.scores("squad", "exact") == published.Scores(0.812, 0.777, 0.791)
    assert published.scores("sst2", "accuracy") == published.Scores(0.927, 0.913)
    assert published.scores("squad_v2", "f1") is None
    assert 1 - published.PARAMETERS[1] / published.PARAMETERS[0] == pytest.approx(0.4)  # "40 % smaller"
    assert published.STSB_SECONDS[0] / published.STSB_SECONDS[1] == pytest.approx(1.63, abs=5e-3)  # "60 % faster"


# --- run folders ---


def test_a_folder_of_seeds_stands_for_its_runs(tmp_path):
    top = tmp_path / "sst2"
    each = [tuned(top / f"seed-{seed}", "s", score=score, seed=seed) for seed, score in enumerate((0.1, 0.2, 0.6))]
    write(top / "result.json", {"task": "sst2", "metrics": {"accuracy": 0.2}, "seeds": {}})
    body = made(top, each[0], top, tuned(tmp_path / "t", "t"))
    assert task_of(body)["scores"]["student"] == {
        "metrics": {"accuracy": 0.2}, "runs": 3, "lowest": 0.1, "highest": 0.6,
    }  # fmt: skip


def test_a_model_measured_as_it_is_needs_no_end(tmp_path):
    folder = tuned(tmp_path / "eval", "t", done=False, step=None, seed=None)
    (folder / "config.json").unlink()
    (folder / "log.jsonl").unlink()
    body = made(folder)
    assert task_of(body)["scores"]["teacher"]["runs"] == 1
    assert body["finetuning"] == []


def test_what_is_left_out_is_named(tmp_path):
    running, stopped = tuned(tmp_path / "running", "s", done=False), pretrained(tmp_path / "stopped", done=False)
    write(stopped / "STOPPED.json", {"code": 75, "step": 12})
    old = tuned(tmp_path / "run.old-2", "s")
    write(tmp_path / "model" / "config.json", {"model_type": "bert"})
    (tmp_path / "notes.txt").write_text("nothing")
    folders = [running, stopped, old, tmp_path / "model", tmp_path / "notes.txt", tuned(tmp_path / "t", "t")]
    body = made(*folders)
    assert {Path(row["run"]).name: row["why"].partition(":")[0] for row in body["left_out"]} == {
        "running": "not finished", "stopped": "not finished", "run.old-2": "moved aside by --fresh",
        "model": "no run", "notes.txt": "no run",
    }  # fmt: skip
    assert "stopped at step 12" in terminal.markdown([tables.gaps(body)])
    assert "stopped at step 12" in pages.page(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "rte"}, "figures of task rte, in a run of sst2"),
        ({"task": None}, "'task' is None; must be of type str"),
        ({"metrics": {"accuracy": 83.0}}, "accuracy is 83.0; must be a fraction"),
        ({"metrics": {"accuracy": float("nan")}}, "accuracy is nan; must be a fraction"),
        ({"metrics": {"f1": 0.5}}, "the main metric, accuracy, is none of f1"),
        ({"metrics": [1]}, "'metrics' is [1]; must be of type dict"),
        ({"model": 3}, "'model' is 3; must be of type str"),
        ({"examples": None}, "'examples' is None; must be of type dict"),
        ({"step": "last"}, "'step' is 'last'; must be of type int | None"),
        ({"production": {}}, "'production' is {}; must be of type list | None"),
        ({"production": ["ONNX"]}, "'form' is None; must be of type str"),
        ({"production": [FORM | {"seconds": "1"}]}, "'seconds' is '1'; must be of type int | float"),
        ({"production": [FORM | {"metrics": {"f1": 0.5}}]}, "the main metric, accuracy, is none of f1"),
        ({"examples": {"dev": 10}}, "figures on different data can't be compared"),
    ],
)
def test_records_that_can_not_be(tmp_path, change, message):
    good, bad = tuned(tmp_path / "good", "s"), tuned(tmp_path / "bad", "s")
    write(bad / "result.json", json.loads((bad / "result.json").read_text()) | change)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        runs.read([good, bad])
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("name", ["result.json", "config.json", "DONE.json", "environment.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_damaged_json(tmp_path, name, content):
    folder = pretrained(tmp_path / "run") if name == "environment.json" else tuned(tmp_path / "run", "s")
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    if name == "DONE.json":  # only whether it is there counts
        assert len(runs.read([folder]).tuned) == 1
        return
    with pytest.raises(DataError, match=name):
        runs.read([folder])


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("config.json", {"flags": [1]}),
        ("config.json", {"flags": {"student": "s"}, "model": 3}),
        ("environment.json", {"packages": "torch"}),
        ("environment.json", {"data": {}}),
    ],
)
def test_records_with_odd_parts(tmp_path, name, body):
    write(pretrained(tmp_path / "run") / name, body)
    with pytest.raises(DataError, match=rf"{name}: '\w+' is .*; must be of type (dict|list)"):
        runs.read([tmp_path / "run"])


def test_done_but_without_a_result(tmp_path):
    (tuned(tmp_path / "run", "s") / "result.json").unlink()
    with pytest.raises(DataError, match=r"no result\.json"):
        runs.read([tmp_path / "run"])


def test_no_such_run(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        runs.read([tmp_path / "nowhere"])


def test_runs_alone_say_who_is_who(tmp_path):
    big = tuned(tmp_path / "a", "big", kind="bert")
    small = tuned(tmp_path / "b", "small")
    assert runs.read([big, small]).pair() == ("big", "small")
    assert runs.read([big, small, tuned(tmp_path / "c", "other")]).pair() == ("big", None)
    assert runs.read([pretrained(tmp_path / "d")]).pair() == (None, None)


# --- logs ---


def test_curves_and_time_by_hand():
    assert curves(LOG) == {
        "loss": {"step": [10, 15], "value": [0.7, 0.5]}, "valid_accuracy": {"step": [15], "value": [0.8]},
    }  # fmt: skip
    assert taken(LOG) == (10 * 0.5 + 5 * 2.0, 10 * 0.5 * 100 + 5 * 2.0 * 50)
    assert taken([{"step": 3, "loss": 1.0}]) is None
    assert curves([{"step": 1, "loss": None}, {"step": 2, "loss": "x"}, {"step": 3, "loss": float("nan")}]) == {}


def test_long_curves_are_thinned_to_means_of_neighbours():
    points = [(step, step % 2) for step in range(1, 11)]
    assert thinned(points, most=4) == {"step": [2, 5, 8, 10], "value": [2 / 3, 1 / 3, 2 / 3, 0]}
    assert thinned(points, most=10)["step"] == list(range(1, 11))


def test_pre_training_tells_recipe_data_hardware_and_time(tmp_path):
    body = made(pretrained(tmp_path / "run"))
    (run,) = body["pretraining"]
    assert (run["seconds"], run["tokens"], run["fingerprint"]) == (15.0, 1000.0, "0123456789abcdef")
    text = pages.page(body)
    for word in ("--alpha-ce", "--mlm-smoothing", "web books", "8 x H100", "torch 2.13.0", "0123456789abcdef", "00:15"):
        assert word in text
    assert "--fresh" not in text
