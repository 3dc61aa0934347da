import numpy as np
import pytest

from vlm2rec.diagnostics import space as blocks
from vlm2rec.diagnostics.geometry import geometry


def draw(seed=0, users=40, items=30, width=6, listed=10):
    rng = np.random.default_rng(seed)
    candidates = rng.integers(items, size=(users, listed)).astype(np.int32)
    candidates[::4, 3:] = -1
    candidates[5] = -1  # nobody to compare with: counts for A_pos only
    return (
        rng.standard_normal((users, width)),
        rng.standard_normal((items, width)),
        rng.integers(items, size=users),
        candidates,
    )


def test_equals_the_definition():
    queries, items, targets, candidates = draw()
    found = geometry(queries, items, targets, candidates, seed=0)
    s = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    e = items / np.linalg.norm(items, axis=1, keepdims=True)
    distance = ((s[:, None] - e[None]) ** 2).sum(-1)
    a_pos = np.mean([distance[u, t] for u, t in enumerate(targets)])
    a_neg = np.mean(
        [np.mean([distance[u, i] for i in c if i >= 0]) for u, c in enumerate(candidates) if (c >= 0).any()]
    )
    assert found["A_pos"] == pytest.approx(a_pos, rel=1e-6)
    assert found["A_neg"] == pytest.approx(a_neg, rel=1e-6)
    assert found["S"] == pytest.approx(a_neg / a_pos, rel=1e-6)
    # U is an estimate over drawn pairs; all pairs are its expectation.
    assert found["U"] == pytest.approx(np.log(np.exp(-2 * distance).mean()), abs=0.02)


def test_histories_on_their_targets():
    items = np.eye(4)
    targets = np.array([0, 1, 2, 3])
    candidates = (targets[:, None] + np.array([1, 2])) % 4
    found = geometry(items * 5, items, targets, candidates, seed=0)
    assert found["A_pos"] == 0
    assert found["A_neg"] == pytest.approx(2)
    assert np.isfinite(found["S"]) and found["S"] > 1e6


def test_a_collapsed_space_has_no_spread():
    same = np.ones((5, 3))
    found = geometry(same, same, np.arange(5), np.zeros((5, 2), dtype=np.int32), seed=0)
    assert found == {"A_pos": 0, "A_neg": 0, "U": 0, "S": 0}


def test_narrow_spaces_keep_their_digits():
    queries, items, targets, candidates = draw(3)
    shift = 1e3  # all vectors within about a thousandth of one direction
    found = geometry(queries + shift, items + shift, targets, candidates, seed=0)
    s, e = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries + shift, items + shift))
    assert found["A_pos"] == pytest.approx(((s - e[targets]) ** 2).sum(1).mean(), rel=1e-3)


def test_seed_and_blocks(monkeypatch):
    queries, items, targets, candidates = draw(1)
    found = geometry(queries, items, targets, candidates, seed=3, pairs=500)
    assert found["U"] != geometry(queries, items, targets, candidates, seed=4, pairs=500)["U"]
    monkeypatch.setattr(blocks, "BLOCK_FLOATS", 100)
    again = geometry(queries, items, targets, candidates, seed=3, pairs=500)
    assert again == pytest.approx(found, rel=1e-12)


def test_needs_a_negative():
    queries, items, targets, candidates = draw()
    with pytest.raises(ValueError, match="negative"):
        geometry(queries, items, targets, np.full_like(candidates, -1), seed=0)
