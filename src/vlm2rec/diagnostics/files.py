"""Diagnose embeddings that somebody else's model made: a file a modality, and the log they are to be judged by.

Histories are the mean of their items' unit vectors (Sec. 5.1.3) unless vectors of users are given. Two modalities of
one width are summed (Eq. 2); of two widths, their unit vectors are put side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import MANIFEST, Dataset
from vlm2rec.data.preparing.tables import clean_events
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.sources.local import read_table
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import Diagnosis
from vlm2rec.diagnostics.counted import named_by_row
from vlm2rec.diagnostics.describe import WARNING
from vlm2rec.diagnostics.measure import measure_users
from vlm2rec.diagnostics.space import Chosen, Floats, Ints, Rows, unit
from vlm2rec.diagnostics.status import SIDES, at_chance
from vlm2rec.diagnostics.vectors import Vectors, read_vectors
from vlm2rec.diagnostics.verdict import conclude
from vlm2rec.errors import InputError

_MIN_EVENTS = 2  # something to ask with, and something to find
_ASKED = 200  # items whose neighbours must be known before files are suspected of holding different items


@dataclass(frozen=True)
class Log:
    """Who chose what, in order: as much of a data set as drawing candidates needs."""

    item_ids: list[str]
    user_ids: list[str]
    sequences: Ragged
    fingerprint: str

    @property
    def n_items(self) -> int:
        """How many items there are."""
        return len(self.item_ids)


def diagnose_files(
    text: Path | str,
    image: Path | str,
    sequences: Path | str,
    *,
    text_users: Path | str | None = None,
    image_users: Path | str | None = None,
    max_history: int = 10,
    seed: int = 0,
    first_id: int | None = None,
) -> tuple[Diagnosis, list[str]]:
    """Diagnose two files of item vectors by what users chose next.

    Args:
        text, image: vectors of the items (see `read_vectors`).
        sequences: a prepared data set, or a table (Parquet, CSV, JSON lines) of user_id, item_id and, unless its rows
            are in order of time, timestamp.
        text_users, image_users: vectors of the users' histories, both or none; ids are user ids.
        max_history: events that a history keeps.
        seed: draws the candidates and what is sampled.
        first_id: the id of row 0 of vectors that have no ids; None: 0, unless the log's ids say otherwise.

    Returns:
        The diagnosis, and a line for whatever was left out or assumed; one that begins with `describe.WARNING` has to
        be read before the verdict.

    Raises:
        InputError: a file cannot be used, or the files do not belong together.
    """
    if (text_users is None) != (image_users is None):
        raise InputError("--text-users and --image-users belong together; give both, or none to pool items")
    notes: list[str] = []
    sequences = Path(sequences)
    prepared = (sequences / MANIFEST).exists()
    log = _prepared(sequences) if prepared else _read_log(sequences, notes)
    # A table lists items and users as they come: no order to rely on.
    known_items, known_users = (log.item_ids, log.user_ids) if prepared else ([], [])
    by_row = _ByRow(known_items, log.item_ids, sequences, "items", first_id)
    shelves = read_vectors(text, "text"), read_vectors(image, "image")
    ids, items = _together(*shelves, by_row, notes)
    if prepared:
        ids, items = _in_order(log, ids, items, sequences, notes)
    log = _restricted(log, ids, sequences, notes)
    views = _with_fused(items)
    summed = isinstance(views["fused"], _Summed)
    notes.append(f"texts and pictures are fused as {'a sum' if summed else 'unit vectors side by side'}")
    split = Split(cast(Dataset, log), max_history)  # which asks no more of a data set than a `Log` has
    users: Ints = split.able("test")
    if all(len(split.seen(int(user))) == split.n_items for user in users):
        raise InputError(
            f"{sequences}: every user has every item that has vectors, so there is nothing to choose from; give more"
        )
    histories: dict[str, Rows]
    if text_users is not None and image_users is not None:
        given = read_vectors(text_users, "text"), read_vectors(image_users, "image")
        named, found = _together(*given, _ByRow(known_users, log.user_ids, sequences, "users", first_id), notes)
        users, histories = _histories(log, named, found, views, given, notes)
    else:
        past = [split.history(int(user), "test") for user in users]
        histories = {view: _Pooled(vectors, past) for view, vectors in views.items()}
        notes.append("histories are the mean of their items' unit vectors; --text-users and --image-users give others")
    try:
        measured = measure_users(histories, views, split, users, seed)
    except ValueError as error:
        raise InputError(f"{text}, {image}: {error}") from None
    # Lengths are evidence where raw vectors are summed. That of a mean says how alike its items are, nothing else.
    leaning = ("items", "histories") if text_users is not None else ("items",)
    norms = {side: norms for side, norms in measured.norms.items() if summed and side in leaning}
    measured = replace(measured, norms=norms)
    shares = measured.neighbour_overlap
    if shares and shares["queries"] >= _ASKED and shares["text_image"] <= 1.5 * shares["chance"]:
        notes.append(
            "texts and pictures agree on neighbours no more than by chance: make sure that both files hold the same"
            " items in the same order"
        )
    conclusion = conclude(measured)
    notes += _mismatch(conclusion, shelves)
    return Diagnosis(measured, conclusion), notes


def _mismatch(found: Mapping[str, Any], shelves: tuple[Vectors, Vectors]) -> Iterator[str]:
    """What to check first where vectors find no more than chance: that each belongs to its item."""
    if found["status"] == "unknown":
        return
    for view, source in zip(SIDES, shelves, strict=True):
        if at_chance(found, view):
            how = "are not in the order of the ids" if source.ids is None else "do not belong to the ids beside them"
            yield (
                f"{WARNING}{SIDES[view][0].lower()} find no more than chance; the likeliest cause is that the vectors"
                f" of {source.path} {how}: check that before anything else"
            )


@dataclass(frozen=True)
class _ByRow:
    """How to name rows that bring no ids of their own."""

    known: Sequence[str]
    """Ids in the order of a prepared data set."""
    logged: Sequence[str]
    """Ids that the log has, in any order."""
    log: Path
    what: str
    """items or users."""
    first_id: int | None

    def names(self, text: Vectors, image: Vectors, notes: list[str]) -> list[str]:
        """An id a row, and a note of what was assumed. Raises InputError as `named_by_row`."""
        count = text.rows.shape[0]
        if self.first_id is None and count == len(self.known):
            notes.append(
                f"{text.path} and {image.path} have no ids: their rows are taken to be in the order of the {self.what}"
                f" of {self.log}"
            )
            return list(self.known)
        named, note = named_by_row(count, self.logged, self.first_id, f"{text.path}, {image.path}", self.what, self.log)
        notes.append(note)
        return named


def _together(text: Vectors, image: Vectors, by_row: _ByRow, notes: list[str]) -> tuple[list[str], dict[str, Rows]]:
    """Both modalities in one order: the ids, and the rows of each.

    Raises:
        InputError: they do not fit each other, or the log.
    """
    what = by_row.what
    if text.ids is not None and image.ids is not None:
        place = {name: row for row, name in enumerate(image.ids)}
        common = [row for row, name in enumerate(text.ids) if name in place]
        if not common:
            raise InputError(
                f"{text.path}, {image.path}: have no id in common (like {text.ids[0]!r} and {image.ids[0]!r}); give"
                f" vectors of the same {what}"
            )
        ids = [text.ids[row] for row in common]
        for side, other in ((text, image), (image, text)):
            _note(
                notes,
                len(side.ids or ()) - len(ids),
                f"{what} of {side.path} are not in {other.path} and were left out",
            )
        rows = np.array([place[name] for name in ids])
        return ids, {"text": Chosen(text.rows, np.array(common)), "image": Chosen(image.rows, rows)}
    count = text.rows.shape[0]
    if count != image.rows.shape[0]:
        raise InputError(
            f"{text.path} has {count:,} rows, {image.path} {image.rows.shape[0]:,}: without ids, row n must be one and"
            f" the same of the {what} in both; give Parquet with ids"
        )
    named = text.ids or image.ids
    if named is None:
        named = by_row.names(text, image, notes)
    else:
        bare = text.path if text.ids is None else image.path
        notes.append(f"{bare} has no ids: its rows are taken to be in the order of the other file")
    return list(named), {"text": text.rows, "image": image.rows}


def _in_order(
    log: Log, ids: list[str], items: dict[str, Rows], path: Path, notes: list[str]
) -> tuple[list[str], dict[str, Rows]]:
    """Items in the order of a prepared data set, others left out: where none lacks vectors, its runs' candidates."""
    row = {name: place for place, name in enumerate(ids)}
    kept = [name for name in log.item_ids if name in row]
    if kept == ids or not kept:
        return ids, items
    _note(notes, len(ids) - len(kept), f"items that have vectors are not in {path} and were left out")
    places = np.array([row[name] for name in kept])
    return kept, {view: Chosen(vectors, places) for view, vectors in items.items()}


