"""Leave-one-out: of a user's events S, train on S[:-2], validate S[:-2] -> S[-2], test S[:-1] -> S[-1]."""

from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlm2rec.data.dataset import Dataset

Which = Literal["validation", "test"]
_HELD_OUT: dict[Which, int] = {"validation": 2, "test": 1}  # events from the target on


class Split:
    """The leave-one-out split of a data set (Sec. 5.1.1); histories keep their last `max_history` events.

    Attributes:
        dataset: what is split.
        max_history: events a history keeps.
        train: S[:-2] of each user, item indices, uncut.
        popularity: `(n_items,)` int64, events of each item in all S[:-2].
    """

    def __init__(self, dataset: Dataset, max_history: int = 10) -> None:
        if max_history < 1:
            raise ValueError(f"max_history = {max_history}; a history has at least one event")
        self.dataset = dataset
        self.max_history = max_history
        self.train = dataset.sequences.heads(dataset.sequences.lengths - 2)
        counts = np.bincount(self.train.flat(), minlength=self.n_items)
        self.popularity: NDArray[np.int64] = counts.astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """What candidates and runs are tied to: of the data, where the split is leave-one-out."""
        return self.dataset.fingerprint

    @property
    def n_users(self) -> int:
        """Users in the data set; each has at least three events."""
        return len(self.dataset.sequences)

    @property
    def n_items(self) -> int:
        """Items in the catalogue."""
        return self.dataset.n_items

    def past(self, user: int, which: Which) -> NDArray[np.int32]:
        """All item indices before the target, oldest first."""
        return self.dataset.sequences[user][: -_HELD_OUT[which]]

    def history(self, user: int, which: Which) -> NDArray[np.int32]:
        """The last `max_history` item indices before the target, oldest first."""
        return self.past(user, which)[-self.max_history :]

    def target(self, user: int, which: Which) -> int:
        """The item index to find."""
        return int(self.dataset.sequences[user][-_HELD_OUT[which]])

    def seen(self, user: int) -> NDArray[np.int32]:
        """All items of the user's whole history, targets too, ascending and once each."""
        return np.unique(self.dataset.sequences[user])


def sample_users(n_users: int, count: int | None, seed: int, purpose: str) -> NDArray[np.int64]:
    """Draw users `(min(count, n_users),)` without replacement, ascending; a pure function of its arguments.

    Each `purpose` has a draw of its own. More users contain fewer: the 64 of a seed are among its 128. None, or
    more than there are, is everyone.
    """
    if count is None or count >= n_users:
        return np.arange(n_users, dtype=np.int64)
    if count < 1:
        raise ValueError(f"count = {count}; draw at least one user")
    state = int.from_bytes(blake2b(f"{seed}\0{purpose}".encode(), digest_size=16).digest(), "little")
    # Raw bits, which NumPy promises to keep from version to version; it does not promise that of `permutation`.
    keys = np.random.PCG64(state).random_raw(n_users)
    return np.sort(np.argsort(keys, kind="stable")[:count]).astype(np.int64)
