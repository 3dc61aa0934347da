"""Distances to listed items, against float64 and one pair at a time."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vlm2rec.diagnostics import space
from vlm2rec.diagnostics.space import UNRELATED, Chosen, Space, blocks, listing, unit, unit_and_length


def draw(seed: int = 0, users: int = 23, items: int = 40, width: int = 7) -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Histories, items and listed items, of lengths from .1 to 10."""
    rng = np.random.default_rng(seed)
    queries, vectors = (
        rng.standard_normal((count, width)) * rng.uniform(0.1, 10, (count, 1)) for count in (users, items)
    )
    return queries, vectors, rng.integers(items, size=(users, 11))


def brute(queries: NDArray[Any], items: NDArray[Any], listed: NDArray[Any]) -> NDArray[np.float64]:
    """Squared distances of unit vectors, in float64 and without the detour over the mean."""
    q, v = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (queries, items))
    return np.array([[((q[u] - v[i]) ** 2).sum() for i in some] for u, some in enumerate(listed)])


def squared(items: Any, queries: Any, listed: Any) -> NDArray[np.float32]:
    return Space(items).distances({"q": queries}, listed)["q"].squared


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_float64(seed: int) -> None:
    queries, items, listed = draw(seed)
    found = Space(items).distances({"one": queries, "other": -queries}, listed)
    np.testing.assert_allclose(found["one"].squared, brute(queries, items, listed), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["other"].squared, brute(-queries, items, listed), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["one"].lengths, np.linalg.norm(queries, axis=1), rtol=1e-6)
    assert found["one"].heard.all() and found["one"].squared.dtype == np.float32


@pytest.mark.parametrize("shift", [1.0, 10.0, 100.0, 1000.0])
def test_narrow_spaces_keep_their_digits(shift: float) -> None:
    """At 1000, cosines are above .999999: 2 - 2 cos in float32 would be off by a tenth."""
    queries, items, listed = draw(1, width=64)
    narrow_queries, narrow = (np.float32(x / np.abs(x).max() + shift / 10) for x in (queries, items))
    right = brute(narrow_queries, narrow, listed)
    np.testing.assert_allclose(squared(narrow, narrow_queries, listed), right, rtol=2e-3, atol=0)
    if shift == 1000:
        q, v = unit(narrow_queries), unit(narrow)
        plain = 2 - 2 * np.einsum("ud,uld->ul", q, v[listed])
        assert np.abs(plain / right - 1).max() > 0.05, "this is what the detour is for"


