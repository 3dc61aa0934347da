"""Task 1, direct recommendation: rank candidates by score and keep each user's rank.

Whatever the method, evaluation ends in one row a user and candidate set: how many candidates stand strictly above
the target and how many are tied with it. Every metric follows from these two numbers (`vlm2rec.metrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from vlm2rec.data.candidates import Kind, draw_candidates
from vlm2rec.data.splits import Split, Which
from vlm2rec.metrics import count, count_full, summarise

DRAWN: tuple[Kind, ...] = ("sampled", "matched")
CANDIDATE_SETS = (*DRAWN, "full", "full_unseen")
_USERS_AT_ONCE = 256


class Scorer(Protocol):
    """Anything that can score the whole catalogue for some users."""

    @property
    def tolerance(self) -> float:
        """Scores closer than this are ties."""
        ...

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores `(b, n_items)` of the users in these rows of the evaluated users; higher is better."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Cosine of user and item vectors: `queries` (U, D) and `items` (N, D), both at unit norm.

    float32 products of equal vectors can differ in the last bits, so cosines within 1e-6 count as tied.
    """

    queries: np.ndarray
    items: np.ndarray
    tolerance: float = 1e-6

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Cosines `(b, n_items)`."""
        product: np.ndarray = self.queries[rows] @ self.items.T
        return product


@dataclass(frozen=True)
class Table:
    """Scores given as a matrix, one row an evaluated user `(U, n_items)`."""

    matrix: np.ndarray
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Those rows."""
        chosen: np.ndarray = self.matrix[rows]
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

    `which` is 'validation' or 'test'; `seed` draws the candidates. Raises ValueError on scores that are NaN.
    """
    targets = np.array([split.target(int(user), which) for user in users])
    drawn = {kind: draw_candidates(split, users, which, kind, seed) for kind in DRAWN if kind in sets}
    frames = []
    for start in range(0, len(users), _USERS_AT_ONCE):
        rows = np.arange(start, min(start + _USERS_AT_ONCE, len(users)))
        scores = scorer.scores(rows)
        for kind in sets:
            if kind in drawn:
                candidates = drawn[kind][rows]
                valid = candidates >= 0
                among = np.take_along_axis(scores, np.maximum(candidates, 0), axis=1)
                target = np.take_along_axis(scores, targets[rows, None], axis=1)[:, 0]
                above, ties = count(among, target, valid, scorer.tolerance)
                candidates_of = valid.sum(axis=1)
            else:
                hidden = [split.past(int(user), which) for user in users[rows]] if kind == "full_unseen" else None
                above, ties = count_full(scores, targets[rows], hidden, scorer.tolerance)
                candidates_of = _catalogue_sizes(split.n_items, targets[rows], hidden)
            ids = [split.dataset.user_ids[user] for user in users[rows]]
            frames.append(ranks_table(ids, task, kind, candidates_of, above, ties))
    return pl.concat(frames)


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


def metrics_of(ranks: pl.DataFrame, task: str, view: str) -> dict[str, float]:
    """H@10, N@10, H@20, N@20 of one task and candidate set, as means over users."""
    chosen = ranks.filter((pl.col("task") == task) & (pl.col("view") == view))
    return summarise(chosen["above"].to_numpy(), chosen["ties"].to_numpy())


def _catalogue_sizes(n_items: int, targets: np.ndarray, hidden: list[np.ndarray] | None) -> np.ndarray:
    """How many items each target is ranked against, itself left out."""
    if hidden is None:
        return np.full(len(targets), n_items - 1)
    return np.array([n_items - len(set(items.tolist()) | {int(t)}) for items, t in zip(hidden, targets, strict=True)])
