"""`vlm2rec experiment …`: the paper's tables and figures on any data set."""

from pathlib import Path
from typing import Annotated

import typer

from vlm2rec.cli.words import help_without_verb, listed
from vlm2rec.errors import InputError

app = typer.Typer(
    help="The paper's tables and figures on any data set.",
    callback=help_without_verb,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_experiments() -> None:
    """The tables and figures there are, and their rows."""
    from vlm2rec.experiments.paper import ALL, EXPERIMENTS

    for name, each in EXPERIMENTS.items():
        rows = ", ".join(row.name for row in each.rows) or "none; it is about data sets"
        print(f"{name}  {each.title}\n  rows: {rows}{', for every backbone of the file' if each.each else ''}")
    print(f"all  {', '.join(ALL)}")


@app.command("run")
def run_experiment(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... [CONFIG]",
            help="Tables and figures, or all; `vlm2rec experiment list` names them. Then a run's TOML file, with"
            " rows.NAME.section for single rows; without one, a built-in shop.",
        ),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value for all rows, rows.NAME.section.key for some.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between; by default 0,1,2,3,4.")] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, 500 users, few steps: a look, not a result.")
    ] = False,
    only: Annotated[str, typer.Option(help="Rows to run, with commas between.")] = "",
    without: Annotated[str, typer.Option(help="Rows to leave out, with commas between.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and pages, shared by all; by default experiments/<config>.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one a GPU.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the runs, their memory and about how long they take; run nothing.")
    ] = False,
) -> None:
    """Make tables and figures: Markdown, LaTeX, CSV, pictures. Run again to continue; nothing is done twice."""
    from vlm2rec.experiments import runner

    wanted = listed(seeds)
    if not all(seed.isdecimal() for seed in wanted):
        raise InputError(f"--seeds {seeds}: give whole numbers with commas between, as in 0,1,2")
    config = Path(names[-1]) if names[-1].endswith(".toml") or Path(names[-1]).is_file() else None
    asked = names[:-1] if config else names
    if not asked:
        raise InputError(f"{names[0]}: name a table or figure before it; `vlm2rec experiment list` has them")
    folder = out or Path("experiments") / ("shop" if config is None else config.stem)
    order = runner.Asked(
        asked,
        config,
        folder,
        overrides=set_ or [],
        seeds=[int(seed) for seed in wanted],
        quick=quick,
        only=listed(only),
        without=listed(without),
    )
    if plan:
        print(runner.plan_experiments(order, jobs))
    else:
        print("\n".join(map(str, runner.run_experiments(order, jobs))))


@app.command("show")
def show_experiment(
    name: Annotated[str, typer.Argument(help="A table or figure.")],
    out: Annotated[Path, typer.Option(help="The folder that `experiment run` wrote.")] = Path("experiments/shop"),
) -> None:
    """The page as far as `experiment run` came; its files are written anew."""
    from vlm2rec.experiments.runner import show_experiment as show_page

    print(show_page(name, out))
