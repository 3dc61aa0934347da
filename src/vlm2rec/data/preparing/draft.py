"""A data set in the making: all events as numbers, all items with what becomes of them, and what follows from both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.preparing.kcore import MIN_EVENTS, Core, Mask, core, count
from vlm2rec.data.preparing.log import Ints, Log
from vlm2rec.data.preparing.losses import (
    CORE,
    EXAMPLES,
    FEW_EVENTS,
    UNLISTED,
    Loss,
    Tally,
    Unit,
    alike,
    by_reason,
    example,
    tally,
)
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
_USER_KEPT, _FEW, _IN_NO_CORE, _NOT_DRAWN = range(4)
_USER_REASONS = (None, f"fewer than {MIN_EVENTS} events", CORE, "not drawn")
_NO_EVENTS = "no events"
_NOT_LISTED = "not in the catalogue"


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
        before: losses of events before items are looked at.
        user: `(n_events,)` int32, -1 where an event does not count.
        item: `(n_events,)` int32, rows of the stock, -1 where it lacks the item.
        stock: the items.
        row: `(n items of the log,)` int32, the stock's row of each, -1 where it lacks the item.
        alone: `(n items of the log,)`, those that the catalogue was asked for.
        demand: `(n items of the log,)`, how many events of each would count.
    """

    raw: RawData
    options: dict[str, Any]
    log: Log
    before: Sequence[Loss]
    user: Ints
    item: Ints
    stock: Stock
    row: Ints
    alone: Mask
    demand: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        raw: RawData,
        options: dict[str, Any],
        log: Log,
        before: Sequence[Loss],
        user: Ints,
        stock: Stock,
        alone: Mask,
    ) -> "Draft":
        """Bring events and items together; `user` `(n_events,)` is -1 where an event does not count."""
        row = _rows(log.item_ids, stock.items["item_id"])
        demand = count(log.item[user >= 0], len(row))
        item = row[log.item]
        user = np.where(item < 0, np.int32(-1), user)
        return cls(raw, options, log, before, user, item, stock, row, alone, demand)

    @property
    def unlisted(self) -> NDArray[np.int64]:
        """Numbers in the log of the items that the catalogue was asked for and lacks, `(n,)`."""
        return np.flatnonzero((self.row < 0) & self.alone)

    @property
    def unlisted_events(self) -> int:
        """How many events those have."""
        return int(self.demand[self.unlisted].sum())

    def core(self, usable: Mask) -> Core:
        """What would survive with these items `(n_items,)`."""
        return core(self.user, self.item, usable, len(self.log.user_ids), self.options["k_core"])

    def cut(self) -> Core:
        """What survives as things stand. Raises InputError, with the likeliest reason, if nothing does."""
        kept = self.core(self.stock.usable)
        if not kept.events.any():
            raise InputError(f"{self.raw.items_from}: nothing is left: {self._why_nothing(kept)}")
        return kept

    def dropped(self, kept: Core) -> pl.DataFrame:
        """Every item and user that is gone, and every kept item whose picture is; columns id, kind, reason."""
        stock, log, stays = self.stock, self.log, pl.Series(kept.items)
        ids = stock.items["item_id"].alias("id")
        asked = np.zeros(len(ids), np.int64)
        asked[self.row[self.row >= 0]] = self.demand[self.row >= 0]
        gone = pl.DataFrame([ids, stock.reasons.fill_null(_rare(asked))]).filter(~stays)
        bare = pl.DataFrame([ids, stock.lost.alias("reason")]).filter(stays & stock.lost.is_not_null())
        unlisted = _because(log.item_ids[self.unlisted], _NOT_LISTED)
        unasked = np.flatnonzero((self.row < 0) & ~self.alone)  # what the log alone leaves out
        unread = pl.DataFrame([log.item_ids[unasked].alias("id"), _rare(self.demand[unasked]).alias("reason")])
        unrated = [_because(items, why) for why, (_, items) in log.unrated.items()]
        known = pl.concat([ids, log.item_ids.alias("id")])
        kinds = {
            "item": [gone, unlisted, unread, *_new(unrated, known)],
            "picture": [bare],
            "user": [
                self._dropped_users(kept),
                *_new([_because(users, why) for why, (users, _) in log.unrated.items()], log.user_ids),
            ],
        }
        return pl.concat(
            part.select("id", pl.lit(kind).alias("kind"), "reason") for kind, parts in kinds.items() for part in parts
        )

    def losses(self, kept: Core, dropped: pl.DataFrame) -> dict[Unit, Tally]:
        """What is lost of events, users, items and pictures; `dropped` is what the method of that name says."""
        gone = {kind: dropped.filter(pl.col("kind") == kind) for kind in ("user", "item", "picture")}
        n_items = int(kept.items.sum())
        return {
            "events": tally(int(kept.events.sum()), [*self.before, *self._lost_events(kept)]),
            "users": tally(int(kept.users.sum()), by_reason(gone["user"], "user_id")),
            "items": tally(n_items, by_reason(gone["item"], "item_id")),
            "pictures": tally(n_items - gone["picture"].height, by_reason(gone["picture"], "item_id")),
        }

    def _lost_events(self, kept: Core) -> Iterator[Loss]:
        """Events that would count and are lost: for their item first, then for what the k-core takes."""
        ids, stock, unlisted = self.log.item_ids, self.stock, self.unlisted
        unlisted = unlisted[self.demand[unlisted] > 0]
        catalogue = stock.items["item_id"].head(1).to_list()
        examples = {"item_id": ids[unlisted[:EXAMPLES]].to_list(), "catalogue": catalogue}
        yield Loss(UNLISTED, self.unlisted_events, examples)
        there = np.flatnonzero((self.row >= 0) & (self.demand > 0))
        reasons = stock.reasons[self.row[there]].alias("reason")
        table = pl.DataFrame([ids[there].alias("id"), reasons, pl.Series("count", self.demand[there])])
        yield from by_reason(table.filter(pl.col("reason").is_not_null()), "item_id")
        unasked = np.flatnonzero((self.row < 0) & ~self.alone & (self.demand > 0))
        left = (self.user >= 0) & ~kept.events
        left &= stock.usable[self.item]  # -1 is never looked at: such an event has no user either
        rows = np.flatnonzero(left)
        few = (self._user_codes(kept) == _FEW)[self.user[rows]]
        both = {FEW_EVENTS: rows[few], CORE: rows[~few]}
        for reason, own in both.items():
            more = unasked if reason == CORE else unasked[:0]
            some = {"user_id": first_users(self.log, own)} if len(own) else {"item_id": ids[more[:EXAMPLES]].to_list()}
            yield Loss(reason, len(own) + int(self.demand[more].sum()), some)

    def other_form(self) -> str | None:
        """Items that the catalogue has under an id of another form, in words; None where there are none."""
        unlisted = self.unlisted
        found = alike(self.log.item_ids[unlisted], self.stock.items["item_id"]) if len(unlisted) else None
        if found is None:
            return None
        events = int(self.demand[unlisted[found["place"].to_numpy()]].sum())
        pairs = " and ".join(
            f"{example(ours)} for {example(theirs)}" for ours, theirs, _ in found.head(EXAMPLES).iter_rows()
        )
        return (
            f"{found.height:,} item ids ({events:,} events) of {self.raw.interactions_from} are in"
            f" {self.raw.items_from} in another form: {pairs}; write them alike in both tables"
        )

    def _user_codes(self, kept: Core) -> NDArray[np.int8]:
        """Why each user of the log is gone, `(n_users,)`, as places in `_USER_REASONS`."""
        n_users = len(self.log.user_ids)
        alive = (self.user >= 0) & kept.items[self.item]  # as in `_lost_events`
        short = count(self.user[alive], n_users) < MIN_EVENTS
        codes = np.where(short, _FEW, _IN_NO_CORE).astype(np.int8)
        if self.options["users"] is not None:
            drawn = np.zeros(n_users, bool)
            drawn[sample_users(n_users, self.options["users"], self.options["seed"], "prepare")] = True
            codes[~drawn] = _NOT_DRAWN
        codes[kept.users] = _USER_KEPT
        return codes

    def _dropped_users(self, kept: Core) -> pl.DataFrame:
        codes = self._user_codes(kept)
        why = pl.Series("reason", _USER_REASONS, dtype=pl.String)[codes[codes != _USER_KEPT]]
        return pl.DataFrame([self.log.user_ids.filter(pl.Series(codes != _USER_KEPT)).alias("id"), why])

    def _why_nothing(self, kept: Core) -> str:
        ids, stock = self.log.item_ids, self.stock
        reasons, unlisted = stock.reasons.drop_nulls(), self.unlisted
        if len(unlisted) > len(ids) / 2 or self.unlisted_events > self.demand.sum() / 2:
            other_form = self.other_form()
            return (
                f"{len(unlisted):,} of {len(ids):,} items of {self.raw.interactions_from} are not in it; "
                + (other_form or f"ids there are like {ids[int(unlisted[0])]!r}, ")
                + ("" if other_form else f"here like {stock.items['item_id'][0]!r}")
            )
        if len(reasons) > stock.items.height / 2:
            worst = str(reasons.value_counts(sort=True)["reason"][0])
            help_ = next(help_ for part, help_ in _HELP.items() if part in worst)
            return f"{int((reasons == worst).sum()):,} of {stock.items.height:,} items were dropped ({worst}); {help_}"
        lost = tally(0, [*self.before, *self._lost_events(kept)])
        first = max((each for each in lost.lost if each.reason not in (FEW_EVENTS, CORE)), key=_size, default=None)
        gone = f", after {first.count:,} of {lost.raw:,} events were dropped ({first.reason})" if first else ""
        return f"no user keeps {MIN_EVENTS} events {under(self.options)}{gone}; lower it or bring more data"

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


