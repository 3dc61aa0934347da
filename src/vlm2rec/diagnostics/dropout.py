"""Modality dropout at inference: how well does each view of a history find its target (Fig. 1a).

Items keep both modalities; the query keeps both (f2f), only the text view (t2f) or only the image view (v2f).
A modality that has collapsed shows up as v2f (or t2f) at the level of chance while f2f looks healthy. Beyond the
paper, t2t and v2v keep one modality on both sides: what it could do were the other not there.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vlm2rec.diagnostics.space import Floats, Ints, Rows, Space, listing
from vlm2rec.embeddings import one_sided
from vlm2rec.metrics import count, ndcg

PAIRS: dict[str, tuple[str, str]] = {
    "f2f": ("fused", "fused"),
    "t2f": ("text", "fused"),
    "v2f": ("image", "fused"),
    "t2t": ("text", "text"),
    "v2v": ("image", "image"),
}
"""Measurement -> view of the history, view of the items."""

TOLERANCE = 1e-6
"""Cosines closer than this are tied: equal vectors differ by about 1e-7 in float32, depending on their row."""

K = 20
"""N@20 is what the paper's figures show."""

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
    return {name: float(ndcg(above, ties, K).mean()) for name, (above, ties) in counts.items()}


def dropout_counts(queries: Mapping[str, Rows], items: Rows, targets: Ints, candidates: Ints) -> dict[str, Counts]:
    """Per user, the candidates above the target and those tied with it: what `users.parquet` keeps.

    Arguments and errors as for `dropout`. Returns name -> (above (U,), ties (U,)).
    """
    listed, valid = listing(targets, candidates, items.shape[0])
    space = Space(items)
    apart = space.distances(queries_of(queries, "fused", items.shape[1]), listed)
    return {name: counts_of(distances.squared, valid) for name, distances in apart.items()}


def queries_of(histories: Mapping[str, Rows], view: str, width: int) -> dict[str, Rows]:
    """The measurements whose items are of one view, `width` wide, and what each of them asks with."""
    return {
        name: _OneSided(histories[query], query, width)
        for name, (query, items) in PAIRS.items()
        if items == view and query in histories
    }


class _OneSided:
    """Histories of one view as fused items meet them, a few at a time."""

    def __init__(self, rows: Rows, view: str, width: int) -> None:
        self.shape = (rows.shape[0], width)
        self._rows, self._view = rows, view

    def __getitem__(self, rows: slice | Ints) -> Floats:
        return one_sided(self._rows[rows], self._view, self.shape[1])


def counts_of(distances: Floats, valid: NDArray[np.bool_]) -> Counts:
    """(above, ties) from squared distances `(U, 1 + C)`, the target's first; `valid` (U, C) as in `listing`."""
    cosines = distances / -2  # less 1, which moves no rank
    return count(cosines[:, 1:], cosines[:, 0], valid, tolerance=TOLERANCE)


def cosine_counts(queries: Floats, items: Floats, targets: Ints, candidates: Ints) -> Counts:
    """(above, ties) of each target among its candidates by cosine, of histories (U, D) and items (N, D)."""
    listed, valid = listing(targets, candidates, len(items))
    return counts_of(Space(items).distances({"queries": queries}, listed)["queries"].squared, valid)
