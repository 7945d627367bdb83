"""The progress bar of everything that takes longer than a few seconds."""

import sys

from tqdm import tqdm


def bar(total: int | None, unit: str, title: str) -> tqdm:
    """Amount, rate and time left, on standard error: live on a terminal, a line every half minute in a log file.

    Args:
        unit: " steps", " batches", with a space: counted in whole numbers; "B", "tok": in thousands, millions ...
    """
    live = sys.stderr.isatty()
    scaled = not unit.startswith(" ")
    interval = 0.2 if live else 30.0
    return tqdm(total=total, unit=unit, unit_scale=scaled, desc=title, mininterval=interval, delay=0 if live else 30)
