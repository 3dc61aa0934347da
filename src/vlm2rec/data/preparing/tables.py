"""Raw tables made clean: ids, titles, pictures' names.

Pure functions on data frames. What is wrong with a whole table raises InputError; what is merely unusable is dropped
by the caller and listed.
"""

import html
import re
from difflib import get_close_matches

import polars as pl

from vlm2rec.data.preparing.times import EXACT, Clock
from vlm2rec.data.sources import LINE
from vlm2rec.errors import InputError

# White space as Python's str.split has it: Unicode's, and four separators that Unicode counts as control characters.
_BLANKS = r"[\s\x1c-\x1f]+"
# Mark-up that shops leave in titles. Only names that dress a text: "I <3 you" and "<Untitled>" are titles.
_TAG = re.compile(
    r"<!--.*?-->|</?(?:a|abbr|b|big|blockquote|br|center|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span|strike|"
    r"strong|sub|sup|table|tbody|td|th|tr|tt|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE | re.DOTALL,
)

_ENTITY = re.compile(
    r"&(?:#\d{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[a-zA-Z][a-zA-Z0-9]{1,31};)"
)  # "Rules&regulations" has none


def clean_title(title: str) -> str:
    """Unescape HTML entities (twice-escaped ones too: shops export them), take tags out, collapse white space."""
    while (plain := _ENTITY.sub(lambda found: html.unescape(found[0]), _TAG.sub(" ", title))) != title:
        title = plain
    return " ".join(title.split())


def clean_titles(titles: pl.Series) -> pl.Series:
    """`clean_title` of each; "" for null."""
    titles = titles.fill_null("")
    odd = titles.str.contains("[&<]")
    plain = titles.str.replace_all(_BLANKS, " ").str.strip_chars(" ")
    if not odd.any():
        return plain
    cleaned = pl.Series([clean_title(title) for title in titles.filter(odd)], dtype=pl.String)
    return plain.scatter(odd.arg_true(), cleaned)


def clean_items(items: pl.DataFrame, where: str, require: tuple[str, ...] = ()) -> pl.DataFrame:
    """The items with `item_id`, `title`, `image` as text, in source order; "" where there is no title or image.

    Raises:
        InputError: a required column is missing or holds no text, or an item id is missing or there twice. `where` is
            what the table is called.
    """
    for column in ("item_id", *require):
        need(items, column, where, f"items.{column}" if column == "item_id" else column)
    for column in ("title", "image"):
        if column not in items.columns:
            items = items.with_columns(pl.lit("").alias(column))
    if "url" in items.columns:
        items = items.with_columns(texts_of(items, "url", where))
    ids = ids_of(items, "item_id", where, floats=True)
    if ids.n_unique() < len(ids):
        twice = ids.filter(ids.is_duplicated())
        raise InputError(f"{where}: item_id {twice[0]!r} is there more than once; keep one row an item")
    titles = clean_titles(texts_of(items, "title", where, floats=True)).alias("title")
    images = texts_of(items, "image", where, floats=True).fill_null("").str.strip_chars().alias("image")
    return pl.DataFrame([ids, titles, images]).hstack(items.drop("item_id", "title", "image"))


def clean_events(table: pl.DataFrame, where: str) -> tuple[pl.DataFrame, str | None]:
    """Events as they stand, with user_id and item_id as text and timestamp as numbers; other columns are kept.

    Returns:
        The table, and a line if times were converted.

    Raises:
        InputError: a column is missing, a value cannot be read, or times do not go together. `where` is what the table
            is called.
    """
    for column in ("user_id", "item_id", "timestamp"):
        need(table, column, where)
    clock = Clock()
    times, bad = clock.read(table["timestamp"], where)
    if bad.any():
        row = _first(bad)
        raw = table["timestamp"][row - 1]
        raise InputError(f"{where}: timestamp {raw!r} in row {row} is no time; give a number in every row")
    settled, said = clock.settle(times.to_numpy(), where)
    times = pl.Series("timestamp", settled)
    return table.with_columns(ids_of(table, "user_id", where), ids_of(table, "item_id", where), times), said


def need(table: pl.DataFrame, column: str, where: str, named: str | None = None) -> None:
    """Raise InputError if a column is missing. `named`: what `--columns` calls it, where there is that option."""
    if column not in table.columns:
        there = [name for name in table.columns if name != LINE]
        help_ = "add or rename it"
        if named is not None:
            near = get_close_matches(column, there, 1, cutoff=0.4)
            help_ = f"say which it is, as in --columns {named}={near[0] if near else 'NAME'}"
        raise InputError(f"{where}: has no column {column} (only {', '.join(there) or 'none'}); {help_}")


def texts_of(table: pl.DataFrame, column: str, where: str, *, floats: bool = False) -> pl.Series:
    """A column as text. Raises InputError where it holds neither text nor whole numbers.

    `floats`: whole numbers may be floating-point ones, which pandas makes of a column that has a gap.
    """
    dtype = table.schema[column]
    if floats and dtype.is_float():
        numbers = table[column].cast(pl.Float64).fill_nan(None)
        if ((numbers == numbers.round()) & (numbers.abs() <= EXACT)).all():  # what is null does not count
            return numbers.cast(pl.Int64).cast(pl.String)
    if dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null) and not dtype.is_integer():
        raise InputError(f"{where}: column {column} holds {dtype}; give text or whole numbers")
    return table[column].cast(pl.String)


def ids_of(table: pl.DataFrame, column: str, where: str, *, floats: bool = False) -> pl.Series:
    """A column of ids as text. Raises InputError where one is missing, or they are neither text nor whole numbers."""
    ids = texts_of(table, column, where, floats=floats)
    empty = ids.is_null() | (ids == "")
    if empty.any():
        raise InputError(f"{where}: column {column} is empty in row {_first(empty)}; fill it in or leave the row out")
    return ids


def _first(mask: pl.Series) -> int:
    """The first true row, counted from 1 as people do, a header aside."""
    return int(mask.fill_null(True).arg_true()[0]) + 1
