"""Charts as SVG strings for the page: pure functions from numbers to markup.

Coordinates are rounded to a tenth of a pixel, which keeps a page of curves small.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from vlm2rec.report.figures import Bar, Group, Series, number, tick_text, ticks


def bars(title: str, groups: Sequence[Group], chance: float | None = None, *, wide: int = 960) -> str:
    """Grouped bars with error bars, a line across each bar at its reference, and a dashed line at chance.

    What does not fit in a width of `wide` goes on in further rows, all to one scale. Bars whose names are too long to
    stand under them are named in a legend. Returns an empty string if there is nothing to draw.
    """
    shown = [group for group in groups if group.bars]
    if not shown:
        return ""
    listed = [bar for group in shown for bar in group.bars]
    marks = ticks(0, max([*(max(bar.value + (bar.sd or 0), bar.reference or 0) for bar in listed), chance or 0, 1e-9]))
    names = {bar.label: bar.css for bar in listed} if any(len(bar.label) > _FITS for bar in listed) else {}
    legend, lines_of_legend = _legend(list(names.items()), wide, "bar") if names else ("", 0)
    layout = _Layout.of(shown, wide)
    top: float = 8 + 16 * lines_of_legend + 18
    parts, right = [legend], 0.0
    for row in layout.rows(shown, wide):
        part, end = _row_of_bars(row, layout, marks, chance, top, not names)
        parts.append(part)
        right, top = max(right, end), top + _PANEL + 90
    return document(title, right + 48, top - 30, parts)


_FITS = 5
"""Letters of a name that fit under a bar."""
_PANEL = 190
"""Height of a chart of bars, without what stands above and below."""


@dataclass(frozen=True)
class _Layout:
    """Widths in pixels: of a bar, and of the gaps between bars and between groups."""

    bar: int
    inner: int
    gap: int

    @staticmethod
    def of(groups: Sequence[Group], wide: float) -> "_Layout":
        roomy, tight = _Layout(38, 8, 44), _Layout(27, 5, 30)
        return roomy if sum(map(roomy.width, groups)) <= wide else tight

    def width(self, group: Group) -> float:
        """Of a group with its gap."""
        return self.gap + max(len(group.bars) * (self.bar + self.inner) - self.inner, _name_width(group))

    def rows(self, groups: Sequence[Group], wide: float) -> Iterator[list[Group]]:
        row: list[Group] = []
        for group in groups:
            if row and sum(map(self.width, [*row, group])) > wide:
                yield row
                row = []
            row.append(group)
        yield row


def _row_of_bars(
    groups: Sequence[Group], layout: _Layout, marks: Sequence[float], chance: float | None, top: float, named: bool
) -> tuple[str, float]:
    """Markup of one row of groups, and its right edge."""
    left, base = 46, top + _PANEL
    right = left + sum(map(layout.width, groups))

    def y(value: float) -> float:
        return round(base - value / marks[-1] * _PANEL, 1)

    parts = [_grid_line(left, right, y(mark), tick_text(mark, marks)) for mark in marks]
    x: float = left
    for group in groups:
        middle = x + layout.width(group) / 2
        name, details = _name(group)
        below = base + (38 if named else 20)
        parts.append(_text(middle, below, name, "name", "middle"))
        parts.append(_text(middle, below + 15, details, "note", "middle") if details else "")
        pitch = layout.bar + layout.inner
        start = middle - (len(group.bars) * pitch - layout.inner) / 2
        parts += [_bar(bar, start + place * pitch, layout.bar, y, base, named) for place, bar in enumerate(group.bars)]
        x += layout.width(group)
    if chance is not None:
        parts.append(f'<line class="chance" x1="{left}" x2="{right:g}" y1="{y(chance)}" y2="{y(chance)}"/>')
        parts.append(_text(right + 6, y(chance) + 4, "chance", "note"))
    return "".join(parts), right


def _name(group: Group) -> tuple[str, str]:
    """A label's name, and what stands in brackets behind it, which goes on a line of its own."""
    name, bracket, details = group.label.partition(" (")
    return name, details.removesuffix(")") if bracket else ""


def _name_width(group: Group) -> float:
    name, details = _name(group)
    return round(max(7.4 * len(name), 5.4 * len(details)))


def _bar(bar: Bar, x: float, width: float, y: Callable[[float], float], base: float, named: bool) -> str:
    x = round(x, 1)
    middle, edge = x + width / 2, y(bar.value)
    tip = f"<title>{escape(bar.label)}: {number(bar.value)}</title>"
    height = max(0.0, round(base - edge, 1))
    css = f"{bar.css} unsure" if bar.unsure else bar.css
    parts = [f'<rect class="{css}" x="{x:g}" y="{edge}" width="{width}" height="{height}">{tip}</rect>']
    highest = edge
    if bar.sd is not None:
        up, down = y(bar.value + bar.sd), y(max(0.0, bar.value - bar.sd))
        highest = min(highest, up)
        parts.append(
            f'<path class="whisker" d="M{middle - 4:g} {up}h8M{middle:g} {up}V{down}M{middle - 4:g} {down}h8"/>'
        )
    if bar.reference is not None:
        line = y(bar.reference)
        highest = min(highest, line)
        ends = f'x1="{x - 3:g}" x2="{x + width + 3:g}" y1="{line}" y2="{line}"'
        parts.append(f'<line class="casing" {ends}/><line class="reference" {ends}/>')
    # Bold says that a figure counts: not one of few users, nor nothing.
    bold = not bar.unsure and number(bar.value) != ".000"
    parts.append(_text(middle, highest - 6, number(bar.value), "value" if bold else "tick", "middle"))
    parts.append(_text(middle, base + 16, bar.label, "tick", "middle") if named else "")
    return "".join(parts)


