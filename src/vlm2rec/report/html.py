"""The report: run directories and their data set in, one self-contained HTML file out."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm2rec.compare import COUNTING, compare
from vlm2rec.comparison import SEQUENTIAL, SETS, VIEWS, Comparison, Method, measure_text, p_text
from vlm2rec.config import config_toml
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.metrics import METRICS
from vlm2rec.report import figures
from vlm2rec.report.examples import Shopper, shoppers
from vlm2rec.report.figures import Bar, Group, Series, number
from vlm2rec.report.words import display, findings
from vlm2rec.runs import Run, read_metrics, write_text

_SIDES = {"f2f": "fused", "t2f": "text", "v2f": "image"}
_CURVES = {
    "loss": "Training loss",
    "penalty": "Penalty w on negatives (Eq. 9)",
    "gap": "Gap between the margins (Eq. 8)",
    "norm_ratio": "|z_T| / |z_V|",
}
_COLOURS = 6


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write the page for one run or many.

    What is missing is left out and said so: counting methods have no embeddings and no curves, a data set that
    has moved gives no shoppers.

    Args:
        runs: finished run directories of one data set.
        out: the HTML file to write.
        title: heading of the page; by default the name of the data set.

    Returns:
        `out`.

    Raises:
        InputError: a run is missing, unfinished or foreign, or the runs do not belong together (see `compare`).
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of an HTML file")
    comparison = compare(runs)
    page = _page(comparison, title)
    write_text(out, _render(page))
    return out


def _render(page: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = Markup  # only for what figures.py drew: it escapes its own text
    template = files("vlm2rec.report").joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page)


def _page(comparison: Comparison, title: str | None) -> dict[str, Any]:
    """Everything the template shows."""
    first = comparison.methods[0].runs[0]
    people, name, note = _people(comparison, first)
    several = any(len(method.seeds) > 1 for method in comparison.methods)
    chance = comparison.chance.get("sampled")
    return {
        "title": title or f"{name}: who buys what next",
        "name": name,
        "data": first.results().get("data", {}),
        "evaluated": comparison.evaluated_users,
        "several_seeds": several,
        "findings": findings(comparison),
        "headline": _table(comparison.methods, [(s, f"retrieval.{s}.N@20") for s in SETS]),
        "sets": SETS,
        "chance": number(chance) if chance is not None else "unknown",
        "oracle": [_number(comparison, f"oracle.{name}.N@20") for name in SETS],
        "metrics": [
            (name, _table(comparison.methods, [(m, f"retrieval.{name}.{m}") for m in METRICS])) for name in SETS
        ],
        "metric_names": METRICS,
        "sequential": _sequential(comparison.methods),
        "dropout": figures.bars(
            "N@20 by what the query keeps, sampled candidates", _dropout(comparison.methods, "sampled"), chance
        ),
        "dropout_matched": figures.bars(
            "N@20 by what the query keeps, popularity-matched candidates",
            _dropout(comparison.methods, "matched"),
            comparison.chance.get("matched"),
        ),
        "dropout_groups": sum(method.mean("dropout.f2f") is not None for method in comparison.methods),
        "geometry": _geometry(comparison.methods),
        "curves": _curves(comparison.methods),
        "tests": [_test_row(comparison, index) for index in range(len(comparison.tests))],
        "shoppers": people,
        "shoppers_note": note,
        "cost": _cost(comparison.methods),
        "differences": {
            key: {display(label): value for label, value in values.items()}
            for key, values in comparison.differences.items()
        },
        "recipes": [_recipe(method, comparison.methods) for method in comparison.methods],
        "versions": first.manifest.get("versions", {}),
        "fingerprint": first.manifest.get("data", {}).get("fingerprint", ""),
        "candidate_seed": first.config.evaluation.candidate_seed,
    }


def _people(comparison: Comparison, run: Run) -> tuple[list[Shopper], str, str]:
    """(shoppers, name of the data set, why there are no shoppers)."""
    path = run.config.data.path
    try:
        dataset = Dataset.load(path)
    except InputError:
        return [], path.name, f"The data set is no longer at {path}, so no shoppers are shown."
    if dataset.fingerprint != run.manifest.get("data", {}).get("fingerprint"):
        return [], path.name, f"{path} now holds other data than the runs were made from, so no shoppers are shown."
    people = shoppers(comparison, dataset)
    return people, dataset.name, "" if people else "None of these runs keeps embeddings, so no shoppers are shown."


def _table(methods: Sequence[Method], columns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of `mean ± sd`, the best mean of each column marked."""
    best = {
        name: max((m for method in methods if (m := method.mean(name)) is not None), default=None)
        for _, name in columns
    }
    return [
        {
            "label": display(method.label),
            "counting": method.kind in COUNTING,
            "seeds": len(method.seeds),
            "cells": [
                {**_cell(method, name), "best": len(methods) > 1 and method.mean(name) == best[name] is not None}
                for _, name in columns
            ],
        }
        for method in methods
    ]


