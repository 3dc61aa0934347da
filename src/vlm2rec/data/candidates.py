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
_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64 (Steele, Lea and Flood, 2014)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def draw_candidates(split: Split, users: NDArray[np.integer], which: Which, kind: Kind, seed: int) -> NDArray[np.int32]:
    """Negatives `(len(users), 100)` of item indices, in the order drawn, -1 where fewer exist.

    Both kinds draw without replacement from the items outside the user's whole history: `sampled` uniformly,
    `matched` with probability proportional to an item's events in all S[:-2] (an item that has none is never drawn).
    """
    weight = np.ones(split.n_items, np.int64) if kind == "sampled" else split.popularity
    bounds = np.cumsum(weight)
    base = blake2b(f"{split.fingerprint}\0{seed}\0{which}\0{kind}\0".encode(), digest_size=16)
    drawn = np.full((len(users), CANDIDATES), -1, np.int32)
    for start in range(0, len(users), _USERS):
        block = [int(user) for user in users[start : start + _USERS]]
        seen = [split.seen(user) for user in block]
        keys = _keys(base, [split.dataset.user_ids[user] for user in block])
        part = drawn[start : start + _USERS]
        filled = _draw(part, keys[:, 0], seen, bounds)
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
    state = key[:, None] + _STEP * np.arange(1, count + 1, dtype=np.uint64)  # wraps round, as it should
    state ^= state >> np.uint64(30)
    state *= _MIX1
    state ^= state >> np.uint64(27)
    state *= _MIX2
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw(
    out: NDArray[np.int32], key: NDArray[np.uint64], seen: list[NDArray[np.int32]], bounds: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Fill rows of `out` `(b, 100)` with the first new items among 256 draws with replacement; return how many each.

    Passing over what is seen or drawn already is exactly drawing without replacement in proportion to the weights.
    """
    n_items, rows = len(bounds), np.arange(len(out))[:, None]
    ticket = (_uniform(key, _DRAWS) * bounds[-1]).astype(np.int64)
    item = np.searchsorted(bounds, ticket, side="right")
    # One number for each (user, item).
    taken = np.concatenate([row * n_items + own for row, own in enumerate(seen)])
    code = rows * n_items + item
    place = np.minimum(np.searchsorted(taken, code), len(taken) - 1)  # ascending: by user, then by item
    fresh = taken[place] != code
    order = np.argsort(item, axis=1, kind="stable")
    ascending = np.take_along_axis(item, order, axis=1)
    again = np.zeros_like(fresh)
    np.put_along_axis(again, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    fresh &= ~again
    position = np.cumsum(fresh, axis=1) - 1
    fresh &= position < CANDIDATES
    row, column = np.nonzero(fresh)
    out[row, position[row, column]] = item[row, column]
    filled: NDArray[np.int64] = fresh.sum(axis=1)
    return filled


def _finish(
    out: NDArray[np.int32], filled: int, key: np.uint64, seen: NDArray[np.int32], weight: NDArray[np.int64]
) -> None:
    """Draw the rest of one user's row from all that is left, at a cost of one number an item.

    Every item rings after an exponential time of rate `weight`; the order of ringing is the order of drawing
    (Efraimidis and Spirakis, 2006). It carries on from what is drawn, since what is left is drawn as if anew.
    """
    left = weight > 0
    left[seen] = False
    left[out[:filled]] = False
    items = np.flatnonzero(left)
    chance = _uniform(np.array([key], np.uint64), len(weight))[0, items]
    ring = -np.log1p(-chance) / weight[items]
    more = items[np.argsort(ring, kind="stable")][: CANDIDATES - filled]
    out[filled : filled + len(more)] = more
