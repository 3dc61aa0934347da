"""Splits: against one user at a time, what may never be seen, and whole runs under each kind."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from conftest import Given, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program import Call

from vlm2rec.compare import compare
from vlm2rec.config import Config, SplitConfig, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.holding import counts_of, in_parts
from vlm2rec.data.prepare import prepare
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.sources import RawData
from vlm2rec.data.splits import BOTH, Split, sample_users
from vlm2rec.data.timeline import Timeline
from vlm2rec.errors import InputError
from vlm2rec.runs import Run, read_json


def how(**split: object) -> SplitConfig:
    return parse_config({"data": {"path": "x", "split": split}}).data.split


KINDS: dict[str, dict[str, Any]] = {
    "leave_one_out": {"kind": "leave_one_out"},
    "domain": {"kind": "leave_one_out", "domain": "odd"},
    "time": {"kind": "time", "validation": 0.25, "test": 0.25},
    "time, first": {"kind": "time", "validation": 0.25, "test": 0.25, "target": "first"},
    "cold": {"kind": "cold_items", "validation": 0.2, "test": 0.3},
    "cold, newest": {"kind": "cold_items", "validation": 0.2, "test": 0.3, "items": "newest"},
}


# ---------------------------------------------------------------- leave-one-out


def test_leave_one_out_by_hand(from_sequences) -> None:
    split = Split(from_sequences([[0, 1, 2, 3, 4], [4, 4, 0], [2, 1, 2, 1]], n_items=6), max_history=2)
    assert [own.tolist() for own in split.train] == [[0, 1, 2], [4], [2, 1]]
    assert split.history(0, "validation").tolist() == [1, 2]
    assert split.target(0, "validation") == 3
    assert split.history(0, "test").tolist() == [2, 3]
    assert split.target(0, "test") == 4
    assert split.history(1, "validation").tolist() == [4]
    assert split.history(1, "test").tolist() == [4, 4]
    assert split.seen(2).tolist() == [1, 2]
    assert split.popularity.tolist() == [1, 2, 2, 0, 1, 0]
    assert (split.n_users, split.n_items) == (3, 6)


def test_histories_are_cut_and_never_hold_the_future(tiny_dataset: Dataset) -> None:
    split = Split(tiny_dataset, max_history=4)
    for user, events in enumerate(tiny_dataset.sequences):
        for which, ahead in (("validation", 2), ("test", 1)):
            history = split.history(user, which)
            assert len(history) == min(4, len(events) - ahead)
            assert [*history, split.target(user, which)] == events[len(events) - ahead - len(history) :][
                : len(history) + 1
            ].tolist()
    assert split.popularity.sum() == sum(len(own) - 2 for own in tiny_dataset.sequences)
    with pytest.raises(ValueError, match="max_history"):
        Split(tiny_dataset, max_history=0)


def test_plain_leave_one_out_is_tied_to_the_data_alone(tiny_dataset: Dataset) -> None:
    """Its fingerprint, users and candidates are those of the time when there was no other split."""
    split = Split(tiny_dataset)
    assert split.fingerprint == tiny_dataset.fingerprint
    assert split.how == parse_config({"data": {"path": "x"}}).data.split
    for which in BOTH:
        assert split.able(which).tolist() == list(range(split.n_users))
        assert split.sample(which, 6, 3, "some").tolist() == sample_users(split.n_users, 6, 3, "some").tolist()


# ---------------------------------------------------------------- any kind, against one user at a time


@dataclass
class Stub:
    """As much of a data set as a split reads."""

    path: Path
    sequences: Ragged
    n_items: int
    manifest: dict[str, Any]
    fingerprint: str = "f"


Events = list[tuple[int, int]]  # (time, item) of one user, in order


def stub(folder: Path, users: Sequence[Events], n_items: int) -> Dataset:
    """Odd items are of the domain "odd"."""
    flat = [event for own in users for event in own]
    pl.DataFrame({"timestamp": [time for time, _ in flat]}).write_parquet(folder / "interactions.parquet")
    domain = ["odd" if item % 2 else "even" for item in range(n_items)]
    pl.DataFrame({"domain": domain}).write_parquet(folder / "items.parquet")
    sequences = Ragged.of([np.array([item for _, item in own]) for own in users])
    return cast(Dataset, Stub(folder, sequences, n_items, {"time_unit": "s"}))


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Events], int]:
    """Some users with three events and more, many at the same times, of few items."""
    n_items = draw(st.integers(4, 12))
    event = st.tuples(st.integers(0, draw(st.sampled_from([5, 40]))), st.integers(0, n_items - 1))
    users = draw(st.lists(st.lists(event, min_size=3, max_size=9), min_size=1, max_size=8))
    return [sorted(own, key=lambda each: each[0]) for own in users], n_items


@dataclass
class Naive:
    """Training, and (past, target) by user, made the plain way."""

    train: list[list[int]]
    validation: dict[int, tuple[list[int], int]]
    test: dict[int, tuple[list[int], int]]


def naive(users: list[Events], kind: SplitConfig, parts: dict[str, set[int]]) -> Naive | None:
    """`parts`: which items are held out. None where nothing is left of something."""
    found = Naive([], {}, {})
    times = sorted(time for own in users for time, _ in own)
    if kind.kind == "time":
        place = len(times) - round(len(times) * float(kind.test))
        if place < 1 or times[place] == times[0]:
            return None
        second = times[place]
        place = sum(time < second for time in times) - round(len(times) * float(kind.validation))
        if place < 1:
            return None
        first = times[place]
    for user, own in enumerate(users):
        items = [item for _, item in own]
        places: dict[str, int | None] = {"validation": None, "test": None}
        kept = list(range(len(own)))  # places of the events that can be seen
        if kind.kind == "leave_one_out":
            inside = [at for at, item in enumerate(items) if kind.domain is None or item % 2]
            if len(inside) >= 2 and inside[-2] > 0:
                places = {"validation": inside[-2], "test": inside[-1]}
            learned = items[: places["validation"]]
        elif kind.kind == "time":
            for which, low, high in (("validation", first, second), ("test", second, math.inf)):
                inside = [at for at, (time, _) in enumerate(own) if low <= time < high]
                if inside:
                    places[which] = inside[-1 if kind.target == "last" else 0]
            learned = [item for time, item in own if time < first]
        else:
            kept = [at for at in kept if items[at] not in parts["validation"] | parts["test"]]
            for which in BOTH:
                inside = [at for at, item in enumerate(items) if item in parts[which]]
                if inside and kept and kept[0] < inside[-1]:
                    places[which] = inside[-1]
            ends = [at for at in places.values() if at is not None]
            learned = [items[at] for at in kept if at < min(ends, default=math.inf)]
        found.train.append(learned)
        for which, at in places.items():
            past = [items[each] for each in kept if at is not None and each < at]
            if past and at is not None:
                getattr(found, which)[user] = past, items[at]
    return found if any(found.train) and found.validation and found.test else None


def held_out(split: Split) -> dict[str, set[int]]:
    """The items that a split of cold items has taken, from what it would match a target with; none for other kinds."""
    if split.how.kind != "cold_items":
        return {which: set() for which in BOTH}
    return {which: set(np.flatnonzero(split.matched(which)).tolist()) for which in BOTH}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(log=logs())
def test_equals_one_user_at_a_time(kind: str, log: tuple[list[Events], int], tmp_path: Path) -> None:
    users, n_items = log
    chosen = how(**KINDS[kind])
    dataset = stub(tmp_path, users, n_items)
    try:
        split = Split(dataset, 3, chosen)
    except InputError:
        if chosen.kind != "cold_items":  # whose items are drawn by the split itself
            assert naive(users, chosen, {}) is None
        return
    expected = naive(users, chosen, held_out(split))
    assert expected is not None
    assert [own.tolist() for own in split.train] == expected.train
    learned = np.array([item for own in expected.train for item in own], np.int64)
    assert split.popularity.tolist() == np.bincount(learned, minlength=n_items).tolist()
    for which in BOTH:
        asked: dict[int, tuple[list[int], int]] = getattr(expected, which)
        assert split.able(which).tolist() == sorted(asked)
        for user in range(len(users)):
            if user in asked:
                past, target = asked[user]
                assert (split.past(user, which).tolist(), split.target(user, which)) == (past, target)
                assert split.history(user, which).tolist() == past[-3:]
            else:
                assert not len(split.past(user, which))
                with pytest.raises(ValueError, match=f"user {user} has no {which} target"):
                    split.target(user, which)
        assert split.targets_of(split.able(which), which).tolist() == [asked[user][1] for user in sorted(asked)]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(log=logs(), target=st.sampled_from(["last", "first"]))
def test_time_parts_training_from_targets(log: tuple[list[Events], int], target: str, tmp_path: Path) -> None:
    """Stated once more, by the times alone: nothing learned from is as late as anything asked for."""
    users, n_items = log
    try:
        split = Split(stub(tmp_path, users, n_items), 3, how(kind="time", validation=0.3, test=0.2, target=target))
    except InputError:
        return
    learned = [own[at][0] for own, train in zip(users, split.train, strict=True) for at in range(len(train))]
    asked = {which: [users[user][split.ends[which][user]][0] for user in split.able(which)] for which in BOTH}
    assert max(learned) < min(asked["validation"]) <= max(asked["validation"]) < min(asked["test"])
    share = sum(time > max(asked["validation"]) for own in users for time, _ in own) / sum(map(len, users))
    assert share >= 0.2 - 0.5 / sum(map(len, users))  # ties may make it more


@pytest.mark.parametrize("items", ["random", "newest"])
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(log=logs())
def test_cold_items_are_in_no_history_and_not_learned(
    items: str, log: tuple[list[Events], int], tmp_path: Path
) -> None:
    users, n_items = log
    options = {"kind": "cold_items", "validation": 0.25, "test": 0.25, "items": items}
    dataset = stub(tmp_path, users, n_items)
    try:
        split = Split(dataset, 3, how(**options))
    except InputError:
        return
    parts = held_out(split)
    having = {item for own in users for _, item in own}
    assert [len(parts[which]) for which in BOTH] == [round(len(having) * 0.25)] * 2 and not parts["validation"] & parts[
        "test"
    ]
    cold = parts["validation"] | parts["test"]
    assert not cold & {int(item) for own in (*split.train, *split.events) for item in own}
    for which in BOTH:
        assert set(split.targets_of(split.able(which), which).tolist()) <= parts[which]
    if items == "newest":
        first = {item: min(time for own in users for time, one in own if one == item) for item in having}
        ages = [[first[item] for item in group] for group in (having - cold, parts["validation"], parts["test"])]
        assert max(ages[0], default=0) <= min(ages[1]) and max(ages[1]) <= min(ages[2])
    again = Split(dataset, 3, how(**options))
    assert held_out(again) == parts and again.fingerprint == split.fingerprint


def test_what_matches_a_cold_target(tmp_path: Path) -> None:
    """Negatives for it are as popular as it is: held out like it, and drawn by all their events."""
    users = [[(t, int(i)) for t, i in enumerate(np.random.default_rng(u).integers(0, 30, 9))] for u in range(40)]
    split = Split(stub(tmp_path, users, 30), 5, how(kind="cold_items", validation=0.2, test=0.3))
    counts = np.bincount([item for own in users for _, item in own], minlength=30)
    for which, size in (("validation", 6), ("test", 9)):
        weights = split.matched(which)
        assert (weights > 0).sum() == size and (split.popularity[weights > 0] == 0).all()
        assert weights[weights > 0].tolist() == counts[weights > 0].tolist()
    plain = Split(stub(tmp_path, users, 30))
    assert plain.matched("test") is plain.popularity


# ---------------------------------------------------------------- cut-offs, refusals, fingerprints


def spread(users: int = 40, items: int = 24, seed: int = 0) -> list[Events]:
    """Users who come and go over a year, in seconds since 1970."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(users):
        times = np.sort(rng.integers(0, 365 * 86400, rng.integers(5, 13))) + 1_388_534_400  # from 2014-01-01
        made.append(list(zip(times.tolist(), rng.integers(0, items, len(times)).tolist(), strict=True)))
    return made


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 10**6), ("ns", 10**9)])
def test_a_cut_off_may_be_a_date(unit: str, factor: int, tmp_path: Path) -> None:
    users = spread()
    dataset = stub(tmp_path, [[(time * factor, item) for time, item in own] for own in users], 24)
    dataset.manifest["time_unit"] = unit  # type: ignore[index]
    dates = Split(dataset, 10, how(kind="time", validation="2014-09-01", test="2014-11-01T12:00:00+01:00"))
    numbers = Split(dataset, 10, how(kind="time", validation=1_409_529_600 * factor, test=1_414_839_600 * factor))
    assert all((dates.targets[which] == numbers.targets[which]).all() for which in BOTH)
    assert (dates.train.lengths == [sum(time < 1_409_529_600 for time, _ in own) for own in users]).all()
    assert dates.record["cut_offs"] == {"validation": "2014-09-01T00:00:00", "test": "2014-11-01T11:00:00"}
    timeline = Timeline.of(dataset)
    assert timeline.at("2014-09-01T00:00:00.25") == 1_409_529_600 * factor + -(
        -factor // 4
    )  # the first time from then on
    mixed = Split(dataset, 10, how(kind="time", validation=0.1, test="2014-11-01T11:00"))
    assert (mixed.targets["test"] == dates.targets["test"])[mixed.targets["test"] >= 0].all()
    shares = [sum(time < 1_414_839_600 for own in users for time, _ in own) - mixed.train.lengths.sum()]
    assert shares == [round(0.1 * sum(map(len, users)))]


