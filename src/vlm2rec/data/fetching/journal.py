"""What became of each picture of a download: its file, and a line in the journal that says so."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from vlm2rec.data.sources.opening import blocks
from vlm2rec.errors import InputError

JOURNAL = "downloads.jsonl"
PART = ".part"
"""How the name of a file ends (and `.` is how it begins) while it is being written."""

SCHEMA = {
    "name": pl.String,
    "url": pl.String,
    "file": pl.String,
    "reason": pl.String,
    "detail": pl.String,
    "permanent": pl.Boolean,
    "status": pl.Int64,
    "bytes": pl.Int64,
    "sha256": pl.String,
}
"""Columns of the journal; see `vlm2rec.data.fetching.download.download`."""

_LONGEST_STEM = 180  # bytes; file systems take 255
_CHUNK = 100_000  # files listed at once


def stem_of(name: str) -> str:
    """The name of a picture's file, without its ending, on any file system.

    ASCII letters, digits and `-`, `_`, `.` stay, so an ordinary id is its own stem. Other characters, and a dot at the
    beginning, are written as %XX for each of their bytes in UTF-8, which `urllib.parse.unquote` reads back. A stem of
    more than 180 bytes is cut and ends in `~` and a hash of the name.
    """
    stem = quote(name, safe="").replace("~", "%7E")
    if stem.startswith("."):
        stem = "%2E" + stem[1:]
    if len(stem) > _LONGEST_STEM:
        stem = f"{stem[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return stem or "~"


def write_whole(folder: Path, file: str, content: bytes | bytearray) -> None:
    """Write a file beside its place and rename it. Raises InputError where that cannot be done."""
    part = folder / f".{file}{PART}"
    try:
        part.write_bytes(content)
        part.replace(folder / file)
    except OSError as error:
        raise InputError(f"{folder / file}: cannot be written ({error.strerror}); make room") from None


class Journal:
    """The open journal of a folder."""

    def __init__(self, folder: Path, file: int) -> None:
        self.folder, self._file = folder, file

    def add(self, **entry: Any) -> None:
        """Write one line. It is with the operating system when this returns, so killing the process loses nothing."""
        self._write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add_all(self, table: pl.DataFrame) -> None:
        """Write a line for each row."""
        self._write(table.write_ndjson())

    def read(self) -> pl.DataFrame:
        """The last line of each name; columns of `SCHEMA`."""
        tables = [pl.DataFrame(schema=SCHEMA)]
        for _, block in blocks(self.folder / JOURNAL):
            try:
                tables.append(pl.read_ndjson(block, schema=SCHEMA))
            except pl.exceptions.PolarsError:  # a disk that failed, or somebody's editor
                tables.append(_salvage(block))
        table = pl.concat(tables)
        return table.filter(pl.col("name").is_not_null() & pl.col("name").is_last_distinct())

    def files(self) -> pl.DataFrame:
        """The files in the folder: file, there (bytes). Removes what a killed process was writing."""
        tables = [pl.DataFrame(schema={"file": pl.String, "there": pl.Int64})]
        with os.scandir(self.folder) as entries:
            while chunk := list(islice(entries, _CHUNK)):
                for entry in chunk:
                    if entry.name.startswith(".") and entry.name.endswith(PART):
                        Path(entry.path).unlink()
                files = [
                    (entry.name, entry.stat().st_size)
                    for entry in chunk
                    if not entry.name.startswith(".") and entry.is_file()
                ]
                tables.append(pl.DataFrame(files, schema=tables[0].schema, orient="row"))
        return pl.concat(tables)

    def _write(self, text: str) -> None:
        data = memoryview(text.encode(errors="replace"))
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise InputError(f"{self.folder / JOURNAL}: cannot be written ({error.strerror}); make room") from None


@contextmanager
def open_journal(folder: Path) -> Iterator[Journal]:
    """The journal of a folder that is made if need be; nobody else may write to it meanwhile."""
    import fcntl

    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another folder") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another download is writing to it; wait for it or stop it") from None
        _trim(file)
        yield Journal(folder, file)
    finally:
        os.close(file)


def _trim(file: int) -> None:
    """Cut off a last line that was not written to its end."""
    end = size = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)


def _salvage(block: bytes) -> pl.DataFrame:
    """Every line of a damaged part of a journal that can still be read."""
    entries = []
    for line in block.split(b"\n"):
        try:
            entry = json.loads(line)
            entries.append(pl.DataFrame({key: [entry.get(key)] for key in SCHEMA}, schema=SCHEMA).row(0))
        except (ValueError, AttributeError, TypeError, pl.exceptions.PolarsError):
            continue
    return pl.DataFrame(entries, schema=SCHEMA, orient="row")
