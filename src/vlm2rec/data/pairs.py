"""Two prepared data sets as one: what the same people did in two domains, in the order in which they did it.

Users are the same where their ids are equal. Items never are: one that both data sets have is two items, one a domain,
or a domain's items could not be told from the other's. A column `domain` of the items has the name of the data set
that each is from, for `data.split.domain` to ask for. The k-core is not taken again, and no event is dropped but
those of users who are left out: an item may be left without events, and stays. Nobody falls below three events, since
each data set alone gives them as many.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import DROPPED, INTERACTIONS, ITEMS, USERS, Dataset, read_manifest
from vlm2rec.data.holding import DOMAIN
from vlm2rec.data.pictures.store import INDEX, PACK, read_index
from vlm2rec.data.preparing.losses import (
    EXAMPLES,
    OTHER_DOMAIN,
    RAW,
    Loss,
    Tally,
    Unit,
    by_reason,
    lines,
    plain,
    tally,
)
from vlm2rec.data.preparing.times import UNITS
from vlm2rec.data.preparing.writing import Events, is_free, partial, put, write_directory
from vlm2rec.data.timeline import Timeline
from vlm2rec.errors import InputError

Users = Literal["both", "any"]
_PICTURE_OPTIONS = ("picture_size", "picture_fit")
_EVENTS_AT_ONCE = 1 << 21


def pair(
    first: Dataset,
    second: Dataset,
    out: Path | str,
    users: Users = "both",
    notice: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Merge two data sets by users and time, write the result to `out`, and open it.

    Users come in the order of `first`, then those whom `second` alone has; items those of `first`, then those of
    `second`. Of a user's events at one time those of `first` come first, in their order. An item id that both have
    becomes "NAME:ID" in both. Times count in the finer of both units. Pictures are copied as they are. The manifest's
    `pair` says what it was made from and how much the two have in common. An `out` that holds the same pair already is
    left as it is.

    Args:
        first: a prepared data set.
        second: one of another name.
        out: the directory to write.
        users: "both": those with events in both domains; "any": everybody.
        notice: told in one line each what is dropped.

    Raises:
        InputError: the two cannot be put together, nobody is in both, or `out` is taken.
    """
    out = Path(out)
    unit, clocks = _compatible(first, second)
    made_from: dict[str, Any] = {
        "users": users,
        "of": [{"name": each.name, "fingerprint": each.fingerprint} for each in (first, second)],
    }
    if _is_there(out, made_from):
        return Dataset.load(out)
    items, shared_items = _items(first, second)
    ids = [pl.read_parquet(each.path / USERS, columns=["user_id"], glob=False)["user_id"] for each in (first, second)]
    common = int(ids[0].is_in(ids[1].implode()).sum())
    if users == "both" and not common:
        raise InputError(f"{first.path}, {second.path}: have no user id in common; give --users any to take everybody")
    people = _people(ids, users)
    numbers = [_numbers(own, people) for own in ids]
    left = [own.filter(pl.Series(number < 0)) for own, number in zip(ids, numbers, strict=True)]
    overlap = {
        "users": common,
        "users_in_first": len(ids[0]),
        "users_in_second": len(ids[1]),
        "item_ids": shared_items,
    }
    dropped = _dropped((first, second), left, items["item_id"])
    losses = plain(_losses((first, second), numbers, left, len(people), dropped))
    with partial(out) as folder:
        _copy_pictures(folder, (first, second))
        write_directory(
            folder,
            f"{first.name}+{second.name}",
            items,
            _events((first, second), clocks, numbers, people, items["item_id"]),
            dropped,
            {option: first.manifest["options"][option] for option in _PICTURE_OPTIONS},
            _manifest((first, second), unit, {**made_from, "overlap": overlap}, losses),
        )
        put(folder, out)
    for line in lines(losses):
        notice(line)
    return Dataset.load(out)


