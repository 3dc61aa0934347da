"""Training windows: histories of S[:-2] with a target behind every position, each target once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.training.batches import shuffled, window_of, windows


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

    Windows are cut when a batch asks for them. In memory are 8 bytes a user and an epoch's order, 4 bytes a window.
    """

    def __init__(self, split: Split, targets: Literal["windows", "last"], batch_size: int, seed: int) -> None:
        last = split.train.lengths - 1
        counts = np.minimum(1, last) if targets == "last" else window_of(last, split.max_history) + 1
        self._bounds = np.append(0, np.cumsum(np.where(last < 1, 0, counts)))
        if not len(self):
            raise InputError(f"{split.dataset.path}: no user has two events to train on, so nothing can be trained")
        self._split = split
        self._targets = targets
        self._batch_size = batch_size
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch; the last one may be smaller."""
        return -(-len(self) // self._batch_size)

    def batch(self, step: int, negatives: bool = False) -> WindowBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = None  # two orders need not stand in memory together
            self._order = (epoch, shuffled(len(self), np.random.default_rng([self._seed, epoch])))
        chosen = self._order[1][place * self._batch_size : (place + 1) * self._batch_size]
        users = np.searchsorted(self._bounds, chosen, side="right") - 1
        first, length, start = self._cut(users, chosen - self._bounds[users])
        positions = np.arange(length.max())
        real = positions < length[:, None]
        train = self._split.train
        at = np.where(real, (train.starts[users] + first)[:, None] + positions, 0)
        inputs = np.where(real, train.values[at], -1).astype(np.int64)
        wanted = real & (positions >= start[:, None])
        targets = np.where(wanted, train.values[np.where(wanted, at + 1, 0)], -1).astype(np.int64)
        drawn = (
            self._negatives(users, targets.shape, np.random.default_rng([self._seed, step, 1])) if negatives else None
        )
        return WindowBatch(users.astype(np.int64), inputs, targets, drawn)

    def _cut(self, users: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First input, number of inputs and first position that has a target, of windows by their number."""
        width, last = self._split.max_history, self._split.train.lengths[users] - 1
        if self._targets == "last":
            length = np.minimum(width, last)
            return last - length, length, length - 1
        first, earliest, end = windows(last, width, number)
        return first, end - first, earliest - 1 - first

    def _negatives(self, users: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Items outside each user's S[:-2], drawn anew where one fell into it."""
        n_items, train = self._split.n_items, self._split.train
        own = Ragged(train.values, train.starts[users], train.lengths[users])
        bought = np.unique(own.rows() * n_items + train.values[own.places()])  # a number for each (row, item)
        drawn = rng.integers(n_items, size=shape)
        for _ in range(100):  # a user who has bought nearly everything keeps what the last draw gave
            code = np.arange(len(users))[:, None] * n_items + drawn
            bad = bought[np.minimum(np.searchsorted(bought, code), len(bought) - 1)] == code
            if not bad.any():
                break
            drawn[bad] = rng.integers(n_items, size=int(bad.sum()))
        return drawn.astype(np.int64)
