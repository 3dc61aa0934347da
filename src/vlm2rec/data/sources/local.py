"""The `local` source: a folder with an items table, an interactions table and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import polars as pl
import polars.selectors as cs

from vlm2rec.data.pictures.store import INDEX
from vlm2rec.data.sources import LINE, RawData, check_names
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.columns import FLAT, by_table, refuse_histories, renamed, theirs_of
from vlm2rec.data.sources.json_lines import read_json_lines
from vlm2rec.data.sources.quoted import read_quoted
from vlm2rec.errors import InputError

CHUNK = 1 << 20
"""Rows of Parquet that are read at a time."""
_ENDINGS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

TimeUnit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True)
class Local:
    """A folder of one's own: `items` and `interactions` (.parquet, .csv or .jsonl, the latter two also .gz), `images/`.

    `items` has the columns `item_id`, `title` and `image` (a file name under `images/`, with or without its ending),
    `interactions` has `user_id`, `item_id` and `timestamp`. Further columns are kept. `items` may have `url`, where a
    picture can be fetched; without a column `image` it is then named by its item's id. Interactions may also be a
    folder `interactions/` of Parquet files, read in the order of their names; lines are counted through all of them.
    Pictures may stay in `images.zip` or `images.tar`. Of CSV and JSON lines all columns are text.

    Attributes:
        path: the folder.
        columns: our name -> the name a column has in the files; applies to either table that has it, or to one alone
            where our name has `items.` or `interactions.` before it. A column may serve two names, as in image=item_id.
        time_format: how times are written where they are text, for `datetime.strptime`.
        time_unit: what times count where they are numbers; None: seen from their size.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    time_format: str | None = None
    time_unit: TimeUnit | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # given as text, it is a path all the same

    def read(self) -> RawData:
        """Open both tables. Raises InputError if the folder, a table or a column named is missing or unreadable."""
        if not self.path.is_dir():
            raise InputError(
                f"{self.path}: no such folder; give one with items.parquet, interactions.parquet and images/"
            )
        if (self.path / INDEX).is_file() and (self.path / "manifest.json").is_file():
            raise InputError(f"{self.path}: is prepared already; use it as data.path, or prepare from the raw folder")
        items_path, interactions_path = self._table("items"), self._table("interactions")
        broken = Broken()
        items = pl.concat(_tables(items_path, broken, [theirs_of(self.columns, "items", name) for name in FLAT]))
        parts = _parts(interactions_path)
        flat = [theirs_of(self.columns, "interactions", name) for name in FLAT]
        chunks = _parquet(parts, broken, interactions_path) if parts else _tables(interactions_path, broken, flat)
        first = next(chunks)
        columns = by_table(
            self.columns,
            {"items": items.columns, "interactions": first.columns},
            {"items": items_path.name, "interactions": interactions_path.name},
        )
        refuse_histories(first.columns, columns["interactions"], str(interactions_path))
        items = renamed(items, columns["items"])
        if "url" in items.columns and "image" not in items.columns and "item_id" in items.columns:
            items = items.with_columns(image=pl.col("item_id"))
        return RawData(
            name=self.path.resolve().name,
            items=items,
            interactions=(renamed(table, columns["interactions"]) for table in chain([first], chunks)),
            pictures=pictures_in(self.path),
            items_from=str(items_path),
            interactions_from=str(interactions_path),
            files=[items_path, *(parts or [interactions_path])],
            broken=broken,
            columns=self.columns,
            time_format=self.time_format,
            time_unit=self.time_unit,
        )

    def _table(self, name: str) -> Path:
        found = [path for ending in _ENDINGS if (path := self.path / f"{name}{ending}").is_file()]
        if name == "interactions" and (self.path / name).is_dir():
            found.append(self.path / name)
        if not found:
            raise InputError(f"{self.path}: has no {name}.parquet, {name}.csv or {name}.jsonl; add one")
        if len(found) > 1:
            raise InputError(f"{self.path}: has both {found[0].name} and {found[1].name}; keep one of them")
        return found[0]


def read_table(path: Path | str) -> pl.DataFrame:
    """Read a whole Parquet, CSV or JSON-lines table, of the latter two all columns as text.

    Raises InputError with what is wrong first: here no line may be broken.
    """
    path = Path(path)
    broken = Broken()
    table = pl.concat(_tables(path, broken, FLAT)).drop(LINE, strict=False)
    for _, line, reason, text in broken.table().iter_rows():
        raise InputError(f"{path}: line {line:,} cannot be read: {reason}: {text!r}; mend it or leave it out")
    return table


def pictures_in(folder: Path, *names: str) -> Path:
    """Where a raw folder keeps its pictures: `images/` or an archive of that name, or of other `names`.

    Raises InputError if there is more than one such place. What is not there is `images/`: a place to put them.
    """
    places = [folder / f"{name}{ending}" for name in ("images", *names) for ending in ("", *_ARCHIVES)]
    found = [place for place in places if place.exists()]
    if len(found) > 1:
        raise InputError(f"{folder}: has pictures in both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else folder / "images"


def _tables(path: Path, broken: Broken, flat: Sequence[str]) -> Iterator[pl.DataFrame]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        return read_quoted(path, broken)
    if name.endswith(".jsonl"):
        return read_json_lines(path, broken, flat=flat)
    return iter([_read_parquet(path)])


def _read_parquet(path: Path) -> pl.DataFrame:
    """A whole Parquet file, rows not numbered: what counts them does so from the first."""
    try:
        check_names(pl.scan_parquet(path, glob=False).collect_schema(), str(path))
        return pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _unreadable(path, error) from None


def _parts(path: Path) -> list[Path]:
    """The Parquet files that hold the interactions; none if they are no Parquet."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    parts = sorted(part for part in path.glob("*.parquet") if part.is_file())
    if not parts:
        raise InputError(f"{path}: has no .parquet files; put some there, or give interactions.csv beside it")
    return parts


def _parquet(parts: Sequence[Path], broken: Broken, where: Path) -> Iterator[pl.DataFrame]:
    """Rows of Parquet files of equal columns, numbered through all of them; at least one table."""
    schema: pl.Schema | None = None
    done = 0
    for part in parts:
        try:
            own = pl.scan_parquet(part, glob=False).collect_schema()
            check_names(own, str(part))
            if schema is None:
                schema = pl.Schema(own)
                yield pl.DataFrame(schema={**schema, LINE: pl.Int64})
            if dict(own) != dict(schema):
                raise InputError(f"{part}: its columns differ from those of {parts[0].name}; give all the same")
            batches = pl.scan_parquet(part, glob=False).select(cs.by_name(*schema)).collect_batches(chunk_size=CHUNK)
            for table in batches:
                broken.count(str(where), table.height)
                yield table.with_columns(pl.int_range(done + 1, done + 1 + table.height, dtype=pl.Int64).alias(LINE))
                done += table.height
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise _unreadable(part, error) from None


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return InputError(f"{path}: cannot be read as {path.suffix[1:]}: {reason}")
