"""The tables of the page that stand methods against each other."""

from collections.abc import Sequence

from vlm2rec.compare import COUNTING
from vlm2rec.comparison import SEQUENTIAL, SETS, Comparison, Method, marks_of, measure_text, p_text
from vlm2rec.grid import Grid
from vlm2rec.metrics import FEW, METRICS
from vlm2rec.report.figures import number
from vlm2rec.report.logs import Logs
from vlm2rec.report.parts import NONE, Sheet, cell
from vlm2rec.report.words import display


def retrieval(comparison: Comparison) -> Sheet:
    """N@20 on every candidate set, and what an oracle reaches where the data's makers know it."""
    columns = [(name, f"retrieval.{name}.N@20") for name in SETS]
    sheet = _by_method("retrieval", "N@20 by candidate set", comparison.rows, columns, seeds=True)
    known = [_first(comparison.methods, f"oracle.{name}.N@20") for name in SETS]
    if not any(known):
        return sheet
    grid = sheet.grid
    row = ("Oracle (knows the tastes)", "", *(value or NONE for value in known))
    marks = (*grid.marks, (0,) * len(row))
    return Sheet(sheet.name, Grid(grid.title, grid.header, (*grid.rows, row), marks, (*grid.groups, 2)))


def metrics(methods: Sequence[Method]) -> list[Sheet]:
    """All metrics, a table a candidate set."""
    return [
        _by_method(f"metrics-{name}", f"On {name}", methods, [(m, f"retrieval.{name}.{m}") for m in METRICS])
        for name in SETS
    ]


def sequential(methods: Sequence[Method]) -> list[Sheet]:
    """Task 2: a table for each sequential model that any of the methods started."""
    tables = []
    for kind in SEQUENTIAL:
        columns = [(candidates, f"seqrec.{kind}.{candidates}.N@20") for candidates in SETS]
        having = [method for method in methods if columns[0][1] in method.values]
        if having:
            tables.append(_by_method(f"task2-{kind}", display(kind), having, columns, head="started from"))
    return tables


def geometry(methods: Sequence[Method]) -> Sheet | None:
    """A row for each method and view that has a geometry; an S that tells nothing apart is marked."""
    rows, groups, tints = list[tuple[str, ...]](), list[int](), dict[tuple[int, int], str]()
    for place, method in enumerate(methods):
        for view in ("text", "image", "fused"):
            s = method.mean(f"geometry.{view}.S")
            if s is None:
                continue
            start = NONE if method.kind == "vanilla" else _start(method, f"reference.geometry.{view}.S")
            if s <= 1:
                tints[len(rows), 5] = "flat"
            cells = [cell(method, f"geometry.{view}.{name}") for name in ("A_pos", "A_neg", "U", "S")]
            rows.append((display(method.label), view, *cells, start))
            groups.append(place)
    header = ("method", "view", "A_pos", "A_neg", "U", "S", "S before training")
    grid = Grid("Distances between unit vectors", header, tuple(rows), groups=tuple(groups))
    return Sheet("geometry", grid, tints=tints) if rows else None


def tests(comparison: Comparison) -> Sheet | None:
    """Paired tests between methods; differences that hold after Holm's correction are marked."""
    rows, tints = list[tuple[str, ...]](), dict[tuple[int, int], str]()
    for test in comparison.tests:
        if test.users < FEW:
            tints |= {(len(rows), column): "unsure" for column in range(2, 6)}
        elif test.p_holm is not None and test.p_holm < 0.05:
            tints[len(rows), 2] = "up" if test.difference > 0 else "down"
        rows.append(
            (
                f"{display(test.first)} − {display(test.second)}",
                measure_text(test.measure),
                ("+" if test.difference >= 0 else "") + number(test.difference, 4),
                f"{number(test.low, 4)} to {number(test.high, 4)}",
                p_text(test.p),
                NONE if test.p_holm is None else p_text(test.p_holm),
            )
        )
    header = ("methods", "N@20 of", "difference", "95% interval", "p", "p (Holm)")
    grid = Grid(f"Paired tests over {comparison.evaluated_users} users", header, tuple(rows))
    return Sheet("tests", grid, tints=tints) if rows else None


