"""Runs experiments: every run resumable, shared by all experiments of a folder, pages written anew after every row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm2rec.config import override_all, read_toml
from vlm2rec.damage import damage
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.experiments.datasets import write_statistics
from vlm2rec.experiments.paper import ALL, EXPERIMENTS
from vlm2rec.experiments.plan import NOT_ASKED, Plan, expanded, make_plan, merged, near
from vlm2rec.experiments.schedule import Task, default_jobs, run_all
from vlm2rec.experiments.shop import packaged, shop
from vlm2rec.experiments.spec import Experiment
from vlm2rec.experiments.tables import Results, write_tables
from vlm2rec.runs import STAGES, Run, read_json, write_json

SEEDS = (0, 1, 2, 3, 4)
"""The paper's five."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is wanted of which data.

    Attributes:
        names: tables and figures; "all" stands for `paper.ALL`.
        config: an experiment's TOML file; None: the built-in shop.
        out: gets `runs/` and, of each experiment, `NAME.md`, `.tex`, `.csv`, with a reference row `NAME-tests.csv`,
            and of a figure `NAME.svg`, `.png`, `.pdf`. Experiments of one folder share their runs.
        overrides: "section.key=value" for all rows, "rows.NAME.section.key=value" for some.
        seeds: the paper's five, if none is given.
        quick: lay the packaged `quick.toml` over the configuration, and take one seed.
        only: rows to run; all, if none is given.
        without: rows to leave out.
    """

    names: Sequence[str]
    config: Path | None
    out: Path
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = ()
    quick: bool = False
    only: Sequence[str] = ()
    without: Sequence[str] = ()


def run_experiments(asked: Asked, jobs: int | None = None, say: Say = print) -> list[Path]:
    """Make tables and figures of the paper; `jobs` runs are done at a time, by default one a GPU.

    Runs that are done are skipped, so what was stopped goes on when asked for again.

    Returns:
        The Markdown files.

    Raises:
        InputError: a setting is wrong (before anything runs), or rows could not be run (after all others have).
    """
    plans, raw = make_plans(asked, say)
    pages = [_Page(plan, raw, asked.out, say, asked.quick) for plan in plans if plan.cells]
    for page in pages:  # all rows of a page are of one data set, and without it none can be run
        Dataset.load(page.plan.shown[0].config.data.path)
    for plan in (plan for plan in plans if not plan.cells):
        say(write_statistics(plan.experiment, raw, asked.out, asked.quick))

    def told(task: Task, reason: str) -> None:
        if reason:
            say(f"  {task.name}: {reason}")
        for page in pages:
            page.told(task, reason)

    tasks = merged_tasks(plans, asked.quick)
    from vlm2rec.methods.reading import warn_ahead  # imports torch: what can be wrong has been looked at by now

    warn_ahead(task.config for task in tasks if not task.is_done)
    run_all(tasks, asked.out / "runs" / ".shared", jobs or default_jobs(), told, say)
    _complain(pages)
    return [asked.out / f"{plan.experiment.name}.md" for plan in plans]


def run_experiment(name: str, config: Path | str | None, out: Path | str, *, say: Say = print, **options: Any) -> Path:
    """`run_experiments` of one: its Markdown file."""
    return run_experiments(Asked([name], None if config is None else Path(config), Path(out), **options), say=say)[0]


def plan_experiments(asked: Asked, jobs: int | None = None, say: Say = print) -> str:
    """The runs that `run_experiments` would make, and about what they would take, as text."""
    from vlm2rec.experiments.estimate import plan_text

    plans, _ = make_plans(asked, say)
    left_out = {name: reason for plan in plans for name, reason in plan.left_out.items() if reason != NOT_ASKED}
    text = plan_text(merged_tasks(plans), jobs or default_jobs())
    return "\n".join([text, *(f"left out: {name} ({reason})" for name, reason in left_out.items())])


def make_plans(asked: Asked, say: Say) -> tuple[list[Plan], dict[str, Any]]:
    """The runs of each experiment, and the settings they were planned from. Raises InputError, as `run_experiments`."""
    experiments = [find_experiment(name) for name in dict.fromkeys(_named(asked.names))]
    for override in asked.overrides:
        section = override.partition("=")[0].split(".")[0].strip()
        if section in ("method", "seed"):
            how = "--seeds" if section == "seed" else "--set rows.NAME.method.…, since each row is a method of its own"
            raise InputError(f"--set {override}: use {how}")
    other = any(row.data for experiment in experiments for row in experiment.support)
    raw = shop(asked.out, asked.quick, other, say) if asked.config is None else read_toml(asked.config)
    if asked.quick:
        raw = merged(raw, packaged("quick.toml"))
    override_all(raw, asked.overrides)
    seeds = asked.seeds or SEEDS[: 1 if asked.quick else None]
    names = [{row.name for row in expanded(experiment, raw).rows} for experiment in experiments]
    for name in (*asked.only, *asked.without):
        if not any(name in own for own in names):
            where, known = ", ".join(asked.names), sorted(set().union(*names))
            raise InputError(f"{where} has no row {name}; {near(name, known)}")
    plans = []
    for experiment, own in zip(experiments, names, strict=True):
        only = [name for name in asked.only if name in own]
        if not experiment.rows:
            plans.append(Plan(experiment, (), {}))
        elif only or not asked.only:
            without = [name for name in asked.without if name in own]
            plans.append(make_plan(experiment, raw, seeds, asked.out, only, without))
    return plans, raw


def show_experiment(name: str, out: Path | str) -> str:
    """The tables as text, from the runs that stand in `out` by now. Raises InputError where none does."""
    out, experiment = Path(out), find_experiment(name)
    noted = read_json(out / f"{name}.json", "experiment")
    if not experiment.rows and "datasets" in noted:
        return write_statistics(experiment, noted["datasets"], out, bool(noted.get("quick")))
    if not {"rows", "left_out"} <= noted.keys():
        raise InputError(f"{out / f'{name}.json'}: not what `vlm2rec experiment run` wrote; run it again")
    rows = {row: [out / folder for folder in folders] for row, folders in noted["rows"].items()}
    return write_tables(expanded(experiment, noted.get("file", {})), Results(rows, noted["left_out"]), out)


def find_experiment(name: str) -> Experiment:
    """A table or figure by name. Raises InputError where there is none."""
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def merged_tasks(plans: Sequence[Plan], quick: bool = False) -> list[Task]:
    """The runs of several plans, each once and as far as any of them needs it; `quick` is what they will be marked."""
    found: dict[Path, Task] = {}
    names: set[str] = set()
    for cell in (cell for plan in plans for cell in plan.cells):
        other = found.get(cell.folder)
        until = max((cell.until, other.until if other else cell.until), key=STAGES.index)
        name = f"{cell.row.label}, seed {cell.seed}"
        name = (
            other.name if other else f"{cell.row.label} ({cell.row.name}), seed {cell.seed}" if name in names else name
        )
        names.add(name)
        found[cell.folder] = Task(name, cell.config, cell.folder, until, cell.needs, quick)
    return list(found.values())


def _named(names: Sequence[str]) -> list[str]:
    return [each for name in names for each in (ALL if name == "all" else (name,))]


@dataclass
class _Page:
    """An experiment's page, as far as its runs have come."""

    plan: Plan
    raw: Mapping[str, Any]
    out: Path
    say: Say
    quick: bool = False
    done: dict[str, list[Path]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    """Row -> runs that have not ended."""

    def __post_init__(self) -> None:
        for cell in self.plan.shown:
            self.open[cell.row.name] = self.open.get(cell.row.name, 0) + 1
        self.done = self._earlier() if self.plan.cells else {}

    @property
    def name(self) -> str:
        return self.plan.experiment.name

    def told(self, task: Task, reason: str) -> None:
        """Note a run that ended; write the page where a row is complete, with figures once all rows are."""
        for cell in (cell for cell in self.plan.cells if cell.folder == task.folder):
            if reason:
                self.failed[cell.name] = reason
            elif cell in self.plan.shown:
                self.done.setdefault(cell.row.name, []).append(cell.folder)
            if cell not in self.plan.shown:
                continue
            self.open[cell.row.name] -= 1
            if not self.open[cell.row.name] and self.done.get(cell.row.name) and any(self.open.values()):
                self._write(figures=False)
        if any(cell.folder == task.folder for cell in self.plan.shown) and not any(self.open.values()) and self.done:
            self.say("\n" + self._write(figures=True))

    def _write(self, figures: bool) -> str:
        """Write down what is done so far, and the page of it."""
        seeds = {cell.folder: cell.seed for cell in self.plan.cells}
        done = {row: sorted(runs, key=lambda run: seeds.get(run, 0)) for row, runs in self.done.items()}
        left_out = {**self.plan.left_out, **self.failed}
        missing = {name: reason for name, reason in left_out.items() if name not in done}
        rows = {row: [str(folder.relative_to(self.out)) for folder in folders] for row, folders in done.items()}
        each = EXPERIMENTS[self.name].each
        file = {key: self.raw[key] for key in (each, "backbone") if each and key in self.raw}
        write_json(
            self.out / f"{self.name}.json", {"rows": rows, "left_out": missing, "file": file, "quick": self.quick}
        )
        return write_tables(self.plan.experiment, Results(done, missing), self.out, figures)

    def _earlier(self) -> dict[str, list[Path]]:
        """Rows that are on the page already and were not asked for now, if they were judged as these will be."""
        path = self.out / f"{self.name}.json"
        noted = read_json(path, "experiment").get("rows", {}) if path.exists() else {}
        first = self.plan.shown[0].config
        kept = {}
        for row, folders in noted.items():
            runs = [self.out / folder for folder in folders]
            if row not in self.open and not any(
                damage(run / name) for run in runs for name in ("results.json", "users.parquet")
            ):
                configs = [Run.open(run).config for run in runs]
                if all((config.data, config.evaluation) == (first.data, first.evaluation) for config in configs):
                    kept[row] = runs
        return kept


def _complain(pages: Sequence[_Page]) -> None:
    """Raise InputError where runs failed, naming each once."""
    for page in pages:
        if not page.done:
            raise InputError(f"{page.name}: no row could be run; the first said: {next(iter(page.failed.values()))}")
    failed = {name: reason for page in pages for name, reason in page.failed.items()}
    if failed:
        path = next(page.out / f"{page.name}.md" for page in pages if page.failed)
        reasons = "; ".join(f"{run}: {reason}" for run, reason in failed.items())
        raise InputError(f"{path} stands without {len(failed)} of its runs ({reasons})")
