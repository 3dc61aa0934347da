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
        rows = [
            [_MARKS[style][mark].format(_tex(cell) if style == "latex" else cell) for cell, mark in zip(row, marks)]
            for row, marks in zip(self.rows, self.marks or ((0,) * len(self.header),) * len(self.rows), strict=True)
        ]
        header = [_tex(cell) if style == "latex" else cell for cell in self.header]
        cells = (header, *rows)
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        padded = [
            [
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            for row in cells
        ]
        if style == "latex":
            return _latex(_tex(self.title), padded, self._breaks())
        if style == "markdown":
            rule = "|".join(["", " --- ", *[" ---: "] * (len(widths) - 1), ""])
            lines = [f"| {' | '.join(row)} |" for row in padded]
            return "\n".join([f"**{self.title}**", "", lines[0], rule, *lines[1:]])
        lines = ["  ".join(row).rstrip() for row in padded]
        rule = "-" * max(map(len, lines))
        body = [
            part for row, line in enumerate(lines[1:]) for part in ([rule, line] if row in self._breaks() else [line])
        ]
        title = f"{self.title} (¹ best, ² second best)" if any(map(any, self.marks)) else self.title
        return "\n".join([title, "", lines[0], rule, *body])

    def _breaks(self) -> set[int]:
        """Rows that begin a new group."""
        return {row for row in range(1, len(self.groups)) if self.groups[row] != self.groups[row - 1]}


def best_two(values: Sequence[float | None]) -> list[int]:
    """1 for the largest value, 2 for the next smaller one, 0 for the rest; equal values share their mark.

    A column with one value alone has no best.
    """
    known = sorted({value for value in values if value is not None}, reverse=True)
    if len([value for value in values if value is not None]) < 2:
        return [0] * len(values)
    places = {value: place for place, value in enumerate(known[:2], start=1)}
    return [0 if value is None else places.get(value, 0) for value in values]


def _latex(title: str, cells: Sequence[Sequence[str]], breaks: set[int]) -> str:
    lines = [f"  {' & '.join(row)} \\\\" for row in cells]
    body = [part for row, line in enumerate(lines[1:]) for part in (["  \\midrule", line] if row in breaks else [line])]
    columns = "l" + "r" * (len(cells[0]) - 1)
    return "\n".join(
        [
            "\\begin{table}",
            f"  \\caption{{{title}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            "  \\toprule",
            lines[0],
            "  \\midrule",
            *body,
            "  \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
        ]
    )


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
