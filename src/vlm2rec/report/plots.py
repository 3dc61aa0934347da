"""Charts as files for papers: SVG, PNG and PDF of the same panels, drawn by matplotlib.

The page's own charts are drawn by `figures`; these take the same bars and curves. Two calls with equal charts write
equal bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm2rec.report.figures import Bar, Group, Series
from vlm2rec.report.palette import LIGHT
from vlm2rec.runs import replacing

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMN, _PAGE, _HEIGHT = 3.35, 6.9, 2.3
"""Widths of a column and of a page of two, and a panel's height; inches."""
_CROWDED = 24
"""Bars in a panel beyond which it takes a row of its own."""
_PALE = 0.35
"""Opacity of a bar that rests on few users."""
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that files are the same everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["soft"],
    "axes.axisbelow": True,
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts as such, which publishers ask for
    "svg.hashsalt": "vlm2rec",
}
_METADATA: Mapping[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
}
_MARKERS = "os^Dvp"


@dataclass(frozen=True)
class BarChart:
    """Grouped bars with error bars, a line across each bar at its reference, a dashed line at chance."""

    title: str
    groups: Sequence[Group]
    y_label: str = "N@20"
    chance: float | None = None


@dataclass(frozen=True)
class LineChart:
    """Curves over a common axis, with a band of one sd where a series has one; `log_x` shows 0 too."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_x: bool = False


@dataclass(frozen=True)
class MapChart:
    """Items in a plane, each as a dot for its text and one for its picture with a line between them."""

    title: str
    text: Sequence[tuple[float, float]]
    image: Sequence[tuple[float, float]]
    names: Sequence[str]


Chart = BarChart | LineChart | MapChart


def save(charts: Sequence[Chart], stem: Path) -> list[Path]:
    """Draw the charts side by side, and write STEM.svg, STEM.png and STEM.pdf.

    Returns:
        the files.

    Raises:
        ValueError: no chart.
    """
    if not charts:
        raise ValueError("no chart to draw")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        columns = _columns(charts)
        rows = -(-len(charts) // columns)
        width = _COLUMN if len(charts) == 1 and not _crowded(charts[0]) else _PAGE
        figure = Figure(figsize=(width, _HEIGHT * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for chart, axes in zip(charts, panels, strict=False):
            _draw(chart, axes)
        for axes in panels[len(charts) :]:
            axes.set_axis_off()
        _legends(charts, figure, panels[: len(charts)])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for every file
        return [_write(figure, stem, kind) for kind in _METADATA]


def _write(figure: "Figure", stem: Path, kind: str) -> Path:
    path = stem.with_name(f"{stem.name}.{kind}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=300, metadata=_METADATA[kind])
    return path


def _columns(charts: Sequence[Chart]) -> int:
    if any(map(_crowded, charts)):
        return 1
    return len(charts) if len(charts) <= 3 else 2 if len(charts) == 4 else 3


def _crowded(chart: Chart) -> bool:
    return isinstance(chart, BarChart) and sum(len(group.bars) for group in chart.groups) > _CROWDED


def _draw(chart: Chart, axes: "Axes") -> None:
    axes.set_title(chart.title, loc="left", fontweight="bold", color=LIGHT["ink"])
    if isinstance(chart, MapChart):
        _draw_map(chart, axes)
        return
    axes.set_ylabel(chart.y_label)
    axes.grid(axis="y")
    if isinstance(chart, BarChart):
        _draw_bars(chart, axes)
    else:
        _draw_lines(chart, axes)


def _draw_bars(chart: BarChart, axes: "Axes") -> None:
    at, middles = 0.0, []
    for group in chart.groups:
        for place, bar in enumerate(group.bars):
            _draw_bar(bar, at + place, axes)
        middles.append(at + (len(group.bars) - 1) / 2)
        at += len(group.bars) + 0.9
    if chart.chance is not None:
        axes.axhline(chart.chance, color=LIGHT["soft"], linestyle=(0, (4, 3)), linewidth=0.8)
    # What stands in brackets goes on a line of its own.
    labels = [group.label.replace(" (", "\n(", 1) for group in chart.groups]
    axes.set_xticks(middles, labels)
    axes.tick_params(axis="x", length=0)
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    if len(labels) * (longest + 1) > (90 if _crowded(chart) else 42):
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")


def _draw_bar(bar: Bar, x: float, axes: "Axes") -> None:
    axes.bar(x, bar.value, 0.86, color=LIGHT[bar.css], alpha=_PALE if bar.unsure else None)
    if bar.sd is not None:
        axes.errorbar(x, bar.value, bar.sd, ecolor=LIGHT["ink"], elinewidth=0.8, capsize=1.8, capthick=0.8)
    if bar.reference is not None:
        for colour, width in (("white", 2.8), (LIGHT["bad"], 1.5)):
            axes.hlines(bar.reference, x - 0.5, x + 0.5, colors=colour, linewidth=width)


def _draw_lines(chart: LineChart, axes: "Axes") -> None:
    axes.set_xlabel(chart.x_label)
    if chart.log_x:
        _log_axis(axes, sorted({float(value) for one in chart.series for value in one.x}))
    for place, one in sorted(enumerate(chart.series), key=lambda pair: not pair[1].faint):
        style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.4} if one.faint else _line(place, len(one.x))
        axes.plot(one.x, one.y, color=LIGHT[one.css], **style)
        if one.sd is not None and any(one.sd):
            low, high = ([y + side * sd for y, sd in zip(one.y, one.sd, strict=True)] for side in (-1, 1))
            axes.fill_between(one.x, low, high, color=LIGHT[one.css], alpha=0.18, linewidth=0)


def _line(place: int, points: int) -> dict[str, Any]:
    """A series' marker and stroke: colour is not all that tells it from the others."""
    style = {"linewidth": 1.2, "linestyle": "-" if place < len(_MARKERS) else (0, (3, 2))}
    return style | ({"marker": _MARKERS[place % len(_MARKERS)], "markersize": 3} if points <= 24 else {})


