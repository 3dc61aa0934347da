"""The `local` source: a folder with an items table, an interactions table and `images/`."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vlm2rec.data.images import INDEX
from vlm2rec.data.sources import RawData
from vlm2rec.errors import InputError

_ENDINGS = ("parquet", "csv", "jsonl")
# Read as text whatever they look like: an id "0002844" is not the number 2844.
_TEXT = ("item_id", "user_id", "title", "image", "timestamp")


@dataclass(frozen=True)
class Local:
    """A folder of one's own: `items` and `interactions` (.parquet, .csv or .jsonl) and the pictures in `images/`.

    `items` has the columns `item_id`, `title`, `image` (a file name under `images/`), `interactions` has `user_id`,
    `item_id`, `timestamp`. Further columns are kept.
    """

    path: Path

    def read(self) -> RawData:
        """Read both tables. Raises InputError if the folder or a table is missing or unreadable."""
        if not self.path.is_dir():
            raise InputError(
                f"{self.path}: no such folder; give one with items.parquet, interactions.parquet and images/"
            )
        if (self.path / INDEX).is_file() and (self.path / "manifest.json").is_file():
            raise InputError(f"{self.path}: is prepared already; use it as data.path, or prepare from the raw folder")
        items, interactions = (self._table(name) for name in ("items", "interactions"))
        return RawData(
            name=self.path.resolve().name,
            items=read_table(items),
            interactions=read_table(interactions),
            pictures=self.path / "images",
            items_from=str(items),
            interactions_from=str(interactions),
        )

    def _table(self, name: str) -> Path:
        found = [path for ending in _ENDINGS if (path := self.path / f"{name}.{ending}").is_file()]
        if not found:
            raise InputError(f"{self.path}: has no {name}.parquet, {name}.csv or {name}.jsonl; add one")
        if len(found) > 1:
            raise InputError(f"{self.path}: has both {found[0].name} and {found[1].name}; keep one of them")
        return found[0]


def read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet, CSV or JSON-lines table. Raises InputError with the first line of what went wrong."""
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        columns = pl.read_csv(path, n_rows=0, infer_schema=False).columns
        text = {name: pl.String for name in _TEXT if name in columns}
        return pl.read_csv(path, schema_overrides=text, infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}") from None
