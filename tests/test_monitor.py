"""The log and its figures."""

import json
import math
import types
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch import monitor
from launch.distributed import World
from launch.log import cut_log, duration
from launch.monitor import Meter, Monitor

clock = types.SimpleNamespace(now=100.0)
WORLD = World(0, 1, 0, torch.device("cpu"))
FIGURES = {
    "loss": 3.0,
    "loss_mlm": 3.0,
    "tokens_per_second": 10.0,
    "seconds_per_step": 2.0,
    "data_wait": 0.0123,
    "lr": 1e-3,
    "grad_norm": 0.5,
}


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3661, -5)] == ["00:00", "01:00", "01:01", "1:01:01", "00:00"]


def test_console_file_and_board_say_the_same(tmp_path, capsys):
    with Monitor(tmp_path, WORLD, start=0, max_steps=10) as monitor:
        monitor.log(4, FIGURES)
        monitor.log_held_out(4, {"loss": 2.5})
    line, held_out = capsys.readouterr().out.splitlines()
    assert line == (
        "step  4/10 | loss 3.0000 | loss_mlm 3.0000 | lr 1.000e-03 | grad 0.500 | 10 tok/s | data wait 1.2% | eta 00:12"
    )
    assert held_out == "step 4 held out | loss 2.5000"
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 4, **FIGURES}, {"step": 4, "valid_loss": 2.5}]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {f"train/{name}" for name in FIGURES} | {"valid/loss"}
    (event,) = board.Scalars("train/grad_norm")
    assert (event.step, event.value) == (4, 0.5)


def test_a_loss_that_is_not_finite_is_null(tmp_path):
    with Monitor(tmp_path, WORLD, 0, 10) as monitor:
        monitor.log(3, FIGURES | {"loss": math.nan})
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] is None


def test_a_resume_cuts_the_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n')
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n', "what is no text is left out"
    cut_log(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def slow(items: list[int], seconds: float) -> Iterator[int]:
    """Each item after a while on a clock of the test's own."""
    for item in items:
        clock.now += seconds
        yield item


def test_time_until_an_item_is_there_is_waiting_for_data(monkeypatch):
    """Two items after 3 s each, and 5 s of work on each: 6 of 16 s; the end of the items counts for nothing."""
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(monitor.dist, "all_reduce", lambda packed: packed.mul_(2))  # a second rank that does the same
    monkeypatch.setattr(monitor.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(monitor.dist, "get_rank", lambda: 0)
    meter = Meter(("loss",), ("loss",), torch.device("cpu"))
    seen = []
    for item in meter.waiting(slow([4, 5], 3.0)):
        seen.append(item)
        clock.now += 5.0
        meter.add(torch.ones(1), tokens=10)
        meter.step()
    figures = meter.read()
    assert seen == [4, 5]
    assert figures["data_wait"] == pytest.approx(6 / 16)
    assert figures["tokens_per_second"] == pytest.approx(2 * 20 / 16)
    clock.now += 1.0
    assert meter.read()["data_wait"] == 0.0, "reading starts anew"


def test_leaving_the_loop_over_awaited_items_ends_their_source():
    ended = []

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            ended.append(True)

    meter = Meter(("loss",), ("loss",), torch.device("cpu"))
    for _ in meter.waiting(source()):
        break
    assert ended == [True]


def read_meter() -> dict[str, float]:
    """On each of two ranks: two steps of two micro-batches, and one that is skipped."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    meter = Meter(("loss", "loss_ce"), ("loss",), torch.device("cpu"))
    for step in range(2):
        for part in range(2):
            meter.add(torch.tensor([1.0 + rank + 10 * step + 100 * part, 7.0]), tokens=5 + rank)
        meter.step()
    meter.add(torch.full((2,), math.nan), tokens=0, filler=11, static=False)
    meter.step(skipped=True)
    meter.passes.append((0.0, 3.0 + rank))  # a forward pass of so many seconds
    figures = meter.read()
    assert math.isnan(meter.read()["loss"]), "reading starts anew"
    return figures


def test_meter_sums_parts_and_ranks_and_averages_steps():
    first, second = run_ranks(2, read_meter)
    # Step 0: 1 + 101 + 2 + 102; step 1: 40 more.
    assert first["loss"] == second["loss"] == (206 + 246) / 2
    assert "loss_ce" not in first
    assert first["tokens_per_second"] * first["seconds_per_step"] * 3 == pytest.approx(4 * 5 + 4 * 6, rel=1e-6)
    assert (first["filler"], first["uncompiled"]) == (22 / 66, 2)
    assert (first["slowest_rank"], first["slowest_forward"]) == (1, 4.0 / 3)
