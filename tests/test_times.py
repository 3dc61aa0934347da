from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec.data.preparing.times import UNITS, Clock
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
        ("2014-07-01 10:20:30.123456789", micro(2014, 7, 1, 10, 20, 30, 123_456)),
    ],
)
def test_iso_dates_in_every_form(text: str, time: int) -> None:
    assert read(["1999-12-31", text]) == [micro(1999, 12, 31), time]


def test_a_date_with_two_readings_is_not_guessed() -> None:
    assert read(["2014-07-01", "03/04/2014", "2014-13-01", "12"]) == [micro(2014, 7, 1), None, None, None]
    assert read(["03/04/2014", "31/04/2014"]) == [None, None]
    assert read(["2014-07-01", "14-07-01", "2014-02-29", "0000-01-01", "2014-07-01 24:00"]) == [
        micro(2014, 7, 1),
        *4 * [None],
    ]
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


def python_reads(text: str, form: str) -> int | None:
    """What `datetime.strptime` makes of a text, in microseconds."""
    try:
        found = datetime.strptime(text, form)
    except ValueError:
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


FORMATS = [
    "%Y-%m-%d", "%d/%m/%Y", "%m/%d/%y", "%Y%m%d", "%Y%m%d%H%M%S", "%y%m%d", "%Y", "%Y-%m", "%Y.%j", "%Y%j",
    "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S,%f", "%d.%m.%Y %H:%M", "%b %d, %Y %I:%M %p", "%d %B %Y %I:%M:%S%p",
    "%a, %d %b %Y %H:%M:%S %z", "%A %d %B %Y", "%Y-%m-%d %H:%M:%S%z", "%d-%b-%y", "100%% %Y (%m) [%d] a+b\\c",
    "%Y-%m-%d UTC", "%d\t%m %Y", "%w %Y-%m-%d %H", "%H:%M %d.%m.%Y",
]  # fmt: skip
moments = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999))
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(moment=moments, zone=zones, lot=st.randoms(use_true_random=False))
def test_a_format_means_what_it_means_to_python(form: str, moment: datetime, zone: timezone, lot) -> None:
    """What Python writes, the same with other letters or without a nought, and with one character spoilt."""
    text = moment.replace(tzinfo=zone).strftime(form)
    place = lot.randrange(len(text))
    spoilt = text[:place] + lot.choice("0123456789:- Zz+.ap") + text[place + 1 :]
    texts = [text, text.upper(), text.replace("0", "", 1), text.replace("00", "60"), spoilt, text + "1", f"{text} x"]
    expected = [python_reads(each.strip(), form) for each in texts]
    assert expected[0] is not None or "%y" in form
    assert read(texts, format=form) == expected


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("2014-03-04 10:11:12.9", "%Y-%m-%d %H:%M:%S.%f"),
        ("2014-03-04 10:11:12.1234567", "%Y-%m-%d %H:%M:%S.%f"),
        ("2014-03-04 10:11:12", "%Y-%m-%d %H:%M:%S.%f"),
        ("14-03-04", "%Y-%m-%d"),
        ("+2014-03-04", "%Y-%m-%d"),
        ("2014111", "%Y%m%d"),
        ("201411", "%Y%m%d"),
        ("2015.366", "%Y.%j"),
        ("2015.367", "%Y.%j"),
        ("2015.0", "%Y.%j"),
        ("68 1 1", "%y %m %d"),
        ("69 1 1", "%y %m %d"),
        ("2014- 3- 4", "%Y-%m-%d"),
        ("2014-03- 4", "%Y-%m-%d"),
        ("2014-02-29", "%Y-%m-%d"),
        ("0000-01-01", "%Y-%m-%d"),
        ("12:00 AM 1.1.2014", "%I:%M %p %d.%m.%Y"),
        ("12:00 pm 1.1.2014", "%I:%M %p %d.%m.%Y"),
        ("13:00 pm 1.1.2014", "%I:%M %p %d.%m.%Y"),
        ("00:00 pm 1.1.2014", "%I:%M %p %d.%m.%Y"),
        ("2014-07-01 10:20:61", "%Y-%m-%d %H:%M:%S"),
        ("2014-07-01 +05:30", "%Y-%m-%d %z"),
        ("2014-07-01 -0530", "%Y-%m-%d %z"),
        ("2014-07-01 +05:30:15.5", "%Y-%m-%d %z"),
        ("2014-07-01 +05:3015", "%Y-%m-%d %z"),
        ("2014-07-01 +05", "%Y-%m-%d %z"),
        ("2014-07-01 +24:00", "%Y-%m-%d %z"),
        ("2014-07-01 Z", "%Y-%m-%d %z"),
        ("2014-07-01 z", "%Y-%m-%d %z"),
        ("MAY 4 2014", "%b %d %Y"),
        ("may 4 2014", "%B %d %Y"),
        ("mai 4 2014", "%b %d %Y"),
        ("2014-07-01   10:20", "%Y-%m-%d %H:%M"),
    ],
)
def test_odd_values_are_read_or_refused_as_by_python(text: str, form: str) -> None:
    assert read([text, "nonsense"], format=form) == [python_reads(text, form), None]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("%Y-%m-%d %H:%M:%S%.f", r"%\.f cannot be used: strptime has none; write the point and %f, as in %S\.%f"),
        ("%Y-%m-%d %H:%M:%S%.3f", r"%\.3f cannot be used: .*%S\.%f"),
        ("%Y-%m-%d %Z", r"%Z cannot be used: names of zones .* %z"),
        ("%F", "%F cannot be used: strptime has none; write %Y-%m-%d"),
        ("%Y-%m-%d %T", "%T cannot be used: .* write %H:%M:%S"),
        ("%-d.%m.%Y", "%-d cannot be used: strptime has none; write %d"),
        ("%Y %U", "%U cannot be used: weeks are not read"),
        ("%c", "%c cannot be used: it depends on the machine's language"),
        ("%s", "%s cannot be used: numbers need no format"),
        ("%Y-%m-%d %", "% cannot be used: nothing follows it"),
        ("%Q1 %Y", "%Q cannot be used"),
        ("%Y %J", "%J cannot be used: strptime has none"),
        ("%H:%M", "has no year, so the order is not known; write %Y too"),
        ("%d.%m.", "has no year"),
        ("%Y %d", "has no month"),
        ("%Y-%m-%d %M", "has no hour"),
        ("day", "has no year"),
        ("%Y %Y", "%Y cannot be used: it says again"),
        ("%Y-%m-%d %b", "has two directives for the month"),
        ("%Y %y", "has two directives for the year"),
        ("%Y-%m-%d %I:%M", "%I and %p go together"),
        ("%Y-%m-%d %H:%M %p", "%I and %p go together"),
    ],
)
def test_a_format_that_is_not_pythons_is_refused_with_what_to_write(form: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Clock(format=form)
    assert str(caught.value).startswith(f"--time-format {form}: ") and "\n" not in str(caught.value)


def test_a_format_reads_whole_numbers_too() -> None:
    assert read([20140701, 20140732], format="%Y%m%d") == [micro(2014, 7, 1), None]
    with pytest.raises(InputError, match="holds Float64, which --time-format %Y%m%d cannot read"):
        read([20140701.0], format="%Y%m%d")


def settled(values, **clock) -> tuple[list, str | None, list[str]]:
    reader = Clock(**clock)
    column = pl.Series(values)
    times, converted = reader.settle(reader.read(column, "log")[0].drop_nulls().to_numpy(), "log")
    said = [line for line in (converted, reader.question(times, "log")) if line]
    return times.tolist(), reader.unit_of(times), said


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("number", "moment"),
    [(20200131, (2020, 1, 31)), (202001311230, (2020, 1, 31, 12, 30)), (20200131123059, (2020, 1, 31, 12, 30, 59))],
)
def test_dates_written_as_numbers_are_dates_and_said(number: int, moment: tuple[int, ...], as_text: bool) -> None:
    written = f"{number}"
    numbers = [number, int(f"2019{written[4:]}"), int(f"2021{written[4:]}")]
    times, unit, said = settled([str(each) for each in numbers] if as_text else numbers)
    assert times == [micro(year, *moment[1:]) for year in (2020, 2019, 2021)] and unit == "us"
    shown = str(np.datetime64(datetime(*moment), "s"))
    assert said == [f"log: times are dates written as numbers ({number} is {shown})"]
    assert settled([float(each) for each in numbers])[0] == times
    assert settled(numbers, unit="s")[0] == numbers  # who says what they count is believed
    whole = [int(f"2020{1 + n % 12:02}{1 + n % 28:02}{written[8:]}") for n in range(50)]
    with pytest.raises(
        InputError, match=f"look like dates .* 1 of 51 are none, such as 2020{'0' * (len(written) - 4)}"
    ):
        settled([*whole, int(f"2020{'0' * (len(written) - 4)}")])


