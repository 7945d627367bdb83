"""The benchmark of a step: all its rows run and compute the same; how fast they are is nobody's promise."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shapes import Shapes
from launch.costs import Tokens, step_flops
from launch.errors import ConfigError
from model import hf, kernels
from model.bert import MaskedLM
from model.config import BertConfig
from model.distiller import Distiller
from tests.bench import bench_step, step_measure, step_profile, step_table
from tests.bench.step_data import NO_LABEL, Padded, dealt, grouped, one_step, packed, sequences, tokens
from tests.bench.step_models import PAIRS, fill
from tests.bench.step_variants import VARIANTS, Setting, compile_if_worth_it

ROOT = Path(__file__).parents[1]
TINY = Setting("tiny", batch=5, sequences=10, quick=True)
CPU = torch.device("cpu")


def test_all_rows_compute_the_same(tmp_path):
    words = [sys.executable, "-m", "tests.bench.bench_step", "--quick", "--pair", "tiny", "--output", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    with open(tmp_path / "step.csv", newline="") as file:
        head, *lines = csv.reader(file)
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    assert [row["variant"] for row in rows] == list(VARIANTS)
    for row in rows:
        if row["note"].startswith("not"):
            assert row["variant"] in ("packed, Liger's losses by chunks", "ours, FP8 teacher")
            continue
        right = 0.3 if "FP8" in row["variant"] else 1e-5
        assert float(row["gradient apart"]) < right and float(row["loss apart"]) < right
        assert float(row["tokens/s"].replace(",", "")) > 0 and float(row["TFLOP/s"]) > 0
    assert {row["padding"] for row in rows[3:6]} == {"0%"}


def test_a_process_of_its_own(tmp_path):
    reference = tmp_path / "reference.npz"
    step_measure.write_reference(TINY, reference)
    figures = bench_step.in_a_process(TINY, "packed, losses over all logits", reference)
    assert figures["gradient_difference"] < 1e-5 and figures["kernels"] == "per sequence / torch / reference"


def test_a_difference_is_seen(tmp_path):
    reference = tmp_path / "reference.npz"
    step_measure.write_reference(TINY, reference)
    with VARIANTS["ours"](TINY) as ready:
        fill([("another name", ready.student.layers[0].qkv.weight)])
        assert step_measure.differences(TINY, ready, reference)["gradient_difference"] > 1e-3


def test_an_unknown_row_is_refused():
    with pytest.raises(ConfigError, match="numbers from 1 to 8"):
        bench_step.Arguments(variants=(9,))


def test_sequences_padded_and_packed_are_the_same():
    data = sequences("mixed", 12, 1000)
    for batches in (grouped(data, 5), dealt(data, 5)):
        assert sorted(s.ids.size for batch in batches for s in batch) == sorted(s.ids.size for s in data)
        for batch in batches:
            padded, rows = Padded.of(batch, CPU), packed(batch)
            assert np.array_equal(padded.ids_BL[padded.mask_BL.bool()], rows.input_ids)
            assert np.array_equal(padded.labels_BL[padded.labels_BL != NO_LABEL], rows.labels)
    assert {s.ids.size for s in sequences("512", 3, 1000)} == {512}


def test_mixed_lengths_keep_their_mean_and_are_alike_in_a_batch():
    for alike in (1, 32):
        data = sequences("mixed", 160, 1000, alike)
        assert len(data) == 160 and 122 < tokens(data) / 160 < 132
    for batch in grouped(data, 32):
        assert Padded.of(batch, CPU).slots < 1.05 * tokens(batch)


def test_parts_of_one_step_share_its_counts():
    parts = one_step([packed(batch) for batch in dealt(sequences("mixed", 12, 1000), 4)])
    assert [part.part for part in parts] == [0, 1, 2]
    assert {part.step_tokens for part in parts} == {sum(part.tokens for part in parts)}
    assert {part.step_masked for part in parts} == {sum(part.labels.size for part in parts)}


def test_flops_are_those_of_the_plan():
    teacher, student = (BertConfig.from_dict(config) for config in step_measure.configs(Setting("base")))
    lengths = [s.ids.size for s in sequences("mixed", 4096, 1000)]
    mega = [
        step_flops(*pair, Tokens.of(lengths)) / sum(lengths) / 1e6 for pair in ((teacher, student), (None, student))
    ]
    assert 223 < mega[0] - mega[1] < 237 and 406 < mega[1] < 427


def test_weights_follow_from_their_names():
    model = MaskedLM(BertConfig.from_dict(PAIRS["tiny"].student()))
    names = [name for key, _ in model.named_parameters() for name in hf.names_of(key, "distilbert")]
    assert len(set(names)) == len(names)
    weights = torch.zeros(2, 4, 4)
    fill([("a", weights[0]), ("b", weights[1])])
    again = torch.zeros(4, 4, dtype=torch.float64)
    fill([("b", again)], rounded=torch.bfloat16)
    assert not torch.equal(weights[0], weights[1]) and torch.equal(again.bfloat16(), weights[1].bfloat16())


def test_shapes_where_compiling_is_worth_it(monkeypatch):
    compiled = []
    monkeypatch.setattr(Distiller, "should_compile", lambda self, choice: True)
    monkeypatch.setattr(Distiller, "compile", lambda self: compiled.append(self))
    with VARIANTS["ours"](TINY) as ready:
        batches = ready.batches(sequences("mixed", 10, 1000))
    assert len(compiled) == 1 and all(batch.static for batch in batches)
    assert {batch.input_ids.numel() % 256 for batch in batches} == {0}
    assert isinstance(compile_if_worth_it(compiled[0], [(600, 5)]), Shapes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm_", step_profile.GEMM),
        ("aten::bmm", step_profile.GEMM),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_TNT", step_profile.GEMM),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64", step_profile.GEMM),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", step_profile.ATTENTION),
        ("dilbert::attention_rows_backward", step_profile.ATTENTION),
        ("row_kernel", step_profile.ROWS),
        ("aten::gelu", None),
        ("aten::addcmul_", None),
    ],
)
def test_kinds_of_a_profile(name, kind):
    assert step_profile.kind_of(name) == kind


def test_profile_of_a_step():
    cells = step_profile.breakdown(TINY)
    shares = {kind: int(share.rstrip("%")) for kind, _, share in cells[1:-1]}
    native = {step_profile.ROWS, step_profile.ENDS} if kernels.library("residual_rows") else set()
    assert {step_profile.GEMM, step_profile.ATTENTION, *native} <= set(shares)
    assert 95 <= sum(shares.values()) <= 105


def test_a_table_has_medians_and_ratios():
    row = {"wall": 10.0, "cpu": 8.0, "memory": 2**20, "padding": 0.2, "flops": 1e12, "mfu": 0.5, "sheet": None,
           "others": 0.5, "batching": "b", "kernels": "k"}  # fmt: skip
    first = [{**row, "wall": wall} for wall in (30.0, 10.0, 20.0)]
    found = {"slow": first, "gone": [{"missing": "not installed: x"}], "fast": [{**row, "wall": 50.0}]}
    head, slow, gone, fast = step_table.cells(TINY, found)
    at = {name: i for i, name in enumerate(head)}
    assert [line[at["tokens/s"]] for line in (slow, fast)] == ["20", "50"] and fast[at["tokens/s"] + 1] == "2.50"
    assert gone[-1] == "not installed: x" and slow[at["MFU"]] == "50%" and "50%" in slow[-1]