def test_a_space_holds_unit_vectors_about_their_mean() -> None:
    _, items, _ = draw(2)
    items[[3, 8]] = 0
    made = Space(items)
    real = np.delete(items, [3, 8], axis=0)
    centre = (real / np.linalg.norm(real, axis=1)[:, None]).mean(axis=0)
    np.testing.assert_allclose(made.centre, centre, atol=1e-7)
    np.testing.assert_allclose(made.vectors.sum(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(made.squares, (made.vectors.astype(np.float64) ** 2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(made.lengths, np.linalg.norm(items, axis=1), rtol=1e-6)
    assert np.flatnonzero(made.empty).tolist() == [3, 8] and not made.vectors[[3, 8]].any()


def test_what_is_zero_is_at_a_right_angle_to_everything() -> None:
    queries, items, listed = draw(3)
    queries[5], items[7] = 0, 0
    listed[:, 2] = 7
    found = Space(items).distances({"q": queries}, listed)["q"]
    unheard = (listed == 7) | (np.arange(len(queries)) == 5)[:, None]
    assert (found.heard == ~unheard).all() and (found.squared[unheard] == UNRELATED).all()
    assert found.lengths[5] == 0
    safe, safe_items = queries.copy(), items.copy()
    safe[5], safe_items[7] = 1, 1
    right = brute(safe, safe_items, listed)
    np.testing.assert_allclose(found.squared[~unheard], right[~unheard], rtol=1e-5, atol=1e-6)


def test_nothing_but_zeros() -> None:
    queries, items, listed = draw()
    found = Space(items * 0).distances({"q": queries}, listed)["q"]
    assert (found.squared == UNRELATED).all() and not found.heard.any()


@pytest.mark.parametrize("most", [1, 30, 200, 1000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    queries, items, listed = draw(4)
    whole = Space(items)
    right = whole.distances({"q": queries, "r": queries[::-1]}, listed)
    monkeypatch.setattr(space, "BLOCK_FLOATS", most)
    monkeypatch.setattr(space, "READ_FLOATS", most)
    made = Space(items)
    np.testing.assert_allclose(made.vectors, whole.vectors, atol=1e-7)
    for name, found in whole.distances({"q": queries, "r": queries[::-1]}, listed).items():
        np.testing.assert_array_equal(found.squared, right[name].squared)
        np.testing.assert_array_equal(found.lengths, right[name].lengths)


class Lazy:
    """Rows that are made on demand; remembers the most that were asked for at once."""

    def __init__(self, vectors: NDArray[Any]) -> None:
        self.shape = vectors.shape
        self.most = 0
        self._vectors = vectors

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        assert isinstance(rows, slice | np.ndarray)
        found = self._vectors[rows]
        self.most = max(self.most, len(found))
        return found


def test_rows_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items, listed = draw(5)
    right = squared(items, queries, listed)
    monkeypatch.setattr(space, "BLOCK_FLOATS", 20)
    monkeypatch.setattr(space, "READ_FLOATS", 70)
    asked, shelf = Lazy(queries), Lazy(items)
    np.testing.assert_allclose(squared(shelf, asked, listed), right, rtol=1e-5, atol=1e-6)
    assert asked.most <= 3 and shelf.most == 10


def test_any_float_type_and_any_byte_order_will_do() -> None:
    queries, items, listed = draw(6)
    right = squared(items, queries, listed)
    for dtype in (">f4", "<f8", "float32"):
        np.testing.assert_allclose(squared(items.astype(dtype), queries.astype(dtype), listed), right, atol=1e-6)
    np.testing.assert_allclose(squared(np.asfortranarray(items), queries, listed), right, atol=1e-6)
    half = squared(items.astype(np.float16), queries, listed)
    np.testing.assert_allclose(half, right, atol=5e-3)


def test_chosen_rows() -> None:
    _, items, _ = draw()
    some = Chosen(items, np.array([5, 5, 0, 39]))
    assert some.shape == (4, 7)
    np.testing.assert_array_equal(some[0:3], items[[5, 5, 0]])
    np.testing.assert_array_equal(some[np.array([3, 1])], items[[39, 5]])
    np.testing.assert_array_equal(Chosen(some, np.array([3]))[:], items[[39]])


@pytest.mark.parametrize("length", [1e-37, 1e-20, 1e-3, 1.0, 1e20, 3e37])
def test_very_short_and_very_long_vectors(length: float) -> None:
    """Their squares leave float32."""
    vectors = np.array([[3, 4], [-4, 3]], np.float32) / 5
    made, lengths = unit_and_length(np.concatenate([vectors * np.float32(length), vectors]))
    np.testing.assert_allclose(made, np.concatenate([vectors, vectors]), rtol=1e-5)
    np.testing.assert_allclose(lengths, [length, length, 1, 1], rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    queries, items, listed = draw()
    bad, bad_items = queries.copy(), items.copy()
    bad[4, 2] = bad_items[9, 0] = wrong
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Space(items).distances({"q": bad}, listed)
    with pytest.raises(ValueError, match="NaN or an infinity"):
        Space(bad_items)


@pytest.mark.parametrize("queries", [np.ones((23, 6)), np.ones((22, 7))])
def test_queries_that_do_not_fit(queries: NDArray[Any]) -> None:
    _, items, listed = draw()
    with pytest.raises(ValueError, match=r"odd: queries \(2\d, [67]\) must be \(23, 7\)"):
        Space(items).distances({"odd": queries}, listed)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, 50), st.integers(1, 1000))
def test_slices_cover_every_row_once(count: int, width: int, most: int) -> None:
    some = list(blocks(count, width, most))
    assert [row for part in some for row in range(part.start, part.stop)] == list(range(count))
    assert all((part.stop - part.start) * width <= max(most, width) for part in some)


def test_a_listing_is_the_target_and_its_candidates() -> None:
    listed, valid = listing(np.array([3, 1]), np.array([[4, -1, 2], [0, 2, -1]]), 5)
    assert listed.tolist() == [[3, 4, 0, 2], [1, 0, 2, 0]]
    assert valid.tolist() == [[True, False, True], [True, True, False]]
    wrong: list[tuple[Any, Any, str]] = [
        ([5], [[1]], "outside the 5 items"),
        ([-1], [[1]], "outside"),
        ([1], [[5]], "outside"),
        ([1, 2], [[1]], "must be"),
        ([1], [1], "must be"),
    ]
    for targets, candidates, says in wrong:
        with pytest.raises(ValueError, match=says):
            listing(np.array(targets), np.array(candidates), 5)
    with pytest.raises(ValueError, match="no users"):
        listing(np.empty(0, int), np.empty((0, 3), int), 5)
