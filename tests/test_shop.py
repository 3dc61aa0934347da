import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import (
    COLOURS,
    ShopWorld,
    is_drawn,
    open_shop,
    oracle_scores,
    prepared_oracle,
    world_of,
)
from vlm2rec.data.sources.shop_brush import FORMS, PATTERNS, Look
from vlm2rec.data.sources.shop_drawing import KINDS, draw
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.metrics import count, summarise

SMALL = ShopWorld(products=60, shoppers=80)
WORLD = ShopWorld(products=150, shoppers=300)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("shop") / "data"
    prepare(WORLD, out, picture_size=64)
    return Dataset.load(out)


def n20(scores: np.ndarray, split: Split) -> float:
    users = np.arange(split.n_users)
    candidates = draw_candidates(split, users, "test", "sampled", 0)
    targets = np.array([split.target(int(user), "test") for user in users])
    among = np.take_along_axis(scores, np.maximum(candidates, 0), axis=1)
    above, ties = count(among, scores[users, targets], candidates >= 0)
    return summarise(above, ties)["N@20"]


def test_a_world_is_a_function_of_its_parameters() -> None:
    first = open_shop(SMALL)
    open_shop.cache_clear()
    again = open_shop(SMALL)
    assert [p.title for p in again.products] == [p.title for p in first.products]
    assert all(np.array_equal(a, b) for a, b in zip(first.purchases, again.purchases, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first.times, again.times, strict=True))
    other = open_shop(ShopWorld(seed=1, products=60, shoppers=80))
    assert [p.title for p in other.products] != [p.title for p in first.products]


def test_nobody_buys_twice_nor_two_things_at_once() -> None:
    shop = open_shop(SMALL)
    for bought, times in zip(shop.purchases, shop.times, strict=True):
        assert SMALL.shortest <= len(bought) <= SMALL.longest
        assert len(set(bought.tolist())) == len(bought)
        assert (np.diff(times) > 0).all()
    assert {len(bought) for bought in shop.purchases} == set(range(SMALL.shortest, SMALL.longest + 1))


def test_titles_and_pictures_each_keep_their_secrets() -> None:
    for product in open_shop(SMALL).products:
        title = product.title.lower()
        assert product.traits["brand"].lower() in title
        assert product.traits["use"] in title
        assert product.traits["kind"] in title.split() or f"{product.traits['kind']}," in title
        assert product.look.kind == product.traits["kind"]
        assert product.look.pattern == product.traits["pattern"]
        assert not any(word in title for word in (*COLOURS, *PATTERNS, *FORMS))


def test_first_purchases_follow_the_softmax_of_the_utilities() -> None:
    world = ShopWorld(products=12, shoppers=20_000, shortest=1, longest=2)
    shop = open_shop(world)
    utilities = oracle_scores(world, np.arange(world.shoppers))
    chances = np.exp(utilities) / np.exp(utilities).sum(1, keepdims=True)
    first = np.bincount([bought[0] for bought in shop.purchases], minlength=world.products)
    spread = np.sqrt((chances * (1 - chances)).sum(0))
    assert (np.abs(first - chances.sum(0)) < 4.5 * spread).all()
    # The second one: the same, among what is left.
    pairs = [(i, bought) for i, bought in enumerate(shop.purchases) if len(bought) == 2]
    rest = chances[[i for i, _ in pairs]]
    rest[np.arange(len(pairs)), [bought[0] for _, bought in pairs]] = 0
    rest /= rest.sum(1, keepdims=True)
    second = np.bincount([bought[1] for _, bought in pairs], minlength=world.products)
    spread = np.sqrt((rest * (1 - rest)).sum(0))
    assert (np.abs(second - rest.sum(0)) < 4.5 * spread).all()


def test_halves_of_the_oracle_add_up() -> None:
    shop = open_shop(SMALL)
    users = np.array([3, 0, 7])
    both, picture, title = (oracle_scores(SMALL, users, half) for half in ("both", "picture", "title"))
    kind = SMALL.kind * shop.tastes["kind"][users][:, shop.values["kind"]]
    assert np.allclose(picture + title, both + shop.appeal + kind)
    assert np.array_equal(oracle_scores(SMALL, [7]), both[2:])


def test_likes_are_the_tastes_in_words() -> None:
    shop = open_shop(SMALL)
    favourite, second = shop.likes(5)["colour"]
    worth = {name: shop.tastes["colour"][5][column] for column, name in enumerate(COLOURS)}
    assert worth[favourite] == 1.0
    assert worth[second] == 0.5
    assert Counter(worth.values()) == {1.0: 1, 0.5: 1, 0.0: len(COLOURS) - 2}


