"""Lists of integer arrays, or of integers, out of a pickle: piece by piece, and nothing of the pickle is ever run.

Python writes such a list with a few of its opcodes (protocols 4 and 5), and numpy 1 and 2 under a few names. A machine
that knows nothing else reads it: a name is looked up in a table, never imported, and only four of them mean anything.
What was handed out is forgotten, so that memory does not grow with the file; what would make it grow is refused.
"""

import pickle
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launch.errors import DataError

INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


class Name(str):
    """What stands for a function or class that a pickle names."""


_DTYPE, _NDARRAY, _BUFFER, _EMPTY = map(Name, ("dtype", "ndarray", "_frombuffer", "_reconstruct"))
_NAMES = {("numpy", "dtype"): _DTYPE, ("numpy", "ndarray"): _NDARRAY} | {
    (f"numpy.{core}.{module}", name): name
    for core in ("core", "_core")  # of numpy 1 and 2
    for module, name in (("numeric", _BUFFER), ("multiarray", _EMPTY))
}
_RECALLED = (str, np.dtype)  # and single bytes, which Python has once each
_LIST = object()  # the list itself: its items are handed out, not kept
_UNFILLED = object()  # an array whose state is still to come
_STEPS = 100_000  # of the machine, before it hands items out; Python hands out a thousand, of 50 steps at most each
_BYTES_PER_RECALLED = 24  # an array with a type of its own, as unpickled ones have, is longer, and brings one or two


class _Unlike(Exception):
    """The pickle holds something else than what is read here."""


