"""The sanity rows: against loops, without leakage, and chance as it should be."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from vlm2rec.config import ItemKNN, PopRec, Random
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split, Which
from vlm2rec.methods import counts
from vlm2rec.methods.counts import Chance, counting_scorer
from vlm2rec.metrics import METRICS, hit, ndcg
from vlm2rec.tasks import CANDIDATE_SETS, metrics_of, rank_users

ITEMS = 15
METHODS = (PopRec(), ItemKNN(), Random())


def sequences(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, ITEMS - 1, rng.integers(3, 18)).tolist() for _ in range(30)]
    return [*made, [0, *range(ITEMS)]]  # the last item is bought last only, and nobody trains on it


@pytest.fixture
def split(from_sequences: Callable[..., Dataset]) -> Split:
    return Split(from_sequences(sequences(), ITEMS), max_history=4)


def test_popularity_by_a_loop(split: Split) -> None:
    counts = Counter(item for events in sequences() for item in events[:-2])
    scores = counting_scorer(PopRec(), split, np.arange(5), "test", 0).scores(np.arange(5))
    assert scores.shape == (5, ITEMS)
    for row in scores:
        assert row.tolist() == [counts[item] for item in range(ITEMS)]


@pytest.mark.parametrize("which", ["validation", "test"])
def test_neighbours_by_loops(split: Split, which: Which) -> None:
    trained = [set(events[:-2]) for events in sequences()]

    def cosine(one: int, other: int) -> float:
        if one == other:
            return 0.0
        both = sum(one in own and other in own for own in trained)
        return both / np.sqrt(max(1, sum(one in own for own in trained)) * max(1, sum(other in own for own in trained)))

    users = np.array([2, 0, 30, 11])
    scores = counting_scorer(ItemKNN(), split, users, which, 0).scores(np.arange(4))
    expected = np.zeros((4, ITEMS))
    for row, user in enumerate(users):
        history = sequences()[user][: -1 if which == "test" else -2][-4:]
        for item in range(ITEMS):
            expected[row, item] = sum(cosine(bought, item) for bought in set(history))
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert expected.max() > 0.5
    assert (expected[:, ITEMS - 1] == 0).all(), "an item nobody trained on has no neighbours"


@pytest.mark.parametrize(("pairs", "tile"), [(9, 2), (1 << 20, 1024)])
@pytest.mark.parametrize("kept", [0, 1, 40, 1 << 20])
def test_scores_are_the_same_whatever_is_kept(
    split: Split, kept: int, pairs: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cosines at hand, some, or none; a few users and items at a time, or all together; asked for again."""
    users = np.array([2, 0, 30, 11, 7])
    expected = counting_scorer(ItemKNN(), split, users, "test", 0).scores(np.arange(5))
    for name, number in (("_KEPT", kept), ("_PAIRS", pairs), ("_TILE", tile), ("_USERS", 7)):
        monkeypatch.setattr(counts, name, number)
    scorer = counting_scorer(ItemKNN(), split, users, "test", 0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        rows, items = rng.permutation(5), rng.integers(0, ITEMS, (5, 8))
        np.testing.assert_array_equal(scorer.among(rows, items), expected[rows[:, None], items])
        start, stop = np.sort(rng.choice(ITEMS + 1, 2, replace=False))
        np.testing.assert_array_equal(scorer.scores(rows, slice(start, stop)), expected[rows, start:stop])
    np.testing.assert_array_equal(scorer.scores(np.arange(5)), expected)


def test_what_is_kept_is_what_takes_most_work_for_its_size(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user has one item in the history: an item has one cosine, and the more, the more it was bought with it."""
    chosen = int(split.train[4][-1])
    monkeypatch.setattr(Split, "history", lambda *_: np.array([chosen]))
    monkeypatch.setattr(counts, "_KEPT", 3)
    scorer = counting_scorer(ItemKNN(), split, np.array([4]), "test", 0)
    with_it = Counter(item for own in split.train if chosen in own for item in set(own.tolist()))
    best = [item for item, _ in sorted(with_it.items(), key=lambda entry: (-entry[1], entry[0]))[:3]]
    assert isinstance(scorer, counts.Neighbours)
    assert np.flatnonzero(scorer._keep & (scorer._most > 0)).tolist() == sorted(best)


@pytest.mark.parametrize("n_items", [50, 3_000_000])
def test_lots_of_some_items_are_those_of_all(n_items: int) -> None:
    """Whether the numbers between are drawn or skipped."""
    users, rng = np.array([5, 0, 7]), np.random.default_rng(2)
    scorer = Chance(3, users, n_items)
    rows = np.array([2, 1])
    items = rng.integers(0, n_items, (2, 30))
    items[:, 3:6] = [0, items[0, 0], n_items - 1]
    found = scorer.among(rows, items)
    for row, own, lots in zip(rows, items, found, strict=True):
        everything = np.random.Generator(np.random.PCG64([3, int(users[row])])).random(n_items)
        np.testing.assert_array_equal(lots, everything[own])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_what_was_held_out_changes_no_score(from_sequences: Callable[..., Dataset], method: PopRec) -> None:
    """At validation, S[-2] and S[-1] of anybody could be anything."""
    own, rng = sequences(), np.random.default_rng(9)
    changed = [[*events[:-2], *rng.integers(0, ITEMS, 2).tolist()] for events in own[:-1]] + [own[-1]]
    scores = []
    for name, events in (("own", own), ("changed", changed)):
        made = Split(from_sequences(events, ITEMS, name), max_history=4)
        users = np.arange(31)
        scores.append(counting_scorer(method, made, users, "validation", 0).scores(users))
    np.testing.assert_array_equal(*scores)


def test_at_test_only_the_own_history_grows(from_sequences: Callable[..., Dataset]) -> None:
    """Another user's S[-2] or S[-1] does not enter item-kNN; one's own S[-2] does, as part of one's history."""
    own = sequences()
    changed = [list(events) for events in own]
    changed[3][-2:] = [1, 2] if own[3][-2:] != [1, 2] else [2, 1]
    made = [Split(from_sequences(events, ITEMS, name), 4) for name, events in (("own", own), ("changed", changed))]
    users = np.arange(31)
    one, other = (counting_scorer(ItemKNN(), split, users, "test", 0).scores(users) for split in made)
    np.testing.assert_array_equal(np.delete(one, 3, axis=0), np.delete(other, 3, axis=0))
    assert not np.array_equal(one[3], other[3])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_rows_are_users(split: Split, method: PopRec) -> None:
    """Users scored in another order or company score the same."""
    users = np.arange(31)
    everyone = counting_scorer(method, split, users, "test", 3).scores(users)
    some = counting_scorer(method, split, users[[7, 2, 9]], "test", 3)
    np.testing.assert_array_equal(some.scores(np.array([0, 1, 2])), everyone[[7, 2, 9]])
    np.testing.assert_array_equal(some.scores(np.array([2])), everyone[[9]])


def test_lots_are_drawn_from_the_seed(split: Split) -> None:
    rows = np.arange(4)
    first, again, other = (counting_scorer(Random(), split, rows, "test", s).scores(rows) for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert len(np.unique(first)) == first.size


def test_chance_is_chance(from_sequences: Callable[..., Dataset]) -> None:
    """On 100 candidates, the target's rank by lot is uniform over 101; a constant scorer reaches just that."""
    rng = np.random.default_rng(1)
    events = [rng.choice(250, 6, replace=False).tolist() for _ in range(1500)]
    split = Split(from_sequences([*events, list(range(250))], 250))
    users = np.arange(1500)
    ranks = np.arange(101)
    zero = np.zeros(101, dtype=np.int64)
    expected = {
        name: float({"H": hit, "N": ndcg}[name[0]](ranks, zero, int(name[2:])).mean())
        for name in METRICS
    }  # fmt: skip
    assert expected["H@10"] == pytest.approx(10 / 101)
    drawn = rank_users(counting_scorer(Random(), split, users, "test", 0), split, users, "test", 0, ["sampled"])
    found = metrics_of(drawn, "retrieval", "sampled")
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=0.03)  # three standard errors
    flat = counting_scorer(PopRec(), split, users, "test", 0)
    level = rank_users(type(flat)(np.ones(250)), split, users, "test", 0, CANDIDATE_SETS)  # type: ignore[call-arg]
    assert metrics_of(level, "retrieval", "sampled") == pytest.approx(expected)
    assert metrics_of(level, "retrieval", "full")["H@10"] == pytest.approx(10 / 250)
