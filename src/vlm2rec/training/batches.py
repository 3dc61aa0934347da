"""Training samples and batches: batch k is a function of (seed, k) and of nothing else."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlm2rec.config import TrainingConfig
from vlm2rec.data.splits import Split, sample_users
from vlm2rec.errors import InputError


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
    """

    def __init__(self, split: Split, settings: TrainingConfig, seed: int) -> None:
        able = np.array([u for u in range(split.n_users) if len(split.train[u]) >= 2], dtype=np.int64)
        if not len(able):
            raise InputError(
                f"{split.dataset.path}: no user has two events before the last two, so nothing can be trained"
            )
        self.users = able[sample_users(len(able), settings.users, seed, "training")]
        self.batch_size = settings.batch_size
        self._split = split
        self._settings = settings
        self._seed = seed
        self._sets = {int(u): np.unique(split.train[u]) for u in self.users}
        self._counts = np.array([self._per_user(len(split.train[u]) - 1) for u in self.users])
        self._epoch: tuple[int, np.ndarray] | None = None
        self._branched = settings.prefixes == "branched"
        most = min(split.max_history, int(self._counts.max()))
        if self._branched and self.batch_size < 2 * most:
            raise InputError(
                f"training.batch_size = {self.batch_size}: training.prefixes=branched keeps a window's samples"
                f" together, here up to {most}, and they are no negatives of each other; take at least {2 * most},"
                " or set training.prefixes=separate"
            )

    def __len__(self) -> int:
        """Samples an epoch."""
        return int(self._counts.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; a lone smaller one where there are too few samples. The rest waits its turn."""
        return max(1, len(self) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        histories, targets = [], []
        for user, first, position in rows:
            sequence = self._split.train[user]
            histories.append(sequence[first:position].tolist())
            targets.append(int(sequence[position]))
        distinct = list(dict.fromkeys(targets))
        column = {item: j for j, item in enumerate(distinct)}
        items = np.array(distinct)
        negatives = np.stack([~np.isin(items, self._sets[int(user)]) for user in rows[:, 0]])
        return Batch(histories, distinct, np.array([column[item] for item in targets]), negatives)

    def _per_user(self, positions: int) -> int:
        if self._settings.samples == "last":
            return 1
        return min(positions, self._settings.samples_per_user or positions)

    def _order(self, epoch: int) -> np.ndarray:
        """All samples of an epoch in their order, `(n, 3)`: user, first item of the history, position."""
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            rows = np.concatenate(
                [
                    self._positions(int(user), int(count), rng)
                    for user, count in zip(self.users, self._counts, strict=True)
                ]
            )
            self._epoch = (epoch, _by_window(rows, rng) if self._branched else rng.permutation(rows))
        return self._epoch[1]

    def _positions(self, user: int, count: int, rng: np.random.Generator) -> np.ndarray:
        length, width = len(self._split.train[user]), self._split.max_history
        if self._settings.samples == "last":
            chosen = np.array([length - 1])
        elif count == length - 1:
            chosen = np.arange(1, length)
        else:
            chosen = 1 + rng.choice(length - 1, size=count, replace=False)
        first = window_starts(length, width)[chosen - 1] if self._branched else np.maximum(0, chosen - width)
        return np.stack([np.full(count, user), first, chosen], axis=1)


def windows(length: int, width: int) -> list[tuple[int, int, int]]:
    """Windows of a sequence of `length` > 0 items, each its first item, its first and its last target.

    The first window has the targets 1 to `width`, each later one `width // 2` more (the last what is left), so that
    every item but the first is a target once. A window ends with the item before its last target.
    """
    done = min(width, length - 1)
    found = [(0, 1, done)]
    while done < length - 1:
        new = min(max(1, width // 2), length - 1 - done)
        found.append((done + new - width, done + 1, done + new))
        done += new
    return found


def window_starts(length: int, width: int) -> np.ndarray:
    """First item of the window in which each of the items 1, 2, … of a sequence is a target, `(length - 1,)`."""
    starts = [first for first, earliest, last in windows(length, width) for _ in range(earliest, last + 1)]
    return np.array(starts, dtype=np.int64)


def _by_window(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples with the same user and first item side by side, the shortest history first; windows by lot."""
    windows, window = np.unique(rows[:, :2], axis=0, return_inverse=True)
    lot = rng.permutation(len(windows))
    return np.asarray(rows[np.lexsort((rows[:, 2], lot[window.reshape(-1)]))])
