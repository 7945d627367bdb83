"""Plots as inline SVG, small enough to be read on a phone. Colours and dashes are the page's: classes s0, s1 ...

A series is a number: its colour, its dash and its mark on the whole page. Lengths are in SVG units, some 1 to a pixel.
"""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

WIDTH = 340
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22  # of the field within its plot
HEIGHT = 190
LABEL = 96  # width of a row's label
ROW = 24

SERIES = 11  # there are so many
DIAMOND, RING = 2, 3  # series with marks of their own; a ring leaves room for a dot

Points = tuple[Sequence[float], Sequence[float]]


def lines(title: str, curves: Sequence[tuple[int, Points]]) -> Markup:
    """Curves over the step.

    Args:
        curves: series, and its x and y; a curve of a single point is a dot.
    """
    xs, ys = ([value for _, points in curves for value in points[axis]] for axis in (0, 1))
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x = Scale(min(across[0], *xs), max(across[-1], *xs), LEFT, WIDTH - RIGHT)
    y = Scale(min(up[0], *ys), max(up[-1], *ys), HEIGHT - BOTTOM, TOP)
    parts = []
    for value in up:
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(_text(LEFT - 5, y(value) + 4, number(value), "end"))
    for value in across:
        half_cut_off = x(value) > WIDTH - 2 * RIGHT
        place, anchor = (WIDTH, "end") if half_cut_off else (x(value), "middle")
        parts.append(_text(place, HEIGHT - 6, number(value), anchor))
    for series, (steps, values) in curves:
        places = [(x(step), y(value)) for step, value in zip(steps, values, strict=True)]
        if len(places) == 1:
            parts.append(mark(series, *places[0]))
        else:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(series, path))
    return _svg(title, HEIGHT, parts)


def dots(title: str, rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> Markup:
    """Shares of a whole: a row for each label, a mark for each series, and a line where the whole is.

    Args:
        rows: label, and its (series, share).
    """
    values = [value for _, marks in rows for _, value in marks] + [1.0]
    across = ticks(min(values), max(values), most=5)
    x = Scale(min(across[0], *values), max(across[-1], *values), LABEL + 8, WIDTH - RIGHT - 8)
    bottom = TOP + ROW * len(rows)
    parts = [_line(x(value), TOP, x(value), bottom, "grid") for value in across]
    parts += [_text(x(value), bottom + 15, f"{number(100 * value)} %", "middle") for value in across]
    parts.append(_line(x(1.0), TOP, x(1.0), bottom, "whole"))
    for place, (label, marks) in enumerate(rows):
        middle = TOP + ROW * (place + 0.5)
        parts.append(_text(LABEL - 8, middle + 4, label, "end"))
        parts += [mark(series, x(value), middle) for series, value in marks]
    return _svg(title, bottom + BOTTOM, parts)


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[int, float, str]]]]) -> Markup:
    """Amounts from 0 on: a row for each label, a bar for each series.

    Args:
        rows: label, and its (series, amount, what stands beside the bar).
    """
    x = Scale(0.0, max(value for _, group in rows for _, value, _ in group), LABEL, WIDTH - 74)
    top, parts = float(TOP), []
    for label, group in rows:
        height = ROW * len(group) * 0.6
        parts.append(_text(LABEL - 8, top + height / 2 + 4, label, "end"))
        for place, (series, value, text) in enumerate(group):
            y = top + place * ROW * 0.6
            box = f'x="{LABEL}" y="{y:.1f}" width="{x(value) - LABEL:.1f}" height="{ROW * 0.6 - 2:.1f}"'
            parts += [Markup(f'<rect class="bar s{series}" {box}/>'), _text(x(value) + 5, y + 10, text, "start")]
        top += height + ROW * 0.4
    return _svg(title, top, parts)


class Scale:
    """From values to places, linearly."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.first = low, first
        self.slope = (last - first) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) * self.slope


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high: 2 at least, `most` at most where that can
    be."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    power = 10 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    if last == first:  # one round number within: its neighbours, too
        first, last = first - 1, last + 1
    return [place * step for place in range(first, last + 1)]


def number(value: float) -> str:
    """Short: 0.25, 120, 35k, 2M, 1.5G."""
    for unit, letter, least in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def mark(series: int, x: float, y: float) -> Markup:
    """What stands for a single value of a series."""
    if series == DIAMOND:
        shape = f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"'
    elif series > RING:
        shape = f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"'
    else:
        radius = 6.5 if series == RING else 4.5
        shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"'
    return Markup(f'{shape} class="mark s{series}"/>')


def key(series: int) -> Markup:
    """The mark of a series as a legend shows it."""
    return Markup('<svg class="key" viewBox="0 0 14 14" aria-hidden="true">{}</svg>').format(mark(series, 7, 7))


def _svg(title: str, height: float, parts: Iterable[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {:.0f}" role="img"><title>{}</title>').format(WIDTH, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