@pytest.mark.parametrize(
    "values",
    [
        range(20_000_000, 20_001_000),
        range(1000),
        [2012, 2013, 2014],
        [20200101, 0, 5, 7],
        [20209999, 20208888, 20201350],
        [-20200101, -20200102],
        [1_600_000_000, 1_600_003_600],
        [2020010112, 2020010113],
    ],
)
def test_numbers_that_are_no_dates_keep_their_value(values) -> None:
    times, unit, said = settled(list(values))
    assert times == list(values) and unit != "us"
    assert not any("dates written" in line for line in said)


SECONDS_2020 = [1_600_000_000 + 3_600 * n for n in range(100)]


@pytest.mark.parametrize("told", [None, "s", "ms"])
@pytest.mark.parametrize("scales", [(1, 10**3), (1, 10**6), (10**3, 10**6), (10**6, 10**9), (1, 10**9)])
@pytest.mark.parametrize("of_the_second", [1, 50])
def test_two_units_in_one_log_are_refused_with_counts_and_examples(told, scales, of_the_second: int) -> None:
    values = [time * scales[n < of_the_second] for n, time in enumerate(SECONDS_2020)] + [0, -1]
    names = {10 ** (3 * n): unit for n, unit in enumerate(UNITS)}
    with pytest.raises(InputError) as caught:
        settled(values, unit=told)
    message = str(caught.value)
    assert message.startswith("log: times are in different units: of 102, ") and "\n" not in message
    for scale, count in zip(scales, (100 - of_the_second, of_the_second), strict=True):
        assert f"{count} count {names[scale]} (" in message
    assert message.count(" is 2020-09-1") == 2


