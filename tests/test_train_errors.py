"""What a user can do wrong with train_dilbert.py: an exit code, and a message that names the place and the cure."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SPECIALS, VOCABULARY, WORDS, write_vocabulary
from jobs import config_file, flags, make_models
from ranks import read_log, run_ranks, train

from data import binarize
from data.manifest import CleaningRules
from launch import checkpoint

ROOT = Path(__file__).parents[1]
PORT = "a free port"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models, dataset_folder) -> Path:
    """A run of 4 steps with checkpoints after 2 and 4, one rank, stage 1."""
    folder = tmp_path_factory.mktemp("finished")
    argv = flags(config_file(folder / "c.json"), dataset_folder, models, folder / "run", "--max-steps", "4")
    (code, output), *_ = run_ranks(1, train, [*argv, "--checkpoint-interval", "2"])
    assert code == 0, output
    return folder


def start(argv: list[str], ranks: int = 1) -> tuple[int, str]:
    return run_ranks(ranks, train, argv)[0]


def assert_refused(argv: list[str], code: int, *words: str) -> str:
    """The start fails with this exit code, says all these words, and shows no traceback."""
    found, output = start(argv)
    assert found == code, output
    assert "Traceback" not in output
    for word in words:
        assert word in output, output
    return output


def dataset_by(tmp_path: Path, texts: tuple[Path, ...], tokens: tuple[str, ...]) -> Path:
    """The texts as a dataset by another vocabulary."""
    tokenizer = write_vocabulary(tmp_path / "other", tokens)
    binarize.binarize(binarize.Files(texts, str(tokenizer), tmp_path / "data", 1), CleaningRules(max_unknown=2.0))
    return tmp_path / "data"


def with_a_wrong_id(dataset: Path, tmp_path: Path) -> Path:
    """A copy of a dataset in which one id lies outside the vocabulary."""
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    ids = bytearray((data / "00000.bin").read_bytes())
    ids[2:4] = (60_000).to_bytes(2, "little")
    (data / "00000.bin").write_bytes(ids)
    return data


def schedule(**params) -> dict:
    return {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", **params}}


# --- before anything is loaded ---


def test_nothing_given_says_what_is_missing(models):
    output = assert_refused(
        [], 2, "--deepspeed-config", "--data", "--student", "--output", "A full example", "deepspeed train_dilbert.py"
    )
    assert "--teacher " not in output.split("A full example")[0], "the teacher is not required"


def test_unknown_flag(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-step", "4")
    assert_refused(argv, 2, "--max-step", "did you mean '--max-steps'?")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ["--max-steps", "--epochs"]),
        (["--max-steps", "4", "--epochs", "1"], ["--max-steps", "--epochs"]),
        (["--max-steps", "0"], ["--max-steps 0", "positive"]),
        (["--max-steps", "4", "--warmup-steps", "9"], ["--warmup-steps 9", "4 steps"]),
        (["--max-steps", "4", "--temperature", "0"], ["--temperature 0"]),
        (["--max-steps", "4", "--alpha-ce", "-1"], ["--alpha-ce -1"]),
        (["--max-steps", "4", "--word-mask", "0.9"], ["--word-mask 0.9", "add up to 1"]),
        (["--max-steps", "4", "--log-interval", "0"], ["--log-interval 0"]),
        (["--max-steps", "many"], ["--max-steps", "many"]),
    ],
)
def test_bad_values(more, words, models, dataset_folder, tmp_path):
    assert_refused(flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", *more), 2, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gradient_cliping": 1.0}, ["gradient_cliping", "did you mean 'gradient_clipping'?"]),
        ({"gradient_clipping": -1}, ["gradient_clipping", "-1"]),
        ({"train_micro_batch_size_per_gpu": 3}, ["16", "3", "1 rank"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage", "3"]),
        ({"zero_optimization": {"stage": 0}, "fp16": {"enabled": True}}, ["fp16", "ZeRO"]),
        ({"zero_optimization": {"stage": 0}, "bf16": {"enabled": True}}, ["bf16", "ZeRO"]),
        ({"steps_per_print": "auto"}, ["steps_per_print", "auto"]),
        ({"steps_per_print": {}}, ["steps_per_print", "{}"]),
        ({"train_batch_size": 2**31}, ["train_batch_size", "2147483648"]),
        ({"aio": []}, ["aio", "object"]),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, ["torch_adam", "CPU"]),
        ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}, ["optimizer.params.lr"]),
        ({"scheduler": schedule(warmup_type="linear", warmup_max_lr=0.1)}, ["warmup_max_lr"]),
        ({"scheduler": schedule()}, ["warmup_type", "linear"]),
        ({"scheduler": {"type": None}}, ["scheduler.type"]),
        ({"scheduler": {"type": "WarmupDecayLR", "params": []}}, ["scheduler.params"]),
        ({"optimizer": {"type": 3, "params": {"lr": 1e-3}}}, ["optimizer.type"]),
        ({"optimizer": {"type": "AdamW", "params": None}}, ["optimizer"]),
        ({"bf16": {"enabled": "false"}}, ["bf16.enabled"]),
        ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage"]),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": []}}, ["offload_optimizer"]),
    ],
)
def test_bad_deepspeed_json(change, words, models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", **change)
    if "1 rank" not in words:  # what depends on the launch is no fault of the file
        words = [str(config), *words]
    assert_refused(flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "4"), 2, *words)
    assert not (tmp_path / "run").exists()


def test_what_deepspeed_cannot_read(models, dataset_folder, tmp_path):
    """Whatever it raises at that."""
    params = {"lr": 1e-3, "torch_adam": True, "betas": [0.9]}
    config = config_file(tmp_path / "c.json", optimizer={"type": "AdamW", "params": params})
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    assert_refused(argv, 2, "DeepSpeed refuses its configuration: IndexError")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimization": {"stage": 1, "stagee": 2}}, ["stagee"]),
        ({"optimizer": {"type": "AdamV", "params": {"lr": 1e-3}}}, ["AdamV"]),
        ({"scheduler": schedule(warmup_type="linear") | {"type": "WarmupDecayLl"}}, ["WarmupDecayLl"]),
        ({"scheduler": schedule(warmup_type="linear", total_num_steps=9)}, ["total_num_steps", "9", "4"]),
    ],
)
def test_what_deepspeed_itself_refuses(change, words, models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", **change)
    assert_refused(flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "4"), 2, *words)
    assert not (tmp_path / "run").exists()


def test_broken_json_names_the_line(models, dataset_folder, tmp_path):
    (tmp_path / "c.json").write_text('{\n  "train_batch_size": 16,\n}\n')
    argv = flags(tmp_path / "c.json", dataset_folder, models, tmp_path / "run", "--max-steps", "4")
    assert_refused(argv, 2, "c.json", "line 3")
    assert_refused(
        flags(tmp_path / "none.json", dataset_folder, models, tmp_path / "run", "--max-steps", "4"), 2, "none.json"
    )


# --- models and data that don't belong together ---


def test_missing_folders(models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json")
    assert_refused(flags(config, tmp_path / "no", models, tmp_path / "run", "--max-steps", "4"), 3, "no", "dataset")
    assert_refused(
        flags(config, dataset_folder, (models[0], Path("./nowhere")), tmp_path / "run", "--max-steps", "4"),
        2,
        "nowhere",
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(
        flags(config, dataset_folder, (models[0], empty), tmp_path / "run", "--max-steps", "4"), 2, "config.json"
    )
    assert_refused(
        flags(config, dataset_folder, (empty, models[1]), tmp_path / "run", "--max-steps", "4"), 2, "config.json"
    )


def test_other_vocabulary(models, texts, tmp_path):
    data = dataset_by(tmp_path, texts, (*VOCABULARY, "more"))
    argv = flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "4")
    assert_refused(argv, 2, str(data), f"{len(VOCABULARY)}", f"{len(VOCABULARY) + 1}", "data.binarize")


def test_other_tokenizer_of_the_same_size(models, texts, tmp_path):
    data = dataset_by(tmp_path, texts, (*SPECIALS, *reversed(WORDS), *VOCABULARY[len(SPECIALS) + len(WORDS) :]))
    argv = flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "4")
    assert_refused(argv, 2, "another tokenizer", "binarize")


def test_sequences_too_long(dataset_folder, tmp_path):
    short = make_models(tmp_path, max_position_embeddings=16)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, short, tmp_path / "run", "--max-steps", "4")
    assert_refused(argv, 2, "16 positions", "--max-length 16")


def test_held_out_data_is_checked_before_the_first_step(models, texts, dataset_folder, tokenizer_folder, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("the " * 100 + "\n")
    binarize.binarize(binarize.Files((long,), str(tokenizer_folder), tmp_path / "long", 1), CleaningRules())
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    assert_refused([*argv, "--valid-data", str(tmp_path / "long")], 2, "102 tokens", "80 positions")
    other = dataset_by(tmp_path, texts, (*VOCABULARY, "more"))
    assert_refused([*argv, "--valid-data", str(other)], 2, str(other), "vocabulary")
    assert not (tmp_path / "run").exists()


def test_output_that_is_a_file(models, dataset_folder, tmp_path):
    (tmp_path / "run").write_text("")
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    assert_refused(argv, 2, "--output", "is a file")


def test_student_of_another_teacher(models, dataset_folder, tmp_path):
    wide = make_models(tmp_path, hidden_size=48, num_attention_heads=3)
    config = config_file(tmp_path / "c.json")
    pair = (models[0], wide[1])
    assert_refused(
        flags(config, dataset_folder, pair, tmp_path / "run", "--max-steps", "2"), 2, "hidden size 48", "--alpha-cos 0"
    )
    assert start(flags(config, dataset_folder, pair, tmp_path / "run", "--max-steps", "2", "--alpha-cos", "0"))[0] == 0


def test_damaged_weights(models, dataset_folder, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(models[1], student)
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    argv = flags(
        config_file(tmp_path / "c.json"), dataset_folder, (models[0], student), tmp_path / "run", "--max-steps", "4"
    )
    assert_refused(argv, 4, "model.safetensors")


def test_truncated_dataset(models, dataset_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(dataset_folder, data)
    (data / "00000.bin").write_bytes((data / "00000.bin").read_bytes()[:-2])
    assert_refused(
        flags(config_file(tmp_path / "c.json"), data, models, tmp_path / "run", "--max-steps", "4"), 3, "00000.bin"
    )


def test_id_outside_the_vocabulary_ends_the_run(models, dataset_folder, tmp_path):
    data = with_a_wrong_id(dataset_folder, tmp_path)
    argv = flags(
        config_file(tmp_path / "c.json", batch=128, micro=32), data, models, tmp_path / "run", "--max-steps", "4"
    )
    assert_refused(argv, 3, "60000", "--verify")


def run_out_of_memory() -> None:
    """Reading fails from the third micro-batch on."""
    from data.gather import Reader

    read, calls = Reader.ids, itertools.count()

    def ids(self, extents):
        if next(calls) >= 2:
            raise MemoryError("Unable to allocate 3.00 TiB")
        return read(self, extents)

    Reader.ids = ids


def test_a_data_thread_that_dies_ends_the_run_and_says_why(models, dataset_folder, tmp_path):
    config = config_file(tmp_path / "c.json", micro=16)
    argv = flags(config, dataset_folder, models, tmp_path / "run", "--max-steps", "6")
    ((code, output),) = run_ranks(1, train, argv, run_out_of_memory)
    assert code == 3, output
    assert "error: the data of step 2, rank 0 can't be had: MemoryError: Unable to allocate 3.00 TiB" in output
    assert "Traceback" not in output
    assert [row["step"] for row in read_log(tmp_path / "run")] == [1, 2]


# --- going on with a run ---


def resumable(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def test_changed_settings_are_refused_by_name(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "6")
    assert_refused([*argv, "--temperature", "3"], 2, "--temperature: was 2.0, is 3.0", "--allow-change")
    assert_refused([*argv, "--seed", "1"], 2, "--seed: was 0, is 1", "fingerprint")
    other = config_file(tmp_path / "d.json", gradient_clipping=1.0)
    assert_refused(
        flags(other, dataset_folder, models, output, "--max-steps", "6"), 2, "gradient_clipping: was 5.0, is 1.0"
    )
    assert start([*argv, "--temperature", "3", "--allow-change", "temperature"])[0] == 0
    assert [row["step"] for row in read_log(output)] == [1, 2, 3, 4, 5, 6]


def test_free_settings_may_change(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    config = config_file(tmp_path / "other_name.json", micro=8)
    assert start(flags(config, dataset_folder, models, output, "--max-steps", "5", "--log-interval", "5"))[0] == 0
    assert read_log(output)[-1]["step"] == 5


def test_a_run_is_repeated_as_it_was_recorded(finished, models, dataset_folder, tmp_path):
    """The DeepSpeed JSON that a run was given is in its record; its file may be another by now."""
    json_file = config_file(tmp_path / "c.json", micro=8)
    argv = flags(json_file, dataset_folder, models, tmp_path / "run", "--max-steps", "2", "--log-interval", "1")
    assert start(argv)[0] == 0
    record = tmp_path / "run" / "config.json"
    again = ["--config", str(record), "--output", str(tmp_path / "again")]
    config_file(json_file, micro=4)
    assert start(["--config", str(record.parent), "--output", str(tmp_path / "other-micro")])[0] == 0

    config_file(json_file, gradient_clipping=1.0)
    cure = f"Give --deepspeed-config {record} for what the run was given"
    assert_refused(again, 2, str(json_file), "key 'gradient_clipping': was 5.0, is 1.0", cure, "for what it is now")
    json_file.unlink()
    text = assert_refused(again, 2, f"--deepspeed-config {json_file}: No such file", cure)
    assert "for what it is now" not in text
    assert not (tmp_path / "again").exists()

    assert start([*again, "--deepspeed-config", str(record)])[0] == 0
    repeated = json.loads((tmp_path / "again" / "config.json").read_text())
    assert repeated["deepspeed_config"] == json.loads(record.read_text())["deepspeed_config"]
    assert [row["loss"] for row in read_log(tmp_path / "again")] == [row["loss"] for row in read_log(tmp_path / "run")]


def test_a_finished_run_stays_finished(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "4")
    code, text = start(argv)
    assert code == 0
    assert "done: 4 steps" in text
    assert (output / "DONE.json").exists()
    assert [row["step"] for row in read_log(output)] == [1, 2, 3, 4]


def test_changed_dataset_is_refused(finished, models, dataset_folder, texts, tokenizer_folder, tmp_path):
    output = resumable(finished, tmp_path)
    binarize.binarize(binarize.Files(texts[:2], str(tokenizer_folder), tmp_path / "data", 1), CleaningRules())
    argv = flags(config_file(tmp_path / "c.json"), tmp_path / "data", models, output, "--max-steps", "6")
    assert_refused(argv, 2, "fingerprint")


def test_several_corpora_that_are_refused(models, dataset_folder, tmp_path):
    copy = shutil.copytree(dataset_folder, tmp_path / "copy")
    config = config_file(tmp_path / "c.json")
    without = flags(config, dataset_folder, models, tmp_path / "run", "--data", str(copy), "--max-steps", "2")
    assert_refused(without, 2, f"--data {dataset_folder}: several corpora need weights", "python -m data.merge")
    argv = flags(config, f"{dataset_folder}:0.7", models, tmp_path / "run", "--data", f"{copy}:0.3")
    assert_refused([*argv, "--epochs", "2"], 2, "--epochs 2", "--max-steps")
    assert not (tmp_path / "run").exists()


def test_changed_shares_are_refused(models, dataset_folder, tmp_path):
    copy = shutil.copytree(dataset_folder, tmp_path / "copy")

    def argv(first: float, second: float) -> list[str]:
        return flags(config_file(tmp_path / "c.json"), f"{dataset_folder}:{first}", models, tmp_path / "run",
                     "--data", f"{copy}:{second}", "--max-steps", "4", "--stop-at-step", "2")  # fmt: skip

    assert start(argv(0.7, 0.3))[0] == 75
    assert_refused(argv(0.6, 0.4), 2, "fingerprint (of data, batch, masks and order): was")
    assert start([word for word in argv(7, 3) if word not in ("--stop-at-step", "2")])[0] == 0


def test_a_corpus_by_another_tokenizer_is_refused(models, texts, dataset_folder, tmp_path):
    other = dataset_by(tmp_path, texts, (*VOCABULARY, "more"))
    config = config_file(tmp_path / "c.json")
    argv = flags(config, f"{dataset_folder}:1", models, tmp_path / "run", "--data", f"{other}:1", "--max-steps", "2")
    assert_refused(argv, 2, str(other), "vocabulary")


def test_a_damaged_checkpoint_is_skipped_and_named(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "6")
    damage(output / "checkpoints" / checkpoint.tag(4) / "mp_rank_00_model_states.pt")
    code, text = start(argv)
    assert code == 0, text
    assert "mp_rank_00_model_states.pt" in text
    assert "going on after step 2" in text
    assert [row["step"] for row in read_log(output)] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_last_checkpoint_is_made_again(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    damage(output / "checkpoints" / checkpoint.tag(4) / "mp_rank_00_model_states.pt")
    assert start(flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "4"))[0] == 0
    assert checkpoint.newest(output / "checkpoints").step == 4
    assert (output / "checkpoints" / "damaged-step00000004").is_dir()


def test_a_refused_start_changes_nothing(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    before = {path: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    other = config_file(tmp_path / "c.json", stage=2)
    argv = flags(other, dataset_folder, models, output, "--max-steps", "6", "--stop-at-step", "2")
    assert_refused(argv, 2, "--stop-at-step 2", "has done 4 steps")
    same = config_file(tmp_path / "c.json")
    assert_refused(
        flags(same, dataset_folder, models, output, "--max-steps", "2"), 2, "--max-steps 2", "4 steps already"
    )
    assert_refused(
        flags(same, dataset_folder, models, output, "--max-steps", "6", "--stop-at-step", "3"), 2, "--stop-at-step 3"
    )
    assert_refused(
        flags(same, dataset_folder, models, output, "--max-steps", "6", "--warmup-steps", "3"), 2, "--warmup-steps"
    )
    after = {path: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}
    assert before == after


def test_another_teacher_is_refused(finished, models, dataset_folder, tmp_path):
    from model.pretrained import DilBertForMaskedLM

    output, teacher = resumable(finished, tmp_path), tmp_path / "other"
    shutil.copytree(models[0], teacher)
    changed = DilBertForMaskedLM.from_pretrained(teacher)
    changed.head.bias.data[3] += 1
    changed.save_pretrained(teacher)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, (teacher, models[1]), output, "--max-steps", "6")
    assert_refused(argv, 2, "teacher (its weights): was")


def test_no_whole_checkpoint_is_no_silent_restart(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    for step in (2, 4):
        damage(output / "checkpoints" / checkpoint.tag(step) / "mp_rank_00_model_states.pt")
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "6")
    assert_refused(argv, 4, "no checkpoint is whole", "mp_rank_00_model_states.pt")


def test_fresh_moves_the_old_run_aside(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "2", "--seed", "5")
    assert start([*argv, "--fresh"])[0] == 0
    assert (tmp_path / "run.old-1" / "DONE.json").exists()
    assert [row["step"] for row in read_log(output)] == [1, 2]


def test_a_batch_that_the_ranks_cannot_cut_names_the_equation(finished, models, dataset_folder, tmp_path):
    output = resumable(finished, tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, output, "--max-steps", "6")
    results = run_ranks(3, train, argv)
    assert [code for code, _ in results] == [2, 2, 2]
    assert "train_batch_size 16 is no multiple of train_micro_batch_size_per_gpu 4 x 3 rank(s)" in results[0][1]


def damage(path: Path) -> None:
    """Flip a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_non_finite_loss_ends_with_5_and_keeps_the_checkpoint(dataset_folder, tmp_path):
    from model.pretrained import DilBertForMaskedLM

    pair = make_models(tmp_path)
    student = DilBertForMaskedLM.from_pretrained(pair[1])
    with torch.no_grad():
        student.head.norm.weight.fill_(float("nan"))
    student.save_pretrained(pair[1])
    for stage in (0, 2):
        config = config_file(tmp_path / "c.json", stage=stage)
        argv = flags(config, dataset_folder, pair, tmp_path / f"run{stage}", "--max-steps", "4", "--max-bad-steps", "2")
        assert_refused(argv, 5, "step 2", "not finite 2 times in a row")
        assert not (tmp_path / f"run{stage}" / "DONE.json").exists()