def _size(loss: Loss) -> int:
    return loss.count


def first_users(log: Log, rows: NDArray[np.int64]) -> list[str]:
    """Two users of these events (one, if there is but one), as examples; `rows` is not empty."""
    users = log.user[rows]
    other = users[int(np.argmax(users != users[0]))]
    return log.user_ids[[users[0], *([other] if other != users[0] else [])]].to_list()


def _because(ids: pl.Series, reason: str) -> pl.DataFrame:
    return pl.DataFrame([ids.alias("id")]).with_columns(reason=pl.lit(reason))


def _rare(demand: NDArray[np.int64]) -> pl.Series:
    """Why items that nothing is wrong with are gone, by how many events they have, `(n,)`."""
    return pl.Series("reason", [_NO_EVENTS, CORE], dtype=pl.String)[(demand > 0).astype(np.uint32)]


def _new(tables: Sequence[pl.DataFrame], known: pl.Series) -> Sequence[pl.DataFrame]:
    """Rows of tables whose id no table before them has, nor `known`."""
    if not tables:
        return ()
    every = pl.concat(tables).unique("id", keep="first", maintain_order=True)
    return [every.join(known.to_frame("id"), on="id", how="anti", maintain_order="left")]


def _rows(ids: pl.Series, known: pl.Series) -> Ints:
    """The row of each id among `known`, -1 where it is not there."""
    table = pl.DataFrame([known.alias("id"), pl.Series("row", np.arange(len(known), dtype=np.int32))])
    joined = pl.DataFrame([ids.alias("id")]).join(table, on="id", how="left", maintain_order="left")
    return joined["row"].fill_null(-1).to_numpy()