def lines(title: str, series: Sequence[Series], x_label: str = "step", *, log_x: bool = False) -> str:
    """Curves over a common x axis, with a legend. Points that are not finite are left out.

    `log_x`: steps of equal ratio are equally far apart, and 0 stands half a decade before the first of them. Few
    points are marked one by one. Returns an empty string if no series has two points.
    """
    shown = [kept for one in series if len((kept := _finite(one)).x) > 1]
    if not shown:
        return ""
    low, high = min(min(one.y) for one in shown), max(max(one.y) for one in shown)
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    marks = ticks(low, high)
    left, right = 52, 352
    legend, rows = _legend([(one.label, one.css) for one in shown if not one.faint], right, "curve")
    top = 34 + 16 * rows
    base = top + 146
    place, steps = _scale(sorted({value for one in shown for value in one.x}), log_x)

    def x(value: float) -> float:
        return round(left + place(value) * (right - left), 1)

    def y(value: float) -> float:
        return round(base - (value - marks[0]) / (marks[-1] - marks[0]) * (base - top), 1)

    parts = [_text(0, 14, title, "title")]
    parts += [_grid_line(left, right, y(mark), tick_text(mark, marks)) for mark in marks]
    parts += [_text(x(mark), base + 16, f"{mark:g}", "tick", "middle") for mark in steps]
    parts.append(_text(right, base + 32, x_label, "note", "end"))
    for one in sorted(shown, key=lambda one: not one.faint):
        path = "L".join(f"{x(a):g} {y(b):g}" for a, b in zip(one.x, one.y, strict=True))
        parts.append(f'<path class="curve {one.css}{" faint" if one.faint else ""}" d="M{path}"/>')
        if log_x and not one.faint:
            parts += [
                f'<circle class="{one.css}" cx="{x(a):g}" cy="{y(b):g}" r="2.4">'
                f"<title>{escape(one.label)}, {escape(x_label)} {a:g}: {number(b)}</title></circle>"
                for a, b in zip(one.x, one.y, strict=True)
            ]
    parts.append(legend)
    return document(title, right + 8, base + 40, parts)


def _scale(x: Sequence[float], log_x: bool) -> tuple[Callable[[float], float], list[float]]:
    """From ascending values to places in [0, 1], and what to write under the axis."""
    positive = [value for value in x if value > 0]
    if not log_x or not positive:
        low, span = x[0], (x[-1] - x[0]) or 1
        return lambda value: (value - low) / span, [mark for mark in ticks(x[0], x[-1]) if x[0] <= mark <= x[-1]]
    first, last = math.log10(positive[0]), math.log10(positive[-1])
    start = first - 0.5 if x[0] <= 0 else first
    span = (last - start) or 1

    def place(value: float) -> float:
        return (max(math.log10(value), start) - start) / span if value > 0 else 0.0

    decades = [10.0**power for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)]
    return place, [*([0.0] if x[0] <= 0 else []), *(decades if len(decades) > 1 else positive)]


def _finite(series: Series) -> Series:
    kept = [(a, b) for a, b in zip(series.x, series.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return Series(series.css, series.label, [a for a, _ in kept], [b for _, b in kept], series.faint)


def linked(
    title: str, text: Sequence[tuple[float, float]], image: Sequence[tuple[float, float]], names: Sequence[str]
) -> str:
    """Items in a plane, to one scale: a dot for each one's text and picture, a line between, its name on pointing.

    Returns an empty string if there is no item.
    """
    if not names:
        return ""
    size, edge = 330, 6
    xs, ys = zip(*text, *image, strict=True)
    scale = (size - 2 * edge) / (max(max(xs) - min(xs), max(ys) - min(ys)) or 1)
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = size / 2 + (point[0] - middle_x) * scale, 24 + size / 2 - (point[1] - middle_y) * scale
        return round(x, 1), round(y, 1)

    parts = [_text(0, 14, title, "title")]
    for name, (a, b), (c, d) in zip(names, map(at, text), map(at, image), strict=True):
        dots = (("text", a, b), ("image", c, d))
        marks = "".join(f'<circle class="{css}" cx="{x:g}" cy="{y:g}" r="2.6"/>' for css, x, y in dots)
        link = f'<path class="link" d="M{a:g} {b:g}L{c:g} {d:g}"/>'
        parts.append(f"<g><title>{escape(name)}</title>{link}{marks}</g>")
    return document(title, size, size + 24, parts)


def _legend(entries: Sequence[tuple[str, str]], width: float, kind: Literal["bar", "curve"]) -> tuple[str, int]:
    """(label, class) of each to markup below y = 20 (bars: 0), and how many rows of 16 it takes."""
    parts, x, row = [], 0.0, 0
    for label, css in entries:
        needed = 33 + 6.2 * len(label)
        if x > 0 and x + needed > width:
            x, row = 0.0, row + 1
        y = (30 if kind == "curve" else 10) + 16 * row
        if kind == "curve":
            parts.append(f'<line class="curve {css}" x1="{x:g}" x2="{x + 14:g}" y1="{y}" y2="{y}"/>')
        else:
            parts.append(f'<rect class="{css}" x="{x:g}" y="{y - 5}" width="12" height="10"/>')
        parts.append(_text(x + 19, y + 4, label, "tick"))
        x += needed
    return "".join(parts), row + 1


def _grid_line(left: float, right: float, y: float, label: str) -> str:
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
    return line + _text(left - 8, y + 4, label, "tick", "end")


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:g}" y="{round(y, 1):g}" text-anchor="{anchor}">{escape(text)}</text>'


def document(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    """A whole SVG; `title` is read out where it cannot be seen."""
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}" style="max-width:{width * 1.25:g}px">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )
