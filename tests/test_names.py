"""A user's further columns may have any name: none of ours takes its place, and they come out as they went in."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import tiny_tables, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program import Call, check_refused

from vlm2rec.config import parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import describe
from vlm2rec.data.export import FORMATS, export
from vlm2rec.data.pairs import pair
from vlm2rec.data.pictures.lookalikes import look_alike
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.llmemb.attributes import attribute_columns, item_clauses
from vlm2rec.methods.slim.prompts import Shelf

# Columns of our own files, of tables made on the way, of the demo, and patterns of polars.
OURS = [
    *("world", "shop", "line", "row", "row_nr", "index", "id", "kind", "reason", "file", "text", "stem", "events"),
    *("lost", "there", "named", "ambiguous", "count", "number", "name", "known", "missing", "place", "form", "rank"),
    *("folder", "folders", "files", "ending", "offset", "height", "width", "digest", "crc", "user", "item", "time"),
    *("item_id_right", "title_right", "new", "old", "literal", "len", "asked", "settled", "host", "bucket", "owner"),
    *("colour", "pattern", "brand", "price", "rating", "categories", "store", "asin", "description", "sequence"),
    *("*", "^.*$", "^item_.*$", "^title$", "a b", "ä,ö", 'in "quotes"', "x" * 300, "ITEM_ID", "Title", "$ref", "{}"),
]
ITEM_NAMES = [*OURS, "user_id", "timestamp", "url", "category"]
EVENT_NAMES = [*OURS, "title", "image", "url", "category", "domain"]


def with_columns(table: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Further columns of text, each unlike the others."""
    more = [pl.Series(name, [f"{place} {row}" for row in range(table.height)]) for place, name in enumerate(names)]
    return table.hstack(more)


def write(folder: Path, items: list[str], events: list[str], ending: str = "parquet") -> tuple[Path, pl.DataFrame]:
    shelf, log = tiny_tables()
    write_pictures(folder / "images", shelf["image"].to_list())
    for name, table in (("items", with_columns(shelf, items)), ("interactions", with_columns(log, events))):
        path = folder / f"{name}.{ending}"
        {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](path)
    return folder, log


def check_unchanged(made: Dataset, items: list[str], events: list[str]) -> None:
    shelf, log = tiny_tables()
    rows = {item: row for row, item in enumerate(shelf["item_id"])}
    for place, name in enumerate(items):
        assert made.items[name].to_list() == [f"{place} {rows[item]}" for item in made.item_ids], name
    sources = {row: number for number, row in enumerate(log.iter_rows())}
    keys = made.interactions["user_id", "item_id", "timestamp"].with_columns(pl.col("timestamp").cast(pl.Int64)).rows()
    for place, name in enumerate(events):
        assert made.interactions[name].to_list() == [f"{place} {sources[key]}" for key in keys], name


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_all_names_go_the_whole_way(ending: str, tmp_path: Path) -> None:
    raw, _ = write(tmp_path / "raw", ITEM_NAMES, EVENT_NAMES, ending)
    plain, _ = write(tmp_path / "plain" / "raw", [], [], ending)
    made = prepare(Local(raw, time_unit="s"), tmp_path / "data", picture_size=32, k_core=2)
    check_unchanged(made, ITEM_NAMES, EVENT_NAMES)
    without = prepare(Local(plain, time_unit="s"), tmp_path / "bare", picture_size=32, k_core=2)
    assert made.fingerprint == without.fingerprint
    assert describe(made) == describe(without) | {"name": made.name}
    assert look_alike(made).counts == look_alike(without).counts
    for form in FORMATS:
        if form == "recbole":
            continue  # refuses some of these names; below
        export(made, form, tmp_path / form)
        write_pictures(tmp_path / form / "images", tiny_tables()[0]["image"].to_list())
        again = prepare(Local(tmp_path / form), tmp_path / f"{form} again", picture_size=32, k_core=0)
        assert again.fingerprint == made.fingerprint
        check_unchanged(again, ITEM_NAMES, EVENT_NAMES)
    columns = attribute_columns(made.items)
    assert {"world", "line", "*", "^.*$"} <= set(columns)
    (first, *_) = item_clauses(made, columns)
    assert ("world", "0 0") in first and ("*", f"{ITEM_NAMES.index('*')} 0") in first
    assert Shelf(made).categories[0] == f"{ITEM_NAMES.index('category')} 0"
    second, _ = write(tmp_path / "second", [], [], ending)
    both = pair(
        made, prepare(Local(second, time_unit="s"), tmp_path / "other", picture_size=32, k_core=2), tmp_path / "pair"
    )
    assert both.items[: made.n_items].select(pl.exclude("^domain$")).columns == made.items.columns
    for place, name in enumerate(ITEM_NAMES):
        assert both.items[name][0] == f"{place} 0", name


def test_a_run_on_them_finds_no_shop(tmp_path: Path) -> None:
    raw, _ = write(tmp_path / "raw", ITEM_NAMES, EVENT_NAMES)
    made = prepare(Local(raw, time_unit="s"), tmp_path / "data", picture_size=32, k_core=2)
    for kind in ("poprec", "itemknn"):
        config = parse_config({"data": {"path": str(made.path)}, "method": {"kind": kind}})
        run(config, tmp_path / "runs" / kind)
        results = json.loads((tmp_path / "runs" / kind / "results.json").read_text())
        assert "oracle" not in results and results["retrieval"]["sampled"]["N@20"] > 0


