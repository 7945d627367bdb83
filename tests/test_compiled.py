"""data.compiled: what is handed to C++, and what happens where there is none. Its results: beside each numpy form."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data import compiled
from launch import native

SOURCES = sorted(Path(compiled.__file__).parent.glob("*.cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_compiler_warning(source: Path) -> None:
    words = [native._compiler(), *native.FLAGS, "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_product_and_a_sum_are_two_roundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 + 2^-30)^2 - 1 - 2^-29 is 2^-60, which the rounded product has lost; contracted, it would be there."""
    monkeypatch.setenv("DILBERT_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "contraction.cpp"
    source.write_text('extern "C" double product_and_sum(double a, double b, double c) { return a * b + c; }\n')
    function = native.load(source).product_and_sum
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    a, c = 1 + 2.0**-30, -1 - 2.0**-29
    assert function(a, a, c) == a * a + c == 0.0


def test_without_a_compiler_the_log_says_so_once(monkeypatch, caplog) -> None:
    def load(source: Path) -> None:
        raise native.Unavailable("no C++ compiler (g++) on this machine")

    monkeypatch.setattr(native, "load", load)
    compiled.operations.cache_clear()
    try:
        assert compiled.operations("stream") is None
        assert compiled.operations("stream") is None
    finally:
        compiled.operations.cache_clear()
    assert caplog.messages == ["data.stream runs in numpy, several times slower: no C++ compiler (g++) on this machine"]


@pytest.mark.parametrize("wrong", [np.zeros(4, np.int32), np.zeros(8, np.int64)[::2], np.zeros(4, np.uint64)])
def test_an_array_that_cpp_would_misread_is_refused(wrong: np.ndarray) -> None:
    operations = compiled.operations("stream")
    assert operations
    right = np.zeros(4, np.int64)
    operations("deal", right, right, 1, 1, right)
    with pytest.raises(AssertionError):
        operations("deal", right, wrong, 1, 1, right)
