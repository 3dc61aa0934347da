"""Text tables of one record a line without quoting (ratings files), block by block; and the rows of any text table.

Where rows begin and end, and how many fields each has, NumPy finds for a whole block at once. Rows that cannot be read
are cut out and listed, so what Polars' own reader is given is always in order and no line can stop the reading.
Everything is text: an id "0012" is not the number 12. An empty field is null.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.sources import LINE
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.opening import BLOCK, blocks
from vlm2rec.errors import InputError

NEWLINE, RETURN, QUOTE = b'\n\r"'
CONTROL = "holds a stray control character (a NUL, or half a line break)"

Places = NDArray[np.int64]

_UNIT = b"\x1f"  # stands for a separator of several characters, which Polars does not know
_EXCERPT = 400  # bytes of a broken row that are decoded


def read_plain(
    path: Path,
    separator: str,
    columns: Sequence[str],
    broken: Broken,
    encoding: str = "utf-8",
    header: bool = False,
    only: Sequence[str] | None = None,
    size: int = BLOCK,
) -> Iterator[pl.DataFrame]:
    """Read a file of one record a line: ratings.dat, u.data, .inter, ratings.csv; plain or .gz.

    Lines with more or fewer fields than there are `columns`, with bytes that the encoding does not know or with a stray
    control character go to `broken`; empty ones mean nothing.

    Args:
        path: the file, which is also what `broken` calls it.
        separator: ASCII, of any length.
        columns: a name for each field.
        broken: told how many lines were read, and which could not be.
        encoding: utf-8 or latin-1.
        header: whether the first line is none of the records.
        only: the columns that are wanted; None: all.
        size: bytes of a block.

    Yields:
        Tables of text, in the order of `only`, with `LINE`, counted from 1. At least one, which may be empty.

    Raises:
        InputError: the file cannot be opened or unpacked, or has a line without end.
    """
    wanted = [*(columns if only is None else only), LINE]
    yield empty(columns)[wanted]
    for number, block in blocks(path, size):
        if header and number == 1:
            end = block.find(b"\n") + 1 or len(block)
            number, block = 2, block[end:]
        if block:
            yield _plain_rows(block, number, separator.encode(), encoding).table(columns, broken, str(path))[wanted]


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """The first line of a file, without its end; "" of an empty file. Raises InputError if it is no text."""
    _, block = next(blocks(path, 1 << 16), (1, b""))
    try:
        return block.split(b"\n", 1)[0].removesuffix(b"\r").decode(encoding)
    except UnicodeDecodeError:
        raise InputError(f"{path}: line 1 is not {encoding.upper()}; is this a text file?") from None


def empty(columns: Sequence[str]) -> pl.DataFrame:
    """A table of these columns without a row."""
    return pl.DataFrame(schema={**dict.fromkeys(columns, pl.String), LINE: pl.Int64})


@dataclass
class Rows:
    """A block in rows that lie end to end, line breaks included.

    Attributes:
        block: its bytes, which should be UTF-8.
        ends: where each row ends, `(rows,)`; the next one begins there.
        numbers: the line each row begins on, `(rows,)`.
        fields: how many fields each row has, `(rows,)`; 0: it is empty, -1: it is known to be broken.
        separator: one byte.
        quoted: whether quotes mean anything.
        shown: how the separator is written in the file.
        literal: fields of rows that must not be read again, by row.
    """

    block: bytes
    ends: Places
    numbers: Places
    fields: Places
    separator: bytes
    quoted: bool = False
    shown: bytes = b""
    literal: dict[int, list[str | None]] = field(default_factory=dict)
    _faults: dict[str, list[int]] = field(default_factory=dict)

    @property
    def starts(self) -> Places:
        """Where each row begins, `(rows,)`."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def having(self, positions: Places) -> Places:
        """The rows, ascending, that these bytes are in."""
        return np.unique(np.searchsorted(self.ends, positions, side="right"))

    def fault(self, rows: Places, why: str) -> None:
        """Say that these rows cannot be read; what is said first of a row counts."""
        new = rows[self.fields[rows] > 0]
        self.fields[new] = -1
        self._faults.setdefault(why, []).extend(new.tolist())

    def table(self, columns: Sequence[str], broken: Broken, file: str) -> pl.DataFrame:
        """The rows that have a field a column, all text, with `LINE`; the others are listed in `broken`."""
        self._fault_undecodable()
        width = len(columns)
        self.fault(np.flatnonzero((self.fields > 0) & (self.fields != width)), f"does not have {width} fields")
        broken.count(file, int((self.fields != 0).sum()))
        for why, faulty in self._faults.items():
            broken.add_many(file, pl.Series(self.numbers[faulty]), why, self._texts(faulty))

        good = self.fields == width
        literal = [row for row in self.literal if good[row]]
        good[literal] = False
        names = [f"{place}" for place in range(width)]  # the columns' own may be anything
        table = empty(names)
        if good.any():
            kept = self.block
            if not good.all():
                kept = np.frombuffer(kept, np.uint8)[np.repeat(good, self.ends - self.starts)].tobytes()
            table = pl.read_csv(
                kept,
                has_header=False,
                schema=dict.fromkeys(names, pl.String),
                separator=self.separator.decode(),
                quote_char='"' if self.quoted else None,
            ).with_columns(pl.Series(LINE, self.numbers[good]))
        if literal:
            cells = [[*self.literal[row], int(self.numbers[row])] for row in literal]
            table = pl.concat([table, pl.DataFrame(cells, schema=table.schema, orient="row")]).sort(LINE)
        return table.rename(dict(zip(names, columns, strict=True)))

    def _fault_undecodable(self) -> None:
        try:
            self.block.decode()
        except UnicodeDecodeError:
            starts = self.starts
            for row in self.having(np.flatnonzero(np.frombuffer(self.block, np.uint8) >= 0x80)):
                try:
                    self.block[starts[row] : self.ends[row]].decode()
                except UnicodeDecodeError:
                    self.fault(np.array([row]), "is not UTF-8")

    def _texts(self, rows: list[int]) -> list[str]:
        spans = zip(self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True)
        texts = [self.block[start : min(end, start + _EXCERPT)].rstrip(b"\r\n") for start, end in spans]
        return [text.replace(self.separator, self.shown or self.separator).decode(errors="replace") for text in texts]


def _plain_rows(block: bytes, number: int, separator: bytes, encoding: str) -> Rows:
    """Every line is a row; a carriage return before its end is left out."""
    block = block.replace(b"\r\n", b"\n")
    if not block.endswith(b"\n"):
        block = block.removesuffix(b"\r") + b"\n"
    if encoding != "utf-8" and not block.isascii():
        block = block.decode(encoding).encode()
    shown = separator
    if len(separator) > 1:
        # A unit separator of the file's own must not become a separator: it counts as stray, as a NUL does.
        block, separator = block.replace(_UNIT, b"\0").replace(separator, _UNIT), _UNIT
    data = np.frombuffer(block, np.uint8)
    marks = np.flatnonzero((data == separator[0]) | (data == NEWLINE))
    breaks = np.flatnonzero(data[marks] == NEWLINE)
    ends = marks[breaks] + 1
    fields = np.diff(breaks, prepend=-1)
    fields[np.diff(ends, prepend=0) == 1] = 0
    rows = Rows(block, ends, number + np.arange(len(ends)), fields, separator, shown=shown)
    for byte in b"\0\r":
        if byte in block:
            rows.fault(rows.having(np.flatnonzero(data == byte)), CONTROL)
    return rows
