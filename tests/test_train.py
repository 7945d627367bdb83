"""train_dilbert.py, end to end: what a run computes does not depend on how it is cut, interrupted or measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import NO_DROPOUT, config_file, flags, make_models
from ranks import allow_fp16, read_log, run_ranks, train

from data import binarize
from data.manifest import CleaningRules
from launch import checkpoint, restore

GOLDEN = Path(__file__).parent / "golden" / "loss_curve.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def still_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Without dropout."""
    return make_models(tmp_path_factory.mktemp("still"), **NO_DROPOUT)


def run(ranks: int, argv: list[str], patch=None, expect: int = 0) -> str:
    """A job of train_dilbert.py; its rank 0's output."""
    results = run_ranks(ranks, train, argv, patch)
    assert [code for code, _ in results] == [expect] * ranks, results
    return results[0][1]


def losses(output: Path) -> np.ndarray:
    """[steps, 5]: loss, its three parts, and the gradient's norm."""
    names = ("loss", "loss_ce", "loss_mlm", "loss_cos", "grad_norm")
    return np.array([[row[name] for name in names] for row in read_log(output)])


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    path = output / "checkpoints" / checkpoint.tag(step) / "mp_rank_00_model_states.pt"
    return torch.load(path, weights_only=False)["module"]  # DeepSpeed's own file, made by this test


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory, texts, tokenizer_folder) -> Path:
    """A dataset of the second text alone."""
    output = tmp_path_factory.mktemp("datasets") / "other"
    binarize.binarize(binarize.Files((str(texts[1]),), str(tokenizer_folder), output, 1), CleaningRules())
    return output


@pytest.fixture(scope="module")
def reference(tmp_path_factory, still_models, dataset_folder) -> np.ndarray:
    """20 steps in fp32 at stage 1 on one rank, without dropout."""
    folder = tmp_path_factory.mktemp("reference")
    run(1, flags(config_file(folder / "c.json"), dataset_folder, still_models, folder / "run", "--max-steps", "20"))
    return losses(folder / "run")


CUTS = [(0, 1, 4), (2, 1, 4), (0, 2, 4), (1, 2, 4), (2, 2, 4), (1, 1, 16), (2, 1, 1), (2, 2, 2)]


@pytest.mark.parametrize(("stage", "ranks", "micro"), CUTS)
def test_losses_do_not_see_the_cut(stage, ranks, micro, reference, still_models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", stage=stage, micro=micro)
    run(ranks, flags(config, dataset_folder, still_models, tmp_path / "run", "--max-steps", "20"))
    found = losses(tmp_path / "run")
    assert found.shape == reference.shape == (20, 5)
    np.testing.assert_allclose(found[:, 0], reference[:, 0], rtol=1e-6)
    # Parts that are small differences of large numbers are compared on the scale of the whole.
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-6)
    assert reference[-1, 0] < reference[0, 0], "nothing was learnt"


def compile_by_tracing() -> None:
    """torch.compile without its code generator: what is traced, and guarded, is run by torch."""
    from model.distiller import Distiller

    plain = Distiller.compile
    Distiller.compile = lambda self, *_, **more: plain(self, **more | {"backend": "eager"})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_runs_have_the_same_losses(reference, still_models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json", micro=16), dataset_folder, still_models, tmp_path / "run")
    text = run(1, [*argv, "--max-steps", "20", "--compile", "on", "--token-block", "64"], compile_by_tracing)
    assert "compiling for " in text and " tokens, by 64" in text
    np.testing.assert_allclose(losses(tmp_path / "run")[:, 0], reference[:, 0], rtol=1e-6)
    rows = read_log(tmp_path / "run")
    assert all(0 <= row["filler"] < 0.3 for row in rows) and any(row["filler"] for row in rows)
    assert sum(row["uncompiled"] for row in rows) == 0


def test_the_line_of_kernels(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "1")
    text = run(1, [*argv, "--attention-dropout", "0.25"])
    assert "kernels: attention rows, teacher's rows, residual norm C++, vocabulary losses native_rows\n" in text
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["flags"]["attention_dropout"] == 0.25
    assert "0.25" in json.dumps(record["model"])
    assert "--attention-dropout" in run(1, [*argv, "--attention-dropout", "0.1"], expect=2)


def test_resume_is_bit_for_bit(models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", stage=2)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(2, flags(config, dataset_folder, models, whole, "--max-steps", "20"))
    argv = flags(config, dataset_folder, models, halves, "--max-steps", "20")
    run(2, [*argv, "--stop-at-step", "10"], expect=75)
    assert json.loads((halves / "STOPPED.json").read_text()) == {
        "code": 75, "step": 10, "why": "--stop-at-step",
    }  # fmt: skip
    assert not (halves / "DONE.json").exists()
    assert "going on after step 10" in run(2, argv)
    assert (halves / "DONE.json").exists()
    assert not (halves / "STOPPED.json").exists()
    np.testing.assert_array_equal(losses(whole), losses(halves))
    assert same(weights(whole, 20), weights(halves, 20))
    for rank in range(2):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        a, b = (
            torch.load(folder / "checkpoints" / checkpoint.tag(20) / name, weights_only=False)["optimizer_state_dict"]
            for folder in (whole, halves)
        )
        for mine, theirs in zip(
            a["single_partition_of_fp32_groups"], b["single_partition_of_fp32_groups"], strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1), ("bf16", 2), ("fp16", 1), ("fp16", 2)])
