"""The stages of a preparation, from what a source gives to a directory."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import BROKEN
from vlm2rec.data.fetching.journal import stem_of
from vlm2rec.data.pictures import store
from vlm2rec.data.pictures.files import Album, open_pictures
from vlm2rec.data.pictures.names import all_inside
from vlm2rec.data.preparing.draft import Draft, first_users, under
from vlm2rec.data.preparing.kcore import MIN_EVENTS, Mask, copies, core
from vlm2rec.data.preparing.log import Log, read_log
from vlm2rec.data.preparing.losses import (
    COPY,
    EXAMPLES,
    LOW_RATING,
    NO_RATING,
    NOT_DRAWN,
    RAW,
    UNLISTED,
    UNREADABLE,
    Loss,
    lines,
    plain,
)
from vlm2rec.data.preparing.origin import stamp
from vlm2rec.data.preparing.stock import AMBIGUOUS, MISSING, NOT_FETCHED, PLACEHOLDER, Stock
from vlm2rec.data.preparing.stock import BROKEN as BROKEN_PICTURE
from vlm2rec.data.preparing.tables import clean_items, texts_of
from vlm2rec.data.preparing.writing import write_directory
from vlm2rec.data.sampling import sample_users
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.errors import InputError

if TYPE_CHECKING:
    from vlm2rec.data.fetching.client import Fetching

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and how much there is (None: nobody knows)."""


