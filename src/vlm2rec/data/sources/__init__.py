"""What a data source hands to `vlm2rec.data.prepare`.

A source only finds and reads. Checking, cleaning, dropping, the k-core and the pictures are the same for every
source, so a new one is one file here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import polars as pl

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class RawData:
    """Two tables and the pictures, as the source has them.

    Attributes:
        name: what the data set is called.
        items: columns `item_id`, `title`, `image` (null or empty: no picture); others are kept. Row order is kept.
        interactions: columns `user_id`, `item_id`, `timestamp`; others are kept. Row order breaks ties of time.
        pictures: where an `image` value leads: a folder that holds a file of that name, or a function that draws
            it (called with the `image` value, from one thread). None: there are no pictures.
        items_from: what an error message calls the items table (a file path).
        interactions_from: the same for the interactions.
    """

    name: str
    items: pl.DataFrame
    interactions: pl.DataFrame
    pictures: "Path | Callable[[str], Image.Image] | None" = None
    items_from: str = "items"
    interactions_from: str = "interactions"


class Source(Protocol):
    """Anything that can be read into a `RawData`."""

    def read(self) -> RawData:
        """Read it all. Raises InputError where a file is missing or unreadable."""
        ...
