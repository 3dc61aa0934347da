"""The program starts at once: what a verb does not need is not imported before the verb runs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import Call

from vlm2rec.data.dataset import Dataset

HEAVY = ("torch", "transformers", "polars", "accelerate", "peft", "scipy", "tensorboard", "optuna", "huggingface_hub")

# Imports in a fresh process, then says which heavy packages came along.
SAY = "import sys; print('|' + ' '.join(name for name in {heavy!r} if name in sys.modules) + '|')"
HELP = """
import sys
sys.argv = {argv!r}
from vlm2rec.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def loaded(code: str, heavy: tuple[str, ...] = HEAVY) -> tuple[list[str], str]:
    """The heavy packages in memory after running `code`, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{SAY.format(heavy=heavy)}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed, names, _ = done.stdout.rsplit("|", 2)
    return names.split(), printed


def seconds(*arguments: str) -> float:
    """The fastest of three fresh processes: how long it takes, not how busy the machine is."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=120)
        taken.append(time.perf_counter() - began)
    return min(taken)


def test_the_check_itself_can_see_a_heavy_import() -> None:
    assert loaded("import polars")[0] == ["polars"]


def test_importing_the_package_brings_nothing_heavy() -> None:
    assert loaded("import vlm2rec")[0] == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["data", "--help"], ["data", "prepare", "--help"], ["demo", "--help"]]
)
def test_help_brings_nothing_heavy(arguments: list[str]) -> None:
    names, printed = loaded(HELP.format(argv=["vlm2rec", *arguments]), (*HEAVY, "rich", "numpy"))
    assert "Usage" in printed
    assert names == []


def test_a_config_to_start_from_brings_no_torch(tmp_path: Path) -> None:
    names, _ = loaded(HELP.format(argv=["vlm2rec", "init", str(tmp_path / "c.toml")]))
    assert (tmp_path / "c.toml").is_file() and "torch" not in names


def test_modules_without_torch_stay_without() -> None:
    """The linter checks our own imports; this also sees what other packages pull in."""
    modules = (
        "compare config data.dataset data.splits data.candidates data.pictures.store diagnostics embeddings errors"
    )
    names = [f"vlm2rec.{name}" for name in f"{modules} metrics prompts report runs".split()]
    assert loaded(f"import {', '.join(names)}", ("torch", "transformers", "accelerate", "peft"))[0] == []


def test_a_config_is_checked_without_polars() -> None:
    assert loaded("import vlm2rec.config")[0] == []


def test_it_starts_fast() -> None:
    """About 0.3 s on an idle core (goal: 0.5 s); the bound leaves room for a machine that does other work too."""
    empty = seconds("-c", "pass")
    assert seconds("-c", "import vlm2rec") - empty < 0.5
    assert seconds("-c", HELP.format(argv=["vlm2rec", "--help"])) - empty < 2.0


# Mistakes are said before torch is imported

MISTAKE = """
import sys
sys.argv = {argv!r}
from vlm2rec.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 2, stop.code
print(sys.modules.keys() & {{"torch", "transformers", "accelerate", "optuna"}})
"""


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Path:
    """A folder with configurations that are right, misspelt, of data that are not there, and of other things."""
    folder = tmp_path_factory.mktemp("mistakes")
    data = f'[data]\npath = "{tiny_dataset.path}"\n'
    (folder / "right.toml").write_text(data)
    (folder / "typo.toml").write_text(f"{data}[trainig]\nlr = 1\n")
    (folder / "nodata.toml").write_text('[data]\npath = "nowhere"\n')
    (folder / "nomodel.toml").write_text(f'{data}[backbone]\npath = "./nowhere"\n')
    (folder / "notable.toml").write_text(f'{data}[method]\nkind = "sasrec"\nitems = "nowhere"\n')
    (folder / "taken").mkdir()
    (folder / "taken" / "letter").write_text("mine")
    return folder


