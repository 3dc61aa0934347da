from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec.data.preparing import log as log_module
from vlm2rec.data.preparing.log import Numbering, Spill, read_log
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.errors import InputError

ids = st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=8), min_size=1, max_size=6)


def raw(*tables: pl.DataFrame) -> RawData:
    return RawData("log", pl.DataFrame({"item_id": ["a"]}), iter(tables), interactions_from="log.csv")


def table(*rows: tuple, **more) -> pl.DataFrame:
    names = ["user_id", "item_id", "timestamp"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(**more)


@settings(max_examples=100, deadline=None)
@given(ids)
def test_ids_are_numbered_by_first_appearance(parts: list[list[str]]) -> None:
    numbering, seen = Numbering(), {}
    for part in parts:
        expected = [seen.setdefault(name, len(seen)) for name in part]
        assert numbering.numbers(pl.Series(part, dtype=pl.String)).tolist() == expected
    assert numbering.ids().to_list() == list(seen)


def test_two_logs_have_numbers_of_their_own() -> None:
    first, second = Numbering(), Numbering()
    assert first.numbers(pl.Series(["x", "y"])).tolist() == [0, 1]
    assert second.numbers(pl.Series(["y", "x"])).tolist() == [0, 1]
    assert first.numbers(pl.Series(["y", "z"])).tolist() == [1, 2]
    assert (first.ids().to_list(), second.ids().to_list()) == (["x", "y", "z"], ["y", "x"])


def test_a_log_in_parts_is_the_log_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    whole = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 30, 500)],
            "item_id": [f"i{n}" for n in rng.integers(0, 90, 500)],
            "timestamp": rng.integers(0, 99, 500),
            "stars": rng.integers(1, 6, 500),
        }
    )
    one = read_log(raw(whole), tmp_path)
    monkeypatch.setattr(log_module, "CHUNK", 7)
    many = read_log(raw(*whole.iter_slices(61)), tmp_path)
    for name in ("user", "item", "time"):
        assert np.array_equal(getattr(one, name), getattr(many, name))
    assert one.user_ids.equals(many.user_ids) and one.item_ids.equals(many.item_ids)
    assert one.user_ids[one.user].to_list() == whole["user_id"].to_list()
    assert one.item_ids[one.item].to_list() == whole["item_id"].to_list()
    assert pl.concat(one.others.parts).equals(whole.select("stars"))
    assert pl.concat(many.others.parts).equals(whole.select("stars"))


def test_bad_rows_are_listed_with_their_line_and_the_others_kept(tmp_path: Path) -> None:
    first = table(("u", "a", "1"), ("", "a", "2"), ("u", None, "3"), ("u", "b", "May"))
    given_lines = first.with_columns(pl.Series(LINE, [2, 3, 5, 6]))
    source = raw(first, table(("", "", "x"), ("v", "b", "9")))
    log = read_log(source, tmp_path)
    assert (log.user.tolist(), log.item.tolist(), log.time.tolist()) == ([0, 1], [0, 1], [1, 9])
    assert source.broken.table().rows() == [
        ("log.csv", 2, "user_id is empty", ""),
        ("log.csv", 3, "item_id is empty", ""),
        ("log.csv", 4, "timestamp is no time", "May"),
        ("log.csv", 5, "user_id is empty", ""),
    ]
    source = raw(given_lines)
    read_log(source, tmp_path)
    assert source.broken.table()["line"].to_list() == [3, 5, 6]  # lines of the file, where the reader knows them


def test_few_broken_lines_pass_and_many_do_not(tmp_path: Path) -> None:
    source = raw(table(*[("u", "a", n) for n in range(99)], ("u", "a", None)))
    read_log(source, tmp_path)
    source.broken.refuse_many(0.01)
    with pytest.raises(InputError, match=r"1 of 100 lines .* line 100: timestamp is no time: ''; .*--bad-lines"):
        source.broken.refuse_many(0.009)


def test_whole_and_fractional_times_in_one_log(tmp_path: Path) -> None:
    log = read_log(raw(table(("u", "a", "1")), table(("u", "b", "2.5"))), tmp_path)
    assert log.time.tolist() == [1.0, 2.5]


def test_low_ratings_do_not_count(tmp_path: Path) -> None:
    rows = [("u", name, n) for n, name in enumerate("abcdef")]
    rated = table(*rows, rating=pl.Series([" 5", "3.5", None, "4,5", "nan", "4"]))
    log = read_log(raw(rated), tmp_path, min_rating=4)
    assert log.item_ids.to_list() == ["a", "f"]
    assert log.left_out == {"no rating": 3, "rated too low": 1}
    with pytest.raises(InputError, match="rating holds List"):
        read_log(raw(table(("u", "a", 1), rating=pl.Series([[5]]))), tmp_path, min_rating=4)
    with pytest.raises(InputError, match="no column rating"):
        read_log(raw(table(("u", "a", 1))), tmp_path, min_rating=4)


def test_a_log_without_rows_or_of_changing_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows"):
        read_log(raw(table(("u", "a", 1)).clear()), tmp_path)
    with pytest.raises(InputError, match="has no rows"):
        read_log(raw(), tmp_path)
    with pytest.raises(InputError, match="columns change"):
        read_log(raw(table(("u", "a", 1)), table(("u", "a", 1), price=pl.lit(1))), tmp_path)


@pytest.mark.parametrize("in_memory", [0, 1 << 28])
def test_what_waits_on_disk_comes_back_bucket_by_bucket(in_memory: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_module, "_IN_MEMORY", in_memory)
    rng = np.random.default_rng(1)
    spill, text = Spill(tmp_path), pl.DataFrame({"n": np.arange(40), "tags": [[str(n)] * (n % 3) for n in range(40)]})
    for part in text.iter_slices(9):
        spill.add(part, "log")
    assert any(tmp_path.iterdir()) == (in_memory == 0)
    kept = rng.random(40) < 0.7
    bucket = rng.integers(0, 5, int(kept.sum())).astype(np.uint16)
    bucket[bucket == 3] = 4  # one is empty
    found = spill.by_bucket(kept, bucket, 5)
    for number in range(5):
        assert found.read(number).equals(text.filter(kept).filter(bucket == number))


def test_a_log_of_which_most_is_broken_is_not_read_to_its_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_module, "_HOPELESS", 10)
    taken = 0

    def tables():
        nonlocal taken
        for _ in range(100):
            taken += 1
            source.broken.count("log.csv", 6)
            for line in range(4):
                source.broken.add("log.csv", line, "1 field instead of 3")
            yield table(("u", "a", "1"), ("u", "a", "2")).with_columns(pl.Series(LINE, [5, 6]))

    source = RawData("log", pl.DataFrame({"item_id": ["a"]}), tables(), interactions_from="log.csv")
    with pytest.raises(InputError, match="12 of 18 lines cannot be read"):
        read_log(source, tmp_path)
    assert taken == 3


def test_large_times_never_lose_digits_to_fractional_ones(tmp_path: Path) -> None:
    large = 1_700_000_000_000_000_001
    with pytest.raises(InputError, match="fractional"):
        read_log(raw(table(("u", "a", str(large))), table(("u", "b", "2.5"))), tmp_path)