def test_oracle_of_a_prepared_shop_beats_its_halves_and_they_beat_chance(prepared: Dataset) -> None:
    split = Split(prepared)
    scores = {
        half: prepared_oracle(WORLD, prepared.item_ids, prepared.user_ids, half)
        for half in ("both", "picture", "title")
    }
    assert scores["both"].shape == (split.n_users, split.n_items)
    reached = {half: n20(values, split) for half, values in scores.items()}
    assert reached["both"] > max(reached["picture"], reached["title"]) > 0.15
    assert min(reached["picture"], reached["title"]) > 0.15
    # Somebody else's tastes are worth little: rows and columns must be the right ones.
    assert n20(np.roll(scores["both"], 1, axis=0), split) < reached["both"] / 2
    assert n20(np.roll(scores["both"], 1, axis=1), split) < reached["both"] / 2


def test_oracle_survives_dropped_items(prepared: Dataset) -> None:
    whole = prepared_oracle(WORLD, prepared.item_ids, prepared.user_ids[:4])
    assert np.array_equal(prepared_oracle(WORLD, prepared.item_ids[5:], prepared.user_ids[:4]), whole[:, 5:])
    assert world_of(prepared) == WORLD


def test_prepared_shop_is_whole(prepared: Dataset) -> None:
    assert len(prepared.item_ids) == 150
    assert len(prepared.user_ids) == 300
    picture = prepared.pictures[0]
    assert picture is not None
    assert picture.shape == (64, 64, 3)


def copied(prepared: Dataset, out: Path, name: str, world: pl.Expr | None = None) -> Dataset:
    """The prepared shop as before its manifest said that it is one, under a name, its column `world` as given."""
    shutil.copytree(prepared.path, out)
    manifest = {key: value for key, value in prepared.manifest.items() if key != "shop"}
    (out / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    if world is not None:
        prepared.items.with_columns(world.alias("world")).write_parquet(out / "items.parquet")
    return Dataset.load(out)


def test_a_shop_is_known_by_its_manifest_or_by_its_name_and_column(prepared: Dataset, tmp_path: Path) -> None:
    assert prepared.manifest["shop"] == asdict(WORLD)
    older = copied(prepared, tmp_path / "older", "shop")
    assert world_of(older) == WORLD and is_drawn(older)
    paired = copied(prepared, tmp_path / "paired", "mine+shop")
    assert world_of(paired) is None and is_drawn(paired)
    named_otherwise = copied(prepared, tmp_path / "named", "mine")
    assert world_of(named_otherwise) is None and not is_drawn(named_otherwise)


@pytest.mark.parametrize("world", [pl.lit("fantasy"), pl.lit(3), pl.lit(None), pl.lit("[1]"), pl.lit('{"a": 1}')])
def test_a_column_called_world_is_anybodys(world: pl.Expr, prepared: Dataset, tmp_path: Path) -> None:
    for name in ("shop", "mine", "shop+mine"):
        other = copied(prepared, tmp_path / name, name, world)
        assert world_of(other) is None and not is_drawn(other)


@pytest.mark.parametrize("wrong", [{"products": 0}, {"shoppers": 0}, {"shortest": 9, "longest": 5}, {"products": 10}])
def test_impossible_worlds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="shop: cannot give"):
        ShopWorld(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_every_thing_shows_its_form_colour_and_pattern(kind: str) -> None:
    plain = Look(kind, "round", (200, 60, 60), "plain", phase=0.3)
    drawn = {
        "plain": plain,
        "angular": Look(kind, "angular", (200, 60, 60), "plain", phase=0.3),
        "blue": Look(kind, "round", (60, 60, 200), "plain", phase=0.3),
        **{name: Look(kind, "round", (200, 60, 60), name, phase=0.3) for name in PATTERNS[1:]},
    }
    pictures = {name: np.asarray(draw(look, 48), dtype=float) for name, look in drawn.items()}
    names = list(pictures)
    for i, one in enumerate(names):
        assert pictures[one].shape == (48, 48, 3)
        for other in names[i + 1 :]:
            assert np.abs(pictures[one] - pictures[other]).mean() > 0.5, (one, other)
    corner = pictures["plain"][:3, :3]
    assert np.ptp(corner, axis=(0, 1)).max() < 12  # the thing stays within the picture


def test_mirroring_moves_the_handle() -> None:
    straight = np.asarray(draw(Look("mug", "round", (200, 60, 60), "plain"), 48), dtype=float)
    mirrored = np.asarray(draw(Look("mug", "round", (200, 60, 60), "plain", mirrored=True), 48), dtype=float)
    assert np.abs(straight - mirrored).mean() > 3
    # The light stays where it is, so the mirrored outline fits but not its shades.
    assert np.abs(straight[:, ::-1] - mirrored).mean() < np.abs(straight - mirrored).mean()