def _draw_map(chart: MapChart, axes: "Axes") -> None:
    for (a, b), (c, d) in zip(chart.text, chart.image, strict=True):
        axes.plot([a, c], [b, d], color=LIGHT["soft"], linewidth=0.3, alpha=0.5, zorder=1)
    for css, points in (("text", chart.text), ("image", chart.image)):
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=4, color=LIGHT[css], linewidths=0, zorder=2)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _log_axis(axes: "Axes", x: Sequence[float]) -> None:
    positive = [value for value in x if value > 0]
    if not positive:
        return
    from matplotlib.ticker import FuncFormatter, NullLocator

    if len(positive) < len(x):  # 0 has no logarithm: it stands half a decade before the smallest step
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    else:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if positive[-1] < 10 * positive[0]:  # less than a decade would have no tick or one
        axes.set_xticks(x)


def _legends(charts: Sequence[Chart], figure: "Figure", panels: Sequence["Axes"]) -> None:
    """One legend under all panels if a colour means the same in each, else one in each panel."""
    entries = [dict(_entries(chart)) for chart in charts]
    everything = [pair for found in entries for pair in found.items()]
    meanings = {(css, label) for (css, label), _ in everything}
    if len(charts) == 1 or len({css for css, _ in meanings}) == len(meanings) == len({name for _, name in meanings}):
        shown = dict(everything)
        names = [label for _, label in shown]
        if len(shown) > 1:
            fitting = int(figure.get_figwidth() / (0.5 + 0.055 * max(map(len, names))))
            figure.legend(list(shown.values()), names, loc="outside lower center", ncols=max(1, min(5, fitting)))
        return
    for chart, found, axes in zip(charts, entries, panels, strict=True):
        place: dict[str, Any] = {}
        if isinstance(chart, BarChart):  # above the bars
            axes.set_ylim(top=1.4 * axes.get_ylim()[1])
            place = {"loc": "upper left", "ncols": 2, "columnspacing": 1, "handlelength": 1.2}
        axes.legend(list(found.values()), [label for _, label in found], **place)


def _entries(chart: Chart) -> Iterator[tuple[tuple[str, str], "Artist"]]:
    """(class, label) of all that needs a name, and a sample of how it is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(chart, MapChart):
        for css, label in (("text", "text"), ("image", "picture")):
            yield (css, label), Line2D([], [], color=LIGHT[css], marker="o", markersize=3, linestyle="")
        return
    if isinstance(chart, LineChart):
        for place, one in enumerate(chart.series):
            if not one.faint:
                yield (one.css, one.label), Line2D([], [], color=LIGHT[one.css], **_line(place, len(one.x)))
        return
    bars = [bar for group in chart.groups for bar in group.bars]
    for bar in bars:
        yield (bar.css, bar.label), Patch(color=LIGHT[bar.css])
    if any(bar.reference is not None for bar in bars):
        yield ("bad", "before training"), Line2D([], [], color=LIGHT["bad"], linewidth=1.6)
    if chart.chance is not None:
        yield ("soft", "chance"), Line2D([], [], color=LIGHT["soft"], linestyle=(0, (4, 3)), linewidth=0.8)