def items(path: Path) -> Iterator[tuple[list[Any], int]]:
    """The items of a pickled list, about a thousand at a time, in their order.

    Returns:
        Integer arrays [n], integers, or what else can be said without a name; and where in the file they end, in bytes.

    Raises:
        DataError: truncated, damaged, or something else than such a list; the place in the file is named.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        machine = _Machine(file.read, size)
        try:
            for some in machine.items():
                yield some, file.tell()
        except _Unlike as error:
            raise DataError(f"{path}, byte {file.tell():,}: {error}; read here: a list as the original writes it, of "
                            "integer arrays or of integers. Nothing of the file was run") from error  # fmt: skip
        except EOFError as error:
            raise DataError(f"{path}: ends after {size:,} bytes within the list: truncated, or no pickle") from error
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, byte {file.tell():,} of {size:,}: damaged, or no pickle") from error
        if file.tell() < size:
            raise DataError(f"{path}: the pickle ends at byte {file.tell():,} of {size:,}: something else follows")


class _Machine:
    """The part of Python's unpickling machine that such a list needs.

    Attributes:
        stack: values that were read, and not yet put into another one.
        marks: where on the stack a tuple, or the next items of the list, begin.
        memo: values that the pickle may refer to again, by number.
        memoized: numbers given so far, also to values that are not kept.
    """

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self.read, self.size = read, size
        self.stack: list[Any] = []
        self.push = self.stack.append
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.memoized = 0
        self.ready: list[Any] = []

    def items(self) -> Iterator[list[Any]]:
        """Run to the end."""
        while self.advance():
            yield self.ready
            self.ready = []
        if not self.has_only_the_list():
            raise _Unlike("no list")

    def advance(self) -> bool:
        """Run until items are there; False: to the end."""
        for _ in range(_STEPS):
            if (code := self.read(1)) == pickle.STOP:
                return False
            if not code:
                raise EOFError
            if code not in _OPERATIONS:
                raise _Unlike(f"opcode {code!r}")
            _OPERATIONS[code](self)
            if self.ready:
                return True
        raise _Unlike(f"{_STEPS:,} opcodes without an item of the list")

    def has_only_the_list(self) -> bool:
        return len(self.stack) == 1 and self.stack[0] is _LIST

    def number(self, width: int, signed: bool = False) -> int:
        digits = self.read(width)
        if len(digits) < width:
            raise EOFError
        return int.from_bytes(digits, "little", signed=signed)

    def content(self, width: int) -> bytes:
        """As many bytes as the number before them says; a damaged one must not take memory."""
        count = self.number(width)
        if count > self.size or len(content := self.read(count)) < count:
            raise EOFError
        return content

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        return self.last(len(self.stack) - self.marks.pop())

    def last(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self.stack):
            raise IndexError
        cut = len(self.stack) - count
        values = self.stack[cut:]
        del self.stack[cut:]
        return values

    def begin(self) -> None:
        if self.stack or self.memoized:
            raise _Unlike("a list within the list")
        self.push(_LIST)

    def extend(self, values: list[Any]) -> None:
        if not self.has_only_the_list():
            raise _Unlike("items of something else than the list")
        self.ready = values

    def memoize(self) -> None:
        """Only what is small and comes again is kept: names, types, letters."""
        value = self.stack[-1]
        if isinstance(value, _RECALLED) or (isinstance(value, bytes) and len(value) == 1):
            self.memo[self.memoized] = value
            if len(self.memo) > _STEPS + self.size // _BYTES_PER_RECALLED:
                raise _Unlike(f"{len(self.memo):,} values to come again")
        self.memoized += 1

    def recall(self, number: int) -> None:
        if number not in self.memo and number < self.memoized:
            raise _Unlike("an item that is in the list twice")
        self.push(self.memo[number])

    def name(self) -> None:
        module, name = self.last(2)
        whole = ".".join((module, name))  # TypeError: no words; a hash would go as deep as they nest
        if (module, name) not in _NAMES:
            raise _Unlike(f"the name {whole}")
        self.push(_NAMES[module, name])

    def call(self) -> None:
        """The three calls by which numpy writes types and arrays."""
        match self.last(2):
            case [Name("_frombuffer"), (content, dtype, (int(length),), "C")]:
                self.push(_array(content, dtype, length))
            case [Name("_reconstruct"), (Name("ndarray"), (0,), b"b")]:
                self.push(_UNFILLED)  # its state follows
            case [Name("dtype"), (str(kind), 0, 1)] if kind in INTEGERS:
                self.push(np.dtype(f"<{kind}"))  # its state, which follows, says nothing else
            case [name, arguments]:
                raise _Unlike(f"{said(name)}{said(arguments)}")

    def fill(self) -> None:
        """Give a type or an array its state."""
        match self.last(2):
            case [value, (1, (int(length),), dtype, 0, content)] if value is _UNFILLED:
                self.push(_array(content, dtype, length))
            case [np.dtype() as dtype, (3, "<" | "|", None, None, None, -1, -1, 0)]:
                self.push(dtype)
            case [value, state]:
                raise _Unlike(f"{said(value)} with the state {said(state)}")


class _Short(reprlib.Repr):
    """Says what was found, however deep it nests; bytes may be as many as the file has."""

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value[: self.maxstring])

    def repr_Name(self, value: Name, level: int) -> str:
        return value


said = _Short().repr  # a value, in few characters


def _array(content: bytes, dtype: np.dtype, length: int) -> np.ndarray:
    if len(content) != length * dtype.itemsize:
        raise ValueError
    return np.frombuffer(content, dtype)


_OPERATIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda machine: machine.read(1),
    pickle.FRAME: lambda machine: machine.read(8),  # how much to read at once
    pickle.NONE: lambda machine: machine.push(None),
    pickle.NEWTRUE: lambda machine: machine.push(True),
    pickle.NEWFALSE: lambda machine: machine.push(False),
    pickle.BININT: lambda machine: machine.push(machine.number(4, signed=True)),
    pickle.BININT1: lambda machine: machine.push(machine.number(1)),
    pickle.BININT2: lambda machine: machine.push(machine.number(2)),
    pickle.LONG1: lambda machine: machine.push(machine.number(machine.number(1), signed=True)),
    pickle.SHORT_BINUNICODE: lambda machine: machine.push(machine.content(1).decode()),
    pickle.SHORT_BINBYTES: lambda machine: machine.push(machine.content(1)),
    pickle.BINBYTES: lambda machine: machine.push(machine.content(4)),
    pickle.BINBYTES8: lambda machine: machine.push(machine.content(8)),
    pickle.BYTEARRAY8: lambda machine: machine.push(machine.content(8)),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda machine: machine.push(tuple(machine.since_mark())),
    pickle.TUPLE1: lambda machine: machine.push(tuple(machine.last(1))),
    pickle.TUPLE2: lambda machine: machine.push(tuple(machine.last(2))),
    pickle.TUPLE3: lambda machine: machine.push(tuple(machine.last(3))),
    pickle.EMPTY_LIST: _Machine.begin,
    pickle.APPEND: lambda machine: machine.extend(machine.last(1)),
    pickle.APPENDS: lambda machine: machine.extend(machine.since_mark()),
    pickle.MEMOIZE: _Machine.memoize,
    pickle.BINGET: lambda machine: machine.recall(machine.number(1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(4)),
    pickle.STACK_GLOBAL: _Machine.name,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.fill,
}
