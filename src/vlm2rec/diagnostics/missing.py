"""What is still found where titles or pictures are missing: nothing in the paper says, so it is measured.

A shop has items with a title and no picture yet, and shoppers who bought such. Each case takes one modality away from
one side, the other side stays whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Catalogue
from vlm2rec.data.pictures.fitting import Pixels
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.dropout import counts_of
from vlm2rec.diagnostics.space import Space, listing
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import embed, lend
from vlm2rec.encoder import Encoder
from vlm2rec.progress import progress
from vlm2rec.tasks import DRAWN, ranks_table

Left = Literal["text", "image"]

CASES: dict[str, tuple[str, Left | None]] = {
    "item_text": ("target", "text"),
    "item_image": ("target", "image"),
    "history_text": ("history", "text"),
    "history_image": ("history", "image"),
    "mixed": ("all", None),
}
"""Case -> where something is missing (the target alone: a new item, say), and which modality is left there.

"mixed" is a catalogue in which a third of the items has titles alone and a third pictures alone, in histories too.
"""


@dataclass(frozen=True)
class Partial:
    """A catalogue some of whose items lack their titles or their pictures."""

    titles: Sequence[str]
    pictures: Sequence[Pixels | None]

    @classmethod
    def of(cls, catalogue: Catalogue, left: Left) -> "Partial":
        """What is `left` of a catalogue."""
        count = len(catalogue.titles)
        if left == "text":
            return cls(catalogue.titles, [None] * count)
        return cls([""] * count, catalogue.pictures)

    @classmethod
    def mixed(cls, catalogue: Catalogue, seed: int) -> "Partial":
        """A third of the items whole, a third with titles alone, a third with pictures alone, drawn from the seed."""
        drawn = np.random.default_rng([seed, 0x3155]).integers(3, size=len(catalogue.titles))
        titles = ["" if lot == 1 else title for lot, title in zip(drawn, catalogue.titles, strict=True)]
        pictures = [None if lot == 2 else catalogue.pictures[item] for item, lot in enumerate(drawn)]
        return cls(titles, pictures)


def missing_parts(encoder: Encoder, split: Split, users: np.ndarray, seed: int, run: Path) -> pl.DataFrame:
    """Rows of `users.parquet` under the tasks "missing:CASE", on drawn candidates, for test users.

    `run` has the whole vectors of `items/` and of the users' `histories/`. What lacks a part is embedded in memory: the
    users' targets and histories, and for "mixed" the catalogue.
    """
    items, histories = (EmbeddingTable.load(run / name) for name in ("items", "histories"))
    targets = split.targets_of(users, "test")
    pasts = [split.history(int(user), "test").tolist() for user in users]
    candidates = {kind: draw_candidates(split, users, "test", kind, seed) for kind in DRAWN}
    ids, space = [split.dataset.user_ids[int(user)] for user in users], Space(items["fused"])
    frames = []
    with progress("without titles or pictures", len(CASES)) as tell:
        for done, (case, (side, left)) in enumerate(CASES.items(), start=1):
            catalogue = Partial.mixed(split.dataset, seed) if left is None else Partial.of(split.dataset, left)
            queries, asked, to_target = histories["fused"], space, None
            if side != "target":
                queries = embed(encoder, catalogue, pasts)["fused"]
            if side == "target":
                to_target = _to_targets(encoder, catalogue, items, queries, targets)
            if side == "all":
                everything = embed(encoder, catalogue, [[item] for item in range(split.n_items)])
                asked = Space(lend(encoder, everything)["fused"])
            for kind, drawn in candidates.items():
                listed, valid = listing(targets, drawn, split.n_items)
                apart = asked.distances({case: queries}, listed)[case].squared
                if to_target is not None:
                    apart[:, :1] = to_target
                frames.append(ranks_table(ids, f"missing:{case}", kind, valid.sum(axis=1), *counts_of(apart, valid)))
            tell(done, case)
    return pl.concat(frames)


def _to_targets(
    encoder: Encoder, catalogue: Catalogue, items: EmbeddingTable, queries: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Squared distance `(U, 1)` of each history to its target as the partial catalogue has it."""
    distinct, place = np.unique(targets, return_inverse=True)
    alone = lend(encoder, embed(encoder, catalogue, [[int(item)] for item in distinct]), items.views, distinct)
    return Space(alone["fused"]).distances({"target": queries}, place[:, None])["target"].squared
