"""The records of a run."""

import json

import pytest
import torch

from launch import run_folder
from launch.distributed import World
from launch.errors import CheckpointError, ConfigError
from launch.flags import FREE
from launch.run_folder import RunFolder, refuse_changes

WORLD = World(0, 1, 0, torch.device("cpu"))


def record(fingerprint="f", **flags):
    return {
        "flags": {"seed": 0, "max_steps": 5} | flags,
        "deepspeed_config": {"a": {"b": 1}},
        "fingerprint": fingerprint,
    }


def test_same_or_free_is_accepted():
    assert refuse_changes(record(), record(max_steps=9, output="elsewhere"), FREE, ()) is None, "it would have raised"


def test_changes_are_named_with_both_values():
    now = record("g", seed=1)
    now["deepspeed_config"] = {"a": {"b": 2}}
    with pytest.raises(ConfigError) as caught:
        refuse_changes(record(), now, FREE, ())
    fingerprint = "fingerprint (of data, batch, masks and order): was 'f', is 'g'"
    for line in ("--seed: was 0, is 1", "a.b: was 1, is 2", fingerprint, "--allow-change KEY"):
        assert line in str(caught.value)


def test_a_change_of_contents_names_the_paths():
    """And of an architecture, only what differs; a path that has changed alone is no change."""
    now = record("g", data=["B"], student="s", teacher="b") | {"model": {"n_layers": 3, "dim": 8}, "teacher": "2"}
    before = record(data=["A"], student="s", teacher="a") | {"model": {"n_layers": 2, "dim": 8}, "teacher": "1"}
    with pytest.raises(ConfigError) as caught:
        refuse_changes(before, now, FREE | {"data", "teacher"}, ())
    assert str(caught.value).splitlines()[1:-1] == [
        "  fingerprint (of data, batch, masks and order): was 'f', is 'g'",
        "  model: n_layers was 2, is 3",
        "  teacher (its weights): was '1', is '2'",
        "  --data: was ['A'], is ['B']",
        "  --teacher: was 'a', is 'b'",
    ]


@pytest.mark.parametrize("allowed", [("seed", "a.b", "fingerprint"), ("--seed", "a.b", "fingerprint")])
def test_changes_that_the_user_allows(allowed):
    now = record("g", seed=1)
    now["deepspeed_config"] = {"a": {"b": 2}}
    assert refuse_changes(record(), now, FREE, allowed) is None, "it would have raised"


@pytest.mark.parametrize(
    ("name", "near"), [("--sed", "--seed"), ("max-step", "--max-steps"), ("a.c", "a.b"), ("z", "")]
)
def test_what_may_change_must_be_there(name, near):
    with pytest.raises(ConfigError) as caught:
        refuse_changes(record(), record(), FREE, (name,))
    hint = f"; did you mean '{near}'?" if near else ""
    assert str(caught.value) == f"--allow-change {name}: the run has no such flag or key{hint}"


@pytest.mark.parametrize("name", ["model", "teacher", "fingerprint"])
def test_identity_counts(name):
    with pytest.raises(ConfigError, match=rf"{name}( \(.*\))?: was"):
        refuse_changes(record() | {name: "old"}, record() | {name: "new"}, FREE, ())


def test_a_new_flag_counts_as_a_change():
    with pytest.raises(ConfigError, match="--colour: was None, is 'red'"):
        refuse_changes(record(), record(colour="red"), FREE, ())


def test_moving_aside_never_deletes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.move_aside()
    for number in (1, 2):
        folder.write("config.json", {"number": number})
        folder.move_aside()
    assert json.loads((tmp_path / "run.old-1" / "config.json").read_text()) == {"number": 1}
    assert json.loads((tmp_path / "run.old-2" / "config.json").read_text()) == {"number": 2}
    assert not folder.path.exists()


@pytest.mark.parametrize("content", ['{"flags": ', "[{}]", "{}", '{"flags": []}', "[" * 100_000])
def test_a_damaged_record_is_an_error(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        RunFolder(tmp_path).recorded()


def test_environment_states_versions_and_hardware():
    facts = run_folder.environment(WORLD, fingerprint="f")
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["ranks"] == 1
    assert facts["fingerprint"] == "f"
    assert facts["cores"] >= 1


def test_a_run_that_begins_has_not_ended(tmp_path):
    folder = RunFolder(tmp_path / "run")
    ends = ("DONE.json", "STOPPED.json", "FAILED.json", "STOP")
    for name in ends:
        folder.write(name, {})
    folder.begin(config={"flags": {}})
    assert folder.recorded() == {"flags": {}}
    assert not any((folder.path / name).exists() for name in ends)


@pytest.mark.parametrize("done", [True, False])
def test_the_records_of_a_run_that_is_done_stay(tmp_path, done):
    folder = RunFolder(tmp_path / "run")
    folder.write("environment.json", {"host": "first"})
    folder.write("STOPPED.json", {})
    if done:
        folder.write("DONE.json", {"step": 5})
    folder.begin(True, environment={"host": "second"})
    assert folder.read("environment.json") == {"host": "first" if done else "second"}
    assert (folder.path / "DONE.json").exists() == done
    assert not (folder.path / "STOPPED.json").exists()
    folder.begin(False, environment={"host": "third"})
    assert folder.read("environment.json") == {"host": "third"}
    assert not (folder.path / "DONE.json").exists()


def test_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.dist, "barrier", lambda: None)
    folder = RunFolder(tmp_path / "run")
    folder.end("STOPPED.json", {"code": 75, "step": 3}, WORLD)
    assert folder.read("STOPPED.json") == {"code": 75, "step": 3}
    assert folder.read("DONE.json") == {}
    folder.end("DONE.json", {}, World(1, 2, 1, torch.device("cpu")))
    assert not (folder.path / "DONE.json").exists(), "only rank 0 writes"
