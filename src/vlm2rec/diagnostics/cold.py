"""How well targets are found by how often they were seen: the cold-start view of a result (Sec. 5.4.3, Fig. 3)."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from vlm2rec.data.splits import Split
from vlm2rec.metrics import ndcg

BUCKETS: dict[str, tuple[int, float]] = {
    "0": (0, 0),
    "1-5": (1, 5),
    "6-10": (6, 10),
    "11-20": (11, 20),
    "21+": (21, np.inf),
}
"""Name -> fewest and most training events of the target; the paper does not say where it cuts."""

SETS = ("sampled", "full")


def by_frequency(ranks: pl.DataFrame, split: Split) -> dict[str, dict[str, dict[str, float]]]:
    """N@20 by training events of the test target: {task: {bucket: {"users": n, "sampled": …, "full": …}}}.

    Tasks are "retrieval" and the sequential models of Task 2; buckets without users are left out.

    Args:
        ranks: as in `users.parquet`.
        split: its `popularity` counts all training events, also where a method was trained on few users.
    """
    row = {user: index for index, user in enumerate(split.dataset.user_ids)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for task in ranks["task"].unique(maintain_order=True):
        if task == "retrieval" or task.startswith("seqrec:"):
            own = ranks.filter(pl.col("task") == task)
            found[task.removeprefix("seqrec:")] = dict(_buckets(own, split, row))
    return found


def _buckets(ranks: pl.DataFrame, split: Split, row: dict[str, int]) -> Iterator[tuple[str, dict[str, float]]]:
    values = {
        view: ndcg(own["above"].to_numpy(), own["ties"].to_numpy(), 20)
        for view in SETS
        if (own := ranks.filter(pl.col("view") == view)).height
    }
    users = ranks.filter(pl.col("view") == next(iter(values)))["user_id"]
    seen = split.popularity[split.targets_of(np.array([row[user] for user in users]), "test")]
    for name, (least, most) in BUCKETS.items():
        inside = (seen >= least) & (seen <= most)
        if inside.any():
            figures = {view: float(gained[inside].mean()) for view, gained in values.items()}
            yield name, {"users": int(inside.sum()), **figures}
