"""Task 1, direct recommendation: rank candidates by score and keep each user's rank.

Whatever the method, evaluation ends in one row a user and candidate set: how many candidates stand strictly above
the target and how many are tied with it. Every metric follows from these two numbers (`vlm2rec.metrics`).

The whole catalogue is scored in tiles of some users by some items, each counted while it is in the cache and then
forgotten: memory does not grow with users times items, and the time is nearly that of the scores alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor

from vlm2rec.data.candidates import CANDIDATES, Kind, draw_candidates
from vlm2rec.data.splits import Split, Which
from vlm2rec.errors import InputError
from vlm2rec.indices import check_indices
from vlm2rec.metrics import count, summarise
from vlm2rec.progress import progress

DRAWN: tuple[Kind, ...] = ("sampled", "matched")
CANDIDATE_SETS = (*DRAWN, "full", "full_unseen")
_USERS_AT_ONCE, _ITEMS_AT_ONCE = 1024, 1024  # a tile: 4 MiB of float32
_GATHERED_AT_ONCE = 1 << 19  # numbers; 2 MiB of float32, about what stays in a core's cache

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Candidates, how many of them are above the target, and how many tied with it; `(b,)` each."""


class Scorer(Protocol):
    """Anything that can score items for users. Rows are those of the evaluated users; higher is better.

    A score depends on its user and item alone: however it is asked for, it comes out the same, give or take far less
    than the tolerance.
    """

    @property
    def tolerance(self) -> float:
        """Scores closer than this are ties."""
        ...

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Floats `(b, n)`: these users against a run of the catalogue. The array is the caller's to overwrite."""
        ...

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Floats `(b, C)`: each of these users against items of its own `(b, C)`, without the rest of the catalogue."""
        ...


@dataclass(frozen=True)
class Products:
    """Dot products of `queries` (U, D) and `items` (N, D), of one float type; the items may be a memory map."""

    queries: np.ndarray
    items: np.ndarray
    tolerance: float

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Products `(b, n)`, on as many threads as torch may use."""
        items = np.require(self.items[columns], requirements="W")  # torch warns of what cannot be written to
        product: np.ndarray = torch.mm(torch.from_numpy(self.queries[rows]), torch.from_numpy(items).T).numpy()
        return product

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Products `(b, C)`."""
        found = np.empty(items.shape, self.items.dtype)
        for part in _slices(len(rows), max(1, _GATHERED_AT_ONCE // (items.shape[1] * self.items.shape[1]))):
            found[part] = np.einsum("bcd,bd->bc", self.items[items[part]], self.queries[rows[part]])
        return found


@dataclass(frozen=True)
class Cosine(Products):
    """Cosine of user and item vectors, both at unit norm.

    float32 products of equal vectors can differ in the last bits, so cosines within 1e-6 count as tied.
    """

    tolerance: float = 1e-6


@dataclass(frozen=True)
class Table:
    """Scores given as a matrix, one row an evaluated user `(U, n_items)`."""

    matrix: np.ndarray
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Those entries `(b, n)`."""
        chosen: np.ndarray = self.matrix[rows, columns]
        return chosen

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Those entries `(b, C)`."""
        chosen: np.ndarray = self.matrix[rows[:, None], items]
        return chosen


def rank_users(
    scorer: Scorer,
    split: Split,
    users: np.ndarray,
    which: Which,
    seed: int,
    sets: Sequence[str] = CANDIDATE_SETS,
    task: str = "retrieval",
) -> pl.DataFrame:
    """One row a user and candidate set: user_id, task, view, candidates, above, ties.

    `which` is 'validation' or 'test'; `seed` draws the candidates. The catalogue is gone through only where `sets` has
    one of the two that need it. Raises ValueError on scores that are NaN, and where a user has no target; InputError
    where `users` are no users, or the scorer is of others or of another catalogue.
    """
    check_indices(users, split.n_users, "user", "users", of="the data set")
    _check_fits(scorer, len(users), split.n_items)
    targets = split.targets_of(users, which)
    kinds = [kind for kind in DRAWN if kind in sets]
    drawn: dict[str, np.ndarray] = {kind: draw_candidates(split, users, which, kind, seed) for kind in kinds}
    counts = {kind: np.empty((3, len(users)), np.int64) for kind in sets}
    with progress("ranking", len(users)) as tell:
        for part in user_blocks(len(users)):
            rows, own = np.arange(part.start, part.stop), targets[part]
            listed = [own[:, None], *(candidates[part] for candidates in drawn.values())]
            scores = scorer.among(rows, np.maximum(np.concatenate(listed, axis=1), 0))
            target, *among = np.split(scores, range(1, scores.shape[1], CANDIDATES), axis=1)
            found: dict[str, Counts] = {}
            for kind, candidates, some in zip(drawn, listed[1:], among, strict=True):
                valid = candidates >= 0
                found[kind] = valid.sum(axis=1), *count(some, target[:, 0], valid, scorer.tolerance)
            if set(sets) - set(drawn):
                past = [split.past(int(user), which) for user in users[part]]
                found |= _against_all(scorer, split.n_items, rows, own, target[:, 0], past)
            for kind in sets:
                counts[kind][:, part] = found[kind]
            tell(part.stop, "")
    ids = [split.dataset.user_ids[user] for user in users]
    return pl.concat([ranks_table(ids, task, kind, *counts[kind]) for kind in sets])


def ranks_table(
    user_ids: Sequence[str], task: str, view: str, candidates: np.ndarray, above: np.ndarray, ties: np.ndarray
) -> pl.DataFrame:
    """Rows of `users.parquet`; the last three are counts, `(U,)` each."""
    counts = {"candidates": candidates, "above": above, "ties": ties}
    return pl.DataFrame(
        {
            "user_id": user_ids,
            "task": task,
            "view": view,
            **{name: count.astype(np.int32) for name, count in counts.items()},
        }
    )


def _check_fits(scorer: Scorer, users: int, items: int) -> None:
    """Raise InputError where a scorer knows its sizes, and they are others."""
    if isinstance(scorer, Products):
        found = len(scorer.queries), len(scorer.items)
    elif isinstance(scorer, Table):
        found = scorer.matrix.shape
    else:
        return
    if found != (users, items):
        raise InputError(
            f"the scorer has {found[0]:,} users and {found[1]:,} items, but {users:,} users are asked for among"
            f" {items:,} items"
        )


def metrics_of(ranks: pl.DataFrame, task: str, view: str) -> dict[str, float]:
    """H@10, N@10, H@20, N@20 of one task and candidate set, as means over users."""
    chosen = ranks.filter((pl.col("task") == task) & (pl.col("view") == view))
    return summarise(chosen["above"].to_numpy(), chosen["ties"].to_numpy())


def user_blocks(count: int) -> Iterator[slice]:
    """Cut users as tiles are."""
    return _slices(count, _USERS_AT_ONCE)


def item_blocks(count: int) -> Iterator[slice]:
    """Cut a catalogue as tiles are."""
    return _slices(count, _ITEMS_AT_ONCE)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _against_all(
    scorer: Scorer, n_items: int, rows: np.ndarray, targets: np.ndarray, target: np.ndarray, past: list[np.ndarray]
) -> dict[str, Counts]:
    """Counts of `full` and `full_unseen`; `target` are the targets' scores `(b,)`, `past` the items before each.

    Everything is counted, and then what takes no part is taken off again, by the very numbers that were counted: the
    same score computed in another way could fall on the other side of a bound.
    """
    low, high = target - scorer.tolerance, target + scorer.tolerance
    bounds = torch.from_numpy(low)[:, None], torch.from_numpy(high)[:, None]
    out = [np.unique(np.append(items, own)) for items, own in zip(past, targets, strict=True)]
    row, item = np.repeat(np.arange(len(rows)), [len(items) for items in out]), np.concatenate(out)
    order = np.argsort(item, kind="stable")
    row, item = row[order], item[order]
    score = np.empty(len(item), target.dtype)
    counted = torch.zeros(2, len(rows), dtype=torch.int64)
    for columns in item_blocks(n_items):
        tile = scorer.scores(rows, columns)
        here = slice(*np.searchsorted(item, (columns.start, columns.stop)))
        score[here] = tile[row[here], item[here] - columns.start]
        counted += _count_tile(torch.from_numpy(tile), *bounds)
    over, level = score > high[row], score >= low[row]
    found = {}
    for kind, absent in (("full", item == targets[row]), ("full_unseen", np.ones(len(item), bool))):
        missing, above, reached = (np.bincount(row[absent & some], minlength=len(rows)) for some in (True, over, level))
        above, reached = counted.numpy() - (above, reached)
        found[kind] = n_items - missing, above, reached - above
    return found


def _count_tile(tile: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How many scores of a tile `(b, n)` are above `high` `(b, 1)`, and at least `low`, `(2, b)`; it is overwritten.

    Raises ValueError on NaN, which compares as if it were below. The sum finds it at a tenth of the price of a search,
    though infinities can make one too.
    """
    if tile.sum().isnan() and tile.isnan().any():
        raise ValueError("a score is NaN; nothing can be ranked by it")
    # Ones and zeros of the tile's own type: torch writes and sums them several times faster than booleans.
    above = torch.gt(tile, high, out=torch.empty_like(tile)).sum(dim=1)
    return torch.stack([above, tile.ge_(low).sum(dim=1)]).long()
