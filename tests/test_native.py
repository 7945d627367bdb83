"""C++ operations are built once a content, and their absence has a reason."""

import multiprocessing
import stat
from pathlib import Path

import pytest

from launch import native

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DILBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "answer.cpp").write_text(SOURCE)
    return tmp_path / "answer.cpp"


@pytest.fixture(autouse=True)
def forget():
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def libraries(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*.so"))


def test_built_once_and_again_when_the_source_changes(source: Path, tmp_path: Path, monkeypatch) -> None:
    assert native.load(source).answer() == 42
    (first,) = libraries(tmp_path)
    native.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(native, "_build", lambda *_: pytest.fail("built again"))
        native.load(source)
    source.write_text(SOURCE.replace("42", "43"))
    native.load.cache_clear()
    assert native.load(source).answer() == 43
    assert len(libraries(tmp_path)) == 2
    assert first in libraries(tmp_path)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".so"] == []


def test_another_processor_gets_a_library_of_its_own(source: Path, tmp_path: Path, monkeypatch) -> None:
    native.load(source)
    native.load.cache_clear()
    monkeypatch.setattr(native, "_processor", lambda: "another")
    native.load(source)
    assert len(libraries(tmp_path)) == 2


def build(source: str) -> int:
    return native.load(Path(source)).answer()


def test_many_processes_at_once(source: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(build, [str(source)] * 3) == [42] * 3
    assert len(libraries(tmp_path)) == 1


def test_why_there_is_none(source: Path, tmp_path: Path, monkeypatch) -> None:
    source.write_text("this is no C++\n")
    with pytest.raises(native.Unavailable, match=r"refuses answer\.cpp: .*error"):
        native.load(source)
    source.write_text(SOURCE)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(native.Unavailable, match=r"no C\+\+ compiler"):
            native.load(source)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DILBERT_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.Unavailable, match="can't be written"):
        native.load(source)
    with monkeypatch.context() as patch:
        for name in ("DILBERT_CACHE", "XDG_CACHE_HOME"):
            patch.delenv(name, raising=False)
        patch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        with pytest.raises(native.Unavailable, match="set DILBERT_CACHE"):
            native.load(source)
    monkeypatch.setenv("DILBERT_NATIVE", "0")
    with pytest.raises(native.Unavailable, match="DILBERT_NATIVE=0"):
        native.load(source)


def test_the_compiler_of_the_environment_comes_first(source: Path, tmp_path: Path, monkeypatch) -> None:
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(native.Unavailable, match="my-compiler"):
        native.load(source)


def test_a_damaged_library_is_a_reason_too(source: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(native, "_build", lambda _compiler, _source, library: library.write_bytes(b"nothing"))
    with pytest.raises(native.Unavailable, match="can't be loaded"):
        native.load(source)
