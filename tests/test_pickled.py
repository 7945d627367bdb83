"""data.pickled against Python's own unpickling: the same lists, and nothing else; no pickle runs anything here."""

import base64
import datetime
import itertools
import os
import pickle
import random
import tracemalloc
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import pickled
from launch.errors import DataError

# [np.uint16(line) for line in LINES] and [np.int32(line) ...] as numpy 1.26 on Python 3.11 pickled them, by protocol.
LINES = [[2, 3], [2, 5, 6, 3], [2, 7, 28, 8, 3], [2, 5, 39, 3]]
BY_NUMPY_1 = {
    ("uint16", 4): (
        "gASVBAEAAAAAAABdlCiMFW51bXB5LmNvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5lJOUSwCFlEMB"
        "YpSHlFKUKEsBSwKFlGgEjAVkdHlwZZSTlIwCdTKUiYiHlFKUKEsDjAE8lE5OTkr/////Sv////9LAHSUYolDBAIAAwCUdJRiaANoBksAhZRo"
        "CIeUUpQoSwFLBIWUaBCJQwgCAAUABgADAJR0lGJoA2gGSwCFlGgIh5RSlChLAUsFhZRoEIlDCgIABwAcAAgAAwCUdJRiaANoBksAhZRoCIeU"
        "UpQoSwFLBIWUaBCJQwgCAAUAJwADAJR0lGJlLg=="
    ),
    ("uint16", 5): (
        "gAWV4AAAAAAAAABdlCiMEm51bXB5LmNvcmUubnVtZXJpY5SMC19mcm9tYnVmZmVylJOUKJYEAAAAAAAAAAIAAwCUjAVudW1weZSMBWR0eXBl"
        "lJOUjAJ1MpSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiSwKFlIwBQ5R0lFKUaAMolggAAAAAAAAAAgAFAAYAAwCUaApLBIWUaA50"
        "lFKUaAMolgoAAAAAAAAAAgAHABwACAADAJRoCksFhZRoDnSUUpRoAyiWCAAAAAAAAAACAAUAJwADAJRoCksEhZRoDnSUUpRlLg=="
    ),
    ("int32", 5): (
        "gAWV/gAAAAAAAABdlCiMEm51bXB5LmNvcmUubnVtZXJpY5SMC19mcm9tYnVmZmVylJOUKJYIAAAAAAAAAAIAAAADAAAAlIwFbnVtcHmUjAVk"
        "dHlwZZSTlIwCaTSUiYiHlFKUKEsDjAE8lE5OTkr/////Sv////9LAHSUYksChZSMAUOUdJRSlGgDKJYQAAAAAAAAAAIAAAAFAAAABgAAAAMA"
        "AACUaApLBIWUaA50lFKUaAMolhQAAAAAAAAAAgAAAAcAAAAcAAAACAAAAAMAAACUaApLBYWUaA50lFKUaAMolhAAAAAAAAAAAgAAAAUAAAAn"
        "AAAAAwAAAJRoCksEhZRoDnSUUpRlLg=="
    ),
}


def read(path: Path) -> list[Any]:
    return [item for some, _ in pickled.items(path) for item in some]


def write(path: Path, content: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


def same(found: list[Any], expected: list[Any]) -> bool:
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.tolist() == b.tolist() for a, b in zip(found, expected, strict=True)
    )


def lines(count: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[2, *generator.choices(range(5, 44), k=generator.randint(0, 60)), 3] for _ in range(count)]


# --- what is read ---


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 3_001])
def test_the_originals_lists(tmp_path: Path, count: int, kind: type, protocol: int) -> None:
    """Python writes a list of one item by another opcode, and longer ones a thousand items at a time."""
    arrays = [kind(line) for line in lines(count)]
    assert same(read(write(tmp_path / "x", arrays, protocol)), arrays)


@pytest.mark.parametrize("key", BY_NUMPY_1)
def test_files_of_numpy_1(tmp_path: Path, key: tuple[str, int]) -> None:
    found = read(write(tmp_path / "x", base64.b64decode(BY_NUMPY_1[key])))
    assert same(found, [np.asarray(line, key[0]) for line in LINES])


def test_files_of_an_older_numpy(tmp_path: Path) -> None:
    """It wrote 0 and 1 where later ones write False and True."""
    content = base64.b64decode(BY_NUMPY_1["uint16", 4]).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    found = read(write(tmp_path / "x", content))
    assert same(found, [np.uint16(line) for line in LINES])


