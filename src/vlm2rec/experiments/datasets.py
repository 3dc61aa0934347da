"""Table 3: what prepared data sets hold. No run is needed for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm2rec.comparison import Method
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import describe
from vlm2rec.errors import InputError
from vlm2rec.experiments.spec import Experiment, Line, Row
from vlm2rec.experiments.tables import write_page
from vlm2rec.runs import write_json


def write_statistics(experiment: Experiment, raw: Mapping[str, Any], out: Path, quick: bool = False) -> str:
    """The page of all data sets that a file names (`data.path`, `source.path`, `datasets`); it comes back as text.

    `quick`: asked for with --quick, which draws a smaller shop.

    Raises:
        InputError: the file names none, or one cannot be read.
    """
    paths = _paths(raw)
    lines = [_line(path, described) for path, described in ((path, describe(Dataset.load(path))) for path in paths)]
    write_json(
        out / f"{experiment.name}.json", {"datasets": {"datasets": [str(path) for path in paths]}, "quick": quick}
    )
    return write_page(experiment, lines, [f"From {', '.join(map(str, paths))}."], out, quick=quick)


def _paths(raw: Mapping[str, Any]) -> list[Path]:
    named = [raw.get(table, {}).get("path") for table in ("data", "source")]
    further = raw.get("datasets", [])
    if not isinstance(further, list) or not all(isinstance(path, str) for path in further):
        raise InputError(f"datasets = {further!r}: give a list of folders")
    paths = list(dict.fromkeys(Path(path) for path in (*named, *further) if path))
    if not paths:
        raise InputError("data.path is missing; give it in the file or with --set data.path=…")
    return paths


def _line(path: Path, described: Mapping[str, Any]) -> Line:
    row = Row(str(path), f"{described['name']} ({path.name})", "", {})
    values = {name: (value,) for name, value in _numbers(described)}
    return Line(row, Method(row.label, "data set", (), (), values, {}))


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            found.append((f"{prefix}{key}", float(value)))
    return found