def _compatible(first: Dataset, second: Dataset) -> tuple[str, list[Timeline]]:
    """The finer unit of both clocks, and the clocks, counting in it.

    Raises InputError where the two do not go together.
    """
    where = f"{first.path}, {second.path}"
    if first.name == second.name:
        raise InputError(
            f"{where}: are both called {first.name!r}, which is how domains are told apart; prepare one from a folder"
            " of another name"
        )
    for option in _PICTURE_OPTIONS:
        mine, other = (each.manifest["options"][option] for each in (first, second))
        if mine != other:
            asked = f"--{option.replace('_', '-')}"
            raise InputError(f"{where}: pictures differ in {option} ({mine}, {other}); prepare both with one {asked}")
    clocks = [Timeline.of(each) for each in (first, second)]
    for each, clock in zip((first, second), clocks, strict=True):
        if clock.unit is None:
            raise InputError(
                f"{each.path}: it is not known what its times count, so they cannot be put in order with others';"
                " prepare it with clock times"
            )
    finer = max((clock.unit for clock in clocks if clock.unit is not None), key=UNITS.index)
    return finer, [_counting(clock, finer) for clock in clocks]


def _counting(clock: Timeline, unit: str) -> Timeline:
    """The same times in a unit that is as fine or finer, which whole numbers can hold for any date of a log."""
    steps = UNITS.index(unit) - UNITS.index(str(clock.unit))
    return replace(clock, times=clock.times * 1000**steps, unit=unit) if steps else clock


