"""What an experiment is made of: rows, columns, sheets, charts. Plain data; `paper` holds the ones there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vlm2rec.comparison import QUICK, SEQUENTIAL, SETS, VIEWS, Method

if TYPE_CHECKING:
    from vlm2rec.report.plots import BarChart, LineChart

MAIN = "N@20"
"""The metric that is tested."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a method, and what sets it apart from others of its kind.

    Attributes:
        name: names the row on the command line, in files and in folders.
        settings: laid over the experiment's configuration; may hold "{row}" for the folder of another row's run.
        needs: rows whose run of the same seed `settings` names; without them the row is left out.
        given: settings that the configuration has to give, since no default serves every machine.
        seeded: whether a seed changes Task 1. Where it does not, one seed is enough for a table of Task 1.
        data: the table of the file whose `path` stands in the place of `data.path`; empty: none does.
    """

    name: str
    label: str
    group: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    seeded: bool = True
    data: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its heading, the figure of `results.json` in it, and which values of it are the better ones.

    In `Experiment.listed`, a `*` in `figure` stands for any text.
    """

    heading: str
    figure: str
    digits: int = 4
    best: Literal["high", "low"] | None = "high"

    @property
    def measure(self) -> str | None:
        """What a comparison calls the users' own values behind the figure; None where there are none."""
        match self.figure.split("."):
            case ["retrieval", candidates, "N@20"] if candidates in SETS:
                return f"{candidates}.f2f"
            case ["seqrec", kind, candidates, "N@20"] if kind in SEQUENTIAL and candidates in SETS:
                return f"{candidates}.{kind}"
            case ["dropout", view] if view in VIEWS:
                return f"sampled.{view}"
        return None


@dataclass(frozen=True)
class Sheet:
    """One table of a page; `alike`: its figures are the same for all rows, so one line tells them."""

    title: str
    columns: tuple[Column, ...]
    alike: bool = False


@dataclass(frozen=True)
class Line:
    """A row with its runs' figures, as a table shows it."""

    row: Row
    method: Method

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return self.method.label


class Chart(Protocol):
    """One panel of a figure: from the lines of the table to something that `report.plots` draws."""

    def drawn(self, lines: Sequence[Line]) -> "BarChart | LineChart | None":
        """None where the lines have nothing to show."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        rows: what stands in it; without rows, it is about data sets.
        sheets: the tables of its page; the first one gets stars, LaTeX has all.
        charts: panels of its figure, side by side.
        support: rows that are run because others need them, and stand in no table.
        reference: the row that every other is tested against; empty: nothing is tested.
        task2: whether its figures need sequential models fitted (Task 2).
        direct: rows that no sequential model can start from; their Task 1 stands in the columns of Task 2.
        listed: what the CSV holds, if not the columns of the sheets.
        order: rows in tiers, the best first, as the paper's text has them; the page says whether that holds.
        each: the table of the file each of whose entries makes rows of its own ("families"); empty: none.
        notes: what a reader should know besides.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    sheets: tuple[Sheet, ...]
    charts: tuple[Chart, ...] = ()
    support: tuple[Row, ...] = ()
    reference: str = ""
    task2: bool = False
    direct: tuple[str, ...] = ()
    listed: tuple[Column, ...] = ()
    order: tuple[tuple[str, ...], ...] = ()
    each: str = ""
    notes: tuple[str, ...] = ()

    def figure(self, row: Row, column: Column) -> str:
        """Where the row's figure of a column stands."""
        if row.name in self.direct and column.figure.startswith("seqrec."):
            return ".".join(["retrieval", *column.figure.split(".")[2:]])
        return column.figure


def quickly(experiment: Experiment) -> Experiment:
    """The experiment with the word in its title, which heads every table and file, and what it means below them."""
    note = "quick: one seed, few users and few steps; a look, not a result."
    return replace(experiment, title=f"{experiment.title} ({QUICK})", notes=(*experiment.notes, note))
