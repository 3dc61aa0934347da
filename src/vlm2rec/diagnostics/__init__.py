"""How well each modality works: by dropping it from the query, in the shape of its space, and in words.

`diagnose` is the whole: measurements (`measure`) and what follows from them (`verdict`). The parts: `dropout`
(Fig. 1a), `geometry` (Table 1), `spread` (rank, neighbours), `space` (what they all stand on).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.measure import Measured, measure_users
from vlm2rec.diagnostics.verdict import conclude
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.indices import check_indices


@dataclass(frozen=True)
class Diagnosis:
    """What was measured, and what follows."""

    measured: Measured
    conclusion: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """`dropout`, `geometry` and `diagnosis`, as `results.json` holds them."""
        geometry = {view: dict(figures) for view, figures in self.measured.geometry.items()}
        return {"dropout": self.measured.dropout(), "geometry": geometry, "diagnosis": self.conclusion}


def diagnose(
    histories: EmbeddingTable,
    items: EmbeddingTable,
    split: Split,
    users: np.ndarray,
    seed: int,
    start: pl.DataFrame | None = None,
    probes: Sequence[Mapping[str, Any]] = (),
) -> Diagnosis:
    """Diagnose the test users on their `sampled` candidates.

    `start` holds `Measured.users` of step 0, `probes` what training probed, where these are known (see `conclude`).
    Raises ValueError as `measure` does; InputError where `users` are no users, or the tables are not theirs and of the
    catalogue's items, in this order.
    """
    check_indices(users, split.n_users, "user", "users", of="the data set")
    histories.check_ids([split.dataset.user_ids[int(user)] for user in users], "users", "the table of histories")
    items.check_ids(split.dataset.item_ids, "items", "the table of items")
    measured = measure_users(histories.views, items.views, split, users, seed)
    return Diagnosis(measured, conclude(measured, start, probes))
