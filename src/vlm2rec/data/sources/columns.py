"""Which column of a user's tables is meant by which of our names."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Literal

import polars as pl
import polars.selectors as cs

from vlm2rec.data.sources import LINE
from vlm2rec.errors import InputError

Table = Literal["items", "interactions"]
TABLES: tuple[Table, ...] = ("items", "interactions")

FLAT = ("user_id", "item_id", "timestamp", "title", "image", "url")
"""Names whose columns hold one value a row, never a list."""
_OURS = (*FLAT, "rating", "category", "brand", "price")  # names that mean something here
_KEYS = ("user_id", "item_id", "timestamp")
_HOME: dict[str, Table] = {
    "user_id": "interactions",
    "timestamp": "interactions",
    "title": "items",
    "image": "items",
    "url": "items",
}  # names that mean something in one table alone


def theirs_of(columns: Mapping[str, str], table: Table, ours: str) -> str:
    """What a column may be called in a table, as far as that can be known without having seen it."""
    return columns.get(f"{table}.{ours}", columns.get(ours, ours))


def by_table(
    columns: Mapping[str, str], there: Mapping[Table, Collection[str]], called: Mapping[Table, str]
) -> dict[Table, dict[str, str]]:
    """Our name -> theirs, for each table.

    Args:
        columns: our name, or `items.` or `interactions.` and our name -> the name of a column.
        there: the columns of each table.
        called: what each table is called.

    Raises:
        InputError: a name is unknown, a column is not there, or a mapping for no table in particular would replace a
            column that may be right already.
    """
    found: dict[Table, dict[str, str]] = {table: {} for table in TABLES}
    for name, theirs in columns.items():
        ours, places = _places(name, theirs)
        has = [table for table in places if theirs in there[table]]
        if not has:
            raise _not_there(name, theirs, places, there, called)
        for table in has:
            if "." in name or f"{table}.{ours}" not in columns:  # a table's own mapping goes before
                found[table][ours] = theirs
    for name, theirs in columns.items():
        if "." not in name:
            _check_replaces_nothing(name, theirs, found, there, called)
    return found


def _places(name: str, theirs: str) -> tuple[str, tuple[Table, ...]]:
    """Our name without its table, and the tables it may be in."""
    prefix, dot, ours = name.rpartition(".")
    near = get_close_matches(ours, _OURS, 1, cutoff=0.8)
    if near and ours not in _OURS:
        raise InputError(f"--columns {name}={theirs}: {ours} is no name of ours; did you mean {near[0]}?")
    if not dot:
        return ours, (_HOME[ours],) if ours in _HOME else TABLES
    for table in TABLES:
        if prefix == table:
            return ours, (table,)
    raise InputError(f"--columns {name}={theirs}: there is no table {prefix}; write {TABLES[0]}. or {TABLES[1]}.")


def _not_there(
    name: str,
    theirs: str,
    places: tuple[Table, ...],
    there: Mapping[Table, Collection[str]],
    called: Mapping[Table, str],
) -> InputError:
    if "." not in name and not any(theirs in names for names in there.values()):
        places = TABLES  # it is nowhere, whichever table was meant
    names = dict.fromkeys(each for table in places for each in there[table] if each != LINE)
    where = " nor ".join(called[table] for table in places)
    none = f"neither {where} has" if len(places) > 1 else f"{where} has no"
    near = get_close_matches(theirs, names, 1)
    help_ = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    return InputError(f"--columns {name}={theirs}: {none}{' a' if len(places) > 1 else ''} column {theirs}; {help_}")


def _check_replaces_nothing(
    ours: str,
    theirs: str,
    found: Mapping[Table, Mapping[str, str]],
    there: Mapping[Table, Collection[str]],
    called: Mapping[Table, str],
) -> None:
    """Raise InputError where a mapping for no table in particular takes the place of a column that has our name.

    One that can only mean one table may do so, but for ids and times: those, where they are there, are right.
    """
    used = [table for table in TABLES if found[table].get(ours) == theirs]
    lost = [t for t in used if ours != theirs and ours in there[t] and ours not in found[t].values()]
    if not lost or not (len(used) > 1 or ours in _KEYS):
        return
    meant = [table for table in used if table not in lost] or used
    instead = " or ".join(f"{table}.{ours}={theirs}" for table in meant)
    raise InputError(
        f"--columns {ours}={theirs}: {called[lost[0]]} has a column {ours} already, which {theirs} would replace; name"
        f" the table that is meant, as in --columns {instead}"
    )


def renamed(table: pl.DataFrame, columns: Mapping[str, str]) -> pl.DataFrame:
    """The table with our name -> theirs applied; the renamed ones come first.

    A column that has a name of ours keeps it beside another: a picture may be named by its item's id. Ids and times are
    not shared so.
    """
    gone = {theirs for name, theirs in columns.items() if name in _KEYS or theirs not in _OURS}
    others = [name for name in table.columns if name not in columns and name not in gone]
    # By selectors: a name such as "*" or "^a$" would be a pattern of polars.
    return table.select(*(cs.by_name(theirs).alias(name) for name, theirs in columns.items()), cs.by_name(*others))


def refuse_histories(names: Collection[str], columns: Mapping[str, str], where: str) -> None:
    """Raise InputError where a log has a history in every row, as RecBole's augmented files do.

    Args:
        names: the log's columns.
        columns: our name -> theirs.
        where: what the log is called.
    """
    listed = f"{columns.get('item_id', 'item_id')}_list"
    if listed in names:
        raise InputError(
            f"{where}: column {listed} holds a history in every row, as in RecBole's augmented files, and its events"
            " would be lost; give the log that it was made of, one event a row (or leave the column out, if every event"
            " has a row of its own)"
        )
