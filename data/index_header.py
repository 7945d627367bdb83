"""The header of an `.idx` file, and the type of the ids in its `.bin`.

Megatron-Core, Megatron-LM, Megatron-DeepSpeed and DeepSpeed itself write the same layout under the same magic, but mean
different types by three of its codes. The sizes of the two files tell which.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # what Megatron-Core means, and we write

# Codes that mean different types, and to whom. DeepSpeed: runtime/data_pipeline/data_sampling/indexed_dataset.py.
# Megatron's floats had either size in one version or another.
AMBIGUOUS = {
    6: {"<u2": "DeepSpeed", "<f4": "Megatron", "<f8": "Megatron"},
    7: {"<u4": "DeepSpeed", "<f4": "Megatron", "<f8": "Megatron"},
    8: {"<u2": "Megatron", "<u8": "DeepSpeed"},
}


@dataclass(frozen=True)
class Header:
    """What the first 34 bytes say.

    Attributes:
        ends: number of document ends, the 0 that stands first included.
    """

    code: int
    sequences: int
    ends: int

    @property
    def cuts(self) -> tuple[int, int, int, int]:
        """Where lengths, pointers and document ends begin, and where the last of these ends: bytes into the file."""
        pointers = HEADER.size + 4 * self.sequences
        ends = pointers + 8 * self.sequences
        return HEADER.size, pointers, ends, ends + 8 * self.ends


def pack_header(dtype: np.dtype, sequences: int, ends: int) -> bytes:
    """The header of an index, as Megatron-Core writes it."""
    code = next(code for code, name in DTYPE_CODES.items() if np.dtype(name) == dtype)
    return HEADER.pack(MAGIC, 1, code, sequences, ends)


def read_header(path: Path) -> Header:
    """The header of an index, whose size it must explain exactly.

    Raises:
        DataError: missing, truncated, damaged, or of a kind that is not read here, with the kind's name.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            content = file.read(HEADER.size)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if content.startswith(b"TNTIDX"):
        raise DataError(f"{path}: a TNTIDX index (fairseq's and old Megatron's 'lazy' or 'cached' data): not read here")
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise DataError(f"{path}: not an MMIDIDX index (Megatron-Core's layout)")
    _, version, code, sequences, ends = HEADER.unpack(content)
    header = Header(code, sequences, ends)
    if version == 1:
        _check_size(path, size, header)
    if version != 1 or code not in DTYPE_CODES | AMBIGUOUS:
        raise DataError(f"{path}: version {version}, dtype code {code}; this reads version 1 and integer ids")
    return header


def _check_size(path: Path, size: int, header: Header) -> None:
    expected, sequences = header.cuts[-1], header.sequences
    if size == expected and header.ends:
        return
    if sequences and size == expected + sequences:
        raise DataError(
            f"{path}: has a byte more for each sequence: modes of Megatron's multimodal data, not read here"
        )
    if size == HEADER.size - 8 + 12 * sequences:
        raise DataError(f"{path}: has no document ends: fairseq's own MMIDIDX, not read here")
    raise DataError(f"{path}: has {size:,} bytes, its header says {expected:,}: truncated or damaged")


def dtype_of_ids(prefix: Path, size: int, code: int, pointer: int, length: int) -> np.dtype:
    """The type of the ids in `prefix.bin`, told in constant time by where the last sequence must end.

    Args:
        size: bytes of the `.bin`.
        code: the index's dtype code.
        pointer: where the last sequence begins, in bytes (0 if there is none).
        length: its tokens (0 if there is none).

    Returns:
        An integer type. DeepSpeed's uint64 is taken for int64, which Megatron has, too; an id beyond it is negative.

    Raises:
        DataError: the size fits no meaning of the code, or two, or one that is a float.
    """
    meanings = AMBIGUOUS.get(code) or {DTYPE_CODES[code]: "Megatron"}
    ends = {name: pointer + length * np.dtype(name).itemsize for name in meanings}
    fitting = {name: writer for name, writer in meanings.items() if ends[name] == size}
    if not fitting:
        expected = _either({f"{ends[name]:,}, as {_named(name)}": writer for name, writer in meanings.items()})
        raise DataError(
            f"{prefix}.bin: has {size:,} bytes, but its index ends at {expected}: truncated or not its pair"
        )
    if len(fitting) > 1 and size:
        both = _either({_named(name): writer for name, writer in fitting.items()})
        raise DataError(f"{prefix}.idx: dtype code {code} is {both}, and sizes don't tell: write its ids as int32")
    (name, writer), *_ = fitting.items()
    if name.startswith("<f"):
        raise DataError(f"{prefix}.idx: dtype code {code}: its ids are {_named(name)} ({writer}): no token ids")
    return np.dtype("<i8" if name == "<u8" else name)


def _named(name: str) -> str:
    return np.dtype(name).name


def _either(meanings: dict[str, str]) -> str:
    """`uint16 (Megatron) or uint64 (DeepSpeed)`."""
    return " or ".join(f"{meaning} ({writer})" for meaning, writer in meanings.items())
