"""What describe says of time: ties, spans, and how far leave-one-out looks into the future."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Given
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm2rec.data import holding
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.describe import TIE_RULE, describe, leak_warning
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData

Users = list[list[tuple[int, int]]]  # (item, time), in order of time

START = 1_400_000_000


def made(folder: Path, users: Users, n_items: int = 8, start: int = START) -> Dataset:
    titles = [f"t{item // 2}" for item in range(n_items)]
    items = pl.DataFrame({"item_id": [str(item) for item in range(n_items)], "title": titles})
    rows = [(f"u{user}", str(item), start + time) for user, own in enumerate(users) for item, time in own]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(Given(RawData("made", items, log)), folder, require=["any"], k_core=0, duplicates="keep")


event = st.tuples(st.integers(1, 7), st.integers(0, 12))
logs = st.lists(st.lists(event, min_size=3, max_size=8), min_size=2, max_size=7)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(log=logs, part=st.sampled_from([1, 7, 1 << 22]))
def test_equals_one_event_at_a_time(log: Users, part: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    users = [sorted(own, key=lambda each: each[1]) for own in log]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding.in_parts, "__defaults__", (part,))
        found = describe(made(tmp_path_factory.mktemp("d") / "data", users))
    json.dumps(found)
    total = sum(map(len, users))
    same = [Counter(time for _, time in own) for own in users]
    tied = [[same[user][time] > 1 for _, time in own] for user, own in enumerate(users)]
    assert found["ties"] == {
        "rule": TIE_RULE,
        "share_of_interactions": pytest.approx(sum(map(sum, tied)) / total),
        "users_whose_last_is_tied": sum(own[-1] for own in tied),
        "share_of_users_whose_last_is_tied": pytest.approx(np.mean([own[-1] for own in tied])),
        "share_of_validation_targets": pytest.approx(np.mean([own[-2] for own in tied])),
        "share_of_test_targets": pytest.approx(np.mean([own[-1] for own in tied])),
    }
    items = [[item for item, _ in own] for own in users]
    assert found["repeats"] == {
        "share_of_interactions": pytest.approx(sum(len(own) - len(set(own)) for own in items) / total),
        "share_of_test_targets": pytest.approx(np.mean([own[-1] in own[:-1] for own in items])),
        "share_of_test_targets_just_before": pytest.approx(np.mean([own[-1] == own[-2] for own in items])),
    }
    training = [each for own in users for each in own[:-2]]
    later = [np.mean([time > own[-1][1] for _, time in training]) for own in users]
    alone = [
        bool(known := [time for item, time in training if item == own[-1][0]]) and min(known) > own[-1][1]
        for own in users
    ]
    edge = abs(np.mean(later) - 0.01) < 1e-12  # where the order of a sum decides
    assert found["leave_one_out"] == {
        "leaks": found["leave_one_out"]["leaks"] if edge else bool(np.mean(later) > 0.01),
        "training_events_later": {"mean": pytest.approx(np.mean(later)), "median": pytest.approx(np.median(later))},
        "targets_known_from_later_alone": pytest.approx(np.mean(alone)),
    }
    assert found["times"]["clock"] and found["times"]["unit"] == "s"
    assert found["titles"] == {"missing": 0, "duplicate": 8}


def test_the_span_is_in_dates_where_the_unit_is_known(tmp_path: Path) -> None:
    days = [[(1, 0), (2, 86_400), (3, 90_000)], [(1, 10), (2, 20), (3, 31_536_000)]]
    times = describe(made(tmp_path / "a", days))["times"]
    assert times == {"clock": True, "unit": "s", "first": "2014-05-13T16:53:20", "last": "2015-05-13T16:53:20"}
    small = describe(made(tmp_path / "b", days, start=5))["times"]
    assert small == {"clock": True, "unit": None, "first": 5, "last": 31_536_005}


def test_who_leaks_is_warned_of(tmp_path: Path) -> None:
    """The first user's target comes before half of what is learned from."""
    early = [(1, 0), (2, 1), (3, 2), (4, 3)]
    late = [(1, 10), (2, 11), (3, 12), (4, 13)]
    warning = leak_warning(made(tmp_path / "a", [early, late]))
    assert warning is not None and "\n" not in warning
    assert "25% of the training events" in warning and "data.split.kind=time" in warning
    alike = made(tmp_path / "b", [early, [(item, time + 1) for item, time in early]])
    assert describe(alike)["leave_one_out"]["leaks"] is False
    assert leak_warning(alike) is None


def test_two_users_at_one_time_are_no_tie(tmp_path: Path) -> None:
    found = describe(made(tmp_path / "a", [[(1, 0), (2, 1), (3, 2)], [(1, 2), (2, 3), (3, 4)]]))
    assert found["ties"]["share_of_interactions"] == 0


def test_times_that_are_places_are_said_to_be(from_sequences: Any) -> None:
    dataset = from_sequences([[0, 1, 2, 3], [3, 2, 1], [1, 1, 1]], 4)
    found = describe(dataset)
    assert found["times"]["clock"] is False and found["leave_one_out"]["leaks"] is None
    assert "no more than each user's order" in str(leak_warning(dataset))
