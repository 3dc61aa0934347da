"""A prepared data set: a directory that any run can open, and the same whoever opens it.

    items.parquet         item_id, title, image (file name at the source), …; row number = item index
    users.parquet         user_id, events (how many); row number = user
    interactions.parquet  user_id, item_id, timestamp, …; grouped by user, in order of time
    sequences.npy         the item indices of the same rows, int32
    pictures.bin          uint8 RGB, packed          pictures.parquet   where each one lies
    dropped.parquet       id, kind, reason
    broken.parquet        file, line, reason, text: lines of raw files that could not be read, if there were any
    manifest.json         name, fingerprint, counts, options

`vlm2rec.data.prepare` writes it. What a run reads of millions of users are `users` and `sequences`, the latter through
a memory map; the tables are read when they are asked for.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from vlm2rec.data.pictures.fitting import Pixels
from vlm2rec.data.pictures.store import PictureStore
from vlm2rec.data.ragged import Ragged
from vlm2rec.errors import InputError

FORMAT = 2
"""Of the directory. What the fingerprint hashes has a number of its own, so that it outlives a change of files."""
MANIFEST = "manifest.json"
ITEMS = "items.parquet"
USERS = "users.parquet"
INTERACTIONS = "interactions.parquet"
SEQUENCES = "sequences.npy"
DROPPED = "dropped.parquet"
BROKEN = "broken.parquet"

_HASHED = 1
_AT_ONCE = 1 << 20


class Catalogue(Protocol):
    """Anything with titles and pictures: a data set, or a handful of new products."""

    @property
    def titles(self) -> Sequence[str]:
        """One title an item; "" where there is none."""
        ...

    @property
    def pictures(self) -> Sequence[Pixels | None]:
        """One `(H, W, 3)` uint8 array an item; None where there is none."""
        ...


class Dataset:
    """A prepared data set, read from its directory.

    Attributes:
        path: the directory.
        name: what the data set is called.
        fingerprint: hash of the content, whatever the path; candidates and runs are tied to it.
        sequences: item indices `(n_events,)` int32 of each user, in stable order of (timestamp, source position).
        pictures: one picture or None an item index.
        manifest: what `manifest.json` says.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], sequences: Ragged) -> None:
        """Take what `load` has read."""
        self.path = path
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.fingerprint: str = manifest["fingerprint"]
        self.sequences = sequences
        self.pictures = PictureStore(path)

    @classmethod
    def load(cls, path: Path | str) -> "Dataset":
        """Open a directory that `prepare` wrote. Raises InputError if it is not one, or is damaged."""
        path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            there = "" if path.exists() else " (no such folder)"
            raise InputError(
                f"{path}: not a prepared data set{there}; make one with `vlm2rec data prepare SOURCE --out {path}`"
            )
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: prepared by another version of vlm2rec; prepare it again")
        try:
            items = np.load(path / SEQUENCES, mmap_mode="r")
            lengths = _read(path / USERS, ["events"])["events"].to_numpy().astype(np.int64)
            found = [len(lengths), _height(path / ITEMS), _height(path / INTERACTIONS)]
        except (OSError, ValueError, pl.exceptions.PolarsError):
            raise InputError(f"{path}: its tables are missing or damaged; prepare it again") from None
        dataset = cls(path, manifest, Ragged.end_to_end(items, lengths))
        counts = manifest["counts"]
        wanted = [counts["users"], counts["items"], counts["interactions"]]
        whole = int(lengths.sum()) == len(items) == counts["interactions"]
        if found != wanted or len(dataset.pictures) != counts["items"] or not whole:
            raise InputError(f"{path}: its tables do not have the rows its manifest counts; prepare it again")
        return dataset

    @cached_property
    def items(self) -> pl.DataFrame:
        """The items table; row number = item index."""
        return _read(self.path / ITEMS)

    @cached_property
    def interactions(self) -> pl.DataFrame:
        """The interactions table, grouped by user, in order of time. Large: `sequences` has what models need."""
        return _read(self.path / INTERACTIONS)

    @cached_property
    def item_ids(self) -> list[str]:
        """One id an item index."""
        return _read(self.path / ITEMS, ["item_id"])["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str]:
        """One title an item index; "" where there is none."""
        return _read(self.path / ITEMS, ["title"])["title"].to_list()

    @cached_property
    def user_ids(self) -> list[str]:
        """One id a user."""
        return _read(self.path / USERS, ["user_id"])["user_id"].to_list()

    @property
    def n_users(self) -> int:
        """How many users there are."""
        return len(self.sequences)

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return int(self.manifest["counts"]["items"])

    @property
    def n_interactions(self) -> int:
        """How many events there are."""
        return len(self.sequences.values)


def _read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(f"{path}: missing or damaged; prepare the data set again") from None


def _height(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def read_manifest(path: Path | str) -> dict[str, Any] | None:
    """The manifest of a prepared directory; None if `path` is no such directory."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"kind": str, "format": int, "name": str, "fingerprint": str, "counts": dict, "options": dict}
    fits = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in wanted.items())
    return manifest if fits and manifest["kind"] == "dataset" else None


def fingerprint(
    item_ids: pl.Series,
    titles: pl.Series,
    digests: pl.Series,
    user_ids: pl.Series,
    sequences: Ragged,
    options: Mapping[str, Any],
) -> str:
    """Hash of everything a result can depend on: ids, titles, sequences, pictures, and how pictures were made to fit.

    A picture enters by the bytes of its file, not by its decoded pixels, which may differ in a bit between versions
    of a decoder: the same data gives the same fingerprint, hence the same candidates, on every machine.
    """
    content = blake2b(digest_size=16)
    content.update(json.dumps({"format": _HASHED, **options}, sort_keys=True).encode() + b"\n")
    for column in (item_ids, titles, digests, user_ids, pl.Series(sequences.lengths)):
        for part in _json_list(column):
            content.update(part)
    values = sequences.flat()
    for start in range(0, len(values), _AT_ONCE):
        content.update(values[start : start + _AT_ONCE].astype("<i4").tobytes())
    return content.hexdigest()


def _json_list(column: pl.Series) -> Iterable[bytes]:
    """A column as `json.dumps` writes a list, and a line break, in parts: ten million titles are too long for one."""
    yield b"["
    for start in range(0, len(column), _AT_ONCE):
        part = json.dumps(column[start : start + _AT_ONCE].to_list())[1:-1]
        yield (", " if start else "").encode() + part.encode()
    yield b"]\n"
