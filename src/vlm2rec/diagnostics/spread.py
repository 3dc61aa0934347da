"""How much room a catalogue takes in its space, and whether two modalities agree on who is whose neighbour."""

import numpy as np
from numpy.typing import NDArray

from vlm2rec.diagnostics.space import Ints, Space

SAMPLED = 4096
"""Items whose covariance the effective rank is taken from."""

QUERIES = 1000
"""Items whose neighbours are looked up: 10,000 neighbours, so a share of them is known to about .01."""

K = 10
"""Neighbours of each."""

_AT_ONCE = 128


def effective_rank(space: Space, seed: int) -> float:
    """Directions that the unit vectors of the items really use: exp of the entropy of the covariance's spectrum.

    Between 1 (all on one line) and D, about their mean (Roy and Vetterli, EUSIPCO 2007, on variances). From at most
    `SAMPLED` items: it cannot be above their number, and falls short of the catalogue's where it comes near that, so
    compare views of one catalogue, not catalogues of two sizes. 0 where all vectors are the same.
    """
    items = _some(np.flatnonzero(~space.empty), SAMPLED, seed)
    vectors = space.vectors[items].astype(np.float64)
    vectors -= vectors.mean(axis=0)
    gram = vectors.T @ vectors if vectors.shape[1] <= len(vectors) else vectors @ vectors.T
    variances = np.clip(np.linalg.eigvalsh(gram), 0, None)
    total = variances.sum()
    if total <= 1e-12 * len(vectors):  # unit vectors that differ by rounding alone
        return 0.0
    shares = variances[variances > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def isotropy(space: Space) -> float:
    """Mean cosine of two different items, over all pairs: near 0 where the space is used all round, 1 in a cone."""
    count = int((~space.empty).sum())
    if count < 2:
        return 1.0
    mean = float(np.square(space.centre, dtype=np.float64).sum())  # of all pairs, each item with itself among them
    return (count * mean - 1) / (count - 1)


def nearest(space: Space, queries: Ints, k: int = K) -> NDArray[np.int64]:
    """The `k` items nearest by cosine to each of some items, itself left out: `(Q, k)`, in no order.

    Rows of items whose vector is zero mean nothing; nor does any row where fewer than `k` others are not.
    """
    found = np.empty((len(queries), k), np.int64)
    squares = np.where(space.empty, np.float32(np.inf), space.squares)
    for start in range(0, len(queries), _AT_ONCE):
        rows = queries[start : start + _AT_ONCE]
        apart = space.vectors[rows] @ space.vectors.T
        apart *= -2
        apart += squares
        apart[np.arange(len(rows)), rows] = np.inf
        found[start : start + len(rows)] = np.argpartition(apart, k - 1, axis=1)[:, :k]
    return found


def neighbour_queries(n_items: int, seed: int) -> Ints:
    """Items to look up, at most `QUERIES`."""
    return _some(np.arange(n_items), QUERIES, seed)


def overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Share of neighbours in common, a mean over queries: `(Q, k)` against `(Q, k)`."""
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    common: NDArray[np.int64] = (both[:, 1:] == both[:, :-1]).sum(axis=1)
    return float(common.mean() / first.shape[1])


def _some(items: Ints, most: int, seed: int) -> Ints:
    if len(items) <= most:
        return items
    return np.sort(np.random.default_rng([seed, 0x5EED]).choice(items, most, replace=False))
