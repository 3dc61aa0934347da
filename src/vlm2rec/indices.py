"""Indices that callers give: whole numbers within what there is, or one line that says which is not.

Python would take -1 for the last one, NumPy `True` for a mask.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlm2rec.errors import InputError


def check_indices(given: Iterable[Any], size: int, what: str = "item", where: str = "indices", of: str = "") -> None:
    """Raise InputError unless all of `given` are whole numbers (Python's or NumPy's) from 0 to `size` - 1.

    Args:
        given: the indices.
        size: how many there are.
        what: what they count.
        where: what a message calls the list.
        of: what they count into; by default "the catalogue".
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{where} = {given!r}: give a list of {what} indices")
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu" and _within(given, size):
        return  # millions of them are looked at in one go
    for place, index in enumerate(given):
        if type(index) is int and 0 <= index < size:
            continue
        said = f"{where}[{place}] is {index!r}"
        if isinstance(index, list | tuple | np.ndarray):
            raise InputError(f"{said}, a list; give {what} indices, one number each")
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise InputError(f"{said}, of type {type(index).__name__}; give {what} indices, whole numbers from 0")
        if not 0 <= index < size:
            last = f"which has {what}s 0 to {size - 1}" if size else f"which has no {what}s"
            raise InputError(f"{said}, but {what} {index} is not in {of or 'the catalogue'}, {last}")


def _within(given: np.ndarray, size: int) -> bool:
    return len(given) == 0 or (int(given.min()) >= 0 and int(given.max()) < size)


def check_histories(histories: Sequence[Sequence[Any]], size: int) -> None:
    """Raise InputError unless these are lists of item indices, none of them empty; `size` as for `check_indices`."""
    if isinstance(histories, str | bytes) or not isinstance(histories, Iterable):
        raise InputError(f"histories = {histories!r}: give a list of histories, each a list of item indices")
    for row, history in enumerate(histories):
        if isinstance(history, int | np.integer):
            raise InputError(
                f"histories[{row}] is {history!r}, one item; give a list of histories, each a list of item indices"
            )
        check_indices(history, size, where=f"histories[{row}]")
        if not len(history):
            raise InputError(f"histories[{row}] is empty; a history has one item at least")
