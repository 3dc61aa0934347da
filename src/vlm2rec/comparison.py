"""What a comparison of runs holds, and how it reads: methods, paired tests, tables as text, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm2rec.errors import InputError
from vlm2rec.grid import UNSURE, Grid, Style, best_two
from vlm2rec.metrics import FEW, METRICS
from vlm2rec.runs import Run, write_text

SETS = ("sampled", "matched", "full", "full_unseen")
"""Candidate sets, the paper's first."""

VIEWS = ("f2f", "t2f", "v2f")
"""What the query keeps in modality dropout: both, the text, the picture."""

SEQUENTIAL = ("gru4rec", "sasrec")
"""Sequential models of Task 2."""

STYLES: dict[str, Style] = {".md": "markdown", ".tex": "latex"}
"""Ending of a file's name -> what stands in it."""

_OF_USERS = ("retrieval", "seqrec", "dropout", "geometry", "missing", "oracle")
"""What stands in `results.json` under these is a mean over the evaluated users."""

QUICK = "quick"
"""What every heading and file says that was made with --quick."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """All runs of one configuration, by seed; `seeds` and `runs` are empty of what runs counted beside them."""

    label: str
    kind: str
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    values: Mapping[str, tuple[float, ...]]
    """Figure ("retrieval.full.N@20", "dropout.v2f", "geometry.text.S", …) -> its value for each seed."""
    users: Mapping[str, tuple[Vector, ...]]
    """Measure ("sampled.f2f", "matched.v2f", "full.sasrec", …) -> N@20 of each user, by seed; means are in `values`."""

    def mean(self, name: str) -> float | None:
        """Mean over seeds; None where the method has no such figure."""
        return float(np.mean(self.values[name])) if name in self.values else None

    def users_behind(self, name: str) -> float | None:
        """How many users a figure rests on, a mean over seeds; None where it is no figure of users, or not known."""
        parts = name.removeprefix("reference.").split(".")
        if parts[0] == "cold":
            return self.mean(".".join([*parts[:3], "users"]))
        return self.mean("data.evaluated_users") if parts[0] in (*_OF_USERS, *SETS) else None

    def sd(self, name: str) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        values = self.values.get(name, ())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class PairedTest:
    """One paired comparison: `first` minus `second`, over users."""

    measure: str
    first: str
    second: str
    users: int
    difference: float
    low: float
    high: float
    t: float
    p: float
    p_holm: float | None = None
    """Corrected over all comparisons; None for a single seed's, which are shown but not tested again."""
    seed: int | None = None
    """None: each user's mean over all seeds."""
    seeds: int = 1
    """On how many it rests: the fewest of either method, one that no seed changes left out."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    methods: tuple[Method, ...]
    tests: tuple[PairedTest, ...]
    """One for each pair of methods and measure, over the means of the seeds; Holm-corrected together."""
    seed_tests: tuple[PairedTest, ...]
    """The same for single seeds."""
    differences: Mapping[str, Mapping[str, str]]
    """Configuration key -> label -> value, for keys in which the methods differ."""
    evaluated_users: int
    chance: Mapping[str, float]
    """Candidate set -> N@20 of a scorer that knows nothing: all candidates tied with the target."""
    counted: tuple[Method, ...] = ()
    """Chance, popularity and item-kNN as the runs counted them, those of which no run is given; without runs."""
    uncounted: tuple[str, ...] = ()
    """Which of the latter two is neither given nor counted: older runs did not."""

    @property
    def rows(self) -> tuple[Method, ...]:
        """Whatever has figures for a table of Task 1: what was counted, then the methods."""
        return (*self.counted, *self.methods)

    @property
    def not_counted(self) -> str:
        """A sentence about `uncounted`, empty where there is nothing to say."""
        if not self.uncounted:
            return ""
        kinds = ",".join(self.uncounted)
        return f"Not counted in these older runs: {' and '.join(self.uncounted)} (method.kind={kinds} adds rows)."

    @property
    def quick(self) -> bool:
        """Whether a run was made with --quick."""
        return any(run.quick for method in self.methods for run in method.runs)

    @property
    def warnings(self) -> list[str]:
        """What was said when the runs began: that a backbone cannot read the titles, say. Each once."""
        runs = (run for method in self.methods for run in method.runs)
        return list(dict.fromkeys(line for run in runs for line in run.results().get("warnings", ())))

    def table(self, style: Style = "text") -> str:
        """All tables, and what the settings differ in, as one string for a terminal, a Markdown or a LaTeX file.

        A terminal is spared the metrics other than N@20; the files have them.
        """
        grids = [_retrieval(self.rows), _modalities(self.methods), _sequential(self.methods)]
        grids += [tests_grid(self.tests), seeds_grid(self.seed_tests)]
        if style != "text":
            grids.append(_metrics(self.rows))
        parts = [marked_quick(grid, self.quick).render(style) for grid in grids if grid.rows]
        notes = [
            f"{key}: " + ", ".join(f"{label} {value}" for label, value in values.items())
            for key, values in self.differences.items()
        ]
        for note in filter(None, (*(f"warning: {line}" for line in self.warnings), self.not_counted, *notes)):
            parts.append(f"% {note}" if style == "latex" else note)
        return "\n\n".join(parts) + "\n"

    def summary_csv(self) -> str:
        """A line for each method and figure: mean, sd and the seeds' own values."""
        rows = (
            (method.label, name, len(values), method.mean(name), method.sd(name), " ".join(map(repr, values)))
            for method in self.rows
            for name, values in method.values.items()
        )
        return csv_text(("method", "figure", "seeds", "mean", "sd", "values"), rows, self.quick)

    def tests_csv(self) -> str:
        """A line for each paired test; `seed` is empty where users were averaged over seeds."""
        return tests_csv((*self.tests, *self.seed_tests), self.quick)

    def text(self) -> str:
        """`table()` for a terminal."""
        return self.table("text")

    def write(self, path: Path | str) -> Path:
        """Write `path`: the tables (.md, .tex), or the figures (.csv) with the tests beside them (NAME-tests.csv).

        Raises:
            InputError: the name ends in none of these.
        """
        path = Path(path)
        if path.suffix in STYLES:
            write_text(path, self.table(STYLES[path.suffix]))
        elif path.suffix == ".csv":
            write_text(path, self.summary_csv())
            write_text(path.with_name(f"{path.stem}-tests.csv"), self.tests_csv())
        else:
            raise InputError(f"{path}: give a name that ends in .md, .tex or .csv")
        return path


