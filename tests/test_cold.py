"""N@20 by how often the target was seen: the buckets are a partition of the users, and their frequencies the data's."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.cold import BUCKETS, by_frequency
from vlm2rec.metrics import ndcg
from vlm2rec.tasks import Table, metrics_of, rank_users


@pytest.fixture
def split(from_sequences: Callable[..., Dataset]) -> Split:
    """Sixty users of ten items, some of them bought by many and some by nobody before the end."""
    rng = np.random.default_rng(0)
    chances = np.arange(1, 101) ** -1.2
    return Split(
        from_sequences([rng.choice(100, 10, replace=False, p=chances / chances.sum()).tolist() for _ in range(60)], 100)
    )


def some_ranks(split: Split, task: str = "retrieval", users: np.ndarray | None = None) -> pl.DataFrame:
    users = np.arange(split.n_users) if users is None else users
    scores = np.random.default_rng(len(task)).integers(40, size=(len(users), split.n_items)).astype(float)
    return rank_users(Table(scores), split, users, "test", 0, task=task)


def test_equals_the_definition_one_user_at_a_time(split: Split) -> None:
    users = np.arange(0, 60, 2)[::-1].copy()  # not all of them, and not in the data's order
    ranks = some_ranks(split, users=users)
    expected: dict[str, dict[str, list[float]]] = {}
    for row in ranks.filter(pl.col("view").is_in(["sampled", "full"])).iter_rows(named=True):
        events = split.dataset.sequences[split.dataset.user_ids.index(row["user_id"])]
        seen = sum(int(events[-1]) in own[:-2].tolist() for own in split.dataset.sequences)  # once each at most here
        name = "0" if seen == 0 else "1-5" if seen <= 5 else "6-10" if seen <= 10 else "11-20" if seen <= 20 else "21+"
        expected.setdefault(name, {}).setdefault(row["view"], []).append(float(ndcg(row["above"], row["ties"], 20)))
    found = by_frequency(ranks, split)
    assert list(found) == ["retrieval"] and set(found["retrieval"]) == set(expected)
    assert len(expected) == len(BUCKETS), "a bucket has no user: the test sees too little"
    for name, by_view in expected.items():
        assert found["retrieval"][name]["users"] == len(by_view["full"])
        for view, values in by_view.items():
            assert found["retrieval"][name][view] == pytest.approx(np.mean(values))


def test_buckets_add_up_to_the_whole(split: Split) -> None:
    ranks = pl.concat([some_ranks(split, task) for task in ("retrieval", "seqrec:sasrec", "seqrec:gru4rec")])
    found = by_frequency(ranks, split)
    assert list(found) == ["retrieval", "sasrec", "gru4rec"]
    for name, buckets in found.items():
        task = name if name == "retrieval" else f"seqrec:{name}"
        assert list(buckets) == [bucket for bucket in BUCKETS if bucket in buckets], "out of order"
        assert sum(figures["users"] for figures in buckets.values()) == 60
        for view in ("sampled", "full"):
            whole = sum(figures["users"] * figures[view] for figures in buckets.values()) / 60
            assert whole == pytest.approx(metrics_of(ranks, task, view)["N@20"])
    assert found["sasrec"] != found["gru4rec"]


def test_buckets_meet_without_gap_or_overlap() -> None:
    ranges = list(BUCKETS.values())
    assert ranges[0][0] == 0 and ranges[-1][1] == np.inf
    assert all(most + 1 == least for (_, most), (least, _) in pairwise(ranges))


def test_other_tasks_and_empty_buckets_are_left_out(from_sequences: Callable[..., Dataset]) -> None:
    """One target was bought by six others in training, the rest by nobody."""
    split = Split(from_sequences([[0, 1, 2, 3], [0, 1, 3, 2], *([2, 0, 1, 4 + i] for i in range(6))], 10))
    assert split.popularity[[2, 3]].tolist() == [6, 0]
    ranks = pl.concat([some_ranks(split, task) for task in ("retrieval", "dropout:t2f", "missing:item_text")])
    found = by_frequency(ranks, split)
    assert {task: {name: part["users"] for name, part in own.items()} for task, own in found.items()} == {
        "retrieval": {"0": 7, "6-10": 1}
    }
