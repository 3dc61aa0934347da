"""A prepared data set: a directory that any run can open, and the same whoever opens it.

    items.parquet         item_id, title, image (file name at the source), …; row number = item index
    interactions.parquet  user_id, item_id, timestamp, …; grouped by user, in order of time
    pictures.bin          uint8 RGB, packed          pictures.parquet   where each one lies
    dropped.parquet       id, kind, reason
    manifest.json         name, fingerprint, counts, options

`vlm2rec.data.prepare` writes it.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.images import PictureStore, Pixels
from vlm2rec.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
ITEMS = "items.parquet"
INTERACTIONS = "interactions.parquet"
DROPPED = "dropped.parquet"


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
        items: the items table; row number = item index.
        interactions: the interactions table, grouped by user, in order of time.
        item_ids: one id an item index.
        titles: one title an item index; "" where there is none.
        pictures: one picture or None an item index.
        user_ids: one id a user.
        sequences: item indices `(n_events,)` int32 of each user, in stable order of (timestamp, source position).
        manifest: what `manifest.json` says.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], items: pl.DataFrame, interactions: pl.DataFrame
    ) -> None:
        """Take what `load` has read."""
        self.path = path
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.fingerprint: str = manifest["fingerprint"]
        self.items = items
        self.interactions = interactions
        self.item_ids: list[str] = items["item_id"].to_list()
        self.titles: list[str] = items["title"].to_list()
        self.pictures = PictureStore(path)
        self.user_ids, self.sequences = sequences(interactions, items["item_id"])

    @classmethod
    def load(cls, path: Path) -> "Dataset":
        """Open a directory that `prepare` wrote. Raises InputError if it is not one, or is damaged."""
        manifest = read_manifest(path)
        if manifest is None:
            raise InputError(
                f"{path}: not a prepared data set; make one with `vlm2rec data prepare SOURCE --out {path}`"
            )
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: prepared by another version of vlm2rec; prepare it again")
        try:
            dataset = cls(path, manifest, pl.read_parquet(path / ITEMS), pl.read_parquet(path / INTERACTIONS))
        except (OSError, pl.exceptions.PolarsError):
            raise InputError(f"{path}: its tables are missing or damaged; prepare it again") from None
        found = (len(dataset.user_ids), len(dataset.item_ids), len(dataset.pictures), dataset.interactions.height)
        counts = manifest["counts"]
        if found != (counts["users"], counts["items"], counts["items"], counts["interactions"]):
            raise InputError(f"{path}: its tables do not have the rows its manifest counts; prepare it again")
        return dataset


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a prepared directory; None if `path` is no such directory."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"kind", "format", "name", "fingerprint", "counts", "options"}
    return (
        manifest if isinstance(manifest, dict) and wanted <= set(manifest) and manifest["kind"] == "dataset" else None
    )


def sequences(interactions: pl.DataFrame, item_ids: pl.Series) -> tuple[list[str], list[NDArray[np.int32]]]:
    """User ids and the item indices of each, from a table grouped by user."""
    items = interactions["item_id"].cast(pl.Enum(item_ids)).to_physical().to_numpy().astype(np.int32)
    runs = interactions["user_id"].rle().struct.unnest()
    return runs["value"].to_list(), np.split(items, np.cumsum(runs["len"].to_numpy())[:-1])


def fingerprint(
    items: pl.DataFrame, interactions: pl.DataFrame, digests: Sequence[str | None], options: Mapping[str, Any]
) -> str:
    """Hash of everything a result can depend on: ids, titles, sequences, pictures, and how pictures were made to fit.

    A picture enters by the bytes of its file, not by its decoded pixels, which may differ in a bit between versions
    of a decoder: the same data gives the same fingerprint, hence the same candidates, on every machine.
    """
    users, events = sequences(interactions, items["item_id"])
    content = blake2b(digest_size=16)
    head = {"format": FORMAT, **options}
    for part in (
        head,
        items["item_id"].to_list(),
        items["title"].to_list(),
        list(digests),
        users,
        [len(e) for e in events],
    ):
        content.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    content.update(np.concatenate(events).astype("<i4").tobytes())
    return content.hexdigest()
