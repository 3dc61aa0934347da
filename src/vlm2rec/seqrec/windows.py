"""Training windows: histories of S[:-2] with a target behind every position, each target once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.training.batches import windows


@dataclass(frozen=True)
class WindowBatch:
    """B windows of L positions: `inputs` and `targets` `(B, L)`, -1 where there is none; one user each `(B,)`.

    `negatives` `(B, L)` is an item that is nowhere in the user's S[:-2], one a position, where asked for.
    """

    users: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray | None


class Windows:
    """Windows of at most `max_history` inputs, cut from S[:-2] only; batch k is a function of (seed, k).

    `windows`: the first window of a user trains on all its positions, each later one on its last half, so every item
    but a user's first is a target once, and none has less than half a window of history where there is that much.
    `last`: one window a user, and in it the last position.
    """

    def __init__(self, split: Split, targets: Literal["windows", "last"], batch_size: int, seed: int) -> None:
        width = split.max_history
        rows = [row for user in range(split.n_users) for row in _rows(user, len(split.train[user]), width, targets)]
        if not rows:
            raise InputError(
                f"{split.dataset.path}: no user has two events before the last two, so nothing can be trained"
            )
        self._rows = np.array(rows)  # user, first input, number of inputs, first position with a target
        self._split = split
        self._batch_size = batch_size
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None
        self._flat = np.concatenate(split.train)
        self._starts = np.concatenate([[0], np.cumsum([len(items) for items in split.train])])
        self._codes = np.unique(np.repeat(np.arange(split.n_users), np.diff(self._starts)) * split.n_items + self._flat)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return -(-len(self._rows) // self._batch_size)

    def batch(self, step: int, negatives: bool = False) -> WindowBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._rows)))
        chosen = self._rows[self._order[1][place * self._batch_size : (place + 1) * self._batch_size]]
        users, first, length, start = chosen.T
        positions = np.arange(length.max())
        real = positions < length[:, None]
        at = np.where(real, (self._starts[users] + first)[:, None] + positions, 0)
        inputs = np.where(real, self._flat[at], -1).astype(np.int64)
        wanted = real & (positions >= start[:, None])
        targets = np.where(wanted, self._flat[np.where(wanted, at + 1, 0)], -1).astype(np.int64)
        drawn = (
            self._negatives(users, targets.shape, np.random.default_rng([self._seed, step, 1])) if negatives else None
        )
        return WindowBatch(users.astype(np.int64), inputs, targets, drawn)

    def _negatives(self, users: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Items outside each user's S[:-2], drawn anew where one fell into it."""
        n_items = self._split.n_items
        drawn = rng.integers(n_items, size=shape)
        for _ in range(100):  # a user who has bought nearly everything keeps what the last draw gave
            code = users[:, None] * n_items + drawn
            place = np.minimum(np.searchsorted(self._codes, code), len(self._codes) - 1)
            bad = self._codes[place] == code
            if not bad.any():
                break
            drawn[bad] = rng.integers(n_items, size=int(bad.sum()))
        return drawn.astype(np.int64)


def _rows(user: int, length: int, width: int, targets: str) -> list[tuple[int, int, int, int]]:
    """(user, first input, number of inputs, first position that has a target) of each window."""
    if length < 2:
        return []
    if targets == "last":
        inputs = min(width, length - 1)
        return [(user, length - 1 - inputs, inputs, inputs - 1)]
    cut = windows(length, width)
    return [(user, first, last - first, earliest - 1 - first) for first, earliest, last in cut]
