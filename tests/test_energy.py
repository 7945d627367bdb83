"""Energy and cost of a run: RAPL and NVML as the kernel and the driver show them, and what the log makes of them."""

import inspect
import json
import math
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jobs import config_file, flags, make_models
from ranks import read_log, run_ranks, train
from reported import pretrained, tuned

from launch import energy, run_folder
from launch.distributed import World
from launch.energy import Counter, Energy, counters
from launch.errors import ConfigError
from launch.flags import FREE, Cost
from launch.log import totals
from launch.monitor import Meter
from launch.reporting import card, page, tables
from launch.reporting.document import Measured, document
from launch.reporting.exported import exported
from launch.reporting.runs import read as read_runs

CPU = World(0, 2, 0, torch.device("cpu"))
GPU = World(1, 2, 1, torch.device("cuda", 1))
UUID = "6a9d0b7e-0000-1111-2222-333344445555"


def domain(folder: Path, name: str, microjoules: object, most: int = 1000_000_000) -> Path:
    """A power domain as the kernel shows it; returns the file of its counter."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return tmp_path / "powercap"


# --- processors ---


def test_packages_are_added_up_and_their_parts_are_not(powercap):
    first = domain(powercap / "intel-rapl:0", "package-0", 5_000_000)
    second = domain(powercap / "intel-rapl:1", "package-1", 7_000_000)
    others = [domain(powercap / name, kind, 1_000_000) for name, kind in (
        ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"))]  # fmt: skip
    meter = Energy(counters(CPU))
    assert meter.joules() == 0, "what was counted before is not the run's"
    for file, microjoules in ((first, 6_500_000), (second, 7_250_000), *((other, 900_000_000) for other in others)):
        file.write_text(str(microjoules))
    assert meter.joules() == pytest.approx(1.5 + 0.25)
    assert meter.joules() == pytest.approx(1.75), "reading changes nothing"


def test_a_counter_that_starts_anew(powercap):
    """990 J of 1000 J at most, then 15 J: 25 J were taken; once more round to 12 J: 997 J."""
    file = domain(powercap / "intel-rapl:0", "package-0", 990_000_000)
    meter = Energy(counters(CPU))
    file.write_text("15000000")
    assert meter.joules() == pytest.approx(25)
    file.write_text("12000000")
    assert meter.joules() == pytest.approx(25 + 997)


def test_between_two_log_lines_none_starts_anew_unseen(powercap, monkeypatch):
    monkeypatch.setattr(energy, "_INTERVAL", 0.01)
    values = iter([0.0, 60.0, 20.0, 80.0])  # of 100 J: 60, then 60, then 60 more
    last, seen = [0.0], threading.Event()

    def joules() -> float:
        last[0] = next(values, last[0])
        if last[0] == 80.0:
            seen.set()
        return last[0]

    with Energy([Counter("processor", joules, 100.0)]) as meter:
        assert seen.wait(10)
    assert not meter.thread.is_alive()
    assert meter.joules() == pytest.approx(180)


def test_a_host_is_counted_once(powercap):
    domain(powercap / "intel-rapl:0", "package-0", 1)
    assert len(counters(World(2, 4, 0, torch.device("cpu")))) == 1, "the first rank of the second host"
    assert counters(World(3, 4, 1, torch.device("cpu"))) == []


@pytest.mark.parametrize("damage", ["no tree", "not readable", "no number", "no range", "range 0", "no name"])
def test_where_nothing_tells_there_is_no_counter(powercap, damage):
    if damage != "no tree":
        file = domain(powercap / "intel-rapl:0", "package-0", "x" if damage == "no number" else 1)
        name = {"not readable": "energy_uj", "no range": "max_energy_range_uj", "no name": "name"}.get(damage)
        if name:
            (file.parent / name).unlink()
        if damage == "range 0":
            (file.parent / "max_energy_range_uj").write_text("0")
    assert counters(CPU) == []
    assert run_folder.environment(CPU)["energy_counters"] == []


def test_a_counter_that_falls_silent_stays_where_it_was(powercap):
    file = domain(powercap / "intel-rapl:0", "package-0", 0)
    meter = Energy(counters(CPU))
    file.write_text("2000000")
    assert meter.joules() == 2
    file.unlink()
    assert meter.joules() == 2
    file.write_text("5000000")
    assert meter.joules() == 5


# --- GPUs ---


class NvmlError(Exception):
    pass


def nvml(monkeypatch, fails: str = "") -> types.SimpleNamespace:
    """A driver with a GPU whose counter is `millijoules`."""

    def answer(name: str, value: object):
        def function(*args: object) -> object:
            if name == fails:
                raise NvmlError(name)
            fake.asked.append((name, *args))
            return value() if callable(value) else value

        return function

    fake = types.SimpleNamespace(NVMLError=NvmlError, asked=[], millijoules=1_000_000)
    for name, value in (("nvmlInit", None), ("nvmlDeviceGetHandleByUUID", "handle"),
                        ("nvmlDeviceGetTotalEnergyConsumption", lambda: fake.millijoules)):  # fmt: skip
        setattr(fake, name, answer(name, value))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    devices = {GPU.device: types.SimpleNamespace(uuid=UUID)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    return fake


def test_the_gpu_of_this_rank(powercap, monkeypatch):
    fake = nvml(monkeypatch)
    domain(powercap / "intel-rapl:0", "package-0", 1)
    found = counters(GPU)
    assert [counter.kind for counter in found] == ["GPUs (NVML)"], "the processors are for the host's first rank"
    assert ("nvmlDeviceGetHandleByUUID", f"GPU-{UUID}") in fake.asked
    meter = Energy(found)
    fake.millijoules += 3_600_000
    assert meter.joules() == 3600
    assert fake.asked[-1] == ("nvmlDeviceGetTotalEnergyConsumption", "handle")


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_driver_that_does_not_tell(powercap, monkeypatch, fails):
    nvml(monkeypatch, fails)
    assert counters(GPU) == []


def test_without_the_library(powercap, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it raises ImportError
    assert counters(GPU) == []


def test_the_library_has_what_is_asked_of_it():
    library = pytest.importorskip("pynvml")
    assert issubclass(library.NVMLError, Exception)
    for name, parameters in (("nvmlInit", 0), ("nvmlDeviceGetHandleByUUID", 1),
                             ("nvmlDeviceGetTotalEnergyConsumption", 1)):  # fmt: skip
        assert len(inspect.signature(getattr(library, name)).parameters) == parameters


# --- the log ---


def steady(joules: float) -> list[Counter]:
    """A counter that has gone on by so much at each look."""
    total = [0.0]

    def look() -> float:
        total[0] += joules
        return total[0]

    return [Counter("steady", look)]


def read_meter(told: tuple[float, ...]) -> list[dict[str, float]]:
    """Two readings on each rank, whose counter goes on by `told[rank]` joules a look; 0: it has none."""
    dist.init_process_group("gloo")
    joules = told[dist.get_rank()]
    meter = Meter(("loss",), ("loss",), torch.device("cpu"), Energy(steady(joules) if joules else []))
    return [meter.read(), meter.read()]


@pytest.mark.parametrize(("told", "sums"), [((7200.0, 3600.0), (0.003, 0.006)), ((0.0, 3600.0), (0.001, 0.002))])
def test_energy_is_the_sum_over_ranks_since_the_start(told, sums):
    for figures in run_ranks(2, read_meter, told):
        assert [figure["energy_kwh"] for figure in figures] == pytest.approx(sums)


def test_no_figure_where_no_rank_has_a_counter():
    for figures in run_ranks(2, read_meter, (0.0, 0.0)):
        assert not any("energy_kwh" in figure for figure in figures)


def test_the_last_totals_of_a_log():
    rows = [{"step": 1, "energy_kwh": 0.5, "cost": 1.0}, {"step": 2, "energy_kwh": 0.75}, {"step": 2, "valid_loss": 1},
            {"step": 3, "energy_kwh": None, "cost": 10**400},
            {"step": 4, "energy_kwh": math.inf, "cost": "x"}]  # fmt: skip
    assert totals(rows) == {"energy_kwh": 0.75, "cost": 1.0}
    assert totals(rows[2:3]) == {}


def count() -> None:
    """In a rank: 3.6 kJ a look."""
    from launch import training

    training.counters = lambda world: steady(3600.0)


def test_a_resumed_run_goes_on_from_its_last_line(dataset_folder, tmp_path):
    """10 a second, then 1000 a second, from the checkpoint at step 2 on; the one at step 4 was never finished."""
    run, seconds = tmp_path / "run", []
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, make_models(tmp_path), run, "--max-steps", "6",
                 "--checkpoint-interval", "2")  # fmt: skip
    for price, expected, more in (("36000", 75, ["--stop-at-step", "4"]), ("3600000", 0, [])):
        begun = time.perf_counter()
        results = run_ranks(2, train, [*argv, "--price-per-hour", price, *more], count)
        assert [code for code, _ in results] == [expected] * 2
        seconds.append(time.perf_counter() - begun)
        if expected:
            shutil.rmtree(run / "checkpoints" / "step00000004")
            first = read_log(run)
    rows = read_log(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["energy_kwh"] for row in rows] == pytest.approx([0.002 * step for step in range(1, 7)])
    assert rows[:2] == first[:2]
    costs = [row["cost"] for row in rows]
    assert 10 * rows[0]["seconds_per_step"] < costs[0] < costs[1] < 10 * seconds[0]
    assert 1000 * rows[2]["seconds_per_step"] < costs[2] - costs[1] < costs[5] - costs[1] < 1000 * seconds[1]
    assert json.loads((run / "config.json").read_text())["flags"]["price_per_hour"] == 3_600_000


def test_nothing_is_logged_where_nothing_is_known(dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, make_models(tmp_path), tmp_path / "run",
                 "--max-steps", "1")  # fmt: skip
    assert [code for code, _ in run_ranks(1, train, argv)] == [0]
    assert not {"energy_kwh", "cost"} & read_log(tmp_path / "run")[0].keys() or counters(CPU)


# --- where it is shown ---

MODEL = {"name": "m", "model_type": "distilbert", "kind": None, "labels": [], "parameters": 9, "layers": 2,
         "hidden_size": 8, "positions": 64, "difference": 0.0, "transformers": "5.23.0", "base_model": None,
         "hub": None, "license": None, "language": [], "onnx": []}  # fmt: skip


def finished(folder: Path, make, *words: str, spent: bool) -> Path:
    """A run folder as tests of the report make it; with energy and cost in its log, or without."""
    run = make(folder, *words)
    if spent:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        rows = [row | {"energy_kwh": row["step"] / 4, "cost": row["step"] * 100.0} for row in rows]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {"energy_counters": ["GPUs (NVML)"], "ranks": 8, "device": "H100"}
        (run / "environment.json").write_text(json.dumps(facts))
    return run


def test_the_report_shows_what_is_known(tmp_path):
    folders = [finished(tmp_path / f"p{spent}", pretrained, spent=spent) for spent in (True, False)]
    folders.append(finished(tmp_path / "tuned", tuned, "model", spent=False))
    body = document("2026-01-31", None, None, read_runs(folders), Measured())
    table = tables.pretraining(body)
    assert table.head[-2:] == ("energy, kWh", "cost")
    assert [row[-2:] for row in table.rows] == [("3.75", "1,500.00"), ("-", "-")]
    assert tables.finetuning(body).head[-1] == "score", "nothing is shown where nothing is known"
    assert "GPUs (NVML)" in page.page(body)


@pytest.mark.parametrize("spent", [True, False])
def test_the_card_has_what_was_spent_until_its_checkpoint(tmp_path, spent):
    run = finished(tmp_path / "run", pretrained, spent=spent)
    text = card.card(exported("2026-01-31", run, 10, MODEL))
    assert ("| energy | 2.5 kWh, GPUs (NVML) |\n| cost | 1,000.00 |\n" in text) == spent
    assert ("energy" in text) == ("| cost |" in text) == spent


def test_cost_is_the_price_of_the_time():
    assert Cost(2.5).after(5400) == {"cost": 3.75}
    assert Cost().after(5400) == {}
    assert "price_per_hour" in FREE
    for price in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="--price-per-hour"):
            Cost(price)
