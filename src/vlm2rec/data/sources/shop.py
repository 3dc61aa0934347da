"""The demo's shop: products with a picture and a title, and shoppers who buy by known tastes.

A shopper likes a colour and a pattern, which only the picture shows; a brand and a use, which only the title tells;
and a kind of thing, which both do. What is bought follows from these tastes and from chance, so the best score that
any model can reach is known: it is what `oracle_scores` reaches. A world is a pure function of its parameters.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.sources import RawData
from vlm2rec.data.sources.shop_brush import FORMS, PATTERNS, Colour, Look
from vlm2rec.data.sources.shop_drawing import KINDS, draw
from vlm2rec.errors import InputError

Half = Literal["both", "picture", "title"]
HALVES: tuple[Half, ...] = ("both", "picture", "title")

COLOURS: dict[str, Colour] = {
    "red": (205, 62, 58),
    "orange": (232, 136, 60),
    "yellow": (240, 203, 92),
    "green": (98, 158, 92),
    "teal": (52, 150, 156),
    "blue": (66, 104, 188),
    "purple": (130, 88, 168),
    "pink": (228, 138, 166),
}
BRANDS = ("Harbour", "Meadow", "Falcon", "Juniper", "Lantern", "Maple", "Orbit", "Pebble")
USES = ("camping", "work", "travel", "children", "parties", "gardening")
MAKES = ("handmade", "recycled", "classic", "sturdy", "light", "vintage")
_WALLS: tuple[Colour, ...] = (
    (236, 238, 240),
    (246, 236, 222),
    (226, 236, 228),
    (228, 232, 246),
    (244, 228, 232),
    (215, 215, 210),
)
_TITLES = (
    "{brand} {make} {kind} for {use}",
    "{make} {kind} for {use}, {brand}",
    "{brand} {kind} for {use}, {make}",
    "{make} {brand} {kind} for {use}",
)
_VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "brand": BRANDS,
    "use": USES,
    "kind": KINDS,
}
_SEEN_IN: dict[str, tuple[Half, ...]] = {
    "colour": ("both", "picture"),
    "pattern": ("both", "picture"),
    "brand": ("both", "title"),
    "use": ("both", "title"),
    "kind": ("both", "picture", "title"),
}
_NAME = "shop"
_OPENING_DAY = 1_700_000_000  # seconds; 14 November 2023
_DAY = 86_400


@dataclass(frozen=True)
class ShopWorld:
    """The parameters of a shop. Weights are in units of the choice noise (a standard Gumbel draw).

    A product that is a shopper's favourite in a trait gains that trait's weight, one that is the second choice half.
    """

    seed: int = 0
    products: int = 400
    shoppers: int = 2000
    shortest: int = 5  # events of a shopper
    longest: int = 15
    picture: float = 2.0  # weight of the colour and of the pattern
    title: float = 2.0  # weight of the brand and of the use
    kind: float = 4.0  # weight of the kind of thing, which picture and title both show
    appeal: float = 0.3  # spread of a popularity that neither shows

    def __post_init__(self) -> None:
        if min(self.products, self.shoppers, self.shortest) < 1 or not self.shortest <= self.longest <= self.products:
            raise InputError(
                f"shop: cannot give {self.shoppers} shoppers {self.shortest} to {self.longest} different purchases"
                f" out of {self.products} products; use positive numbers, shortest <= longest <= products"
            )

    def read(self) -> RawData:
        """The shop as a data source (`vlm2rec.data.sources.Source`); pictures are drawn when asked for."""
        shop = open_shop(self)
        looks = {product.image: product.look for product in shop.products}

        def picture(name: str) -> Image.Image:
            return draw(looks[name])

        return RawData(
            name=_NAME,
            items=_items(shop),
            interactions=_interactions(shop),
            pictures=picture,
            items_from="shop items",
            interactions_from="shop interactions",
            shop=asdict(self),
        )


@dataclass(frozen=True)
class Product:
    """One thing for sale. `traits` maps colour, pattern, brand, use, kind and make to their values."""

    item_id: str
    title: str
    image: str
    look: Look
    traits: dict[str, str]


@dataclass(frozen=True)
class Shop:
    """A world played out.

    Attributes:
        world: its parameters.
        products: the catalogue, in item order.
        tastes: a trait's table `(shoppers, values)`: 1 for the favourite value, 0.5 for the second choice, else 0.
        values: a trait's value of each product `(products,)`, as a column of its taste table.
        appeal: popularity of each product `(products,)`, in units of the choice noise.
        purchases: product indices of each shopper, in order of time.
        times: the seconds of these purchases.
    """

    world: ShopWorld
    products: tuple[Product, ...]
    tastes: dict[str, npt.NDArray[np.float64]]
    values: dict[str, npt.NDArray[np.int64]]
    appeal: npt.NDArray[np.float64]
    purchases: tuple[npt.NDArray[np.int64], ...]
    times: tuple[npt.NDArray[np.int64], ...]

    def likes(self, shopper: int) -> dict[str, tuple[str, str]]:
        """Favourite and second choice of each trait, in words."""
        best = {trait: np.argsort(-table[shopper], kind="stable")[:2] for trait, table in self.tastes.items()}
        return {trait: (_VALUES[trait][first], _VALUES[trait][second]) for trait, (first, second) in best.items()}


@lru_cache(maxsize=4)
def open_shop(world: ShopWorld) -> Shop:
    """Play a world out: stock the shop, draw the tastes, let everybody buy. Same world, same shop."""
    goods, people, chance = (np.random.default_rng([world.seed, stream]) for stream in (1, 2, 3))
    values = {trait: goods.integers(len(names), size=world.products) for trait, names in _VALUES.items()}
    products = tuple(_product(goods, index, values) for index in range(world.products))
    appeal = world.appeal * goods.standard_normal(world.products)
    tastes = {trait: _tastes(people, world.shoppers, len(names)) for trait, names in _VALUES.items()}
    lengths = people.integers(world.shortest, world.longest + 1, size=world.shoppers)

    stocked = Shop(world, products, tastes, values, appeal, (), ())
    # Buying one thing after another, each time by a softmax over what is not yet owned, has the same law as taking
    # the best of noisy utilities in their order (Gumbel's trick), and that is one sort.
    noisy = _utilities(stocked, np.arange(world.shoppers), "both") + chance.gumbel(
        size=(world.shoppers, world.products)
    )
    order = np.argsort(-noisy, axis=1, kind="stable")
    purchases = tuple(row[:length].astype(np.int64) for row, length in zip(order, lengths, strict=True))
    times = tuple(_times(chance, int(length)) for length in lengths)
    return Shop(world, products, tastes, values, appeal, purchases, times)


def oracle_scores(
    world: ShopWorld, shoppers: Sequence[int] | npt.NDArray[np.integer], half: Half = "both"
) -> npt.NDArray[np.float64]:
    """True choice utilities `(b, products)` of some shoppers.

    Each purchase is a softmax of these over what the shopper has not bought yet, so with `half="both"` no ranking of
    such products can be better on average. `"picture"` and `"title"` know only the tastes that this half shows (and
    the popularity): what a perfect reader of one half alone could reach.
    """
    return _utilities(open_shop(world), np.asarray(shoppers, dtype=np.int64), half)


def world_of(dataset: Dataset) -> ShopWorld | None:
    """The world that a prepared shop was made from; None: the data are no drawn shop.

    The manifest tells. A shop that was prepared before it did is known by its name and by its items' column `world`,
    together; that column alone may be anybody's.
    """
    if "shop" in dataset.manifest:
        return ShopWorld(**dataset.manifest["shop"])
    return _world_in(dataset) if dataset.name == _NAME else None


def is_drawn(dataset: Dataset) -> bool:
    """Whether (a part of) the items are a drawn shop's, whose columns are the key to its shoppers' tastes."""
    return world_of(dataset) is not None or (_NAME in dataset.name.split("+") and _world_in(dataset) is not None)


def _world_in(dataset: Dataset) -> ShopWorld | None:
    """The world that a column of the items names, if one does."""
    column = dataset.items.to_dict().get("world", pl.Series([], dtype=pl.String)).drop_nulls()
    try:
        return ShopWorld(**json.loads(column[0])) if column.dtype == pl.String and len(column) else None
    except (ValueError, TypeError, InputError):  # no JSON, other fields, or values that no shop has
        return None


def prepared_oracle(
    world: ShopWorld, item_ids: Sequence[str], user_ids: Sequence[str], half: Half = "both"
) -> npt.NDArray[np.float64]:
    """`oracle_scores` for a prepared shop: rows as in `user_ids`, columns as in `item_ids`."""
    shoppers = [int(user.removeprefix("shopper-")) for user in user_ids]
    columns = [int(item.removeprefix("product-")) for item in item_ids]
    return oracle_scores(world, shoppers, half)[:, columns]


def _utilities(shop: Shop, shoppers: npt.NDArray[np.int64], half: Half) -> npt.NDArray[np.float64]:
    weights = {"colour": shop.world.picture, "pattern": shop.world.picture}
    weights |= {"brand": shop.world.title, "use": shop.world.title, "kind": shop.world.kind}
    total = np.broadcast_to(shop.appeal, (len(shoppers), len(shop.appeal))).copy()
    for trait, weight in weights.items():
        if half in _SEEN_IN[trait]:
            total += weight * shop.tastes[trait][shoppers][:, shop.values[trait]]
    return total


def _tastes(rng: np.random.Generator, shoppers: int, values: int) -> npt.NDArray[np.float64]:
    ranks = rng.random((shoppers, values)).argsort(axis=1)
    table = np.zeros((shoppers, values))
    rows = np.arange(shoppers)
    table[rows, ranks[:, 0]] = 1.0
    table[rows, ranks[:, 1]] = 0.5
    return table


def _product(rng: np.random.Generator, index: int, values: dict[str, npt.NDArray[np.int64]]) -> Product:
    traits = {trait: names[values[trait][index]] for trait, names in _VALUES.items()}
    traits["make"] = MAKES[rng.integers(len(MAKES))]
    dye = np.array(COLOURS[traits["colour"]]) * rng.uniform(0.92, 1.06) + rng.uniform(-7, 7, size=3)
    red, green, blue = (int(channel) for channel in dye.clip(0, 255))
    look = Look(
        kind=traits["kind"],
        form=FORMS[rng.integers(len(FORMS))],
        colour=(red, green, blue),
        pattern=traits["pattern"],
        background=_WALLS[rng.integers(len(_WALLS))],
        scale=float(rng.uniform(0.9, 1.08)),
        shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
        mirrored=bool(rng.integers(2)),
        phase=float(rng.random()),
    )
    title = _TITLES[rng.integers(len(_TITLES))].format(**traits)
    title = title[0].upper() + title[1:]
    return Product(f"product-{index:04d}", title, f"product-{index:04d}.png", look, traits)


def _times(rng: np.random.Generator, events: int) -> npt.NDArray[np.int64]:
    """Seconds of a shopper's purchases: a first visit within a year, then about one a week; never twice at once."""
    first = rng.integers(365 * _DAY)
    gaps = 1 + rng.exponential(7 * _DAY, size=events).astype(np.int64)
    return np.asarray(_OPENING_DAY + first + gaps.cumsum(), dtype=np.int64)


def _items(shop: Shop) -> pl.DataFrame:
    table = {
        "item_id": [product.item_id for product in shop.products],
        "title": [product.title for product in shop.products],
        "image": [product.image for product in shop.products],
    }
    traits = {trait: [product.traits[trait] for product in shop.products] for trait in (*_VALUES, "make")}
    return pl.DataFrame(table | traits).with_columns(world=pl.lit(json.dumps(asdict(shop.world))))


def _interactions(shop: Shop) -> pl.DataFrame:
    lengths = [len(row) for row in shop.purchases]
    names = np.array([product.item_id for product in shop.products])
    return pl.DataFrame(
        {
            "user_id": np.repeat([f"shopper-{index:04d}" for index in range(len(lengths))], lengths).tolist(),
            "item_id": names[np.concatenate(shop.purchases)].tolist(),
            "timestamp": np.concatenate(shop.times),
        }
    )
