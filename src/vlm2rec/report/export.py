"""The figures and tables of a page as files for a paper."""

from collections import Counter
from pathlib import Path

from vlm2rec.comparison import STYLES, Comparison
from vlm2rec.report.page import Page
from vlm2rec.report.plots import save
from vlm2rec.runs import write_text


def write_files(comparison: Comparison, page: Page, folder: Path) -> list[Path]:
    """Write every figure as .svg, .png and .pdf, every table as .md, .tex and .csv, all under the page's own names.

    Beside them `figures.csv` and `figures-tests.csv` hold every figure unrounded, with the seeds' own values.
    """
    written, taken = list[Path](), Counter[str]()
    for panel in page.panels():
        written += save([panel.chart], folder / _free(panel.name, taken))
    taken.clear()  # a table may have the name of its figure: their endings differ
    for sheet in page.sheets():
        name = _free(sheet.name, taken)
        for ending, style in STYLES.items():
            path = folder / f"{name}{ending}"
            write_text(path, sheet.grid.render(style) + "\n")
            written.append(path)
        write_text(folder / f"{name}.csv", sheet.csv(page.quick))
        written.append(folder / f"{name}.csv")
    return [*written, comparison.write(folder / "figures.csv"), folder / "figures-tests.csv"]


def _free(name: str, taken: Counter[str]) -> str:
    """The name, or with a number behind it where one before was made the same."""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"
