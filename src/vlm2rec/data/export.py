"""A prepared data set as files that others read, and that prepare to the same data set again.

What a format cannot hold is refused, in one line that names the column; nothing is lost without a word. Tables are
streamed: a log needs no memory for its rows.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import polars.selectors as cs
from PIL import Image
from polars.datatypes import DataType, DataTypeClass

from vlm2rec.data.dataset import INTERACTIONS, ITEMS, Dataset
from vlm2rec.data.fetching.journal import stem_of
from vlm2rec.data.pictures import store
from vlm2rec.data.pictures.ahead import ReadAhead
from vlm2rec.data.pictures.archives import THREADS
from vlm2rec.data.preparing.writing import is_free, partial, put, sync
from vlm2rec.errors import InputError

Format = Literal["recbole", "parquet", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("recbole", "parquet", "csv", "jsonl")

_Type = DataType | DataTypeClass
_EXACT = 1 << 53  # whole numbers up to here are exact as floating-point ones
_COMPRESSION = 1  # of PNG: the quickest, a tenth larger than the usual


def export(dataset: Dataset, to: Format, out: Path | str, *, pictures: bool = False) -> None:
    """Write a data set to a folder that is not there yet, all of it or nothing.

    `parquet`, `csv` and `jsonl` make the layout that the `local` source reads (items, interactions), `recbole` makes
    OUT.inter and OUT.item, named after the folder as RecBole wants it. Rows keep their order, so that preparing them
    again with no k-core and the same `duplicates` (and what is required being there) gives the same sequences, times
    and, without pictures, the same fingerprint. Pictures are known by the bytes of their files, which a data set does
    not keep: with pictures the pixels are the same, the fingerprint is another.

    What a format cannot hold, besides what is refused (`Raises`):
        parquet: everything comes back.
        csv: types: all columns but the times come back as text.
        jsonl: types likewise; a list or an object comes back as its JSON.
        recbole: whole numbers come back as floating-point ones, or as text where they have more than 53 bits; truth
            values and dates as text. RecBole itself takes the words NA, null, nan and None for missing values.

    Args:
        dataset: what to write.
        to: the format.
        out: a new folder.
        pictures: whether to write the pictures, as PNG files of the stored size, and name them in the items table.
            Else the items keep the names of the pictures they came with.

    Raises:
        InputError: `out` is there already or cannot be written, or the format cannot hold something: lists (csv),
            NULs (csv, recbole), tabs, line breaks, and blanks within lists (recbole), NaN and infinities (jsonl),
            binary columns (all but parquet), odd names of columns (csv, recbole).
    """
    out = Path(out)
    if to not in FORMATS:
        raise InputError(f"--to {to}: unknown; give one of {', '.join(FORMATS)}")
    if not is_free(out):
        raise InputError(f"{out}: exists; give another --out")
    tables = {
        "items": _Table(dataset.path / ITEMS, pl.scan_parquet(dataset.path / ITEMS, glob=False)),
        "interactions": _Table(dataset.path / INTERACTIONS, pl.scan_parquet(dataset.path / INTERACTIONS, glob=False)),
    }
    if pictures:
        tables["items"] = _with_names(dataset, tables["items"])
    with partial(out) as folder:
        for name, table in tables.items():
            _WRITERS[to](table, folder, name, out.resolve().name)
        if pictures:
            _write_pictures(dataset, folder / "images")
        sync(folder)
        put(folder, out)


@dataclass(frozen=True)
class _Table:
    """Rows to write, and the file they come from."""

    path: Path
    rows: pl.LazyFrame

    @property
    def schema(self) -> Mapping[str, _Type]:
        return self.rows.collect_schema()

    def refuse(self, wrong: Mapping[str, pl.Expr], what: str, to: str) -> None:
        """Raise InputError for the first column in which something is wrong, naming the first such row."""
        if not wrong:
            return
        found = self.rows.select(expression.any().alias(name) for name, expression in wrong.items())
        for name, there in found.collect(engine="streaming").row(0, named=True).items():
            if there:
                at = self.rows.select(wrong[name].arg_true().first()).collect(engine="streaming").item()
                self._cannot(name, f"holds {what} in row {at + 1:,}", to)

    def refuse_types(self, fits: Callable[[_Type], bool], to: str) -> None:
        """Raise InputError for the first column whose type cannot be written."""
        for name, dtype in self.schema.items():
            if not fits(dtype):
                self._cannot(name, f"holds {dtype}", to)

    def refuse_names(self, odd: str, to: str) -> None:
        """Raise InputError for the first column whose name matches a pattern."""
        for name in self.schema:
            if re.search(odd, name):
                self._cannot(repr(name), "has a name", to)

    def _cannot(self, column: str, what: str, to: str) -> None:
        raise InputError(f"{self.path}: column {column} {what}, which {to} files cannot; export to parquet")


def _with_names(dataset: Dataset, table: _Table) -> _Table:
    """The items with the names of the files that `_write_pictures` writes."""
    there = store.read_index(dataset.path)["height"] > 0
    rows = table.rows.with_columns(pl.col("item_id").map_elements(stem_of, pl.String).alias("image") + ".png")
    kept = pl.when(pl.Series("there", there)).then("image").otherwise(pl.lit(""))
    return _Table(table.path, rows.with_columns(kept.alias("image")))


def _write_pictures(dataset: Dataset, folder: Path) -> None:
    folder.mkdir()

    def write(item: int) -> None:
        pixels = dataset.pictures[item]
        if pixels is not None:
            name = f"{stem_of(dataset.item_ids[item])}.png"
            Image.fromarray(pixels).save(folder / name, compress_level=_COMPRESSION)

    with ReadAhead(write, range(dataset.n_items), THREADS, 4 * THREADS) as written:
        for _ in written:
            pass


def _parquet(table: _Table, folder: Path, name: str, _: str) -> None:
    table.rows.sink_parquet(folder / f"{name}.parquet")


def _csv(table: _Table, folder: Path, name: str, _: str) -> None:
    table.refuse_names("^$|\0", "CSV")
    table.refuse_types(lambda dtype: not dtype.is_nested() and dtype not in (pl.Binary, pl.Object), "CSV")
    table.refuse({column: _column(column).str.contains("\0", literal=True) for column in _texts(table)}, "a NUL", "CSV")
    table.rows.sink_csv(folder / f"{name}.csv")


def _jsonl(table: _Table, folder: Path, name: str, _: str) -> None:
    table.refuse_types(lambda dtype: not _has_bytes(dtype), "JSON")
    numbers = {c: ~_column(c).is_finite() for c, dtype in table.schema.items() if dtype.is_float()}
    table.refuse(numbers, "a number that is not finite", "JSON")
    table.rows.sink_ndjson(folder / f"{name}.jsonl")


def _recbole(table: _Table, folder: Path, name: str, dataset: str) -> None:
    table.refuse_names('^$|[:"\t\n\r\0]', "RecBole's")
    table.refuse_types(lambda dtype: _kind(dtype) is not None, "RecBole's")
    texts, lists = _texts(table), [c for c, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    table.refuse({c: _column(c).str.contains("[\t\n\r\0]") for c in texts}, "a tab, a line break or a NUL", "RecBole's")
    blank = pl.element().cast(pl.String).str.contains("^$|[ \t\n\r\0]").fill_null(True)
    what = "a list of something empty or with blanks"
    table.refuse({c: _column(c).list.eval(blank).list.any() for c in lists}, what, "RecBole's")
    large = [c for c, dtype in table.schema.items() if dtype.is_integer() and c != "timestamp"]
    limits = table.rows.select(_column(c).cast(pl.Int128).abs().max() for c in large).collect(engine="streaming")
    columns = []
    for column, dtype in table.schema.items():
        kind = _kind(dtype)
        if column in large and (limits[column][0] or 0) > _EXACT:
            kind = "token"
        if column == "title":
            kind = "token_seq"
        columns.append(_field(column, dtype).alias(f"{column}:{kind}"))
    ending = {"items": "item", "interactions": "inter"}[name]
    table.rows.select(columns).sink_csv(folder / f"{dataset}.{ending}", separator="\t", quote_style="never")


def _kind(dtype: _Type) -> str | None:
    """RecBole's type for a column; None: there is none."""
    if isinstance(dtype, pl.List):
        inner = _kind(dtype.inner)
        return f"{inner}_seq" if inner in ("token", "float") else None
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        return None
    return "float" if dtype.is_numeric() else "token"


