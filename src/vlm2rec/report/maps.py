"""Text and picture of the same items in one plane: whether the two clouds overlap, and whether partners are near."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.dataset import Dataset
from vlm2rec.report.figures import number
from vlm2rec.report.parts import Panel, slug
from vlm2rec.report.plots import MapChart
from vlm2rec.report.vectors import SIDES, Space, chosen

ITEMS = 200
METHODS = 3
_LETTERS = 60
"""Of a title, on pointing."""


def maps(spaces: Sequence[Space], dataset: Dataset) -> list[Panel]:
    """A map each of at most three methods, all of the same items; none where the two sides cannot be laid together."""
    shown = chosen([space for space in spaces if space.two_sided], METHODS)
    if not shown:
        return []
    common = sorted(set.intersection(*(set(space.items.tolist()) for space in shown)))
    if len(common) < 3:
        return []
    items = np.sort(np.random.default_rng(0).permutation(np.array(common))[:ITEMS])
    names = [_title(dataset, item) for item in items.tolist()]
    panels = []
    for space in shown:
        text, image = (space.vectors(side, items) for side in SIDES)
        if text.shape != image.shape:
            continue
        plane = project(text, image)
        chart = MapChart(f"{space.label}: {plane.share:.0%} of the variance", plane.text, plane.image, names)
        panels.append(Panel(f"map-{slug(space.name)}", chart, _note(text, image)))
    return panels


@dataclass(frozen=True)
class Plane:
    """Points of both sides, and the share of the variance that the plane shows."""

    text: list[tuple[float, float]]
    image: list[tuple[float, float]]
    share: float


def project(text: NDArray[np.float32], image: NDArray[np.float32]) -> Plane:
    """Unit vectors `(n, D)` of both sides onto the two directions in which all `2n` of them together vary most."""
    both = np.concatenate([text, image]).astype(np.float64)
    both -= both.mean(axis=0)
    values, directions = np.linalg.eigh(both @ both.T)  # (2n, 2n): fewer items than dimensions
    values, directions = np.clip(values[::-1], 0, None), directions[:, ::-1]
    points = directions[:, :2] * np.sqrt(values[:2])
    # An eigenvector may come with either sign: text goes to the left, and the point farthest from the middle up.
    left = points[: len(text), 0].mean() > points[len(text) :, 0].mean()
    down = points[np.abs(points[:, 1]).argmax(), 1] < 0
    points *= np.where([left, down], -1, 1)
    listed = [(round(float(x), 4), round(float(y), 4)) for x, y in points]
    total = float(values.sum())
    return Plane(listed[: len(text)], listed[len(text) :], float(values[:2].sum()) / total if total else 1.0)


def _note(text: NDArray[np.float32], image: NDArray[np.float32]) -> str:
    """How near an item's two sides are, against those of different items."""
    cosines = text @ image.T
    n = len(cosines)
    own = float(np.trace(cosines)) / n
    others = float(cosines.sum() - np.trace(cosines)) / (n * (n - 1))
    return f"Cosine between an item's text and its own picture {number(own)}, another's {number(others)}."


def _title(dataset: Dataset, item: int) -> str:
    title = dataset.titles[item] or dataset.item_ids[item]
    return title if len(title) <= _LETTERS else title[: _LETTERS - 1] + "…"
