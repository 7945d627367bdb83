"""The C++ forms of this room's inner loops: `stream.cpp` and `gather.cpp`, built at first use.

Each operation has its numpy form beside its call, in the module that needs it: the reference for tests, and what runs
where there is no compiler. Which of the two runs changes nothing but the time.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from launch import native

# Arguments by letter: numbers of 64 bits, and arrays by what they hold; "*" is an array of rows or of unknown width.
_NUMBERS: dict[str, Any] = {"i": ctypes.c_int64, "u": ctypes.c_uint64}
_ARRAYS = {"I": np.dtype(np.int64), "U": np.dtype(np.uint64), "D": np.dtype(np.float64), "H": np.dtype(np.uint16)}
_ARGUMENTS = {
    "stream": {"permute": "UUiuuui", "deal": "IIiiI", "mask": "IIiUID*III", "positions": "IiI"},
    "gather": {"extents": "*IiIiIII", "ids": "*IIIiI", "count": "HiI"},
}


class Operations:
    """The operations of one C++ file, by name."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            native.Unavailable: no compiler, or `DILBERT_NATIVE=0`.
        """
        library = native.load(Path(__file__).with_name(f"{name}.cpp"))
        self.functions = {}
        for operation, letters in _ARGUMENTS[name].items():
            function = getattr(library, f"{name}_{operation}")
            function.argtypes = [_NUMBERS.get(letter, ctypes.c_void_p) for letter in letters]
            function.restype = ctypes.c_int64
            self.functions[operation] = letters, function

    def __call__(self, operation: str, *arguments: Any) -> int:
        """Run an operation, without Python's lock; the number that it returns, if it does.

        Arrays must be contiguous, and of the type that it takes.
        """
        letters, function = self.functions[operation]
        return function(*map(_passed, letters, arguments))


def _passed(letter: str, argument: Any) -> Any:
    """A number as it is, an array by its address."""
    if letter in _NUMBERS:
        return argument
    assert argument.flags.c_contiguous and argument.dtype == _ARRAYS.get(letter, argument.dtype)
    return argument.ctypes.data


@functools.cache
def operations(name: str) -> Operations | None:
    """The operations of `data/NAME.cpp`; None where they can't be had, and why goes to the log."""
    try:
        return Operations(name)
    except native.Unavailable as reason:
        logging.getLogger(__name__).warning("data.%s runs in numpy, several times slower: %s", name, reason)
        return None
