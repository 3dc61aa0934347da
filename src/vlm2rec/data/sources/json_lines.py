"""JSON lines as tables of text: one record a line, and a line that cannot be read is listed and left out.

Every line goes through the parser of the standard library, which tells good from bad exactly: some 5 µs for a review
of 800 bytes. The vectorised reader of polars takes a quarter of that, but reads a list as text, half of a surrogate
pair as NUL and 5.0 as 5, and skips blank lines without counting them, all without a word.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vlm2rec.data.sources import LINE, check_names
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.opening import blocks
from vlm2rec.errors import InputError

ROWS = 1 << 18
"""Rows of a table."""
_FIELDS = 1000  # different fields a table may have
_HOPELESS = 100_000  # broken lines, without one that can be read, after which nobody reads on
_EXCERPT = 480  # bytes of a broken line that are looked at; characters have up to four

_PACKED = (b"\x1f\x8b", b"PK\3\4", b"PAR1", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

Parse = Callable[[str], Any]
"""What a line holds; raises ValueError that says in a few words what is wrong with it."""


class _Number(str):
    """A number as it is written."""


def _none(_: str) -> None:
    """NaN, Infinity and -Infinity, which JSON has not and Python writes: null, so that they spoil no line."""


_FLAT = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_none)
_NESTED = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_none)


def parse_json(text: str, decoder: json.JSONDecoder = _FLAT) -> Any:
    """A line of JSON, numbers as text as they are written; of a field that is there twice, the last counts.

    NaN and the infinities are null.
    """
    text = text.strip(" \t\r\n")
    try:
        value, end = decoder.raw_decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("no JSON")
    return value


def read_records(
    path: Path, broken: Broken, parse: Parse = parse_json, wanted: Callable[[bytes], bool] | None = None
) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Number, bytes and content of every line that holds an object; blank lines and those not `wanted` are skipped.

    All lines are counted in `broken`, those that cannot be read are listed there.

    Raises:
        InputError: as `blocks` does, or (where all lines are wanted) none of the lines can be read.
    """
    file, read, listed = str(path), False, 0
    for first, block in blocks(path):
        if listed > _HOPELESS and not read:
            break  # another kind of file: no need to list all of it
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        broken.count(file, len(lines))
        for number, line in enumerate(lines, first):
            if wanted is not None and not wanted(line):
                continue
            try:
                record = parse(line.decode())
            except UnicodeDecodeError:
                add_broken(broken, path, number, "not UTF-8", line)
                continue
            except ValueError as error:
                if line.strip():
                    add_broken(broken, path, number, str(error), line)
                continue
            if type(record) is dict:
                read = True
                yield number, line, record
            else:
                add_broken(broken, path, number, "no object", line)
        listed = len(broken)
    if wanted is None and not read:
        _refuse_all(path, broken)


def read_json_lines(
    path: Path,
    broken: Broken,
    fields: Sequence[str] | None = None,
    *,
    flat: Collection[str] = (),
    parse: Parse = parse_json,
) -> Iterator[pl.DataFrame]:
    """Tables (one at least) of at most `ROWS` rows: these fields as text, and each row's line, from 1, in `LINE`.

    Numbers are as they are written, true and false are words, a field that is null or not there is null. A line with
    a list or an object in one of the fields is broken, and one with half of a surrogate pair, which no text can hold.

    Args:
        path: the file, plain or .gz.
        broken: counts all lines, lists those that cannot be read.
        fields: which; None: all, in the order they are first seen, for which the file is read twice. A list or an
            object is then its JSON.
        flat: where `fields` is None: those in which a list or an object makes the line broken all the same.
        parse: reads a line, where `fields` are given.

    Raises:
        InputError: the file or all of its lines cannot be read, or (all fields) there are too many different ones or
            one with a NUL in its name.
    """
    if fields is None:
        fields, parse = _fields(path), _parse_nested
        nested = set(fields) - set(flat)
    else:
        nested = set()
    numbers: list[int] = []
    rows: list[list[str | None]] = []
    yielded = False
    for number, line, record in read_records(path, broken, parse):
        row = list(map(record.get, fields))
        for place, value in enumerate(row):
            if value is None or (value.__class__ is str and value.isascii()):
                continue
            field = fields[place]
            try:
                row[place] = _json(value) if field in nested and isinstance(value, list | dict) else as_text(value)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                add_broken(broken, path, number, f"{field} is {reason}", line)
                break
        else:
            numbers.append(number)
            rows.append(row)
            if len(rows) == ROWS:
                yield _table(fields, rows, numbers)
                numbers, rows, yielded = [], [], True
    if rows or not yielded:
        yield _table(fields, rows, numbers)


def as_text(value: object) -> str | None:
    """A value that is no list or object, as text. Raises ValueError that says what it is instead."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError("a list" if isinstance(value, list | tuple | set) else "an object")
    try:
        text = str(value)
    except ValueError:
        raise ValueError("a number of too many digits") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("no text: half of a surrogate pair") from None
    return text


def add_broken(broken: Broken, path: Path, number: int, reason: str, line: bytes) -> None:
    """List one line."""
    broken.add(str(path), number, reason, line[:_EXCERPT].decode(errors="replace"))


def _refuse_all(path: Path, broken: Broken) -> None:
    """Raise InputError where lines of a file are listed: none of them can be read. Says the likeliest cause."""
    own = broken.table().filter(pl.col("file") == str(path))
    if own.height:
        line, reason, text = own.select("line", "reason", "text").row(0)
        raise InputError(
            f"{path}: no line of it can be read; the first is line {line:,}: {reason}: {text!r}; {_likely_cause(path)}"
        )


def _likely_cause(path: Path) -> str:
    """What a file of which no line can be read is instead, and what to do."""
    _, block = next(blocks(path, 1 << 16), (1, b""))
    if block.startswith(_PACKED):
        return "it is packed or no text: unpack it, or give its name the right ending"
    if block.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in block[:200]:
        return "it looks like UTF-16: save it as UTF-8"
    first = next((line.strip() for line in block.split(b"\n") if line.strip()), b"")
    if first.startswith(b"["):
        return "it looks like one JSON array: write one record a line, as jq -c '.[]' does"
    if first.startswith(b"{") and not first.endswith(b"}"):
        return "its records seem to go over several lines: write one a line, as jq -c . does"
    if b"{" not in first and any(mark in first for mark in b",;\t"):
        return "it looks like CSV: let its name end in .csv, with commas between its fields"
    return "is it the file that is meant?"


def _table(fields: Sequence[str], rows: list[list[str | None]], numbers: list[int]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ((),) * len(fields)
    texts = [pl.Series(field, values, dtype=pl.String) for field, values in zip(fields, columns, strict=True)]
    return pl.DataFrame([*texts, pl.Series(LINE, numbers, dtype=pl.Int64)])


def _fields(path: Path) -> list[str]:
    names: dict[str, None] = {}
    for number, _, record in read_records(path, Broken(), _parse_nested):
        names.update(dict.fromkeys(record))
        if len(names) > _FIELDS:
            raise InputError(f"{path}: has more than {_FIELDS:,} different fields by line {number:,}; is it a table?")
    check_names(names, str(path))
    return list(names)


def _parse_nested(text: str) -> Any:
    record = parse_json(text, _NESTED)
    try:
        "".join(record if isinstance(record, dict) else ()).encode()
    except UnicodeEncodeError:
        raise ValueError("a field's name is no text: half of a surrogate pair") from None
    return record


def _json(value: object) -> str:
    """The JSON of a list or an object in which numbers are `_Number`."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(name)}: {_json(held)}" for name, held in value.items()) + "}"
    return json.dumps(value)