def test_pythons_own_pickler_without_c(tmp_path: Path) -> None:
    arrays = [np.uint16(line) for line in lines(1_500)]
    for protocol in (4, 5):
        with open(tmp_path / "x", "wb") as file:
            pickle._Pickler(file, protocol).dump(arrays)
        assert same(read(tmp_path / "x"), arrays)


@settings(deadline=None, max_examples=50)
@given(counts=st.lists(st.integers(0, 2**62), max_size=40))
def test_lists_of_integers(tmp_path_factory: pytest.TempPathFactory, counts: list[int]) -> None:
    path = tmp_path_factory.mktemp("counts") / "x"
    for protocol in (4, 5):
        assert read(write(path, counts, protocol)) == counts


def test_arrays_that_are_views_and_large_ones(tmp_path: Path) -> None:
    """Beyond 64 kB an item stands outside of the pickle's frames; a view takes another way through numpy."""
    base = np.arange(300_000, dtype=np.int32)
    arrays = [base, base[::3], base[5:9], base[:0]]
    for protocol in (4, 5):
        assert same(read(write(tmp_path / "x", arrays, protocol)), arrays)


def test_places_in_the_file(tmp_path: Path) -> None:
    """Items come in portions; where one ends, the next begins."""
    path = write(tmp_path / "x", [np.uint16(line) for line in lines(2_500)])
    portions = list(pickled.items(path))
    assert [len(some) for some, _ in portions] == [1000, 1000, 500]
    ends = [end for _, end in portions]
    assert sorted(ends) == ends
    assert ends[-1] == path.stat().st_size - 1  # STOP


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for protocol, count in itertools.product((4, 5), (2_000, 10_000)):
        path = write(tmp_path / "x", [np.uint16(line) for line in lines(count)], protocol)
        tracemalloc.start()
        assert sum(len(some) for some, _ in pickled.items(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[3] < 1.1 * peaks[2]


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_that_were_unpickled_one_by_one(tmp_path: Path, protocol: int) -> None:
    """Each has a type of its own, and the pickle may refer to all of them again."""
    arrays = [pickle.loads(pickle.dumps(np.uint16(line))) for line in lines(2_500)]
    assert len({id(array.dtype) for array in arrays}) == 2_500
    shared = [array[:2] for array in arrays]
    assert same(read(write(tmp_path / "x", arrays + shared, protocol)), arrays + shared)


# --- what is not ---


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.path),)


class State(Payload):
    """Makes the folder while its state is set."""

    def __reduce__(self) -> tuple:  # type: ignore[override]
        return OrderedDict, (), {"a": Payload(self.path)}


LINE = np.uint16([2, 5, 3])
HIDING = {
    "alone": lambda payload: payload,
    "first": lambda payload: [payload, LINE],
    "last": lambda payload: [LINE, payload],
    "after a thousand": lambda payload: [LINE + np.uint16(i) for i in range(1_001)] + [payload],
    "in a tuple": lambda payload: [LINE, (payload,)],
    "in a list": lambda payload: [[payload]],
    "in an array": lambda payload: [np.array([payload, 1], dtype=object)],
    "in an array alone": lambda payload: np.array([payload], dtype=object),
    "in a dictionary": lambda payload: {"a": payload},
    "among counts": lambda payload: [1, 2, payload],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [Payload, State])
