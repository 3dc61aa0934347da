"""The ranks that runs keep of every evaluated user, and what was counted on the same candidates beside them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm2rec.comparison import SEQUENTIAL, SETS, VIEWS, Method, Vector
from vlm2rec.errors import InputError
from vlm2rec.metrics import ndcg, summarise
from vlm2rec.runs import BASELINES, Run

Counts = NDArray[np.int64]
_REMAKE = "remove it, and `vlm2rec run` with the same --out makes it again"

Ranks = dict[str, tuple[list[str], list[int], Vector]]
"""Measure ("sampled.f2f", "full.sasrec", …) -> user ids, candidates, N@20; users in one fixed order."""


def read_ranks(run: Path) -> Ranks:
    """What the users of a run found. Raises InputError where it is not evaluated, or its table is none."""
    path = run / "users.parquet"
    if not path.exists():
        raise InputError(f"{run}: not evaluated (users.parquet is missing); finish it with `vlm2rec run`")
    found: Ranks = {}
    for task, view, ids, candidates, above, ties in _ranked(path):
        query = "f2f" if task == "retrieval" else task.rpartition(":")[2]
        if query in (*VIEWS, *SEQUENTIAL) and view in SETS:
            found[f"{view}.{query}"] = (ids, candidates, ndcg(above, ties, 20))
    if "sampled.f2f" not in found:
        raise InputError(f"{path}: no user was ranked against the sampled candidates; {_REMAKE}")
    return found


def _ranked(path: Path) -> Iterator[tuple[str, str, list[str], list[int], Counts, Counts]]:
    """Task, candidate set, user ids, and by user the candidates, those above and those tied; users in a fixed order."""
    import polars as pl

    columns = ("user_id", "task", "view", "candidates", "above", "ties")
    try:
        frame = pl.read_parquet(path, columns=list(columns), glob=False).sort("user_id")
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(f"{path}: not a table with the columns {', '.join(columns)}; {_REMAKE}") from None
    for (task, view), rows in frame.group_by("task", "view", maintain_order=True):
        counts = rows["above"].to_numpy(), rows["ties"].to_numpy()
        yield str(task), str(view), rows["user_id"].to_list(), rows["candidates"].to_list(), *counts


def counted_methods(runs: Sequence[Run], expected: Ranks, given: Collection[str]) -> tuple[list[Method], list[str]]:
    """Chance, popularity and item-kNN beside the runs, but for kinds that are `given`; and which of them are missing.

    Chance follows from the candidates alone. The others are taken from the first run that has them, all of which were
    judged alike.

    Raises:
        InputError: they were counted for others than `expected`, the ranks of the first run.
    """
    ranks: dict[str, dict[str, tuple[Counts, Counts]]] = {"random": {}, "poprec": {}, "itemknn": {}}
    for measure, (_, candidates, _) in expected.items():
        view, query = measure.split(".")
        if query == "f2f":
            ranks["random"][view] = np.zeros(len(candidates), np.int64), np.array(candidates)
    path = next((run.path / BASELINES for run in runs if (run.path / BASELINES).exists()), None)
    for task, view, ids, candidates, above, ties in _ranked(path) if path is not None else ():
        if task in ranks and f"{view}.f2f" in expected:
            if (ids, candidates) != expected[f"{view}.f2f"][:2]:
                raise InputError(f"{path}: counted for other users or candidates than the run's; evaluate it again")
            ranks[task][view] = above, ties
    named = {"random": "chance (exact)", "poprec": "poprec (counted)", "itemknn": "itemknn (counted)"}
    wanted = [kind for kind in ranks if kind not in given]
    methods = [_counted_method(named[kind], kind, ranks[kind]) for kind in wanted if ranks[kind]]
    return methods, [kind for kind in wanted if not ranks[kind]]


def _counted_method(label: str, kind: str, ranks: Mapping[str, tuple[Counts, Counts]]) -> Method:
    values = {
        f"retrieval.{view}.{metric}": (value,)
        for view, counts in ranks.items()
        for metric, value in summarise(*counts).items()
    }
    values["data.evaluated_users"] = (float(len(next(iter(ranks.values()))[0])),)
    users = {f"{view}.f2f": (ndcg(*counts, 20),) for view, counts in ranks.items()}
    return Method(label, kind, (), (), values, users)
