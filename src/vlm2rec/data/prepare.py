"""From a source's tables and pictures to a prepared data set, all of it or nothing.

Dropped, counted and listed, never an error: items without what is required, what falls out of the k-core, users
with fewer than three events. The directory is written beside its final place and renamed at the end, so a run that
is killed leaves no half data set (at worst a hidden `.NAME.….partial` folder, safe to delete).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec import __version__
from vlm2rec.data import images
from vlm2rec.data.dataset import (
    DROPPED,
    FORMAT,
    INTERACTIONS,
    ITEMS,
    MANIFEST,
    SEQUENCES,
    USERS,
    Dataset,
    fingerprint,
    read_manifest,
)
from vlm2rec.data.images import FITS, Fit
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.sources import RawData, Source
from vlm2rec.data.tables import MIN_EVENTS, Core, clean_interactions, clean_items, core
from vlm2rec.errors import InputError
from vlm2rec.progress import progress as show

Progress = Callable[[int, int], None]
"""Told (pictures done, pictures in all) after each picture."""


def prepare(
    source: Source,
    out: Path,
    *,
    require: Sequence[str] = ("title", "image"),
    k_core: int = 5,
    picture_size: int = 224,
    picture_fit: Fit = "squash",
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Dataset:
    """Clean, cut, decode and write; return the data set at `out`.

    An `out` that already holds the same prepared data is left as it is (`notice` is told so); any other `out` that
    exists is refused.

    Args:
        source: where the raw tables and pictures come from.
        out: the directory to write.
        require: what an item must have to stay: "title", "image" or both; ("any",): either of them.
        k_core: every user and every item keeps at least so many events; 0 or 1 asks nothing more of them than that
            a user has three events (and, at 1, an item one).
        picture_size: pixels of a square's side, or of the longer side under `aspect`.
        picture_fit: `squash`, `letterbox` or `aspect`; see `vlm2rec.data.images.fit_picture`.
        progress: told about pictures done.
        notice: told in one line what there is to say.

    Raises:
        InputError: an option or the raw data is wrong, nothing is left, or `out` is taken.
    """
    options = _options(require, k_core, picture_size, picture_fit)
    there = _check_out(out)
    raw = source.read()
    tables = _clean(raw, options)
    options["source"] = _source_digest(raw, tables)
    if there is not None:
        if any(there["options"].get(key) != options[key] for key in options if key != "source"):
            raise InputError(f"{out}: exists, prepared with other options; delete it or give another --out")
        if there["options"].get("source") == options["source"]:
            return _unchanged(out, notice)
    with _partial(out) as folder:
        _write(folder, raw, tables, options, progress)
        if there is None:
            try:
                folder.replace(out)
            except OSError as error:
                raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
            return Dataset.load(out)
        made = read_manifest(folder)
        if made is None or made["fingerprint"] != there["fingerprint"]:
            raise InputError(f"{out}: exists and holds other data; delete it or give another --out")
    return _unchanged(out, notice)


@contextmanager
def picture_bar() -> Iterator[Progress]:
    """Progress on the terminal to give to `prepare`."""
    with show("pictures", None) as tell:
        yield lambda done, total: tell(done, f"of {total}")


@dataclass(frozen=True)
class _Tables:
    """Clean tables with what `core` needs: events as numbers, and why an item cannot be used (None: it can)."""

    items: pl.DataFrame
    interactions: pl.DataFrame
    user_ids: list[str]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    reasons: list[str | None]
    lost: list[str | None]  # why an item has no picture; None: it has one


def _options(require: Sequence[str], k_core: int, picture_size: int, picture_fit: str) -> dict[str, Any]:
    for part in require:
        if part not in ("title", "image", "any"):
            raise InputError(f"--require {part}: unknown; give title, image, both or any")
    if not require:
        raise InputError("--require: is empty; give title, image, both or any")
    if "any" in require and len(require) > 1:
        raise InputError("--require any: means a title or a picture, so it stands alone; leave the others out")
    if k_core < 0:
        raise InputError(f"--k-core {k_core}: cannot be negative; give 0 to switch it off")
    if not 8 <= picture_size <= 4096:
        raise InputError(f"--picture-size {picture_size}: give pixels between 8 and 4096")
    if picture_fit not in FITS:
        raise InputError(f"--picture-fit {picture_fit}: unknown; give one of {', '.join(FITS)}")
    return {
        "require": [part for part in ("title", "image", "any") if part in require],
        "k_core": k_core,
        "picture_size": picture_size,
        "picture_fit": picture_fit,
    }


def _check_out(out: Path) -> dict[str, Any] | None:
    """The manifest of a data set that is there already; None if the place is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    there = read_manifest(out)
    if there is None:
        raise InputError(f"{out}: exists and is no prepared data set; delete it or give another --out")
    return there


