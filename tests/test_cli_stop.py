"""Ctrl-C and SIGTERM: one line, the shell's status, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import families
import pytest
from tiny_job import make_config, write_config

from vlm2rec.config import Config
from vlm2rec.data.dataset import Dataset
from vlm2rec.runs import read_metrics

GOES_ON = "vlm2rec: stopped; the same command goes on from here\n"
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}

# The program, which says on standard output when it comes to a place where it is to be stopped, and waits there.
HOLD = """
import sys, time
from importlib.abc import MetaPathFinder

class Hold(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            print("here", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Hold())
sys.argv = {argv!r}
from vlm2rec.cli import main
main()
"""


@pytest.fixture(scope="module")
def config(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Config:
    llava = families.build("llava", tmp_path_factory.mktemp("stop") / "llava")
    return make_config(tiny_dataset, llava, "sft", training={"users": 16, "batch_size": 8, "epochs": 12})


def start(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def program(*arguments: object) -> Sequence[object]:
    return (sys.executable, "-m", "vlm2rec", *arguments)


def wait_for(process: subprocess.Popen[str], done: Callable[[], object]) -> None:
    began = time.monotonic()
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 120, "it does not come to where it was to be stopped"
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], by: signal.Signals) -> tuple[int, str, str]:
    process.send_signal(by)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_what_is_stopped_goes_on(config: Config, tmp_path: Path) -> None:
    run, file = tmp_path / "run", write_config(tmp_path / "c.toml", config)
    command = program("train", file, "--out", run)
    process = start(*command)
    wait_for(process, lambda: [path for path in (run / "checkpoints").glob("step-*") if path.name > "step-00000003"])
    status, out, err = stop(process, signal.SIGINT)
    assert (status, out, err.splitlines(keepends=True)[-1]) == (130, "", GOES_ON), err
    step = max(int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*"))
    out, err = start(*command).communicate(timeout=240)
    assert out == f"{run / 'model'}\n", err
    said = [f"{run}: continues after reference", f"sft seed 0: continues at step {step} of 24"]
    assert [line for line in err.splitlines() if not line.startswith("warning: ")][:2] == said
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl", "train")] == list(range(1, 25))


@pytest.mark.parametrize("by", STATUS)
@pytest.mark.parametrize("module", ["typer", "pydantic", "torch"])
def test_stopped_while_it_is_still_starting(by: signal.Signals, module: str, config: Config, tmp_path: Path) -> None:
    file = write_config(tmp_path / "c.toml", config)
    argv = ["vlm2rec", "run", str(file), "--out", str(tmp_path / "run")]
    process = start(sys.executable, "-c", HOLD.format(module=module, argv=argv))
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    assert stop(process, by) == (STATUS[by], "", GOES_ON)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("by", STATUS)
def test_nothing_is_promised_where_nothing_goes_on(by: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    process = start(*program("data", "prepare", "shop", "--out", out))
    wait_for(process, lambda: list(tmp_path.glob(".shop.*.partial")))
    assert stop(process, by) == (STATUS[by], "", "vlm2rec: stopped\n")
    assert not list(tmp_path.iterdir()), "half a data set is left"


def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    """As in `vlm2rec … | head`: no traceback."""
    process = start(*program("--help"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) in (0, 1)
