"""Checkpoints: committed as a whole, verified before they are trusted."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from jobs import config_file, flags, make_models
from ranks import run_ranks, train

from launch import checkpoint
from launch.checkpoint import MODEL_STATES
from launch.errors import CheckpointError


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset_folder) -> Path:
    """Two ranks at stage 2, checkpoints after steps 2 and 4, position embeddings frozen."""
    folder = tmp_path_factory.mktemp("checkpoint")
    models = make_models(folder)
    argv = flags(config_file(folder / "c.json", stage=2), dataset_folder, models, folder / "run", "--max-steps", "4")
    code, output = run_ranks(2, train, [*argv, "--checkpoint-interval", "2", "--freeze-pos-embs"])[0]
    assert code == 0, output
    return folder / "run"


@pytest.fixture
def root(run, tmp_path) -> Path:
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_what_is_on_the_disk(run):
    folders = checkpoint.committed(run / "checkpoints")
    assert [path.name for path in folders] == ["step00000002", "step00000004"]
    assert (run / "checkpoints" / "latest").read_text() == "step00000004"
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["latest", "step00000002", "step00000004"], "no leftovers, and none of DeepSpeed's scripts"
    found = checkpoint.verify(folders[1])
    assert (found.step, found.ranks, found.stage) == (4, 2, 2)
    manifest = json.loads((folders[1] / "MANIFEST.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folders[1].iterdir()} - {"MANIFEST.json"}


def every_file(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "remove"])
def test_every_damage_to_every_file_is_found(how, root, capsys):
    good, bad = checkpoint.committed(root)
    for name in every_file(bad):
        content = (bad / name).read_bytes()
        if how == "remove":
            (bad / name).unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
            (bad / name).write_bytes({"truncate": content[:-1], "flip": flipped, "empty": b""}[how])
        if name != "MANIFEST.json" or not still_says_the_same(bad, content):
            named = None if name == "MANIFEST.json" else name.replace(".", r"\.")  # a false record blames its file
            with pytest.raises(CheckpointError, match=named):
                checkpoint.verify(bad)
            assert checkpoint.newest(root).path == good
            assert "skipping a damaged checkpoint" in capsys.readouterr().out
        (bad / name).write_bytes(content)
        assert checkpoint.newest(root).path == bad


def still_says_the_same(folder: Path, original: bytes) -> bool:
    """White space more or less changes nothing."""
    try:
        return json.loads((folder / "MANIFEST.json").read_bytes()) == json.loads(original)
    except (OSError, ValueError):
        return False


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(root, tmp_path):
    for folder in checkpoint.committed(root):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        checkpoint.newest(root)
    assert checkpoint.newest(tmp_path / "none") is None


SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: [], "can't be read"),
        (lambda m: {}, "can't be read"),
        (lambda m: m | {"files": {"a": 3}}, "can't be read"),
        (lambda m: m | {"files": [["a", 3, "x"]]}, "can't be read"),
        (lambda m: m | {"files": {MODEL_STATES: ["big", "x"]}}, "'big' is no count"),
        (lambda m: m | {"step": True}, "True is no count"),
        (lambda m: m | {"ranks": -1}, "-1 is no count"),
        (lambda m: m | {"stage": 2.0}, "2.0 is no count"),
        (lambda m: m | {"step": 5}, "is of step 5"),
        (lambda m: m | {"ranks": 3}, "names 2 optimizer shards, of 3 ranks at ZeRO stage 2"),
        (lambda m: m | {"stage": 0}, "names 2 optimizer shards, of 2 ranks at ZeRO stage 0"),
        (lambda m: without(m, MODEL_STATES), f"does not name {MODEL_STATES}"),
        (lambda m: without(m, SHARD), "names 1 optimizer shards, of 2 ranks"),
        *((lambda m, name=name: renamed(m, name), f"{name!r} is not the plain name of a file")
          for name in (f"../step00000002/{SHARD}", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "a\\b", "a\n", ".a")),
    ],
)  # fmt: skip
def test_a_manifest_is_taken_literally(change, words, root, capsys):
    good, bad = checkpoint.committed(root)
    manifest = json.loads((bad / "MANIFEST.json").read_text())
    (bad / "MANIFEST.json").write_text(json.dumps(change(manifest)))
    with pytest.raises(CheckpointError, match=f"MANIFEST.json: .*{re.escape(words)}"):
        checkpoint.verify(bad)
    assert checkpoint.newest(root).path == good


def without(manifest: dict, name: str) -> dict:
    return manifest | {"files": {key: entry for key, entry in manifest["files"].items() if key != name}}


def renamed(manifest: dict, name: str) -> dict:
    """One more file, of this name."""
    return manifest | {"files": manifest["files"] | {name: manifest["files"][SHARD]}}


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b'{"step": 1' + b"0" * 5000 + b"}"])
def test_a_manifest_that_is_none(content, root):
    bad = checkpoint.committed(root)[-1]
    (bad / "MANIFEST.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: can't be read"):
        checkpoint.verify(bad)


def test_weights_that_the_manifest_does_not_name_are_damage_and_notes_are_not(root):
    folder = checkpoint.committed(root)[-1]
    (folder / "NOTES.txt").write_text("the one in the paper")
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "more").mkdir()
    assert checkpoint.newest(root).path == folder
    (folder / f"bf16_{SHARD}").write_bytes((folder / SHARD).read_bytes())
    with pytest.raises(CheckpointError, match=f"does not name bf16_{SHARD}, which is there"):
        checkpoint.verify(folder)


@pytest.mark.parametrize("content", ["step00000002", "../../elsewhere", "", "\0"])
def test_what_latest_says_is_nothing_to_us(content, root):
    (root / "latest").write_text(content)
    assert checkpoint.newest(root).step == 4
    (root / "latest").unlink()
    assert checkpoint.newest(root).step == 4


def test_a_file_that_cannot_be_read_is_damage(root, monkeypatch):
    good, bad = checkpoint.committed(root)
    digest = checkpoint._sha256

    def broken(path):
        if path.parent == bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint, "_sha256", broken)
    with pytest.raises(CheckpointError, match="can't be read: Input/output error"):
        checkpoint.verify(bad)
    assert checkpoint.newest(root).path == good
    assert checkpoint.verify(bad, content=False).step == 4


def test_leftovers_are_removed_before_the_next_save(root):
    for name in (".partial-1a2b3c4d", ".deleted-step00000001"):
        (root / name / "step00000001").mkdir(parents=True)
    checkpoint.sweep(root)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step00000002", "step00000004"]


@pytest.mark.parametrize("ranks", [0, 1, 3, 10**30])
def test_other_ranks_in_the_record(ranks, root):
    path = checkpoint.committed(root)[1] / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranks": ranks}))
    with pytest.raises(CheckpointError, match=f"names 2 optimizer shards, of {ranks} ranks"):
        checkpoint.verify(path.parent)


def test_unfinished_and_foreign_folders_are_passed_over(root):
    (root / ".partial-step00000009").mkdir()
    (root / "step9").mkdir()
    (root / "step0000000009").mkdir()
    (root / ("step" + 8 * "\u0661")).mkdir()
    (root / "step00000008").write_text("a file")
    (root / "step00000009.old").mkdir()
    assert [path.name for path in checkpoint.committed(root)] == ["step00000002", "step00000004"]


def limited_disk() -> None:
    """In a rank: no file may grow beyond 20 kB, as on a disk that is nearly full."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_full_disk_while_saving_is_exit_4(dataset_folder, tmp_path):
    models = make_models(tmp_path)
    argv = flags(config_file(tmp_path / "c.json"), dataset_folder, models, tmp_path / "run", "--max-steps", "1")
    code, output = run_ranks(1, train, argv, limited_disk)[0]
    assert code == 4, output
    assert "can't be written" in output
    assert "Traceback" not in output
    assert checkpoint.committed(tmp_path / "run" / "checkpoints") == []


def save_to_a_full_disk(folder: str) -> str:
    """In a rank: a save into a folder that can't be written."""
    from types import SimpleNamespace

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    module = torch.nn.Linear(2, 2)
    engine = SimpleNamespace(global_steps=7, module=module, zero_optimization_stage=lambda: 1)
    try:
        checkpoint.save(engine, Path(folder))
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_an_unwritable_folder_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "can't be written" in run_ranks(1, save_to_a_full_disk, str(tmp_path / "file" / "checkpoints"))[0]