def test_recbole_files_hold_them_both_ways(tmp_path: Path) -> None:
    """But for names that RecBole's headers cannot have."""
    names = [name for name in ITEM_NAMES if '"' not in name and name != "name"]  # `name` may be where the titles are
    more = [name for name in EVENT_NAMES if '"' not in name and name not in ("title", "image")]
    raw, _ = write(tmp_path / "raw", names, more)
    made = prepare(Local(raw, time_unit="s"), tmp_path / "data", picture_size=32, k_core=2)
    export(made, "recbole", tmp_path / "out")
    write_pictures(tmp_path / "out" / "images", tiny_tables()[0]["image"].to_list())
    again = prepare(RecBole(tmp_path / "out"), tmp_path / "again", picture_size=32, k_core=0)
    assert again.fingerprint == made.fingerprint
    check_unchanged(again, names, more)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12) | st.sampled_from(OURS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, max_size=6, unique=True), ending=st.sampled_from(["parquet", "csv", "jsonl"]))
def test_any_name_comes_out_as_it_went_in(names: list[str], ending: str, tmp_path_factory) -> None:
    taken = {"user_id", "item_id", "timestamp", "title", "image"}
    names = [name for name in names if name not in taken]
    folder = tmp_path_factory.mktemp("names")
    raw, _ = write(folder / "raw", names, names, ending)
    made = prepare(Local(raw), folder / "data", require=["title"], k_core=0)
    check_unchanged(made, names, names)
    parquet = folder / "parquet"
    export(made, "parquet", parquet)
    check_unchanged(prepare(Local(parquet), folder / "again", require=["title"], k_core=0), names, names)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_user_may_map_a_column_from_any_name(ending: str, tmp_path: Path) -> None:
    shelf, log = tiny_tables()
    write_pictures(tmp_path / "images", shelf["image"].to_list())
    new = {"item_id": "^.*$", "title": "*", "image": "line"}
    for name, table in (("items", shelf.rename(new)), ("interactions", log.rename({"item_id": "^.*$"}))):
        path = tmp_path / f"{name}.{ending}"
        {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](path)
    made = prepare(Local(tmp_path, columns=new), tmp_path / "out", picture_size=32, k_core=0)
    assert made.item_ids == shelf["item_id"].to_list()
    assert made.titles == shelf["title"].to_list()


ODD: dict[str, tuple[dict[str, pl.Series], dict[str, pl.Series], dict[str, Any], str]] = {
    "rating": (
        {},
        {"rating": pl.Series([["a"]])},
        {"min_rating": 3.0},
        r"column rating holds List\(String\); give num",
    ),
    "no rating": ({}, {}, {"min_rating": 3.0}, "no column rating for --min-rating"),
    "url": ({"url": pl.Series([["http://x"]])}, {}, {}, r"column url holds List\(String\); give text"),
    "image": ({"image": pl.Series([1.5])}, {}, {}, "column image holds Float64; give text"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_name_that_means_something_with_another_content_is_one_line(case: str, tmp_path: Path) -> None:
    items, events, options, message = ODD[case]
    shelf, log = tiny_tables()
    for name, table, more in (("items", shelf, items), ("interactions", log, events)):
        new = [column.new_from_index(0, table.height).alias(own) for own, column in more.items()]
        table.with_columns(new).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=message) as caught:
        prepare(Local(tmp_path), tmp_path / "out", require=["title"], **options)
    assert "\n" not in str(caught.value)


def test_a_domain_of_ones_own_is_kept_and_refused_where_it_would_be_replaced(tmp_path: Path) -> None:
    data = []
    for name, values in (("one", ["a"]), ("two", [["a"]]), ("three", None)):
        shelf, log = tiny_tables()
        if values is not None:
            shelf = shelf.with_columns(pl.Series("domain", values).new_from_index(0, shelf.height))
        (tmp_path / name).mkdir()
        shelf.write_parquet(tmp_path / name / "items.parquet")
        log.write_parquet(tmp_path / name / "interactions.parquet")
        data.append(prepare(Local(tmp_path / name, time_unit="s"), tmp_path / f"data {name}", require=["title"]))
    assert data[0].items["domain"].unique().to_list() == ["a"]
    config = parse_config({"data": {"path": "x", "split": {"domain": "a"}}, "method": {"kind": "poprec"}})
    assert len(Split(data[0], 10, config.data.split).able("test"))
    with pytest.raises(InputError, match=r"column domain holds List\(String\), no names of domains"):
        Split(data[1], 10, config.data.split)
    with pytest.raises(InputError, match="has a column domain, which a pair writes itself"):
        pair(data[0], data[2], tmp_path / "pair")


def test_columns_of_one_name_and_two_types_are_one_line(call: Call, tmp_path: Path) -> None:
    for name, value in (("one", pl.Series(["a"])), ("two", pl.Series([["a"]]))):
        shelf, log = tiny_tables()
        (tmp_path / name).mkdir()
        shelf = shelf.with_columns(value.new_from_index(0, shelf.height).alias("tags"))
        shelf.write_parquet(tmp_path / name / "items.parquet")
        log.write_parquet(tmp_path / name / "interactions.parquet")
        prepare(Local(tmp_path / name, time_unit="s"), tmp_path / f"data {name}", require=["title"])
    said = call("data", "pair", tmp_path / "data one", tmp_path / "data two", "--out", tmp_path / "pair")
    check_refused(said, "columns of one name do not go together")
