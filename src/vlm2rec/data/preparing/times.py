"""Times of events: numbers as they stand, dates as microseconds, and nothing guessed.

A number keeps its value, whatever its unit: only the order counts, but for a split by time, where all that matters is
that one log uses one unit. A date in text must be ISO 8601 or come with its format: "03/04/2014" has two readings.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.preparing.formats import COMPACT, ISO, Compact, DateFormat, compact
from vlm2rec.errors import InputError

Unit = Literal["s", "ms", "us", "ns"]
UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")
SECONDS: dict[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
Times = NDArray[np.int64] | NDArray[np.float64]

EXACT = 1 << 53
"""Whole numbers up to here are exact as floating-point ones."""

# Where a number lies that counts from 1970 and means 1973 to 5138, by its unit.
_FIRST = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}
# Seconds from 1970 to 1990 and to 2100. Times of two units in one log are each in such years of their own unit. Counts
# from a log's own beginning may run through the years of several units, but most of them lie between these.
_NEAR = (631_152_000, 4_102_444_800)
_BETWEEN = 0.1
_DAY = 86_400
_ROWS = 1 << 22  # numbers that are looked at together


@dataclass
class Clock:
    """Reads the times of one log, table after table, and then looks at all of them.

    Attributes:
        format: how text (or a whole number) is written, for `datetime.strptime`; None: numbers, or ISO 8601.
        unit: what numbers count; None: seen from their size when asked.
        dates: whether times are dates, and thus microseconds; None until the first value says so.
    """

    format: str | None = None
    unit: str | None = None
    dates: bool | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in UNITS:
            raise InputError(f"--time-unit {self.unit}: unknown; give one of {', '.join(UNITS)}")
        self._written = None if self.format is None else DateFormat.of(self.format)

    def read(self, column: pl.Series, where: str) -> tuple[pl.Series, pl.Series]:
        """Times as Int64 or Float64 (null: unreadable), and which could not be read, both `(n,)`.

        Raises:
            InputError: the column holds neither numbers, nor text, nor dates.
        """
        dtype = column.dtype
        if dtype in (pl.Date, pl.Datetime):
            self.dates = True
            times = column.dt.epoch("us")
        elif dtype in (pl.String, pl.Null) or (self._written is not None and dtype.is_integer()):
            times = self._text(column.cast(pl.String).str.strip_chars())
        elif self._written is not None and dtype.is_float():
            raise InputError(
                f"{where}: column timestamp holds {dtype}, which --time-format {self.format} cannot read; leave the"
                " option out, or give text or whole numbers"
            )
        elif dtype.is_integer():
            times = column.cast(pl.Int64, strict=False)
        elif dtype.is_float():
            times = _finite(column.cast(pl.Float64))
        else:
            raise InputError(f"{where}: column timestamp holds {dtype}; give numbers or dates")
        return times.alias("timestamp"), times.is_null()

    def _text(self, text: pl.Series) -> pl.Series:
        if self._written is not None:
            self.dates = True
            return self._written.read(text)
        if self.dates is None:
            first = text.filter(text.str.len_bytes() > 0).head(1000)  # any one of them may be a broken line
            if len(first):
                self.dates = first.cast(pl.Float64, strict=False).null_count() > len(first) / 2
        if self.dates:
            return ISO.read(text)
        whole = text.cast(pl.Int64, strict=False)
        if (whole.is_null() & text.is_not_null()).any():
            numbers = _finite(text.cast(pl.Float64, strict=False))
            # A whole number beyond 64 bits is no time, nor may it cost all others their last digits.
            numbers = numbers.set(whole.is_null() & text.str.contains(r"^[+-]?\d+$").fill_null(False), None)
            if (whole.abs() > EXACT).any():
                return whole
            return whole if numbers.is_not_null().equals(whole.is_not_null()) else numbers
        return whole

    def settle(self, times: Times, where: str) -> tuple[Times, str | None]:
        """The times of a whole log `(n,)`, which no table shows alone, and a line if they were converted.

        Numbers that are all dates without separators (20200131) become microseconds.

        Raises:
            InputError: some count one unit and some another, or some are such dates and some are not.
        """
        if self.dates:
            return times, None
        if self.unit is None and len(times):
            middle = _middle(times)
            for digits in COMPACT:
                if 1900 <= middle / 10 ** (digits - 4) < 2101 and (found := _dates(times, digits, where)) is not None:
                    self.dates = True
                    first = f"{_shown(times[0].item())} is {date_of(found[0].item(), 'us')}"
                    return found, f"{where}: times are dates written as numbers ({first})"
        _check_one_unit(times, where)
        return times, None

    def unit_of(self, times: Times) -> str | None:
        """What the times count: as told, microseconds for dates, else by their size; None where that says nothing."""
        if self.dates:
            return "us"
        if self.unit is not None or not len(times):
            return self.unit
        middle = _middle(times)
        return next((unit for unit, least in _FIRST.items() if least <= middle < 1000 * least), None)

    def question(self, times: Times, where: str) -> str | None:
        """A line if the median lies in the future. It is asked of the machine's clock, so it changes nothing."""
        unit = self.unit_of(times)
        if unit is None or not len(times):
            return None
        middle = _middle(times)
        if middle * SECONDS[unit] < datetime.now(UTC).timestamp() + _DAY:
            return None
        read = f"--time-format {self.format}" if self.format else "dates" if self.dates else f"counts of {unit}"
        return (
            f"warning: {where}: half of the times are after {date_of(middle, unit)}, which is in the future, when they"
            f" are read as {read}; --time-unit says what they count, --time-format how dates are written"
        )