@pytest.mark.parametrize(
    "values",
    [
        np.arange(1000),  # places
        np.arange(0, 10**12, 10**8),  # ms since a log's own beginning, 31 years
        np.arange(0, 10**15, 10**10),  # us, likewise, through the years of s and of ms
        np.arange(0, 10**18, 10**13),
        np.array([0, 0, *SECONDS_2020]),  # 0 for missing
        np.array([-(10**12), *SECONDS_2020]),
        np.array([5.5, *(time + 0.25 for time in SECONDS_2020)]),
        np.array([time * 1000 for time in SECONDS_2020]),
        np.geomspace(1, 10**12, 5000).astype(np.int64),
        np.empty(0, np.int64),
    ],
)
def test_one_unit_or_none_is_no_two(values) -> None:
    times, said = Clock().settle(values, "log")
    assert times is values and not said


def test_a_median_in_the_future_is_questioned() -> None:
    later = int(datetime.now(UTC).timestamp()) + 3 * 86_400
    _, _, said = settled([later * 1000 - 10**11, later * 1000, later * 1000 + 1])
    assert len(said) == 1 and said[0].startswith("warning: log: half of the times are after 20")
    assert "in the future, when they are read as counts of ms; --time-unit says" in said[0]
    assert "--time-format %d.%m.%Y;" in settled(["1.1.2999"], format="%d.%m.%Y")[2][0]
    assert "read as dates;" in settled([date(2999, 1, 1)])[2][0]
    assert settled([later - 3 * 86_400, later - 3 * 86_400, later])[2] == []
    assert settled([later * 10], unit="ms")[2] == []
