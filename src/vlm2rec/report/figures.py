"""What charts show: bars in groups, curves, and how their numbers are written.

Colours are CSS classes (`fused`, `text`, `image`, `m0` … `m5`; see `palette`), not values, so that a page decides them
once for light, dark and print. `svg` draws for the page, `plots` into files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Bar:
    """One bar: its CSS class, the short name under it, its height, and what to mark on it."""

    css: str
    label: str
    value: float
    sd: float | None = None
    """Half the length of its whisker: a standard deviation, or half an interval."""
    reference: float | None = None
    """Drawn as a line across the bar: where training started."""
    unsure: bool = False
    """Rests on few users: drawn pale."""


@dataclass(frozen=True)
class Group:
    """Bars that stand together under one name."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Series:
    """One curve: x, y and, where there is one, the spread around it, of equal length.

    `faint` is for further seeds of a method already named.
    """

    css: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    sd: Sequence[float] | None = None


def number(value: float, digits: int = 3) -> str:
    """A figure without the leading zero: .218, −.031, 1.040."""
    text = f"{abs(value):.{digits}f}"
    shown = text[1:] if text.startswith("0.") else text
    return ("−" if value < 0 and float(text) != 0 else "") + shown


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high], about `wanted` of them: 1, 2, 2.5 or 5 times a power of ten apart."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def thin(x: Sequence[float], y: Sequence[float], points: int = 120) -> tuple[list[float], list[float]]:
    """Average a long curve over equal stretches, so that a page stays small and the noise does not hide the course."""
    if len(x) <= points:
        return list(x), list(y)
    edges = [round(index * len(x) / points) for index in range(points + 1)]
    stretches = list(pairwise(edges))
    return (
        [sum(x[a:b]) / (b - a) for a, b in stretches],
        [sum(y[a:b]) / (b - a) for a, b in stretches],
    )


def tick_text(mark: float, marks: Sequence[float]) -> str:
    """As many decimals as the distance between ticks needs."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-9:  # 2.5, .25, …
        digits += 1
    return number(mark, digits) if mark else "0"