def test_resume_in_every_precision(precision, stage, models, dataset_folder, tmp_path):
    more = {"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}
    config = config_file(tmp_path / "c.json", stage=stage, precision=precision, **more)
    patch = allow_fp16 if precision == "fp16" else None
    argv = [flags(config, dataset_folder, models, tmp_path / name, "--max-steps", "6") for name in ("whole", "halves")]
    run(1, argv[0], patch)
    run(1, [*argv[1], "--stop-at-step", "3"], patch, expect=75)
    run(1, argv[1], patch)
    np.testing.assert_array_equal(losses(tmp_path / "whole"), losses(tmp_path / "halves"))
    whole, halves = (
        restore.fp32_weights(checkpoint.newest(tmp_path / name / "checkpoints")) for name in ("whole", "halves")
    )
    assert same(whole, halves)


def test_evaluation_leaves_no_trace(models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json")
    run(1, flags(config, dataset_folder, models, tmp_path / "a", "--max-steps", "6"))
    more = ["--max-steps", "6", "--valid-data", str(dataset_folder), "--eval-interval", "2"]
    run(1, flags(config, dataset_folder, models, tmp_path / "b", *more))
    assert same(weights(tmp_path / "a", 6), weights(tmp_path / "b", 6))
    np.testing.assert_array_equal(losses(tmp_path / "a"), losses(tmp_path / "b"))
    rows = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "valid_loss" in row] == [2, 4, 6]


def test_held_out_figures_do_not_depend_on_ranks(still_models, dataset_folder, tmp_path):
    figures = []
    for ranks, micro in ((1, 16), (2, 1)):
        output = tmp_path / f"run{ranks}"
        more = ["--max-steps", "1", "--valid-data", str(dataset_folder), "--eval-interval", "1"]
        config = config_file(tmp_path / "c.json", micro=micro)
        run(ranks, flags(config, dataset_folder, still_models, output, *more))
        rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        figures.append({k: v for row in rows for k, v in row.items() if k.startswith("valid_")})
    assert (
        figures[0].keys() == figures[1].keys() >= {"valid_loss", "valid_loss_mlm", "valid_agreement", "valid_accuracy"}
    )
    for name, value in figures[0].items():
        assert figures[1][name] == pytest.approx(value, rel=1e-5), name


def test_several_corpora(still_models, dataset_folder, other_folder, tmp_path):
    """Three quarters and one: the same losses on other ranks and after a resume; the log has epochs of each corpus."""
    config, runs = config_file(tmp_path / "c.json"), {}
    for name, ranks in (("one", 1), ("two", 2)):
        argv = flags(config, f"{dataset_folder}:3", still_models, tmp_path / name, "--data", f"{other_folder}:1")
        argv += ["--max-steps", "12", "--order", "blocks", "--order-block", "16"]
        if name == "two":
            run(ranks, [*argv, "--stop-at-step", "5"], expect=75)
        text = run(ranks, argv)
        assert (
            "12 steps = small 75.00%, 0.63 epochs of 230 sequences; other 25.00%, 0.69 epochs of 70 sequences" in text
        )
        runs[name] = losses(tmp_path / name)
        assert len(runs[name]) == 12
    np.testing.assert_allclose(runs["one"][:, 0], runs["two"][:, 0], rtol=1e-6)
    row = read_log(tmp_path / "one")[-1]
    assert (row["epoch_small"], row["epoch_other"]) == (12 * 16 * 0.75 / 230, 12 * 16 * 0.25 / 70)
    data = json.loads((tmp_path / "one" / "environment.json").read_text())["data"]
    assert [(Path(fact["path"]).name, fact["share"], fact["sequences"]) for fact in data] == [
        ("small", 0.75, 230), ("other", 0.25, 70)
    ]  # fmt: skip


def test_the_log_says_how_long_data_was_waited_for(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "3")
    run(1, argv)
    assert all(0 <= row["data_wait"] < 1 for row in read_log(tmp_path / "run"))


def test_checkpoints_hold_the_student_only(models, dataset_folder, tmp_path):
    run(1, flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "1"))
    student = sum(p.numel() for p in weights(tmp_path / "run", 1).values())
    from model.pretrained import DilBertForMaskedLM

    assert student == sum(p.numel() for p in DilBertForMaskedLM.from_pretrained(models[1]).parameters())
    assert all(name.startswith("student.") for name in weights(tmp_path / "run", 1))


