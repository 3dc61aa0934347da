"""A prepared data set's directory, written batch by batch and put in its place all at once.

Nothing here holds more of the log than one batch of users, so a directory can be larger than memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from vlm2rec import __version__
from vlm2rec.data.dataset import DROPPED, FORMAT, INTERACTIONS, ITEMS, MANIFEST, SEQUENCES, USERS, fingerprint
from vlm2rec.data.pictures import store
from vlm2rec.data.ragged import Ragged
from vlm2rec.errors import InputError


@dataclass(frozen=True)
class Events:
    """The kept events, in the order in which they are written.

    Attributes:
        users: columns user_id and events (how many, ascending in the order of users).
        schema: columns of the interactions table.
        batches: tables of that schema with the item index of each row `(n,)` int32; together all events of the users,
            one after the other, each user's in order of time.
    """

    users: pl.DataFrame
    schema: pl.Schema
    batches: Iterator[tuple[pl.DataFrame, NDArray[np.int32]]]


def is_free(out: Path) -> bool:
    """Whether nothing is at a place but, at most, an empty folder."""
    return not out.exists() or (out.is_dir() and not any(out.iterdir()))


def sync(folder: Path) -> None:
    """Wait until the files of a folder are on disk."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def put(folder: Path, out: Path) -> None:
    """Rename a finished folder to its place. Raises InputError if that cannot be done."""
    try:
        folder.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None


@contextmanager
def partial(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, gone at the end unless it was renamed."""
    folder = out.parent / f".{out.name}.{os.getpid()}-{token_hex(4)}.partial"  # of all machines that share the disk
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_directory(
    folder: Path,
    name: str,
    items: pl.DataFrame,
    events: Events,
    dropped: pl.DataFrame,
    picture: Mapping[str, Any],
    more: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write all files but the pictures, which are packed in `folder` already.

    Args:
        folder: where to.
        name: what the data set is called.
        items: the kept items; row number = item index.
        events: the kept events.
        dropped: columns id, kind, reason.
        picture: `picture_size` and `picture_fit`, which the fingerprint hangs on.
        more: what else the manifest says.
        progress: told (events written, events in all).
    """
    items.write_parquet(folder / ITEMS)
    events.users.write_parquet(folder / USERS)
    dropped.write_parquet(folder / DROPPED)
    total = int(events.users["events"].sum())
    numbers = np.lib.format.open_memmap(folder / SEQUENCES, mode="w+", dtype=np.int32, shape=(total,))
    times = blake2b(digest_size=16)

    def tables(*_: object) -> Iterator[pl.DataFrame]:
        done = 0
        for table, own in events.batches:
            numbers[done : done + len(own)] = own
            times.update(table["timestamp"].to_numpy().tobytes())
            done += len(own)
            yield table
            if progress is not None:
                progress(done, total)

    register_io_source(tables, schema=events.schema).sink_parquet(folder / INTERACTIONS)
    numbers.flush()
    sequences = Ragged.end_to_end(numbers, events.users["events"].to_numpy().astype(np.int64))
    digests = store.read_index(folder)["digest"]
    counts: dict[str, dict[str, int]] = {"item": {}, "user": {}, "picture": {}}
    for kind, reason, count in dropped.group_by("kind", "reason", maintain_order=True).len().iter_rows():
        counts[kind][reason] = count
    manifest = {
        "kind": "dataset",
        "format": FORMAT,
        "name": name,
        "fingerprint": fingerprint(
            items["item_id"], items["title"], digests, events.users["user_id"], sequences, picture
        ),
        "times": times.hexdigest(),
        "counts": {"users": events.users.height, "items": items.height, "interactions": total},
        "dropped": counts,
        **more,
        "versions": {"vlm2rec": __version__},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync(folder)
