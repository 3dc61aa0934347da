"""A table of ready strings, rendered for a terminal, a Markdown file or a LaTeX document; best cells marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["text", "markdown", "latex"]

_MARKS: dict[Style, tuple[str, str, str]] = {
    "text": ("{}", "{}¹", "{}²"),
    "markdown": ("{}", "**{}**", "<u>{}</u>"),
    "latex": ("{}", r"\textbf{{{}}}", r"\underline{{{}}}"),
}
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}",
    "<": "$<$", ">": "$>$",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A heading, column heads and rows of strings, the first column being names.

    `marks` `(rows, columns)` says which cells are best (1) and second best (2); it may be left out. `groups` numbers
    the rows: a rule is drawn where the number changes.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[tuple[int, ...], ...] = ()
    groups: tuple[int, ...] = ()

    def render(self, style: Style) -> str:
        """The table as a string; LaTeX wants the package booktabs."""
        cells = self._padded(style)
        if style == "markdown":
            rule = "|".join(["", " --- ", *[" ---: "] * (len(self.header) - 1), ""])
            lines = [f"| {' | '.join(row)} |" for row in cells]
            return "\n".join([f"**{self.title}**", "", lines[0], rule, *lines[1:]])
        if style == "latex":
            return self._latex([f"  {' & '.join(row)} \\\\" for row in cells])
        lines = ["  ".join(row).rstrip() for row in cells]
        rule = "-" * max(map(len, lines))
        title = f"{self.title} (¹ best, ² second best)" if any(map(any, self.marks)) else self.title
        return "\n".join([title, "", lines[0], rule, *self._ruled(lines[1:], rule)])

    def _latex(self, lines: Sequence[str]) -> str:
        head = ["\\begin{table}", f"  \\caption{{{_tex(self.title)}}}"]
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


def best_two(values: Sequence[float | None]) -> list[int]:
    """1 for the largest value, 2 for the next smaller one, 0 for the rest; equal values share their mark.

    A column with one value alone has no best.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return [0] * len(values)
    places = {value: place for place, value in enumerate(sorted(set(known), reverse=True)[:2], start=1)}
    return [0 if value is None else places.get(value, 0) for value in values]


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
