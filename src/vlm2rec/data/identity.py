"""Do two people hold the same data? And is a directory still what its manifest says?"""

from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl

from vlm2rec.data.dataset import INTERACTIONS, Dataset, fingerprint
from vlm2rec.data.pictures.store import read_index
from vlm2rec.errors import InputError

_ROWS = 1 << 20


def check(dataset: Dataset) -> None:
    """Read everything again, but for further columns and the list of the dropped, and compare it with the manifest.

    Raises:
        InputError: a table was changed or damaged since the directory was written.
    """
    path, stated = dataset.path, dataset.manifest
    options = {name: stated["options"][name] for name in ("picture_size", "picture_fit")}
    columns = _columns(dataset)
    items, titles, digests, users = (columns[name] for name in ("items", "titles", "pictures", "users"))
    found = fingerprint(items, titles, digests, users, dataset.sequences, options)
    if found != dataset.fingerprint:
        raise InputError(
            f"{path}: items, titles, users, sequences or pictures were changed after it was prepared (fingerprint"
            f" {found}, the manifest says {dataset.fingerprint}); prepare it again"
        )
    _check_pictures(dataset)
    times, done = blake2b(digest_size=16), 0
    owner = dataset.sequences.rows()
    table = pl.scan_parquet(path / INTERACTIONS, glob=False).select("user_id", "item_id", "timestamp")
    try:
        for part in table.collect_batches(chunk_size=_ROWS, maintain_order=True):
            here = slice(done, done + part.height)
            done += part.height
            times.update(part["timestamp"].to_numpy().tobytes())
            item = items[np.asarray(dataset.sequences.values[here])]
            if not (part["item_id"].equals(item) and part["user_id"].equals(users[owner[here]])):
                raise InputError(f"{path / INTERACTIONS}: does not hold the events of sequences.npy; prepare it again")
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(f"{path / INTERACTIONS}: is damaged; prepare it again") from None
    if times.hexdigest() != stated["times"]:
        raise InputError(f"{path / INTERACTIONS}: times were changed after it was prepared; prepare it again")


def _check_pictures(dataset: Dataset) -> None:
    for item, (picture, crc) in enumerate(zip(dataset.pictures, read_index(dataset.path, ["crc"])["crc"], strict=True)):
        if picture is not None and crc32(picture.data) != crc:
            raise InputError(
                f"{dataset.path}: the picture of item {dataset.item_ids[item]!r} is damaged; prepare it again"
            )


def differences(first: Dataset, second: Dataset) -> list[str]:
    """What is not the same in two data sets, a line each; none where every result would be the same.

    A name, a path, further columns and the version that wrote it make no difference.
    """
    found = []
    ours, theirs = _columns(first), _columns(second)
    for name, column in ours.items():
        other = theirs[name]
        if len(column) != len(other):
            found.append(f"{name}: {len(column):,} and {len(other):,}")
        elif not column.equals(other, null_equal=True):
            row = int((column.ne_missing(other)).arg_true()[0])
            where = f"the first in row {row:,}: {column[row]!r} and {other[row]!r}"
            found.append(f"{name}: {int(column.ne_missing(other).sum()):,} of {len(column):,} differ, {where}")
    if first.fingerprint != second.fingerprint and not found:
        same = np.array_equal(first.sequences.values, second.sequences.values)
        found.append("pictures: made to fit otherwise" if same else "sequences: other events, or in another order")
    if first.manifest["times"] != second.manifest["times"]:
        found.append("times: differ, which matters to a split by time")
    return found


def origin_differences(first: Dataset, second: Dataset) -> list[str]:
    """What differs in how two data sets were made: options, and raw files; a line each."""
    ours, theirs = (_flat(data.manifest["options"] | {"files": _files(data)}) for data in (first, second))
    return [
        f"{name}: {ours.get(name, 'none')} and {theirs.get(name, 'none')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _columns(dataset: Dataset) -> dict[str, pl.Series]:
    return {
        "items": pl.Series(dataset.item_ids, dtype=pl.String),
        "titles": pl.Series(dataset.titles, dtype=pl.String),
        "pictures": pl.Series(dataset.pictures.digests, dtype=pl.String),
        "users": pl.Series(dataset.user_ids, dtype=pl.String),
    }


def _files(dataset: Dataset) -> dict[str, Any]:
    return {each["name"]: each.get("sha256", each.get("rows")) for each in dataset.manifest["made_from"]["files"] or []}


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name} ")
        else:
            flat[f"{before}{name}"] = str(value)
    return flat
