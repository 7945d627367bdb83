"""The log and its figures."""

import fcntl
import json
import math
import os
import struct
import subprocess
import sys
import termios
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from launch import monitor
from launch.distributed import World
from launch.log import cut_log, duration
from launch.monitor import Meter, Monitor, console_line

ROOT = Path(__file__).parents[1]
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
    assert line == "step  4/10 | loss 3 mlm 3 | lr 0.001 | grad 0.5 | 10 tok/s | eta 00:12"
    assert held_out == "step 4 held out | loss 2.5"
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 4, **FIGURES}, {"step": 4, "valid_loss": 2.5}]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    machine = {"tokens_per_second", "seconds_per_step", "data_wait"}
    expected = {f"{'machine' if name in machine else 'train'}/{name}" for name in FIGURES} | {"valid/loss"}
    assert set(board.Tags()["scalars"]) == expected
    (event,) = board.Scalars("train/grad_norm")
    assert (event.step, event.value) == (4, 0.5)


LONG = FIGURES | {
    "loss": 16.73214, "loss_ce": 2.123456, "loss_mlm": 3.123456, "loss_cos": 0.123456, "loss_mse": 1234.567,
    "data_wait": 0.123, "mfu": 0.456, "lr": 4.967e-4, "tokens_per_second": 12_345_678.0,
}  # fmt: skip


def test_the_console_line_fits_into_120_columns():
    """What matters less goes first where there is no room."""
    losses = "loss 16.73 mlm 3.123 ce 2.123 cos 0.1235 mse 1235"
    assert console_line("step 100/200", LONG, "eta 00:12") == (
        f"step 100/200 | {losses} | data wait 12% | 12,345,678 tok/s | eta 00:12"
    )
    line = console_line("step 1000000/1000000", LONG, "eta 1234:56:07")
    assert line == f"step 1000000/1000000 | {losses} | 12,345,678 tok/s | eta 1234:56:07"
    short = {name: value for name, value in LONG.items() if name not in ("loss_cos", "loss_mse")} | {"data_wait": 0.01}
    assert console_line("step 1/2", short, "eta 00:12") == (
        "step 1/2 | loss 16.73 mlm 3.123 ce 2.123 | lr 0.000497 | grad 0.5 | MFU 46% | 12,345,678 tok/s | eta 00:12"
    )
    assert " | grad 0.5 | scale 6.554e+04 | 10 tok/s" in console_line("step 1/2", FIGURES | {"loss_scale": 65536.0}, "")


def test_the_held_out_line_fits_into_120_columns(tmp_path, capsys):
    """A distillation's in one line; where there is no room even so, cut between two figures."""
    figures = {"loss": 10.56714, "loss_ce": 0.25231, "loss_mlm": 4.61701, "loss_cos": 0.071712, "accuracy": 0.26919,
               "agreement": 0.55691, "unigram_entropy": 6.90951}  # fmt: skip
    with Monitor(tmp_path, WORLD, start=0, max_steps=10) as monitor:
        monitor.log_held_out(800, figures)
        monitor.log_held_out(1_000_000, figures | {"loss_mse": 1234.567})
    whole, *cut = capsys.readouterr().out.splitlines()
    assert whole == (
        "step 800 held out | loss 10.57 ce 0.2523 mlm 4.617 cos 0.07171 | accuracy 0.2692 | agreement 0.5569 "
        "| unigram 6.91"
    )
    losses = "loss 10.57 ce 0.2523 mlm 4.617 cos 0.07171 mse 1235"
    assert cut == [
        f"step 1000000 held out | {losses} | accuracy 0.2692 | agreement 0.5569",
        "    unigram 6.91",
    ]
    assert len(whole) <= 120 and len(cut[0]) <= 120


def test_a_live_bar_on_a_terminal_alone(tmp_path):
    """A run's monitor with a terminal, and with a pipe."""
    program = (
        "import json, sys, time, torch; from pathlib import Path; from launch.distributed import World\n"
        "from launch.monitor import Monitor\n"
        "with Monitor(Path(sys.argv[1]), World(0, 1, 0, torch.device('cpu')), 3, 9) as monitor:\n"
        "    monitor.tick(); monitor.log(4, json.loads(sys.argv[2])); time.sleep(0.5); monitor.tick()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(FIGURES)]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    line = "step 4/9 | loss 3 mlm 3 | lr 0.001 | grad 0.5 | 10 tok/s | eta 00:10"
    assert (piped.stdout, "training" in piped.stderr) == (f"{line}\n", False)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    subprocess.run(command, cwd=ROOT, stdout=slave, stderr=slave, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert f"{line}\r\n" in shown and "training" in shown
    assert "| 5/9 [" in shown and "steps/s, loss 3]" in shown


def test_unigrams_stand_in_the_chart_of_the_masked_words(tmp_path):
    with Monitor(tmp_path, WORLD, 0, 10) as monitor:
        for step in (5, 10):
            monitor.log_held_out(step, {"loss_mlm": 6.0, "unigram_entropy": 6.9})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    (chart,) = layout.category[0].chart
    tags = list(chart.multiline.tag)
    assert tags == ["valid/loss_mlm", "valid/unigram_entropy"]
    assert set(tags) == set(board.Tags()["scalars"])


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
        meter.add(torch.ones(1), tokens=10, flops=4e12)
        meter.step()
    figures = meter.read()
    assert seen == [4, 5]
    assert figures["data_wait"] == pytest.approx(6 / 16)
    assert figures["tokens_per_second"] == pytest.approx(2 * 20 / 16)
    assert figures["tflops"] == pytest.approx(2 * 4 / 16), "of each rank"
    assert 0.05 < figures["memory_gb"] / 2 < 100, "this process has loaded torch; the sum above counts it twice"
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