def _with_fused(views: Mapping[str, Rows]) -> dict[str, Rows]:
    """Both modalities and their fusion: the sum (Eq. 2), or unit vectors side by side where the widths differ."""
    text, image = views["text"], views["image"]
    fused = _Summed(text, image) if text.shape[1] == image.shape[1] else _Beside(text, image)
    return {"fused": fused, "text": text, "image": image}


def _histories(
    log: Log,
    named: Sequence[str],
    given: Mapping[str, Rows],
    items: Mapping[str, Rows],
    sources: tuple[Vectors, Vectors],
    notes: list[str],
) -> tuple[Ints, dict[str, Rows]]:
    """The users of the log that have vectors, and these: `given` are called `named`, and were read from `sources`.

    Raises:
        InputError: nobody has any, or they do not live in the space of the `items`.
    """
    for source, view in zip(sources, ("text", "image"), strict=True):
        own, wanted = given[view].shape[1], items[view].shape[1]
        if own != wanted:
            raise InputError(
                f"{source.path}: vectors of {own} numbers, those of the items have {wanted}; give one space"
            )
    rows = {name: row for row, name in enumerate(named)}
    users = np.array([user for user, name in enumerate(log.user_ids) if name in rows], dtype=np.int64)
    path = sources[0].path
    if not len(users):
        raise InputError(
            f"{path}: has no vector of any user of the log; ids there are like {log.user_ids[0]!r}, here like"
            f" {named[0]!r}"
        )
    _note(notes, len(log.user_ids) - len(users), f"users have no vector in {path} and were left out")
    _note(notes, len(named) - len(users), f"vectors of {path} belong to no user that can be asked")
    places = np.array([rows[log.user_ids[user]] for user in users])
    return users, {view: Chosen(vectors, places) for view, vectors in _with_fused(given).items()}


