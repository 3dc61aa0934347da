"""A table of the paper from its runs: Markdown, LaTeX and CSV, the best marked, every row tested against VLM2Rec."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlm2rec.compare import method_of, pairwise_tests
from vlm2rec.comparison import SETS, Method, PairedTest, csv_text, seeds_grid, tests_csv, tests_grid, value
from vlm2rec.config import Bert, Pair
from vlm2rec.experiments.paper import REFERENCE, Experiment, Row
from vlm2rec.experiments.plan import NOT_ASKED
from vlm2rec.grid import Grid, Style, best_two
from vlm2rec.metrics import METRICS
from vlm2rec.runs import Run, write_text

_MAIN = "N@20"
"""The metric that is tested."""

_FIGURES = ("row", "label", "group", "column", "candidates", "metric", "seeds", "mean", "sd", "values")


@dataclass(frozen=True)
class Results:
    """The finished runs of each row, a folder a seed, and why other rows are missing."""

    rows: Mapping[str, Sequence[Path]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class _Line:
    row: Row
    method: Method

    def figures(self, experiment: Experiment, column: str) -> str:
        """Where the row's figures of a column stand."""
        return experiment.direct.get(self.row.name, experiment.columns[column])


def write_tables(experiment: Experiment, results: Results, out: Path) -> str:
    """Write NAME.md, NAME.tex, NAME.csv and NAME-tests.csv to `out`; return the table as text for a terminal."""
    lines = [
        _line(row, [Run.open(folder) for folder in results.rows[row.name]])
        for row in experiment.rows
        if results.rows.get(row.name)
    ]
    tests, seed_tests = _tests(experiment, lines)
    main = [_main(experiment, lines, tests), _sets(experiment, lines)]
    notes = list(_notes(experiment, lines, results))

    def rendered(style: Style, grids: Sequence[Grid]) -> str:
        ended = [f"% {note}" if style == "latex" else note for note in notes]
        return "\n\n".join([*(grid.render(style) for grid in grids if grid.rows), *ended]) + "\n"

    full = [*main, tests_grid(tests), seeds_grid(seed_tests)]
    write_text(out / f"{experiment.name}.md", f"# {experiment.title}\n\n" + rendered("markdown", full))
    write_text(out / f"{experiment.name}.tex", rendered("latex", main))
    write_text(out / f"{experiment.name}.csv", csv_text(_FIGURES, _figures(experiment, lines)))
    write_text(out / f"{experiment.name}-tests.csv", tests_csv((*tests, *seed_tests)))
    return rendered("text", main)


def _line(row: Row, runs: Sequence[Run]) -> _Line:
    """A row under its label; small encoders are named, since any can be given."""
    method, label = runs[0].config.method, row.label
    if isinstance(method, Bert) and method.path != Bert().path:
        label = f"{label} ({Path(method.path).name})"
    elif isinstance(method, Pair):
        label = f"{Path(method.text).name} + {Path(method.image).name}"
    return _Line(row, method_of(label, runs))


def _main(experiment: Experiment, lines: Sequence[_Line], tests: Sequence[PairedTest]) -> Grid:
    """All metrics on the paper's candidates."""
    columns = [(head, metric) for head in experiment.columns for metric in METRICS]
    header = ("method", "seeds", *(f"{head} {metric}".strip() for head, metric in columns))
    grid = _grid(
        f"{experiment.title}: uniform candidates",
        header,
        experiment,
        lines,
        [(h, "sampled", m) for h, m in columns],
    )
    starred = _starred(experiment, tests)
    rows = [
        tuple(
            cell + "*" if line.row.name == REFERENCE and place >= 2 and columns[place - 2] in starred else cell
            for place, cell in enumerate(row)
        )
        for line, row in zip(lines, grid.rows, strict=True)
    ]
    return replace(grid, rows=tuple(rows))


def _sets(experiment: Experiment, lines: Sequence[_Line]) -> Grid:
    """The main metric on every candidate set."""
    columns = [(head, candidates, _MAIN) for head in experiment.columns for candidates in SETS]
    header = ("method", "seeds", *(f"{head} {candidates}".strip() for head, candidates, _ in columns))
    return _grid(f"{_MAIN} by candidate set", header, experiment, lines, columns)


