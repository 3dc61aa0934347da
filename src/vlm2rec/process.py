"""How this process should behave: quiet libraries, patient threads, memory kept for the next step; and which it is."""

import ctypes
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def world() -> int:
    """How many processes share the run: what `accelerate launch` started, else one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is. The first, 0, writes and speaks for all."""
    return int(os.environ.get("RANK") or 0) if world() > 1 else 0


class Terminated(KeyboardInterrupt):
    """SIGTERM. What cleans up after Ctrl-C cleans up after it too."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM, which would else end the process with nothing cleaned up and nothing said.

    Not where several processes share a run: there it comes from whoever started them, when one of them has failed.
    """
    if world() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def settle() -> None:
    """Call once, before torch or transformers is imported. What the user has set in the environment stays."""
    # Progress bars and advice of the libraries underneath would bury what this program has to say.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin only briefly while they wait: where another process wants a core, long spinning doubles the
    # time of a step and more; not spinning at all costs two fifths where nothing else runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    warnings.filterwarnings("ignore", category=FutureWarning)
    _keep_memory()


def _keep_memory() -> None:
    """Have glibc keep freed memory: each tensor over 32 MiB is else mapped, zeroed and given back on its own.

    On a CPU that can take half of a training step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 26)):
        mallopt(option, value)
