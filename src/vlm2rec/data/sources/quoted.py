r"""CSV: text tables whose fields may stand in double quotes, and then hold separators, line breaks and doubled quotes.

Lines that are rows by themselves, quoted or not, NumPy finds for a whole block at once; what is left, rows of several
lines and faults, is walked through one by one. An empty field is null, a quoted empty one (`""`) is "".
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from vlm2rec.data.sources import check_names
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.delimited import CONTROL, NEWLINE, QUOTE, RETURN, Places, Rows, empty
from vlm2rec.data.sources.opening import BLOCK, LONGEST, blocks
from vlm2rec.errors import InputError

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def read_quoted(path: Path, broken: Broken, separator: str = ",", size: int = BLOCK) -> Iterator[pl.DataFrame]:
    r"""Read CSV with a header, plain or .gz.

    A row goes to `broken` where it has more or fewer fields than the header, a quote is never closed or something
    follows a closing one, bytes are not UTF-8 or there is a stray control character. Reading goes on with the next
    line, so a lost quote costs its own row and no other. A quote inside an unquoted field (`5" nails`) is a quote.
    Columns without a name (the row numbers that pandas writes) are left out.

    Yields:
        Tables of text in the order of the header, with `LINE`: where the row begins, counted from 1. At least one,
        which may be empty.

    Raises:
        InputError: the file cannot be read, or its header is missing, broken or has a name twice.
    """
    comma = separator.encode()
    rest, number = b"", 1
    header: list[str] | None = None
    for _, block in blocks(path, size):
        rest += block
        if header is None:
            found = _header(path, rest, comma)
            if found is None:
                continue
            header, used = found
            yield empty([name for name in header if name])
        else:
            used = 0
        number += rest.count(b"\n", 0, used)
        rest = rest[used:]
        if rest.endswith(b"\n"):  # only the last block may not
            rows = _rows(rest, number, comma, last=False)
            yield _named(rows, header, broken, path)
            used = len(rows.block)
            number += rest.count(b"\n", 0, used)
            rest = rest[used:]
    if header is None:
        what = "a quote in its header is never closed" if rest.strip() else "it is empty"
        raise InputError(f"{path}: cannot be read as csv: {what}; its first line must name the columns")
    if rest:
        whole = rest if rest.endswith(b"\n") else rest + b"\n"
        yield _named(_rows(whole, number, comma, last=True), header, broken, path)


def _named(rows: Rows, header: list[str], broken: Broken, path: Path) -> pl.DataFrame:
    unnamed = [f"\0{place}" for place, name in enumerate(header) if not name]
    spare = iter(unnamed)
    return rows.table([name or next(spare) for name in header], broken, str(path)).drop(unnamed)


def _header(path: Path, block: bytes, separator: bytes) -> tuple[list[str], int] | None:
    """The names in the first row and where it ends; None if it goes on beyond the block."""
    found = _row(block if block.endswith(b"\n") else block + b"\n", 0, separator)
    if found is None:
        return None
    where = f"{path}: cannot be read as csv"
    if isinstance(found, str):
        raise InputError(f"{where}: its header {found}; its first line must name the columns")
    try:
        names = [(cell or b"").decode() for cell in found.cells]
    except UnicodeDecodeError:
        raise InputError(f"{where}: its header is not UTF-8; save it as UTF-8") from None
    if not any(names):
        raise InputError(f"{where}: its first line is empty; it must name the columns")
    twice = [name for place, name in enumerate(names) if name and name in names[:place]]
    if twice:
        raise InputError(f"{where}: two columns are called {twice[0]!r}; rename one of them")
    check_names(names, str(path))
    return names, min(found.end, len(block))


def _rows(block: bytes, number: int, separator: bytes, last: bool) -> Rows:
    """The rows of a block that ends in a line break, without the last one where it goes on beyond the block."""
    data: Bytes = np.frombuffer(block, np.uint8)
    lines = _lines(block, data, number, separator)
    starts, used, free = lines.starts, len(block), 0
    ending = np.ones(len(starts), bool)  # whether a row ends with this line
    faults: dict[int, str] = {}
    literal: dict[int, list[bytes | None]] = {}
    for line in np.flatnonzero(lines.fields < 0).tolist():
        if line < free:
            continue
        start, free = int(starts[line]), line + 1
        found = _row(block, start, separator)
        if found is None and not last and len(block) - start <= LONGEST:
            used = start
            break
        if found is None or isinstance(found, str):
            faults[start] = found or "has a quote that is never closed"
            lines.fields[line] = 1
            continue
        free = int(np.searchsorted(lines.ends, found.end)) + 1
        ending[line : free - 1] = False
        lines.fields[free - 1] = len(found.cells)
        if found.literal:
            literal[start] = found.cells
    ending &= lines.ends <= used
    ends = lines.ends[ending]
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    numbers = lines.numbers[np.searchsorted(starts, begins)]
    rows = Rows(block[:used], ends, numbers, lines.fields[ending], separator, quoted=True)
    for why in dict.fromkeys(faults.values()):
        rows.fault(np.searchsorted(begins, [start for start, reason in faults.items() if reason == why]), why)
    data = data[:used]
    if b"\0" in rows.block:
        rows.fault(rows.having(np.flatnonzero(data == 0)), CONTROL)
    if b"\r" in rows.block:  # inside quotes it may stand, which the walk has seen to
        stray = rows.having(_stray_returns(data))
        rows.fault(np.setdiff1d(stray, rows.having(np.flatnonzero(data == QUOTE))), CONTROL)
    for row, cells in zip(np.searchsorted(begins, list(literal)).tolist(), literal.values(), strict=True):
        with suppress(UnicodeDecodeError):  # the row is found broken as others are
            rows.literal[row] = [None if cell is None else cell.decode() for cell in cells]
    return rows


def _lines(block: bytes, data: Bytes, number: int, separator: bytes) -> Rows:
    """Lines with their fields: 0 where one is empty, -1 where it must be walked through.

    A line that has an even number of quotes, each where one may stand, is a row if one begins there.
    """
    marks = np.flatnonzero((data == separator[0]) | (data == NEWLINE) | (data == QUOTE))
    quote = data[marks] == QUOTE
    breaks = np.flatnonzero(data[marks] == NEWLINE)
    widths = np.diff(breaks, prepend=-1)
    lines = Rows(block, marks[breaks] + 1, number + np.arange(len(breaks)), widths, separator)
    if quote.any():
        seen = np.cumsum(quote)
        own = np.diff(seen[breaks], prepend=0)
        inside = (seen - np.repeat(seen[breaks] - own, widths)) & 1 == 1  # after each mark
        lines.fields = np.diff(np.cumsum(~inside & ~quote)[breaks], prepend=0)
        opening, closing = marks[quote & inside], marks[quote & ~inside]
        opening = opening[opening > 0]
        lost = [
            opening[~np.isin(data[opening - 1], (separator[0], NEWLINE, QUOTE))],
            closing[~np.isin(data[closing + 1], (separator[0], NEWLINE, QUOTE, RETURN))],
            *([_stray_returns(data)] if b"\r" in block else []),
        ]
        walked = lines.having(np.concatenate(lost))
        lines.fields[walked[own[walked] > 0]] = -1
        lines.fields[own & 1 == 1] = -1
    lengths = np.diff(lines.ends, prepend=0)
    lines.fields[(lengths == 1) | ((lengths == 2) & (data[lines.ends - 2] == RETURN))] = 0
    return lines


def _stray_returns(data: Bytes) -> Places:
    """Where there are carriage returns without a line feed, in a block that ends in a line break."""
    returns = np.flatnonzero(data == RETURN)
    stray: Places = returns[data[returns + 1] != NEWLINE]
    return stray


class _Row(NamedTuple):
    cells: list[bytes | None]
    end: int
    literal: bool  # whether an unquoted field has a quote in it, which Polars may take for one that opens


@cache
def _patterns(separator: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """A field with what ends it (a separator or a line break); and a quoted field alone."""
    mark = re.escape(separator)
    quoted = rb'"([^"]*+(?:""[^"]*+)*+)"'
    bare = rb'((?:[^"\r\n' + mark + rb"][^\r\n" + mark + rb"]*+)?)"
    return re.compile(rb"(?:" + quoted + rb"|" + bare + rb")(?:(" + mark + rb")|\r?\n)"), re.compile(quoted)


def _row(block: bytes, start: int, separator: bytes) -> _Row | str | None:
    """The row that begins here, or why it cannot be read; None if a quote is not closed in this block."""
    one, quoted = _patterns(separator)
    cells: list[bytes | None] = []
    literal, place = False, start
    while (found := one.match(block, place)) is not None:
        place = found.end()
        if found[1] is not None:
            cells.append(found[1].replace(b'""', b'"'))
        else:
            literal |= b'"' in found[2]
            cells.append(found[2] or None)
        if found[3] is None:
            return _Row(cells, place, literal)
    if block[place] != QUOTE:
        return CONTROL
    return "has something between a closing quote and the next field" if quoted.match(block, place) else None
