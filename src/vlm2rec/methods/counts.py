"""The sanity rows of every table: popularity, item-item co-occurrence, and chance.

They learn from S[:-2] alone, and score at test with the history that every other method sees.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vlm2rec.config import ItemKNN, PopRec, Random
from vlm2rec.data.splits import Split, Which
from vlm2rec.methods.base import Recommender
from vlm2rec.runs import Run
from vlm2rec.tasks import Scorer

_USERS_AT_ONCE = 64  # whose sparse sums over the catalogue stand in memory together


@dataclass(frozen=True)
class Popularity:
    """How often each item was bought in training: the same list for everybody."""

    popularity: np.ndarray
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Counts `(b, n)`."""
        return np.tile(self.popularity[columns].astype(np.float64), (len(rows), 1))

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Counts `(b, C)`."""
        counts: np.ndarray = self.popularity[items].astype(np.float64)
        return counts


@dataclass(frozen=True)
class Neighbours:
    """Sum, over the items of the history, of their cosine to each item in the user-item matrix of training."""

    histories: sparse.csr_array
    similarity: sparse.csr_array
    tolerance: float = 1e-12

    @classmethod
    def fit(cls, split: Split, users: np.ndarray, which: Which) -> "Neighbours":
        """Co-occurrence over all of S[:-2], cosine-normalised, an item's likeness to itself left out."""
        bought = _matrix([np.unique(items) for items in split.train], split.n_items)
        together = sparse.csr_array(bought.T @ bought)
        norm = 1 / np.sqrt(np.maximum(together.diagonal(), 1))
        together.setdiag(0)
        similarity = sparse.diags_array(norm) @ together @ sparse.diags_array(norm)
        histories = _matrix([np.unique(split.history(int(user), which)) for user in users], split.n_items)
        return cls(histories, sparse.csr_array(similarity))

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Summed cosines `(b, n)`."""
        # The similarity is symmetric, and a run of its rows costs nothing, where columns would be searched for.
        summed: np.ndarray = (self.similarity[columns] @ self.histories[rows].T).T.toarray()
        return summed

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Summed cosines `(b, C)`."""
        found = np.empty(items.shape)
        for start in range(0, len(rows), _USERS_AT_ONCE):
            part = slice(start, start + _USERS_AT_ONCE)
            summed = self.histories[rows[part]] @ self.similarity
            summed.sort_indices()  # or each entry is looked for from end to end
            found[part] = summed[np.arange(summed.shape[0])[:, None], items[part]].toarray()
        return found


@dataclass(frozen=True)
class Chance:
    """Random numbers, a function of the seed and the user."""

    seed: int
    users: np.ndarray
    n_items: int
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Uniform numbers `(b, n)`."""
        start, stop, _ = columns.indices(self.n_items)
        return np.stack([self._lots(user, start, stop) for user in self.users[rows]])

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Uniform numbers `(b, C)`."""
        return np.stack(
            [self._lots(user, 0, own.max() + 1)[own] for user, own in zip(self.users[rows], items, strict=True)]
        )

    def _lots(self, user: int, start: int, stop: int) -> np.ndarray:
        """A user's numbers for a run of items; the stream gives one an item, and can be entered anywhere."""
        stream = np.random.PCG64([self.seed, int(user)])
        return np.random.Generator(stream.advance(start)).random(stop - start)


class Counting(Recommender):
    """A method that needs no backbone and learns nothing but counts."""

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Scores of `users` at validation or test."""
        assert isinstance(self.config.method, PopRec | ItemKNN | Random)
        return counting_scorer(self.config.method, self.split, users, which, self.config.seed)


def counting_scorer(
    method: PopRec | ItemKNN | Random, split: Split, users: np.ndarray, which: Which, seed: int
) -> Scorer:
    """The scorer of a method that needs no backbone."""
    match method:
        case PopRec():
            return Popularity(split.popularity)
        case ItemKNN():
            return Neighbours.fit(split, users, which)
        case Random():
            return Chance(seed, users, split.n_items)


def _matrix(rows: list[np.ndarray], n_items: int) -> sparse.csr_array:
    """Binary rows of item indices."""
    pointers = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    columns = np.concatenate(rows)
    return sparse.csr_array((np.ones(len(columns)), columns, pointers), shape=(len(rows), n_items))
