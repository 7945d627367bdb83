"""The fault table in short: nothing is silent, all kinds were tried, and the table would tell if something were."""

import json
import sys
from collections import Counter
from pathlib import Path

import faults_data as module
import pytest
from faults_data import BIN_FLIPS, OTHER_DATA, SEEN_AT_OPEN, SILENT, Datasets, Fault, faults, make_datasets

from data.describe import verify
from data.indexed import Dataset
from launch.errors import run

EVERY = 23  # of the long series


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return make_datasets(tmp_path_factory.mktemp("faults"))


def test_nothing_is_silent(datasets: Datasets) -> None:
    before = module.contents(datasets.folder)
    table = module.our_table(datasets, EVERY)
    assert [kind for kind, seen in table.items() if seen[SILENT]] == []
    assert {seen[SEEN_AT_OPEN] for kind, seen in table.items() if "cut off" in kind} == {
        sum(len(range(0, len(before[f"0000{i}.idx"]), EVERY)) for i in range(2)),
        sum(len(range(0, len(before[f"0000{i}.bin"]), 37)) for i in range(2)),
    }
    assert list(table) == list(dict.fromkeys(fault.kind for fault in faults(datasets, EVERY)))
    assert len(table) == 13
    assert all(seen.total() for seen in table.values())
    assert module.contents(datasets.folder) == before
    assert verify(Dataset.open(datasets.folder)) == []


def test_megatrons_reader_sees_no_flipped_id(datasets: Datasets) -> None:
    """And of the index what makes an array impossible: so ours is not only as good."""
    table = module.megatrons_table(datasets, EVERY)
    assert table[f".bin, a bit of {BIN_FLIPS} bytes"] == Counter({OTHER_DATA: 2 * (BIN_FLIPS // EVERY)})
    index = table[".idx, a bit of any byte"]
    assert 0.3 < (index.total() - index[module.REFUSED]) / index.total() < 0.7


def test_datasets_alike_differ_in_every_file_but_not_in_size(datasets: Datasets) -> None:
    ours, alike = module.contents(datasets.folder), module.contents(datasets.alike)
    assert [name for name in ours if len(ours[name]) != len(alike[name])] == ["manifest.json"]  # it names the texts
    assert sorted(name for name in ours if ours[name] == alike[name]) == [
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    ]  # fmt: skip


def test_white_space_of_the_manifest_is_no_damage(datasets: Datasets) -> None:
    ours = module.contents(datasets.folder)
    spaced = json.dumps(json.loads(ours["manifest.json"]), indent=7).encode()
    assert not module.is_damage(Fault("", {"manifest.json": spaced}), ours)
    assert not module.is_damage(Fault("", {"00000.bin": ours["00000.bin"]}), ours)
    assert module.is_damage(Fault("", {"manifest.json": spaced.replace(b"uint16", b"uint15")}), ours)
    assert module.is_damage(Fault("", {"manifest.json": spaced[:-1]}), ours)
    assert module.is_damage(Fault("", {"manifest.json": None}), ours)


@pytest.mark.parametrize("blind", [False, True])
def test_command(datasets: Datasets, monkeypatch, capsys, tmp_path: Path, blind: bool) -> None:
    """With a `verify` that sees nothing, the exit code is 1."""
    monkeypatch.setattr(module, "faults", lambda *_: faults(datasets, 97))
    if blind:
        monkeypatch.setattr(module, "verify", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["faults_data", "--output", str(tmp_path / "faults.csv")])
    if blind:
        with pytest.raises(SystemExit) as exit_:
            run(module.main)
        assert exit_.value.code == 1
    else:
        run(module.main)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fault", "tried", "at", "open", "by", "verify", "silent"]
    assert len(lines) == 1 + 13 + 1 + 3 + 1 + 2 + 1
    tried, *outcomes = (int(word.replace(",", "")) for word in lines[14].split()[1:])
    assert tried == sum(outcomes)
    assert bool(outcomes[2]) == blind
    rows = [line.rsplit(",", 2) for line in (tmp_path / "faults.csv").read_text().splitlines()]
    assert rows[0] == ["reader,fault", "outcome", "count"]
    assert sum(int(count) for first, _, count in rows[1:] if first.startswith("data.indexed")) == tried
