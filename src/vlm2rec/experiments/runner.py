"""Runs a table: row after row, seed after seed, each run resumable, the table written anew after every row."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm2rec.config import override_all, read_toml
from vlm2rec.errors import InputError
from vlm2rec.experiments.paper import EXPERIMENTS, Experiment
from vlm2rec.experiments.plan import Plan, make_plan, merged
from vlm2rec.experiments.tables import Results, write_tables
from vlm2rec.job import run
from vlm2rec.runs import Run, read_json, write_json

SEEDS = (0, 1, 2, 3, 4)
"""The paper's five."""

_SHOP_SHOPPERS = 500  # of the built-in shop with --quick


def run_experiment(
    name: str,
    config: Path | None,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (),
    quick: bool = False,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Make a table of the paper on the data of a configuration, or of the built-in shop where none is given.

    `out` gets `runs/`, `NAME.md`, `NAME.tex`, `NAME.csv` and `NAME-tests.csv`; tables in one folder share their runs.
    Runs that are done are skipped, so a table that was stopped goes on when asked for again. `quick` lays the
    packaged `quick.toml` over the configuration and takes one seed.

    Returns:
        The Markdown file.

    Raises:
        InputError: a setting is wrong (before anything runs), or rows could not be run (after all others have).
    """
    experiment = find_experiment(name)
    for override in overrides:
        section = override.partition("=")[0].split(".")[0].strip()
        if section in ("method", "seed"):
            how = "--seeds" if section == "seed" else "--set rows.NAME.method.…, since each row is a method of its own"
            raise InputError(f"--set {override}: use {how}")
    raw = _shop(out, quick, say) if config is None else read_toml(config)
    if quick:
        raw = merged(raw, _packaged("quick.toml"))
    override_all(raw, overrides)
    plan = make_plan(experiment, raw, seeds or SEEDS[: 1 if quick else None], out, only, without)
    return _run(experiment, plan, out, say)


def show_experiment(name: str, out: Path) -> str:
    """The table as text, from the runs that stand in `out` by now. Raises InputError where none does."""
    experiment = find_experiment(name)
    noted = read_json(out / f"{name}.json", "experiment")
    if not {"rows", "left_out"} <= noted.keys():
        raise InputError(f"{out / f'{name}.json'}: not what `vlm2rec experiment run` wrote; run it again")
    rows = {row: [out / folder for folder in folders] for row, folders in noted["rows"].items()}
    return write_tables(experiment, Results(rows, noted["left_out"]), out)


def find_experiment(name: str) -> Experiment:
    """A table by name. Raises InputError where there is none."""
    if name not in EXPERIMENTS:
        raise InputError(f"no experiment {name}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _run(experiment: Experiment, plan: Plan, out: Path, say: Callable[[str], None]) -> Path:
    done = _earlier(experiment, plan, out)
    failed: dict[str, str] = {}
    until = "report" if experiment.task2 else "evaluate"
    for number, cell in enumerate(plan.cells, start=1):
        row, name = cell.row.name, f"{cell.row.name}, seed {cell.seed}"
        say(f"[{number}/{len(plan.cells)}] {cell.row.label}, seed {cell.seed}")
        try:
            for other in cell.row.needs:
                if f"{other}, seed {cell.seed}" in failed:
                    raise InputError(f"needs {other}, seed {cell.seed}")
            run(cell.config, cell.folder, shared=out / "runs" / ".shared", until=until)
        except (InputError, FloatingPointError) as error:  # one that diverges must not stop the others either
            failed[name] = " ".join(str(error).split())
            say(f"  {failed[name]}")
            continue
        done.setdefault(row, []).append(cell.folder)
        if number < len(plan.cells) and plan.cells[number].row.name != row:
            _record(experiment, done, {**plan.left_out, **failed}, out)
    if not done:
        raise InputError(f"{experiment.name}: no row could be run; the first said: {next(iter(failed.values()))}")
    say("\n" + _record(experiment, done, {**plan.left_out, **failed}, out))
    path = out / f"{experiment.name}.md"
    if failed:
        reasons = "; ".join(f"{run}: {reason}" for run, reason in failed.items())
        raise InputError(f"{path} stands without {len(failed)} of its runs ({reasons})")
    return path


def _earlier(experiment: Experiment, plan: Plan, out: Path) -> dict[str, list[Path]]:
    """Rows that are in the table already and were not asked for this time, if they were judged as these will be."""
    path = out / f"{experiment.name}.json"
    noted = read_json(path, "experiment").get("rows", {}) if path.exists() else {}
    asked, first = {cell.row.name for cell in plan.cells}, plan.cells[0].config
    kept = {}
    for row, folders in noted.items():
        runs = [out / folder for folder in folders]
        if row not in asked and all((run / "results.json").exists() for run in runs):
            configs = [Run.open(run).config for run in runs]
            if all((config.data, config.evaluation) == (first.data, first.evaluation) for config in configs):
                kept[row] = runs
    return kept


def _record(experiment: Experiment, done: Mapping[str, list[Path]], left_out: Mapping[str, str], out: Path) -> str:
    """Write down what is done so far, and the tables of it."""
    rows = {row: [str(folder.relative_to(out)) for folder in folders] for row, folders in done.items()}
    missing = {name: reason for name, reason in left_out.items() if name not in done}
    write_json(out / f"{experiment.name}.json", {"rows": rows, "left_out": missing})
    return write_tables(experiment, Results(done, missing), out)


def _shop(out: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The built-in shop, `nano`, and two small encoders from PyPI wheels, with settings that suit them."""
    from vlm2rec.backbones.small import build_efficientnet, build_minilm
    from vlm2rec.data.prepare import picture_bar, prepare
    from vlm2rec.data.sources.shop import ShopWorld

    say("drawing the shop and its shoppers")
    world = ShopWorld(shoppers=_SHOP_SHOPPERS) if quick else ShopWorld()
    with picture_bar() as progress:
        data = prepare(world, out / "data", picture_size=112, progress=progress)
    text = str(build_minilm(out / "backbones" / "minilm"))
    image = str(build_efficientnet(out / "backbones" / "efficientnet"))
    paths = {
        "data": {"path": str(data.path)},
        "rows": {
            "bert": {"method": {"path": text}},
            "pair": {"method": {"text": text, "image": image}},
            "slim": {"method": {"text_encoder": text}},
        },
    }
    return merged(_packaged("shop.toml"), paths)


def _packaged(name: str) -> dict[str, Any]:
    return read_toml(Path(str(files("vlm2rec.experiments").joinpath(name))))
