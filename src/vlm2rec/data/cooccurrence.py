"""Which items shoppers take one after the other, counted some first items at a time: memory does not grow with pairs.

An index has the events of every item side by side, so that all pairs of a first item are found by going through its
own events. A part is a function of the index and its run of first items; nothing is merged, and nothing spilled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.ragged import Ragged

Ints = NDArray[np.int64]
Scores = NDArray[np.float64]

_USERS = 1 << 20  # whose events are laid end to end at a time
_EVENTS = 1 << 16  # whose followers are looked at together: they stay in a core's cache
_EVENT = np.int64(2**32 - 1)  # the half of an index entry that says which event
_AT_ONCE = 1 << 24  # pairs, before repeats are taken out
_CELLS = 1 << 20  # of a table that is sorted by rows


def best_pairs(sequences: Ragged, n_items: int, window: int, count: int, above: float) -> tuple[Ints, float]:
    """The `neighbours` `(m, 2)` of every item, and the highest score of all, 0 where nobody has two different items.

    What is returned takes 16 bytes a pair, at most `count` pairs an item, and twice that while it is put together.
    """
    chosen, highest = [np.empty((0, 2), np.int64)], 0.0
    for pairs, scores in co_occurrence(sequences, n_items, window):
        chosen.append(neighbours(pairs, scores, count, above))
        highest = max(highest, float(scores.max()))
    return np.concatenate(chosen), highest


def co_occurrence(
    sequences: Ragged, n_items: int, window: int, at_once: int = _AT_ONCE
) -> Iterator[tuple[Ints, Scores]]:
    """Ordered pairs `(n, 2)` of item indices, A then B, ascending, and their scores `(n,)`, in parts.

    `s(A, B) = sum of 1 / |S_u|` over the users u in whose sequence B comes at most `window` events after A; each user
    counts once a pair, whoever buys much counts less. An item is no pair with itself.

    All pairs of a first item are in one part, and parts ascend: end to end they are the whole. In memory are 16 bytes
    an event and some 50 bytes for each of `at_once` pairs; an item with more events than `at_once / window` has a part
    of its own, which is as large as it takes. Up to 2^32 events.
    """
    index = _Index.of(sequences, n_items)
    window = min(window, int(sequences.lengths.max(initial=0)) - 1)
    if window < 1:
        return
    # A pair of a user is one number: the item's place in its part, the other item, the user.
    most = max(1, (2**63 - 1) // (n_items * len(sequences)))
    first = 0
    while first < n_items:
        enough = np.searchsorted(index.starts, index.starts[first] + max(1, at_once // window), side="right") - 1
        last = min(max(first + 1, int(enough)), first + most, n_items)
        pairs, scores = _count(index, first, last, window, sequences.lengths)
        if len(pairs):
            yield pairs, scores
        first = last


def neighbours(pairs: Ints, scores: Scores, count: int, above: float) -> Ints:
    """The `count` best pairs `(m, 2)` of each first item among those that score more than `above`.

    In order of the first item, then falling score, then the second item. Pairs ascend, as `co_occurrence` gives them.
    """
    kept = scores > above
    pairs, scores = pairs[kept], scores[kept]
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    sizes = np.diff(starts, append=len(pairs))
    best = np.minimum(sizes, count)
    ends = np.cumsum(best)
    chosen = np.empty(int(best.sum()), np.int64)
    # Items with about as many pairs are sorted side by side, as rows of one table: seven times faster than all pairs
    # by three keys.
    width = 1
    while width < 2 * sizes.max(initial=0):
        alike = np.flatnonzero((sizes <= width) & (sizes > width // 2))
        for some in np.array_split(alike, 1 + len(alike) * width // _CELLS):
            places = np.arange(width)
            at = starts[some, None] + places
            loss = np.where(places < sizes[some, None], -scores[np.minimum(at, len(scores) - 1)], np.inf)
            order = np.argsort(loss, axis=1, kind="stable")[:, :count]
            real = places[:count] < best[some, None]
            chosen[(ends[some, None] - best[some, None] + places[:count])[real]] = (starts[some, None] + order)[real]
        width *= 2
    kept_pairs: Ints = pairs[chosen]
    return kept_pairs


@dataclass(frozen=True)
class _Index:
    """Events, numbered user by user and in order of time, and where each item's are.

    Attributes:
        items: `(n,)` int32, what was bought.
        users: `(n,)` int32, by whom.
        by_item: `(n,)` int64, item times 2^32 plus event, ascending.
        starts: `(n_items + 1,)` where each item's entries begin in `by_item`.
        ends: `(n_users,)` the first event after each user's.
    """

    items: NDArray[np.int32]
    users: NDArray[np.int32]
    by_item: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, sequences: Ragged, n_items: int) -> "_Index":
        ends = np.cumsum(sequences.lengths)
        total = int(sequences.lengths.sum())
        items, users = np.empty(total, np.int32), np.empty(total, np.int32)
        for row in range(0, len(sequences), _USERS):
            part = sequences[row : row + _USERS]
            here = slice(int(ends[row] - part.lengths[0]), int(ends[row + len(part) - 1]))
            items[here], users[here] = part.flat(), row + part.rows()
        by_item = items.astype(np.int64) << 32
        by_item |= np.arange(total, dtype=np.uint32)
        by_item.sort()
        starts = np.append(0, np.cumsum(np.bincount(items, minlength=n_items)))
        return cls(items, users, by_item, starts, ends)


def _count(index: _Index, first: int, last: int, window: int, lengths: Ints) -> tuple[Ints, Scores]:
    """Pairs whose first item is one of `first` to `last - 1`, and their scores."""
    n_items, n_users = len(index.starts) - 1, len(lengths)
    begin, end = index.starts[first], index.starts[last]
    codes = np.empty((end - begin) * window, np.int64)
    filled = 0
    gaps = np.arange(1, window + 1)
    for start in range(begin, end, _EVENTS):
        entries = index.by_item[start : min(start + _EVENTS, end)]
        event = entries & _EVENT
        user, item = index.users[event], entries >> 32
        after = event[:, None] + gaps
        real = after < index.ends[user][:, None]
        other = index.items[np.minimum(after, len(index.items) - 1)]
        real &= other != item[:, None]
        code = (((item - first) * n_items)[:, None] + other) * n_users + user[:, None]
        found = code[real]
        codes[filled : filled + len(found)] = found
        filled += len(found)
    codes = codes[:filled]
    codes.sort()
    pair, user = np.divmod(codes[np.diff(codes, prepend=-1) != 0], n_users)
    new = np.diff(pair, prepend=-1) != 0
    # By first and second item and by user: each sum runs through the users in their order.
    scores = np.bincount(np.cumsum(new) - 1, weights=1 / lengths[user], minlength=int(new.sum())).astype(np.float64)
    pairs = np.stack(np.divmod(pair[new], n_items), axis=1)
    pairs[:, 0] += first
    return pairs, scores
