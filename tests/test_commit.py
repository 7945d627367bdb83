"""Files and folders that appear only when complete."""

import pytest

from launch import commit
from launch.errors import ConfigError


def test_write_replaces_whole(tmp_path):
    path = tmp_path / "a.txt"
    commit.write_text(path, "é1")
    commit.write_text(path, "2")
    assert path.read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_appears_at_the_end(tmp_path):
    with commit.folder(tmp_path / "new") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(error, tmp_path):
    def fail() -> None:
        with commit.folder(tmp_path / "new") as partial:
            (partial / "x").write_text("1")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_behind_is_replaced(tmp_path):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "old").write_text("1")
    with commit.folder(tmp_path / "new") as partial:
        (partial / "x").write_text("2")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x"]


def test_existing_output_is_refused_and_left_alone(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError, match="exists already"), commit.folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be made"), commit.folder(tmp_path / "file" / "new"):
        pass
