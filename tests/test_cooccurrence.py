"""Items taken one after the other: scores to the bit by loops, however the work is cut up."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from vlm2rec.data import cooccurrence
from vlm2rec.data.cooccurrence import best_pairs, co_occurrence, neighbours
from vlm2rec.data.ragged import Ragged

Scores = dict[tuple[int, int], float]


def sequences(seed: int = 0, users: int = 60, items: int = 23) -> list[np.ndarray]:
    """Some items far more popular than others; repeats; some sequences empty, or too short to hold a pair."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.12, users) - 1, 40)
    return [(items ** rng.random(length) - 1).astype(np.int32) for length in lengths]


def by_loops(sequences: Sequence[np.ndarray], window: int) -> Scores:
    scores: Scores = defaultdict(float)
    for sequence in sequences:
        found = set()
        for i, before in enumerate(sequence.tolist()):
            for after in sequence[i + 1 : i + 1 + window].tolist():
                if after != before:
                    found.add((before, after))
        for pair in found:
            scores[pair] += 1 / len(sequence)
    return dict(scores)


def whole(parts: list[tuple[np.ndarray, np.ndarray]]) -> Scores:
    return {(a, b): score for pairs, scores in parts for (a, b), score in zip(pairs.tolist(), scores, strict=True)}


@pytest.mark.parametrize("at_once", [1, 50, 1 << 24])
@pytest.mark.parametrize("window", [1, 3, 10, 100])
def test_scores_by_a_double_loop_to_the_bit(window: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "_USERS", 7)
    monkeypatch.setattr(cooccurrence, "_EVENTS", 5)
    parts = list(co_occurrence(Ragged.of(sequences()), 23, window, at_once))
    found, expected = whole(parts), by_loops(sequences(), window)
    assert found == expected
    assert list(found) == sorted(expected)
    assert all(pairs.dtype == np.int64 and scores.dtype == np.float64 for pairs, scores in parts)


def test_parts_are_whole_items_and_no_larger_than_asked() -> None:
    own = sequences(users=500, items=200)
    events = np.bincount(np.concatenate(own), minlength=200)
    parts = list(co_occurrence(Ragged.of(own), 200, 4, 400))
    firsts = [np.unique(pairs[:, 0]) for pairs, _ in parts]
    assert len(parts) > 10
    assert all(one[-1] < other[0] for one, other in pairwise(firsts))
    assert any(len(items) > 1 for items in firsts)
    for items in firsts:
        assert len(items) == 1 or 4 * events[items].sum() <= 400


def test_numbers_stay_within_64_bits() -> None:
    """First item within its part, second item and user make one number: a part has fewer items if need be."""
    items, users = 5_000_000, 500_000
    assert items * items * users > 2**63
    own = [np.array([k, items - 1 - k, items // 2], np.int32) for k in range(40)]
    lengths = np.zeros(users, np.int64)
    lengths[-40:] = 3
    sequences = Ragged.end_to_end(np.concatenate(own), lengths)
    assert whole(list(co_occurrence(sequences, items, 2))) == by_loops(own, 2)


def test_rows_of_a_larger_array_with_gaps_between_them() -> None:
    """Training events are the heads of longer rows, few-shot users some of the rows."""
    own = sequences()
    lengths = np.array([len(events) for events in own])
    heads = Ragged.of(own).heads(lengths - 2)
    few = np.array([3, 4, 9, 31, 55])
    some = Ragged(heads.values, heads.starts[few], heads.lengths[few])
    assert whole(list(co_occurrence(some, 23, 3))) == by_loops([own[k][: max(0, lengths[k] - 2)] for k in few], 3)


@pytest.mark.parametrize("rows", [[], [[]], [[3]], [[3], [4, 4]]])
def test_no_sequence_holds_a_pair(rows: list[list[int]]) -> None:
    own = Ragged.of([np.array(row, np.int32) for row in rows])
    assert list(co_occurrence(own, 9, 10)) == []
    pairs, highest = best_pairs(own, 9, 10, 3, 0.0)
    assert pairs.shape == (0, 2) and highest == 0


@pytest.mark.parametrize("cells", [1, 1 << 20])
@pytest.mark.parametrize(("count", "above"), [(1, 0.0), (3, 0.0), (3, 0.3), (100, 0.0), (100, 1 / 20), (3, 1e9)])
def test_the_best_neighbours_by_sorting(count: int, above: float, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "_CELLS", cells)
    monkeypatch.setattr(cooccurrence, "_AT_ONCE", 90)
    scores = by_loops(sequences(), 3)
    expected = []
    for item in range(23):
        own = sorted((-score, b) for (a, b), score in scores.items() if a == item and score > above)
        expected += [[item, b] for _, b in own[:count]]
    pairs, highest = best_pairs(Ragged.of(sequences()), 23, 3, count, above)
    assert pairs.tolist() == expected and pairs.shape == (len(expected), 2)
    assert highest == max(scores.values())


def test_equal_scores_go_by_the_second_item() -> None:
    """And what scores as much as the bound is not above it."""
    pairs = np.array([[0, k] for k in range(1, 40)] + [[5, 2], [5, 3]])
    scores = np.array([1.0, 2.0] * 19 + [2.0, 0.5, 0.5])
    expected = [[0, k] for k in range(2, 40, 2)] + [[0, 39]]
    assert neighbours(pairs, scores, 20, 0.5).tolist() == expected
    assert neighbours(pairs, scores, 1, 0.0).tolist() == [[0, 2], [5, 2]]
