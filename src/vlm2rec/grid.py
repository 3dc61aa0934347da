"""A table of ready strings, rendered for a terminal, a Markdown file or a LaTeX document; best cells marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm2rec.metrics import FEW

Style = Literal["text", "markdown", "latex"]

BEST, SECOND, UNSURE = 1, 2, 3
"""Marks of a cell: best and second best of its column, and what rests on too few users to be compared."""

_MARKS: dict[Style, tuple[str, str, str, str]] = {
    "text": ("{}", "{}¹", "{}²", "({})"),
    "markdown": ("{}", "**{}**", "<u>{}</u>", "({})"),
    "latex": ("{}", r"\textbf{{{}}}", r"\underline{{{}}}", "({})"),
}
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}",
    "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A heading, column heads and rows of strings, the first column being names.

    `marks` `(rows, columns)` says which cells are best, second best or unsure; it may be left out. `groups` numbers
    the rows: a rule is drawn where the number changes.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[tuple[int, ...], ...] = ()
    groups: tuple[int, ...] = ()

    @property
    def unsure(self) -> bool:
        """Whether a cell rests on too few users."""
        return any(UNSURE in row for row in self.marks)

    def render(self, style: Style) -> str:
        """The table as a string; LaTeX wants the package booktabs."""
        cells = self._padded(style)
        if style == "markdown":
            rule = "|".join(["", " --- ", *[" ---: "] * (len(self.header) - 1), ""])
            lines = [f"| {' | '.join(row)} |" for row in cells]
            return "\n".join([f"**{self._title(style)}**", "", lines[0], rule, *lines[1:]])
        if style == "latex":
            return self._latex([f"  {' & '.join(row)} \\\\" for row in cells])
        lines = ["  ".join(row).rstrip() for row in cells]
        rule = "-" * max(map(len, lines))
        return "\n".join([self._title(style), "", lines[0], rule, *self._ruled(lines[1:], rule)])

    def _title(self, style: Style) -> str:
        """The heading, with what the marks mean that do not explain themselves."""
        notes = []
        if style == "text" and any(mark in (BEST, SECOND) for row in self.marks for mark in row):
            notes.append("¹ best, ² second best")
        if self.unsure:
            notes.append(f"in brackets: fewer than {FEW} users")
        return f"{self.title} ({'; '.join(notes)})" if notes else self.title

    def _latex(self, lines: Sequence[str]) -> str:
        head = ["\\begin{table}", f"  \\caption{{{_tex(self._title('latex'))}}}"]
        head += [f"  \\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}", "  \\toprule", lines[0], "  \\midrule"]
        foot = ["  \\bottomrule", "  \\end{tabular}", "\\end{table}"]
        return "\n".join([*head, *self._ruled(lines[1:], "  \\midrule"), *foot])

    def _padded(self, style: Style) -> list[list[str]]:
        """Header and rows, marked and of one width a column."""
        marks = self.marks or ((0,) * len(self.header),) * len(self.rows)
        cells = [[_tex(cell) if style == "latex" else cell for cell in row] for row in (self.header, *self.rows)]
        for row, marked in zip(cells[1:], marks, strict=True):
            row[:] = [_MARKS[style][mark].format(cell) for cell, mark in zip(row, marked, strict=True)]
        for column in range(len(self.header)):
            width = max(len(row[column]) for row in cells)
            for row in cells:
                row[column] = row[column].rjust(width) if column else row[column].ljust(width)
        return cells

    def _ruled(self, lines: Sequence[str], rule: str) -> list[str]:
        """The lines of the rows with a rule where a new group begins."""
        begins = {row for row in range(1, len(self.groups)) if self.groups[row] != self.groups[row - 1]}
        return [part for row, line in enumerate(lines) for part in ([rule, line] if row in begins else [line])]


def best_two(
    values: Sequence[float | None], digits: int | None = None, users: Sequence[float | None] | None = None
) -> list[int]:
    """BEST for the largest value, SECOND for the next smaller one, 0 for the rest; equal values share their mark.

    A column with one value alone has no best. Nor is a value marked that `digits` decimals show as nothing, and one of
    fewer than `FEW` `users` is UNSURE and out of the contest (None: not a figure of users).
    """
    unsure = [
        value is not None and count is not None and count < FEW
        for value, count in zip(values, users or [None] * len(values), strict=True)
    ]
    known = [value for value, out in zip(values, unsure, strict=True) if value is not None and not out]
    places = {value: place for place, value in enumerate(sorted(set(known), reverse=True)[:2], start=1)}
    if len(known) < 2:
        places = {}
    shown = [value is not None and (digits is None or round(abs(value), digits) > 0) for value in values]
    return [
        UNSURE if out else places.get(value, 0) if value is not None and seen else 0
        for value, out, seen in zip(values, unsure, shown, strict=True)
    ]


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
