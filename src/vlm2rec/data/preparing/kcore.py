"""What survives of a log: the k-core, copies of events aside. Pure functions of number arrays, linear in the events."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

MIN_EVENTS = 3
"""Events of a user: one to train on, one to validate, one to test."""

_BLOCK = 1 << 24  # events counted at a time: counting makes numbers twice as wide
_SHARD = 1 << 23  # events looked through for copies at a time
_MIX = np.array([-7046029254386353131, -4417276706812531889, 1609587929392839161])  # odd: no bit is lost

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Core:
    """What survives, as masks over items `(n_items,)`, users `(n_users,)` and events `(n_events,)`."""

    items: Mask
    users: Mask
    events: Mask


def core(user: NDArray[np.integer], item: NDArray[np.integer], usable: Mask, n_users: int, k: int) -> Core:
    """The largest part in which every user has >= max(k, 3) events and every item >= k, within `usable` items.

    `user` and `item` `(n_events,)` number each event's user and item; events of user -1 do not count. Repeats count
    as events. That part is unique: removing in any other order ends in the same place, so users with fewer than 3
    events need no pass of their own. Each pass looks at what the last one left.
    """
    there = usable[item] & (user >= 0)
    left_users, left_items = user[there], item[there]
    of_user, of_item = count(left_users, n_users), count(left_items, len(usable))
    while True:
        users = of_user >= max(k, MIN_EVENTS)
        items = usable & (of_item >= k)
        stays = users[left_users] & items[left_items]
        if stays.all():
            break
        of_user -= count(left_users[~stays], n_users)
        of_item -= count(left_items[~stays], len(usable))
        left_users, left_items = left_users[stays], left_items[stays]
    there &= users[user]
    there &= items[item]
    return Core(items, users, there)


def count(numbers: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """How often each of 0 to n - 1 is there, `(n,)`."""
    counts = np.zeros(n, np.int64)
    for start in range(0, len(numbers), _BLOCK):
        counts += np.bincount(numbers[start : start + _BLOCK], minlength=n)
    return counts


def copies(user: NDArray[np.integer], item: NDArray[np.integer], time: NDArray[np.generic]) -> Mask:
    """Events `(n_events,)` whose user, item and time an earlier one has already."""
    found = np.zeros(len(user), bool)
    shards = -(-len(user) // _SHARD)
    shard_of = user % shards if shards > 1 else np.zeros(len(user), np.int32)
    for shard in range(shards):
        rows = np.flatnonzero(shard_of == shard)
        rows = rows[_may_be_copies(user[rows], item[rows], time[rows])]
        table = pl.DataFrame({"user": user[rows], "item": item[rows], "time": time[rows]})
        found[rows] = ~table.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return found


def _may_be_copies(user: NDArray[np.integer], item: NDArray[np.integer], time: NDArray[np.generic]) -> Mask:
    """Events `(n_events,)` whose hash another one has too: hardly any but copies, at a tenth of the cost."""
    fractional = time.dtype.kind == "f"
    bits = (time.astype(np.float64) + 0.0).view(np.int64) if fractional else time.astype(np.int64)  # -0.0 is 0.0
    key = user * _MIX[0] + item * _MIX[1] + bits * _MIX[2]  # modulo 2**64
    keys = pl.Series(key)
    if keys.n_unique() == len(keys):
        return np.zeros(len(keys), bool)
    return keys.is_duplicated().to_numpy()
