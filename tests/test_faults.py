"""The fault table in short: nothing is silent, and the table would tell if something were."""

import shutil
from pathlib import Path

import faults as module
import faults_damage as damage
import faults_folder as folder
import faults_kills as kills
import pytest
from faults import SHORT
from faults_jobs import SETTINGS, Workshop
from faults_table import EXACT, REFUSED, SILENT, TAKEN, TRACEBACK, is_bad, lines

from launch import checkpoint

TWO_RANKS = SETTINGS[2]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("faults"), SHORT.steps)


def test_no_fault_is_silent(workshop: Workshop) -> None:
    found = [each() for each in module.faults(workshop, SHORT)]
    assert not any(map(is_bad, found)), found
    killed, at_points, damaged, resumed, twice, *disks = found
    assert sum(seen.total() for seen in killed.values()) == SHORT.kills * len(SHORT.settings)
    assert all(seen[EXACT] == seen.total() > 0 for table in (killed, at_points, *disks) for seen in table.values())
    assert len(disks) == folder.can_mount()
    assert list(damaged) == [damage.FLIPPED, damage.BOTH, damage.CUT, damage.MISSING, damage.GROWN, damage.OTHERS,
                             damage.ADDED]  # fmt: skip
    assert damaged[damage.BOTH][REFUSED] > 50
    assert resumed[damage.ALL_STARTS] == {REFUSED: 1}
    assert [seen[EXACT] == seen[REFUSED] > 0 for seen in twice.values()] == [True]


def test_no_input_ends_with_a_traceback(workshop: Workshop) -> None:
    found = [each() for each in module.inputs(workshop, SHORT)]
    assert not any(map(is_bad, found)), found
    assert all(len(table) == 1 for table in found) and len(found) == 9


def test_points_are_those_of_a_commit(workshop: Workshop) -> None:
    """On rank 0: each file is written, synced, hashed; then the manifest, the name, `latest`; then the oldest goes."""
    template = workshop.new("template")
    workshop.start(kills.POINTS, template, "--stop-at-step", "4")
    first, second = (kills.names(workshop, template, rank) for rank in range(2))
    story = ["sweep", "barrier", "write .partial-X/stepN/mp_rank_00_model_states.pt", "fsync", "gather",
             "replace .partial-X/stepN/MANIFEST.json", "rename stepN", "replace latest", "rename .deleted-stepN",
             "the next step"]  # fmt: skip
    assert [point for point in first if point in story] == story
    assert "write .partial-X/stepN/zero_pp_rank_1_mp_rank_00_optim_states.pt" in second
    assert "rename stepN" not in second


def test_a_lost_checkpoint_would_be_seen(workshop: Workshop, monkeypatch) -> None:
    """Where damage goes unnoticed, and where a run went another way, the table says so."""
    monkeypatch.setattr(checkpoint, "verify", lambda path, content=True: checkpoint._read_manifest(path)[0])
    table = damage.looked_at(workshop, [TWO_RANKS], flips=1)
    assert table[damage.FLIPPED][SILENT] and table[damage.MISSING][SILENT] and table[damage.OTHERS][SILENT]
    assert is_bad(table)


def test_other_weights_and_losses_are_not_exact(workshop: Workshop) -> None:
    run = workshop.new("other")
    shutil.copytree(workshop.undisturbed(TWO_RANKS), run)
    assert workshop.is_done_exactly(TWO_RANKS, run)
    log = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(log.replace('"loss": 1', '"loss": 2', 1))
    assert not workshop.is_done_exactly(TWO_RANKS, run)
    (run / "log.jsonl").write_text(log)
    last, before = checkpoint.committed(run / "checkpoints")[:-3:-1]
    shutil.copy(before / checkpoint.MODEL_STATES, last / checkpoint.MODEL_STATES)
    found = checkpoint.Checkpoint(last, SHORT.steps, ranks=2, stage=1)
    assert not workshop.is_exact(TWO_RANKS, found)


def test_command(monkeypatch, capsys, tmp_path: Path) -> None:
    from collections import Counter

    from launch.errors import run

    tables = {"killed": Counter({EXACT: 3})}, {"flags": Counter({TAKEN: 1, REFUSED: 2})}
    monkeypatch.setattr(module, "tables", lambda amount: tables)
    monkeypatch.setattr("sys.argv", ["faults", "--output", str(tmp_path / "faults.csv")])
    run(module.main)
    assert "killed       3                  3                  0                  0" in capsys.readouterr().out
    assert (tmp_path / "faults.csv").read_text().splitlines()[1] == f"killed,{EXACT},3"
    tables[1]["flags"][TRACEBACK] += 1
    with pytest.raises(SystemExit, match="1"):
        run(module.main)
    assert lines(tables[1])[0].split()[0] == "tried"
