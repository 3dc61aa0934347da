"""One spelling of each id, where a program has written some of them as floating-point numbers.

pandas turns a column of whole numbers that has a gap into floating-point ones, and 12 into 12.0, in one file or in some
parts of it. Taken as they stand, 12 and 12.0 would be two users, or an event of an item that is in no catalogue.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

_AS_FLOAT = r"^(?:0|-?[1-9][0-9]*)\.0$"
_WHOLE = r"^(?:0|-?[1-9][0-9]*)$"


def one_spelling(
    ids: pl.Series, number: NDArray[np.int32], known: pl.Series | None, what: str
) -> tuple[pl.Series, NDArray[np.int32], str | None]:
    """Ids of a log of which none is there both as 12 and as 12.0.

    With a catalogue, an id that it lacks becomes the one that it has: 12 for 12.0, or 12.0 for 12. Without one, 12.0
    becomes 12 where that is in the log too.

    Args:
        ids: `(n,)` text, in order of first appearance.
        number: the number of each event's id, `(n_events,)`.
        known: ids of the catalogue; None: there is none.
        what: what the line calls them.

    Returns:
        Ids and numbers, and a line that says how many events were touched; None: nothing was.
    """
    there = ids if known is None else known
    if not any(column.str.ends_with(".0").any() for column in (ids, there)):
        return ids, number, None
    other = _other(ids, _AS_FLOAT if known is None else f"{_AS_FLOAT}|{_WHOLE}")
    respelled = other.is_in(there.implode()) & other.is_not_null()
    if known is not None:
        respelled &= ~ids.is_in(known.implode())
    if not respelled.any():
        return ids, number, None
    spelled = ids.zip_with(~respelled, other)
    kept = spelled.unique(maintain_order=True)
    place = spelled.cast(pl.Enum(kept)).to_physical().cast(pl.Int32).to_numpy()
    touched = int(respelled.to_numpy()[number].sum())
    old, new = (" and ".join(column.filter(respelled)[:2]) for column in (ids, other))
    line = f"{touched:,} of {len(number):,} events have {what} such as {old}, which is taken for {new}"
    return kept, place[number], line


def _other(ids: pl.Series, pattern: str) -> pl.Series:
    """The other spelling of each id of a pattern, null for others."""
    as_float = ids.str.ends_with(".0")
    other = pl.select(pl.when(as_float).then(ids.str.strip_suffix(".0")).otherwise(ids + ".0")).to_series()
    return other.set(~ids.str.contains(pattern), None)
