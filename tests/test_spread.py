"""Effective rank, mean cosine and neighbours: known spectra and brute force."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlm2rec.diagnostics import spread
from vlm2rec.diagnostics.space import Space
from vlm2rec.diagnostics.spread import effective_rank, isotropy, nearest, neighbour_queries, overlap


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def crosses(directions: int, width: int) -> NDArray[np.float64]:
    """Both ends of `directions` orthogonal axes in a space that may be wider, turned about: mean 0, equal variances."""
    axes = np.concatenate([np.eye(directions, width), -np.eye(directions, width)])
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((width, width)))
    return axes @ turn


@pytest.mark.parametrize(("directions", "width"), [(1, 8), (2, 8), (5, 8), (8, 8), (7, 40), (40, 40)])
def test_equal_orthogonal_directions_are_counted(directions: int, width: int) -> None:
    """Both where there are more items than numbers and where there are fewer."""
    assert effective_rank(Space(crosses(directions, width)), 0) == pytest.approx(directions, rel=1e-4)


def test_a_known_spectrum_of_unequal_variances() -> None:
    """Variances in shares 4:2:1:1 have the entropy 1.75 bits."""
    axes = np.repeat(np.eye(4), [4, 2, 1, 1], axis=0)
    assert effective_rank(Space(np.concatenate([axes, -axes])), 0) == pytest.approx(2**1.75, rel=1e-4)


def test_rank_is_about_the_mean_and_lengths_are_no_matter() -> None:
    """On a line that does not pass through the origin: one direction."""
    angle = np.linspace(0.1, 0.3, 50)
    arc = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    assert effective_rank(Space(arc), 0) == pytest.approx(1, abs=0.02)
    stretched = arc * np.random.default_rng(0).uniform(0.1, 10, (50, 1))
    assert effective_rank(Space(stretched), 0) == pytest.approx(effective_rank(Space(arc), 0), rel=1e-4)


def test_what_is_all_alike_has_no_rank() -> None:
    same = np.tile(np.random.default_rng(0).standard_normal(300), (50, 1))
    assert effective_rank(Space(same), 0) == 0
    assert isotropy(Space(same)) == pytest.approx(1, abs=1e-6)


def test_zero_vectors_take_no_part() -> None:
    whole = np.random.default_rng(1).standard_normal((30, 6)) + 0.5
    holes = np.insert(whole, [0, 7, 30], 0, axis=0)
    assert effective_rank(Space(holes), 0) == pytest.approx(effective_rank(Space(whole), 0), rel=1e-5)
    assert isotropy(Space(holes)) == pytest.approx(isotropy(Space(whole)), abs=1e-7)


def test_rank_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space(np.random.default_rng(2).standard_normal((500, 12)))
    whole = effective_rank(space, 0)
    monkeypatch.setattr(spread, "SAMPLED", 200)
    assert effective_rank(space, 0) == effective_rank(space, 0) != effective_rank(space, 1)
    assert effective_rank(space, 0) == pytest.approx(whole, rel=0.05)
    monkeypatch.setattr(spread, "SAMPLED", 2)
    assert effective_rank(space, 0) == pytest.approx(1), "about the mean of the two, not of all"


@pytest.mark.parametrize("shift", [0.0, 0.3, 20.0])
def test_isotropy_is_the_mean_cosine_of_all_pairs(shift: float) -> None:
    vectors = np.random.default_rng(4).standard_normal((31, 9)) * 3 + shift
    cosines = unit(vectors) @ unit(vectors).T
    pairs = cosines[~np.eye(31, dtype=bool)]
    assert isotropy(Space(vectors)) == pytest.approx(pairs.mean(), abs=1e-6)


def test_nearest_equals_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((80, 6)) + 2
    vectors[11] = 0
    queries = np.array([0, 3, 79, 40, 41, 7])
    cosines = unit(np.where(vectors == 0, 1e-9, vectors)) @ unit(np.where(vectors == 0, 1e-9, vectors)).T
    cosines[:, 11] = -2
    right = [set(np.argsort(-np.where(np.arange(80) == q, -3, cosines[q]))[:4].tolist()) for q in queries]
    space = Space(vectors)
    before = space.vectors.copy()
    assert [set(row) for row in nearest(space, queries, 4).tolist()] == right
    monkeypatch.setattr(spread, "_AT_ONCE", 2)
    assert [set(row) for row in nearest(space, queries, 4).tolist()] == right
    np.testing.assert_array_equal(space.vectors, before)


def test_neighbours_in_a_narrow_space() -> None:
    rng = np.random.default_rng(6)
    vectors = np.float32(rng.standard_normal((60, 32)) / 100 + 1)
    wide = unit(vectors.astype(np.float64))
    apart = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    found = nearest(Space(vectors), np.arange(60), 5)
    assert [set(row) for row in found.tolist()] == [set(row) for row in np.argsort(apart, axis=1)[:, :5].tolist()]


def test_overlap_by_hand() -> None:
    first = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2, 3]])
    second = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [3, 9, 8, 0]])
    assert overlap(first, second) == pytest.approx((4 + 0 + 2) / 12)
    assert overlap(first, first) == 1
    assert overlap(first[1:2], second[1:2]) == 0


def test_overlap_of_unrelated_spaces_is_chance() -> None:
    rng = np.random.default_rng(7)
    one, other = (nearest(Space(rng.standard_normal((400, 10))), np.arange(400)) for _ in range(2))
    assert overlap(one, other) == pytest.approx(10 / 399, abs=0.008)


def test_queries_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert neighbour_queries(30, 0).tolist() == list(range(30))
    monkeypatch.setattr(spread, "QUERIES", 10)
    some = neighbour_queries(30, 0)
    assert len(set(some.tolist())) == 10 and (np.diff(some) > 0).all() and 0 <= some.min() <= some.max() < 30
    assert some.tolist() == neighbour_queries(30, 0).tolist() != neighbour_queries(30, 1).tolist()