def _is_there(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds this pair. Raises InputError where it holds anything else."""
    if is_free(out):
        return False
    there = (read_manifest(out) or {}).get("pair", {})
    if {key: there.get(key) for key in made_from} != made_from:
        raise InputError(f"{out}: exists and is not this pair; delete it or give another --out")
    return True


def _items(first: Dataset, second: Dataset) -> tuple[pl.DataFrame, int]:
    """The items of both, and how many ids both had."""
    tables = [pl.read_parquet(each.path / ITEMS, glob=False) for each in (first, second)]
    for each, table in zip((first, second), tables, strict=True):
        if DOMAIN in table.columns and "pair" not in each.manifest:
            raise InputError(
                f"{each.path / ITEMS}: has a column {DOMAIN}, which a pair writes itself (the data set that an item is"
                " from); rename it in the raw files and prepare them again"
            )
    shared = tables[0]["item_id"].filter(tables[0]["item_id"].is_in(tables[1]["item_id"].implode()))
    marked = [
        table.with_columns(
            pl.when(pl.col("item_id").is_in(shared.implode()))
            .then(pl.lit(f"{each.name}:") + pl.col("item_id"))
            .otherwise(pl.col("item_id"))
            .alias("item_id"),
            pl.lit(each.name).alias(DOMAIN),
        )
        for each, table in zip((first, second), tables, strict=True)
    ]
    items = _together(marked, (first, second))
    twice = items["item_id"].filter(items["item_id"].is_duplicated())
    if len(twice):
        raise InputError(f"{first.path}, {second.path}: item id {twice[0]!r} is there twice in the pair; rename it")
    return items, len(shared)


def _people(ids: Sequence[pl.Series], users: Users) -> pl.Series:
    """Ids of the users of the pair, in order."""
    if users == "both":
        return ids[0].filter(ids[0].is_in(ids[1].implode()))
    return pl.concat([ids[0], ids[1].filter(~ids[1].is_in(ids[0].implode()))])


def _numbers(ids: pl.Series, people: pl.Series) -> NDArray[np.int64]:
    """The pair's number of each of a data set's users, -1 where it has none, `(n_users,)`."""
    known = pl.DataFrame({"user_id": people, "number": np.arange(len(people))})
    found = ids.to_frame("user_id").join(known, on="user_id", how="left", maintain_order="left")["number"]
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _events(
    both: tuple[Dataset, Dataset],
    clocks: Sequence[Timeline],
    numbers: Sequence[NDArray[np.int64]],
    people: pl.Series,
    item_ids: pl.Series,
) -> Events:
    """All events, in order of user, time, data set and place there. In memory are numbers; ids come batch by batch."""
    user = np.concatenate([own[each.sequences.rows()] for own, each in zip(numbers, both, strict=True)])
    item = np.concatenate([both[0].sequences.flat(), both[1].sequences.flat() + np.int32(both[0].n_items)])
    time = np.concatenate([clock.times for clock in clocks])
    order = np.lexsort((time, user))  # stable
    order = order[np.searchsorted(user[order], 0) :]
    tables = [pl.scan_parquet(each.path / INTERACTIONS, glob=False) for each in both]
    others = [table.drop("user_id", "item_id").collect() for table in tables]
    rest = _together(others, both).drop("timestamp")

    def table(rows: NDArray[np.int64]) -> pl.DataFrame:
        own = {"user_id": people[user[rows]], "item_id": item_ids[item[rows]], "timestamp": time[rows]}
        return pl.DataFrame(own).hstack(rest[rows])

    def batches() -> Iterator[tuple[pl.DataFrame, NDArray[np.int32]]]:
        for start in range(0, len(order), _EVENTS_AT_ONCE):
            rows = order[start : start + _EVENTS_AT_ONCE]
            yield table(rows), item[rows]

    events = np.bincount(user[order], minlength=len(people)).astype(np.uint32)
    return Events(pl.DataFrame({"user_id": people, "events": events}), table(order[:0]).schema, batches())


def _together(tables: Sequence[pl.DataFrame], both: tuple[Dataset, Dataset]) -> pl.DataFrame:
    """Rows of both, with the columns of either."""
    try:
        return pl.concat(tables, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        reason = (str(error).strip().splitlines() or ["types differ"])[0][:120]
        raise InputError(f"{both[0].path}, {both[1].path}: columns of one name do not go together: {reason}") from None


def _copy_pictures(folder: Path, both: tuple[Dataset, Dataset]) -> None:
    """The packed pictures of one behind those of the other, byte for byte."""
    with (folder / PACK).open("wb") as file:
        for each in both:
            with (each.path / PACK).open("rb") as own:
                shutil.copyfileobj(own, file, 1 << 24)
    indices = [read_index(each.path) for each in both]
    there = pl.col("height") > 0
    shift = (both[0].path / PACK).stat().st_size
    moved = indices[1].with_columns(pl.when(there).then(pl.col("offset") + shift).otherwise(pl.col("offset")))
    pl.concat([indices[0], moved]).write_parquet(folder / INDEX)


def _dropped(both: tuple[Dataset, Dataset], left: Sequence[pl.Series], item_ids: pl.Series) -> pl.DataFrame:
    """Users who are in one data set alone, and items that had no picture already; columns id, kind, reason."""
    tables = [
        ids.to_frame("id").with_columns(kind=pl.lit("user"), reason=pl.lit(f"only in {each.name}"))
        for each, ids in zip(both, left, strict=True)
    ]
    starts = (0, both[0].n_items)
    for start, each in zip(starts, both, strict=True):
        names = pl.read_parquet(each.path / ITEMS, columns=["item_id"], glob=False).select(id="item_id")
        names = names.with_columns(item_ids[start : start + each.n_items].alias("new"))
        lost = pl.read_parquet(each.path / DROPPED, glob=False).filter(pl.col("kind") == "picture")
        found = lost.join(names, on="id", maintain_order="left")
        tables.append(found.select(id="new", kind="kind", reason="reason"))
    return pl.concat(tables)


def _losses(
    both: tuple[Dataset, Dataset],
    numbers: Sequence[NDArray[np.int64]],
    left: Sequence[pl.Series],
    n_users: int,
    dropped: pl.DataFrame,
) -> dict[Unit, Tally]:
    """What of the two is not in the pair: users whom one alone has, their events, and pictures lost before."""
    events, reasons = [], []
    for each, own, ids in zip(both, numbers, left, strict=True):
        reason, gone = f"{OTHER_DOMAIN}{each.name}", int(each.sequences.lengths[own < 0].sum())
        events.append(Loss(reason, gone, {"user_id": ids.head(EXAMPLES).to_list()}))
        reasons.append(Loss(reason.removeprefix("user "), len(ids), {"user_id": ids.head(EXAMPLES).to_list()}))
    n_events = sum(each.n_interactions for each in both) - sum(each.count for each in events)
    n_items = sum(each.n_items for each in both)
    pictures = by_reason(dropped.filter(pl.col("kind") == "picture"), "item_id")
    return {
        "events": tally(n_events, events),
        "users": tally(n_users, reasons),
        "items": tally(n_items, []),
        "pictures": tally(n_items - sum(each.count for each in pictures), pictures),
    }


def _manifest(
    both: tuple[Dataset, Dataset], unit: str, pair: dict[str, Any], losses: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What the manifest says beside what every data set's says."""
    first, second = (each.manifest for each in both)
    required = set(first["options"]["require"]) & set(second["options"]["require"])
    pictures = {option: first["options"][option] for option in _PICTURE_OPTIONS}
    return {
        "raw": {name: losses[unit]["raw"] for name, unit in RAW.items()},
        "losses": losses,
        "time_unit": unit,
        "options": {"require": sorted(required, reverse=True) or ["any"], "k_core": 0, **pictures},
        "made_from": {"files": None, "pictures": None},
        "pair": pair,
    }
