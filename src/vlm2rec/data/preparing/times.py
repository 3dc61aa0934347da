"""Times of events: numbers as they stand, dates as microseconds, and nothing guessed.

A number keeps its value, whatever its unit: only the order counts, but for a split by time, where all that matters is
that one log uses one unit. A date in text must be ISO 8601 or come with its format: "03/04/2014" has two readings.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.errors import InputError

Unit = Literal["s", "ms", "us", "ns"]
UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")
SECONDS: dict[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
Times = NDArray[np.int64] | NDArray[np.float64]

_ISO = [f"%Y-%m-%d{clock}" for clock in ("", "T%H:%M", "T%H:%M:%S%.f")]
EXACT = 1 << 53
"""Whole numbers up to here are exact as floating-point ones."""

# Where a number lies that counts from 1970 and means 1973 to 5138, by its unit.
_FIRST = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}


@dataclass
class Clock:
    """Reads the times of one log, table after table.

    Attributes:
        format: how text is written, for `strptime`; None: numbers, or ISO 8601.
        unit: what numbers count; None: seen from their size when asked.
        dates: whether text holds dates; None until the first value says so.
    """

    format: str | None = None
    unit: str | None = None
    dates: bool | None = None

    def __post_init__(self) -> None:
        if self.unit is not None and self.unit not in UNITS:
            raise InputError(f"--time-unit {self.unit}: unknown; give one of {', '.join(UNITS)}")

    def read(self, column: pl.Series, where: str) -> tuple[pl.Series, pl.Series]:
        """Times as Int64 or Float64 (null: unreadable), and which could not be read, both `(n,)`.

        Raises:
            InputError: the column holds neither numbers, nor text, nor dates.
        """
        dtype = column.dtype
        if dtype in (pl.Date, pl.Datetime):
            self.dates = True
            times = column.dt.epoch("us")
        elif dtype.is_integer():
            times = column.cast(pl.Int64, strict=False)
        elif dtype.is_float():
            times = _finite(column.cast(pl.Float64))
        elif dtype in (pl.String, pl.Null):
            times = self._text(column.cast(pl.String).str.strip_chars())
        else:
            raise InputError(f"{where}: column timestamp holds {dtype}; give numbers or dates")
        return times.alias("timestamp"), times.is_null()

    def _text(self, text: pl.Series) -> pl.Series:
        if self.format is not None:
            self.dates = True
            return _dates(text, self.format)
        if self.dates is None:
            first = text.filter(text.str.len_bytes() > 0).head(1000)  # any one of them may be a broken line
            if len(first):
                self.dates = first.cast(pl.Float64, strict=False).null_count() > len(first) / 2
        if self.dates:
            # A blank between date and clock is common, Z is an offset, and strptime knows neither.
            iso = text.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"[zZ]$", "+00:00")
            iso = iso.str.replace(r"(T.*[+-]\d\d)$", "${1}:00")  # as PostgreSQL writes it
            zone = iso.str.contains(r"T.*[+-]\d\d:?\d\d$").fill_null(False)
            found = pl.DataFrame(
                [_dates(iso.set(zone, None), form).alias(form) for form in _ISO]
                + [_dates(iso.set(~zone, None), form + "%z").alias(form + "z") for form in _ISO[1:]]
            )
            return found.select(pl.coalesce(pl.all())).to_series()
        whole = text.cast(pl.Int64, strict=False)
        if (whole.is_null() & text.is_not_null()).any():
            numbers = _finite(text.cast(pl.Float64, strict=False))
            # A whole number beyond 64 bits is no time, nor may it cost all others their last digits.
            numbers = numbers.set(whole.is_null() & text.str.contains(r"^[+-]?\d+$").fill_null(False), None)
            if (whole.abs() > EXACT).any():
                return whole
            return whole if numbers.is_not_null().equals(whole.is_not_null()) else numbers
        return whole

    def unit_of(self, times: Times) -> str | None:
        """What the times count: as told, microseconds for dates, else by their size; None where that says nothing."""
        if self.dates:
            return "us"
        if self.unit is not None or not len(times):
            return self.unit
        middle = float(np.median(times[:: max(1, len(times) // 100_000)]))
        return next((unit for unit, least in _FIRST.items() if least <= middle < 1000 * least), None)


def _dates(text: pl.Series, form: str) -> pl.Series:
    try:
        found = text.str.to_datetime(form, strict=False, exact=True, time_unit="us")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).strip().splitlines() or ["no such format"])[0]
        raise InputError(f"--time-format {form}: {reason[:120]}; give one as strptime has it") from None
    return found.dt.epoch("us")


def _finite(numbers: pl.Series) -> pl.Series:
    return numbers.set(~numbers.is_finite().fill_null(False), None)
