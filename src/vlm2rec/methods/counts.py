"""The sanity rows of every table: popularity, item-item co-occurrence, and chance.

They learn from S[:-2] alone, and score at test with the history that every other method sees.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vlm2rec.config import ItemKNN, PopRec, Random
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split, Which
from vlm2rec.methods.base import Recommender
from vlm2rec.runs import Run
from vlm2rec.tasks import Scorer

_USERS = 1 << 20  # whose events are made distinct together
_TILE = 1024  # users, and items, that are scored together
_PAIRS = 1 << 24  # cosines that are counted together
_KEPT = 1 << 27  # cosines that are kept, 12 bytes each
_SKIP = 1000  # random numbers are drawn in the time that it takes to skip some


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


class Neighbours:
    """Sum, over the items of the history, of their cosine to each item in the user-item matrix of training.

    Cosines are over all of S[:-2], an item's likeness to itself left out. They are counted when a score needs them, and
    only those to items of the evaluated users' histories. Up to 1.5 GiB of them are kept, those of the items that are
    the most work for their size first; others are counted anew for every block of users. A user's cosines are summed
    in order of the items, so that a score is the same to the bit in any company.

    In memory are 8 bytes an event, 8 more if its item is in some evaluated user's history, and 50 bytes a user and an
    item, besides what is kept; half as much again while they are made.

    Attributes:
        tolerance: scores closer than this are ties.
    """

    tolerance: float = 1e-12

    def __init__(self, split: Split, users: np.ndarray, which: Which) -> None:
        histories = [np.unique(split.history(int(user), which)) for user in users]
        # Below, "known" are the items of these histories, by their place among them.
        self._known, place = np.unique(np.concatenate(histories), return_inverse=True)
        ends = np.cumsum([len(own) for own in histories])
        self._histories = _rows_of(place, ends, len(self._known), np.float64)
        bought = _bought(split.train, split.n_items)
        self._baskets = bought[:, self._known]  # (users, known)
        self._buyers = bought.T.tocsr()  # (items, users)
        self._norm = 1 / np.sqrt(np.maximum(np.diff(self._buyers.indptr), 1))
        work = self._buyers @ np.diff(self._baskets.indptr).astype(np.int64)
        self._most = np.minimum(work, len(self._known))  # cosines that an item can have
        dearest = np.argsort(-work / np.maximum(self._most, 1), kind="stable")
        self._keep = np.empty(split.n_items, bool)
        self._keep[dearest] = np.cumsum(self._most[dearest]) <= _KEPT
        room = int(self._most[self._keep].sum())
        # Of the kept: what has been counted lies end to end, each item's where `_starts` says, -1 if it has not been.
        self._cosines, self._columns, self._filled = np.empty(room), np.empty(room, np.int32), 0
        self._starts, self._sizes = np.full(split.n_items, -1), np.zeros(split.n_items, np.int64)

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Summed cosines `(b, n)`."""
        return self._summed(rows, np.arange(*columns.indices(len(self._norm))))

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Summed cosines `(b, C)`."""
        found = np.empty(items.shape)
        for start in range(0, len(rows), _TILE):
            own = items[start : start + _TILE]
            asked, place = np.unique(own, return_inverse=True)
            order = np.argsort(place, axis=None)
            place, (row, column) = place.reshape(-1)[order], np.unravel_index(order, own.shape)
            for first in range(0, len(asked), _TILE):
                tile = self._summed(rows[start : start + _TILE], asked[first : first + _TILE])
                here = slice(*np.searchsorted(place, (first, first + _TILE)))
                found[start + row[here], column[here]] = tile[row[here], place[here] - first]
        return found

    def _summed(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Summed cosines of users and ascending items `(b, n)`."""
        histories, total = self._histories[rows], np.cumsum(self._most[items])
        cuts = np.unique(np.searchsorted(total, np.arange(_PAIRS, total[-1:].sum(), _PAIRS)))
        # By known item, each sum then runs through a history in order of the items.
        parts = [(histories @ self._near(some).T).toarray() for some in np.split(items, cuts)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _near(self, items: np.ndarray) -> sparse.csr_array:
        """Cosines of items to known ones `(n, known)`."""
        keep = self._keep[items]
        if keep.all():
            return self._recalled(items)
        if not keep.any():
            return self._counted(items)
        parts = [self._recalled(items[keep]), self._counted(items[~keep])]
        place = np.argsort(np.argsort(~keep, kind="stable"))
        return sparse.csr_array(sparse.vstack(parts, format="csr")[place])

    def _recalled(self, items: np.ndarray) -> sparse.csr_array:
        """Their cosines, counted the first time."""
        new = items[self._starts[items] < 0]
        if len(new):
            counted = self._counted(new)
            end = self._filled + counted.nnz
            self._cosines[self._filled : end], self._columns[self._filled : end] = counted.data, counted.indices
            self._starts[new], self._sizes[new] = self._filled + counted.indptr[:-1], np.diff(counted.indptr)
            self._filled = end
        rows = Ragged(self._columns, self._starts[items], self._sizes[items])
        places, ends = rows.places(), np.cumsum(rows.lengths)
        parts = (self._cosines[places], self._columns[places], np.append(0, ends))
        return sparse.csr_array(parts, shape=(len(items), len(self._known)))

    def _counted(self, items: np.ndarray) -> sparse.csr_array:
        """Their cosines, counted anew."""
        both = self._buyers[items] @ self._baskets
        one, other = np.repeat(items, np.diff(both.indptr)), self._known[both.indices]
        cosines = self._norm[one] * both.data * self._norm[other]
        cosines[one == other] = 0
        return sparse.csr_array((cosines, both.indices, both.indptr), shape=both.shape)


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
        return np.stack([self._few(user, own) for user, own in zip(self.users[rows], items, strict=True)])

    def _lots(self, user: int, start: int, stop: int) -> np.ndarray:
        """A user's numbers for a run of items; the stream gives one an item, and can be entered anywhere."""
        stream = np.random.PCG64([self.seed, int(user)])
        return np.random.Generator(stream.advance(start)).random(stop - start)

    def _few(self, user: int, items: np.ndarray) -> np.ndarray:
        """A user's numbers for some items; those between are skipped where that takes less time."""
        lots: np.ndarray
        if items.max() < _SKIP * len(items):
            lots = self._lots(user, 0, items.max() + 1)[items]
            return lots
        asked, place = np.unique(items, return_inverse=True)
        stream = np.random.PCG64([self.seed, int(user)])
        numbers, found = np.random.Generator(stream), np.empty(len(asked))
        at = 0
        for k, item in enumerate(asked.tolist()):
            stream.advance(item - at)
            found[k] = numbers.random()
            at = item + 1
        lots = found[place]
        return lots


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
            return Neighbours(split, users, which)
        case Random():
            return Chance(seed, users, split.n_items)


def _bought(sequences: Ragged, n_items: int) -> sparse.csr_array:
    """Who has bought what, `(users, items)`, ones of int32: they are counted, and float32 would stop at 2^24."""
    items, sizes = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for start in range(0, len(sequences), _USERS):
        part = sequences[start : start + _USERS]
        codes = np.sort(part.rows() * n_items + part.flat())
        row, item = np.divmod(codes[np.diff(codes, prepend=-1) != 0], n_items)
        items.append(item.astype(np.int32))
        sizes.append(np.bincount(row, minlength=len(part)))
    return _rows_of(np.concatenate(items), np.cumsum(np.concatenate(sizes)), n_items, np.int32)


def _rows_of(columns: np.ndarray, ends: np.ndarray, width: int, dtype: type) -> sparse.csr_array:
    """Rows of ones: where they stand, and where in `columns` each row ends."""
    pointers = np.append(0, ends)
    return sparse.csr_array((np.ones(len(columns), dtype), columns, pointers), shape=(len(ends), width))