def test_times_that_are_places_are_refused(from_sequences, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 9, rng.integers(4, 9)).tolist() for _ in range(20)]
    for options in (KINDS["time"], KINDS["cold, newest"]):
        with pytest.raises(InputError, match="needs clock times") as caught:
            Split(from_sequences(sequences, 9), 10, how(**options))
        assert "\n" not in str(caught.value)
    assert len(Split(from_sequences(sequences, 9, "again"), 10, how(**KINDS["cold"])).able("test"))
    # Places that lost some events, and clock times that happen to be small.
    dropped = [[(place, item) for place, item in enumerate(own) if place != 1] for own in sequences]
    for users, refused in ((dropped, True), ([[(t + u, i) for t, i in own] for u, own in enumerate(dropped)], False)):
        dataset = stub(tmp_path, users, 9)
        dataset.manifest["time_unit"] = None  # type: ignore[index]
        if refused:
            with pytest.raises(InputError, match="needs clock times"):
                Split(dataset, 10, how(**KINDS["time"]))
        else:
            assert len(Split(dataset, 10, how(**KINDS["time"])).able("test"))
    with pytest.raises(InputError, match="unit of the times is not known"):
        Split(dataset, 10, how(kind="time", test="2014-01-01"))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"kind": "time", "test": "2013-01-01"}, "data.split.test = 2013-01-01: no event is before that"),
        ({"kind": "time", "test": "2016-01-01"}, "nobody with a test target"),
        ({"kind": "time", "validation": "2014-11-01", "test": "2014-10-01"}, "is not before data.split.test"),
        ({"kind": "time", "validation": "2013-01-01", "test": "2014-10-01"}, "leaves no event to train on"),
        ({"kind": "time", "validation": 0.9, "test": "2014-03-01"}, "data.split.validation = 0.9: no event is before"),
        ({"kind": "cold_items", "test": 0.001}, "nobody with a test target"),
        ({"kind": "leave_one_out", "domain": "ood"}, "no item is of data.split.domain = 'ood'; did you mean odd?"),
    ],
)
def test_a_split_with_nobody_left_is_refused_in_one_line(split: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Split(stub(tmp_path, spread(), 24), 10, how(**split))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_domain_needs_a_pair(tiny_dataset: Dataset) -> None:
    with pytest.raises(InputError, match="has no column domain"):
        Split(tiny_dataset, 10, how(kind="leave_one_out", domain="books"))


def test_a_fingerprint_is_of_data_and_split(tmp_path: Path) -> None:
    dataset = stub(tmp_path, spread(), 24)
    variants = [
        *KINDS.values(),
        {**KINDS["time"], "test": 0.2},
        {**KINDS["cold"], "seed": 1},
        {**KINDS["cold"], "test": 0.2},
        {"kind": "leave_one_out", "domain": "even"},
    ]
    found = [Split(dataset, 10, how(**options)).fingerprint for options in variants]
    assert len(set(found)) == len(variants)
    assert found == [Split(dataset, 4, how(**options)).fingerprint for options in variants]
    dataset.fingerprint = "another"
    assert not set(found) & {Split(dataset, 10, how(**options)).fingerprint for options in variants}
    split = Split(dataset, 10, how(**KINDS["time"]))
    json.dumps(split.record)
    assert split.record["users"] == {which: len(split.able(which)) for which in BOTH}


def test_a_sample_is_of_those_who_have_a_target_pure_and_nested(tmp_path: Path) -> None:
    split = Split(stub(tmp_path, spread(200), 24), 10, how(**KINDS["time"]))
    able = set(split.able("test").tolist())
    assert 20 < len(able) < 180
    small, big = (split.sample("test", count, 3, "evaluation") for count in (10, 20))
    assert set(small) < set(big) <= able and (np.diff(big) > 0).all()
    assert small.tolist() == split.sample("test", 10, 3, "evaluation").tolist()
    assert set(split.sample("test", None, 3, "x")) == set(split.sample("test", 10**6, 3, "x")) == able


def test_parts_are_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for rows in (1, 2, 50):
        ragged = Ragged.of([rng.integers(0, 7, rng.integers(0, 9)) for _ in range(rows)])
        for heads in (ragged, ragged.heads(ragged.lengths - 2)):
            for size in (1, 5, 1000):
                parts = list(in_parts(heads, size))
                assert [row.tolist() for part in parts for row in part] == [row.tolist() for row in heads]
            assert counts_of(heads, 7).tolist() == np.bincount(heads.flat(), minlength=7).tolist()


# ---------------------------------------------------------------- drawing users


def test_sample_users_is_pure_nested_and_fair() -> None:
    small, big = sample_users(1000, 64, 3, "training"), sample_users(1000, 128, 3, "training")
    assert np.array_equal(small, sample_users(1000, 64, 3, "training"))
    assert set(small) < set(big)
    assert len(np.unique(big)) == 128
    assert (np.diff(big) > 0).all()
    assert not np.array_equal(small, sample_users(1000, 64, 4, "training"))
    assert not np.array_equal(small, sample_users(1000, 64, 3, "evaluation"))
    assert sample_users(5, None, 0, "x").tolist() == sample_users(5, 9, 0, "x").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="count"):
        sample_users(5, 0, 0, "x")
    times = np.bincount(np.concatenate([sample_users(20, 5, seed, "x") for seed in range(2000)]), minlength=20)
    assert np.abs(times - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_sample_users_never_changes() -> None:
    """Results of old runs rest on it: a new version of NumPy or of this package must draw the same users."""
    assert sample_users(100, 6, 0, "evaluation").tolist() == [14, 41, 50, 57, 69, 80]


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sixty users of 24 items with pictures, over a year."""
    folder = tmp_path_factory.mktemp("year")
    ids = [f"i{item:02d}" for item in range(24)]
    items = pl.DataFrame(
        {"item_id": ids, "title": [f"Thing {name}" for name in ids], "image": [f"{n}.png" for n in ids]}
    )
    write_pictures(folder / "images", items["image"].to_list())
    rows = [(f"u{user}", ids[item], time) for user, own in enumerate(spread(60)) for time, item in own]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(Given(RawData("year", items, interactions, folder / "images")), folder / "data", picture_size=32)


ASKED: dict[str, dict[str, Any]] = {
    "leave_one_out": {"kind": "leave_one_out"},
    "time": {"kind": "time", "validation": 0.2, "test": 0.2},
    "cold_items": {"kind": "cold_items", "validation": 0.2, "test": 0.2},
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_run_asks_those_who_have_a_target(kind: str, year: Dataset, tmp_path: Path, call: Call) -> None:
    split = Split(year, 10, how(**ASKED[kind]))
    given = [f"--set=data.split.{key}={value}" for key, value in ASKED[kind].items()]
    (tmp_path / "run.toml").write_text(f'[data]\npath = "{year.path}"\n', encoding="utf-8")
    for method in ("poprec", "itemknn", "random"):
        out = tmp_path / method
        said = call("run", tmp_path / "run.toml", *given, f"--set=method.kind={method}", "--out", out)
        assert said.status == 0, said.err
        able = [year.user_ids[user] for user in split.able("test")]
        ranks = pl.read_parquet(out / "users.parquet")
        for view in ("sampled", "matched", "full", "full_unseen"):
            assert ranks.filter(pl.col("view") == view)["user_id"].to_list() == able
        data = read_json(out / "results.json", "results")["data"]
        assert data["evaluated_users"] == len(able) and data["split"] == split.record
        assert Run.open(out).manifest["data"]["split"]["fingerprint"] == split.fingerprint
    if kind == "cold_items":  # which nobody has been seen with
        cold = read_json(tmp_path / "poprec" / "results.json", "results")["cold"]["retrieval"]
        assert list(cold) == ["0"] and cold["0"]["users"] == len(split.able("test"))
    found = compare([tmp_path / "poprec", tmp_path / "itemknn"])
    assert found.evaluated_users == len(split.able("test"))


def counted(year: Dataset, **more: Any) -> Config:
    return parse_config({"data": {"path": str(year.path), **more}, "method": {"kind": "poprec"}})


def test_runs_of_different_splits_do_not_mix(year: Dataset, tmp_path: Path) -> None:
    from vlm2rec.job import run

    for kind, options in ASKED.items():
        run(counted(year, split=options), tmp_path / kind)
    with pytest.raises(InputError, match=r"another data\.split than .*\(time against leave_one_out\)"):
        compare([tmp_path / "leave_one_out", tmp_path / "time"])
    with pytest.raises(InputError, match="is a run of another config"):
        run(counted(year, split=ASKED["time"]), tmp_path / "leave_one_out")
    # A run from before there were several goes on as leave-one-out, and a split that was made otherwise does not.
    for kind, change in (("leave_one_out", None), ("time", "other")):
        path = tmp_path / kind / "manifest.json"
        manifest = json.loads(path.read_text())
        if change is None:
            del manifest["data"]["split"], manifest["config"]["data"]["split"]
        else:
            manifest["data"]["split"]["fingerprint"] = change
        path.write_text(json.dumps(manifest))
    run(counted(year), tmp_path / "leave_one_out")
    assert compare([tmp_path / "leave_one_out"]).evaluated_users == 60
    with pytest.raises(InputError, match="was made with another split"):
        run(counted(year, split=ASKED["time"]), tmp_path / "time")


SASREC = {"method": {"kind": "sasrec"}, "seqrec": {"dim": 8, "inner": 16, "epochs": 2, "lr": [1e-3]}}
FEW = {
    "backbone": {"path": "nano"},
    "method": {"kind": "sft"},
    "training": {"users": 12, "batch_size": 16, "epochs": 1},
    "monitor": {"probes": 0},
    "evaluation": {"users": 8},
}


@pytest.mark.parametrize("kind", ["time", "cold_items"])
@pytest.mark.parametrize("method", [SASREC, FEW], ids=["sasrec", "sft"])
def test_what_is_trained_is_validated_and_tested_on_targets_of_the_split(
    method: dict[str, Any], kind: str, year: Dataset, tmp_path: Path
) -> None:
    from vlm2rec.job import run

    raw = {"preset": "small", "data": {"path": str(year.path), "split": ASKED[kind]}, **method}
    made = run(parse_config(raw), tmp_path / "run")
    results = made.results()
    assert results["validation"]["N@20"] >= 0
    expected = len(Split(year, 10, how(**ASKED[kind])).able("test"))
    assert results["data"]["evaluated_users"] == (8 if method is FEW else expected)
    assert (tmp_path / "run" / "report.html").exists()


def test_few_shot_validation_is_of_those_trained_on(year: Dataset) -> None:
    from vlm2rec.methods.base import asked_histories, validation_users

    split = Split(year, 10, how(**ASKED["time"]))
    config = parse_config({"data": {"path": "x"}, "training": {"users": 5}})
    able = split.able("validation")
    nobody = np.setdiff1d(np.arange(60), able)[:4]
    trained = np.sort(np.concatenate([able[:3], nobody]))
    assert validation_users(config, split, trained).tolist() == able[:3].tolist()
    stand_in = validation_users(config, split, nobody)
    assert len(stand_in) == 4 and set(stand_in) <= set(split.able("validation"))
    everyone = validation_users(parse_config({"data": {"path": "x"}}), split, trained)
    assert everyone.tolist() == split.able("validation").tolist()
    assert len(asked_histories(split)) == len(set(split.able("validation")) | set(split.able("test")))
    assert all(asked_histories(split))