def _field(column: str, dtype: _Type) -> pl.Expr:
    """A column as text; a text that is empty or begins with a quote is quoted, which RecBole's own reader undoes."""
    text = _column(column)
    text = text.cast(pl.List(pl.String)).list.join(" ") if isinstance(dtype, pl.List) else text.cast(pl.String)
    if column in ("title", "image"):  # where null and empty are the same
        text = text.replace("", None)
    quoted = pl.lit('"') + text.str.replace_all('"', '""', literal=True) + pl.lit('"')
    return pl.when((text == "") | text.str.starts_with('"')).then(quoted).otherwise(text)


def _column(name: str) -> pl.Expr:
    """A column by its very name, which `pl.col` may take for a pattern of several."""
    return cs.by_name(name).as_expr()


def _texts(table: _Table) -> list[str]:
    return [c for c, dtype in table.schema.items() if dtype in (pl.String, pl.Categorical, pl.Enum)]


def _has_bytes(dtype: _Type) -> bool:
    """Whether there are bytes, or objects of Python, anywhere in a type."""
    if isinstance(dtype, pl.List | pl.Array):
        return _has_bytes(dtype.inner)
    if isinstance(dtype, pl.Struct):
        return any(_has_bytes(field.dtype) for field in dtype.fields)
    return dtype in (pl.Binary, pl.Object)


_WRITERS: Mapping[Format, Callable[[_Table, Path, str, str], None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "recbole": _recbole,
}
