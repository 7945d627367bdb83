"""One operation a file, its eager reference beside it, and one dispatch rule for all of them.

`DILBERT_KERNELS=auto` (the default) takes the fastest form for the device; `reference` takes the plain formulas
everywhere. Read once, at the first use.
"""

import functools
import os

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