def value(method: Method, name: str, digits: int = 4) -> str:
    """`mean ± sd` of one figure, `mean` for one seed, `–` where the method has none."""
    mean, sd = method.mean(name), method.sd(name)
    if mean is None:
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def p_text(p: float) -> str:
    """A p-value for reading."""
    return "< .0001" if p < 1e-4 else f"{p:.4f}".removeprefix("0")


def measure_text(measure: str) -> str:
    """'matched.v2f' -> 'v2f, matched'."""
    candidates, query = measure.split(".")
    return f"{query}, {candidates}"


def _seed_text(method: Method) -> str:
    return str(len(method.seeds) or "–")


def _retrieval(methods: Sequence[Method]) -> Grid:
    names = [f"retrieval.{candidates}.N@20" for candidates in SETS]
    rows = [(method.label, _seed_text(method), *(value(method, name) for name in names)) for method in methods]
    marks = [(0, 0, *marked) for marked in marks_of(methods, names, 4)]
    return Grid("N@20 by candidate set", ("method", "seeds", *SETS), tuple(rows), tuple(marks))


def _sequential(methods: Sequence[Method]) -> Grid:
    """Task 2, for each sequential model that any method started."""
    rows: list[tuple[str, ...]] = []
    marks: list[tuple[int, ...]] = []
    for kind in SEQUENTIAL:
        names = [f"seqrec.{kind}.{candidates}.N@20" for candidates in SETS]
        having = [method for method in methods if names[0] in method.values]
        rows += [(method.label, kind, *(value(method, name) for name in names)) for method in having]
        marks += [(0, 0, *marked) for marked in marks_of(having, names, 4)]
    return Grid("Task 2: N@20 of sequential models", ("started from", "model", *SETS), tuple(rows), tuple(marks))


def marks_of(methods: Sequence[Method], names: Sequence[str], digits: int) -> list[tuple[int, ...]]:
    """For each method, whether it is best, second best or unsure in each figure, shown with so many decimals."""
    columns = [
        best_two([method.mean(name) for method in methods], digits, [method.users_behind(name) for method in methods])
        for name in names
    ]
    return [tuple(column[row] for column in columns) for row in range(len(methods))]


