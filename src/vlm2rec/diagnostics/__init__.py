"""Measurements of how well each modality works: by dropping it from the query, and in the shape of its space."""

from typing import Any

import numpy as np

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.dropout import dropout as dropout_of  # `dropout` and `geometry` stay the modules
from vlm2rec.diagnostics.geometry import geometry as geometry_of
from vlm2rec.embeddings import EmbeddingTable


def diagnose(
    histories: EmbeddingTable, items: EmbeddingTable, split: Split, users: np.ndarray, seed: int
) -> dict[str, Any]:
    """Modality dropout and geometry of the test users on their `sampled` candidates, as `results.json` holds them."""
    targets = np.array([split.target(int(user), "test") for user in users])
    candidates = draw_candidates(split, users, "test", "sampled", seed)
    return {
        "dropout": dropout_of(histories.views, items.views["fused"], targets, candidates),
        "geometry": {
            view: geometry_of(histories.views[view], items.views[view], targets, candidates, seed)
            for view in histories.views
        },
    }
