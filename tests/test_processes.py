"""A run on two processes is the run on one. `two_processes.py` is what they do; they talk over gloo, on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from program import Call, check_refused
from safetensors.torch import load_file
from test_job import adapter, lines, results
from tiny_job import write_config
from torch import Tensor
from two_processes import CASES, DIES_AT, config_of, gradients, pure, tables

from vlm2rec import parallel
from vlm2rec.data.dataset import Dataset
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.vlm import fingerprint
from vlm2rec.runs import Run, read_metrics
from vlm2rec.training.shares import Shares, share

TESTS = Path(__file__).parent
TRAINING = {"batch_size": 15, "prefixes": "separate"}


@dataclass(frozen=True)
class Pair:
    """What two processes left: their exit statuses, how long both took, and what each said on standard error."""

    statuses: tuple[int, ...]
    errors: tuple[str, ...]
    outputs: tuple[str, ...]
    apart: float


def environment(**given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), **given}


def pair(*command: object) -> Pair:
    """Start a command twice, as two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(**shared, RANK=rank, LOCAL_RANK=rank),
            cwd=TESTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        ended: dict[int, float] = {}
        while len(ended) < 2:
            ended |= {n: time.monotonic() for n, each in enumerate(both) if n not in ended and each.poll() is not None}
            time.sleep(0.05)
        said = [each.communicate() for each in both]
    finally:
        for each in both:
            each.kill()
    outputs, errors = zip(*said, strict=True)
    return Pair(tuple(each.returncode for each in both), errors, outputs, abs(ended[0] - ended[1]))


@dataclass(frozen=True)
class World:
    data: Path
    backbone: Path
    out: Path
    job: Path
    pair: Pair
    killed_at: int


