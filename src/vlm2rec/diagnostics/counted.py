"""Vectors that have no ids: which id a row stands for, and whether the log agrees.

Rows are counted from 0, the ids of many public data sets from 1. Off by one, every vector belongs to its neighbour and
good vectors find no more than chance, so ids that fit only when they are counted from 1 are refused, not guessed at.
"""

from collections.abc import Sequence
from pathlib import Path

from vlm2rec.diagnostics.describe import WARNING
from vlm2rec.errors import InputError

_NEARLY_ALL = 0.9  # of the ids in the log: that none of them is 0 is then no accident


def named_by_row(
    count: int, logged: Sequence[str], first_id: int | None, files: str, what: str, log: Path
) -> tuple[list[str], str]:
    """The ids of `count` rows, and a note of what was assumed about them.

    Args:
        count: rows of the vectors.
        logged: ids that the log has, in any order.
        first_id: the id of row 0, where that is stated; None: 0.
        files, what, log: for messages: the files of vectors, "items" or "users", where the ids of the log are from.

    Raises:
        InputError: the ids of the log are 1 to `count` or a part of them, and need the last of these.
    """
    first = 0 if first_id is None else first_id
    named = [str(first + row) for row in range(count)]
    rows = f"{files} have no ids: rows are taken for the ids {first} to {first + count - 1} of {what}"
    numbers = [int(name) for name in logged if name.isdecimal() and str(int(name)) == name]
    if first_id is not None or not numbers:
        return named, rows
    lowest, highest = min(numbers), max(numbers)
    if lowest >= 1 and highest == count:
        raise InputError(
            f"{log}: the ids of {what} look as if counted from 1 (they go from {lowest} to {highest}, and there are"
            f" {count} vectors), but rows of vectors are counted from 0; if row 0 is id 1, give --first-id 1, if it is"
            " id 0, --first-id 0"
        )
    if lowest >= 1 and highest < count:
        urgent = WARNING if len(set(numbers)) >= _NEARLY_ALL * count else ""
        return named, (
            f"{urgent}{rows}; the log has no id 0, so they may as well be counted from 1: if row 0 is id 1, give"
            " --first-id 1"
        )
    return named, rows
