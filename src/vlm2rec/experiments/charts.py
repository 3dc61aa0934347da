"""The panels of figures: from the lines of a table to charts that `report.plots` draws."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vlm2rec.comparison import Method
from vlm2rec.experiments.spec import MAIN, Column, Line
from vlm2rec.metrics import FEW
from vlm2rec.report.figures import Bar, Group, Series
from vlm2rec.report.plots import BarChart, LineChart

_CSS = {"f2f": "fused", "t2f": "text", "v2f": "image"}


@dataclass(frozen=True)
class Bars:
    """Grouped bars: a group a row with a bar a column, or the other way round.

    `start` draws a line across each bar at its value before training, `chance` one across the panel. `by_size` sorts
    rows by the parameters of their backbone and tells how many. `counts` are columns of the users behind `columns`.
    """

    title: str
    columns: tuple[Column, ...]
    groups: Literal["rows", "columns"] = "rows"
    start: bool = False
    chance: bool = False
    by_size: bool = False
    counts: tuple[Column, ...] = ()

    def drawn(self, lines: Sequence[Line]) -> BarChart | None:
        """None where no line has any of the figures."""
        shown = [line for line in lines if any(line.method.mean(column.figure) is not None for column in self.columns)]
        if self.by_size:
            shown = sorted(shown, key=lambda line: _size(line, shown))
        groups = self._by_row(shown) if self.groups == "rows" else self._by_column(shown)
        found = [group for group in groups if group.bars]
        chances = (line.method.mean("diagnosis.chance") for line in shown)
        chance = next((value for value in chances if value is not None), None) if self.chance else None
        return BarChart(self.title, found, MAIN, chance) if found else None

    def _by_row(self, lines: Sequence[Line]) -> list[Group]:
        def name(line: Line) -> str:
            size = _size(line, lines) if self.by_size else 0
            return f"{line.label} ({_short(size)})" if size else line.label

        css = [_CSS.get(column.heading, f"m{place}") for place, column in enumerate(self.columns)]
        return [Group(name(line), tuple(self._bars(line, list(zip(css, self.columns, strict=True))))) for line in lines]

    def _by_column(self, lines: Sequence[Line]) -> list[Group]:
        def name(place: int) -> str:
            counted = (line.method.mean(self.counts[place].figure) for line in lines) if self.counts else ()
            users = next((count for count in counted if count is not None), None)
            return self.columns[place].heading + ("" if users is None else f" ({users:,.0f} users)")

        return [
            Group(
                name(number),
                tuple(
                    bar
                    for place, line in enumerate(lines)
                    for bar in self._bars(line, [(f"m{place % 6}", column)], line.label)
                ),
            )
            for number, column in enumerate(self.columns)
        ]

    def _bars(self, line: Line, columns: Sequence[tuple[str, Column]], label: str = "") -> Iterator[Bar]:
        for css, column in columns:
            mean = line.method.mean(column.figure)
            if mean is not None:
                start = line.method.mean(f"reference.{column.figure}") if self.start else None
                users = line.method.users_behind(column.figure)
                unsure = users is not None and users < FEW
                yield Bar(css, label or column.heading, mean, line.method.sd(column.figure), start, unsure)


@dataclass(frozen=True)
class Curves:
    """One figure of the probes over the steps of training, a curve a row, with its spread over seeds."""

    title: str
    probe: str
    y_label: str

    def drawn(self, lines: Sequence[Line]) -> LineChart | None:
        """None where no line was probed."""
        series = [
            Series(f"m{place % 6}", line.label, steps, [mean for mean, _ in spread], sd=[sd for _, sd in spread])
            for place, line in enumerate(lines)
            if (steps := probed_steps(line.method, self.probe))
            and (spread := [_spread(line.method, f"probe.{step}.{self.probe}") for step in steps])
        ]
        return LineChart(self.title, series, "training step", self.y_label, log_x=True) if series else None


@dataclass(frozen=True)
class Sweep:
    """One figure over the values of one setting: those of some rows and the configuration's own, and others as levels.

    `rows` vary `setting` ("objective.weight"); `default` has the configuration's value; `levels` do not depend on it.
    """

    title: str
    setting: str
    rows: tuple[str, ...]
    default: str
    levels: tuple[str, ...]
    column: Column

    def drawn(self, lines: Sequence[Line]) -> LineChart | None:
        """None where fewer than two values were tried."""
        having = [line for line in lines if line.method.mean(self.column.figure) is not None]
        points = {self._value(line): line for line in having if line.row.name in (*self.rows, self.default)}
        if len(points) < 2:
            return None
        x = sorted(points)
        label = next(line.label for line in points.values())
        known = next((line.label for line in having if line.row.name == self.default), label)
        series = [self._series("m0", known, x, [points[value] for value in x])]
        for place, line in enumerate((line for line in having if line.row.name in self.levels), start=1):
            series.append(self._series(f"m{place}", line.label, [x[0], x[-1]], [line, line]))
        return LineChart(self.title, series, self.title, MAIN, log_x=True)

    def _series(self, css: str, label: str, x: Sequence[float], lines: Sequence[Line]) -> Series:
        spread = [_spread(line.method, self.column.figure) for line in lines]
        return Series(css, label, x, [mean for mean, _ in spread], sd=[sd for _, sd in spread])

    def _value(self, line: Line) -> float:
        section, key = self.setting.split(".")
        return float(line.method.runs[0].config.model_dump()[section][key])


def probed_steps(method: Method, probe: str) -> list[int]:
    """Steps at which all seeds were probed, ascending."""
    names = [name.split(".") for name in method.values if name.startswith("probe.")]
    return sorted(int(parts[1]) for parts in names if parts[2] == probe)


def _spread(method: Method, figure: str) -> tuple[float, float]:
    """Mean and deviation over seeds, 0 for a single one."""
    return method.mean(figure) or 0.0, method.sd(figure) or 0.0


def _size(line: Line, lines: Sequence[Line]) -> float:
    """Parameters of a line's backbone, which only rows that train count: those of its group; 0 where none did."""
    sizes = [each.method.mean("derived.parameters") for each in lines if each.row.group == line.row.group]
    return max((size for size in sizes if size is not None), default=0.0)


def _short(parameters: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return f"{parameters:.0f}"
