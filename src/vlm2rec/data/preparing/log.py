"""A log of any length, read once: ids become numbers, times become numbers, the rest waits on disk.

An event takes 16 bytes of memory however long its ids are (user and item as int32, its time as 64 bits); an id is
kept once, with about 60 bytes. What else a row holds is written to a scratch folder and comes back bucket by bucket.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.preparing.losses import LOW_RATING, NO_RATING
from vlm2rec.data.preparing.spelling import one_spelling
from vlm2rec.data.preparing.tables import need, texts_of
from vlm2rec.data.preparing.times import EXACT, Clock, Times
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.broken import Broken
from vlm2rec.errors import InputError

CHUNK = 1 << 22
"""Rows of a table that are looked at together."""

_IN_MEMORY = 1 << 28  # bytes of other columns that need no disk
_HOPELESS = 100_000  # broken lines that are listed before anybody asks whether most are broken
_MOST_IDS = np.iinfo(np.int32).max
_CORE = ("user_id", "item_id", "timestamp")

Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Log:
    """Events in the order of the source.

    Attributes:
        user_ids: text, in order of first appearance; row number = user.
        item_ids: the same for items.
        user: `(n_events,)` int32.
        item: `(n_events,)` int32.
        time: `(n_events,)`, int64, or float64 where some are fractional.
        time_unit: s, ms, us, ns, or None where nobody can say.
        others: what else the rows hold.
        left_out: rows that were read but do not count, by reason.
        unrated: the same reasons -> ids of the users and of the items that such rows have.
        said: a line for whatever was converted or is questioned.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    user: Ints
    item: Ints
    time: Times
    time_unit: str | None
    others: "Spill"
    left_out: dict[str, int]
    unrated: dict[str, tuple[pl.Series, pl.Series]]
    said: Sequence[str] = ()


def read_log(
    raw: RawData,
    scratch: Path,
    min_rating: float | None = None,
    bad_lines: float = 0.01,
    progress: Callable[[int], None] = lambda rows: None,
) -> Log:
    """Read the interactions of a source; rows that cannot be used go to `raw.broken`.

    Args:
        raw: the source.
        scratch: a folder for what does not stay in memory.
        min_rating: events rated lower are left out; None: all count.
        bad_lines: the largest share of broken lines that is any use; above a half, reading ends early.
        progress: told how many rows have been read.

    Raises:
        InputError: a column is missing or of no use, columns change on the way, times do not go together, or there are
            no rows.
    """
    where, clock = raw.interactions_from, Clock(raw.time_format, raw.time_unit)
    users, items, others = Numbering(), Numbering(), Spill(scratch)
    parts: list[tuple[Ints, Ints, Times]] = []
    left_out: dict[str, int] = {}
    unrated: dict[str, tuple[Numbering, Numbering]] = {}
    read = 0
    with ThreadPoolExecutor(2) as pool:
        for table in _chunks(raw.interactions):
            good = _good_rows(table, where, clock, raw.broken, read)
            read += table.height
            if len(raw.broken) > max(read, _HOPELESS):  # a wrong separator, say: no need to list a whole log
                raw.broken.refuse_many(max(0.5, bad_lines))
            if min_rating is not None:
                rating = _rated(good, where)
                for reason, out in (
                    (NO_RATING, rating.is_null()),
                    (LOW_RATING, (rating < min_rating).fill_null(False)),
                ):
                    left_out[reason] = left_out.get(reason, 0) + int(out.sum())
                    for ids, column in zip(
                        unrated.setdefault(reason, (Numbering(), Numbering())), ("user_id", "item_id"), strict=True
                    ):
                        ids.numbers(good[column].filter(out))
                good = good.filter((rating >= min_rating).fill_null(False))
            # Both columns at once: most of the time goes into looking up ids, and neither waits for the other.
            both = pool.map(lambda each: each[0].numbers(each[1]), [(users, good["user_id"]), (items, good["item_id"])])
            parts.append((*both, good["timestamp"].to_numpy()))
            others.add(good.drop(*_CORE, LINE, strict=False), where)
            progress(read)
    if not read:
        raw.broken.refuse_many(bad_lines)  # there are lines, and none of them can be read
        raise InputError(f"{where}: has no rows; add some")
    users_, items_, times = zip(*parts, strict=True)
    if len({part.dtype for part in times}) > 1 and any((np.abs(part) > EXACT).any() for part in times):
        raise InputError(f"{where}: times are fractional here and too large for that there; give whole numbers")
    user, item, time = (np.concatenate(column) for column in (users_, items_, times))
    time, converted = clock.settle(time, where)
    question = clock.question(time, where)
    catalogue = _catalogue(raw)
    user_ids, user, line = one_spelling(users.ids(), user, None, "a user_id")
    item_ids, item, other_line = one_spelling(items.ids(), item, catalogue, "an item_id")
    respelled = [f"{where}: {each}" for each in (line, other_line) if each]
    said = [*filter(None, (converted, question)), *respelled]
    known = user_ids, item_ids if catalogue is None else catalogue
    gone = {
        reason: (_as_known(of_users.ids(), known[0]), _as_known(of_items.ids(), known[1]))
        for reason, (of_users, of_items) in unrated.items()
    }
    return Log(user_ids, item_ids, user, item, time, clock.unit_of(time), others, left_out, gone, said)


def _as_known(ids: pl.Series, known: pl.Series) -> pl.Series:
    """Ids in the spelling of those that are known."""
    return one_spelling(ids, np.arange(len(ids), dtype=np.int32), known, "")[0]


def _catalogue(raw: RawData) -> pl.Series | None:
    """Ids of the items, where they are known before the log is."""
    if callable(raw.items) or "item_id" not in raw.items.columns:
        return None
    return texts_of(raw.items, "item_id", raw.items_from, floats=True)


