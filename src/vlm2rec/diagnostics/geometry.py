"""The shape of an embedding space: alignment, uniformity, separability (Sec. 3.3, Eqs. 4-5, Table 1).

All distances are squared Euclidean ones between unit vectors, so they lie in [0, 4]. A separability S at or below
1 says that a history is no nearer to what was bought next than to things that were not: the space is no use.
"""

import numpy as np
from numpy.typing import NDArray

from vlm2rec.diagnostics.space import Chosen, Distances, Floats, Ints, Rows, Space, listing

PAIRS = 200_000
"""(history, item) pairs drawn for the uniformity, at least."""

HISTORIES = 20_000
"""Histories that these pairs are drawn from, at most."""

EPSILON = 1e-8
"""Keeps S finite when every history sits exactly on its target (Eq. 5; the paper gives no value)."""


def geometry(
    queries: Floats, items: Floats, targets: Ints, candidates: Ints, seed: int, *, pairs: int = PAIRS
) -> dict[str, float]:
    """A_pos, A_neg, U and S of one view.

    Args:
        queries: (U, D) raw vectors of the histories in one view.
        items: (N, D) raw vectors of the catalogue in the same view.
        targets: (U,) item index bought next: the positive pairs D of Eq. 4.
        candidates: (U, C) sampled negatives P_n, -1 where there is none. Users count alike, however many they have.
        seed: fixes the pairs P_u that the uniformity is estimated on.
        pairs: how many of those, at least.

    Returns:
        {"A_pos": …, "A_neg": …, "U": log E exp(-2 d), "S": A_neg / (A_pos + eps)}. Vectors of zeros take no part.

    Raises:
        ValueError: shapes do not fit, a vector is not finite, or nobody has a negative.
    """
    listed, valid = listing(targets, candidates, len(items))
    space = Space(items)
    apart = space.distances({"queries": queries}, listed)["queries"]
    return {**alignment(apart, valid), "U": uniformity(space, queries, apart.lengths > 0, seed, pairs)}


def margins(apart: Distances, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cosine to the target less the mean cosine to the negatives, `(U,)` (Eq. 6); NaN where one is missing.

    `apart` holds distances `(U, 1 + C)`, the target's first; `valid` (U, C) says which candidates there are.
    """
    positive = np.where(apart.heard[:, 0], apart.squared[:, 0], np.nan).astype(np.float64)
    found: NDArray[np.float64] = (_negatives(apart, valid) - positive) / 2
    return found


def alignment(apart: Distances, valid: NDArray[np.bool_]) -> dict[str, float]:
    """A_pos, A_neg and S (Eqs. 4-5); arguments as for `margins`. Raises ValueError where there is nothing to average.

    A_neg is a mean over users of the mean distance to their own negatives.
    """
    negative, known = _negatives(apart, valid), apart.heard[:, 0]
    if np.isnan(negative).all() or not known.any():
        raise ValueError("nobody has a target and a negative candidate that can be compared; A_pos and A_neg need both")
    a_pos = float(apart.squared[known, 0].mean(dtype=np.float64))
    a_neg = float(np.nanmean(negative))
    return {"A_pos": a_pos, "A_neg": a_neg, "S": a_neg / (a_pos + EPSILON)}


def uniformity(space: Space, queries: Rows, speaking: NDArray[np.bool_], seed: int, pairs: int = PAIRS) -> float:
    """log E exp(-2 d) over pairs of any history and any item (last part of Eq. 4).

    `queries` (U, D) raw vectors, of which those that are `speaking` (U,) take part; each of at most `HISTORIES` of
    them meets equally many items, drawn with replacement.
    """
    rng = np.random.default_rng([seed, 0x6E0])  # its own stream: other uses of the same seed draw other numbers
    users, things = np.flatnonzero(speaking), np.flatnonzero(~space.empty)
    if len(users) > HISTORIES:
        users = np.sort(rng.choice(users, HISTORIES, replace=False))
    listed = things[rng.integers(len(things), size=(len(users), -(-pairs // len(users))))]
    apart = space.distances({"queries": Chosen(queries, users)}, listed)["queries"].squared
    return float(np.log(np.exp(-2.0 * apart.astype(np.float64)).mean()))


def _negatives(apart: Distances, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean squared distance of each history to its own negatives, `(U,)`; NaN where it has none."""
    counted = valid & apart.heard[:, 1:]
    total = np.where(counted, apart.squared[:, 1:], 0).sum(axis=1, dtype=np.float64)
    number = counted.sum(axis=1)
    found: NDArray[np.float64] = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return found