def date_of(time: float, unit: str) -> str:
    """A time as people write it, to the second (UTC)."""
    return str(np.array(int(time // 1), f"datetime64[{unit}]").astype("datetime64[s]"))


def _middle(times: Times) -> float:
    return float(np.median(times[:: max(1, len(times) // 100_000)]))


def _dates(times: Times, digits: Compact, where: str) -> Times | None:
    """What numbers are as dates of so many digits; None if hardly any is one. Raises InputError if only most are."""
    found, good = np.empty(len(times), np.int64), np.empty(len(times), bool)
    for start in range(0, len(times), _ROWS):
        part = times[start : start + _ROWS]
        whole = part.astype(np.int64)
        moment, valid = compact(whole, digits)
        found[start : start + _ROWS], good[start : start + _ROWS] = moment, valid & (whole == part)
    if good.all():
        return found
    bad = np.flatnonzero(~good)
    if len(bad) > len(times) / 10:
        return None
    form, example = "%Y%m%d%H%M%S"[: digits - 2], _shown(times[good.argmax()].item())
    raise InputError(
        f"{where}: times look like dates written as numbers ({example}, {form}), but {len(bad):,} of {len(times):,} are"
        f" none, such as {_shown(times[bad[0]].item())}; mend them, or say --time-unit if they are counts"
    )


def _check_one_unit(times: Times, where: str) -> None:
    """Raise InputError where some times count one unit and the others another."""
    scales = {unit: round(1 / SECONDS[unit]) for unit in UNITS}
    if not len(times) or times.max() < _NEAR[0] * scales["ms"]:
        return
    lowest, highest = times.min(), times.max()
    if any(_NEAR[0] * scale <= lowest and highest < _NEAR[1] * scale for scale in scales.values()):
        return
    counts, first = dict.fromkeys(UNITS, 0), dict[Unit, int | float]()
    between = 0
    for start in range(0, len(times), _ROWS):
        part = times[start : start + _ROWS]
        large = part >= _NEAR[0]
        for unit, scale in scales.items():
            near = (part >= _NEAR[0] * scale) & (part < _NEAR[1] * scale)
            if near.any():
                counts[unit] += int(near.sum())
                first.setdefault(unit, part[near.argmax()].item())
                large &= ~near
        between += int(large.sum())
    if len(first) > 1 and between <= _BETWEEN * sum(counts.values()):
        each = [f"{counts[u]:,} count {u} ({_shown(time)} is {date_of(time, u)})" for u, time in first.items()]
        raise InputError(
            f"{where}: times are in different units: of {len(times):,}, {' and '.join(each)}; write all in one unit"
        )


def _shown(time: float) -> str:
    return f"{time:.0f}" if time == int(time) else repr(time)


def _finite(numbers: pl.Series) -> pl.Series:
    return numbers.set(~numbers.is_finite().fill_null(False), None)
