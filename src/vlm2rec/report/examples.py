"""A few shoppers: what they had bought, what each model would show them, what they bought next.

They are drawn by lot with a fixed seed, so nobody picks the ones that flatter a model.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2rec.comparison import Comparison
from vlm2rec.data.dataset import Dataset
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.report.words import display

SHOPPERS = 6
SHOWN = 8
HISTORY = 10
THUMBNAIL = 96
"""Pixels of the longer side of a picture in the page."""


@dataclass(frozen=True)
class Card:
    """An item as the page shows it."""

    title: str
    picture: str | None
    """A data URI."""
    hit: bool = False


@dataclass(frozen=True)
class Shelf:
    """What one model recommends to one shopper."""

    label: str
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
    """Cards of a data set's items; each picture is made small once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._pictures: dict[int, str | None] = {}

    def card(self, item: int, hit: bool = False) -> Card:
        """The card of an item index."""
        if item not in self._pictures:
            self._pictures[item] = thumbnail(self._dataset.pictures[item])
        return Card(self._dataset.titles[item] or self._dataset.item_ids[item], self._pictures[item], hit)


def shoppers(comparison: Comparison, dataset: Dataset, count: int = SHOPPERS) -> list[Shopper]:
    """Draw shoppers whom every embedder has embedded, and rank the catalogue for each by cosine.

    Each method is shown by the run of its lowest seed. Methods without embeddings (counting ones) have no shelf; if
    none has any, there are no shoppers.
    """
    tables = [
        (display(method.label), EmbeddingTable.load(path / "items"), EmbeddingTable.load(path / "histories"))
        for method in comparison.methods
        if ((path := method.runs[0].path) / "items").is_dir() and (path / "histories").is_dir()
    ]
    if not tables:
        return []
    row = {user: index for index, user in enumerate(dataset.user_ids)}
    common = set.intersection(*(set(map(str, histories.ids)) for _, _, histories in tables)) & row.keys()
    ordered = np.array(sorted(common))
    drawn = [str(user) for user in np.random.default_rng(0).permutation(ordered)[:count]]
    ranked = [_rank(items, histories, drawn, dataset) for _, items, histories in tables]
    cards = Cards(dataset)
    found = []
    for place, user in enumerate(drawn):
        sequence = dataset.sequences[row[user]]
        past, target = sequence[:-1], int(sequence[-1])
        shelves = [
            _shelf(label, scores[place], past, target, cards)
            for (label, _, _), scores in zip(tables, ranked, strict=True)
        ]
        shown = tuple(cards.card(int(item)) for item in past[-HISTORY:])
        found.append(Shopper(user, shown, max(0, len(past) - HISTORY), cards.card(target), tuple(shelves)))
    return found


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


def _rank(
    items: EmbeddingTable, histories: EmbeddingTable, users: Sequence[str], dataset: Dataset
) -> NDArray[np.float32]:
    """Cosines (users, items of the data set); -inf for an item that has no vector."""
    rows = histories.rows(users)
    scores = histories.unit("fused")[rows] @ items.unit("fused").T
    column = {item: index for index, item in enumerate(dataset.item_ids)}
    out = np.full((len(users), len(column)), -np.inf, dtype=np.float32)
    known = [(at, column[str(item)]) for at, item in enumerate(items.ids) if str(item) in column]
    sources, places = map(list, zip(*known, strict=True))
    out[:, places] = scores[:, sources]
    return out


def _shelf(label: str, scores: NDArray[np.float32], past: NDArray[np.int32], target: int, cards: Cards) -> Shelf:
    open_to_rank = scores.copy()
    open_to_rank[past[past != target]] = -np.inf  # bought again counts: it was the next event
    best = np.argsort(-open_to_rank, kind="stable")[:SHOWN]
    rank = int((open_to_rank >= scores[target]).sum())
    shown = tuple(cards.card(int(item), hit=int(item) == target) for item in best)
    return Shelf(label, shown, rank)
