"""The program starts at once: what a verb does not need is not imported before the verb runs."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "polars", "accelerate", "peft", "scipy", "tensorboard")

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
    names, printed = loaded(HELP.format(argv=["vlm2rec", *arguments]))
    assert "Usage" in printed
    assert names == []


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
