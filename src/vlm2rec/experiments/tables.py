"""The page of an experiment from its runs: Markdown, LaTeX and CSV, the best marked, rows tested, figures drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from vlm2rec.compare import pairwise_tests
from vlm2rec.comparison import SETS, Method, PairedTest, csv_text, marked_quick, seeds_grid, tests_csv, tests_grid
from vlm2rec.config import LeaveOneOut
from vlm2rec.experiments.lines import line_of
from vlm2rec.experiments.ordering import order_notes
from vlm2rec.experiments.plan import NOT_ASKED
from vlm2rec.experiments.spec import MAIN, Column, Experiment, Line, Sheet, quickly
from vlm2rec.grid import Grid, Style, best_two
from vlm2rec.report.plots import save
from vlm2rec.runs import write_text

_FIGURES = (
    "row", "label", "group", "column", "figure", "candidates", "metric", "seeds", "mean", "sd", "values",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The finished runs of each row, a folder a seed, and why other rows are missing."""

    rows: Mapping[str, Sequence[Path]]
    left_out: Mapping[str, str]


def write_tables(experiment: Experiment, results: Results, out: Path, figures: bool = True) -> str:
    """Write NAME.md, NAME.tex, NAME.csv, with a reference row NAME-tests.csv, and NAME.svg, .png, .pdf of a figure.

    `figures` = False leaves a figure's files as they are. Returns the tables as text for a terminal.
    """
    lines = [line_of(row, results.rows[row.name]) for row in experiment.rows if results.rows.get(row.name)]
    return write_page(experiment, lines, [*_run_notes(experiment, lines), *_left_out(results)], out, figures)


def write_page(
    experiment: Experiment,
    lines: Sequence[Line],
    notes: Sequence[str],
    out: Path,
    figures: bool = True,
    quick: bool = False,
) -> str:
    """As `write_tables`, from lines, with some notes below the tables.

    `quick`: made with --quick, which runs know of themselves; then every heading and every line of a CSV says so.
    """
    quick = quick or any(run.quick for line in lines for run in line.method.runs)
    if quick:
        experiment = quickly(experiment)
    tests, seed_tests = _tests(experiment, lines)
    starred = _starred(experiment, tests)
    main = [
        _grid(experiment, sheet, lines, starred if sheet is experiment.sheets[0] else frozenset())
        for sheet in experiment.sheets
    ]
    ended = [*experiment.notes, *order_notes(experiment, lines), *notes]

    def rendered(style: Style, grids: Sequence[Grid]) -> str:
        below = [f"% {note}" if style == "latex" else note for note in ended]
        return "\n\n".join([*(grid.render(style) for grid in grids if grid.rows), *below]) + "\n"

    paired = [marked_quick(grid, quick) for grid in (tests_grid(tests), seeds_grid(seed_tests))]
    name, full = experiment.name, [*main, *paired]
    drawn = _draw(experiment, lines, out) if figures else (out / f"{name}.svg").exists()
    picture = f"![{experiment.title}]({name}.svg)\n\n" if drawn else ""
    write_text(out / f"{name}.md", f"# {experiment.title}\n\n{picture}" + rendered("markdown", full))
    write_text(out / f"{name}.tex", rendered("latex", main))
    write_text(out / f"{name}.csv", csv_text(_FIGURES, _figures(experiment, lines), quick))
    if experiment.reference:
        write_text(out / f"{name}-tests.csv", tests_csv((*tests, *seed_tests), quick))
    return rendered("text", main)


def _draw(experiment: Experiment, lines: Sequence[Line], out: Path) -> bool:
    """The figure's panels to files, where it has any and they have something to show."""
    quick = any(run.quick for line in lines for run in line.method.runs)
    charts = [marked_quick(drawn, quick) for chart in experiment.charts if (drawn := chart.drawn(lines)) is not None]
    return bool(charts and save(charts, out / experiment.name))


