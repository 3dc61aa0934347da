"""The report: run directories and their data set in, one self-contained HTML file out, and files for a paper."""

from collections.abc import Sequence
from pathlib import Path

from vlm2rec.compare import compare
from vlm2rec.errors import InputError
from vlm2rec.metrics import FEW
from vlm2rec.report import palette
from vlm2rec.report.export import write_files
from vlm2rec.report.page import Page, build
from vlm2rec.runs import write_text


def write_report(
    runs: Sequence[Path | str], out: Path | str, *, title: str | None = None, export: Path | str | None = None
) -> Path:
    """Write the page for one run or many.

    What is missing is left out and said so: counting methods have no embeddings and no curves, a data set that
    has moved gives no shoppers.

    Args:
        runs: finished run directories of one data set.
        out: the HTML file to write.
        title: heading of the page; by default the name of the data set.
        export: a folder for every figure (.svg, .png, .pdf) and every table (.md, .tex, .csv) of the page.

    Returns:
        `out`.

    Raises:
        InputError: a run is missing, unfinished or foreign, or the runs do not belong together (see `compare`).
    """
    out, export = Path(out), None if export is None else Path(export)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of an HTML file")
    if export is not None and export.exists() and not export.is_dir():
        raise InputError(f"{export}: is a file; give the name of a folder")
    comparison = compare(runs)
    page = build(comparison, title)
    write_text(out, render(page))
    if export is not None:
        write_files(comparison, page, export)
    return out


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("vlm2rec.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["few"] = FEW
    environment.filters["svg"] = Markup  # only for what svg.py drew: it escapes its own text
    return environment.get_template("page.html").render(
        page=page, light=palette.LIGHT, dark=palette.DARK, paper=palette.PRINT, drawn=palette.DRAWN
    )
