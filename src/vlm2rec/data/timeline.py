"""When the events of a prepared data set happened, without the rest of its interactions: eight bytes an event.

Whatever compares users with each other in time (a split by time, leaks, two logs merged) needs clock times. Many
published logs have none: their times are places in each user's own sequence.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import INTERACTIONS, Dataset
from vlm2rec.data.preparing.times import Clock, Times, date_of
from vlm2rec.errors import InputError

_A_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}  # in which a unit holds so many of it; ns are finer


@dataclass(frozen=True)
class Timeline:
    """Times in the order of `dataset.sequences`.

    Attributes:
        times: `(n_events,)`, ascending within each user.
        unit: s, ms, us or ns since 1970; None where nobody knows.
        is_clock: whether times of different users can be compared.
    """

    times: Times
    unit: str | None
    is_clock: bool

    @classmethod
    def of(cls, dataset: Dataset) -> "Timeline":
        """Read them. Raises InputError where the file is missing or damaged."""
        path = dataset.path / INTERACTIONS
        try:
            times: Times = pl.read_parquet(path, columns=["timestamp"], glob=False)["timestamp"].to_numpy()
        except (OSError, pl.exceptions.PolarsError):
            raise InputError(f"{path}: missing or damaged; prepare the data set again") from None
        known = "time_unit" in dataset.manifest  # since data sets have said so
        unit = dataset.manifest["time_unit"] if known else Clock().unit_of(times)
        return cls(times, unit, unit is not None or not _are_places(times, dataset.sequences.starts))

    def at(self, date: str) -> int:
        """The first time at or after an ISO date (UTC where it names no zone), in these times' unit.

        Raises:
            ValueError: the unit is not known.
        """
        if self.unit is None:
            raise ValueError("the unit of the times is not known")
        moment = datetime.fromisoformat(date)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        return microseconds * 1000 if self.unit == "ns" else -(-microseconds // _A_MICROSECOND[self.unit])

    def date(self, time: float) -> str | None:
        """A time as people write it, to the second (UTC); None where the unit is not known."""
        return None if self.unit is None else date_of(time, self.unit)


def _are_places(times: Times, starts: NDArray[np.int64]) -> bool:
    """Whether times look like places in each user's sequence: whole, never twice, and most users start at the first.

    Some events may have been dropped since they were counted, so there may be gaps.
    """
    first = times[starts]
    if (first == times.min()).mean() <= 0.5:
        return False
    rising = times[1:] > times[:-1]
    rising[starts[1:] - 1] = True  # the next user's first
    return bool(rising.all()) and (times.dtype.kind == "i" or bool((times == np.floor(times)).all()))