def _grid(experiment: Experiment, sheet: Sheet, lines: Sequence[Line], starred: frozenset[str]) -> Grid:
    """One line a row; columns that no row has a figure for are left out."""
    columns = [
        column
        for column in sheet.columns
        if any(line.method.mean(experiment.figure(line.row, column)) is not None for line in lines)
    ]
    if sheet.alike:
        lines = [_for_all(line) for line in lines if any(column.figure in line.method.values for column in columns)][:1]
    seeds = any(line.method.seeds for line in lines)
    rows = []
    for line in lines:
        cells = [_cell(line.method, experiment.figure(line.row, column), column.digits) for column in columns]
        if line.row.name == experiment.reference:
            cells = [cell + "*" * (column.figure in starred) for cell, column in zip(cells, columns, strict=True)]
        rows.append((line.label, *([str(len(line.method.seeds))] if seeds else []), *cells))
    marked = [_marks(experiment, column, lines) for column in columns]
    marks = [(0, *([0] if seeds else []), *(column[place] for column in marked)) for place in range(len(lines))]
    groups = list(dict.fromkeys(line.row.group for line in lines))
    return Grid(
        f"{experiment.title}: {sheet.title}",
        ("method" if seeds else "", *(["seeds"] if seeds else []), *(column.heading for column in columns)),
        tuple(rows) if columns else (),
        tuple(marks),
        tuple(groups.index(line.row.group) for line in lines),
    )


def _for_all(line: Line) -> Line:
    """A line that stands for all rows and seeds."""
    values = {name: found[:1] for name, found in line.method.values.items()}
    return replace(line, method=replace(line.method, label="all", seeds=(), values=values))


def _cell(method: Method, figure: str, digits: int) -> str:
    """`mean ± sd`, `mean` for one seed, `–` where there is no such figure."""
    mean, sd = method.mean(figure), method.sd(figure)
    if mean is None:
        return "–"
    return f"{mean:,.{digits}f}" + (f" ± {sd:,.{digits}f}" if sd is not None else "")


def _marks(experiment: Experiment, column: Column, lines: Sequence[Line]) -> list[int]:
    """Best and second best of a column, where better has a meaning in it."""
    if column.best is None:
        return [0] * len(lines)
    sign = -1 if column.best == "low" else 1
    figures = [experiment.figure(line.row, column) for line in lines]
    means = [line.method.mean(figure) for line, figure in zip(lines, figures, strict=True)]
    users = [line.method.users_behind(figure) for line, figure in zip(lines, figures, strict=True)]
    return best_two([None if mean is None else sign * mean for mean in means], column.digits, users)


def _columns(experiment: Experiment) -> tuple[Column, ...]:
    """What the CSV lists and the tests cover."""
    return experiment.listed or tuple(column for sheet in experiment.sheets for column in sheet.columns)


def _tests(experiment: Experiment, lines: Sequence[Line]) -> tuple[list[PairedTest], list[PairedTest]]:
    """The reference against every other row that has the table's figures: over seeds, and the seeds apart."""
    reference = next((line.method for line in lines if line.row.name == experiment.reference), None)
    if reference is None:
        return [], []
    measures = {column.measure for column in _columns(experiment)} - {None}

    def only(method: Method) -> Method:
        return replace(method, users={name: own for name, own in method.users.items() if name in measures})

    # A row with the reference's very configuration is its very run.
    others = [only(line.method) for line in lines if _paths(line.method) != _paths(reference)]
    tests, apart = pairwise_tests([(only(reference), other) for other in others])
    return list(tests), list(apart)


def _paths(method: Method) -> list[Path]:
    return [run.path for run in method.runs]


def _starred(experiment: Experiment, tests: Sequence[PairedTest]) -> frozenset[str]:
    """Figures in which the reference is ahead of every tested row, significantly after Holm's correction."""
    found = set()
    for column in _columns(experiment):
        own = [test for test in tests if test.measure == column.measure]
        if own and all(test.difference > 0 and test.p_holm is not None and test.p_holm < 0.05 for test in own):
            found.add(column.figure)
    return frozenset(found)


