"""How far long work has come: a bar on a terminal, a line now and then in a log. Always on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm2rec.process import rank

Tell = Callable[[int, str], None]
"""Told how much is done, and a note to show beside it."""

_SECONDS_BETWEEN_LINES = 20.0
_CONSOLE = Console(stderr=True)  # one for all: a bar inside another one's work is drawn below it


@contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Iterator[Tell]:
    """Show work of `total` parts, `done` of which stand already; yields what is to be told after each part.

    Of several processes the first one speaks for all.
    """
    if rank() > 0:
        yield lambda count, note: None
        return
    if not sys.stderr.isatty():
        yield _lines(title, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=_CONSOLE, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda count, note: bar.update(task, completed=count, note=note)


def notice(line: str) -> None:
    """Say one line now, above whatever bar there is."""
    if rank() == 0:
        _CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(title: str, total: int | None) -> Tell:
    last = time.monotonic()

    def tell(done: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {done}{f' of {total}' if total else ''} {note}".rstrip(), file=sys.stderr, flush=True)

    return tell