def _unchanged(out: Path, notice: Callable[[str], None] | None) -> Dataset:
    if notice is not None:
        notice(f"{out} already holds this data; nothing to do")
    return Dataset.load(out)


def _clean(raw: RawData, options: dict[str, Any]) -> _Tables:
    require = tuple(options["require"])
    items = clean_items(raw, tuple(part for part in require if part != "any"))
    interactions = clean_interactions(raw, items["item_id"])
    if items.is_empty() or interactions.is_empty():
        raise InputError(f"{raw.items_from if items.is_empty() else raw.interactions_from}: has no rows; add some")
    folder = raw.pictures
    if "image" in require and isinstance(folder, Path) and not folder.is_dir() and (items["image"] != "").any():
        raise InputError(f"{folder}: no such folder; put the pictures there or pass --require title")
    reasons: list[str | None] = []
    lost: list[str | None] = []
    for title, image in items.select("title", "image").iter_rows():
        found = images.find(raw.pictures, image)
        lost.append(None if found else "picture missing" if image else "no picture")
        reasons.append(_why_not(require, title, lost[-1]))
    users = interactions["user_id"].unique(maintain_order=True)
    user = interactions["user_id"].cast(pl.Enum(users)).to_physical().to_numpy().astype(np.int64)
    item = interactions["item_id"].cast(pl.Enum(items["item_id"])).to_physical().to_numpy().astype(np.int64)
    return _Tables(items, interactions, users.to_list(), user, item, reasons, lost)


def _why_not(require: Sequence[str], title: str, lost: str | None) -> str | None:
    """Why an item cannot be used; None where it can. `lost`: why it has no picture."""
    if "title" in require and not title:
        return "no title"
    if "image" in require:
        return lost
    return f"no title, {lost}" if "any" in require and not title and lost else None


