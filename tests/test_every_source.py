"""Faults that any source can have, in each of them: the right data, or one line that says what is wrong."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from raw_sources import EVERY, LOCAL, OWN, write

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.errors import InputError

USERS, ITEMS, START = 6, 8, 1_600_000_000
SHELF = pl.DataFrame({"item_id": [str(n) for n in range(1, ITEMS + 1)], "title": [f"T {n}" for n in range(ITEMS)]})


def events() -> pl.DataFrame:
    """Every user has every item once, from the one after their number on, an hour apart."""
    rows = [(str(u), str(1 + (u + n) % ITEMS), START + 3600 * n) for u in range(USERS) for n in range(ITEMS)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def histories(dataset: Dataset) -> dict[str, list[str]]:
    items = dataset.item_ids
    return {user: [items[i] for i in own] for user, own in zip(dataset.user_ids, dataset.sequences, strict=True)}


RIGHT = {str(u): [str(1 + (u + n) % ITEMS) for n in range(ITEMS)] for u in range(USERS)}


def milliseconds(kind: str) -> int:
    return 1000 if kind == "amazon-2023" else 1


@pytest.fixture(params=EVERY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_twice_are_left_out_counted_and_said(kind: str, tmp_path: Path) -> None:
    log = events().with_columns(pl.col("timestamp") * milliseconds(kind))
    source = write(tmp_path / "raw", kind, SHELF, pl.concat([log, log[:3], log[-2:]]))
    said: list[str] = []
    made = prepare(source(), tmp_path / "out", require=["title"], k_core=0, notice=said.append)
    assert histories(made) == RIGHT
    assert made.manifest["left_out"] == {"copy of an earlier event": 5}
    assert any(
        "5 of 53 events (9.4%): copy of an earlier event, such as users '0', '5'; --duplicates keep keeps them" in line
        for line in said
    )
    kept = prepare(source(), tmp_path / "kept", require=["title"], k_core=0, duplicates="keep", notice=said.append)
    assert kept.n_interactions == 53
    assert [line for line in said if line.startswith("warning")] == [
        "warning: 1 of 6 test targets (users 5) are the item of the event just before, so whoever repeats the last item"
        " finds them",
        "warning: 1 of 6 test targets (users 5) have the same time as the event before, so the order of rows in the"
        " file decides which of the two is the target",
    ]


def test_two_units_in_one_log_are_refused(kind: str, tmp_path: Path) -> None:
    log = events().with_columns(pl.col("timestamp") * milliseconds(kind))
    early = pl.when(pl.col("user_id") == "0").then(pl.col("timestamp") * 1000).otherwise("timestamp")
    source = write(tmp_path / "raw", kind, SHELF, log.with_columns(early))
    with pytest.raises(InputError, match=r"times are in different units: of 48, .*40 count .* write all in one unit"):
        prepare(source(), tmp_path / "out", require=["title"], k_core=0)
    assert not (tmp_path / "out").exists()


def test_a_median_in_the_future_is_questioned(kind: str, tmp_path: Path) -> None:
    later = int(datetime.now(UTC).timestamp()) + 86_400 * 1000 - START
    log = events().with_columns((pl.col("timestamp") + later) * milliseconds(kind))
    said: list[str] = []
    made = prepare(
        write(tmp_path / "raw", kind, SHELF, log)(), tmp_path / "out", require=["title"], k_core=0, notice=said.append
    )
    assert histories(made) == RIGHT  # it is said, and nothing else
    (line,) = said
    assert line.startswith("warning: ") and "which is in the future" in line and "--time-unit" in line


def test_what_is_in_order_is_not_remarked_on(kind: str, tmp_path: Path) -> None:
    log = events().with_columns(pl.col("timestamp") * milliseconds(kind))
    said: list[str] = []
    source = write(tmp_path / "raw", kind, SHELF, log)
    made = prepare(source(), tmp_path / "out", require=["title"], k_core=0, notice=said.append)
    assert histories(made) == RIGHT and said == [] and made.manifest["left_out"] == {}


@pytest.mark.parametrize("kind", OWN)
def test_fractions_of_a_second_are_read_as_python_reads_them(kind: str, tmp_path: Path) -> None:
    rows = [
        (user, item, f"2014-03-04 10:11:12.{fraction}")
        for user in "uv"
        for item, fraction in (("4", "9"), ("1", "123456"), ("3", "75"), ("2", "2"))
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    source = write(tmp_path / "raw", kind, SHELF, log)(time_format="%Y-%m-%d %H:%M:%S.%f")
    made = prepare(source, tmp_path / "out", require=["title"], k_core=0)
    assert histories(made) == {user: ["1", "2", "3", "4"] for user in "uv"}
    micro = made.interactions["timestamp"].to_numpy() % 1_000_000
    assert micro.tolist() == [123_456, 200_000, 750_000, 900_000] * 2


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H%M%S"])
@pytest.mark.parametrize("kind", OWN)
def test_dates_written_as_numbers_are_dates(kind: str, form: str, tmp_path: Path) -> None:
    day = pl.from_epoch(START + 24 * (pl.col("timestamp") - START))
    log = events().with_columns(day.dt.strftime(form).cast(pl.Int64).alias("timestamp"))
    said: list[str] = []
    source = write(tmp_path / "raw", kind, SHELF, log)
    made = prepare(source(), tmp_path / "out", require=["title"], k_core=0, notice=said.append)
    told = prepare(source(time_format=form), tmp_path / "told", require=["title"], k_core=0)
    assert histories(made) == RIGHT and made.manifest["time_unit"] == "us"
    assert made.interactions.equals(told.interactions)
    first = made.interactions["timestamp"][0]
    assert np.datetime64(first, "us").astype("datetime64[D]") == np.datetime64("2020-09-13")
    (line,) = said
    assert f"dates written as numbers ({log['timestamp'][0]} is 2020-09-13T" in line


@pytest.mark.parametrize("side", ["the log", "a part of the log", "the catalogue", "the users"])
@pytest.mark.parametrize("kind", OWN)
def test_ids_turned_to_floats_are_matched_and_said(side: str, kind: str, tmp_path: Path) -> None:
    shelf, log = SHELF, events()
    some = pl.int_range(pl.len()) % 5 < 2
    if side == "the catalogue":
        shelf = shelf.with_columns(pl.col("item_id") + ".0")
    elif side == "the users":
        log = log.with_columns(user_id=pl.when(some).then(pl.col("user_id") + ".0").otherwise("user_id"))
    else:
        every = pl.lit(True) if side == "the log" else some
        log = log.with_columns(item_id=pl.when(every).then(pl.col("item_id") + ".0").otherwise("item_id"))
    said: list[str] = []
    source = write(tmp_path / "raw", kind, shelf, log)()
    made = prepare(source, tmp_path / "out", require=["title"], notice=said.append)
    found = {u: [item.removesuffix(".0") for item in own] for u, own in histories(made).items()}
    assert {user.removesuffix(".0"): own for user, own in found.items()} == RIGHT
    counts = {"the log": "48 of 48", "a part of the log": "20 of 48", "the catalogue": "48 of 48", "the users": "20 of"}
    (line,) = said
    what = "a user_id" if side == "the users" else "an item_id"
    assert f": {counts[side]}" in line and f"events have {what} such as" in line and "\n" not in line
    assert "which is taken for" in line and line.count(" and ") == 2  # two examples of each


def test_whole_floating_point_numbers_are_ids_and_others_are_not(tmp_path: Path) -> None:
    log = events().with_columns(pl.col("item_id", "user_id").cast(pl.Float64))
    made = prepare(
        write(tmp_path / "raw", "local-parquet", SHELF, log)(), tmp_path / "out", require=["title"], k_core=0
    )
    assert histories(made) == RIGHT
    for odd in (0.5, 2.0**60, float("inf")):
        spoilt = log.with_columns(pl.col("item_id") + odd)
        source = write(tmp_path / "raw", "local-parquet", SHELF, spoilt)()
        with pytest.raises(InputError, match="column item_id holds Float64; give text or whole numbers"):
            prepare(source, tmp_path / "none", require=["title"])


@pytest.mark.parametrize("kind", OWN)
def test_versions_are_no_floats(kind: str, tmp_path: Path) -> None:
    """A catalogue that has both keeps them apart."""
    shelf = pl.DataFrame({"item_id": ["1", "1.0", "2.0", "v3.0"], "title": list("abcd")})
    rows = [(u, item, START + n) for u in ("7", "8.0") for n, item in enumerate(["1.0", "1", "2.0", "v3.0"])]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    said: list[str] = []
    source = write(tmp_path / "raw", kind, shelf, log)()
    made = prepare(source, tmp_path / "out", require=["title"], k_core=0, notice=said.append)
    assert histories(made) == {u: ["1.0", "1", "2.0", "v3.0"] for u in ("7", "8.0")} and said == []


@pytest.mark.parametrize("kind", OWN)
def test_a_mapping_may_be_for_one_table(kind: str, tmp_path: Path) -> None:
    """The log has row numbers in the column that holds the items' ids in the catalogue."""
    shelf, log = SHELF.rename({"item_id": "id", "title": "name"}), events().with_row_index("id", 1)
    source = write(tmp_path / "raw", kind, shelf, log)
    titles = {} if kind == "recbole" else {"title": "name"}
    made = prepare(source(columns={"items.item_id": "id", **titles}), tmp_path / "out", require=["title"], k_core=0)
    assert histories(made) == RIGHT
    assert made.manifest["made_from"]["columns"] == {"items.item_id": "id", **titles}
    with pytest.raises(InputError) as caught:
        source(columns={"item_id": "id", **titles}).read()
    where = "x.inter" if kind == "recbole" else f"interactions.{kind.partition('-')[2]}"
    assert str(caught.value) == (
        f"--columns item_id=id: {where} has a column item_id already, which id would replace; name the table that is"
        " meant, as in --columns items.item_id=id"
    )
    both = {"item_id": "id", "interactions.item_id": "item_id", **titles}
    assert prepare(source(columns=both), tmp_path / "both", require=["title"]).fingerprint == made.fingerprint
    for columns, message in (
        ({"interactions.user_id": "userid"}, "has no column userid; did you mean user_id"),
        ({"shelf.item_id": "id"}, r"there is no table shelf; write items\. or interactions\."),
        ({"items.itemid": "id"}, "itemid is no name of ours; did you mean item_id"),
        ({"timestamp": "id"}, "has a column timestamp already"),
        ({"title": "user_id"}, "has no column user_id"),
    ):
        with pytest.raises(InputError, match=message):
            source(columns={**titles, **columns}).read()