@pytest.fixture(scope="module")
def two(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Both processes have done all of `two_processes.py`; the second was killed in the midst of the last, a run."""
    folder = tmp_path_factory.mktemp("two")
    llava = families.build("llava", folder / "llava")
    (folder / "out").mkdir()
    found = pair(TESTS / "two_processes.py", tiny_dataset.path, llava, folder / "out", folder / "job")
    steps = read_metrics(folder / "job" / "metrics.jsonl", "train")
    return World(tiny_dataset.path, llava, folder / "out", folder / "job", found, len(steps))


@pytest.fixture(scope="module")
def again(two: World) -> subprocess.CompletedProcess[str]:
    """The killed run, started again as a user does."""
    config = config_of(two.data, two.backbone, "vlm2rec", training=TRAINING)
    file = write_config(two.out / "config.toml", config)
    # Accelerate starts several processes for GPUs alone; that there is none here, they find out by themselves.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    return subprocess.run(
        [sys.executable, *launch, "-m", "vlm2rec", "run", str(file), "--out", str(two.job)],
        env=environment(), cwd=TESTS, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def both(two: World, name: str) -> Iterator[dict[str, Tensor]]:
    for process in (0, 1):
        yield load_file(two.out / f"process-{process}" / f"{name}.safetensors")


# One batch


@pytest.mark.parametrize("part", [None, 1, 7])
def test_gradients_of_any_objective(two: World, part: int | None) -> None:
    """In float64, to rounding."""
    expected = pure(part)
    for found in both(two, f"pure-{str(part).lower()}"):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_of_a_training_step(two: World, case: str) -> None:
    """Of the encoder, with an odd batch, in float32; the same bits on both processes."""
    expected, _ = gradients(two.data, two.backbone, 2, **CASES[case])
    first, second = both(two, case)
    assert first.keys() == second.keys() == expected.keys() and len(expected) > 28
    assert {"wpcl.alpha", "wpcl.beta"} <= expected.keys() or CASES[case]["kind"] == "sft"
    assert any(name.startswith("gate.") for name in expected) == (case == "gated")
    assert float(first["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        scale = max(1e-3, float(value.abs().max()))
        torch.testing.assert_close(first[name] / scale, value / scale, rtol=0, atol=1e-5, msg=name)


def test_every_row_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, among in ((7, 2), (8, 3), (1, 4), (0, 2), (64, 8)):
        runs = [share(count, who, among) for who in range(among)]
        assert [row for each in runs for row in each] == list(range(count))
        assert max(map(len, runs)) - min(map(len, runs)) <= 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    shares = Shares((7, 2), copies=2)
    assert shares.own(0, "abcdefg") == "cd" and shares.own(1, "xy") == "x"
    assert shares.back(torch.arange(18.0)[:, None])[:, 0].tolist() == [2, 3, 9, 10, 14, 16]
    assert shares.most == 8
    monkeypatch.setenv("RANK", "0")
    assert shares.own(1, "xy") == ""


@pytest.mark.parametrize("part", [None, 2])
def test_each_process_draws_its_own_dropout(two: World, part: int | None) -> None:
    """The same in both passes over a part; no two parts, and no two processes, share it."""
    seen = [found["seen"] for found in both(two, f"masks-{str(part).lower()}")]
    calls = 1 if part is None else 2
    if part is not None:
        for each in seen:
            assert torch.equal(each[:calls], each[calls:])
    rows = [row for each in seen for part_ in each[:calls] for row in part_ if row.any()]
    assert len(rows) == 7
    assert all(not torch.equal(one, other) for n, one in enumerate(rows) for other in rows[:n])


# Encoding


def test_shards_of_two_processes_are_those_of_one(two: World, tmp_path: Path) -> None:
    everyone = tables(two.data, two.backbone, tmp_path)
    first, second = (json.loads((two.out / f"process-{n}" / "embedded.json").read_text()) for n in (0, 1))
    assert first and second and sorted([*first, *second]) == everyone, "made twice, or what was there made again"
    assert everyone == [*range(7), *range(14, 40)]
    for name in ("whole", "small"):
        found, expected = (EmbeddingTable.load(folder / name) for folder in (two.out, tmp_path))
        assert found.ids.tolist() == expected.ids.tolist()
        for view in expected.views:
            np.testing.assert_allclose(found[view], expected[view], atol=1e-5)  # processes may have other threads
    cut = EmbeddingTable.load(two.out / "cut")
    np.testing.assert_allclose(cut["fused"], EmbeddingTable.load(tmp_path / "whole")["fused"], atol=2e-5)
    assert not list(two.out.glob("*.parts"))


# A backbone cut in two


def test_a_sharded_backbone_is_held_in_parts_and_saved_as_ever(two: World) -> None:
    _, encoder = gradients(two.data, two.backbone, 2, **CASES["sharded"])
    layers = [p for name, p in encoder.named_parameters() if ".layers." in name and "language" in name]
    frozen = [p for p in layers if not p.requires_grad]
    held = [(two.out / f"process-{process}" / "sharded.txt").read_text().split() for process in (0, 1)]
    for count, numbers, print_ in held:
        assert (int(count), print_) == (len(frozen), fingerprint(encoder))
        assert int(numbers) < 0.6 * sum(p.numel() for p in frozen)
    assert sum(int(numbers) for _, numbers, _ in held) == sum(p.numel() for p in frozen)
    saved = load_file(two.out / "saved" / "adapter_model.safetensors")
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(saved) == len(trained)
    assert {tuple(value.shape) for value in saved.values()} == {tuple(p.shape) for p in trained.values()}


# A run


def test_one_that_is_killed_takes_the_other_with_it(two: World) -> None:
    assert two.pair.statuses[1] == -signal.SIGKILL and two.pair.statuses[0] not in (0, None)
    assert two.pair.apart < 20, "the other one waits for the dead"
    assert two.killed_at == DIES_AT, "nothing was left to continue"


def test_a_killed_run_goes_on_and_is_the_run_of_one_process(
    two: World, again: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert again.returncode == 0, again.stderr
    assert Run.open(two.job).manifest["processes"] == 2
    assert again.stdout.splitlines()[-1:] == [str(two.job / "report.html")] and again.stdout.count("report.html") == 1
    alone = run(config_of(two.data, two.backbone, "vlm2rec", training=TRAINING), tmp_path / "alone").path
    assert list(Run.open(two.job).manifest["done"]) == list(Run.open(alone).manifest["done"])
    for found, expected in zip(lines(two.job), lines(alone), strict=True):
        assert found.keys() == expected.keys() and (found["kind"], found["step"]) == (
            expected["kind"],
            expected["step"],
        )
        if found["kind"] == "train":
            assert numbers(found) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-4)
    for name, value in adapter(alone).items():
        torch.testing.assert_close(adapter(two.job)[name], value, atol=3e-4, rtol=0)
    found, expected = results(two.job), results(alone)
    assert found.keys() == expected.keys() and found["data"] == expected["data"]
    assert numbers(found["reference"]) == pytest.approx(numbers(expected["reference"]), abs=1e-5)
    for table in ("items", "histories"):
        one, other = (EmbeddingTable.load(folder / table)["fused"] for folder in (two.job, alone))
        np.testing.assert_allclose(one, other, atol=5e-3)
    assert not [path for path in two.job.rglob(".*")], "temporary files are left"
    assert not list((two.job / "checkpoints").glob("*-epoch-0001*.parts"))


def test_bad_input_is_said_once(two: World) -> None:
    said = [(two.out / f"process-{process}" / "refused.txt").read_text() for process in (0, 1)]
    line = "vlm2rec: method.kind = 'poprec' runs in one process, not in 2; start vlm2rec by itself"
    assert sorted(each[:2] for each in said) == ["2 ", "2 "]
    assert "".join(said).count(line) == 1 and "".join(said).count("\n") == 1
    assert not (two.out / "refused").exists()


def test_verbs_that_want_one_process_say_so(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("vlm2rec.cli._first_to_fail", lambda: True)
    monkeypatch.setattr("vlm2rec.cli._leave", sys.exit)
    check_refused(call("sweep", tmp_path / "config.toml"), "sweep: runs in one process, not in 2")


def test_processes_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster may set WORLD_SIZE by itself."""
    for name in ("LOCAL_RANK", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE = 2, but these processes cannot find each other"):
        parallel.start()


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    return [float(value)] if isinstance(value, int | float) else []
