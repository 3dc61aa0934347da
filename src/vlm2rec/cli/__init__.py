"""The command line: `vlm2rec`, and `python -m vlm2rec`. The verbs are in `vlm2rec.cli.verbs`.

Bad input ends in one line on standard error and status 2, Ctrl-C in one line and status 130, SIGTERM likewise and 143.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from vlm2rec.errors import InputError
from vlm2rec.process import Terminated, rank, settle, terminable, world

_CONTINUED = ("run", "train", "encode", "evaluate", "diagnose", "sweep", "tune", "demo", "experiment run")
"""Verbs that go on where they were stopped when the same command is given again."""


def main() -> None:
    """Entry point: runs the verb, and turns what goes wrong into one line and a status."""
    try:
        with terminable():
            settle()
            from vlm2rec.cli.verbs import call  # imported here, so that Ctrl-C is answered from the start

            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if rank() > 0 else sys.stdout):
                status = call(sys.argv[1:])
    except (InputError, FloatingPointError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has gone, as `head` does
        _leave(1, quickly=True)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as stop:
        _stopped(stop)
    except Exception as error:
        if behind := _stop_behind(error):
            _stopped(behind)
        if world() > 1:  # the others' connections break when one process fails: the first one says why
            if _first_to_fail():
                import traceback

                traceback.print_exc()
            _leave(1)
        raise
    else:
        if status:
            sys.exit(status)


def _stopped(stop: KeyboardInterrupt) -> None:
    """End after Ctrl-C or SIGTERM: everything is cleaned up by now, so threads that still work are not waited for."""
    if rank() == 0:
        goes_on = any(_names(sys.argv[1:], verb) for verb in _CONTINUED)
        print(f"vlm2rec: stopped{'; the same command goes on from here' if goes_on else ''}", file=sys.stderr)
    _leave(143 if isinstance(stop, Terminated) else 130, quickly=True)


def _names(arguments: Sequence[str], verb: str) -> bool:
    words = verb.split()
    return list(arguments[: len(words)]) == words


def _stop_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Ctrl-C that a library turned into an error of its own, as imports of extension modules do."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen


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


def _leave(status: int, quickly: bool = False) -> None:
    """End this process; `quickly`, or one of several at once, without waiting for threads or for other processes."""
    if world() == 1 and not quickly:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(status)
