"""One operation a file, its eager reference beside it, and one dispatch rule for all of them.

`DILBERT_KERNELS=auto` (the default) takes the fastest form for device and dtype; `reference` takes the plain formulas
everywhere. Read once, at the first use.
"""

import ctypes
import functools
import logging
import os
from pathlib import Path

from launch import native
from launch.errors import ConfigError

CHOICES = ("auto", "reference")


@functools.cache
def selected() -> str:
    """The choice that `DILBERT_KERNELS` makes for this process.

    Raises:
        ConfigError: the variable names none.
    """
    choice = os.environ.get("DILBERT_KERNELS", "auto")
    if choice not in CHOICES:
        raise ConfigError(f"DILBERT_KERNELS={choice}: must be one of {', '.join(CHOICES)}")
    return choice


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The row kernels of one C++ file beside this one; None, with a warning, where it can't be built."""
    # Contraction and the like change last bits only: unlike those of `data`, these operations fix no law.
    flags = ("-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
    try:
        return native.load(Path(__file__).with_name(f"{name}.cpp"), *flags)
    except native.Unavailable as reason:
        logging.getLogger(__name__).warning("torch's own operations stand in for %s.cpp: %s", name, reason)
        return None
