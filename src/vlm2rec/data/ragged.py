"""Rows of different lengths in one flat array: everybody's events, however many users there are."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


class Ragged(Sequence[Ints]):
    """`ragged[i]` is `values[starts[i] : starts[i] + lengths[i]]`, a view and no copy.

    Ten million rows are three arrays instead of ten million of them, and may lie in a memory-mapped file.

    Attributes:
        values: all numbers, `(n,)` int32.
        starts: where each row begins in `values`, `(rows,)` int64, ascending; rows do not overlap.
        lengths: how long each row is, `(rows,)` int64.
    """

    def __init__(self, values: Ints, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self.values, self.starts, self.lengths = values, starts, lengths

    @classmethod
    def of(cls, rows: Sequence[NDArray[np.integer]]) -> "Ragged":
        """Lay rows end to end."""
        values = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
        return cls.end_to_end(values, np.array([len(row) for row in rows], np.int64))

    @classmethod
    def end_to_end(cls, values: Ints, lengths: NDArray[np.int64]) -> "Ragged":
        """Rows that follow each other without a gap."""
        return cls(values, np.cumsum(lengths) - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Ints: ...
    @overload
    def __getitem__(self, index: slice) -> "Ragged": ...
    def __getitem__(self, index: int | slice) -> "Ints | Ragged":
        if isinstance(index, slice):
            return Ragged(self.values, self.starts[index], self.lengths[index])
        start = self.starts[index]
        return self.values[start : start + self.lengths[index]]

    def __iter__(self) -> Iterator[Ints]:
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield self.values[start : start + length]

    def heads(self, lengths: NDArray[np.int64]) -> "Ragged":
        """The first `lengths[i]` numbers of each row; none where that is below one."""
        return Ragged(self.values, self.starts, np.clip(lengths, 0, self.lengths))

    def flat(self) -> Ints:
        """All rows end to end, `(sum of lengths,)`; no copy where they lie so already."""
        if not len(self):
            return self.values[:0]
        first, total = int(self.starts[0]), int(self.lengths.sum())
        if int(self.starts[-1] + self.lengths[-1]) - first == total:
            return self.values[first : first + total]
        return self.values[self.places()]

    def places(self) -> NDArray[np.int64]:
        """Where in `values` each number of `flat` is, `(sum of lengths,)`."""
        shift = self.starts - (np.cumsum(self.lengths) - self.lengths)
        places: NDArray[np.int64] = np.arange(int(self.lengths.sum())) + np.repeat(shift, self.lengths)
        return places

    def rows(self) -> NDArray[np.int64]:
        """Which row each number of `flat` is in, `(sum of lengths,)`."""
        return np.repeat(np.arange(len(self)), self.lengths)
