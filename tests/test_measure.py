"""Everything that is measured at once, against plain loops in float64."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from vlm2rec.diagnostics import geometry, spread
from vlm2rec.diagnostics import measure as module
from vlm2rec.diagnostics.dropout import dropout_counts
from vlm2rec.diagnostics.measure import Measured, measure, read_users, stronger, write_users

Views = dict[str, NDArray[Any]]
USERS, ITEMS, WIDTH = 30, 40, 6


def draw(seed: int = 0, combine: str = "sum") -> tuple[list[str], Views, Views, NDArray[Any], NDArray[Any]]:
    """User ids, views of histories, views of items, targets, candidates with gaps."""
    rng = np.random.default_rng(seed)
    views = []
    for count in (USERS, ITEMS):
        text, image = rng.standard_normal((count, WIDTH)) * 3, rng.standard_normal((count, WIDTH)) + 0.3
        fused = text + image if combine == "sum" else np.concatenate([text, image], axis=1)
        views.append({"fused": fused, "text": text, "image": image})
    targets = rng.integers(ITEMS, size=USERS)
    candidates = np.stack([rng.permutation(np.delete(np.arange(ITEMS), t))[:25] for t in targets])
    candidates[::3, 10:] = -1
    return [f"u{user}" for user in range(USERS)], views[0], views[1], targets, candidates


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) if one.any() and other.any() else 0.0


def one_sided(vector: NDArray[Any], view: str, width: int) -> NDArray[Any]:
    if view == "fused" or len(vector) == width:
        return vector
    zeros = np.zeros(width - len(vector))
    return np.concatenate([vector, zeros] if view == "text" else [zeros, vector])


def loops(histories: Views, items: Views, targets: Any, candidates: Any) -> tuple[dict[str, list[float]], Any, Any]:
    """N@20 of each user by measurement; margins by modality; A_pos, A_neg, S by view."""
    gains, margins, shapes = {}, {}, {}
    pairs = {
        "f2f": ("fused", "fused"),
        "t2f": ("text", "fused"),
        "v2f": ("image", "fused"),
        "t2t": ("text", "text"),
        "v2v": ("image", "image"),
    }
    for name, (query, shelf) in pairs.items():
        if query not in histories or shelf not in items:
            continue
        gains[name] = []
        for user, target in enumerate(targets):
            asked = one_sided(histories[query][user], query, items[shelf].shape[1])
            own = cosine(asked, items[shelf][target])
            others = [cosine(asked, items[shelf][item]) for item in candidates[user] if item >= 0]
            above = sum(other > own + 1e-6 for other in others)
            ties = sum(abs(other - own) <= 1e-6 for other in others)
            ranks = range(above, above + ties + 1)
            gains[name].append(float(np.mean([1 / np.log2(rank + 2) if rank < 20 else 0.0 for rank in ranks])))
    for view in histories.keys() & items.keys():
        near, far, found = [], [], []
        for user, target in enumerate(targets):
            asked = histories[view][user]
            there = [i for i in candidates[user] if i >= 0 and items[view][i].any() and asked.any()]
            negatives = [cosine(asked, items[view][i]) for i in there]
            positive = cosine(asked, items[view][target]) if asked.any() and items[view][target].any() else None
            near += [] if positive is None else [2 - 2 * positive]
            far += [2 - 2 * float(np.mean(negatives))] if negatives else []
            found.append(None if positive is None or not negatives else positive - float(np.mean(negatives)))
        margins[view] = found
        shapes[view] = {"A_pos": np.mean(near), "A_neg": np.mean(far), "S": np.mean(far) / np.mean(near)}
    return gains, margins, shapes


def check(found: Measured, histories: Views, items: Views, targets: Any, candidates: Any) -> None:
    gains, margins, shapes = loops(histories, items, targets, candidates)
    assert list(found.counts) == list(gains)
    for name, values in gains.items():
        np.testing.assert_allclose(found.users[name], values, atol=1e-12, err_msg=name)
        assert found.dropout()[name] == pytest.approx(np.mean(values))
    for view in margins.keys() & {"text", "image"}:
        own = found.users[f"margin_{view}"].to_list()
        assert [value is None for value in own] == [value is None for value in margins[view]]
        np.testing.assert_allclose(*([x for x in some if x is not None] for some in (own, margins[view])), atol=1e-6)
    assert found.geometry.keys() == shapes.keys()
    for view, shape in shapes.items():
        assert {name: found.geometry[view][name] for name in shape} == pytest.approx(shape, rel=1e-5)


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_plain_loops(seed: int, combine: str) -> None:
    ids, histories, items, targets, candidates = draw(seed, combine)
    found = measure(ids, histories, items, targets, candidates, 0)
    check(found, histories, items, targets, candidates)
    assert found.users.columns == ["user_id", "f2f", "t2f", "v2f", "t2t", "v2v", "margin_text", "margin_image"]
    assert found.users["user_id"].to_list() == ids
    valid = (candidates >= 0).sum(axis=1)
    chance = [np.mean([1 / np.log2(r + 2) if r < 20 else 0 for r in range(some + 1)]) for some in valid]
    assert found.chance == pytest.approx(np.mean(chance))
    lengths = {side: {v: np.linalg.norm(x, axis=1) for v, x in some.items()} for side, some in _sides(histories, items)}
    for side, own in lengths.items():
        ratio = np.exp(np.mean(np.log(own["text"] / own["image"])))
        right = {"text": own["text"].mean(), "image": own["image"].mean(), "ratio": ratio}
        assert found.norms[side] == pytest.approx(right, rel=1e-6)
    assert found.norms["items"]["ratio"] > 1.5 and not found.silent


def _sides(histories: Views, items: Views) -> list[tuple[str, Views]]:
    return [("histories", histories), ("items", items)]


def test_uniformity_is_about_that_of_all_pairs() -> None:
    ids, histories, items, targets, candidates = draw(2)
    found = measure(ids, histories, items, targets, candidates, 0)
    for view in items:
        all_pairs = [np.exp(-2 * (2 - 2 * cosine(h, i))) for h in histories[view] for i in items[view]]
        assert found.geometry[view]["U"] == pytest.approx(np.log(np.mean(all_pairs)), abs=0.02)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_zero_vectors_are_left_out_and_counted(combine: str) -> None:
    """An item, a target of somebody, and histories that have nothing to say in one view or in all of them."""
    ids, histories, items, targets, candidates = draw(3, combine)
    items["image"][[2, int(targets[1])]] = 0
    histories["text"][4] = 0
    histories["image"][[5, 6]] = 0
    for view in histories:
        histories[view][7] = 0
    found = measure(ids, histories, items, targets, candidates, 0)
    check(found, histories, items, targets, candidates)
    assert found.silent == {
        "fused of histories": 1,
        "text of histories": 2,
        "image of histories": 3,
        "image of items": 2,
    }
    row = {name: value for name, value in found.users.row(7, named=True).items() if name != "user_id"}
    assert row["margin_text"] is None and row["margin_image"] is None
    alone = np.mean([1 / np.log2(r + 2) if r < 20 else 0 for r in range((candidates[7] >= 0).sum() + 1)])
    assert [row[name] for name in found.counts] == pytest.approx([alone] * 5), "who says nothing finds by chance"
    both = (np.abs(histories["text"]).sum(1) > 0) & (np.abs(histories["image"]).sum(1) > 0)
    assert found.norms["histories"]["text"] == pytest.approx(np.linalg.norm(histories["text"][both], axis=1).mean())


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_figures_are_those_of_the_parts(combine: str) -> None:
    """The same counts as `dropout_counts`, the same geometry as `geometry`, rank and mean cosine view by view."""
    ids, histories, items, targets, candidates = draw(4, combine)
    found = measure(ids, histories, items, targets, candidates, 5)
    fused = dropout_counts(histories, items["fused"], targets, candidates)
    for name in ("f2f", "t2f", "v2f"):
        np.testing.assert_array_equal(found.counts[name], fused[name])
    for view in items:
        alone = geometry.geometry(histories[view], items[view], targets, candidates, 5)
        assert found.geometry[view] == pytest.approx(alone, rel=1e-5)
        space = module.Space(items[view])
        assert found.effective_rank[view] == pytest.approx(spread.effective_rank(space, 5))
        assert found.isotropy[view] == pytest.approx(spread.isotropy(space))


def test_common_neighbours_against_plain_loops() -> None:
    ids, histories, items, targets, candidates = draw(5)
    items["fused"] = items["text"] + 0.05 * items["image"]
    shares = measure(ids, histories, items, targets, candidates, 0).neighbour_overlap
    near: dict[str, list[set[int]]] = {}
    for view, vectors in items.items():
        cosines = [[-2 if i == j else cosine(vectors[i], vectors[j]) for j in range(ITEMS)] for i in range(ITEMS)]
        near[view] = [set(np.argsort(row)[::-1][:10].tolist()) for row in cosines]
    for first, second in (("text", "image"), ("text", "fused"), ("image", "fused")):
        common = [len(one & other) / 10 for one, other in zip(near[first], near[second], strict=True)]
        assert shares[f"{first}_{second}"] == pytest.approx(np.mean(common))
    assert shares["text_fused"] > 0.9
    assert (shares["chance"], shares["k"], shares["queries"]) == (pytest.approx(10 / 39), 10, 40)


def test_items_that_lack_a_view_are_not_asked_for_neighbours() -> None:
    ids, histories, items, targets, candidates = draw(6)
    items["image"][:5] = 0
    assert measure(ids, histories, items, targets, candidates, 0).neighbour_overlap["queries"] == 35
    items["image"][:-11] = 0  # ten others at most: everybody is a neighbour
    shares = measure(ids, histories, items, targets, candidates, 0).neighbour_overlap
    assert set(shares) == {"text_fused", "chance", "k", "queries"}


def test_a_catalogue_too_small_for_neighbours() -> None:
    ids, histories, items, _, _ = draw()
    few = {view: vectors[:11] for view, vectors in items.items()}
    candidates = np.tile(np.arange(1, 6), (USERS, 1))
    found = measure(ids, histories, few, np.zeros(USERS, int), candidates, 0)
    assert found.neighbour_overlap == {} and set(found.effective_rank) == {"fused", "text", "image"}


@pytest.mark.parametrize(
    ("sides", "names"),
    [
        (("fused", "text"), ["f2f", "t2f", "t2t"]),
        (("text",), ["t2t"]),
        (("fused",), ["f2f"]),
        (("text", "image"), ["t2t", "v2v"]),
    ],
)
def test_views_may_be_missing(sides: tuple[str, ...], names: list[str]) -> None:
    ids, histories, items, targets, candidates = draw(7)
    some, shelf = ({view: views[view] for view in sides} for views in (histories, items))
    found = measure(ids, some, shelf, targets, candidates, 0)
    check(found, some, shelf, targets, candidates)
    assert list(found.counts) == names and set(found.norms) == (
        {"histories", "items"} if {"text", "image"} <= set(sides) else set()
    )


def test_a_view_of_its_own_is_measured_but_not_dropped() -> None:
    ids, histories, items, targets, candidates = draw(8)
    rng = np.random.default_rng(0)
    histories["extra"], items["extra"] = rng.standard_normal((USERS, 3)), rng.standard_normal((ITEMS, 3))
    found = measure(ids, histories, items, targets, candidates, 0)
    check(found, histories, items, targets, candidates)
    assert list(found.geometry) == ["fused", "text", "image", "extra"] and "extra" in found.isotropy


def test_progress_is_told_view_by_view() -> None:
    ids, histories, items, targets, candidates = draw()
    told: list[tuple[int, str]] = []
    measure(ids, histories, items, targets, candidates, 0, lambda done, view: told.append((done, view)))
    assert told == [(1, "fused"), (2, "text"), (3, "image")]


def test_only_one_view_of_the_items_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest thing there is: a second one would double the memory."""
    alive, most = 0, 0

    class Counted(module.Space):
        def __init__(self, items: Any) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            super().__init__(items)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(module, "Space", Counted)
    ids, histories, items, targets, candidates = draw()
    measure(ids, histories, items, targets, candidates, 0)
    assert (alive, most) == (0, 1)