@dataclass(frozen=True)
class Making:
    """One preparation; `write` is all of it, the other methods are its stages."""

    raw: RawData
    options: dict[str, Any]
    fetching: "Fetching | None"
    bad_lines: float
    progress: Progress
    notice: Callable[[str], None]

    def write(self, folder: Path, made_from: dict[str, Any]) -> None:
        """Everything, into an empty folder; `made_from` is what `origin` says before pictures are fetched."""
        self._check_pictures()
        scratch = folder / "scratch"
        scratch.mkdir()
        log = read_log(
            self.raw,
            scratch,
            self.options["min_rating"],
            self.bad_lines,
            lambda rows: self.progress("events read", rows, None),
        )
        self.raw.broken.refuse_many(self.bad_lines)
        for line in log.said:
            self.notice(line)
        aside, before = self._aside(log)
        user = np.where(aside, np.int32(-1), log.user) if aside.any() else log.user
        alone = self._alone(log, user)
        album = open_pictures(self.raw.pictures)
        draft = Draft.of(self.raw, self.options, log, before, user, self._stock(log, alone, album), alone)
        self.raw.broken.refuse_many(self.bad_lines)
        if self.fetching is not None:
            self._fetch(draft, self.fetching)
            album = open_pictures(self.raw.pictures)  # which knows the folder as it was
        # Only survivors are decoded. A broken picture can cost an item its place and, through the k-core, more items;
        # what is left is always a part of what was decoded, so one decoding is enough.
        rows = np.flatnonzero(draft.cut().items)
        bare = self._pack(folder, album, draft.stock, rows)
        kept = draft.cut()
        store.keep(folder, np.flatnonzero(kept.items[rows]), bare)
        dropped = draft.dropped(kept)
        losses = plain(draft.losses(kept, dropped))
        write_directory(
            folder,
            self.raw.name,
            draft.stock.items.filter(pl.Series(kept.items)),
            draft.events(kept),
            dropped,
            {name: self.options[name] for name in ("picture_size", "picture_fit")},
            {
                "raw": {name: losses[unit]["raw"] for name, unit in RAW.items()},
                "losses": losses,
                "left_out": _left_out(losses),
                "broken": self._say_broken(folder),
                "time_unit": log.time_unit,
                "options": self.options,
                "made_from": {**made_from, "pictures": stamp(self.raw)},
                **({} if self.raw.shop is None else {"shop": dict(self.raw.shop)}),
            },
            lambda done, total: self.progress("events written", done, total),
        )
        self._say_losses(draft, losses)
        self._say_ambiguous(album, draft.stock)
        shutil.rmtree(scratch)

    def _check_pictures(self) -> None:
        """Raise InputError if pictures are required and their place is missing: before a large log is read."""
        place, items = self.raw.pictures, self.raw.items
        if "image" not in self.options["require"] or not isinstance(place, Path) or place.exists():
            return
        named = callable(items) or (
            "image" in items.columns
            and (texts_of(items, "image", self.raw.items_from, floats=True).fill_null("") != "").any()
        )
        if named and self.fetching is None:
            addresses = callable(items) or "url" in items.columns
            fetching = "pass --download-images, " if addresses else ""
            raise InputError(
                f"{place}: no such folder; put the pictures there, say --images where they are, {fetching}or pass"
                " --require title"
            )

    def _aside(self, log: Log) -> tuple[Mask, list[Loss]]:
        """Events that do not count `(n_events,)`, and all that are lost before items are looked at."""
        aside, lost = np.zeros(len(log.user), bool), [self._unreadable()]
        for reason, count in log.left_out.items():
            lost.append(Loss(reason, count, {"user_id": log.unrated[reason][0].head(EXAMPLES).to_list()}))
        if self.options["duplicates"] == "drop":
            aside = copies(log.user, log.item, log.time)
            lost.append(_loss(COPY, aside, log))
        if self.options["users"] is not None:
            drawn = np.zeros(len(log.user_ids), bool)
            drawn[sample_users(len(drawn), self.options["users"], self.options["seed"], "prepare")] = True
            others = ~drawn[log.user] & ~aside
            lost.append(_loss(NOT_DRAWN, others, log))
            aside |= others
        return aside, lost

    def _unreadable(self) -> Loss:
        """Lines of the log that cannot be read."""
        found = self.raw.broken.table().filter(pl.col("file") == self.raw.interactions_from)
        return Loss(UNREADABLE, found.height, {"line": found["line"].head(EXAMPLES).to_list()})

    def _alone(self, log: Log, user: NDArray[np.int32]) -> Mask:
        """Items `(n items of the log,)` that survive the k-core of the log by itself, which others may have counted.

        All items, where nobody has and the catalogue is read whole anyway.
        """
        everything, k = np.ones(len(log.item_ids), bool), self.options["k_core"]
        published = self.raw.published
        if not callable(self.raw.items) and published is None:
            return everything
        alone = core(user, log.item, everything, len(log.user_ids), k)
        if not alone.events.any():
            raise InputError(
                f"{self.raw.interactions_from}: no user keeps {max(k, MIN_EVENTS)} events"
                f" {under(self.options)}, whatever the items; lower it or bring more data"
            )
        whole = self.options["users"] is None and self.options["min_rating"] is None
        if published is not None and k == 5 and whole:
            found = {"users": alone.users.sum(), "items": alone.items.sum(), "interactions": alone.events.sum()}
            line = "5-core of the log alone: " + ", ".join(f"{int(n):,} {name}" for name, n in found.items())
            if any(found[name] != published[name] for name in found):
                wanted = ", ".join(f"{published[name]:,} {name}" for name in found)
                self.notice(f"warning: {line}; published are {wanted}")
            else:
                self.notice(f"{line}, as published")
        return alone.items

    def _stock(self, log: Log, alone: Mask, album: Album) -> Stock:
        """The items, and which of them have a picture so far."""
        raw, where, require = self.raw, self.raw.items_from, self.options["require"]
        self.progress("reading items", 0, None)
        items = raw.items(log.item_ids.filter(pl.Series(alone))) if callable(raw.items) else raw.items
        items = clean_items(self._with_ids(items), where, tuple(part for part in require if part != "any"))
        if items.is_empty():
            raw.broken.refuse_many(self.bad_lines)  # of another release, say: no line of it can be read
            raise InputError(f"{where}: has no rows of items that are in {raw.interactions_from}; add some")
        there = album.has(items["image"])
        if "url" in items.columns and not there.all():  # what was fetched is named by the item
            named = pl.DataFrame([items["image"], items["item_id"].map_elements(stem_of, pl.String).alias("stem")])
            fetched = pl.Series(~there & album.has(named["stem"]))
            items = items.with_columns(named.select(image=pl.when(fetched).then("stem").otherwise("image")))
            there |= fetched.to_numpy()
        ambiguous = all_inside(items["image"]).is_in(pl.Series(list(album.ambiguous), dtype=pl.String).implode())
        return Stock.of(items, require, there, ambiguous.fill_null(False).to_numpy())

    def _with_ids(self, items: pl.DataFrame) -> pl.DataFrame:
        """The rows that have an id; the others are listed."""
        where, broken = self.raw.items_from, self.raw.broken
        if "item_id" not in items.columns:
            return items
        ids = texts_of(items, "item_id", where, floats=True)
        empty = ids.is_null() | (ids == "")
        line = pl.Series(np.arange(1, items.height + 1))
        if LINE in items.columns:
            line, items = items[LINE], items.drop(LINE)
        elif where not in broken.read:
            broken.count(where, items.height)
        broken.add_many(where, line.filter(empty), "item_id is empty", ids.filter(empty))
        return items.filter(~empty)

    def _fetch(self, draft: Draft, fetching: "Fetching") -> None:
        """Fetch the pictures of the items that would survive if all their pictures came."""
        from vlm2rec.data.fetching.download import download

        place, stock = self.raw.pictures, draft.stock
        if not isinstance(place, Path) or "url" not in stock.items.columns:
            raise InputError(f"{self.raw.items_from}: names no addresses of pictures; leave --download-images out")
        if place.is_file():
            raise InputError(f"{place}: pictures can only be fetched into a folder; unpack it, or leave the option out")
        wanted = stock.lost.is_in([MISSING, AMBIGUOUS]).fill_null(False)
        hoped = Stock(stock.items, stock.require, stock.lost.set(wanted, None))
        rows = np.flatnonzero(draft.core(hoped.usable).items & wanted.to_numpy())
        table = stock.items[rows].select(name="item_id", url="url")
        found = download(table, place, fetching, lambda done, total: self.progress("pictures fetched", done, total))
        here = found["reason"].is_null().to_numpy()
        stock.find(rows[here], found["file"].filter(pl.Series(here)))
        stock.lose(rows[~here], f"{NOT_FETCHED}: " + found["reason"].filter(pl.Series(~here)))
        if not here.all():
            common = found["reason"].drop_nulls().value_counts(sort=True).row(0)
            failed = int((~here).sum())
            self.notice(
                f"{failed:,} of {len(rows):,} pictures could not be fetched, {common[1]:,} of them for one reason:"
                f" {common[0]}; {place / 'downloads.jsonl'} says more"
            )

    def _pack(self, folder: Path, album: Album, stock: Stock, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Decode the pictures of some items; those that are broken or placeholders are lost. Returns which are packed
        all the same, counted among `rows`.
        """
        names = stock.items["image"][rows].set(stock.lost[rows].is_not_null(), None)
        size, fit = self.options["picture_size"], self.options["picture_fit"]
        tell = self.progress
        broken = store.pack(folder, album, names.to_list(), size, fit, lambda n, total: tell("pictures", n, total))
        stock.lose(rows[broken], BROKEN_PICTURE)
        if not self.options["drop_placeholders"]:
            return rows[:0]
        from vlm2rec.data.pictures.lookalikes import placeholder_rows

        found = placeholder_rows(folder, stock.items["title"][rows])["row"].to_numpy().astype(np.int64)
        stock.lose(rows[found], PLACEHOLDER)
        return found

    def _say_broken(self, folder: Path) -> dict[str, dict[str, int]]:
        """Write `broken.parquet` if any line is broken, say so, and return how many are, file by file."""
        table, counts = self.raw.broken.table(), {}
        if len(table):
            table.write_parquet(folder / BROKEN)
        for (file,), own in table.group_by("file", maintain_order=True):
            lines, name = self.raw.broken.read.get(str(file), 0), Path(str(file)).name
            counts[name] = {"lines": lines, "broken": own.height}
            self.notice(
                f"{file}: {own.height:,} of {lines:,} lines cannot be read and are left out, the first is line"
                f" {own['line'][0]:,} ({own['reason'][0]}); {BROKEN} lists them"
            )
        return counts

    def _say_losses(self, draft: Draft, losses: dict[str, dict[str, Any]]) -> None:
        """One line for each reason why anything was lost; lines that cannot be read have been said."""
        other_form = draft.other_form()
        if other_form is not None:
            self.notice(f"warning: {other_form}")
        items, place = draft.stock.items, self.raw.pictures
        if isinstance(place, Path) and not place.exists() and (items["image"] == items["item_id"]).all():
            losses = {unit: found for unit, found in losses.items() if unit != "pictures"}  # nobody spoke of pictures
        for line in lines(losses, said=(UNREADABLE,)):
            self.notice(line)

    def _say_ambiguous(self, album: Album, stock: Stock) -> None:
        name, files = next(iter(album.ambiguous.items()), ("", ()))
        lost = int((stock.lost == AMBIGUOUS).sum())
        if lost and files:
            self.notice(
                f"{self.raw.pictures}: {lost:,} items name their picture by a name that files of several folders have"
                f" and count as without one: {len(files):,} files are called {name} ({files[0]}, {files[1]}); give"
                " their paths in column image"
            )


def _loss(reason: str, mask: Mask, log: Log) -> Loss:
    """Events of a mask `(n_events,)`, with users of the first ones as examples."""
    count = int(mask.sum())
    return Loss(reason, count, {"user_id": first_users(log, np.flatnonzero(mask)) if count else []})


def _left_out(losses: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Events that are left out before the k-core and for no fault of the item's own, by reason."""
    early = (NO_RATING, LOW_RATING, COPY, UNLISTED)
    return {loss["reason"]: loss["count"] for loss in losses["events"]["lost"] if loss["reason"] in early}