def test_batch_larger_than_the_dataset(models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", batch=512, micro=128)
    run(1, flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "2"))
    assert read_log(tmp_path / "run")[-1]["epoch"] > 4


def test_epochs_round_up(models, dataset, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", batch=100, micro=25)
    run(1, flags(config, dataset_folder, models, tmp_path / "run", "--epochs", "1"))
    assert read_log(tmp_path / "run")[-1]["step"] == -(-len(dataset) // 100)


def test_frozen_positions_stay(models, dataset_folder, tmp_path):
    from model.pretrained import DilBertForMaskedLM

    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    run(1, [*argv, "--freeze-pos-embs"])
    before = DilBertForMaskedLM.from_pretrained(models[1]).state_dict()
    after = weights(tmp_path / "run", 4)
    assert torch.equal(before["embeddings.position.weight"], after["student.embeddings.position.weight"])
    assert not torch.equal(before["embeddings.word.weight"], after["student.embeddings.word.weight"])


def test_without_a_teacher_it_is_bert_pretraining(models, dataset_folder, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    for name in ("config.json", "vocab.txt"):
        (start / name).write_bytes((models[0] / name).read_bytes())
    config = config_file(tmp_path / "c.json")
    run(1, flags(config, dataset_folder, (None, start), tmp_path / "run", "--max-steps", "3"))
    row = read_log(tmp_path / "run")[-1]
    assert row["loss"] == pytest.approx(row["loss_mlm"], rel=1e-6)
    assert "loss_ce" not in row
    assert "student.embeddings.token_type.weight" in weights(tmp_path / "run", 3)


def test_learning_rate_follows_its_formula(models, dataset_folder, tmp_path):
    more = ["--max-steps", "20", "--warmup-steps", "5"]
    run(1, flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *more))
    found = [row["lr"] for row in read_log(tmp_path / "run")]
    np.testing.assert_allclose(found, rates(1e-3, steps=20, warmup=5), rtol=1e-12)


def rates(peak: float, steps: int, warmup: int) -> list[float]:
    """The formula of ds_configs/README.md; DeepSpeed's schedule starts counting at the second step."""
    counts = [max(step - 2, 0) for step in range(1, steps + 1)]
    return [peak * (i / warmup if i < warmup else (steps - i) / (steps - warmup)) for i in counts]


@pytest.mark.parametrize("path", sorted(Path("ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_configurations_train(path, models, dataset_folder, tmp_path):
    config = json.loads(path.read_text())
    # The test's batch; all else as it stands.
    size = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": "auto"}
    (tmp_path / "c.json").write_text(json.dumps(config | size))
    patch = allow_fp16 if "fp16" in path.stem else None
    run(2, flags(tmp_path / "c.json", dataset_folder, models, tmp_path / "run", "--max-steps", "12"), patch)
    rows = read_log(tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows if row["loss"] is not None)
    skipped = [0, *(row["skipped_steps"] for row in rows)]  # before each step, and at the end
    assert skipped[-1] == 0 if "fp16" not in path.stem else skipped[-1] < 8, (
        "a loss scale of 2^16 may be too high at first"
    )
    assert sum(row["loss"] is None for row in rows) == skipped[-1], "the loss of a skipped step is none"
    # The schedule stands still while steps are skipped.
    expected = rates(config["optimizer"]["params"]["lr"], steps=12, warmup=2)
    expected = [expected[step - behind] for step, behind in enumerate(skipped[:-1])]
    np.testing.assert_allclose([row["lr"] for row in rows], expected, rtol=1e-12)
    from model.pretrained import DilBertForMaskedLM

    before = DilBertForMaskedLM.from_pretrained(models[1]).state_dict()["layers.0.qkv.weight"]
    after = restore.fp32_weights(checkpoint.newest(tmp_path / "run" / "checkpoints"))["student.layers.0.qkv.weight"]
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    begun = before.to(next((dtypes[name] for name in dtypes if name in path.stem), torch.float32))
    moved = float((begun - after).detach().abs().max())
    assert 2 * max(expected) < moved < 12 * max(expected), "a step of AdamW moves a weight by about the rate"


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 1), ("bf16", 2), ("fp16", 1), ("fp16", 2)])
def test_low_precision_learns_like_fp32(precision, stage, reference, still_models, dataset_folder, tmp_path):
    more = {"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}
    config = config_file(tmp_path / "c.json", stage=stage, precision=precision, **more)
    patch = allow_fp16 if precision == "fp16" else None
    run(1, flags(config, dataset_folder, still_models, tmp_path / "run", "--max-steps", "20"), patch)
    found = losses(tmp_path / "run")[:, 0]
    fell = reference[0, 0] - reference[-5:, 0].mean()
    assert abs(found[-5:].mean() - reference[-5:, 0].mean()) < 0.1 * fell


def test_golden_loss_curve(reference):
    """The curve of the reference run, as it was when it was checked in; a change of numerics must be meant."""
    np.testing.assert_allclose(reference[:, 0], json.loads(GOLDEN.read_text()), rtol=1e-4)