def _run_notes(experiment: Experiment, lines: Sequence[Line]) -> Iterator[str]:
    if not lines:
        return
    first = lines[0].method.runs[0]
    data, split = first.results()["data"], first.config.data.split
    held_out = "" if split == LeaveOneOut() else f" data.split.kind={split.kind}."
    yield (
        f"Data: {first.manifest['data']['name']}, {data['users']:,} users ({data['evaluated_users']:,} evaluated),"
        f" {data['items']:,} items.{held_out} Mean ± sd over seeds."
    )
    runs = (run for line in lines for run in line.method.runs)
    yield from dict.fromkeys(f"Warning: {said}." for run in runs for said in run.results().get("warnings", ()))
    reference = next((line.label for line in lines if line.row.name == experiment.reference), None)
    if reference is not None:
        yield (
            f"* {reference} ahead of every row in {MAIN}{_seeds_of_claim(experiment, lines)}: paired t-tests over"
            " users, each averaged over seeds, p < .05 after Holm's correction."
        )
    yield from _counted(lines)
    if experiment.direct:
        named = ", ".join(line.row.label for line in lines if line.row.name in experiment.direct)
        yield f"{named}: ranked directly, the same in every column."
    oracle = next((found for line in lines if (found := line.method.mean(f"oracle.sampled.{MAIN}")) is not None), None)
    if oracle is not None:
        yield f"An oracle that knows the shoppers' tastes reaches {MAIN} {oracle:.4f} on the 100 uniform candidates."


def _counted(lines: Sequence[Line]) -> Iterator[str]:
    """What counting reaches on the same users and candidates, where it is no row of the table."""
    names = {"chance": ("random", "chance"), "poprec": ("poprec", "PopRec"), "itemknn": ("itemknn", "item-kNN")}
    kinds = {line.method.kind for line in lines}
    every = (run.results().get("baselines") for line in lines for run in line.method.runs)
    found: Mapping[str, Mapping[str, Mapping[str, float]]] = next(filter(None, every), {})
    said = [
        f"{label} {' / '.join(f'{figures[view][MAIN]:.4f}' for view in ('sampled', 'matched', 'full'))}"
        for key, figures in found.items()
        for kind, label in [names[key]]
        if kind not in kinds
    ]
    if said:
        yield f"Counted on the same users and candidates, {MAIN} sampled / matched / full: {', '.join(said)}."


def _seeds_of_claim(experiment: Experiment, lines: Sequence[Line]) -> str:
    """What the sentence about being ahead has to say where it rests on one seed."""
    single = [line for line in lines if (line.row.seeded or experiment.task2) and len(line.method.seeds) == 1]
    if any(line.row.name == experiment.reference for line in single):
        return " on one seed (how far another would move it is not known)"
    return f" (on one seed of {', '.join(line.label for line in single)})" if single else ""


def _left_out(results: Results) -> Iterator[str]:
    missing = [f"{name} ({reason})" for name, reason in results.left_out.items() if reason != NOT_ASKED]
    if missing:
        yield f"Left out: {'; '.join(missing)}."


def _figures(experiment: Experiment, lines: Sequence[Line]) -> Iterator[Sequence[object]]:
    """Every figure of the experiment in long form."""
    for line in lines:
        for column in _columns(experiment):
            for figure in _matching(experiment.figure(line.row, column), line.method):
                values = line.method.values[figure]
                parts = figure.split(".")
                ranked = parts[-2:] if len(parts) > 2 and parts[-2] in SETS else ("", "")
                where = (line.row.name, line.label, line.row.group, column.heading, figure, *ranked)
                spread = (line.method.mean(figure), line.method.sd(figure), " ".join(map(repr, values)))
                yield (*where, " ".join(map(str, line.method.seeds)), *spread)


def _matching(figure: str, method: Method) -> list[str]:
    """The method's figures that a name with or without `*` stands for."""
    if "*" not in figure:
        return [figure] if figure in method.values else []
    return [name for name in method.values if fnmatchcase(name, figure)]