def _grid(
    title: str,
    header: tuple[str, ...],
    experiment: Experiment,
    lines: Sequence[_Line],
    columns: Sequence[tuple[str, str, str]],
) -> Grid:
    """One line a row; columns are (heading, candidate set, metric)."""
    names = [
        [f"{line.figures(experiment, head)}.{candidates}.{metric}" for head, candidates, metric in columns]
        for line in lines
    ]
    rows = [
        (line.method.label, str(len(line.method.seeds)), *(value(line.method, name) for name in own))
        for line, own in zip(lines, names, strict=True)
    ]
    marked = [
        best_two([line.method.mean(own[place]) for line, own in zip(lines, names, strict=True)])
        for place in range(len(columns))
    ]
    marks = [(0, 0, *(column[place] for column in marked)) for place in range(len(lines))]
    groups = list(dict.fromkeys(line.row.group for line in lines))
    return Grid(title, header, tuple(rows), tuple(marks), tuple(groups.index(line.row.group) for line in lines))


def _tests(experiment: Experiment, lines: Sequence[_Line]) -> tuple[list[PairedTest], list[PairedTest]]:
    """VLM2Rec against every other row that has the table's figures: the tests over seeds, and of seeds apart."""
    reference = next((line.method for line in lines if line.row.name == REFERENCE), None)
    if reference is None:
        return [], []
    measures = {f"{candidates}.{_query(figures)}" for figures in experiment.columns.values() for candidates in SETS}
    kept = [_only(line.method, measures) for line in lines if line.row.name != REFERENCE]
    tests, apart = pairwise_tests([(_only(reference, measures), other) for other in kept])
    return list(tests), list(apart)


def _only(method: Method, measures: set[str]) -> Method:
    return replace(method, users={name: values for name, values in method.users.items() if name in measures})


def _query(figures: str) -> str:
    """'retrieval' -> 'f2f', 'seqrec.sasrec' -> 'sasrec': what a comparison calls it."""
    return "f2f" if figures == "retrieval" else figures.rpartition(".")[2]


def _starred(experiment: Experiment, tests: Sequence[PairedTest]) -> set[tuple[str, str]]:
    """Columns (heading, metric) in which VLM2Rec is ahead of every tested row, significantly after Holm."""
    found = set()
    for head, figures in experiment.columns.items():
        own = [test for test in tests if test.measure == f"sampled.{_query(figures)}"]
        if own and all(test.difference > 0 and test.p_holm is not None and test.p_holm < 0.05 for test in own):
            found.add((head, _MAIN))
    return found


def _notes(experiment: Experiment, lines: Sequence[_Line], results: Results) -> Iterator[str]:
    first = lines[0].method.runs[0]
    data = first.results()["data"]
    yield (
        f"Data: {first.manifest['data']['name']}, {data['users']:,} users ({data['evaluated_users']:,} evaluated),"
        f" {data['items']:,} items. Mean ± sd over seeds."
    )
    if any(line.row.name == REFERENCE for line in lines):
        yield (
            f"* VLM2Rec ahead of every row in {_MAIN}: paired t-tests over users averaged over seeds, p < .05 after"
            " Holm's correction."
        )
    if experiment.direct:
        named = ", ".join(line.row.label for line in lines if line.row.name in experiment.direct)
        yield f"{named}: ranked directly, the same in every column."
    oracle = next((found for line in lines if (found := line.method.mean(f"oracle.sampled.{_MAIN}")) is not None), None)
    if oracle is not None:
        yield f"An oracle that knows the shoppers' tastes reaches {_MAIN} {oracle:.4f} on the 100 uniform candidates."
    missing = [f"{name} ({reason})" for name, reason in results.left_out.items() if reason != NOT_ASKED]
    if missing:
        yield f"Left out: {'; '.join(missing)}."


def _figures(experiment: Experiment, lines: Sequence[_Line]) -> Iterator[Sequence[object]]:
    """Every figure of the table in long form."""
    for line in lines:
        for head in experiment.columns:
            for candidates in SETS:
                for metric in METRICS:
                    name = f"{line.figures(experiment, head)}.{candidates}.{metric}"
                    values = line.method.values.get(name)
                    if values is not None:
                        where = (line.row.name, line.method.label, line.row.group, head, candidates, metric)
                        spread = (line.method.mean(name), line.method.sd(name), " ".join(map(repr, values)))
                        yield (*where, " ".join(map(str, line.method.seeds)), *spread)
