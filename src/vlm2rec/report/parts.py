"""What sections are made of: tables and charts, each with the name that its files get."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm2rec.comparison import Method, csv_text
from vlm2rec.grid import Grid
from vlm2rec.report import svg
from vlm2rec.report.figures import number
from vlm2rec.report.plots import BarChart, Chart, LineChart

NONE = "–"
"""What stands where there is no figure."""


@dataclass(frozen=True)
class Sheet:
    """A table of the page and of the files."""

    name: str
    grid: Grid
    notes: Mapping[int, str] = field(default_factory=dict)
    """First row of a group -> how to read the group."""
    tints: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(row, column) -> class of a cell that should catch the eye."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """For the template: cells, whether a rule is drawn above, the group's note and how many rows it spans."""
        groups = self.grid.groups or (0,) * len(self.grid.rows)
        return [
            {
                "cells": [self._cell(row, column) for column in range(len(cells))],
                "rule": row > 0 and groups[row] != groups[row - 1],
                "note": self.notes.get(row),
                "span": groups.count(groups[row]),
            }
            for row, cells in enumerate(self.grid.rows)
        ]

    @property
    def unsure(self) -> bool:
        """Whether a cell is grey, since it rests on too few users."""
        return self.grid.unsure or "unsure" in self.tints.values()

    @property
    def counted(self) -> bool:
        """Whether a row was counted beside the runs."""
        return any(row[0].endswith(" (counted)") for row in self.grid.rows)

    def csv(self, quick: bool = False) -> str:
        """The cells for a program: a deviation in a column of its own, a plain minus, nothing where there is none.

        `quick`: made with --quick, as every line then says.
        """
        columns = list(zip(self.grid.header, zip(*self.grid.rows, strict=True), strict=True))
        header, cells = [], []
        for name, column in columns:
            parts = [cell.partition(" ± ") for cell in column]
            header.append(name)
            cells.append([_plain(mean) for mean, _, _ in parts])
            if any(sd for _, _, sd in parts):
                header.append(f"{name} sd")
                cells.append([_plain(sd) for _, _, sd in parts])
        return csv_text(header, zip(*cells, strict=True), quick)

    def _cell(self, row: int, column: int) -> dict[str, str]:
        mean, _, sd = self.grid.rows[row][column].partition(" ± ")
        mark = self.grid.marks[row][column] if self.grid.marks else 0
        classes = [("", "best", "second", "unsure")[mark], self.tints.get((row, column), "")]
        return {"mean": mean, "sd": sd, "css": " ".join(filter(None, classes))}


@dataclass(frozen=True)
class Panel:
    """A chart of the page and of the files."""

    name: str
    chart: Chart
    note: str = ""

    @property
    def svg(self) -> str:
        """As the page shows it; empty if there is nothing to draw."""
        chart = self.chart
        if isinstance(chart, BarChart):
            return svg.bars(chart.title, chart.groups, chart.chance)
        if isinstance(chart, LineChart):
            return svg.lines(chart.title, chart.series, chart.x_label, log_x=chart.log_x)
        return svg.linked(chart.title, chart.text, chart.image, chart.names)


def cell(method: Method, name: str, digits: int = 3) -> str:
    """`.343 ± .010`, `.343` for one seed, `–` where the method has no such figure."""
    mean, sd = method.mean(name), method.sd(name)
    if mean is None:
        return NONE
    return number(mean, digits) + ("" if sd is None else f" ± {number(sd, digits)}")


def slug(label: str) -> str:
    """A method's label as a part of a file name: 'sft (objective.alpha=5)' -> 'sft-objective.alpha-5'."""
    return re.sub(r"[^\w.+]+", "-", label).strip("-").lower()


def without_empty(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """Those that have something to draw."""
    return tuple(panel for panel in panels if panel.svg)


def _plain(text: str) -> str:
    return "" if text == NONE else text.replace("−", "-").replace("\N{THIN SPACE}", "")