def _modalities(methods: Sequence[Method]) -> Grid:
    """Modality dropout on `sampled`, separability, and where a trained method started."""
    rows, marks = list[tuple[str, ...]](), list[tuple[int, ...]]()
    for method in methods:
        for prefix, note in (("", ""), ("reference.", ", before training")):
            names = [f"{prefix}dropout.{view}" for view in VIEWS]
            if method.kind != "vanilla" or not prefix:
                cells = [value(method, name) for name in names]
                cells += [value(method, f"{prefix}geometry.{view}.S", 3) for view in ("text", "image")]
                if prefix:  # seeds start alike: a spread of nothing tells nothing
                    cells = [re.sub(r" ± 0\.0+$", "", cell) for cell in cells]
                if set(cells) != {"–"}:
                    rows.append((method.label + note, *cells))
                    marks.append((0, *(_unsure(method, "dropout.f2f") * (cell != "–") for cell in cells)))
    header = ("method", *VIEWS, "S_T", "S_V")
    title = "What each modality can do (N@20, sampled) and its separability"
    return Grid(title, header, tuple(rows), tuple(marks))


def _metrics(methods: Sequence[Method]) -> Grid:
    shown = [(name, method) for name in SETS for method in methods]
    rows = [
        (method.label, name, *(value(method, f"retrieval.{name}.{metric}") for metric in METRICS))
        for name, method in shown
    ]
    marks = [(0, 0, *[_unsure(method, f"retrieval.{name}.N@20")] * len(METRICS)) for name, method in shown]
    return Grid("All metrics", ("method", "candidates", *METRICS), tuple(rows), tuple(marks))


def _unsure(method: Method, name: str) -> int:
    """The mark of a figure that is not compared: whether it rests on too few users."""
    users = method.users_behind(name)
    return UNSURE if users is not None and users < FEW else 0


def tests_grid(tests: Sequence[PairedTest]) -> Grid:
    """Differences, intervals and p-values over users averaged over seeds."""
    rows = [
        (
            f"{test.first} − {test.second}",
            measure_text(test.measure),
            f"{test.difference:+.4f}",
            f"{test.low:+.4f} … {test.high:+.4f}",
            p_text(test.p),
            "–" if test.p_holm is None else p_text(test.p_holm),
        )
        for test in tests
    ]
    if not tests:
        return Grid("", (), ())
    header = ("methods", "N@20 of", "difference", "95% interval", "p", "p (Holm)")
    return Grid(f"Paired tests, {tests[0].users} users, {seeds_text(tests)}", header, tuple(rows))


def seeds_text(tests: Sequence[PairedTest]) -> str:
    """On how many seeds some tests rest: the users are what they generalise over, seeds are not."""
    single = [test for test in tests if test.seeds < 2]
    if not single:
        return "each user averaged over seeds"
    if len(single) == len(tests):
        return "on one seed: how far another would move this is not known"
    pairs = ", ".join(dict.fromkeys(f"{test.first} − {test.second}" for test in single))
    return f"each user averaged over seeds (on one seed alone: {pairs})"


def seeds_grid(tests: Sequence[PairedTest]) -> Grid:
    """Differences by seed, one column a seed; left out where there is only one."""
    seeds = sorted({test.seed for test in tests if test.seed is not None})
    if len(seeds) < 2:
        return Grid("", (), ())
    found = {(test.first, test.second, test.measure, test.seed): test for test in tests}
    rows = []
    for first, second, measure in dict.fromkeys(key[:3] for key in found):
        cells = [found.get((first, second, measure, seed)) for seed in seeds]
        shown = ["–" if test is None else f"{test.difference:+.4f}{'*' if test.p < 0.05 else ''}" for test in cells]
        rows.append((f"{first} − {second}", measure_text(measure), *shown))
    header = ("methods", "N@20 of", *(f"seed {seed}" for seed in seeds))
    return Grid("Differences of single seeds (* p < .05, uncorrected)", header, tuple(rows))


def tests_csv(tests: Iterable[PairedTest], quick: bool = False) -> str:
    """A line for each paired test; `seed` is empty where users were averaged over seeds."""
    return csv_text([field.name for field in fields(PairedTest)], map(astuple, tests), quick)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]], quick: bool = False) -> str:
    """A table as CSV; `quick`: with a last column `made` that says so in every line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    more = ["made"] if quick else []
    writer.writerow([*header, *more])
    writer.writerows([*row, *[QUICK for _ in more]] for row in rows)
    return out.getvalue()


Titled = TypeVar("Titled", bound="_HasTitle")


class _HasTitle(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def title(self) -> str: ...


def marked_quick(titled: Titled, quick: bool) -> Titled:
    """A table or chart with the word in its title, where it is `quick`."""
    return replace(titled, **{"title": f"{titled.title} ({QUICK})"}) if quick and titled.title else titled