Change = Mapping[str, Any]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda h, i, t, c: ({"odd": h["text"]}, i, t, c), "no view is on both sides: histories have odd"),
        (lambda h, i, t, c: ({**h, "text": h["text"][:, :2]}, {**i, "text": i["text"]}, t, c), "must be"),
        (lambda h, i, t, c: (h, i, t, c * 0 - 1), "nobody has a target and a negative"),
        (lambda h, i, t, c: (h, {**i, "image": i["image"] * 0}, t, c), "nobody has a target and a negative"),
        (lambda h, i, t, c: (h, {**i, "image": i["image"] * np.nan}, t, c), "NaN"),
        (lambda h, i, t, c: ({v: x[:0] for v, x in h.items()}, i, t[:0], c[:0]), "no users"),
    ],
)
def test_what_cannot_be_measured(wrong: Any, says: str) -> None:
    ids, *rest = draw()
    histories, items, targets, candidates = wrong(*rest)
    with pytest.raises(ValueError, match=says):
        measure(ids[: len(targets)], histories, items, targets, candidates, 0)


def test_users_are_kept_nulls_and_all(tmp_path: Path) -> None:
    ids, histories, items, targets, candidates = draw(9)
    histories["image"][3] = 0
    users = measure(ids, histories, items, targets, candidates, 0).users
    assert users["margin_image"].null_count() == 1
    write_users(users, tmp_path / "deep" / "users.parquet")
    assert read_users(tmp_path / "deep" / "users.parquet").equals(users)  # type: ignore[union-attr]
    assert read_users(tmp_path / "nothing.parquet") is None


