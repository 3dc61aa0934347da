"""What a data source hands to `vlm2rec.data.prepare`.

A source only finds and reads. Checking, cleaning, dropping, the k-core and the pictures are the same for every
source, so a new one is one file here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import polars as pl

from vlm2rec.data.sources.broken import Broken
from vlm2rec.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

LINE = "\0line"
"""Column of a table that says which line of its file a row comes from, counted from 1; without it, rows are counted.

No column of a file has a NUL in its name (`check_names`), so names that begin with one are ours.
"""


@dataclass(frozen=True)
class RawData:
    """Two tables and the pictures, as the source has them.

    Attributes:
        name: what the data set is called.
        items: columns `item_id`, `title`, `image` (null or empty: no picture) and, where pictures can be fetched,
            `url`; others are kept. Row order is kept. A function is called with the ids of the items that can matter
            (those that survive the k-core of the log alone, a Series of text) and may leave out the others.
        interactions: columns `user_id`, `item_id`, `timestamp`; others are kept. Row order breaks ties of time. Too
            many for one table: an iterable of tables of equal columns, read once, in order.
        pictures: where an `image` value leads: a folder or an archive (.zip, .tar) that holds a file of that name, or
            a function that draws it (called with the `image` value, from one thread). None: there are no pictures.
        items_from: what an error message calls the items table (a file path).
        interactions_from: the same for the interactions.
        files: the raw files, whose hashes go into the manifest.
        broken: lines that could not be read; what the common checks find is added.
        published: users, items and interactions that others count in the 5-core of this log, before anything else is
            dropped; None where nobody says.
        columns: our name (for one table alone: `items.` or `interactions.` and our name) -> the name that a column has
            in the files, where the user says so.
        time_format: how times are written where they are text, for `strptime`; None: numbers, or as ISO 8601 has it.
        time_unit: s, ms, us or ns, where times are numbers; None: seen from their size.
        shop: the parameters of the demo's shop, for the manifest; None: it is no such data.
    """

    name: str
    items: pl.DataFrame | Callable[[pl.Series], pl.DataFrame]
    interactions: pl.DataFrame | Iterable[pl.DataFrame]
    pictures: "Path | Callable[[str], Image.Image] | None" = None
    items_from: str = "items"
    interactions_from: str = "interactions"
    files: Sequence[Path] = ()
    broken: Broken = field(default_factory=Broken)
    published: Mapping[str, int] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    time_unit: str | None = None
    shop: Mapping[str, float] | None = None


def check_names(names: Iterable[str], where: str) -> None:
    """Raise InputError where a column's name holds a NUL; `where` is what the table is called."""
    odd = next((name for name in names if "\0" in name), None)
    if odd is not None:
        raise InputError(f"{where}: has a column {odd!r}, whose name holds a NUL; rename it")


class Source(Protocol):
    """Anything that can be read into a `RawData`."""

    def read(self) -> RawData:
        """Find the files and open them. Raises InputError where one is missing or unreadable."""
        ...
