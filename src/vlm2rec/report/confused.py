"""The items that a model takes for each other most often."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.splits import Split
from vlm2rec.report.examples import Card, Cards
from vlm2rec.report.figures import number
from vlm2rec.report.vectors import BLOCK, Space, chosen, drawn

USERS = 2000
PAIRS = 8
METHODS = 3


@dataclass(frozen=True)
class Pair:
    """For `count` of the `of` users who bought `bought` next, the model had `shown` in first place instead."""

    bought: Card
    shown: Card
    count: int
    of: int
    cosines: tuple[tuple[str, str], ...]
    """View and cosine between the two items in it."""


@dataclass(frozen=True)
class Confusions:
    """The pairs of one method, most frequent first."""

    label: str
    missed: int
    """Users for whom something else stood in first place."""
    users: int
    pairs: tuple[Pair, ...]


def confusions(spaces: Sequence[Space], split: Split, cards: Cards) -> list[Confusions]:
    """Count, for at most three methods over the same users, which item stands first in place of the one bought next.

    The whole catalogue is ranked without the user's history. Of equal counts, the pair of more similar items is first.
    """
    shown = chosen(spaces, METHODS)
    if not shown:
        return []
    users = drawn(shown, split.dataset)[:USERS]
    return [_confusions(space, users, split, cards) for space in shown]


def _confusions(space: Space, users: Sequence[str], split: Split, cards: Cards) -> Confusions:
    row = {user: index for index, user in enumerate(split.dataset.user_ids)}
    asked = [row[user] for user in users]
    targets = split.targets_of(np.array(asked, np.int64), "test").tolist()
    counts: Counter[tuple[int, int]] = Counter()
    for block, scores in enumerate(space.scores("fused", users)):
        some = slice(block * BLOCK, (block + 1) * BLOCK)
        for user, target, own in zip(asked[some], targets[some], scores, strict=True):
            rival = first_rival(own, split.past(user, "test"), target)
            if own[rival] >= own[target] > -np.inf:  # ties count against the model
                counts[target, rival] += 1
    wanted = Counter(targets)
    near = _cosines(space, "fused", list(counts))
    order = sorted(counts, key=lambda pair: (-counts[pair], -near[pair], pair))[:PAIRS]
    views = [("text", "text"), ("pictures", "image")] if space.two_sided else []
    cosines = [(name, _cosines(space, view, order)) for name, view in (*views, ("fused", "fused"))]
    pairs = [
        Pair(
            cards.card(pair[0]),
            cards.card(pair[1]),
            counts[pair],
            wanted[pair[0]],
            tuple((name, number(found[pair], 2)) for name, found in cosines),
        )
        for pair in order
    ]
    return Confusions(space.label, counts.total(), len(users), tuple(pairs))


def first_rival(scores: NDArray[np.float32], past: NDArray[np.int32], target: int) -> int:
    """The best of `(N,)` scores among items that are neither in the past nor the target."""
    rivals = scores.copy()
    rivals[past] = rivals[target] = -np.inf
    return int(rivals.argmax())


def _cosines(space: Space, view: str, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Of the two items of each pair, to four digits."""
    if not pairs:
        return {}
    first, second = (space.vectors(view, [pair[side] for pair in pairs]) for side in (0, 1))
    return {pair: round(float(cosine), 4) for pair, cosine in zip(pairs, (first * second).sum(axis=1), strict=True)}
