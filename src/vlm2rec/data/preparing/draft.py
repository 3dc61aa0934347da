"""A data set in the making: all events as numbers, all items with what becomes of them, and what follows from both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.preparing.kcore import MIN_EVENTS, Core, Mask, core, count
from vlm2rec.data.preparing.log import Ints, Log
from vlm2rec.data.preparing.stock import Stock
from vlm2rec.data.preparing.writing import Events
from vlm2rec.data.sampling import sample_users
from vlm2rec.data.sources import RawData
from vlm2rec.errors import InputError

BUCKET = 1 << 22
"""Events that are sorted and written at a time."""

_HELP = {
    "refused address": "pass --allow-private if they are your own, or --require title",
    "not fetched": "run it again, or pass --require title",
    "picture": "pictures are looked for by the names in column image, or by item; pass --require title to do without",
    "title": "give titles",
}
"""What to do where most items are dropped for a reason that has these words."""


def under(options: dict[str, Any]) -> str:
    """Which options leave few events, for a message."""
    said = [f"--k-core {options['k_core']}"]
    said += [f"--min-rating {options['min_rating']:g}"] if options["min_rating"] is not None else []
    said += [f"--users {options['users']}"] if options["users"] is not None else []
    return "under " + " and ".join(said)


@dataclass(frozen=True)
class Draft:
    """Everything that a data set is cut from.

    Attributes:
        raw: what the source gave.
        options: of the preparation.
        log: all events.
        user: `(n_events,)` int32, -1 where an event does not count.
        item: `(n_events,)` int32, rows of the stock, -1 where it lacks the item.
        stock: the items.
        unlisted: `(n,)`, numbers in the log of the items that matter and that the stock lacks.
        unlisted_events: how many events those have.
    """

    raw: RawData
    options: dict[str, Any]
    log: Log
    user: Ints
    item: Ints
    stock: Stock
    unlisted: NDArray[np.int64]
    unlisted_events: int

    @classmethod
    def of(cls, raw: RawData, options: dict[str, Any], log: Log, user: Ints, stock: Stock, alone: Mask) -> "Draft":
        """Bring events and items together; `alone` `(n items of the log,)`: those that matter."""
        row = _rows(log.item_ids, stock.items["item_id"])
        item, missing = row[log.item], (row < 0) & alone
        events = int((missing[log.item] & (user >= 0)).sum())
        user = np.where(item < 0, np.int32(-1), user)
        return cls(raw, options, log, user, item, stock, np.flatnonzero(missing), events)

    def core(self, usable: Mask) -> Core:
        """What would survive with these items `(n_items,)`."""
        return core(self.user, self.item, usable, len(self.log.user_ids), self.options["k_core"])

    def cut(self) -> Core:
        """What survives as things stand. Raises InputError, with the likeliest reason, if nothing does."""
        kept = self.core(self.stock.usable)
        if not kept.events.any():
            raise InputError(f"{self.raw.items_from}: nothing is left: {self._why_nothing()}")
        return kept

    def raw_counts(self) -> dict[str, int]:
        """Users, items and events before anything was dropped."""
        items = max(len(self.log.item_ids), self.stock.items.height + len(self.unlisted))
        return {"users": len(self.log.user_ids), "items": items, "interactions": len(self.log.user)}

    def dropped(self, kept: Core) -> pl.DataFrame:
        """Every item and user that is gone, and every kept item whose picture is; columns id, kind, reason."""
        stock, log, stays = self.stock, self.log, pl.Series(kept.items)
        ids = stock.items["item_id"].alias("id")
        gone = pl.DataFrame([ids, stock.reasons.fill_null("k-core")]).filter(~stays)
        bare = pl.DataFrame([ids, stock.lost.alias("reason")]).filter(stays & stock.lost.is_not_null())
        unlisted = _because(log.item_ids[self.unlisted], "not in the catalogue")
        rare = np.zeros(len(log.item_ids), bool)
        if callable(self.raw.items):  # it was not asked for what the log alone leaves out
            rare = _rows(log.item_ids, ids) < 0
            rare[self.unlisted] = False
        unread = _because(log.item_ids.filter(pl.Series(rare)), "k-core")
        kinds = {"item": [gone, unlisted, unread], "picture": [bare], "user": [self._dropped_users(kept)]}
        return pl.concat(
            part.select("id", pl.lit(kind).alias("kind"), "reason") for kind, parts in kinds.items() for part in parts
        )

    def _dropped_users(self, kept: Core) -> pl.DataFrame:
        n_users = len(self.log.user_ids)
        alive = (self.user >= 0) & kept.items[self.item]  # -1 is never looked at: such an event has no user either
        short = count(self.user[alive], n_users) < MIN_EVENTS
        why = pl.when(pl.Series(short)).then(pl.lit(f"fewer than {MIN_EVENTS} events")).otherwise(pl.lit("k-core"))
        if self.options["users"] is not None:
            drawn = np.zeros(n_users, bool)
            drawn[sample_users(n_users, self.options["users"], self.options["seed"], "prepare")] = True
            why = pl.when(pl.Series(~drawn)).then(pl.lit("not drawn")).otherwise(why)
        people = pl.DataFrame([self.log.user_ids.alias("id")])
        return people.with_columns(reason=why).filter(pl.Series(~kept.users))

    def _why_nothing(self) -> str:
        ids, stock = self.log.item_ids, self.stock
        reasons = stock.reasons.drop_nulls()
        if len(self.unlisted) > len(ids) / 2:
            return (
                f"{len(self.unlisted):,} of {len(ids):,} items of {self.raw.interactions_from} are not in it; ids there"
                f" are like {ids[int(self.unlisted[0])]!r}, here like {stock.items['item_id'][0]!r}"
            )
        if len(reasons) > stock.items.height / 2:
            worst = str(reasons.value_counts(sort=True)["reason"][0])
            help_ = next(help_ for part, help_ in _HELP.items() if part in worst)
            return f"{int((reasons == worst).sum()):,} of {stock.items.height:,} items were dropped ({worst}); {help_}"
        return f"no user keeps {MIN_EVENTS} events {under(self.options)}; lower it or bring more data"

    def events(self, kept: Core) -> Events:
        """The kept events, user after user, each one's in order of time and then of the source."""
        log, item_ids, time = self.log, self.stock.items["item_id"], self.log.time
        user_ids = log.user_ids.filter(pl.Series(kept.users))
        rows = np.flatnonzero(kept.events)
        owner = (np.cumsum(kept.users, dtype=np.int32) - np.int32(1))[self.user[rows]]
        lengths = count(owner, len(user_ids))
        # A bucket holds consecutive users. Its number has 16 bits, which are sorted in linear time.
        of_user = ((np.cumsum(lengths) - 1) // BUCKET).astype(np.uint16)
        bucket = of_user[owner]
        order = np.argsort(bucket, kind="stable")
        sizes = count(bucket, int(of_user[-1]) + 1)
        others = log.others.by_bucket(kept.events, bucket, len(sizes))
        number = np.cumsum(kept.items, dtype=np.int32) - np.int32(1)
        del bucket

        def batches() -> Iterator[tuple[pl.DataFrame, Ints]]:
            for place, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
                own = order[end - size : end]
                by_time = np.lexsort((time[rows[own]], owner[own]))
                own = own[by_time]
                here = rows[own]
                item = self.item[here]
                columns = {
                    "user_id": user_ids[owner[own]],
                    "item_id": item_ids[item],
                    "timestamp": pl.Series(time[here]),
                }
                rest = others.read(place)
                table = pl.DataFrame(columns)
                yield (table.hstack(rest[by_time]) if rest.width else table), number[item]

        schema = {"user_id": pl.String(), "item_id": pl.String(), "timestamp": pl.Series(time[:0]).dtype}
        users = pl.DataFrame([user_ids.alias("user_id"), pl.Series("events", lengths)])
        return Events(users, pl.Schema({**schema, **log.others.schema}), batches())


def _because(ids: pl.Series, reason: str) -> pl.DataFrame:
    return pl.DataFrame([ids.alias("id")]).with_columns(reason=pl.lit(reason))


def _rows(ids: pl.Series, known: pl.Series) -> Ints:
    """The row of each id among `known`, -1 where it is not there."""
    table = pl.DataFrame([known.alias("id"), pl.Series("row", np.arange(len(known), dtype=np.int32))])
    joined = pl.DataFrame([ids.alias("id")]).join(table, on="id", how="left", maintain_order="left")
    return joined["row"].fill_null(-1).to_numpy()
