"""Modality dropout at inference: how well does each view of a history find the fused target (Fig. 1a).

Items keep both modalities; the query keeps both (f2f), only the text view (t2f) or only the image view (v2f).
A modality that has collapsed shows up as v2f (or t2f) at the level of chance while f2f looks healthy.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vlm2rec.metrics import count, ndcg

NAMES: dict[str, str] = {"fused": "f2f", "text": "t2f", "image": "v2f"}
"""Query view -> name of the measurement."""

TOLERANCE = 1e-6
"""Cosines closer than this are tied: equal vectors differ by about 1e-7 in float32, depending on their row."""

BLOCK_FLOATS = 1 << 24
"""Numbers gathered at once (64 MiB of float32)."""

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Counts = tuple[NDArray[np.int64], NDArray[np.int64]]


def dropout(queries: Mapping[str, Floats], items: Floats, targets: Ints, candidates: Ints) -> dict[str, float]:
    """N@20 of every query view against the fused items, ties as expectations.

    Args:
        queries: view ("fused", "text", "image") -> (U, D) raw vectors of the histories; views may be missing.
        items: (N, D) raw fused vectors of the whole catalogue.
        targets: (U,) item index bought next.
        candidates: (U, C) item indices to rank the target against, -1 where there is none.

    Returns:
        {"f2f": …, "t2f": …, "v2f": …} for the views given.

    Raises:
        ValueError: shapes do not fit, or a vector is not finite.
    """
    counts = dropout_counts(queries, items, targets, candidates)
    return {name: float(ndcg(above, ties, 20).mean()) for name, (above, ties) in counts.items()}


def dropout_counts(queries: Mapping[str, Floats], items: Floats, targets: Ints, candidates: Ints) -> dict[str, Counts]:
    """Per user, the candidates above the target and those tied with it: what `users.parquet` keeps.

    Arguments and errors as for `dropout`. Returns name -> (above (U,), ties (U,)).
    """
    unit_items = unit(items)
    return {
        NAMES[view]: cosine_counts(unit(vectors), unit_items, targets, candidates)
        for view, vectors in queries.items()
        if view in NAMES
    }


def cosine_counts(queries: Floats, items: Floats, targets: Ints, candidates: Ints) -> Counts:
    """(above, ties) of each target among its candidates by the dot product of unit vectors.

    Args: as for `dropout`, `queries` (U, D) and `items` (N, D) already at unit length. Users are taken in blocks,
    so memory stays bounded whatever U and C are.
    """
    check_shapes(queries, items, targets, candidates)
    above = np.zeros(len(queries), dtype=np.int64)
    ties = np.zeros(len(queries), dtype=np.int64)
    for rows in user_blocks(len(queries), (candidates.shape[1] + 1) * queries.shape[1]):
        valid = candidates[rows] >= 0
        listed = np.concatenate([targets[rows, None], np.where(valid, candidates[rows], 0)], axis=1)
        # The target goes through the same product as its rivals, so that equal vectors score alike.
        scores = np.matmul(items[listed], queries[rows, :, None])[..., 0]  # (b, 1 + C)
        above[rows], ties[rows] = count(scores[:, 1:], scores[:, 0], valid, tolerance=TOLERANCE)
    return above, ties


def unit(vectors: Floats) -> NDArray[np.float32]:
    """Rows at unit length as float32, (n, D); a row of zeros stays zero. Raises ValueError if one is not finite."""
    wide = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(wide).all():
        raise ValueError("embeddings hold a NaN or an infinity; encode again")
    lengths = np.linalg.norm(wide.astype(np.float64), axis=1, keepdims=True)
    return (wide / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def user_blocks(users: int, floats_a_user: int) -> list[slice]:
    """Slices over the users such that one block gathers at most about `BLOCK_FLOATS` numbers."""
    step = max(1, BLOCK_FLOATS // max(1, floats_a_user))
    return [slice(start, start + step) for start in range(0, users, step)]


def check_shapes(queries: Floats, items: Floats, targets: Ints, candidates: Ints) -> None:
    """Raise ValueError unless queries (U, D), items (N, D), targets (U,) and candidates (U, C) fit each other."""
    users = len(queries)
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries {queries.shape} and items {items.shape} must be (U, D) and (N, D)")
    if targets.shape != (users,) or candidates.ndim != 2 or len(candidates) != users:
        raise ValueError(
            f"targets {targets.shape} and candidates {candidates.shape} must be ({users},) and ({users}, C)"
        )
    if users == 0:
        raise ValueError("no users to measure")
    if targets.min() < 0 or max(int(targets.max()), int(candidates.max(initial=-1))) >= len(items):
        raise ValueError(f"a target or candidate lies outside the {len(items)} items")
