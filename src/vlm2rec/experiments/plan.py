"""From one configuration to an experiment's runs: every row's settings laid over it, for every seed.

An experiment's TOML file is that of a run, with further tables besides:

[rows.slim.method]      settings of the row `slim` alone; [rows."llm*".backbone]: of all rows that fit the pattern
[without]               rows to leave out, each with the reason that the page shall give
[families.NAME.backbone]  a backbone of figure 4; [families.NAME] may have a `label` and any other section
[source]                `path` of the other data set of table 6
datasets = […]          further data sets of table 3
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlm2rec.config import Config, parse_config
from vlm2rec.errors import InputError
from vlm2rec.experiments.paper import EXPERIMENTS
from vlm2rec.experiments.rows import SOURCE
from vlm2rec.experiments.spec import Experiment, Row

NOT_ASKED = "not asked for"

BESIDES = ("rows", "without", "families", "source", "datasets")
"""What an experiment's file has and a run's has not."""

_COMMON = ("data", "evaluation", "seed")
"""What the file may not change for single rows: all rows of a table are judged alike."""

_BASE: dict[str, Any] = {"seqrec": {"backbones": ["sasrec", "gru4rec"]}, "monitor": {"probes": 24}}
"""What every row does unless the file says otherwise, so that one run serves all tables and figures."""


@dataclass(frozen=True)
class Cell:
    """A row at one seed: its configuration, the folder of its run, and those of the runs that it reads."""

    row: Row
    seed: int
    folder: Path
    config: Config
    until: str
    needs: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment, row by row, and the rows that it goes without, with the reason."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]

    @property
    def shown(self) -> tuple[Cell, ...]:
        """Cells of rows that stand in the experiment's tables."""
        names = {row.name for row in self.experiment.rows}
        return tuple(cell for cell in self.cells if cell.row.name in names)


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
        experiment: the table or figure.
        raw: nested mappings as read from TOML: a run's configuration and what an experiment's file has besides.
        seeds: for rows that a seed changes; the first one serves the others where there is no Task 2.
        out: runs go to `out`/runs, where experiments of one folder share them. Rows of one configuration are one run.
        only: names of rows; all, if none is given. Rows that they need are run too where nothing else shows them.
        without: names of rows to leave out.

    Raises:
        InputError: a row is not known, a setting is wrong, or no row is left.
    """
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {', '.join(map(str, seeds))}: one is there twice, and would count twice")
    experiment = expanded(experiment, raw)
    settings = _Settings(raw, out)
    left_out = _left_out(experiment, settings, only, without)
    cells = []
    for row in (*experiment.support, *experiment.rows):
        if row.name in left_out:
            continue
        support = row in experiment.support
        until = "report" if experiment.task2 and not support else "evaluate"
        for seed in seeds if row.seeded or experiment.task2 else seeds[:1]:
            config = settings.config(row, seed, f"{experiment.name}, row {row.name}")
            needs = tuple(settings.folder(name, seed) for name in row.needs)
            cells.append(Cell(row, seed, settings.home(row, seed, config), config, until, needs))
    plan = Plan(experiment, tuple(cells), {name: why for name, why in left_out.items() if why})
    if not plan.shown:
        reasons = {name: reason for name, reason in left_out.items() if reason != NOT_ASKED}
        why = "; ".join(f"{name} {reason}" for name, reason in reasons.items()) or "all are left out"
        raise InputError(f"{experiment.name}: no row is left to run ({why})")
    return plan


def expanded(experiment: Experiment, raw: Mapping[str, Any]) -> Experiment:
    """An experiment whose rows hang on the file, with those rows; any other as it is.

    Without entries in the file, its own backbone is the only one.
    """
    if not experiment.each:
        return experiment
    entries = _table(raw, experiment.each) or {"own": {"label": Path(_backbone(raw)).name}}
    rows = []
    for name, entry in entries.items():
        if not isinstance(entry, Mapping) or not all(isinstance(v, Mapping) for k, v in entry.items() if k != "label"):
            raise InputError(f"{experiment.each}.{name}: give sections, as in [{experiment.each}.{name}.backbone]")
        label = str(entry.get("label", name))
        own = {section: values for section, values in entry.items() if section != "label"}
        rows += [
            replace(
                row, name=f"{row.name}_{name}", label=f"{label}, {row.label}", settings=merged(row.settings, own),
                group=label,
            )
            for row in experiment.rows
        ]  # fmt: skip
    return replace(experiment, rows=tuple(rows), each="")


def _left_out(
    experiment: Experiment, settings: "_Settings", only: Sequence[str], without: Sequence[str]
) -> dict[str, str]:
    """Rows that are not run, and why; "" for a row that nothing asked for needs."""
    names = [row.name for row in experiment.rows]
    known = settings.known(experiment)
    for pattern in settings.own:  # one file serves all experiments, so rows of others are no mistake
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InputError(f"rows.{pattern}: there is no such row; {near(pattern, known)}")
    for name in (*only, *without):
        if name not in names:
            raise InputError(f"{experiment.name} has no row {name}; {near(name, names)}")
    for name in settings.reasons:
        if name not in known:
            raise InputError(f"without.{name}: there is no such row; {near(name, known)}")
    reasons = {**settings.reasons, **dict.fromkeys(without, NOT_ASKED)}
    found: dict[str, str] = {}
    for row in (*experiment.support, *experiment.rows):
        asked = only if row in experiment.rows else ()
        reason = settings.reason(row, asked, reasons, found)
        if reason:
            found[row.name] = reason
    needed = {name for row in experiment.rows if row.name not in found for name in row.needs}
    return found | {row.name: "" for row in experiment.support if row.name not in found and row.name not in needed}


class _Settings:
    """The file's settings for any row, and the folder that a configuration's run has."""

    def __init__(self, raw: Mapping[str, Any], out: Path) -> None:
        self.raw, self.out = raw, out
        self.own, self.reasons = _table(raw, "rows"), _table(raw, "without")
        self._common = merged(_BASE, {k: v for k, v in raw.items() if k not in (*BESIDES, "method")})
        self._homes: dict[int, dict[str, str]] = {}

    def known(self, experiment: Experiment) -> list[str]:
        """Names of the rows of all experiments."""
        return list(dict.fromkeys(row.name for row in (*_rows(experiment), *self._everything())))

    def of(self, row: Row) -> dict[str, Any]:
        """A row's configuration: the common one, the row's own, and what the file says of the row."""
        settings = merged(self._common, row.settings)
        if row.data:
            settings = merged(settings, {"data": {"path": str(_table(self.raw, row.data).get("path", ""))}})
        for pattern, given in self.own.items():
            if fnmatchcase(row.name, pattern):
                settings = merged(settings, _checked(pattern, given))
        return settings

    def config(self, row: Row, seed: int, origin: str) -> Config:
        """A row's configuration at one seed. Raises InputError where a setting is wrong."""
        settings = self.of(row)
        places = {f"{{{name}}}": str(self.folder(name, seed)) for name in row.needs}
        method = {k: places.get(v, v) if isinstance(v, str) else v for k, v in settings["method"].items()}
        return parse_config({**settings, "method": method, "seed": seed}, origin=origin)

    def folder(self, name: str, seed: int) -> Path:
        """Where the run of a row lies that shares it with none before it."""
        return self.out / "runs" / f"{name}-seed{seed}"

    def home(self, row: Row, seed: int, config: Config) -> Path:
        """Where the run of this configuration lies: under the name of the first row that has it."""
        if seed not in self._homes:
            self._homes[seed] = self._first_names(seed)
        return self.folder(self._homes[seed].get(config.model_dump_json(), row.name), seed)

    def reason(self, row: Row, only: Sequence[str], without: Mapping[str, str], left_out: Mapping[str, str]) -> str:
        """Why a row is left out; empty if it is not."""
        if only and row.name not in only:
            return NOT_ASKED
        if row.name in without and row.name not in only:
            return without[row.name]
        if row.data and "path" not in _table(self.raw, row.data):
            return f"needs {row.data}.path, another data set"
        settings = self.of(row)
        missing = [key for key in row.given if key.split(".")[-1] not in settings[key.split(".")[0]]]
        if missing:
            return f"needs {' and '.join(f'rows.{row.name}.{key}' for key in missing)}"
        gone = next((name for name in row.needs if name in left_out), None)
        if gone is None:
            return ""
        # A row that only stands behind this one is not known to readers, so its reason is given.
        return left_out[gone] if gone.endswith(SOURCE) else f"needs the row {gone}"

    def _everything(self) -> Iterable[Row]:
        return (row for experiment in EXPERIMENTS.values() for row in _rows(expanded(experiment, self.raw)))

    def _first_names(self, seed: int) -> dict[str, str]:
        """Configuration -> the first row, over all experiments, that has it."""
        found: dict[str, str] = {}
        for row in self._everything():
            if not self.reason(row, (), {}, {}):
                try:
                    config = self.config(row, seed, row.name)
                except InputError:  # said where the row is asked for
                    continue
                found.setdefault(config.model_dump_json(), row.name)
        return found


def _rows(experiment: Experiment) -> tuple[Row, ...]:
    return (*experiment.support, *experiment.rows)


def _table(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, Mapping):
        raise InputError(f"{name} = {found!r}: give a table, as in {name}.NAME…=…")
    return dict(found)


def _backbone(raw: Mapping[str, Any]) -> str:
    return str(_table(raw, "backbone").get("path", "nano"))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second laid over the first, key by key."""
    found = dict(base)
    for key, value in over.items():
        below = found.get(key)
        found[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return found


def _checked(pattern: str, given: Any) -> Mapping[str, Any]:
    """What the file says of some rows. Raises InputError where it is not for single rows to say."""
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
    return given


def near(name: str, names: Sequence[str]) -> str:
    """The end of a message about a name that is not known."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
