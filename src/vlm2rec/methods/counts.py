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


@dataclass(frozen=True)
class Popularity:
    """How often each item was bought in training: the same list for everybody."""

    popularity: np.ndarray
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Counts `(b, n_items)`."""
        return np.broadcast_to(self.popularity.astype(np.float64), (len(rows), len(self.popularity)))


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

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Summed cosines `(b, n_items)`."""
        summed: np.ndarray = (self.histories[rows] @ self.similarity).toarray()
        return summed


@dataclass(frozen=True)
class Chance:
    """Random numbers, a function of the seed and the user."""

    seed: int
    users: np.ndarray
    n_items: int
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Uniform numbers `(b, n_items)`."""
        return np.stack(
            [np.random.default_rng([self.seed, int(user)]).random(self.n_items) for user in self.users[rows]]
        )


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
