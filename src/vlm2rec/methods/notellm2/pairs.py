"""Pairs of items that shoppers take one after the other, and batches of them (NoteLLM-2's training data)."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def co_occurrence(sequences: Sequence[np.ndarray], n_items: int, window: int) -> tuple[Ints, NDArray[np.float64]]:
    """Ordered pairs `(n, 2)` of item indices, A then B, ascending, and their scores `(n,)`.

    `s(A, B) = sum of 1 / |S_u|` over the users u in whose sequence B comes at most `window` events after A; each user
    counts once a pair, whoever buys much counts less. An item is no pair with itself.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    users = np.repeat(np.arange(len(sequences)), lengths)
    items = np.concatenate(sequences).astype(np.int64)
    codes = [np.empty(0, np.int64)]
    for gap in range(1, min(window, int(lengths.max()) - 1) + 1):
        before, after = items[:-gap], items[gap:]
        kept = (users[:-gap] == users[gap:]) & (before != after)
        codes.append((before[kept] * n_items + after[kept]) * len(sequences) + users[:-gap][kept])
    pair, user = np.divmod(np.unique(np.concatenate(codes)), len(sequences))
    distinct, place = np.unique(pair, return_inverse=True)
    scores = np.bincount(place, weights=1 / lengths[user], minlength=len(distinct)).astype(np.float64)
    return np.stack(np.divmod(distinct, n_items), axis=1), scores


def neighbours(pairs: Ints, scores: NDArray[np.float64], count: int, above: float) -> Ints:
    """The `count` best pairs `(m, 2)` of each first item among those that score more than `above`.

    In order of the first item, then falling score, then the second item.
    """
    pairs, scores = pairs[scores > above], scores[scores > above]
    first, second = pairs.T
    order = np.lexsort((second, -scores, first))
    first = first[order]
    rank = np.arange(len(order)) - np.searchsorted(first, first)
    chosen: Ints = pairs[order[rank < count]]
    return chosen


@dataclass(frozen=True)
class PairBatch:
    """P pairs over n distinct items.

    `rows` (2P,) indexes `items`: the P first members, then their P partners in the same order. `negatives` (2P, 2P)
    says which column is a negative of which row.
    """

    items: list[int]
    rows: Ints
    negatives: NDArray[np.bool_]


class PairBatches:
    """Batches of `size` pairs in an order drawn anew each epoch; batch k is a function of (seed, k).

    A pair whose item is in the batch already waits for the next one. Where a small catalogue leaves too few others it
    is taken all the same. Two items that are a pair, in either order and in this batch or not, are never each other's
    negatives, nor is an item its own.
    """

    def __init__(self, pairs: Ints, n_items: int, size: int, seed: int) -> None:
        self.pairs = pairs
        self.size = size
        self._n_items = n_items
        self._seed = seed
        self._known = np.unique(np.concatenate([self._codes(*pairs.T), self._codes(*pairs.T[::-1])]))
        self._epoch: tuple[int, list[list[int]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; a lone smaller one where there are too few pairs. The rest waits its turn."""
        return max(1, len(self.pairs) // self.size)

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._fill(np.random.default_rng([self._seed, epoch])))
        members = self.pairs[self._epoch[1][place]].T.reshape(-1)
        items, rows = np.unique(members, return_inverse=True)
        codes = self._codes(members[:, None], members[None, :])
        near = self._known[np.minimum(np.searchsorted(self._known, codes), len(self._known) - 1)]
        negatives = (members[:, None] != members[None, :]) & (near != codes)
        return PairBatch(items.tolist(), rows.astype(np.int64), negatives)

    def _codes(self, first: Ints, second: Ints) -> Ints:
        return first * self._n_items + second

    def _fill(self, rng: np.random.Generator) -> list[list[int]]:
        """Row numbers of `pairs`, batch by batch."""
        waiting = deque(rng.permutation(len(self.pairs)).tolist())
        members = self.pairs.tolist()
        batches = []
        for _ in range(self.steps_per_epoch):
            batch: list[int] = []
            put_off: list[int] = []
            taken: set[int] = set()
            while waiting and len(batch) < self.size:
                row = waiting.popleft()
                if taken.isdisjoint(members[row]):
                    batch.append(row)
                    taken.update(members[row])
                else:
                    put_off.append(row)
            missing = self.size - len(batch)
            batches.append(batch + put_off[:missing])
            waiting.extendleft(reversed(put_off[missing:]))
        return batches
