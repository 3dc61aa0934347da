"""Raw tables made clean, and cut down to what can be used: titles, times, k-core.

Pure functions on data frames; what is wrong beyond repair raises InputError, what is merely unusable is dropped by
the caller and listed.
"""

import html
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.sources import RawData
from vlm2rec.errors import InputError

MIN_EVENTS = 3  # one to train on, one to validate, one to test


def clean_title(title: str) -> str:
    """Unescape HTML entities (twice-escaped ones too: shops export them) and collapse white space."""
    while (plain := html.unescape(title)) != title:
        title = plain
    return " ".join(title.split())


def clean_items(raw: RawData, require: tuple[str, ...]) -> pl.DataFrame:
    """The items with `item_id`, `title`, `image` as text, in source order; "" where there is no title or image.

    Raises:
        InputError: a required column is missing or holds no text, or an item id is missing or there twice.
    """
    where, items = raw.items_from, raw.items
    for column in ("item_id", *require):
        _need(items, column, where)
    for column in ("title", "image"):
        if column not in items.columns:
            items = items.with_columns(pl.lit("").alias(column))
    ids = ids_of(items, "item_id", where)
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise InputError(f"{where}: item_id {twice[0]!r} is there more than once; keep one row an item")
    titles = [clean_title(title) for title in _text(items, "title", where).fill_null("")]
    images = _text(items, "image", where).fill_null("").str.strip_chars()
    others = items.drop("item_id", "title", "image")
    return pl.DataFrame([ids, pl.Series("title", titles, dtype=pl.String), images]).hstack(others)


def clean_interactions(raw: RawData, item_ids: pl.Series) -> pl.DataFrame:
    """The interactions with ids as text and times as numbers, ordered by user (first seen first), then time.

    The sort is stable: events of one user at one time keep their order in the source.

    Raises:
        InputError: a column is missing, a value cannot be read, or an item is not among `item_ids`.
    """
    where, table = raw.interactions_from, clean_events(raw.interactions, raw.interactions_from)
    known = table["item_id"].is_in(item_ids.implode())
    if not known.all():
        unknown = table["item_id"].filter(~known).unique(maintain_order=True)
        raise InputError(
            f"{where}: {len(unknown):,} item ids are not in {raw.items_from}, the first is {unknown[0]!r};"
            " add these items or leave their rows out"
        )
    first = ["user_id", "item_id", "timestamp"]
    table = table.select(*first, pl.exclude(first))
    seen = table.with_row_index("row").select(pl.col("row").min().over("user_id")).to_series()
    return table.sort(seen, "timestamp", maintain_order=True)


def clean_events(table: pl.DataFrame, where: str) -> pl.DataFrame:
    """Events as they stand, with user_id and item_id as text and timestamp as numbers; other columns are kept.

    Raises:
        InputError: a column is missing, or a value cannot be read. `where` is what the table is called.
    """
    for column in ("user_id", "item_id", "timestamp"):
        _need(table, column, where)
    return table.with_columns(ids_of(table, "user_id", where), ids_of(table, "item_id", where), _times(table, where))


def _need(table: pl.DataFrame, column: str, where: str) -> None:
    if column not in table.columns:
        raise InputError(
            f"{where}: has no column {column} (only {', '.join(table.columns) or 'none'}); add or rename it"
        )


def _text(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    dtype = table.schema[column]
    if dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null) and not dtype.is_integer():
        raise InputError(f"{where}: column {column} holds {dtype}; give text or whole numbers")
    return table[column].cast(pl.String)


def ids_of(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    """A column of ids as text. Raises InputError where one is missing, or they are neither text nor whole numbers."""
    ids = _text(table, column, where)
    empty = ids.is_null() | (ids == "")
    if empty.any():
        raise InputError(f"{where}: column {column} is empty in row {_first(empty)}; fill it in or leave the row out")
    return ids


def _times(table: pl.DataFrame, where: str) -> pl.Series:
    """Times as int64, or float64 where some are fractional; dates become microseconds."""
    raw = table["timestamp"]
    dtype = raw.dtype
    if dtype in (pl.Date, pl.Datetime):
        times = raw.dt.epoch("us")
    elif dtype.is_integer():
        times = raw.cast(pl.Int64, strict=False)
    elif dtype.is_float():
        times = raw.cast(pl.Float64)
    elif dtype in (pl.String, pl.Null):
        text = raw.cast(pl.String).str.strip_chars()
        whole = text.cast(pl.Int64, strict=False)
        times = text.cast(pl.Float64, strict=False) if (whole.is_null() & text.is_not_null()).any() else whole
    else:
        raise InputError(f"{where}: column timestamp holds {dtype}; give numbers or dates")
    wrong = times.is_null() if times.dtype == pl.Int64 else times.is_null() | ~times.is_finite().fill_null(False)
    if wrong.any():
        row = _first(wrong)
        raise InputError(f"{where}: timestamp {raw[row - 1]!r} in row {row} is no time; give a number in every row")
    return times


def _first(mask: pl.Series) -> int:
    """The first true row, counted from 1 as people do, a header aside."""
    return int(mask.fill_null(True).arg_true()[0]) + 1


@dataclass(frozen=True)
class Core:
    """What survives, as masks over items `(n_items,)`, users `(n_users,)` and events `(n_events,)`."""

    items: NDArray[np.bool_]
    users: NDArray[np.bool_]
    events: NDArray[np.bool_]


def core(user: NDArray[np.int64], item: NDArray[np.int64], usable: NDArray[np.bool_], n_users: int, k: int) -> Core:
    """The largest part in which every user has >= max(k, 3) events and every item >= k, within `usable` items.

    `user` and `item` `(n_events,)` number each event's user and item. Repeats count as events. That part is unique:
    removing in any other order ends in the same place, so users with fewer than 3 events need no pass of their own.
    """
    items = usable.copy()
    users = np.ones(n_users, bool)
    while True:
        events = items[item] & users[user]
        keep_users = users & (np.bincount(user[events], minlength=n_users) >= max(k, MIN_EVENTS))
        keep_items = items & (np.bincount(item[events], minlength=len(items)) >= k)
        if (keep_users == users).all() and (keep_items == items).all():
            return Core(items, users, events)
        users, items = keep_users, keep_items