OF_A_CONFIG: list[tuple[str, str]] = [
    ("typo.toml", "did you mean training?"),
    ("right.toml --set trainig.lr=1", "did you mean training?"),
    ("right.toml --set training.lr=fast", "training.lr = 'fast'"),
    ("right.toml --set method.kind=vlm2recs", "did you mean vlm2rec?"),
    ("nowhere.toml", "no such config file"),
    ("nomodel.toml", "backbone.path = './nowhere': no such folder"),
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *((f"run {rest}", says) for rest, says in OF_A_CONFIG),
        *((f"train {rest} --out out", says) for rest, says in OF_A_CONFIG[:2]),
        *((f"sweep {rest}", says) for rest, says in OF_A_CONFIG[:3]),
        *((f"tune {rest} --space training.lr=1e-4,1e-3", says) for rest, says in OF_A_CONFIG),
        *((f"doctor {rest}", says) for rest, says in OF_A_CONFIG),
        *((f"experiment run table2 {rest}", says) for rest, says in OF_A_CONFIG[:3]),
        ("run nodata.toml", "nowhere: not a prepared data set"),
        ("train nodata.toml --out out", "nowhere: not a prepared data set"),
        ("sweep nodata.toml --set seed=0,1", "nowhere: not a prepared data set"),
        ("tune nodata.toml --space training.lr=1e-4,1e-3", "nowhere: not a prepared data set"),
        ("experiment run table2 nodata.toml", "nowhere: not a prepared data set"),
        ("run notable.toml", "method.items = 'nowhere': no such file or folder"),
        ("run right.toml --out taken", "taken: exists and is no run directory"),
        ("sweep right.toml --set seed=0,1,one", "seed = 'one'"),
        ("tune right.toml --space training.rate=1,2", "unknown key training.rate"),
        ("tune right.toml --space training.lr=1e-3,1e-3", "are the same value"),
        ("tune right.toml --space training.lr=1e-3,2e-3 --set method.kind=bert", "nothing to tune by"),
        ("doctor --set a=1", "no effect without a config"),
        ("experiment run table99 right.toml", "no experiment table99"),
        ("encode nowhere", "nowhere: no run directory"),
        ("evaluate nowhere", "nowhere: no run directory"),
        ("diagnose nowhere", "nowhere: no run directory"),
        ("diagnose --text a.npy", "all of --text, --image and --sequences"),
        ("demo --out right.toml", "right.toml: is a file; give a folder"),
        ("backbone smol --out x --tokens 5", "--tokens 5: give 4 or 16"),
        ("backbone smol --out x --align nowhere", "nowhere: not a prepared data set"),
        ("backbone smol --out x --leave-out nowhere", "no effect without --align"),
        ("backbone smol --out right.toml/x", "right.toml is a file, not a folder"),
        ("compare nowhere --out table.xlsx", "table.xlsx: unknown kind of file; give a name that ends in .md, .tex or"),
        ("compare nowhere --out taken", "unknown kind of file"),
        ("report nowhere --out page.pdf", "page.pdf: unknown kind of file; give a name that ends in .html or .htm"),
        ("report nowhere --export right.toml", "--export right.toml: is a file"),
        ("rum", "did you mean 'run'?"),
        ("run right.toml --sett a=1", "did you mean --set?"),
        ("run", "run: missing argument 'config'"),
        ("demo --seed x", "'--seed': should be a valid integer"),
        ("demo --seed -1", "'--seed': should be greater than or equal to 0"),
        ("data prepare amazn --out x", "'amazn' is not one of 'local', 'amazon-2014'"),
        ("experiment shw table2", "did you mean 'show'?"),
    ],
)
def test_a_mistake_is_said_before_torch_is_imported(arguments: str, says: str, mistakes: Path) -> None:
    code = MISTAKE.format(argv=["vlm2rec", *arguments.split()])
    done = subprocess.run([sys.executable, "-c", code], cwd=mistakes, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "set()\n"
    assert done.stderr.startswith("vlm2rec: ") and done.stderr.count("\n") == 1, done.stderr
    assert says.lower() in done.stderr.lower(), done.stderr
    assert {path.name for path in mistakes.iterdir()} == {
        "right.toml", "typo.toml", "nodata.toml", "nomodel.toml", "notable.toml", "taken"
    }, "something was written"  # fmt: skip


VERBS = [
    *("demo", "backbone", "run", "train", "encode", "evaluate", "diagnose", "sweep", "tune", "compare", "report"),
    *("doctor", "init", "data", "experiment"),
    *(f"data {verb}" for verb in ("prepare", "describe", "pictures", "check", "pair", "export")),
    *(f"experiment {verb}" for verb in ("list", "run", "show")),
]


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_h_is_help_and_flags_take_no_value(verb: str, call: Call) -> None:
    said = call(*verb.split(), "-h")
    assert said == call(*verb.split(), "--help")
    assert said.status == 0 and f"Usage: vlm2rec {verb}".rstrip() in said.out and said.err == ""
    assert "<bool>" not in said.out and "BOOLEAN" not in said.out
    for flag in ("--version", "--json", "--quick", "--plan", "--pictures", "--download-images", "--drop-placeholders"):
        assert all(line.split()[0] == flag for line in said.out.splitlines() if line.strip().startswith(f"{flag} "))


def test_without_a_verb_the_help_is_shown(call: Call) -> None:
    for group in ("", "data", "experiment"):
        said = call(*group.split())
        assert said.status == 2 and said.out == "" and said.err == call(*group.split(), "--help").out


def test_every_verb_is_in_the_help(call: Call) -> None:
    found = {
        line.split()[0] for line in call("--help").out.partition("Commands:")[2].splitlines() if line.startswith("  ")
    }
    assert found == {verb for verb in VERBS if " " not in verb}