def _sequential(methods: Sequence[Method]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Task 2: a table for each sequential model that any of the methods started."""
    tables = []
    for kind in SEQUENTIAL:
        names = [(candidates, f"seqrec.{kind}.{candidates}.N@20") for candidates in SETS]
        having = [method for method in methods if names[0][1] in method.values]
        if having:
            tables.append((display(kind), _table(having, names)))
    return tables


def _cell(method: Method, name: str, digits: int = 3) -> dict[str, str]:
    mean, sd = method.mean(name), method.sd(name)
    return {
        "mean": "–" if mean is None else number(mean, digits),
        "sd": "" if sd is None else f"±\N{NO-BREAK SPACE}{number(sd, digits)}",
    }


def _number(comparison: Comparison, name: str) -> str:
    """A figure that is the same for all methods, from the first that has it."""
    return next((number(mean) for method in comparison.methods if (mean := method.mean(name)) is not None), "")


def _dropout(methods: Sequence[Method], candidates: str) -> list[Group]:
    groups = []
    for method in methods:
        found = []
        for view in VIEWS:
            name = f"dropout.{view}" if candidates == "sampled" else f"{candidates}.{view}"
            value = method.mean(name)
            if value is not None and (candidates == "sampled" or f"{candidates}.v2f" in method.values):
                start = method.mean(f"reference.{name}") if method.kind != "vanilla" else None
                found.append(Bar(_SIDES[view], view, value, method.sd(name), start))
        groups.append(Group(display(method.label), tuple(found)))
    return groups


def _geometry(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """A row for each method and view that has a geometry."""
    rows = []
    for method in methods:
        views = [view for view in ("text", "image", "fused") if method.mean(f"geometry.{view}.S") is not None]
        for view in views:
            start = "" if method.kind == "vanilla" else _cell(method, f"reference.geometry.{view}.S")["mean"]
            cells = [_cell(method, f"geometry.{view}.{name}") for name in ("A_pos", "A_neg", "U", "S")]
            rows.append(
                {
                    "label": display(method.label) if view == views[0] else "",
                    "span": len(views),
                    "view": view,
                    "cells": cells,
                    "start": start,
                    "flat": (method.mean(f"geometry.{view}.S") or 0) <= 1,
                }
            )
    return rows


def _curves(methods: Sequence[Method]) -> list[str]:
    """Loss and what goes with it across methods, validation, and margins by modality, one chart a method."""
    trained = [
        (method, f"m{index % _COLOURS}", [_lines_of(run) for run in method.runs])
        for index, method in enumerate(method for method in methods if method.kind not in (*COUNTING, "vanilla"))
    ]
    charts = []
    for key, title in _CURVES.items():
        charts.append(figures.lines(title, _series(trained, 0, key)))
    charts.insert(1, figures.lines("Validation N@20", _series(trained, 1, "N@20")))
    for method, _, runs in trained:
        both = [
            Series(side, side, *curve, faint=index > 0)
            for index, (train, _) in enumerate(runs)
            for side in ("text", "image")
            if (curve := _points(train, f"margin_{side}"))[0]
        ]
        charts.append(figures.lines(f"Margins, {display(method.label)}", both))
    return [chart for chart in charts if chart]


_Log = list[dict[str, Any]]


def _lines_of(run: Run) -> tuple[_Log, _Log]:
    path = run.path / "metrics.jsonl"
    return read_metrics(path, "train"), read_metrics(path, "validation")


def _series(trained: Sequence[tuple[Method, str, list[tuple[_Log, _Log]]]], part: int, key: str) -> list[Series]:
    return [
        Series(css, display(method.label), *curve, faint=index > 0)
        for method, css, runs in trained
        for index, logs in enumerate(runs)
        if (curve := _points(logs[part], key))[0]
    ]


def _points(log: _Log, key: str) -> tuple[list[float], list[float]]:
    found = [(float(line["step"]), float(line[key])) for line in log if isinstance(line.get(key), int | float)]
    return figures.thin([step for step, _ in found], [value for _, value in found])


def _test_row(comparison: Comparison, index: int) -> dict[str, str]:
    test = comparison.tests[index]
    sign = "+" if test.difference >= 0 else ""
    return {
        "methods": f"{display(test.first)} − {display(test.second)}",
        "measure": measure_text(test.measure),
        "difference": sign + number(test.difference, 4),
        "interval": f"{number(test.low, 4)} to {number(test.high, 4)}",
        "p": p_text(test.p),
        "p_holm": "–" if test.p_holm is None else p_text(test.p_holm),
        "verdict": "" if test.p_holm is None or test.p_holm >= 0.05 else "up" if test.difference > 0 else "down",
    }


def _cost(methods: Sequence[Method]) -> dict[str, Any]:
    """What `results.json` lists under "cost", methods as columns."""
    names = dict.fromkeys(
        name for method in methods for name in method.values if name.startswith("cost.") and method.mean(name)
    )
    return {
        "methods": [display(method.label) for method in methods],
        "rows": [
            (
                name.removeprefix("cost.").replace("_", " ").replace(".", ", "),
                [_amount(method.mean(name)) for method in methods],
            )
            for name in names
        ],
    }


def _amount(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}".replace(",", "\N{THIN SPACE}") if abs(value) >= 100 else f"{value:.3g}"


def _recipe(method: Method, methods: Sequence[Method]) -> dict[str, Any]:
    """The configuration of a method, and the command that runs it again for all its seeds."""
    same = [other for other in methods if other.kind == method.kind]
    file = f"{method.kind}{f'-{same.index(method) + 1}' if len(same) > 1 else ''}.toml"
    seeds = ",".join(map(str, method.seeds))
    command = f"vlm2rec sweep {file} --set seed={seeds}" if len(method.seeds) > 1 else f"vlm2rec run {file}"
    return {
        "label": display(method.label),
        "file": file,
        "command": command,
        "folders": ", ".join(run.path.name for run in method.runs),
        "config": config_toml(method.runs[0].config),
    }
