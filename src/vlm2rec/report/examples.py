"""A few shoppers: what they had bought, what each model would show them, what they bought next.

They are drawn by lot with a fixed seed, so nobody picks the ones that flatter a model.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.report.vectors import Space, chosen, drawn

SHOPPERS = 6
SHOWN = 8
HISTORY = 10
METHODS = 6
"""Of how many methods a shopper has shelves."""
THUMBNAIL = 96
"""Pixels of the longer side of a picture in the page."""


@dataclass(frozen=True)
class Card:
    """An item as the page shows it."""

    title: str
    picture: int | None
    """Index of the item whose picture it is, in `Cards.pictures`; None for none."""
    hit: bool = False


@dataclass(frozen=True)
class Shelf:
    """What one model recommends to one shopper, from both sides of the history or one."""

    label: str
    query: str
    cards: tuple[Card, ...]
    rank: int
    """Place of what was bought next among all items outside the history, from 1; ties count against the model."""


@dataclass(frozen=True)
class Shopper:
    """One row of the page."""

    name: str
    history: tuple[Card, ...]
    earlier: int
    """Events before those shown."""
    bought: Card
    shelves: tuple[Shelf, ...]


class Cards:
    """Cards of a data set's items; each picture is made small once, and stands in the page once.

    Attributes:
        pictures: item index -> data URI, of all items that have had a card and have a picture.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._seen: set[int] = set()
        self.pictures: dict[int, str] = {}

    def card(self, item: int, hit: bool = False) -> Card:
        """The card of an item index."""
        if item not in self._seen:
            self._seen.add(item)
            picture = thumbnail(self._dataset.pictures[item])
            if picture is not None:
                self.pictures[item] = picture
        title = self._dataset.titles[item] or self._dataset.item_ids[item]
        return Card(title, item if item in self.pictures else None, hit)


def shoppers(spaces: Sequence[Space], split: Split, cards: Cards, count: int = SHOPPERS) -> list[Shopper]:
    """Draw shoppers whom every embedder has embedded, and rank the catalogue for each by cosine.

    VLM2Rec, or else the first method that can, is also asked with each side of the history alone.
    """
    shown = chosen(spaces, METHODS)
    if not shown:
        return []
    users = drawn(spaces, split.dataset)[:count]
    able = [space for space in shown if space.two_sided]
    halved = next((space for space in able if space.kind == "vlm2rec"), able[0] if able else None)
    asked = [
        (space, view, query) for space in shown for view, query in ((*_ALONE, _BOTH) if space is halved else (_BOTH,))
    ]
    ranked = [next(space.scores(view, users)) for space, view, _ in asked] if users else []
    row = {user: index for index, user in enumerate(split.dataset.user_ids)}
    found = []
    for place, user in enumerate(users):
        past, target = split.past(row[user], "test"), split.target(row[user], "test")
        shelves = tuple(
            _shelf(space.label, query, scores[place], past, target, cards)
            for (space, _, query), scores in zip(asked, ranked, strict=True)
        )
        history = tuple(cards.card(int(item)) for item in past[-HISTORY:])
        found.append(Shopper(user, history, max(0, len(past) - HISTORY), cards.card(target), shelves))
    return found


_BOTH = ("fused", "")
_ALONE = (("text", "titles alone"), ("image", "pictures alone"))


def thumbnail(pixels: NDArray[np.uint8] | None) -> str | None:
    """A picture (H, W, 3) as a small JPEG in a data URI; None for none."""
    if pixels is None:
        return None
    from PIL import Image

    picture = Image.fromarray(np.asarray(pixels))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _shelf(
    label: str, query: str, scores: NDArray[np.float32], past: NDArray[np.int32], target: int, cards: Cards
) -> Shelf:
    open_to_rank = scores.copy()
    open_to_rank[past[past != target]] = -np.inf  # bought again counts: it was the next event
    best = np.argsort(-open_to_rank, kind="stable")[:SHOWN]
    rank = int((open_to_rank >= scores[target]).sum())
    shown = tuple(cards.card(int(item), hit=int(item) == target) for item in best)
    return Shelf(label, query, shown, rank)
