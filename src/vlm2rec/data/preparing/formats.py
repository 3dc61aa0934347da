"""Dates in text, read as Python's `datetime.strptime` reads them, but a whole column at once.

Polars has a `strptime` of its own, which is chrono's: there the `%f` of "12.9" counts nanoseconds, `%Z` skips any word
and `%Y` takes "14". So a format becomes a regular expression, as in Python's own `_strptime`, and polars finds its
groups. What cannot be read so, or rests on the language or the time zone of the machine, is refused.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.errors import InputError

_ROWS = 1 << 18  # read at a time: each row has up to eight parts

_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_BLANKS = r"[\s\x1c-\x1f]+"  # Python's \s: four separators more than Rust's


def _names(names: tuple[str, ...], letters: int | None = None) -> str:
    return "|".join(name[:letters] for name in names)


# The parts that a format can have, and what matches them: Python's patterns, written so that the next character always
# decides, which lets the search run without going back.
_DIRECTIVES: dict[str, tuple[str | None, str]] = {
    "Y": ("year", "[0-9]{4}"),
    "y": ("short_year", "[0-9]{2}"),
    "m": ("month", "1[0-2]?|0[1-9]|[2-9]"),
    "B": ("month_name", _names(_MONTHS)),
    "b": ("month_name", _names(_MONTHS, 3)),
    "d": ("day", "3[01]?|[12][0-9]?|0[1-9]|[4-9]| [1-9]"),
    "j": ("day_of_year", "3(?:6[0-6]?|[0-5][0-9]?|[7-9])?|[12](?:[0-9][0-9]?)?|0(?:[1-9][0-9]?|0[1-9])|[4-9][0-9]?"),
    "H": ("hour", "2[0-3]?|[01][0-9]?|[3-9]"),
    "I": ("half_hour", "1[0-2]?|0[1-9]|[2-9]"),
    "p": ("half", "am|pm"),
    "M": ("minute", "[0-5][0-9]?|[6-9]"),
    "S": ("second", "6[01]?|[0-5][0-9]?|[7-9]"),
    "f": ("fraction", "[0-9]{1,6}"),
    "z": (
        "zone",
        r"[+-][0-9]{2}(?::[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?|[0-5][0-9](?:[0-5][0-9](?:\.[0-9]{1,6})?)?)"
        "|(?-i:Z)",
    ),
    # Read and of no effect, as in Python.
    "A": (None, _names(_DAYS)),
    "a": (None, _names(_DAYS, 3)),
    "w": (None, "[0-6]"),
    "u": (None, "[1-7]"),
    "%": (None, "%"),
}
_INSTEAD = {
    "Z": "names of zones have several meanings; write a fixed one as it stands, as in '%H:%M UTC', or use %z (+02:00)",
    **dict.fromkeys("UWVG", "weeks are not read; give %m and %d, or %j"),
    **dict.fromkeys("cxX", "it depends on the machine's language; write its parts out, as in %d/%m/%Y %H:%M:%S"),
    **{name: f"strptime has none; write {parts}" for name, parts in {
        "F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M", "D": "%m/%d/%y", "e": "%d", "k": "%H", "l": "%I", "h": "%b",
        "P": "%p", "n": "a blank", "t": "a blank", "C": "%Y for all four digits of the year",
    }.items()},
    **dict.fromkeys("sQ", "numbers need no format; leave --time-format out"),
}  # fmt: skip
_FRACTION = "strptime has none; write the point and %f, as in %S.%f"
_PARTS = (
    ("year", "%Y"),
    ("month", "%m"),
    ("day", "%d"),
    ("hour", "%H"),
    ("minute", "%M"),
    ("second", "%S"),
    ("fraction", "%f"),
)
_SAME = {
    "short_year": {"year"},
    "month_name": {"month"},
    "day_of_year": {"month", "day"},
    "half_hour": {"hour"},
}  # parts that say the same in another way


@dataclass(frozen=True)
class DateFormat:
    """How dates are written.

    Attributes:
        pattern: a regular expression (Rust's) whose named groups are the parts of a date.
    """

    pattern: str

    @classmethod
    def of(cls, form: str) -> "DateFormat":
        """What a format of `datetime.strptime` means. Raises InputError, naming the directive that cannot be read."""
        pattern, given = "", []
        # A blank in front or behind would never be met: values come without.
        for found in re.finditer(r"%([-_0^#:.\d]*(.?))|\s+|[^%\s]+", form.strip(), re.DOTALL):
            directive, letter = found[1], found[2]
            if directive is None:
                pattern += _BLANKS if found[0].isspace() else re.escape(found[0])
                continue
            if directive not in _DIRECTIVES:
                raise _refused(form, f"%{directive}", _instead(directive, letter))
            part, own = _DIRECTIVES[directive]
            if part in given:
                raise _refused(form, f"%{directive}", "it says again what another part says; give each once")
            given += [part] if part else []
            pattern += f"(?P<{part}>{own})" if part else f"(?:{own})"
        _check_parts(form, given)
        return cls(f"(?i)^{pattern}$")

    def read(self, text: pl.Series) -> pl.Series:
        """Microseconds since 1970 (UTC where no zone is named), Int64 `(n,)`; null where a text is no such date."""
        parts = [self._read(text[start : start + _ROWS]) for start in range(0, max(1, len(text)), _ROWS)]
        return pl.concat(parts).rename(text.name)

    def _read(self, text: pl.Series) -> pl.Series:
        found = text.str.extract_groups(self.pattern).struct.unnest()
        if "day" in found.columns:  # Python takes a blank for its first digit
            found = found.with_columns(pl.col("day").str.strip_chars_start(" "))

        def number(name: str, default: int = 0) -> NDArray[np.int64]:
            if name not in found.columns:
                return np.full(len(text), default)
            return found[name].cast(pl.Int64, strict=False).fill_null(default).to_numpy()

        year = number("year", 1970)
        if "short_year" in found.columns:  # as POSIX has it
            year = number("short_year")
            year = year + np.where(year <= 68, 2000, 1900)
        month = number("month", 1)
        if "month_name" in found.columns:
            numbers = {name[:3]: place for place, name in enumerate(_MONTHS, start=1)}
            short = found["month_name"].str.to_lowercase().str.slice(0, 3)
            month = short.replace_strict(numbers, default=1, return_dtype=pl.Int64).to_numpy()
        hour = number("hour")
        if "half_hour" in found.columns:
            afternoon = (found["half"].str.to_lowercase() == "pm").fill_null(False).to_numpy()
            hour = number("half_hour") % 12 + 12 * afternoon
        moment, valid = moments(year, month, number("day", 1), hour, number("minute"), number("second"))
        if "day_of_year" in found.columns:  # the last of a leap year is the next year's first in others
            moment += (number("day_of_year", 1) - 1) * 86_400_000_000
            valid &= moment < _END
        if "fraction" in found.columns:
            moment += found["fraction"].str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64).fill_null(0).to_numpy()
        if "zone" in found.columns:
            offset, known = _offsets(found["zone"])
            moment, valid = moment - offset, valid & known
        there = found[:, 0].is_not_null()
        return pl.Series(text.name, moment).set(~(there & pl.Series(valid)), None)


ISO = DateFormat(
    r"^(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
    r"(?:[Tt ](?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{1,2})(?::(?P<second>[0-9]{1,2})(?:\.(?P<fraction>[0-9]+))?)?"
    r" ?(?P<zone>[+-][0-9]{2}(?::?[0-9]{2})?|[zZ])?)?$"
)
"""ISO 8601: a date alone, or with a clock behind a T or a blank, a fraction of a second, and an offset."""

# Days from 1970 to the first of each month, from January of the year 1 to that of the year 10000.
_FIRSTS = np.arange("0001-01", "10000-02", dtype="datetime64[M]").astype("datetime64[D]").astype(np.int64)
_END = int(_FIRSTS[-1]) * 86_400_000_000


def moments(
    year: NDArray[np.int64],
    month: NDArray[np.int64],
    day: NDArray[np.int64],
    hour: NDArray[np.int64],
    minute: NDArray[np.int64],
    second: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds since 1970, and whether there is such a date and time, both `(n,)`."""
    valid = (year >= 1) & (year <= 9999) & (month >= 1) & (month <= 12)
    months = np.where(valid, 12 * (year - 1) + month - 1, 0)
    first, next_first = _FIRSTS[months], _FIRSTS[months + 1]
    days = first + day - 1
    valid &= (day >= 1) & (days < next_first) & (hour < 24) & (minute < 60) & (second < 60)
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000, valid


def _offsets(zone: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds that a zone such as +0230 or -01:00:30.5 is ahead, and whether it is one; 0 for Z and for null."""
    digits = zone.str.replace_all("[^0-9]", "").fill_null("").str.pad_end(12, "0")

    def number(start: int, length: int) -> NDArray[np.int64]:
        return digits.str.slice(start, length).cast(pl.Int64).to_numpy()

    ahead = ((number(0, 2) * 60 + number(2, 2)) * 60 + number(4, 2)) * 1_000_000 + number(6, 6)
    behind = zone.str.starts_with("-").fill_null(False).to_numpy()
    return np.where(behind, -ahead, ahead), (number(0, 2) < 24) & (number(2, 2) < 60)


def _check_parts(form: str, given: list[str]) -> None:
    """Raise InputError unless the parts make a moment: a year, and nothing finer without what is coarser."""
    for one, other in (("half_hour", "half"), ("half", "half_hour")):
        if one in given and other not in given:
            raise InputError(f"--time-format {form}: %I and %p go together (03 PM); write %H for hours up to 23")
    said: set[str] = set()
    for part in given:
        own = _SAME.get(part, {part})
        if own & said:
            raise InputError(f"--time-format {form}: has two directives for the {min(own & said)}; give one")
        said |= own
    last = max((place for place, (part, _) in enumerate(_PARTS) if part in said), default=0)
    for part, directive in _PARTS[: last + 1]:
        if part not in said:
            raise InputError(f"--time-format {form}: has no {part}, so the order is not known; write {directive} too")


def _instead(directive: str, letter: str) -> str:
    if not directive:
        return "nothing follows it; write %% for a percent sign"
    if letter == "f":
        return _FRACTION
    if letter in _DIRECTIVES and directive != letter:
        return f"strptime has none; write %{letter}"
    return _INSTEAD.get(directive, "strptime has none; https://docs.python.org/3/library/datetime.html lists all")


def _refused(form: str, directive: str, why: str) -> InputError:
    return InputError(f"--time-format {form}: {directive} cannot be used: {why}")


Compact = Literal[8, 12, 14]
COMPACT: tuple[Compact, ...] = (8, 12, 14)
"""Digits of dates that are written as numbers: 20200131, 202001312359, 20200131235959."""


def compact(numbers: NDArray[np.int64], digits: Compact) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds since 1970 that numbers `(n,)` are as dates of so many digits, and whether they are such dates.

    Years 1900 to 2100 count: what is far from today is no date that somebody logged.
    """
    clock = numbers % 10 ** (digits - 8) * 10 ** (14 - digits)
    date = numbers // 10 ** (digits - 8)
    year = date // 10000
    near = (year >= 1900) & (year <= 2100)
    year = np.where(near, year, 1970)
    moment, valid = moments(year, date // 100 % 100, date % 100, clock // 10000, clock // 100 % 100, clock % 100)
    return moment, valid & near