def _prepared(path: Path) -> Log:
    data = Dataset.load(path)
    return Log(data.item_ids, data.user_ids, data.sequences, data.fingerprint)


def _read_log(path: Path, notes: list[str]) -> Log:
    if not path.is_file() or path.suffix not in (".parquet", ".csv", ".jsonl"):
        raise InputError(
            f"{path}: give a prepared data set, or a .parquet, .csv or .jsonl table of user_id, item_id, timestamp"
        )
    table = read_table(path)
    if "timestamp" not in table.columns:
        notes.append(f"{path} has no timestamp: its rows are taken to be in order of time")
        table = table.with_row_index("timestamp")
    table, said = clean_events(table, str(path))
    notes += [said] if said else []
    if table.is_empty():
        raise InputError(f"{path}: is empty; give events")
    first = table.select(pl.struct("user_id", "item_id", "timestamp").is_first_distinct()).to_series()
    _note(notes, int((~first).sum()), f"events of {path} are copies of an earlier one and were left out")
    table = table.filter(first).sort("timestamp", maintain_order=True)
    items = table["item_id"].unique(maintain_order=True)
    place = table["item_id"].cast(pl.Enum(items)).to_physical().cast(pl.Int32)
    users = table.select("user_id", place.alias("item")).group_by("user_id", maintain_order=True).agg("item")
    events = Ragged.of([row.to_numpy() for row in users["item"]])
    return Log(items.to_list(), users["user_id"].to_list(), events, "")


def _restricted(log: Log, ids: Sequence[str], path: Path, notes: list[str]) -> Log:
    """The log over the items that have vectors, users with too few events left out.

    Raises:
        InputError: nobody is left.
    """
    if list(ids) == log.item_ids and log.fingerprint:
        return log  # a prepared data set as it is: the candidates are those of its runs
    row = {name: place for place, name in enumerate(ids)}
    places = np.array([row.get(name, -1) for name in log.item_ids], dtype=np.int32)
    _note(notes, int((places < 0).sum()), f"items of {path} have no vector and were left out")
    kept, users = [], []
    for user, events in zip(log.user_ids, log.sequences, strict=True):
        known = places[events]
        known = known[known >= 0]
        if len(known) >= _MIN_EVENTS:
            kept.append(known)
            users.append(user)
    if not users:
        raise InputError(
            f"{path}: no user has {_MIN_EVENTS} events with items that have vectors; ids there are like"
            f" {log.item_ids[0]!r}, with the vectors like {ids[0]!r}"
        )
    _note(notes, len(log.user_ids) - len(users), f"users have fewer than {_MIN_EVENTS} such events and were left out")
    digest = blake2b(digest_size=16)
    for part in (*ids, "", *users):
        digest.update(f"{part}\n".encode())
    digest.update(np.concatenate(kept).astype("<i4").tobytes())
    return Log(list(ids), users, Ragged.of(kept), digest.hexdigest())


def _note(notes: list[str], count: int, what: str) -> None:
    if count:
        notes.append(f"{count:,} {what}")


class _Summed:
    """The raw sum of two views."""

    def __init__(self, text: Rows, image: Rows) -> None:
        self.shape = text.shape
        self._parts = (text, image)

    def __getitem__(self, rows: slice | Ints) -> Floats:
        text, image = (np.asarray(part[rows], dtype=np.float32) for part in self._parts)
        return text + image


class _Beside:
    """The unit vectors of two views, one behind the other."""

    def __init__(self, text: Rows, image: Rows) -> None:
        self.shape = (text.shape[0], text.shape[1] + image.shape[1])
        self._parts = (text, image)

    def __getitem__(self, rows: slice | Ints) -> Floats:
        return np.concatenate([unit(part[rows]) for part in self._parts], axis=1)


class _Pooled:
    """The mean of the unit vectors of each history's items."""

    def __init__(self, items: Rows, histories: Sequence[NDArray[np.int32]]) -> None:
        self.shape = (len(histories), items.shape[1])
        self._items, self._histories = items, histories

    def __getitem__(self, rows: slice | Ints) -> Floats:
        chosen = self._histories[rows] if isinstance(rows, slice) else [self._histories[int(row)] for row in rows]
        ends = np.cumsum([len(history) for history in chosen])[:-1]
        vectors = unit(self._items[np.concatenate(chosen)])
        return np.stack([some.mean(axis=0) for some in np.split(vectors, ends)])