def cost(methods: Sequence[Method], logs: Logs) -> Sheet | None:
    """What `results.json` lists under "cost", speed and memory of training; methods as columns."""
    names = dict.fromkeys(
        name for method in methods for name in method.values if name.startswith("cost.") and method.mean(name)
    )
    rows = [(_cost_text(name), *(_amount(method.mean(name)) for method in methods)) for name in names]
    for label, key, highest in (("samples a second", "samples_per_s", False), ("peak memory, GiB", "memory_gib", True)):
        found = [logs.typical(method, key, highest=highest) for method in methods]
        if any(found):
            rows.append((label, *map(_amount, found)))
    header = ("mean over seeds", *(display(method.label) for method in methods))
    return Sheet("cost", Grid("What it cost", header, tuple(rows))) if rows else None


def _cost_text(name: str) -> str:
    what, _, stage = name.removeprefix("cost.").partition(".")
    return f"{what}, {stage}".replace("_", " ").strip(", ")


_CASES = {
    "item_text": "target: title alone",
    "item_image": "target: picture alone",
    "history_text": "history: titles alone",
    "history_image": "history: pictures alone",
    "mixed": "a third of each",
}
"""What `results.json` names under "missing" -> its heading."""


def missing(methods: Sequence[Method]) -> Sheet | None:
    """N@20 where titles or pictures are missing, beside that with nothing missing; a row a method and candidate set."""
    measured = [name.split(".") for method in methods for name in method.values if name.startswith("missing.")]
    cases = list(dict.fromkeys(parts[1] for parts in measured if parts[-1] == "N@20"))
    rows, groups = list[tuple[str, ...]](), list[int]()
    for place, candidates in enumerate(SETS):
        names = [f"missing.{case}.{candidates}.N@20" for case in cases]
        for method in methods:
            if any(name in method.values for name in names):
                whole = cell(method, f"retrieval.{candidates}.N@20")
                rows.append((display(method.label), candidates, whole, *(cell(method, name) for name in names)))
                groups.append(place)
    header = ("method", "candidates", "nothing", *(_CASES.get(case, case) for case in cases))
    grid = Grid("N@20 by what is missing", header, tuple(rows), groups=tuple(groups))
    return Sheet("missing", grid) if rows else None


def _by_method(
    name: str,
    title: str,
    methods: Sequence[Method],
    columns: Sequence[tuple[str, str]],
    *,
    seeds: bool = False,
    head: str = "method",
) -> Sheet:
    """Rows of `mean ± sd`, the best two means of each column marked; what only counts stands apart."""
    own = [str(len(method.seeds) or NONE) for method in methods]
    rows = [
        (display(method.label), *([count] if seeds else []), *(cell(method, figure) for _, figure in columns))
        for method, count in zip(methods, own, strict=True)
    ]
    marked = marks_of(methods, [figure for _, figure in columns], 3)
    marks = [(0, *([0] if seeds else []), *row) for row in marked]
    groups = [int(method.kind not in COUNTING) for method in methods]
    header = (head, *(["seeds"] if seeds else []), *(heading for heading, _ in columns))
    return Sheet(name, Grid(title, header, tuple(rows), tuple(marks), tuple(groups)))


def _first(methods: Sequence[Method], name: str) -> str:
    """A figure that is the same for all methods, from the first that has it; empty where none has."""
    return next((number(mean) for method in methods if (mean := method.mean(name)) is not None), "")


def _start(method: Method, name: str) -> str:
    """A figure at step 0, where seeds do not differ."""
    mean = method.mean(name)
    return NONE if mean is None else number(mean)


def _amount(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}".replace(",", "\N{THIN SPACE}") if abs(value) >= 100 else f"{value:.3g}"
