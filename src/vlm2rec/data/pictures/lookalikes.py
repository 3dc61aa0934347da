"""Pictures that look alike, and pictures that show nothing: what a catalogue's models cannot tell apart.

The thresholds were chosen on film posters and drawn products; `benchmarks/pictures.py --likeness FOLDER` measures on
any folder what they find and what they confuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.pictures.likeness import (
    Codes,
    Mask,
    Rows,
    Thumbnails,
    alike,
    differing,
    hashes,
    near_pairs,
    thumbnails,
)
from vlm2rec.data.pictures.store import PictureStore, read_index
from vlm2rec.errors import InputError

DISTANCE = 8
"""Bits of 64 that hashes of look-alikes differ in at most. At 10, hashes alone begin to take posters for each other."""
ALIKE = 0.98
"""Correlation of the small copies of look-alikes at least. At 0.95, products drawn in other colours pass as one. The
price: of posters cut by 1% on each side 98% are found, of those cut by 2% a half."""
SAME = 0.99
"""The same of copies of one placeholder, which are saved anew but not cut: dropping a real picture is worse."""
MANY = 5
"""A picture with so many unrelated titles is a placeholder."""
UNRELATED = 0.1
"""Mean cosine of the words of titles below which they are unrelated; in a narrow catalogue, twice its own mean. Of 500
random fives of 12,086 beauty titles none reaches 0.08; titles beginning with the same three words have 0.13 or more."""
TINY = 16
"""Pixels: a picture with a shorter side was no picture of anything (a spacer, an icon)."""
PLAIN = 4
"""Of 256 levels, how far parts of a plain picture (one colour, or bars of colours) are from the middle of theirs."""

_WHY = ("tiny", "plain", "many unrelated titles")
# A word, or a letter where writing has no spaces.
_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]|[\w--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]]+"
_AT_ONCE = 4096


@dataclass(frozen=True)
class LookAlikes:
    """What `look_alike` found.

    Attributes:
        groups: pictures that look alike, a row an item: group (from 0; the largest first), row (item index), item_id,
            title, distance (bits from the hash of the group's first picture), alike (correlation with it) and kind:
            exact where another item of the group has the very same file, else near.
        placeholders: row, item_id, title, why (tiny, plain, many unrelated titles), group (null but for the last) and
            count (items of this reason, or of this group).
        counts: how many there are of each.
    """

    groups: pl.DataFrame
    placeholders: pl.DataFrame
    counts: dict[str, int]

    def lines(self) -> list[str]:
        """The counts as sentences."""
        count = self.counts
        return [
            f"pictures: {count['pictures']:,} of {count['items']:,} items; different files: {count['files']:,}",
            f"the same file: groups {count['exact_groups']:,}, items {count['exact_items']:,}",
            f"look alike, with those: groups {count['groups']:,}, items {count['grouped_items']:,}",
            f"placeholders: {count['placeholders']:,} (tiny {count['tiny']:,}, plain {count['plain']:,},"
            f" shared by items with unrelated titles {count['shared']:,})",
        ]


def look_alike(dataset: Dataset, distance: int = DISTANCE) -> LookAlikes:
    """Find the pictures of a data set that look alike, and its placeholders.

    A group is a picture and those that look like it, not a chain in which each looks like the next: every member's hash
    is within `distance` of the group's first. Plain pictures are in no group, as they have nothing to compare.
    """
    return _look(_Gallery.open(dataset.path, pl.Series(dataset.titles, dtype=pl.String)), distance, dataset.item_ids)


def placeholder_rows(folder: Path, titles: pl.Series) -> pl.DataFrame:
    """The placeholders among the pictures packed in a folder: row, why, group, count, in order of rows.

    `titles`, `(n_items,)`: one an item, "" for none; items without one do not tell that a picture is a placeholder.
    """
    gallery = _Gallery.open(folder, titles)
    return _placeholders(gallery, _groups(gallery, DISTANCE)).sort("row")


@dataclass(frozen=True)
class _Gallery:
    """What is looked at, item by item; `there` says which have a picture, `plain` which of these show nothing."""

    small: Thumbnails
    there: Mask
    plain: Mask
    codes: Codes
    index: pl.DataFrame
    titles: pl.Series

    @classmethod
    def open(cls, folder: Path, titles: pl.Series) -> "_Gallery":
        small, there = thumbnails(PictureStore(folder))
        plain = there & _plain(small)
        codes = np.zeros(len(small), np.uint64)
        shown = there & ~plain
        codes[shown] = hashes(small[shown])
        return cls(small, there, plain, codes, read_index(folder), titles)


def _plain(small: Thumbnails) -> Mask:
    """Which small copies have one colour along each row, or along each column, as a letterbox leaves them."""
    plain = np.empty(len(small), bool)
    for start in range(0, len(small), _AT_ONCE):
        part = small[start : start + _AT_ONCE].astype(np.int16)
        spread = [np.ptp(part, axis=axis).max(axis=(1, 2)) for axis in (1, 2)]
        plain[start : start + _AT_ONCE] = np.minimum(*spread) <= 2 * PLAIN
    return plain


def _look(gallery: _Gallery, distance: int, item_ids: Sequence[str]) -> LookAlikes:
    if not 0 <= distance <= 16:
        raise InputError(f"distance {distance}: give 0 to 16 of the 64 bits of a hash")
    groups = _groups(gallery, distance)
    placeholders = _placeholders(gallery, groups)
    names = pl.DataFrame({"item_id": pl.Series(item_ids, dtype=pl.String), "title": gallery.titles})
    names = names.with_row_index("row").cast({"row": pl.Int64})
    why = dict(placeholders["why"].value_counts().iter_rows())
    exact = groups.filter(pl.col("kind") == "exact")
    counts = {
        "items": len(gallery.there),
        "pictures": int(gallery.there.sum()),
        "files": gallery.index["digest"].drop_nulls().n_unique(),
        "groups": groups["group"].n_unique(),
        "grouped_items": groups.height,
        "exact_groups": exact["digest"].n_unique(),
        "exact_items": exact.height,
        "placeholders": placeholders.height,
        **{name: why.get(reason, 0) for name, reason in zip(("tiny", "plain", "shared"), _WHY, strict=True)},
    }
    columns = ("group", "row", "item_id", "title", "distance", "alike", "kind")
    return LookAlikes(
        groups.join(names, on="row", how="left", maintain_order="left").select(columns),
        placeholders.join(names, on="row", how="left", maintain_order="left").select(
            "row", "item_id", "title", "why", "group", "count"
        ),
        counts,
    )


def _groups(gallery: _Gallery, distance: int) -> pl.DataFrame:
    """Columns group, row, digest, distance, alike, kind; in a group, its first picture first, then by distance."""
    rows = np.flatnonzero(gallery.there & ~gallery.plain)
    leader = _same_hash(gallery, rows)
    leaders, size = np.unique(leader, return_counts=True)

    def accept(one: Rows, other: Rows) -> Mask:
        return alike(gallery.small, leaders[one], leaders[other]) >= ALIKE

    one, other = near_pairs(gallery.codes[leaders], distance, accept)
    centre = leaders[_stars(len(leaders), one, other, size)][np.searchsorted(leaders, leader)]
    table = pl.DataFrame(
        {
            "row": rows,
            "centre": centre,
            "digest": gallery.index["digest"][rows],
            "distance": differing(gallery.codes[rows], gallery.codes[centre]),
        }
    ).filter(pl.len().over("centre") > 1)
    likeness = alike(gallery.small, table["row"].to_numpy(), table["centre"].to_numpy())
    ordered = table.with_columns(
        alike=pl.Series(likeness),
        size=pl.len().over("centre").cast(pl.Int64),
        kind=pl.when(pl.len().over("centre", "digest") > 1).then(pl.lit("exact")).otherwise(pl.lit("near")),
    ).sort(-pl.col("size"), "centre", pl.col("row") != pl.col("centre"), "distance", "row")
    group = pl.col("centre").rle_id().cast(pl.Int64).alias("group")
    return ordered.select(group, "row", "digest", "distance", "alike", "kind")


def _same_hash(gallery: _Gallery, rows: Rows) -> Rows:
    """For each row the first one with its hash that looks like it: the many copies of a file are compared once.

    Pictures of one hash that do not look alike (other colours) get leaders of their own, one more in each round.
    """
    leader = rows.copy()
    order = rows[np.argsort(gallery.codes[rows], kind="stable")]
    place = np.searchsorted(rows, order)
    while len(order):
        codes = gallery.codes[order]
        new = np.append(True, codes[1:] != codes[:-1])
        first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
        follows = (order == first) | (alike(gallery.small, order, first) >= ALIKE)
        leader[place[follows]] = first[follows]
        order, place = order[~follows], place[~follows]
    return leader


def _stars(count: int, one: Rows, other: Rows, size: NDArray[np.int64]) -> Rows:
    """For each of `count` pictures the centre of its group, `(count,)`.

    The picture that most others look like, counted in items, takes them as its group; then that of those left, and so
    on. So nobody is put with a picture through a third one alone, as in connected components.
    """
    centre = np.arange(count)
    ends, others = np.concatenate([one, other]), np.concatenate([other, one])
    order = np.argsort(ends, kind="stable")
    ends, others = ends[order], others[order]
    weight = size + np.bincount(ends, weights=size[others], minlength=count).astype(np.int64)
    starts = np.searchsorted(ends, np.arange(count + 1))
    free = np.ones(count, bool)
    having = np.unique(ends)
    for node in having[np.lexsort((having, -weight[having]))].tolist():
        if free[node]:
            near = others[starts[node] : starts[node + 1]]
            near = near[free[near]]
            centre[near] = node
            free[near] = free[node] = False
    return centre


def _placeholders(gallery: _Gallery, groups: pl.DataFrame) -> pl.DataFrame:
    """Columns row, why, group, count; an item has one reason, the first that holds."""
    source = gallery.index.select(pl.min_horizontal("source_height", "source_width")).to_series().to_numpy()
    tiny = gallery.there & (source < TINY)
    why = np.where(tiny, 0, np.where(gallery.plain, 1, -1))
    same = groups.with_columns(title=gallery.titles[groups["row"]]).filter(pl.col("alike") >= SAME)
    unrelated = _unrelated(same.select("group", "title").filter(pl.col("title") != ""), gallery.titles)
    shared = same.filter(pl.col("group").is_in(unrelated.implode()))["row"].to_numpy()
    why[shared[why[shared] < 0]] = 2
    group = np.full(len(why), -1)
    group[same["row"].to_numpy()] = same["group"].to_numpy()
    group[why != 2] = -1
    rows = np.flatnonzero(why >= 0)
    reasons = pl.Series(_WHY, dtype=pl.String)[why[rows]]
    found = pl.DataFrame({"row": rows, "why": reasons, "group": pl.Series(group[rows]).replace(-1, None)})
    count = pl.len().over("why", "group").cast(pl.Int64)
    return found.with_columns(count=count).sort("why", -pl.col("count"), "group", "row")


def _unrelated(named: pl.DataFrame, titles: pl.Series) -> pl.Series:
    """Which groups have `MANY` different titles or more that are unrelated. `named`: columns group, title."""
    named = named.with_columns(pl.col("title").str.to_lowercase()).unique(["group", "title"])
    named = named.filter(pl.len().over("group") >= MANY)
    if named.is_empty():
        return pl.Series([], dtype=pl.Int64)
    everyone = titles.filter(titles != "").rename("title")
    words = everyone.str.to_lowercase().str.extract_all(_WORD).list.unique().explode().drop_nulls()
    rarity = words.value_counts(name="items").select("title", rarity=(len(everyone) / pl.col("items")).log())
    rarity = rarity.rename({"title": "word"})
    sample = everyone.sample(min(len(everyone), 10_000), seed=0).to_frame().with_columns(group=pl.lit(0, pl.Int64))
    usual = _relatedness(sample, rarity)["relatedness"][0]
    found = _relatedness(named, rarity)
    return found.filter(pl.col("relatedness") < max(UNRELATED, 2 * usual))["group"]


def _relatedness(named: pl.DataFrame, rarity: pl.DataFrame) -> pl.DataFrame:
    """Mean cosine of all pairs of titles of a group, words weighed by their rarity: columns group, relatedness.

    It follows from the length of the sum of the titles' unit vectors, so no pair is looked at.
    """
    title = named.with_row_index("number").with_columns(
        word=pl.col("title").str.to_lowercase().str.extract_all(_WORD).list.unique(),
        titles=pl.len().over("group").cast(pl.Int64),
    )
    words = title.explode("word").join(rarity, on="word", how="left").with_columns(pl.col("rarity").fill_null(0.0))
    length = (pl.col("rarity") ** 2).sum().over("number").sqrt()
    unit = words.with_columns(unit=pl.when(length > 0).then(pl.col("rarity") / length).otherwise(0.0))
    sums = unit.group_by("group", "titles", "word").agg(pl.col("unit").sum())
    squares = sums.group_by("group", "titles").agg(square=(pl.col("unit") ** 2).sum())
    alone = unit.group_by("group").agg(own=(pl.col("unit") ** 2).sum())
    pairs = (pl.col("titles") * (pl.col("titles") - 1)).clip(lower_bound=1)
    return squares.join(alone, on="group").select(
        "group", relatedness=(pl.col("square") - pl.col("own")).clip(lower_bound=0) / pairs
    )
