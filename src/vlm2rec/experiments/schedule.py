"""Many runs, one after another in this process or several at a time in processes of their own.

A run waits for those that it reads; one that fails does not stop the others. Whatever is stopped, by Ctrl-C, a kill or
the end of the machine, goes on where it was when asked for again, since every run does.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm2rec.config import Config
from vlm2rec.damage import damage
from vlm2rec.experiments.pool import Worker, attempt, wait_for
from vlm2rec.runs import Run

Say = Callable[[str], None]
Told = Callable[["Task", str], None]
"""Told of a task that ended, and why it failed; empty if it did not."""

_START = ("vanilla", "sft", "vlm2rec")


@dataclass(frozen=True)
class Task:
    """A run to be brought up to a stage."""

    name: str
    config: Config
    folder: Path
    until: str
    needs: tuple[Path, ...] = ()
    quick: bool = False

    @property
    def is_done(self) -> bool:
        """Whether the run stands already, of this configuration."""
        if not (self.folder / "manifest.json").exists():
            return False
        run = Run.open(self.folder)
        figures = ("users.parquet", "results.json") if run.is_done("evaluate") else ()
        whole = not any(damage(self.folder / name) for name in figures)
        return whole and run.is_done(self.until) and run.config == self.config

    @property
    def start(self) -> str:
        """What its figures before training hang on; runs that have it alike share them. Empty: it has none."""
        config = self.config
        if config.method.kind not in _START:
            return ""
        parts = [
            config.data.model_dump(mode="json"),
            config.backbone.model_dump(mode="json", exclude={"lora", "cache_vision"}),
            config.prompt.model_dump(mode="json"),
            config.evaluation.model_dump(mode="json"),
        ]
        return json.dumps(parts)


def run_all(tasks: Sequence[Task], shared: Path, jobs: int, told: Told, say: Say) -> None:
    """Do the tasks, `jobs` at a time; those that a task needs stand before it in the list."""
    if jobs == 1:
        _one_by_one(tasks, shared, told, say)
    else:
        _Pool(tasks, shared, jobs, told, say).run()


def default_jobs() -> int:
    """One a GPU; on a CPU one, which has all of its cores."""
    return max(1, len(gpus()))


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def cores() -> int:
    """Threads that this process may use, by its own measure or what the environment says."""
    import torch

    return torch.get_num_threads()


def _one_by_one(tasks: Sequence[Task], shared: Path, told: Told, say: Say) -> None:
    failed: dict[Path, str] = {}
    for number, task in enumerate(tasks, start=1):
        say(f"[{number}/{len(tasks)}] {task.name}")
        reason = _missing(task, failed) or attempt(task.config, task.folder, shared, task.until, task.quick)
        if reason:
            failed[task.folder] = task.name
        told(task, reason)


def _missing(task: Task, failed: dict[Path, str]) -> str:
    return next((f"needs {failed[folder]}" for folder in task.needs if folder in failed), "")


class _Pool:
    """Tasks on several workers."""

    def __init__(self, tasks: Sequence[Task], shared: Path, jobs: int, told: Told, say: Say) -> None:
        self.waiting, self.total = list(tasks), len(tasks)
        self.shared, self.told, self.say = shared, told, say
        self.failed: dict[Path, str] = {}
        self.begun = 0
        devices, threads = gpus(), max(1, cores() // jobs)
        self.workers = [Worker(threads, devices[k % len(devices)] if devices else None) for k in range(jobs)]
        self.running: dict[Worker, Task] = {}

    def run(self) -> None:
        """Until nothing is left. What runs is stopped where this is interrupted."""
        try:
            while self.waiting or self.running:
                self._start()
                for worker in wait_for(list(self.running)):
                    self._ended(self.running.pop(worker), worker.outcome())
        finally:
            for worker in self.workers:
                worker.stop()

    def _start(self) -> None:
        for worker in (each for each in self.workers if each not in self.running):
            task = self._next()
            if task is None:
                return
            self.begun += 1
            self.say(f"[{self.begun}/{self.total}] {task.name}")
            worker.begin(task.name, task.config, task.folder, self.shared, task.until, task.quick)
            self.running[worker] = task

    def _next(self) -> Task | None:
        """The first task that can start, off the list; those that cannot ever are told of."""
        open_folders = {task.folder for task in (*self.waiting, *self.running.values())}
        for task in list(self.waiting):
            reason = _missing(task, self.failed)
            if reason:
                self.waiting.remove(task)
                self.begun += 1
                self._ended(task, reason)
            elif not open_folders & set(task.needs):
                self.waiting.remove(task)
                return task
        return None

    def _ended(self, task: Task, reason: str) -> None:
        if reason:
            self.failed[task.folder] = task.name
        self.told(task, reason)
