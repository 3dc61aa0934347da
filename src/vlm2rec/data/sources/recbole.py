"""The `recbole` source: a folder of RecBole's atomic files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import polars.selectors as cs

from vlm2rec.data.sources import LINE, RawData, check_names
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.columns import FLAT, by_table, refuse_histories, renamed
from vlm2rec.data.sources.delimited import first_line, read_plain
from vlm2rec.data.sources.local import TimeUnit, pictures_in
from vlm2rec.errors import InputError

TITLES = ("title", "item_name", "movie_title", "name")
"""Columns that may hold the titles, the likeliest first."""
_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class RecBole:
    """A folder with NAME.inter and, for titles, NAME.item: a header of NAME:TYPE, then fields between tabs.

    The columns are `user_id`, `item_id`, `timestamp` and, of the items, the first of `TITLES`, `image` (else a picture
    has the item's id for a name) and `url`. Others are kept: `float` as numbers, `token` as text, the `_seq` ones as
    lists. Ids, times and titles are text whatever their type says. A field all in quotes is taken out of them, as
    RecBole does. Other atomic files (.user, .link, .kg, …) are not read. Without NAME.item there are no titles.

    Attributes:
        path: the folder, or the .inter file where it has several.
        columns: our name -> the name a column has in the files, for one table alone as in `Local`.
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
        """Open the log and read the items. Raises InputError if a file, its header or a column named is wrong."""
        log = self._log()
        folder, catalogue, broken = log.parent, log.with_suffix(".item"), Broken()
        events = _types(log)
        shelf = _types(catalogue) if catalogue.is_file() else {}
        columns = by_table(
            self.columns,
            {"items": shelf, "interactions": events},
            {"items": catalogue.name, "interactions": log.name},
        )
        refuse_histories(events, columns["interactions"], str(log))
        named = columns["items"]
        spare = (name for name in TITLES if name in shelf and (name == "title" or name not in named.values()))
        if "title" not in named and (title := next(spare, None)) is not None:
            named["title"] = title

        def interactions() -> Iterator[pl.DataFrame]:
            for table in _tables(log, events, columns["interactions"], broken):
                yield renamed(table, columns["interactions"])

        def items() -> pl.DataFrame:
            table = renamed(pl.concat(_tables(catalogue, shelf, columns["items"], broken)), columns["items"])
            named = "image" in table.columns or "item_id" not in table.columns
            return table if named else table.with_columns(image=pl.col("item_id"))

        return RawData(
            name=log.stem,
            items=items() if shelf else lambda needed: pl.DataFrame({"item_id": needed, "image": needed}),
            interactions=interactions(),
            pictures=pictures_in(folder),
            items_from=str(catalogue) if shelf else f"{log} (there is no {catalogue.name} beside it)",
            interactions_from=str(log),
            files=[catalogue, log] if shelf else [log],
            broken=broken,
            columns=self.columns,
            time_format=self.time_format,
            time_unit=self.time_unit,
        )

    def _log(self) -> Path:
        if self.path.suffix == ".inter" and self.path.is_file():
            return self.path
        found = sorted(self.path.glob("*.inter"))
        if not found:
            raise InputError(f"{self.path}: has no .inter file; give a folder of RecBole's atomic files")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{self.path}: has {names}; give the path of one of them, or put them into one file")
        return found[0]


def _types(path: Path) -> dict[str, str]:
    """The type of each column, by its name, from a file's header."""
    types: dict[str, str] = {}
    for column in first_line(path).split("\t"):
        name, _, kind = column.rpartition(":")
        if not name or ":" in name or kind not in _TYPES:
            raise InputError(
                f"{path}: its header has {column[:80]!r} between its tabs; there must be NAME:TYPE, TYPE one of"
                f" {', '.join(_TYPES)}"
            )
        if name in types:
            raise InputError(f"{path}: its header has it twice: {name!r}; rename it")
        types[name] = kind
    check_names(types, str(path))
    return types


def _tables(path: Path, types: Mapping[str, str], columns: Mapping[str, str], broken: Broken) -> Iterator[pl.DataFrame]:
    """Tables with numbers and lists where the header says so; a line with something else there is broken."""
    text = [columns.get(name, name) for name in FLAT]  # whatever type they are said to have
    typed = {name: kind for name, kind in types.items() if name not in text and kind != "token"}
    for table in read_plain(path, "\t", list(types), broken, header=True):
        table = table.with_columns(_unquoted(name) for name in types)
        for name, kind in typed.items():
            made = table.select(_read(name, kind)).to_series()
            bad = made.is_null() & table[name].is_not_null()
            broken.add_many(str(path), table[LINE].filter(bad), f"{name} is no {kind}", table[name].filter(bad))
            table = table.with_columns(made).filter(~bad)
        yield table


def _unquoted(name: str) -> pl.Expr:
    """A field in quotes without them, doubled ones inside it halved."""
    field = cs.by_name(name).as_expr()
    inner = field.str.slice(1, field.str.len_chars() - 2).str.replace_all('""', '"', literal=True)
    return pl.when(field.str.contains('^"(?:[^"]|"")*"$')).then(inner).otherwise(field).alias(name)


def _read(name: str, kind: str) -> pl.Expr:
    """A column of text as its type; null where it is not of it."""
    text = cs.by_name(name).as_expr()
    if kind == "float":
        return text.str.strip_chars().cast(pl.Float64, strict=False)
    words = text.str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    if kind == "token_seq":
        return words
    numbers = words.list.eval(pl.element().cast(pl.Float64, strict=False))
    return pl.when(~numbers.list.eval(pl.element().is_null()).list.any()).then(numbers)