def _source_digest(raw: RawData, tables: _Tables) -> str | None:
    """A quick hash of what came in, so that preparing again can stop early; None where pictures are drawn.

    Picture files enter by name, size and time of change. If only these differ, the whole is made and compared.
    """
    if callable(raw.pictures):
        return None
    content = blake2b(digest_size=16)
    for table in (tables.items, tables.interactions):
        content.update(repr(table.schema).encode())
        content.update(table.hash_rows(seed=0).to_numpy().tobytes())
    if raw.pictures is not None:
        for name, lost in zip(tables.items["image"], tables.lost, strict=True):
            if lost is None:
                stat = (raw.pictures / name).stat()
                content.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return content.hexdigest()


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, gone at the end unless it was renamed."""
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a process long gone that had the same number
        folder.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another --out") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, raw: RawData, tables: _Tables, options: dict[str, Any], progress: Progress | None) -> None:
    usable = np.array([reason is None for reason in tables.reasons])
    n_users = len(tables.user_ids)
    first = core(tables.user, tables.item, usable, n_users, options["k_core"])
    _refuse_empty(raw, tables, first, options)

    # Only survivors are decoded. A broken picture can cost an item its place and, through the k-core, more items;
    # what is left is always a part of what was decoded, so one decoding is enough.
    rows = np.flatnonzero(first.items)
    names = [tables.items["image"][int(row)] if tables.lost[row] is None else None for row in rows]
    size, fit = options["picture_size"], options["picture_fit"]
    broken = images.pack(folder, raw.pictures, names, size, fit, progress)
    for row in rows[np.array(broken, bool)]:
        tables.lost[row] = "picture broken"
        tables.reasons[row] = _why_not(options["require"], tables.items["title"][int(row)], tables.lost[row])
        usable[row] = tables.reasons[row] is None
    kept = core(tables.user, tables.item, usable, n_users, options["k_core"])
    _refuse_empty(raw, tables, kept, options)
    images.keep(folder, np.flatnonzero(kept.items[rows]).tolist())

    items = tables.items.filter(pl.Series(kept.items))
    interactions = tables.interactions.filter(pl.Series(kept.events))
    items.write_parquet(folder / ITEMS)
    interactions.write_parquet(folder / INTERACTIONS)
    dropped = _dropped(tables, kept, options)
    dropped.write_parquet(folder / DROPPED)
    users = interactions["user_id"].rle().struct.unnest()
    users.select(user_id="value", events="len").write_parquet(folder / USERS)
    events = tables.item[kept.events].astype(np.int64)
    numbers = (np.cumsum(kept.items) - 1)[events].astype(np.int32)
    np.save(folder / SEQUENCES, numbers)
    digests = images.read_index(folder)["digest"]
    counts: dict[str, dict[str, int]] = {"item": {}, "user": {}, "picture": {}}
    for kind, reason, count in dropped.group_by("kind", "reason", maintain_order=True).len().iter_rows():
        counts[kind][reason] = count
    manifest = {
        "kind": "dataset",
        "format": FORMAT,
        "name": raw.name,
        "fingerprint": fingerprint(
            items["item_id"],
            items["title"],
            digests,
            users["value"],
            Ragged.end_to_end(numbers, users["len"].to_numpy().astype(np.int64)),
            {"picture_size": size, "picture_fit": fit},
        ),
        "counts": _counts(int(kept.users.sum()), items, interactions),
        "raw": _counts(n_users, tables.items, tables.interactions),
        "dropped": counts,
        "options": options,
        "versions": {"vlm2rec": __version__},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _counts(users: int, items: pl.DataFrame, interactions: pl.DataFrame) -> dict[str, int]:
    return {"users": users, "items": items.height, "interactions": interactions.height}


def _dropped(tables: _Tables, kept: Core, options: dict[str, Any]) -> pl.DataFrame:
    """Every item and user that is gone, and every kept item whose picture is; columns id, kind, reason."""
    rows: list[tuple[str, str, str]] = []
    for index, item_id in enumerate(tables.items["item_id"]):
        reason, lost = tables.reasons[index], tables.lost[index]
        if not kept.items[index]:
            rows.append((item_id, "item", reason or "k-core"))
        elif lost is not None:
            rows.append((item_id, "picture", lost))
    events = np.bincount(tables.user[kept.items[tables.item]], minlength=len(tables.user_ids))
    for index, user_id in enumerate(tables.user_ids):
        if not kept.users[index]:
            short = events[index] < MIN_EVENTS
            rows.append((user_id, "user", f"fewer than {MIN_EVENTS} events" if short else "k-core"))
    return pl.DataFrame(rows, schema={"id": pl.String, "kind": pl.String, "reason": pl.String}, orient="row")


def _refuse_empty(raw: RawData, tables: _Tables, kept: Core, options: dict[str, Any]) -> None:
    if kept.events.any():
        return
    usable = sum(reason is None for reason in tables.reasons)
    worst = max({reason for reason in tables.reasons if reason}, key=tables.reasons.count, default=None)
    if worst is not None and usable < len(tables.reasons) / 2:
        help_ = "pass --require title" if "picture" in worst else "give titles"
        why = f"{tables.reasons.count(worst):,} of {len(tables.reasons):,} items were dropped ({worst}); {help_}"
    else:
        why = f"no user keeps {MIN_EVENTS} events under --k-core {options['k_core']}; lower it or bring more data"
    raise InputError(f"{raw.items_from}: nothing is left: {why}")