def _chunks(tables: pl.DataFrame | Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    for table in [tables] if isinstance(tables, pl.DataFrame) else tables:
        yield from table.iter_slices(CHUNK)


def _good_rows(table: pl.DataFrame, where: str, clock: Clock, broken: Broken, before: int) -> pl.DataFrame:
    """The rows with two ids and a time, ids as text and times as numbers; the others are listed."""
    for column in _CORE:
        need(table, column, where, f"interactions.{column}" if column == "item_id" else column)
    times, bad_time = clock.read(table["timestamp"], where)
    users, items = (texts_of(table, column, where, floats=True) for column in ("user_id", "item_id"))
    line = table[LINE] if LINE in table.columns else pl.Series(np.arange(before + 1, before + 1 + table.height))
    if LINE not in table.columns:
        broken.count(where, table.height)
    bad = pl.Series(np.zeros(table.height, bool))
    for reason, missing, texts in (
        ("user_id is empty", users.is_null() | (users == ""), users),
        ("item_id is empty", items.is_null() | (items == ""), items),
        ("timestamp is no time", bad_time, table["timestamp"]),
    ):
        new = missing & ~bad
        broken.add_many(where, line.filter(new), reason, texts.filter(new).cast(pl.String))
        bad |= new
    table = table.with_columns(users, items, times)
    return table.filter(~bad) if bad.any() else table


def _rated(table: pl.DataFrame, where: str) -> pl.Series:
    if "rating" not in table.columns:
        raise InputError(
            f"{where}: has no column rating for --min-rating; leave the option out, or say --columns rating=NAME"
        )
    rating, dtype = table["rating"], table.schema["rating"]
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        rating = rating.cast(pl.String).str.strip_chars()
    elif not (dtype.is_numeric() or dtype == pl.Null):
        raise InputError(f"{where}: column rating holds {dtype}; give numbers for --min-rating")
    return rating.cast(pl.Float64, strict=False).fill_nan(None)


class Numbering:
    """Ids as numbers, in order of first appearance, over any number of tables."""

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random("vlm2rec", pl.UInt32))
        self._last = pl.Series([], dtype=self._type)  # polars forgets all ids once no column of this type is left
        self._seen = 0

    def numbers(self, ids: pl.Series) -> Ints:
        """The number of each id `(n,)`, none of which is null."""
        column = ids.cast(self._type)
        self._last = column[:1]
        found = column.to_physical().to_numpy().astype(np.int64)
        highest = np.maximum.accumulate(np.concatenate([[self._seen - 1], found]))
        if (np.diff(highest) > 1).any():  # the whole data set's order stands on this
            raise RuntimeError("polars no longer numbers categories in order of appearance")
        self._seen = int(highest[-1]) + 1
        if self._seen > _MOST_IDS:
            raise InputError(f"more than {_MOST_IDS:,} different ids; numbers of ids have 31 bits")
        return found.astype(np.int32)

    def ids(self) -> pl.Series:
        """All ids so far; row number = number."""
        return pl.Series(np.arange(self._seen, dtype=np.uint32)).cat.to(self._type).cast(pl.String)


class Spill:
    """Rows of the columns that nothing is computed from: in memory while small, else in files of a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.schema = pl.Schema()
        """The columns."""
        self.parts: list[pl.DataFrame | Path] = []
        """Tables in the order they came, or files of them."""
        self._folder = folder
        self._bytes = 0

    def add(self, table: pl.DataFrame, where: str) -> None:
        """Keep the next rows. Raises InputError where their columns are not those before."""
        if not self.parts:
            self.schema = table.schema
        if table.schema != self.schema:
            raise InputError(f"{where}: columns change on the way: {dict(self.schema)} and then {dict(table.schema)}")
        self._bytes += int(table.estimated_size()) if table.width else 0
        if self._bytes <= _IN_MEMORY:
            self.parts.append(table)
            return
        path = self._folder / f"{id(self):x}-{len(self.parts)}.arrow"
        table.write_ipc(path, compression="uncompressed")  # so that a few rows can be read without the others
        self.parts.append(path)

    def by_bucket(self, rows: Mask, bucket: NDArray[np.integer], buckets: int) -> "Buckets":
        """The rows of a mask `(n,)`, each in its bucket `(n kept,)`; within one, in their order here."""
        moved, starts, done, kept = Spill(self._folder), [], 0, 0
        for part in self.parts if self.schema else []:
            table = pl.scan_ipc(part, glob=False).collect() if isinstance(part, Path) else part
            here = np.flatnonzero(rows[done : done + table.height])
            own = bucket[kept : kept + len(here)]
            order = np.argsort(own, kind="stable")
            moved.add(table[here[order]], "")
            starts.append(np.concatenate([[0], np.cumsum(np.bincount(own, minlength=buckets))]))
            done, kept = done + table.height, kept + len(here)
            if isinstance(part, Path):
                part.unlink()
        return Buckets(moved.parts, starts)


@dataclass(frozen=True)
class Buckets:
    """Tables whose rows are sorted by bucket, and where each bucket starts in each."""

    parts: Sequence[pl.DataFrame | Path]
    starts: Sequence[NDArray[np.int64]]

    def read(self, bucket: int) -> pl.DataFrame:
        """All rows of one bucket; no columns where there are none."""
        found = []
        for part, at in zip(self.parts, self.starts, strict=True):
            start, size = int(at[bucket]), int(at[bucket + 1] - at[bucket])
            table = pl.scan_ipc(part, glob=False) if isinstance(part, Path) else part.lazy()
            found.append(table.slice(start, size).collect())
        return pl.concat(found) if found else pl.DataFrame()