@pytest.mark.parametrize("place", HIDING)
def test_payloads_never_run(tmp_path: Path, place: str, kind: type, protocol: int) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "x", HIDING[place](kind(marker)), protocol)
    with pytest.raises(DataError, match=r"x, byte [\d,]+: .*Nothing of the file was run"):
        read(path)
    assert not marker.exists()
    with open(path, "rb") as file:
        pickle.load(file)
    assert marker.exists(), "it was there to run"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy.core.numeric", "eval"),
        ("numpy", "dtype.x"),
    ],
)
def test_names_by_hand(tmp_path: Path, module: str, name: str) -> None:
    """Opcodes that no Python writes, but its unpickler would follow."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    named = rf"names? {module}\.{name}".replace("names?", "name")
    path = write(tmp_path / "x", b"\x80\x04]\x94(" + words + b"\x93\x8c\x01a\x85Re.")
    with pytest.raises(DataError, match=rf"{named}.*Nothing of the file was run"):
        read(path)
    by_line = f"c{module}\n{name}\n".encode()  # protocol 0
    with pytest.raises(DataError, match="opcode b'c'"):
        read(write(tmp_path / "y", b"\x80\x04](" + by_line + b"(S'a'\ntRe."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, r"opcode b'}'"),
        (np.uint16([1, 2]), "no list"),
        (3, "no list"),
        ([[1, 2], [3]], "a list within the list"),
        ([np.zeros(2)], r"dtype\('f8', False, True\)"),
        ([np.zeros((2, 2), np.uint16)], r"\(2, 2\)"),
        ([np.array(["a"])], r"dtype\('U1'"),
        ([np.uint16(3)], r"the name numpy\._core\.multiarray\.scalar"),
        ([1.5], r"opcode b'G'"),
        ([LINE] * 2, "an item that is in the list twice"),
        (Counter("abc"), r"the name collections\.Counter"),
        ([datetime.date(2020, 1, 1)], r"the name datetime\.date"),
        ([np.zeros(2, ">u2")], "with the state"),
    ],
)
def test_other_pickles(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"x, byte [\d,]+: .*{message}"):
        read(write(tmp_path / "x", content))


def test_what_is_no_pickle(tmp_path: Path) -> None:
    for content in (b"", b"text, and more of it\n", bytes(100), b"\x80\x05.", b"]", b"\x80\x05]\x94.more"):
        with pytest.raises(DataError, match=r"x, byte|x: the pickle ends at byte|x: ends after"):
            read(write(tmp_path / "x", content))


WORD = b"\x8c\x01a"
ARRAY = pickle.dumps([np.uint16([2, 3])], protocol=4)[13:-2]  # without frame, list and end
HOSTILE = {
    "a tuple that nests deep, as an argument": b"\x8c\x05numpy\x8c\x05dtype\x93N" + b"\x85" * 5_000 + b"R.",
    "as a state": b"NN" + b"\x85" * 5_000 + b"b.",
    "as a name": WORD + b"N" + b"\x85" * 90_000 + b"\x93.",
    "and on": b"N" + b"\x85" * 2_000_000,
    "one word, kept over and over": WORD + b"\x94" * 2_000_000,
    "within arrays": (ARRAY.replace(b"<", b"<" + b"\x94" * 9_000) + b"a") * 300,
    "values that go nowhere": b"N" * 2_000_000,
    "tuples that do not end": b"(" * 2_000_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(tmp_path: Path, kind: str) -> None:
    """Each is refused in little memory, whatever Python's own machine would take for it."""
    path = write(tmp_path / "x", b"\x80\x04]\x94" + HOSTILE[kind])
    tracemalloc.start()
    with pytest.raises(DataError, match="x, byte") as error:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
    assert len(str(error.value)) < 500


def test_long_bytes_are_not_repeated_in_a_message(tmp_path: Path) -> None:
    path = write(tmp_path / "x", b"\x80\x04]\x94NB" + (10_000_000).to_bytes(4, "little") + bytes(10_000_000) + b"b.")
    tracemalloc.start()
    with pytest.raises(DataError, match=r"None with the state b'(\\x00)+'; read here"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 15e6
    tracemalloc.stop()


def test_cut_off_at_any_byte(tmp_path: Path) -> None:
    for protocol in (4, 5):
        whole = pickle.dumps([np.uint16(line) for line in lines(5)], protocol=protocol)
        for size in range(len(whole)):
            with pytest.raises(DataError, match=f"x: ends after {size} bytes within the list: truncated"):
                read(write(tmp_path / "x", whole[:size]))


@pytest.mark.parametrize("protocol", [4, 5])
def test_flipped_bits_raise_nothing_else(tmp_path: Path, protocol: int) -> None:
    """A flip is seen, or changes ids or a number of a frame, or hits what decides nothing; whatever happens is a
    DataError, and no length is believed that the file can't hold."""
    arrays = [np.uint16(line) for line in lines(4)]
    whole, seen = pickle.dumps(arrays, protocol=protocol), 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        try:
            read(write(tmp_path / "x", bytes(flipped)))
        except DataError:
            seen += 1
    assert seen > len(whole) / 4