# --- every way to start ---


def shell(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    path = f"{Path(sys.executable).parent}:{clean['PATH']}"
    return subprocess.run(
        words, cwd=ROOT, env=clean | {"PATH": path} | environment, capture_output=True, text=True, timeout=200
    )


@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable, "train_dilbert.py"],
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_dilbert.py"],
        ["deepspeed", "--num_gpus", "2", "--master_port", PORT, "train_dilbert.py", "--deepspeed"],
    ],
    ids=["python", "torchrun", "deepspeed"],
)
def test_launchers(launcher, models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    done = shell([free_port() if word == PORT else word for word in [*launcher, *argv]])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["ranks"] == (
        1 if "train_dilbert.py" == launcher[1] else 2
    )
    assert len(read_log(tmp_path / "run")) == 2


def test_a_rank_that_fails_alone_says_why(models, dataset_folder, tmp_path):
    """One id outside the vocabulary: only the rank whose part holds it can see it."""
    data = with_a_wrong_id(dataset_folder, tmp_path)
    argv = flags(
        config_file(tmp_path / "c.json", batch=128, micro=32), data, models, tmp_path / "run", "--max-steps", "4"
    )
    done = shell(["deepspeed", "--num_gpus", "2", "--master_port", free_port(), "train_dilbert.py", *argv])
    assert done.returncode != 0
    assert "60000" in done.stdout + done.stderr
    assert "--verify" in done.stdout + done.stderr


def test_a_taken_port_names_the_cure(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        done = shell([sys.executable, "train_dilbert.py", *argv], **world, MASTER_PORT=str(other.getsockname()[1]))
    assert done.returncode == 2, done.stderr
    assert "--master_port" in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_without_ranks_are_refused(models, dataset_folder, tmp_path):
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "2")
    done = shell([sys.executable, "train_dilbert.py", *argv], SLURM_NTASKS="2")
    assert done.returncode == 2, done.stderr
    assert "SLURM_NTASKS is 2" in done.stderr


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_deepspeed_with_nothing_else():
    done = shell(["deepspeed", "--num_gpus", "1", "--master_port", free_port(), "train_dilbert.py"])
    assert done.returncode != 0
    assert "--student" in done.stdout + done.stderr
    assert "A full example" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
