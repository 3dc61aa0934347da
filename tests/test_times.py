from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from vlm2rec.data.preparing.times import Clock
from vlm2rec.errors import InputError


def read(values, dtype=None, **clock) -> list[float | None]:
    times, bad = Clock(**clock).read(pl.Series(values, dtype=dtype), "log")
    assert bad.to_list() == [time is None for time in times]
    return times.to_list()


def micro(*parts: int) -> int:
    return int((datetime(*parts) - datetime(1970, 1, 1)).total_seconds() * 1e6)


def test_numbers_keep_their_value_and_kind() -> None:
    assert read([3, -1, None]) == [3, -1, None]
    assert read([2.5, float("nan"), float("inf")]) == [2.5, None, None]
    assert read(["3", " 4 ", "", "x", None]) == [3, 4, None, None, None]
    assert read(["3", "4.5", "1e3", "x"]) == [3.0, 4.5, 1000.0, None]
    large = 2**62 + 1
    assert read([str(large), "nonsense"]) == [large, None]  # no detour through floats


def test_dates_are_microseconds() -> None:
    assert read([date(2014, 7, 1)]) == [micro(2014, 7, 1)]
    assert read([datetime(2014, 7, 1, 12)]) == [micro(2014, 7, 1, 12)]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2014-07-01", micro(2014, 7, 1)),
        ("2014-07-01 10:20", micro(2014, 7, 1, 10, 20)),
        ("2014-07-01T10:20:30", micro(2014, 7, 1, 10, 20, 30)),
        ("2014-07-01 10:20:30.25", micro(2014, 7, 1, 10, 20, 30, 250_000)),
        ("2014-07-01T10:20:30Z", micro(2014, 7, 1, 10, 20, 30)),
        ("2014-07-01 10:20:30.25+02:00", micro(2014, 7, 1, 8, 20, 30, 250_000)),
        ("2014-07-01T10:20-0130", micro(2014, 7, 1, 11, 50)),
    ],
)
def test_iso_dates_in_every_form(text: str, time: int) -> None:
    assert read(["1999-12-31", text]) == [micro(1999, 12, 31), time]


def test_a_date_with_two_readings_is_not_guessed() -> None:
    assert read(["2014-07-01", "03/04/2014", "2014-13-01", "12"]) == [micro(2014, 7, 1), None, None, None]
    assert read(["03/04/2014", "31/04/2014"]) == [None, None]
    assert read(["03/04/2014", "31/04/2014"], format="%d/%m/%Y") == [micro(2014, 4, 3), None]
    assert read(["03/04/2014"], format="%m/%d/%Y") == [micro(2014, 3, 4)]


def test_one_log_has_dates_or_numbers() -> None:
    """What the first value is holds for the tables that follow."""
    clock = Clock()
    assert clock.read(pl.Series(["5", "2014-07-01"]), "log")[0].to_list() == [5, None]
    assert clock.read(pl.Series(["2014-07-01"]), "log")[0].to_list() == [None]


def test_the_unit_is_seen_from_the_size() -> None:
    for unit, scale in {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.items():
        assert Clock().unit_of(np.array([1_400_000_000 * scale])) == unit
    assert Clock().unit_of(np.arange(10)) is None
    assert Clock(unit="s").unit_of(np.arange(10)) == "s"
    assert Clock().unit_of(np.empty(0, np.int64)) is None
    dates = Clock()
    assert dates.unit_of(dates.read(pl.Series(["2014-07-01"]), "log")[0].to_numpy()) == "us"


def test_what_holds_no_times_is_refused() -> None:
    with pytest.raises(InputError, match="log: column timestamp holds Boolean"):
        read([True])
    with pytest.raises(InputError, match="--time-unit min"):
        Clock(unit="min")


def test_one_odd_value_costs_only_itself() -> None:
    large = 1_700_000_000_000_000_001
    assert read([str(large), "99999999999999999999", "2.5", str(large + 1)]) == [large, None, None, large + 1]
    assert read(["n/a", "", "3", "4"]) == [None, None, 3, 4]  # the first value does not decide alone
    clock = Clock()
    assert clock.read(pl.Series(["", None], dtype=pl.String), "log")[0].to_list() == [None, None]
    assert clock.read(pl.Series(["2014-07-01"]), "log")[0].to_list() == [micro(2014, 7, 1)]
    assert read(["2014-07-01 10:00:00+02"]) == [micro(2014, 7, 1, 8)]
