"""The shape of an embedding space: alignment, uniformity, separability (Sec. 3.3, Eqs. 4-5, Table 1).

All distances are squared Euclidean ones between unit vectors, so they lie in [0, 4]. A separability S at or below
1 says that a history is no nearer to what was bought next than to things that were not: the space is no use.
"""

import numpy as np
from numpy.typing import NDArray

from vlm2rec.diagnostics.dropout import Floats, Ints, check_shapes, unit, user_blocks

PAIRS = 200_000
"""(history, item) pairs drawn for the uniformity."""

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
        pairs: how many of those, drawn uniformly over all users x items, with replacement.

    Returns:
        {"A_pos": …, "A_neg": …, "U": log E exp(-2 d), "S": A_neg / (A_pos + eps)}.

    Raises:
        ValueError: shapes do not fit, a vector is not finite, or nobody has a negative.
    """
    check_shapes(queries, items, targets, candidates)
    histories, catalogue = unit(queries), unit(items)
    positive = float(_distances(histories, catalogue, np.arange(len(histories)), targets[:, None]).mean())
    negative = _mean_negative(histories, catalogue, candidates)
    rng = np.random.default_rng([seed, 0x6E0])  # its own stream: other uses of the same seed draw other numbers
    users, things = rng.integers(len(histories), size=pairs), rng.integers(len(catalogue), size=pairs)
    spread = np.exp(-2.0 * _distances(histories, catalogue, users, things[:, None])).mean()
    return {
        "A_pos": positive,
        "A_neg": negative,
        "U": float(np.log(spread)),
        "S": negative / (positive + EPSILON),
    }


def _mean_negative(histories: NDArray[np.float32], catalogue: NDArray[np.float32], candidates: Ints) -> float:
    """E over users of the mean distance to their own negatives (second part of Eq. 4)."""
    valid = candidates >= 0
    judged = np.flatnonzero(valid.any(axis=1))
    if len(judged) == 0:
        raise ValueError("nobody has a negative candidate; A_neg needs one")
    listed = np.where(valid[judged], candidates[judged], 0)
    distances = _distances(histories, catalogue, judged, listed)
    weights = valid[judged] / valid[judged].sum(axis=1, keepdims=True)
    return float((distances * weights).sum(axis=1).mean())


def _distances(
    histories: NDArray[np.float32], catalogue: NDArray[np.float32], users: Ints, things: Ints
) -> NDArray[np.float64]:
    """Squared distances (n, k) from history `users[n]` to items `things[n, k]`, gathered in blocks."""
    out = np.empty(things.shape, dtype=np.float64)
    for rows in user_blocks(len(users), things.shape[1] * histories.shape[1]):
        # The difference itself, not 2 - 2 cos: untrained spaces are so narrow that the latter loses digits.
        difference = catalogue[things[rows]] - histories[users[rows], None, :]
        out[rows] = np.einsum("bkd,bkd->bk", difference, difference)
    return out