def test_the_stronger_modality_by_hand() -> None:
    now = pl.DataFrame({"margin_text": [0.3, 0.1, 0.2, None], "margin_image": [0.1, 0.2, 0.2, 0.5]})
    before = pl.DataFrame({"margin_text": [0.0, 0.0, None, 0.0], "margin_image": [0.1, 0.2, 0.2, 0.5]})
    assert stronger(now) == {"text": pytest.approx(2 / 3), "users": 3}
    assert stronger(now, before) == {"text": pytest.approx(2 / 3), "users": 3, "flipped": 0.5}
    assert stronger(now, now) == {"text": pytest.approx(2 / 3), "users": 3, "flipped": 0}
    assert stronger(now.select("margin_text")) == {}
    assert stronger(now, before.select("margin_text")) == {"text": pytest.approx(2 / 3), "users": 3}
    assert stronger(now.with_columns(margin_text=pl.lit(None, pl.Float64)), before) == {}


def test_measurements_are_a_function_of_their_seed() -> None:
    ids, histories, items, targets, candidates = draw()
    one, same, other = (measure(ids, histories, items, targets, candidates, seed) for seed in (0, 0, 1))
    assert one.users.equals(same.users) and replace(one, users=None, counts=None) == replace(
        same, users=None, counts=None
    )  # type: ignore[arg-type]
    assert one.users.equals(other.users) and one.geometry["text"]["U"] != other.geometry["text"]["U"]
