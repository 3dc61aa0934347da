"""Charts as SVG strings: pure functions from numbers to markup.

Colours are CSS classes (`fused`, `text`, `image`, `m0` … `m5`), not values, so that the page decides them once for
light, dark and print. Coordinates are rounded to a tenth of a pixel, which keeps a page of curves small.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise


@dataclass(frozen=True)
class Bar:
    """One bar: its CSS class, the short name under it, its height, and what to mark on it."""

    css: str
    label: str
    value: float
    sd: float | None = None
    reference: float | None = None
    """Drawn as a line across the bar: where training started."""


@dataclass(frozen=True)
class Group:
    """Bars that stand together under one name."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Series:
    """One curve: x and y of equal length; `faint` for further seeds of a method already named."""

    css: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


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


def bars(title: str, groups: Sequence[Group], chance: float | None = None) -> str:
    """Grouped bars with error bars, a line across each bar at its reference, and a dashed line at chance.

    Returns an empty string if there is nothing to draw.
    """
    shown = [group for group in groups if group.bars]
    if not shown:
        return ""
    tops = [max(bar.value + (bar.sd or 0), bar.reference or 0) for group in shown for bar in group.bars]
    marks = ticks(0, max([*tops, chance or 0, 1e-9]))
    bar_width, inner, gap, left, base, height = 38, 8, 44, 46, 232, 196
    top = marks[-1]
    widths = [max(len(group.bars) * (bar_width + inner) - inner, _name_width(group)) for group in shown]
    right = left + gap // 2 + sum(widths) + gap * len(shown) - gap // 2

    def y(value: float) -> float:
        return round(base - value / top * height, 1)

    parts = [_grid_line(left, right, y(mark), _tick_text(mark, marks)) for mark in marks]
    x: float = left + gap // 2
    for group, width in zip(shown, widths, strict=True):
        name, details = _name(group)
        parts.append(_text(x + width / 2, base + 38, name, "name", "middle"))
        parts.append(_text(x + width / 2, base + 53, details, "note", "middle") if details else "")
        start = x + (width - len(group.bars) * (bar_width + inner) + inner) / 2
        for place, bar in enumerate(group.bars):
            parts.append(_bar(bar, start + place * (bar_width + inner), bar_width, y, base))
        x += width + gap
    if chance is not None:
        parts.append(f'<line class="chance" x1="{left}" x2="{right}" y1="{y(chance)}" y2="{y(chance)}"/>')
        parts.append(_text(right + 6, y(chance) + 4, "chance", "note"))
    return _svg(title, right + 48, base + 60, parts)


def _name(group: Group) -> tuple[str, str]:
    """A label's name, and what stands in brackets behind it, which goes on a line of its own."""
    name, bracket, details = group.label.partition(" (")
    return name, details.removesuffix(")") if bracket else ""


def _name_width(group: Group) -> float:
    name, details = _name(group)
    return round(max(7.4 * len(name), 5.4 * len(details)))


def _bar(bar: Bar, x: float, width: float, y: Callable[[float], float], base: float) -> str:
    middle, edge = x + width / 2, y(bar.value)
    parts = [f'<rect class="{bar.css}" x="{x}" y="{edge}" width="{width}" height="{max(0.0, round(base - edge, 1))}"/>']
    highest = edge
    if bar.sd is not None:
        up, down = y(bar.value + bar.sd), y(max(0.0, bar.value - bar.sd))
        highest = min(highest, up)
        parts.append(f'<path class="whisker" d="M{middle - 4} {up}h8M{middle} {up}V{down}M{middle - 4} {down}h8"/>')
    if bar.reference is not None:
        line = y(bar.reference)
        highest = min(highest, line)
        parts.append(f'<line class="reference" x1="{x - 4}" x2="{x + width + 4}" y1="{line}" y2="{line}"/>')
    parts.append(_text(middle, highest - 6, number(bar.value), "value", "middle"))
    parts.append(_text(middle, base + 16, bar.label, "tick", "middle"))
    return "".join(parts)


def lines(title: str, series: Sequence[Series], x_label: str = "step") -> str:
    """Curves over a common x axis, with a legend. Points that are not finite are left out.

    Returns an empty string if no series has two points.
    """
    shown = [kept for one in series if len((kept := _finite(one)).x) > 1]
    if not shown:
        return ""
    low_x, high_x = min(min(one.x) for one in shown), max(max(one.x) for one in shown)
    low, high = min(min(one.y) for one in shown), max(max(one.y) for one in shown)
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    marks = ticks(low, high)
    left, right = 52, 352
    legend, rows = _legend([one for one in shown if not one.faint], right)
    top = 34 + 16 * rows
    base = top + 146

    def x(value: float) -> float:
        return round(left + (value - low_x) / (high_x - low_x or 1) * (right - left), 1)

    def y(value: float) -> float:
        return round(base - (value - marks[0]) / (marks[-1] - marks[0]) * (base - top), 1)

    parts = [_text(0, 14, title, "title")]
    parts += [_grid_line(left, right, y(mark), _tick_text(mark, marks)) for mark in marks]
    steps = [mark for mark in ticks(low_x, high_x) if low_x <= mark <= high_x]
    parts += [_text(x(mark), base + 16, f"{mark:g}", "tick", "middle") for mark in steps]
    parts.append(_text(right, base + 32, x_label, "note", "end"))
    for one in sorted(shown, key=lambda one: not one.faint):
        path = "L".join(f"{x(a)} {y(b)}" for a, b in zip(one.x, one.y, strict=True))
        parts.append(f'<path class="curve {one.css}{" faint" if one.faint else ""}" d="M{path}"/>')
    parts.append(legend)
    return _svg(title, right + 8, base + 40, parts)


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


def _finite(series: Series) -> Series:
    kept = [(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return Series(series.css, series.label, [a for a, _ in kept], [b for _, b in kept], series.faint)


def _legend(series: Sequence[Series], width: float) -> tuple[str, int]:
    """Markup from y = 20 down, and how many rows of 16 it takes."""
    parts, x, row = [], 0.0, 0
    for one in series:
        needed = 33 + 6.2 * len(one.label)
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        y = 30 + 16 * row
        parts.append(f'<line class="curve {one.css}" x1="{x:g}" x2="{x + 14:g}" y1="{y}" y2="{y}"/>')
        parts.append(_text(x + 19, y + 4, one.label, "tick"))
        x += needed
    return "".join(parts), row + 1


def _grid_line(left: float, right: float, y: float, label: str) -> str:
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
    return line + _text(left - 8, y + 4, label, "tick", "end")


def _tick_text(mark: float, marks: Sequence[float]) -> str:
    """As many decimals as the distance between ticks needs."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-9:  # 2.5, .25, …
        digits += 1
    return number(mark, digits) if mark else "0"


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{round(y, 1):g}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}" style="max-width:{width * 1.25:g}px">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )
