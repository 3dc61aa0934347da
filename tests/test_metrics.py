from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from vlm2rec.metrics import METRICS, count, hit, mean_interval, ndcg, summarise


@pytest.mark.parametrize("ties", range(6))
@pytest.mark.parametrize("above", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_expectation_over_every_order_of_the_ties(above: int, ties: int, k: int) -> None:
    ranks = [above + order.index(0) for order in permutations(range(ties + 1))]
    assert hit(above, ties, k) == pytest.approx(np.mean([rank < k for rank in ranks]), abs=1e-15)
    gains = [1 / np.log2(rank + 2) if rank < k else 0 for rank in ranks]
    assert ndcg(above, ties, k) == pytest.approx(np.mean(gains), abs=1e-15)


def test_chance_among_a_hundred_negatives() -> None:
    chance = {"H@10": 0.0990, "N@10": 0.0450, "H@20": 0.1980, "N@20": 0.0697}
    constant = summarise(np.array([0]), np.array([100]))
    every_rank = summarise(np.arange(101), np.zeros(101, int))
    assert tuple(constant) == METRICS
    for name, value in chance.items():
        assert constant[name] == pytest.approx(value, abs=5e-5)
        assert every_rank[name] == pytest.approx(constant[name], abs=1e-12)
    scores = np.random.default_rng(0).random((20_000, 101))
    drawn = summarise(*count(scores[:, 1:], scores[:, 0], np.ones((20_000, 100), bool)))
    for name, value in chance.items():
        assert drawn[name] == pytest.approx(value, abs=0.008)


def test_best_and_worst() -> None:
    assert set(summarise([0, 0], [0, 0]).values()) == {1.0}
    assert set(summarise([20, 500], [0, 3]).values()) == {0.0}
    assert hit([0, 9, 10], [0, 1, 0], 10).tolist() == [1.0, 0.5, 0.0]
    assert hit([], [], 10).shape == (0,)


def test_wrong_counts_are_refused() -> None:
    for above, ties in (([-1], [0]), ([0], [-1]), ([0.5], [0])):
        with pytest.raises(ValueError, match="counts"):
            hit(above, ties, 10)
    with pytest.raises(ValueError, match="no users"):
        summarise([], [])


def test_count_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (50, 30)) / 4
    target = rng.integers(0, 6, 50) / 4
    valid = rng.random((50, 30)) > 0.3
    for tolerance in (0.0, 0.25):
        above, ties = count(scores, target, valid, tolerance)
        for row in range(50):
            own = scores[row][valid[row]]
            assert above[row] == sum(s > target[row] + tolerance for s in own)
            assert ties[row] == sum(abs(s - target[row]) <= tolerance for s in own)


def test_infinite_scores_compare_and_nan_is_an_error() -> None:
    scores = np.array([[np.inf, 0.0, -np.inf]], np.float32)
    everything = np.ones((1, 3), bool)
    assert [int(c[0]) for c in count(scores, np.array([np.inf], np.float32), everything)] == [0, 1]
    assert [int(c[0]) for c in count(scores, np.array([-np.inf], np.float32), everything)] == [2, 1]
    for bad, target in ((np.nan, 0.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="NaN"):
            count(np.array([[bad]]), np.array([target]), np.ones((1, 1), bool))


@pytest.mark.parametrize("users", [2, 3, 40, 5000])
def test_intervals_are_those_of_scipy(users: int) -> None:
    values = np.random.default_rng(users).beta(0.3, 2, users)
    low, high = stats.t.interval(0.95, users - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((values.mean(), low, high), rel=1e-9)


def test_intervals_of_one_user_of_equal_ones_and_of_none() -> None:
    assert mean_interval([0.25]) == (0.25, -np.inf, np.inf)
    assert mean_interval([0.25] * 8) == (0.25, 0.25, 0.25)
    assert mean_interval([0, 1]) == pytest.approx((0.5, 0.5 - 12.706 / 2, 0.5 + 12.706 / 2), abs=1e-3)
    with pytest.raises(ValueError, match="no users"):
        mean_interval([])


def test_an_interval_holds_the_mean_19_times_in_20() -> None:
    """Of figures as they are by chance: four users in five at 0, the rest anywhere up to 1."""
    rng = np.random.default_rng(0)
    gains = ndcg(np.arange(101), np.zeros(101, int), 20)
    held = [
        low <= gains.mean() <= high for _, low, high in (mean_interval(rng.choice(gains, 200)) for _ in range(2000))
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
