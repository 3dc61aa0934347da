"""Worker processes that do runs: started afresh, with a GPU and a share of the cores each.

Nothing here may import NumPy or torch before a worker has set its threads and its GPU.
"""

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vlm2rec.errors import InputError

if TYPE_CHECKING:
    from vlm2rec.config import Config

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")


class Worker:
    """A process that does one run after another. One that dies is replaced when the next run is given to it."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        self._threads, self._gpu = threads, gpu
        self._process: Any = None
        self._pipe: Connection | None = None

    def begin(self, name: str, config: "Config", folder: Path, shared: Path, until: str, quick: bool = False) -> None:
        """Give it a run."""
        if self._process is None or not self._process.is_alive():
            context = get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs, self._threads, self._gpu), daemon=True)
            self._process.start()
            theirs.close()
        assert self._pipe is not None
        self._pipe.send((name, config, folder, shared, until, quick))

    def outcome(self) -> str:
        """Why the run failed, once it has ended; empty if it did not."""
        assert self._pipe is not None
        try:
            return str(self._pipe.recv())
        except (EOFError, OSError):
            self._process.join()
            return f"its process was ended from outside (exit code {self._process.exitcode}; out of memory?)"

    def stop(self) -> None:
        """End the process, whatever it is doing: its run goes on when asked for again."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join()

    @property
    def pipe(self) -> Connection:
        """What becomes readable when the run ends, or its process does."""
        assert self._pipe is not None
        return self._pipe


def wait_for(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until the run of one of some workers has ended; all whose run has."""
    ready = wait([worker.pipe for worker in workers]) if workers else []
    return [worker for worker in workers if worker.pipe in ready]


def attempt(config: "Config", folder: Path, shared: Path, until: str, quick: bool = False) -> str:
    """Do a run up to a stage; why it failed, or an empty string.

    Faults of the program are told of like any other, since a night's runs should not be lost to one of them; their
    traceback goes to standard error.
    """
    from vlm2rec.job import run

    try:
        run(config, folder, shared=shared, until=until, quick=quick)
    except (InputError, FloatingPointError) as error:  # one that diverges must not stop the others either
        return " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _work(pipe: Connection, threads: int, gpu: str | None) -> None:
    """A worker's life: runs off the pipe until it is stopped, or the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    from vlm2rec.process import settle

    settle()
    import torch

    torch.set_num_threads(threads)
    errors = sys.stderr
    while True:
        try:
            name, config, folder, shared, until, quick = pipe.recv()
        except EOFError:
            return
        sys.stderr = _Named(errors, name)
        pipe.send(attempt(config, folder, shared, until, quick))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _follow(sentinel: int) -> None:
    """End this process when the one that started it ends, however that was."""
    wait([sentinel])
    os._exit(1)


class _Named:
    """Standard error with a name before each line, so that it can be told whose it is. Never a terminal."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._rest = stream, name, ""

    def write(self, text: str) -> int:
        """Write what ends a line; keep the rest."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._stream.write(f"  {self._name}: {line}\n")
        self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but a line that has not ended."""
        self._stream.flush()

    def isatty(self) -> bool:
        """No: bars of several runs would overwrite each other."""
        return False
