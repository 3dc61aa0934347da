"""Ranking: in chunks or at once, drawn or whole, it is what counting by hand gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

import vlm2rec.tasks as tasks
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split, Which
from vlm2rec.metrics import summarise
from vlm2rec.tasks import CANDIDATE_SETS, Cosine, Table, metrics_of, rank_users, ranks_table

SEED = 4


@dataclass
class Small:
    split: Split
    users: np.ndarray
    scores: np.ndarray


@pytest.fixture
def small(from_sequences: Callable[..., Dataset]) -> Small:
    """Users who buy things twice, one of them the target again; scores of few values, so that ties abound."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 160, rng.integers(3, 25)).tolist() for _ in range(37)]
    sequences[4][-1] = sequences[4][0]
    split = Split(from_sequences([*sequences, list(range(160))], 160))
    users = np.array([0, 3, 4, *range(6, 38)])
    return Small(split, users, rng.integers(0, 6, (len(users), 160)).astype(np.float64))


def by_hand(small: Small, which: Which, kind: str) -> list[tuple[str, int, int, int]]:
    """(user, candidates, above, ties), one user and one item at a time."""
    split, rows = small.split, []
    for row, user in enumerate(small.users):
        events = split.dataset.sequences[user].tolist()
        past, target = (events[:-1], events[-1]) if which == "test" else (events[:-2], events[-2])
        if kind == "full":
            against = [item for item in range(160) if item != target]
        elif kind == "full_unseen":
            against = [item for item in range(160) if item != target and item not in past]
        else:
            drawn = draw_candidates(split, np.array([user]), which, kind, SEED)[0]  # type: ignore[arg-type]
            against = [int(item) for item in drawn if item >= 0]
        scores = small.scores[row]
        above = sum(scores[item] > scores[target] for item in against)
        ties = sum(scores[item] == scores[target] for item in against)
        rows.append((split.dataset.user_ids[user], len(against), int(above), int(ties)))
    return rows


@pytest.mark.parametrize("which", ["test", "validation"])
@pytest.mark.parametrize("at_once", [1, 7, 256])
def test_ranks_by_hand(small: Small, which: Which, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_USERS_AT_ONCE", at_once)
    ranks = rank_users(Table(small.scores), small.split, small.users, which, SEED)
    assert ranks.columns == ["user_id", "task", "view", "candidates", "above", "ties"]
    assert ranks.height == len(small.users) * 4
    assert ranks["ties"].max() > 10 and ranks["above"].max() > 10
    for kind in CANDIDATE_SETS:
        some = ranks.filter(pl.col("view") == kind).select("user_id", "candidates", "above", "ties")
        assert sorted(some.iter_rows()) == sorted(by_hand(small, which, kind))


def test_full_unseen_hides_the_past_alone(small: Small) -> None:
    """The target of the test is no secret kept from validation's ranking: hiding it would give it away."""
    split, users = small.split, np.array([7])
    future = split.target(7, "test")
    assert future not in split.past(7, "validation")
    scores = np.zeros((1, 160))
    scores[0, future] = 1.0
    unseen = rank_users(Table(scores), split, users, "validation", SEED, ["full_unseen"])
    assert unseen["above"].to_list() == [1]
    scores = np.zeros((1, 160))
    scores[0, split.past(7, "validation")] = 1.0
    unseen = rank_users(Table(scores), split, users, "validation", SEED, ["full_unseen", "full"])
    assert unseen["above"].to_list() == [0, len(set(split.past(7, "validation").tolist()))]


def test_a_target_bought_before_still_takes_part(small: Small) -> None:
    user = np.array([4])
    assert small.split.target(4, "test") in small.split.past(4, "test")
    scores = np.zeros((1, 160))
    scores[0, small.split.target(4, "test")] = 1.0
    ranks = rank_users(Table(scores), small.split, user, "test", SEED)
    assert ranks["above"].to_list() == [0] * 4 and ranks["ties"].to_list() == [0] * 4


@pytest.mark.parametrize("kind", CANDIDATE_SETS)
def test_nan_is_an_error(small: Small, kind: str) -> None:
    scores = small.scores.copy()
    scores[5, small.split.target(int(small.users[5]), "test")] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        rank_users(Table(scores), small.split, small.users, "test", SEED, [kind])


def test_fewer_items_than_candidates(tiny_dataset: Dataset) -> None:
    """24 items: everything outside the history is a candidate, and padding is never ranked."""
    split = Split(tiny_dataset)
    users = np.arange(split.n_users)
    ranks = rank_users(Table(np.ones((len(users), split.n_items))), split, users, "test", SEED)
    for kind in ("sampled", "full_unseen"):
        some = ranks.filter(pl.col("view") == kind)
        assert some["candidates"].to_list() == [split.n_items - len(split.seen(user)) for user in users]
        assert some["ties"].to_list() == some["candidates"].to_list()
        assert some["above"].to_list() == [0] * len(users)


def test_a_user_does_not_depend_on_the_others(small: Small) -> None:
    everyone = rank_users(Table(small.scores), small.split, small.users, "test", SEED)
    some = rank_users(Table(small.scores[5:9]), small.split, small.users[5:9], "test", SEED)
    names = [small.split.dataset.user_ids[user] for user in small.users[5:9]]
    expected = everyone.filter(pl.col("user_id").is_in(names))
    assert sorted(some.iter_rows()) == sorted(expected.iter_rows())


def test_equal_vectors_tie(small: Small) -> None:
    """Whatever the order in which a product is summed."""
    rng = np.random.default_rng(1)
    items = rng.standard_normal((160, 96)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    items[20:150] = items[20]
    queries = rng.standard_normal((len(small.users), 96)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ranks = rank_users(Cosine(queries, items), small.split, small.users, "test", SEED, ["full"])
    alike = [20 <= small.split.target(int(user), "test") < 150 for user in small.users]
    assert sum(alike) > 10
    for row, same in zip(ranks.iter_rows(named=True), alike, strict=True):
        assert row["ties"] == (129 if same else 0) or not same


def test_metrics_of_one_task_and_view(small: Small) -> None:
    ranks = pl.concat(
        [
            rank_users(Table(small.scores), small.split, small.users, "test", SEED),
            rank_users(Table(-small.scores), small.split, small.users, "test", SEED, ["sampled"], "dropout:t2f"),
        ]
    )
    for task, view in (("retrieval", "sampled"), ("retrieval", "full"), ("dropout:t2f", "sampled")):
        some = ranks.filter((pl.col("task") == task) & (pl.col("view") == view))
        assert metrics_of(ranks, task, view) == summarise(some["above"].to_numpy(), some["ties"].to_numpy())
    assert metrics_of(ranks, "retrieval", "sampled") != metrics_of(ranks, "dropout:t2f", "sampled")
    with pytest.raises(ValueError, match="no users"):
        metrics_of(ranks, "retrieval", "nothing")


def test_a_table_of_counts() -> None:
    counts = [np.array(some) for some in ([100, 7], [3, 0], [0, 2])]
    made = ranks_table(["a", "b"], "dropout:t2f", "sampled", *counts)
    assert made.rows() == [("a", "dropout:t2f", "sampled", 100, 3, 0), ("b", "dropout:t2f", "sampled", 7, 0, 2)]
    assert made.columns == ["user_id", "task", "view", "candidates", "above", "ties"]
    assert set(made.dtypes[3:]) == {pl.Int32}, "as `rank_users` has them, or they could not be put together"
    assert metrics_of(made, "dropout:t2f", "sampled") == pytest.approx(summarise(counts[1], counts[2]))
