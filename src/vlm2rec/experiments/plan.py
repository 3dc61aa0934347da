"""From one configuration to a table's runs: every row's settings laid over it, for every seed.

An experiment's TOML file is that of a run, with a table `rows` besides: `[rows.slim.method]` holds settings of the row
`slim` alone, `[rows."llm*".backbone]` those of all rows whose names fit the pattern. `[without]` names rows to leave
out, each with the reason that the table shall give.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm2rec.config import Config, parse_config
from vlm2rec.errors import InputError
from vlm2rec.experiments.paper import EXPERIMENTS, Experiment, Row

NOT_ASKED = "not asked for"

_COMMON = ("data", "evaluation", "seed")
"""What a row may not change: all rows of a table are judged alike."""


@dataclass(frozen=True)
class Cell:
    """A row at one seed: its configuration, and the folder of its run."""

    row: Row
    seed: int
    folder: Path
    config: Config


@dataclass(frozen=True)
class Plan:
    """The runs of a table, row by row, and the rows that it goes without, with the reason."""

    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]


def make_plan(
    experiment: Experiment,
    raw: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Plan:
    """Check every row's configuration before anything runs.

    Args:
        experiment: the table.
        raw: nested mappings as read from TOML: a run's configuration and `rows`.
        seeds: for rows that a seed changes; the first one serves the others in a table of Task 1.
        out: runs go to `out`/runs, where tables of one folder share them.
        only: names of rows; all, if none is given.
        without: names of rows to leave out.

    Raises:
        InputError: a row is not known, a setting is wrong, or no row is left.
    """
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {', '.join(map(str, seeds))}: one is there twice, and would count twice")
    own, reasons = _table(raw, "rows"), {**_table(raw, "without"), **dict.fromkeys(without, NOT_ASKED)}
    known = list(dict.fromkeys(row.name for table in EXPERIMENTS.values() for row in table.rows))
    for pattern in own:  # one file serves all tables, so rows of others are no mistake
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(f"rows.{pattern}: there is no such row; {_near(pattern, known)}")
    names = [row.name for row in experiment.rows]
    for name in (*only, *without, *reasons):
        if name not in (known if name in reasons and name not in without else names):
            raise InputError(f"{experiment.name} has no row {name}; {_near(name, names)}")
    left_out: dict[str, str] = {}
    cells: list[Cell] = []
    for row in experiment.rows:
        settings = _settings(row, raw, own)
        reason = _reason(row, settings, only, reasons, left_out)
        if reason:
            left_out[row.name] = reason
            continue
        for seed in seeds if row.seeded or experiment.task2 else seeds[:1]:
            folder = out / "runs" / f"{row.name}-seed{seed}"
            others = {name: str(out / "runs" / f"{name}-seed{seed}") for name in row.needs}
            config = parse_config(
                {**_filled(settings, others), "seed": seed}, origin=f"{experiment.name}, row {row.name}"
            )
            cells.append(Cell(row, seed, folder, config))
    if not cells:
        reasons = {name: reason for name, reason in left_out.items() if reason != NOT_ASKED}
        why = "; ".join(f"{name} {reason}" for name, reason in reasons.items()) or "all are left out"
        raise InputError(f"{experiment.name}: no row is left to run ({why})")
    return Plan(tuple(cells), left_out)


def _table(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{name} = {found!r}: give a table, as in {name}.NAME…=…")
    return dict(found)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second laid over the first, key by key."""
    found = dict(base)
    for key, value in over.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return found


def _settings(row: Row, raw: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A row's configuration: the common one, the row's own, and what the file says of the row."""
    common = {key: value for key, value in raw.items() if key not in ("rows", "without", "method")}
    tasks = {"seqrec": {"backbones": ["sasrec", "gru4rec"]}}
    settings = merged(merged(tasks, common), row.settings)
    for pattern, given in own.items():
        if not fnmatchcase(row.name, pattern):
            continue
        if not isinstance(given, Mapping):
            raise InputError(f"rows.{pattern} = {given!r}: give sections, as in rows.{pattern}.training.lr=1e-4")
        wrong = next((key for key in _COMMON if key in given), None)
        if wrong:
            how = "use --seeds" if wrong == "seed" else f"set {wrong} itself"
            raise InputError(f"rows.{pattern}.{wrong}: is the same for all rows of a table; {how}")
        for section, values in given.items():
            if not isinstance(values, Mapping):
                raise InputError(
                    f"rows.{pattern}.{section} = {values!r}: give a setting, as in rows.{pattern}.{section}.…=…"
                )
        if "kind" in given.get("method", {}):
            raise InputError(f"rows.{pattern}.method.kind: a row is its method; take the row of the other one")
        settings = merged(settings, given)
    return settings


def _reason(
    row: Row, settings: Mapping[str, Any], only: Sequence[str], without: Mapping[str, str], left_out: Mapping[str, str]
) -> str:
    """Why a row is left out; empty if it is not."""
    if only and row.name not in only:
        return NOT_ASKED
    if row.name in without and row.name not in only:
        return without[row.name]
    missing = [key for key in row.given if key.split(".")[-1] not in settings[key.split(".")[0]]]
    if missing:
        return f"needs {' and '.join(f'rows.{row.name}.{key}' for key in missing)}"
    return next((f"needs the row {name}" for name in row.needs if name in left_out), "")


def _filled(settings: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """The settings with other rows' folders in the place of their names in braces."""
    places = {f"{{{name}}}": folder for name, folder in folders.items()}
    method = {
        key: places.get(value, value) if isinstance(value, str) else value for key, value in settings["method"].items()
    }
    return {**settings, "method": method}


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
