"""The 100 fixed candidates of a user: drawn once, the same for every method.

A draw is a pure function of (data fingerprint, candidate seed, user id, split, kind). It never depends on which other
users are asked for, nor on NumPy's generators, whose streams may change between versions: the bits come from
SplitMix64 over a hash of these five, for many users at a time.
"""

from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.splits import Split, Which

Kind = Literal["sampled", "matched"]
CANDIDATES = 100

_DRAWS = 256  # with replacement; 100 different new ones are nearly always among them unless the catalogue is small
_USERS = 1024  # at a time
_ITEMS = 1 << 20  # at a time, where one user's row is drawn from all items
_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64 (Steele, Lea and Flood, 2014)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def draw_candidates(split: Split, users: NDArray[np.integer], which: Which, kind: Kind, seed: int) -> NDArray[np.int32]:
    """Negatives `(len(users), 100)` of item indices, in the order drawn, -1 where fewer exist.

    Both kinds draw without replacement from the items outside the user's whole history: `sampled` uniformly,
    `matched` with probability proportional to `split.matched`, an item's events in training but for cold items (an item
    that has none is never drawn).

    In memory are 400 bytes a user for what is returned, 30 MiB for the users at work, and for `matched` 8 bytes an
    item. `sampled` does nothing for each item of the catalogue.
    """
    uniform = kind == "sampled"
    weight = np.broadcast_to(np.int64(1), split.n_items) if uniform else split.matched(which)
    bounds = None if uniform else np.cumsum(weight)
    base = blake2b(f"{split.fingerprint}\0{seed}\0{which}\0{kind}\0".encode(), digest_size=16)
    user_ids = split.dataset.user_ids
    drawn = np.full((len(users), CANDIDATES), -1, np.int32)
    for start in range(0, len(users), _USERS):
        block = users[start : start + _USERS].tolist()
        seen = [split.seen(user) for user in block]
        keys = _keys(base, [user_ids[user] for user in block])
        part = drawn[start : start + _USERS]
        filled = _draw(part, keys[:, 0], seen, split.n_items, bounds)
        for row in np.flatnonzero(filled < CANDIDATES):
            _finish(part[row], int(filled[row]), keys[row, 1], seen[row], weight)
    return drawn


def _keys(base: blake2b, user_ids: list[str]) -> NDArray[np.uint64]:
    """Two seeds a user, `(b, 2)`."""
    digests = []
    for user_id in user_ids:
        own = base.copy()
        own.update(user_id.encode())
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).astype(np.uint64)


def _uniform(key: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """The first `count` numbers in [0, 1) of each key's stream: `(b,)` -> `(b, count)`."""
    return _numbers(key[:, None], np.arange(count))


def _numbers(key: NDArray[np.uint64] | np.uint64, place: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of the streams of `key`, each at its place, counted from 0; the two are broadcast."""
    state = key + _STEP * (place.astype(np.uint64) + np.uint64(1))  # wraps round, as it should
    state ^= state >> np.uint64(30)
    state *= _MIX1
    state ^= state >> np.uint64(27)
    state *= _MIX2
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw(
    out: NDArray[np.int32],
    key: NDArray[np.uint64],
    seen: list[NDArray[np.int32]],
    n_items: int,
    bounds: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Fill rows of `out` `(b, 100)` with the first new items among 256 draws with replacement; return how many each.

    Passing over what is seen or drawn already is exactly drawing without replacement in proportion to the weights,
    whose running sums `bounds` are; None where all weigh the same.
    """
    item = (_uniform(key, _DRAWS) * (n_items if bounds is None else bounds[-1])).astype(np.int64)
    if bounds is not None:
        item = _places(bounds, item)
    # By item, then by draw: what is searched for ascends, and an item drawn again stands behind its first time.
    ordered = np.sort(item * _DRAWS + np.arange(_DRAWS), axis=1)
    ascending = ordered // _DRAWS
    # One number for each (user, item), and a user's are all above those of the users before.
    code = np.arange(len(out))[:, None] * n_items + ascending
    own = np.repeat(np.arange(len(out)), [len(items) for items in seen]) * n_items + np.concatenate(seen)
    new = own[np.minimum(np.searchsorted(own, code), len(own) - 1)] != code
    new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    fresh = np.empty_like(new)
    np.put_along_axis(fresh, ordered - ascending * _DRAWS, new, axis=1)
    position = np.cumsum(fresh, axis=1) - 1
    fresh &= position < CANDIDATES
    row, column = np.nonzero(fresh)
    out[row, position[row, column]] = item[row, column]
    filled: NDArray[np.int64] = fresh.sum(axis=1)
    return filled


def _places(bounds: NDArray[np.int64], ticket: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place of `bounds` that is above each ticket; searched in order, which spares a large table's misses."""
    order = np.argsort(ticket, axis=None)
    place = np.empty(ticket.size, np.int64)
    place[order] = np.searchsorted(bounds, ticket.reshape(-1)[order], side="right")
    return place.reshape(ticket.shape)


def _finish(
    out: NDArray[np.int32], filled: int, key: np.uint64, seen: NDArray[np.int32], weight: NDArray[np.int64]
) -> None:
    """Draw the rest of one user's row from all that is left, at a cost of one number an item.

    Every item rings after an exponential time of rate `weight`; the order of ringing is the order of drawing
    (Efraimidis and Spirakis, 2006). It carries on from what is drawn, since what is left is drawn as if anew.
    """
    taken = np.concatenate([seen, out[:filled]])
    first, rings = np.empty(0, np.int64), np.empty(0)
    for start in range(0, len(weight), _ITEMS):
        part = weight[start : start + _ITEMS]
        left = part > 0
        left[taken[(taken >= start) & (taken < start + len(part))] - start] = False
        items = np.flatnonzero(left)
        ring = -np.log1p(-_numbers(key, start + items)) / part[items]
        items, ring = np.concatenate([first, start + items]), np.concatenate([rings, ring])
        soonest = np.argsort(ring, kind="stable")[: CANDIDATES - filled]
        first, rings = items[soonest], ring[soonest]
    out[filled : filled + len(first)] = first
