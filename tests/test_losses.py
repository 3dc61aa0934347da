"""Nothing is dropped without a word: counts that add up, for every source and every reason."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import raw_amazon
from conftest import Given, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program import Call

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import describe
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData, Source
from vlm2rec.data.sources.amazon import Amazon
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.movielens import MovieLens
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.errors import InputError

UNITS = {"events": "interactions", "users": "users", "items": "items"}


def lost(made: Dataset, unit: str) -> dict[str, int]:
    return {each["reason"]: each["count"] for each in made.manifest["losses"][unit]["lost"]}


def check_sums(made: Dataset) -> None:
    """raw = kept + losses, in all units; and what is kept is what is there."""
    manifest = made.manifest
    for unit, name in UNITS.items():
        found = manifest["losses"][unit]
        assert found["raw"] == found["kept"] + sum(each["count"] for each in found["lost"])
        assert (found["raw"], found["kept"]) == (manifest["raw"][name], manifest["counts"][name])
        reasons = [each["reason"] for each in found["lost"]]
        assert len(set(reasons)) == len(reasons)
    pictures = manifest["losses"]["pictures"]
    assert pictures["raw"] == made.n_items
    assert pictures["kept"] == sum(picture is not None for picture in made.pictures)
    assert pictures["raw"] == pictures["kept"] + sum(each["count"] for each in pictures["lost"])
    listed = pl.read_parquet(made.path / "dropped.parquet")
    for kind in ("user", "item"):
        own = listed.filter(pl.col("kind") == kind)
        assert own["id"].is_unique().all()
        assert own.height == manifest["raw"][f"{kind}s"] - manifest["counts"][f"{kind}s"]
        for each in manifest["losses"][f"{kind}s"]["lost"]:
            ids = own.filter(pl.col("reason").str.replace(": .*", "") == each["reason"])["id"]
            assert each["count"] == len(ids)
            assert each["examples"] == {f"{kind}_id": ids.head(2).to_list()}
    for each in manifest["losses"]["events"]["lost"]:
        values = [value for name, values in each["examples"].items() if name != "catalogue" for value in values]
        assert each["count"] > 0 and 1 <= len(values) <= 2 and len(set(values)) == len(values)
    assert describe(made)["losses"] == manifest["losses"]


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """A shelf and a log that lose something for every reason there is; ids, titles and times fit all sources."""
    items = pl.DataFrame(
        {
            "item_id": [raw_amazon.item_id(n) for n in range(14)],
            "title": ["" if n == 1 else f"Thing {n}" for n in range(14)],
            "url": "http://ecx.images-amazon.com/images/I/41xL.jpg",
            "brand": "Brand",
            "category": "Beauty > Skin",
            "price": "1.5",
        }
    )
    rows = [
        (raw_amazon.user_id(u), raw_amazon.item_id((u + step) % 10), 1_300_000_000 + 86400 * step, float(1 + step % 5))
        for u in range(12)
        for step in range(8)
    ]
    rows += [(raw_amazon.user_id(u), raw_amazon.item_id(90 + u % 2), 1_300_000_500 + u, 5.0) for u in range(6)]
    rows += [(raw_amazon.user_id(40), raw_amazon.item_id(3), 1_300_000_000, 5.0)]
    rows += [(raw_amazon.user_id(41), raw_amazon.item_id(10), 1_300_000_000, 1.0)] * 2
    rows += [(raw_amazon.user_id(0), raw_amazon.item_id(0), 1_300_000_000, 1.0)] * 2
    return items, pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")


def write(kind: str, folder: Path) -> Source:
    """The same tables as files of a source, with a line in the log that cannot be read and some pictures."""
    items, log = tables()
    folder.mkdir()
    if kind == "shop":
        return ShopWorld(products=40, shoppers=60)
    pictures = [name for n, name in enumerate(items["item_id"]) if n not in (2, 3)]
    write_pictures(folder / "images", [f"{name}.jpg" for name in pictures])
    (folder / "images" / f"{items['item_id'][4]}.jpg").write_bytes(b"no picture")
    if kind.startswith("amazon"):
        release = kind.removeprefix("amazon-")
        raw_amazon.write_raw(folder, release, items, log, ending="")
        path = folder / raw_amazon.LOGS[release][0].format("Beauty")
        path.write_text(path.read_text() + "what is this?\n")
        return Amazon(folder, release)  # type: ignore[arg-type]
    if kind == "movielens":
        films = [f'{n},"{t}",Drama' for n, t in items.select("item_id", "title").iter_rows()]
        (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]) + "\n")
        events = [f"{u},{i},{r},{t}" for u, i, t, r in log.iter_rows()]
        (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *events, "u,x"]) + "\n")
        return MovieLens(folder)
    if kind == "recbole":
        shelf = [f"{n}\t{t}" for n, t in items.select("item_id", "title").iter_rows()]
        (folder / "x.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *shelf]) + "\n")
        events = [f"{u}\t{i}\t{t}\t{r}" for u, i, t, r in log.iter_rows()]
        head = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
        (folder / "x.inter").write_text("\n".join([head, *events, "u\tx"]) + "\n")
        return RecBole(folder)
    items = items.select("item_id", "title", image="item_id")
    if kind == "local parquet":
        items.write_parquet(folder / "items.parquet")
        bad = log.head(1).with_columns(user_id=pl.lit(None, pl.String))
        pl.concat([log, bad]).write_parquet(folder / "interactions.parquet")
    elif kind == "local csv":
        items.write_csv(folder / "items.csv")
        (folder / "interactions.csv").write_text(log.write_csv() + "u,x\n")
    else:
        items.write_ndjson(folder / "items.jsonl")
        (folder / "interactions.jsonl").write_text(log.write_ndjson() + "\n{]\n")
    return Local(folder)


SOURCES = ["local csv", "local jsonl", "local parquet", "recbole", "movielens", "amazon-2014", "amazon-2018"]
SOURCES += ["amazon-2023", "shop"]


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_dropped_adds_up_in_every_source(kind: str, tmp_path: Path) -> None:
    source = write(kind, tmp_path / "raw")
    asked: list[dict[str, Any]] = [
        {"require": ["title", "image"], "k_core": 2},
        {"require": ["title"], "k_core": 0},
        {"require": ["any"], "k_core": 5},
        {"require": ["image"], "k_core": 1, "users": 9},
        {"require": ["title"], "k_core": 3, "min_rating": 2},
    ]
    for number, options in enumerate(asked):
        if kind == "shop" and "min_rating" in options:
            continue
        said: list[str] = []
        made = prepare(source, tmp_path / str(number), bad_lines=0.1, picture_size=32, notice=said.append, **options)
        check_sums(made)
        for unit in UNITS:
            for reason, count in lost(made, unit).items():
                if reason == "line cannot be read":
                    assert any("1 of 109 lines cannot be read" in line or "1 of " in line for line in said)
                    continue
                total = made.manifest["losses"][unit]["raw"]
                assert any(f" {count:,} of {total:,} {unit} " in line and reason in line for line in said), said
        if kind == "shop":
            continue
        assert made.manifest["raw"]["interactions"] == 108
        assert lost(made, "events")["line cannot be read"] == 1
        if number == 4:
            assert lost(made, "events")["rated too low"] == 12 * 2 + 4
            assert lost(made, "users")["rated too low"] == 1
        if kind.startswith("amazon") and number < 3:
            assert lost(made, "events")["copy of an earlier event"] == 3
        if kind.startswith("local") and number == 0:
            assert made.manifest["raw"] == {"users": 14, "items": 16, "interactions": 108}
            assert lost(made, "events")["item not in the catalogue"] == 6
            assert {"no title": 1, "picture missing": 2, "picture broken": 1, "not in the catalogue": 2}.items() <= (
                lost(made, "items").items()
            )


ids = st.sampled_from("abcdef")
rows = st.lists(st.tuples(ids, st.integers(0, 7), st.integers(0, 3), st.sampled_from([1.0, 5.0, None])), max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=rows,
    titled=st.lists(st.booleans(), min_size=6, max_size=6),
    k=st.integers(0, 3),
    rating=st.sampled_from([None, 3.0]),
    users=st.sampled_from([None, 2, 4]),
    copies=st.booleans(),
    asked=st.booleans(),
)
def test_every_event_is_counted_once_for_the_first_reason(
    rows, titled, k: int, rating: float | None, users: int | None, copies: bool, asked: bool, tmp_path_factory
) -> None:
    """Against going through the events one by one, in the order of the preparation."""
    log = pl.DataFrame(
        [(u, f"i{i}", t, r) for u, i, t, r in rows],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "rating": pl.Float64},
        orient="row",
    )
    shelf = pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": ["t" if good else "" for good in titled]})
    needed: list[str] = []

    def catalogue(wanted: pl.Series) -> pl.DataFrame:
        needed.extend(wanted)
        return shelf.filter(pl.col("item_id").is_in(wanted.implode()))

    raw = RawData("x", catalogue if asked else shelf, log)
    try:
        made = prepare(
            Given(raw),
            tmp_path_factory.mktemp("losses") / "out",
            require=["title"],
            k_core=k,
            min_rating=rating,
            users=users,
            duplicates="drop" if copies else "keep",
        )
    except InputError:
        return
    check_sums(made)
    kept_users, kept_items = set(made.user_ids), set(made.item_ids)
    dropped = pl.read_parquet(made.path / "dropped.parquet").filter(pl.col("kind") == "user")
    gone = dict(dropped.select("id", "reason").iter_rows())
    titles = dict(shelf.iter_rows())
    expected: Counter[str] = Counter()
    seen: set[tuple[Any, ...]] = set()
    kept = 0
    for user, item, time, stars in log.iter_rows():
        if rating is not None and (stars is None or stars < rating):
            expected["no rating" if stars is None else "rated too low"] += 1
            continue
        if copies and (user, item, time) in seen:
            expected["copy of an earlier event"] += 1
            continue
        seen.add((user, item, time))
        if gone.get(user) == "not drawn":
            expected["user not drawn"] += 1
        elif asked and item not in needed:
            expected["k-core"] += 1
        elif item not in titles:
            expected["item not in the catalogue"] += 1
        elif not titles[item]:
            expected["no title"] += 1
        elif user in kept_users and item in kept_items:
            kept += 1
        else:
            few = gone.get(user) == "fewer than 3 events"
            expected["user has fewer than 3 events" if few else "k-core"] += 1
    assert lost(made, "events") == expected
    assert kept == made.n_interactions
    assert made.manifest["raw"]["users"] == log["user_id"].n_unique()
    assert made.manifest["raw"]["items"] == len({*log["item_id"], *(set(titles) & set(needed) if asked else titles)})
    quiet = {item for item in titles if item not in {i for _, i, *_ in seen}} - kept_items
    assert {item for item in quiet if titles[item] and not (asked and item not in needed)} <= set(
        pl.read_parquet(made.path / "dropped.parquet").filter(pl.col("reason") == "no events")["id"]
    )


def busy(item: str = "i{}", users: int = 10) -> pl.DataFrame:
    rows = [(f"u{u}", item.format(n), n) for u in range(users) for n in range(6)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def shelf(count: int = 6) -> pl.DataFrame:
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(count)], "title": [f"Thing {n}" for n in range(count)]})


def told(raw: RawData, out: Path, **options: Any) -> list[str]:
    said: list[str] = []
    prepare(Given(raw), out, require=["title"], notice=said.append, **options)
    return said


def test_nothing_is_said_where_nothing_is_lost(tmp_path: Path) -> None:
    assert told(RawData("x", shelf(), busy()), tmp_path / "out") == []


def test_a_warning_comes_first_where_most_events_go_for_one_reason(tmp_path: Path) -> None:
    log = pl.concat([busy("gone-{}", users=20), busy(), busy().head(1).with_columns(user_id=pl.lit("new"))])
    said = told(RawData("x", shelf(8), log), tmp_path / "out")
    assert said == [
        "warning: dropped 120 of 181 events (66.3%): item not in the catalogue, such as items 'gone-0', 'gone-1', where"
        " the catalogue has 'i0'",
        "dropped  1 of 181 events (0.6%): user has fewer than 3 events, such as user 'new'",
        "dropped 11 of 21 users   (52.4%): fewer than 3 events, such as users 'u10', 'u11'",
        "dropped  6 of 14 items   (42.9%): not in the catalogue, such as items 'gone-0', 'gone-1'",
        "dropped  2 of 14 items   (14.3%): no events, such as items 'i6', 'i7'",
    ]


def test_no_warning_of_what_was_asked_for(tmp_path: Path) -> None:
    said = told(RawData("x", shelf(), busy(users=30)), tmp_path / "out", users=5)
    assert [line.split()[:6] for line in said] == [
        ["dropped", "150", "of", "180", "events", "(83.3%):"],
        ["dropped", "25", "of", "30", "users", "(83.3%):"],
    ]


@pytest.mark.parametrize(
    ("catalogue", "log"), [("0012", "12"), ("12", "012"), ("AB", "ab"), ("a b", "a b "), ("7", "7.")]
)
def test_ids_alike_but_for_their_form_are_said(catalogue: str, log: str, tmp_path: Path) -> None:
    items = pl.concat([shelf(), pl.DataFrame({"item_id": [catalogue], "title": ["Odd"]})])
    said = told(RawData("x", items, pl.concat([busy(), busy(log)])), tmp_path / "out")
    assert said[0] == (
        f"warning: 1 item ids (60 events) of interactions are in items in another form: {log!r} for {catalogue!r};"
        " write them alike in both tables"
    )


def test_ids_of_other_things_are_no_other_form(tmp_path: Path) -> None:
    logs = pl.concat([busy(), *(busy(f"other{n}-{{}}") for n in range(4))])
    assert not any("another form" in line for line in told(RawData("x", shelf(), logs), tmp_path / "out"))


def test_ids_turned_to_floats_on_the_command_line(call: Call, tmp_path: Path) -> None:
    """One of two files wrote its ids by way of floating point for the users it shares."""
    folder = tmp_path / "raw"
    folder.mkdir()
    shelf(20).select(pl.col("item_id").str.strip_prefix("i"), "title").write_csv(folder / "items.csv")
    users: Iterator[int] = iter(range(30))
    rows = [f"u{u},{n}{'.0' if u % 3 == 0 and n > 11 else ''},{n}" for u in users for n in range(20)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, "x,0.5,1", ""]))
    said = call("data", "prepare", "local", folder, "--require", "title", "--out", tmp_path / "data")
    assert said.status == 0
    assert said.out.splitlines()[-1] == str(tmp_path / "data")
    assert "80 of 601 events have an item_id such as 12.0 and 13.0, which is taken for 12 and 13" in said.err
    assert "1 of 601 events (0.2%): item not in the catalogue, such as item '0.5'" in said.err
    table = call("data", "describe", tmp_path / "data")
    assert "user has fewer than 3 events" in table.out or "item not in the catalogue" in table.out
    found = json.loads(call("data", "describe", tmp_path / "data", "--json").out)
    assert found["losses"]["events"]["raw"] == 601


def test_where_nothing_is_left_the_other_form_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"6 of 6 items .* in another form: 'I0' for 'i0' and 'I1' for 'i1'; write"):
        prepare(Given(RawData("x", shelf(), busy("I{}"))), tmp_path / "out", require=["title"])


def test_where_nothing_is_left_the_largest_loss_is_named(tmp_path: Path) -> None:
    log = busy(users=1).with_columns(rating=pl.Series([1.0] * 4 + [5.0] * 2))
    message = "no user keeps 3 events under --k-core 0 and --min-rating 3, after 4 of 6 events were dropped"
    with pytest.raises(InputError, match=rf"{message} \(rated too low\); lower it"):
        prepare(Given(RawData("x", shelf(), log)), tmp_path / "out", require=["title"], k_core=0, min_rating=3)
