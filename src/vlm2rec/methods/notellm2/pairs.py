"""Batches of pairs of items that shoppers take one after the other (NoteLLM-2's training data)."""

from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import numpy as np
from numpy.typing import NDArray

from vlm2rec.training.batches import shuffled

Ints = NDArray[np.int64]
_AT_ONCE = 1 << 16


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

    In memory are 32 bytes a pair, and some 50 for each that waits. Batches are filled one after the other, up to the
    one that is asked for.
    """

    def __init__(self, pairs: Ints, n_items: int, size: int, seed: int) -> None:
        self.pairs = pairs
        self.size = size
        self._n_items = n_items
        self._seed = seed
        self._known = np.sort(self._codes(*pairs.T))
        self._epoch: _Epoch | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; a lone smaller one where there are too few pairs. The rest waits its turn."""
        return max(1, len(self.pairs) // self.size)

    def batch(self, step: int) -> PairBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = None  # two epochs need not stand in memory together
            order = shuffled(len(self.pairs), np.random.default_rng([self._seed, epoch]))
            rows = np.empty((self.steps_per_epoch, min(self.size, len(order))), order.dtype)
            self._epoch = _Epoch(epoch, rows, self._filled(order))
        members = self.pairs[self._epoch.batch(place)].T.reshape(-1)
        items, rows = np.unique(members, return_inverse=True)
        codes = self._codes(members[:, None], members[None, :])
        known = self._known[np.minimum(np.searchsorted(self._known, codes), len(self._known) - 1)] == codes
        negatives = (members[:, None] != members[None, :]) & ~(known | known.T)
        return PairBatch(items.tolist(), rows.astype(np.int64), negatives)

    def _codes(self, first: Ints, second: Ints) -> Ints:
        return first * self._n_items + second

    def _filled(self, order: NDArray[np.integer]) -> Iterator[list[int]]:
        """Row numbers of `pairs`, batch by batch: each takes, in order, what shares no item with what it has already.

        What was passed over waits in the queue of an item that stood in its way. While a batch has that item the whole
        queue is passed over at once: items that are in very many pairs would else be looked at for every batch.
        """
        queues: defaultdict[int, list[tuple[int, int, int, int]]] = defaultdict(list)  # heaps: place, row, both items
        heads: list[
            tuple[int, int]
        ] = []  # heap of each queue's first place and its item; outdated ones are passed over
        fresh = self._members(order)

        def wait(item: int, pair: tuple[int, int, int, int]) -> None:
            heappush(queues[item], pair)
            if queues[item][0] is pair:
                heappush(heads, (pair[0], item))

        def first_waiting(taken: Set[int], blocked: set[int]) -> tuple[int, int, int, int] | None:
            while heads:
                place, item = heappop(heads)
                queue = queues[item]
                if not queue or queue[0][0] != place:
                    continue
                if item in taken:
                    blocked.add(item)
                    continue
                pair = heappop(queue)
                if queue:
                    heappush(heads, (queue[0][0], item))
                return pair
            return None

        for _ in range(self.steps_per_epoch):
            batch: list[int] = []
            taken: set[int] = set()
            blocked: set[int] = set()
            while len(batch) < self.size and (pair := first_waiting(taken, blocked) or next(fresh, None)):
                _, row, first, second = pair
                if first in taken:
                    wait(first, pair)
                elif second in taken:
                    wait(second, pair)
                else:
                    batch.append(row)
                    taken.update((first, second))
            for item in blocked:
                heappush(heads, (queues[item][0][0], item))
            while len(batch) < self.size and (pair := first_waiting(frozenset(), blocked)):
                batch.append(pair[1])
            yield batch

    def _members(self, order: NDArray[np.integer]) -> Iterator[tuple[int, int, int, int]]:
        """Place, row, first and second item of pairs in some order; as Python's numbers only a few at a time."""
        for start in range(0, len(order), _AT_ONCE):
            rows = order[start : start + _AT_ONCE]
            yield from zip(count(start), rows.tolist(), *self.pairs[rows].T.tolist(), strict=False)


@dataclass
class _Epoch:
    """Batches of an epoch, `rows` `(steps, size)`, of which the first `made` are there."""

    number: int
    rows: NDArray[np.integer]
    source: Iterator[list[int]]
    made: int = 0

    def batch(self, place: int) -> NDArray[np.integer]:
        while self.made <= place:
            self.rows[self.made] = next(self.source)
            self.made += 1
        own: NDArray[np.integer] = self.rows[place]
        return own
