"""Distances between histories and the items of a catalogue, in one view: what every measurement starts from.

All vectors are taken at unit length, so a squared distance is 2 - 2 cos and lies in [0, 4]. Untrained spaces are so
narrow (cosines of .9999) that this difference would lose its digits in float32; seen from the catalogue's mean, the
same distances are sums and products of small numbers, and keep them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Unit = NDArray[np.float32]

BLOCK_FLOATS = 1 << 19
"""Numbers gathered at once: 2 MiB, about what stays in a core's cache (64 MiB at once takes twice the time)."""

READ_FLOATS = 1 << 24
"""Numbers read at once from a file (64 MiB)."""

UNRELATED = 2.0
"""Squared distance of unit vectors at a right angle; what anything has to a vector of zeros, which points nowhere."""

_NARROW = (1e-30, 1e30)  # lengths that float32 divides by without trouble


class Rows(Protocol):
    """Vectors `(n, D)` that can be read a few at a time: an array, a memory map, or a sum that is made on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        ...

    def __getitem__(self, rows: slice | Ints) -> Floats:
        """Some of them, `(m, D)`."""
        ...


class Chosen:
    """Some rows of others, in any order."""

    def __init__(self, rows: Rows, chosen: Ints) -> None:
        self.shape = (len(chosen), rows.shape[1])
        self._rows, self._chosen = rows, chosen

    def __getitem__(self, rows: slice | Ints) -> Floats:
        return self._rows[self._chosen[rows]]


@dataclass(frozen=True)
class Distances:
    """From each history to the items listed for it.

    Attributes:
        squared: `(U, L)`; `UNRELATED` where one of the two is a vector of zeros.
        lengths: `(U,)` of the histories' raw vectors.
        heard: `(U, L)`, neither the history nor the item is a vector of zeros.
    """

    squared: Unit
    lengths: NDArray[np.float64]
    heard: NDArray[np.bool_]


class Space:
    """A catalogue's unit vectors in one view.

    Attributes:
        vectors: `(N, D)` float32, unit vectors less `centre`; rows of empty items are zero.
        centre: `(D,)`, the mean of the unit vectors.
        squares: `(N,)`, squared lengths of `vectors`.
        lengths: `(N,)`, of the raw vectors.
        empty: `(N,)`, items whose vector is zero: they have nothing to say in this view.
    """

    def __init__(self, items: Rows) -> None:
        """Read the items `(N, D)`. Raises ValueError where one is not finite."""
        count, width = items.shape
        self.vectors = np.empty((count, width), np.float32)
        self.lengths = np.empty(count)
        total = np.zeros(width)
        for rows in blocks(count, width, READ_FLOATS):
            self.vectors[rows], self.lengths[rows] = unit_and_length(items[rows])
            total += self.vectors[rows].sum(axis=0, dtype=np.float64)
        self.empty = ~(self.lengths > 0)
        self.centre: Unit = (total / max(1, int((~self.empty).sum()))).astype(np.float32)
        self.squares: Unit = np.empty(count, np.float32)
        for rows in blocks(count, width, READ_FLOATS):
            self.vectors[rows] -= self.centre
            self.vectors[rows][self.empty[rows]] = 0
            self.squares[rows] = _squares(self.vectors[rows])

    def distances(self, queries: Mapping[str, Rows], listed: Ints) -> dict[str, Distances]:
        """Squared distances of some histories to the items listed for each, by name of the queries.

        Args:
            queries: name -> (U, D) raw vectors. Several together cost little more than one.
            listed: (U, L) item indices.

        Raises:
            ValueError: a vector is not finite, or of another width.
        """
        width = self.vectors.shape[1]
        for name, vectors in queries.items():
            if vectors.shape != (len(listed), width):
                raise ValueError(f"{name}: queries {tuple(vectors.shape)} must be ({len(listed)}, {width})")
        squared = {name: np.empty(listed.shape, np.float32) for name in queries}
        lengths = {name: np.empty(len(listed)) for name in queries}
        for rows in blocks(len(listed), width, BLOCK_FLOATS):
            asked = {}
            for name, vectors in queries.items():
                asked[name], lengths[name][rows] = unit_and_length(vectors[rows])
                asked[name] -= self.centre
            for part in blocks(rows.stop - rows.start, listed.shape[1] * width, BLOCK_FLOATS):
                some = listed[rows][part]
                gathered, squares = self.vectors[some], self.squares[some]  # (b, L, D), (b, L)
                for name, shifted in asked.items():
                    dots = np.matmul(gathered, shifted[part, :, None])[..., 0]
                    squared[name][rows][part] = squares + _squares(shifted[part])[:, None] - 2 * dots
        found = {}
        for name in queries:
            heard = ~self.empty[listed] & (lengths[name] > 0)[:, None]
            apart = np.where(heard, np.maximum(squared[name], 0), np.float32(UNRELATED))
            found[name] = Distances(apart, lengths[name], heard)
        return found


def unit(vectors: Floats) -> Unit:
    """Rows at unit length as float32, (n, D); a row of zeros stays zero. Raises ValueError if one is not finite."""
    return unit_and_length(vectors)[0]


def unit_and_length(vectors: Floats) -> tuple[Unit, NDArray[np.float64]]:
    """Rows at unit length as float32, (n, D), and how long they were, (n,). A row of zeros stays zero.

    Raises ValueError where a vector is not finite.
    """
    wide = np.asarray(vectors, dtype=np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide, dtype=np.float64))  # squares may overflow in float32
    if not np.isfinite(lengths).all():
        raise ValueError("embeddings hold a NaN or an infinity")
    divisor = np.where(lengths > 0, lengths, 1)[:, None]
    if ((divisor > _NARROW[0]) & (divisor < _NARROW[1])).all():
        divisor = divisor.astype(np.float32)
    return (wide / divisor).astype(np.float32, copy=False), lengths


def blocks(count: int, floats_a_row: int, most: int) -> Iterator[slice]:
    """Slices over `count` rows such that one holds at most about `most` numbers."""
    step = max(1, most // max(1, floats_a_row))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _squares(vectors: Unit) -> Unit:
    lengths: Unit = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).astype(np.float32)
    return lengths


def listing(targets: Ints, candidates: Ints, n_items: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Each user's target with the candidates behind it, and which of these there are: `(U, 1 + C)`, `(U, C)`.

    Args:
        targets: (U,) item indices.
        candidates: (U, C) item indices, -1 where there is none; there the listing has item 0.

    Raises:
        ValueError: shapes do not fit, there is nobody, or an index lies outside the catalogue.
    """
    if candidates.ndim != 2 or targets.shape != (len(candidates),):
        raise ValueError(f"targets {targets.shape} and candidates {candidates.shape} must be (U,) and (U, C)")
    if len(targets) == 0:
        raise ValueError("no users to measure")
    if targets.min() < 0 or max(int(targets.max()), int(candidates.max(initial=-1))) >= n_items:
        raise ValueError(f"a target or candidate lies outside the {n_items} items")
    valid = candidates >= 0
    return np.concatenate([targets[:, None], np.where(valid, candidates, 0)], axis=1), valid
