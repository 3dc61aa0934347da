"""What a data set was made from: raw files by their hashes, so that two people can tell whether they hold the same."""

import os
from collections.abc import Iterator
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import polars as pl

from vlm2rec.data.sources import RawData
from vlm2rec.errors import InputError


def origin(raw: RawData) -> dict[str, Any]:
    """The raw files, what their columns are called, how times were read, and a stamp of the pictures (see `stamp`)."""
    times = {"format": raw.time_format, "unit": raw.time_unit}
    return {"files": _files(raw), "columns": dict(raw.columns), "times": times, "pictures": stamp(raw)}


def _files(raw: RawData) -> list[dict[str, Any]] | None:
    """Name, bytes and SHA-256 (as `sha256sum` prints it) of each raw file; tables that come from no file by a hash.

    None where a stream of tables has no file: what comes out is then known only when it is made.
    """
    if raw.files:
        return [_file(path) for path in raw.files]
    tables = {"items": raw.items, "interactions": raw.interactions}
    if not all(isinstance(table, pl.DataFrame) for table in tables.values()):
        return None
    return [{"name": name, "rows": _table(t)} for name, t in tables.items() if isinstance(t, pl.DataFrame)]


def stamp(raw: RawData) -> str | None:
    """A quick hash of a place of pictures: names, sizes and times of change. "" for none; None where they are drawn.

    Where it is as it was, nothing has changed; where it differs, the pictures may still be the same.
    """
    place = raw.pictures
    if place is None:
        return ""
    if not isinstance(place, Path):
        return None
    content = blake2b(digest_size=16)
    for name, size, changed in [_entry(place, "")] if place.is_file() else sorted(_walk(place, "")):
        content.update(f"{name}\0{size}\0{changed}\n".encode(errors="surrogateescape"))
    return content.hexdigest()


def _walk(folder: Path, inside: str) -> Iterator[tuple[str, int, int]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue  # notes of the download, not pictures
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{inside}{entry.name}/")
        else:
            yield _entry(Path(entry.path), f"{inside}{entry.name}")


def _entry(path: Path, name: str) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return name, 0, 0
    return name, found.st_size, found.st_mtime_ns


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None


def _table(table: pl.DataFrame) -> str:
    content = blake2b(repr(table.schema).encode(), digest_size=16)
    content.update(table.hash_rows(seed=0).to_numpy().tobytes())
    return content.hexdigest()