@pytest.mark.parametrize("kind", OWN)
def test_one_column_may_serve_two_names(kind: str, tmp_path: Path) -> None:
    source = write(tmp_path / "raw", kind, SHELF, events())
    made = prepare(source(columns={"image": "item_id", "title": "item_id"}), tmp_path / "out", require=["title"])
    assert made.titles == made.item_ids == made.items["image"].to_list()
    assert histories(made) == RIGHT and "image" not in made.interactions.columns


@pytest.mark.parametrize(
    ("column", "named", "message"),
    [
        ("user_id", "uid", r"has no column user_id .*--columns user_id=uid$"),
        ("item_id", "item", r"has no column item_id .*--columns interactions\.item_id=item$"),
        ("timestamp", "zzz", r"has no column timestamp .*--columns timestamp=NAME$"),
    ],
)
@pytest.mark.parametrize("kind", OWN)
def test_a_column_that_is_missing_is_asked_for_by_its_option(
    kind: str, column: str, named: str, message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "raw", kind, SHELF, events().rename({column: named}))
    with pytest.raises(InputError, match=message):
        prepare(source(), tmp_path / "out", require=["title"])


@pytest.mark.parametrize("kind", OWN)
def test_a_history_in_every_row_is_refused(kind: str, tmp_path: Path) -> None:
    log = events().with_columns(item_id_list=pl.lit("1 2 3"))
    with pytest.raises(InputError, match=r"column item_id_list holds a history in every row.*one event a row"):
        write(tmp_path / "raw", kind, SHELF, log)().read()
    renamed = log.rename({"item_id": "sku", "item_id_list": "sku_list"})
    with pytest.raises(InputError, match="column sku_list holds a history in every row"):
        write(tmp_path / "raw", kind, SHELF, renamed)(columns={"interactions.item_id": "sku"}).read()


@pytest.mark.parametrize("kind", LOCAL)
def test_a_mapping_may_replace_a_title_that_is_none(kind: str, tmp_path: Path) -> None:
    shelf = SHELF.select("item_id", label="title", title=pl.lit("Mr"))
    made = prepare(
        write(tmp_path / "raw", kind, shelf, events())(columns={"title": "label"}), tmp_path / "out", require=["title"]
    )
    assert made.titles == SHELF["title"].to_list() and "label" not in made.items.columns
