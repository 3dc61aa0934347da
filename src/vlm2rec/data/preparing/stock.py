"""Which items can be used, and why the others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

NO_PICTURE = "no picture"
MISSING = "picture missing"
AMBIGUOUS = "picture ambiguous"
BROKEN = "picture broken"
PLACEHOLDER = "picture is a placeholder"
NOT_FETCHED = "picture not fetched"
"""Reasons; the last is followed by why. Ambiguous is a name that files of several folders have."""

Fault = Literal["missing", "broken", "placeholders"]
_NO_TITLE = "no title"


def fault_of(reason: str) -> Fault | None:
    """What is wrong with the picture of an item that is listed for this reason; None where it is something else."""
    lost = reason.removeprefix(f"{_NO_TITLE}, ")
    if lost in (NO_PICTURE, MISSING, AMBIGUOUS) or lost.startswith(NOT_FETCHED):
        return "missing"
    return "broken" if lost == BROKEN else "placeholders" if lost == PLACEHOLDER else None


@dataclass
class Stock:
    """The items of a catalogue with what becomes of them.

    Attributes:
        items: columns item_id, title, image, and others; row number = item.
        require: what an item must have; see `prepare`.
        lost: why each item has no picture, `(n_items,)` text; null: it has one.
    """

    items: pl.DataFrame
    require: Sequence[str]
    lost: pl.Series

    @classmethod
    def of(cls, items: pl.DataFrame, require: Sequence[str], there: Mask, ambiguous: Mask) -> "Stock":
        """Items whose pictures are there or not, and whose picture may be any of several, all `(n_items,)`."""
        named = items["image"] != ""
        if "url" in items.columns:  # the image is the item's id then, whether there is a picture in the world or not
            named = items["url"].fill_null("") != ""
        doubtful = pl.when("there").then(None).when("ambiguous").then(pl.lit(AMBIGUOUS))
        why = doubtful.when("named").then(pl.lit(MISSING)).otherwise(pl.lit(NO_PICTURE))
        known = pl.DataFrame({"there": there, "named": named, "ambiguous": ambiguous})
        lost = known.select(lost=why.cast(pl.String)).to_series()
        return cls(items, require, lost)

    def lose(self, rows: NDArray[np.integer], why: str | Sequence[str] | pl.Series) -> None:
        """Take the pictures of some items away; one reason for all, or one each."""
        reasons = pl.Series([why] * len(rows) if isinstance(why, str) else why, dtype=pl.String)
        if len(rows):
            self.lost = self.lost.scatter(pl.Series(rows), reasons)

    def find(self, rows: NDArray[np.integer], files: pl.Series) -> None:
        """Say that some items have a picture after all, and where."""
        if len(rows):
            self.lost = self.lost.scatter(pl.Series(rows), pl.Series([None] * len(rows), dtype=pl.String))
            images = self.items["image"].scatter(pl.Series(rows), files)
            self.items = self.items.with_columns(image=images)

    @property
    def reasons(self) -> pl.Series:
        """Why each item cannot be used, `(n_items,)` text; null where it can."""
        title, lost = pl.col("title"), pl.col("lost")
        why = lost if "image" in self.require else pl.lit(None, pl.String)
        if "any" in self.require:
            why = pl.when((title == "") & lost.is_not_null()).then(pl.lit(f"{_NO_TITLE}, ") + lost)
        if "title" in self.require:
            why = pl.when(title == "").then(pl.lit(_NO_TITLE)).otherwise(why)
        return pl.DataFrame([self.items["title"], self.lost]).select(reason=why).to_series()

    @property
    def usable(self) -> Mask:
        """Whether each item has what is required, `(n_items,)`."""
        return self.reasons.is_null().to_numpy()
