"""Training samples and batches: batch k is a function of (seed, k) and of nothing else."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm2rec.config import TrainingConfig
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split, sample_users
from vlm2rec.errors import InputError

_AT_ONCE = 1 << 22  # samples looked through for where windows begin


@dataclass(frozen=True)
class Batch:
    """B histories, their N distinct targets, and which target is whose negative.

    `positive` (B,) indexes `targets`; `negatives` (B, N) is False for a user's own target and for every item of
    that user's S[:-2].
    """

    histories: list[list[int]]
    targets: list[int]
    positive: np.ndarray
    negatives: np.ndarray


def objective_arguments(
    batch: Batch, split: Split, logq: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`negatives`, `positive` and `log_q` as objectives take them; `log_q` is None without `logq`."""
    shares = torch.from_numpy(split.popularity[batch.targets] / split.popularity.sum())
    negatives, positive = (torch.from_numpy(part).to(device) for part in (batch.negatives, batch.positive))
    return negatives, positive, shares.log().to(device) if logq else None


class Samples:
    """(history, next item) pairs of the training users, cut from S[:-2] only.

    A sample is a user and a position p >= 1: the history is what came before p, at most `max_history` items of it,
    the target is the item at p. `last` takes the last position of each user, `all` every one, or
    `samples_per_user` of them, drawn anew each epoch.

    With `prefixes` "branched" samples come window by window, in the windows' random order: the histories of a window
    all begin at its first item and grow by one. A batch holds as many samples as ever, so it may cut a window in two.

    Samples are numbered user by user and made when a batch asks for them. In memory are 24 bytes a user and an epoch's
    order: 4 bytes a sample, branched 16 bytes a window; `samples_per_user` adds 4 bytes a sample.
    """

    def __init__(self, split: Split, settings: TrainingConfig, seed: int) -> None:
        able = np.flatnonzero(split.train.lengths >= 2)
        if not len(able):
            raise InputError(f"{split.dataset.path}: no user has two events to train on, so nothing can be trained")
        self.users = able[sample_users(len(able), settings.users, seed, "training")]
        self.batch_size = settings.batch_size
        self._split = split
        self._settings = settings
        self._seed = seed
        self._positions = split.train.lengths[self.users] - 1  # that have a target, of each user
        counts = self._counts()
        self._bounds = np.append(0, np.cumsum(counts))
        self._epoch: _Epoch | None = None
        self._branched = settings.prefixes == "branched"
        most = min(split.max_history, int(counts.max()))
        if self._branched and self.batch_size < 2 * most:
            raise InputError(
                f"training.batch_size = {self.batch_size}: training.prefixes=branched keeps a window's samples"
                f" together, here up to {most}, and they are no negatives of each other; take at least {2 * most},"
                " or set training.prefixes=separate"
            )

    def __len__(self) -> int:
        """Samples an epoch."""
        return int(self._bounds[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; a lone smaller one where there are too few samples. The rest waits its turn."""
        return max(1, len(self) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = None  # two orders need not stand in memory together
            self._epoch = self._draw(epoch)
        places = np.arange(place * self.batch_size, min((place + 1) * self.batch_size, len(self)))
        row, position = self._located(self._epoch.samples(places), self._epoch.drawn)
        users, histories, targets = self.users[row].tolist(), [], []
        for user, first, last in zip(users, self._firsts(row, position).tolist(), position.tolist(), strict=True):
            sequence = self._split.train[user]
            histories.append(sequence[first:last].tolist())
            targets.append(int(sequence[last]))
        distinct = list(dict.fromkeys(targets))
        column = {item: j for j, item in enumerate(distinct)}
        negatives = self._unbought(self.users[row], np.array(distinct))
        return Batch(histories, distinct, np.array([column[item] for item in targets]), negatives)

    def _unbought(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Which of some different items are not in a user's S[:-2] `(users, items)`."""
        train = self._split.train
        own = Ragged(train.values, train.starts[users], train.lengths[users])
        bought, order = train.values[own.places()], np.argsort(items)
        column = order[np.minimum(np.searchsorted(items, bought, sorter=order), len(items) - 1)]
        found = items[column] == bought
        unbought = np.ones((len(users), len(items)), bool)
        unbought[own.rows()[found], column[found]] = False
        return unbought

    def _counts(self) -> np.ndarray:
        """Samples an epoch of each user."""
        if self._settings.samples == "last":
            return np.ones_like(self._positions)
        return np.minimum(self._positions, self._settings.samples_per_user or self._positions)

    def _located(self, samples: np.ndarray, drawn: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Row of `users` and position of each sample; `drawn` are the positions of all, where they were drawn."""
        row = np.searchsorted(self._bounds, samples, side="right") - 1
        if drawn is not None:
            return row, drawn[samples].astype(np.int64)
        if self._settings.samples == "last":
            return row, self._positions[row]
        return row, samples - self._bounds[row] + 1

    def _firsts(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        """First item of each sample's history."""
        width = self._split.max_history
        if self._branched:
            return windows(self._positions[row], width, window_of(position, width))[0]
        firsts: np.ndarray = np.maximum(0, position - width)
        return firsts

    def _draw(self, epoch: int) -> "_Epoch":
        rng = np.random.default_rng([self._seed, epoch])
        drawn = self._draw_positions(rng) if self._settings.samples_per_user is not None else None
        if not self._branched:
            return _Epoch(epoch, drawn, shuffled(len(self), rng))
        begins = self._window_begins(drawn)
        order = np.argsort(shuffled(len(begins), rng))
        sizes = np.diff(begins, append=len(self))[order]
        return _Epoch(epoch, drawn, begins[order], np.cumsum(sizes) - sizes)

    def _draw_positions(self, rng: np.random.Generator) -> np.ndarray | None:
        """A position a sample; None where each user has them all.

        The one loop over users: each takes from the generator's stream where the one before stopped.
        """
        counts = np.diff(self._bounds)
        choosing = np.flatnonzero(counts < self._positions)
        if self._settings.samples == "last" or not len(choosing):
            return None
        drawn = self._located(np.arange(len(self)), None)[1].astype(np.int32)
        for row in choosing.tolist():
            start, stop = self._bounds[row], self._bounds[row + 1]
            chosen = 1 + rng.choice(self._positions[row], size=stop - start, replace=False)
            drawn[start:stop] = np.sort(chosen) if self._branched else chosen
        return drawn

    def _window_begins(self, drawn: np.ndarray | None) -> np.ndarray:
        """The first sample of each window that has one, ascending, `(windows,)`."""
        found = []
        for start in range(0, len(self), _AT_ONCE):
            samples = np.arange(max(0, start - 1), min(start + _AT_ONCE, len(self)))
            row, position = self._located(samples, drawn)
            window = window_of(position, self._split.max_history)
            found.append(samples[1:][(row[1:] != row[:-1]) | (window[1:] != window[:-1])])
        return np.concatenate([[0], *found])


@dataclass(frozen=True)
class _Epoch:
    """An epoch's samples in their order: `order` itself, or windows that begin at the samples `order`.

    Attributes:
        number: which epoch, from 0.
        drawn: the position of each sample, where positions are drawn.
        order: `(n,)` samples or `(windows,)` first samples.
        places: `(windows,)` ascending, how many samples come before each window; None without windows.
    """

    number: int
    drawn: np.ndarray | None
    order: np.ndarray
    places: np.ndarray | None = None

    def samples(self, places: np.ndarray) -> np.ndarray:
        """The samples at some places of the epoch."""
        samples: np.ndarray
        if self.places is None:
            samples = self.order[places]
        else:
            window = np.searchsorted(self.places, places, side="right") - 1
            samples = self.order[window] + places - self.places[window]
        return samples


def windows(last: np.ndarray, width: int, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First item, first and last target of windows of sequences whose last items stand at `last` >= 1.

    The first window has the targets 1 to `width`, each later one `width // 2` more (the last what is left), so that
    every item but the first is a target once. A window ends with the item before its last target. `number` is a
    window's place in its sequence, from 0, below `window_of(last, width) + 1`.
    """
    step = max(1, width // 2)
    end = np.minimum(width + number * step, last)
    return np.maximum(0, end - width), np.where(number == 0, 1, width + (number - 1) * step + 1), end


def window_of(position: np.ndarray, width: int) -> np.ndarray:
    """Place, in its sequence, of the window in which the item at `position` >= 1 is a target."""
    number: np.ndarray = -(np.minimum(0, width - position) // max(1, width // 2))
    return number


def shuffled(count: int, rng: np.random.Generator) -> np.ndarray:
    """`rng.permutation(count)` in four bytes a number, where they hold it."""
    order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    rng.shuffle(order)
    return order
