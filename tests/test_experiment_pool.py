"""Runs in processes of their own: what waits for what, what fails, what is stopped."""

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_job import make_config, raw_config, write_config

from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.experiments import pool, schedule
from vlm2rec.experiments.pool import Worker, wait_for
from vlm2rec.experiments.runner import Asked, run_experiments
from vlm2rec.experiments.schedule import Task, run_all


class FakeWorker:
    """Ends its runs in the order that the test gives; `failing` are names of runs that fail."""

    made: ClassVar[list["FakeWorker"]] = []
    failing: ClassVar[tuple[str, ...]] = ()
    events: ClassVar[list[str]] = []

    def __init__(self, threads: int, gpu: str | None) -> None:
        self.threads, self.gpu, self.name, self.stopped = threads, gpu, "", False
        FakeWorker.made.append(self)

    def begin(self, name: str, config: Config, folder: Path, shared: Path, until: str, quick: bool) -> None:
        self.name = name
        FakeWorker.events.append(f"+{name}")

    def outcome(self) -> str:
        FakeWorker.events.append(f"-{self.name}")
        return "broke" if self.name in FakeWorker.failing else ""

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.made, FakeWorker.failing, FakeWorker.events = [], (), []
    monkeypatch.setattr(schedule, "Worker", FakeWorker)
    monkeypatch.setattr(schedule, "wait_for", lambda running: running[:1])
    monkeypatch.setattr(schedule, "gpus", lambda: ["4", "7"])
    monkeypatch.setattr(schedule, "cores", lambda: 7)
    return FakeWorker


def task(name: str, kind: str = "sasrec", needs: Sequence[str] = (), **sections: Any) -> Task:
    config = parse_config({"data": {"path": "x"}, "method": {"kind": kind}, **sections})
    return Task(name, config, Path("runs") / name, "evaluate", tuple(Path("runs") / other for other in needs))


def done_in(tasks: Sequence[Task], jobs: int = 2) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    run_all(tasks, Path("shared"), jobs, lambda one, reason: told.append((one.name, reason)), lambda line: None)
    return told


def test_threads_and_gpus_are_shared_out(workers: type[FakeWorker]) -> None:
    done_in([task("a")], jobs=3)
    assert [(one.threads, one.gpu) for one in workers.made] == [(2, "4"), (2, "7"), (2, "4")]
    assert all(one.stopped for one in workers.made)


def test_a_run_waits_for_those_that_it_reads(workers: type[FakeWorker]) -> None:
    assert done_in([task("a"), task("b"), task("both", needs=["a", "b"]), task("c")]) == [
        ("a", ""), ("b", ""), ("c", ""), ("both", ""),
    ]  # fmt: skip
    assert workers.events == ["+a", "+b", "-a", "+c", "-b", "+both", "-c", "-both"]


def test_one_that_fails_stops_those_that_read_it_alone(workers: type[FakeWorker]) -> None:
    workers.failing = ("a",)
    told = dict(done_in([task("a"), task("b", needs=["a"]), task("c", needs=["b"]), task("d")]))
    assert told == {"a": "broke", "b": "needs a", "c": "needs b", "d": ""}
    assert "+b" not in workers.events and "+c" not in workers.events


def test_an_interrupt_stops_all(workers: type[FakeWorker]) -> None:
    def told(one: Task, reason: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([task("a"), task("b")], Path("shared"), 2, told, lambda line: None)
    assert all(one.stopped for one in workers.made) and "-b" not in workers.events


def test_the_gpus_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert schedule.gpus() == ["0", "1"] and schedule.default_jobs() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert schedule.gpus() == ["3", "5"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert schedule.gpus() == [] and schedule.default_jobs() == 1


def test_lines_say_whose_they_are() -> None:
    out = StringIO()
    named = pool._Named(out, "SFT, seed 1")
    print("loss 1.0\nhalf", end="", file=named)
    assert out.getvalue() == "  SFT, seed 1: loss 1.0\n" and not named.isatty()
    print(" a line", file=named)
    assert out.getvalue().endswith("  SFT, seed 1: half a line\n")


def test_a_worker_that_is_killed_is_told_of_and_replaced(tiny_dataset: Dataset, tmp_path: Path) -> None:
    worker = Worker(1, None)
    config = make_config(tiny_dataset, tmp_path / "none", "poprec")
    worker.begin("a", config, tmp_path / "a", tmp_path / "shared", "evaluate")
    (child,) = multiprocessing.active_children()
    os.kill(child.pid or 0, signal.SIGKILL)
    assert wait_for([worker]) == [worker]
    assert "ended from outside (exit code -9" in worker.outcome()
    worker.begin("a", config, tmp_path / "a", tmp_path / "shared", "evaluate")
    try:
        assert wait_for([worker]) == [worker] and worker.outcome() == ""
        assert (tmp_path / "a" / "results.json").exists()
        worker.begin("a", config, tmp_path, tmp_path / "shared", "evaluate")  # no run directory
        assert wait_for([worker]) == [worker] and "give another --out" in worker.outcome()
    finally:
        worker.stop()
    assert not multiprocessing.active_children()


def test_faults_of_the_program_are_told_of_too(
    monkeypatch: pytest.MonkeyPatch, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("CUDA out\nof memory")

    monkeypatch.setattr("vlm2rec.job.run", broken)
    config = make_config(tiny_dataset, tmp_path / "none", "poprec")
    assert pool.attempt(config, tmp_path / "a", tmp_path, "train") == "RuntimeError: CUDA out of memory"
    assert "Traceback" in capsys.readouterr().err


def test_two_at_a_time_give_what_one_gives(tiny_dataset: Dataset, tmp_path: Path) -> None:
    # Rows that are done at once: each worker takes its time to import what trains.
    raw = raw_config(tiny_dataset, tmp_path / "unused", "sft")
    tiny = write_config(tmp_path / "tiny.toml", parse_config(raw))
    figures = []
    for jobs in (2, 1):
        said: list[str] = []
        out = tmp_path / f"out-{jobs}"
        (out / "runs" / "poprec-seed0" / "other").mkdir(parents=True)  # so that this one cannot be
        asked = Asked(["table2"], tiny, out, seeds=(0, 1), only=("random", "poprec", "itemknn"))
        with pytest.raises(InputError, match=r"without 1 of its runs \(poprec, seed 0: .*is no run directory"):
            run_experiments(asked, jobs, said.append)
        assert [line for line in said if line.startswith("[4/4]")] == ["[4/4] item-kNN, seed 0"]
        assert "Left out: poprec, seed 0 (" in said[-1]
        runs = [out / "runs" / f"{run}" / "results.json" for run in ("random-seed0", "random-seed1", "itemknn-seed0")]
        figures.append([json.loads(run.read_text())["retrieval"]["sampled"]["N@20"] for run in runs])
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)
    assert not multiprocessing.active_children()


def test_where_nothing_runs_nothing_is_waited_for(workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "wait_for", wait_for)
    assert wait_for([]) == []
    monkeypatch.setattr(schedule._Pool, "_next", lambda pool: pool.waiting.clear())  # all fail for what they need
    assert done_in([task("a")]) == []
