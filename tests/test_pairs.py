"""Two data sets as one: users by id, events by time, items by domain, pictures as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Given, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec.config import LeaveOneOut
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import describe
from vlm2rec.data.identity import check
from vlm2rec.data.pairs import Users, pair
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.splits import BOTH, Split
from vlm2rec.errors import InputError

START = 1_400_000_000
Rows = Sequence[tuple[Any, ...]]

BOOKS: Rows = [
    *[("ann", "b1", 1, 5.0), ("ann", "x", 3, 4.0), ("ann", "b2", 5, 3.0)],
    *[("bob", "b2", 2, 2.0), ("bob", "b1", 4, 1.0), ("bob", "b1", 4, 5.0)],
    *[("cy", "x", 1, 1.0), ("cy", "b1", 2, 1.0), ("cy", "b2", 3, 1.0)],
]
FILMS: Rows = [
    *[("bob", "f1", 4), ("bob", "x", 1), ("bob", "f1", 9)],
    *[("ann", "f1", 3), ("ann", "f2", 4), ("ann", "x", 4), ("ann", "f2", 2)],
    *[("dee", "f1", 1), ("dee", "f2", 2), ("dee", "x", 3)],
]


def made(folder: Path, name: str, rows: Rows, pictures: Sequence[str] = (), **options: Any) -> Dataset:
    """A prepared data set of these events; times count from START, and `pictures` are items that have one."""
    columns = ["user_id", "item_id", "timestamp", "rating"][: len(rows[0])]
    log = pl.DataFrame(rows, schema=columns, orient="row").with_columns(pl.col("timestamp") + START)
    ids = log["item_id"].unique().sort().to_list()
    items = pl.DataFrame({"item_id": ids, "title": [f"{name} {i}" for i in ids]})
    items = items.with_columns(image=pl.Series([f"{i}.png" if i in pictures else None for i in ids], dtype=pl.String))
    write_pictures(folder / f"{name}-images", [f"{i}.png" for i in pictures])
    source = Given(RawData(name, items, log, folder / f"{name}-images"))
    return prepare(
        source, folder / name, require=["title"], k_core=0, duplicates="keep", **{"picture_size": 16, **options}
    )


@pytest.fixture
def books(tmp_path: Path) -> Dataset:
    return made(tmp_path, "books", BOOKS, ["b1", "x"])


@pytest.fixture
def films(tmp_path: Path) -> Dataset:
    return made(tmp_path, "films", FILMS, ["x", "f2"])  # other pixels than those of b1


def test_a_pair_by_hand(books: Dataset, films: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm2rec.data.pairs._EVENTS_AT_ONCE", 4)
    both = pair(books, films, tmp_path / "pair")
    assert (both.name, both.user_ids) == ("books+films", ["ann", "bob"])
    assert both.item_ids == ["b1", "b2", "books:x", "f1", "f2", "films:x"]
    assert both.items["domain"].to_list() == ["books"] * 3 + ["films"] * 3
    named = [[both.item_ids[item] for item in own] for own in both.sequences]
    assert named == [
        ["b1", "f2", "books:x", "f1", "f2", "films:x", "b2"],  # at 3 both have one: books first
        ["films:x", "b2", "b1", "b1", "f1", "f1"],
    ]
    table = both.interactions
    assert table["item_id"].to_list() == [*named[0], *named[1]]
    assert (table["timestamp"] - START).to_list() == [1, 2, 3, 3, 4, 4, 5, 1, 2, 4, 4, 4, 9]
    assert table["rating"].to_list() == [5, None, 4, None, None, None, 3, None, 2, 1, 5, None, None]
    assert pl.read_parquet(both.path / "dropped.parquet").filter(pl.col("kind") == "user").rows() == [
        ("cy", "user", "only in books"),
        ("dee", "user", "only in films"),
    ]
    assert both.manifest["pair"] == {
        "users": "both",
        "of": [{"name": d.name, "fingerprint": d.fingerprint} for d in (books, films)],
        "overlap": {"users": 2, "users_in_first": 3, "users_in_second": 3, "item_ids": 1},
    }
    assert both.manifest["time_unit"] == "s"
    assert both.manifest["raw"] == {"users": 4, "items": 6, "interactions": 19}
    lost = {unit: found["lost"] for unit, found in both.manifest["losses"].items()}
    assert lost["events"] == [
        {"reason": "user only in books", "count": 3, "examples": {"user_id": ["cy"]}},
        {"reason": "user only in films", "count": 3, "examples": {"user_id": ["dee"]}},
    ]
    assert [(each["reason"], each["count"]) for each in lost["users"]] == [("only in books", 1), ("only in films", 1)]
    assert (lost["items"], [(each["reason"], each["count"]) for each in lost["pictures"]]) == ([], [("no picture", 2)])
    for unit, name in (("events", "interactions"), ("users", "users"), ("items", "items")):
        found = both.manifest["losses"][unit]
        assert found["raw"] == found["kept"] + sum(each["count"] for each in found["lost"])
        assert found["kept"] == both.manifest["counts"][name]
    check(both)  # as it was written
    everybody = pair(books, films, tmp_path / "any", users="any")
    assert everybody.user_ids == ["ann", "bob", "cy", "dee"]
    assert everybody.n_interactions == books.n_interactions + films.n_interactions
    assert everybody.fingerprint != both.fingerprint


def test_pictures_are_those_of_the_two(books: Dataset, films: Dataset, tmp_path: Path) -> None:
    both = pair(books, films, tmp_path / "pair")
    expected = [*books.pictures, *films.pictures]
    assert [picture is None for picture in both.pictures] == [False, True, False, True, False, False]
    for mine, theirs in zip(both.pictures, expected, strict=True):
        assert theirs is None or np.array_equal(mine, theirs)
    assert both.pictures.digests == [*books.pictures.digests, *films.pictures.digests]
    pictures = describe(both)["pictures"]
    assert (pictures["present"], pictures["missing"]) == (4, 2)
    assert both.manifest["dropped"]["picture"] == {"no picture": 2}
    listed = pl.read_parquet(both.path / "dropped.parquet").filter(pl.col("kind") == "picture")
    assert sorted(listed["id"]) == ["b2", "f1"]


events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=3, max_size=7)  # (item, time)
logs = st.dictionaries(st.sampled_from("abcd"), events, min_size=1)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(first=logs, second=logs, users=st.sampled_from(["both", "any"]))
def test_equals_sorting_each_user_by_time(
    first: dict[str, Any], second: dict[str, Any], users: Users, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    data = []
    for name, log in (("m", first), ("n", second)):
        rows = [(user, f"{name}{item}", time) for user, own in log.items() for item, time in own]
        data.append(made(folder, name, rows))
    if users == "both" and not set(first) & set(second):
        with pytest.raises(InputError, match="no user id in common"):
            pair(*data, folder / "out", users)
        return
    both = pair(*data, folder / "out", users)
    everybody = dict.fromkeys([*first, *second])
    assert both.user_ids == [user for user in everybody if users == "any" or (user in first and user in second)]
    for user, own in zip(both.user_ids, both.sequences, strict=True):
        mine = [(time, f"m{item}") for item, time in first.get(user, [])]
        others = [(time, f"n{item}") for item, time in second.get(user, [])]
        merged = sorted([*mine, *others], key=lambda each: each[0])
        assert [both.item_ids[item] for item in own] == [item for _, item in merged]


def test_targets_are_of_the_domain_asked_for(books: Dataset, films: Dataset, tmp_path: Path) -> None:
    split = Split(pair(books, films, tmp_path / "pair"), 10, LeaveOneOut(domain="films"))
    ids = split.dataset.item_ids
    asked = {which: [ids[item] for item in split.targets_of(split.able(which), which)] for which in BOTH}
    assert asked == {"validation": ["f2", "f1"], "test": ["films:x", "f1"]}
    assert [ids[item] for item in split.past(0, "test")] == ["b1", "f2", "books:x", "f1", "f2"]
    assert [ids[item] for item in split.train[0]] == ["b1", "f2", "books:x", "f1"]


def test_the_same_pair_is_left_and_anything_else_refused(books: Dataset, films: Dataset, tmp_path: Path) -> None:
    made_once = pair(books, films, tmp_path / "pair")
    changed = (tmp_path / "pair" / "manifest.json").stat().st_mtime_ns
    assert pair(books, films, tmp_path / "pair").fingerprint == made_once.fingerprint
    assert (tmp_path / "pair" / "manifest.json").stat().st_mtime_ns == changed
    for first, second, users in ((films, books, "both"), (books, films, "any")):
        with pytest.raises(InputError, match="exists and is not this pair"):
            pair(first, second, tmp_path / "pair", users)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exists and is not this pair"):
        pair(books, films, books.path)
    assert not list(tmp_path.glob(".*partial"))


def test_clocks_of_different_units_are_brought_to_the_finer_one(books: Dataset, films: Dataset, tmp_path: Path) -> None:
    rows = [(user, item, (START + time) * 1000 - START) for user, item, time in FILMS]
    finer = made(tmp_path / "ms", "films", rows)
    plain, mixed = pair(books, films, tmp_path / "plain"), pair(books, finer, tmp_path / "mixed")
    assert (plain.manifest["time_unit"], mixed.manifest["time_unit"]) == ("s", "ms")
    assert mixed.user_ids == plain.user_ids
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(mixed.sequences, plain.sequences, strict=True))
    assert (mixed.interactions["timestamp"] // 1000).equals(plain.interactions["timestamp"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "books"}, "are both called 'books'"),
        ({"picture_size": 32}, "pictures differ in picture_size (16, 32); prepare both with one --picture-size"),
        ({"picture_fit": "aspect"}, "pictures differ in picture_fit"),
        ({"places": True}, "not known what its times count"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    options: dict[str, Any], said: str, books: Dataset, tmp_path: Path
) -> None:
    name = options.pop("name", "films")
    rows = FILMS
    if "places" in options:
        rows = [(user, item, time - START) for user, item, time in FILMS]
    given = {key: value for key, value in options.items() if key.startswith("picture")}
    with pytest.raises(InputError) as caught:
        pair(books, made(tmp_path / "other", name, rows, **given), tmp_path / "pair")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pair").exists()


def test_a_killed_pair_leaves_nothing(
    books: Dataset, films: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm2rec.data.pairs._copy_pictures", die)
    with pytest.raises(KeyboardInterrupt):
        pair(books, films, tmp_path / "pair")
    assert not (tmp_path / "pair").exists() and not list(tmp_path.glob(".*partial"))


def test_pictures_are_copied_not_decoded(
    books: Dataset, films: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened a picture")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Image, "fromarray", refuse)
    assert pair(books, films, tmp_path / "pair").pictures[0] is not None
