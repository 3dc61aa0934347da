import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Given, tiny_tables

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.identity import check, differences, origin_differences
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError


def made(path: Path, change=lambda items, events: (items, events), **options) -> Dataset:
    return prepare(Given(RawData("tiny", *change(*tiny_tables()))), path, require=["title"], **options)


def test_the_same_data_made_twice_differs_in_nothing(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    check(first)
    assert differences(first, second) == origin_differences(first, second) == []


def test_each_part_that_differs_is_named(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain")

    def title(items, events):
        return items.with_columns(pl.col("title").replace("Thing i03", "Thing")), events

    def order(items, events):
        return items, events.with_columns(-pl.col("timestamp"))

    def clock(items, events):
        return items, events.with_columns(pl.col("timestamp") * 2)

    assert differences(plain, made(tmp_path / "1", title)) == [
        "titles: 1 of 24 differ, the first in row 3: 'Thing i03' and 'Thing'"
    ]
    assert differences(plain, made(tmp_path / "2", order))[0].startswith("sequences: other events")
    assert differences(plain, made(tmp_path / "3", clock)) == ["times: differ, which matters to a split by time"]
    assert differences(plain, made(tmp_path / "4", k_core=6))[0].startswith("users: 40 and")
    assert "k_core: 5 and 6" in origin_differences(plain, made(tmp_path / "5", k_core=6))


@pytest.mark.parametrize("what", ["items", "sequences", "interactions", "times"])
def test_what_was_changed_later_is_noticed(what: str, tmp_path: Path) -> None:
    made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b"
    if what == "items":
        table = pl.read_parquet(path / "items.parquet")
        table.with_columns(title=pl.col("title").str.to_uppercase()).write_parquet(path / "items.parquet")
    elif what == "sequences":
        numbers = np.load(path / "sequences.npy")
        np.save(path / "sequences.npy", numbers[::-1])
    else:
        table = pl.read_parquet(path / "interactions.parquet")
        changed = {"interactions": pl.col("item_id").reverse(), "times": pl.col("timestamp") + 1}[what]
        table.with_columns(changed).write_parquet(path / "interactions.parquet")
    with pytest.raises(InputError, match="prepare it again") as caught:
        check(Dataset.load(path))
    assert "\n" not in str(caught.value)
    check(Dataset.load(tmp_path / "a"))


def test_a_changed_pixel_and_a_damaged_page_are_noticed(tiny_folder: Path, tmp_path: Path) -> None:
    dataset = prepare(Local(tiny_folder), tmp_path / "a", picture_size=16)
    check(dataset)
    packed = bytearray((tmp_path / "a" / "pictures.bin").read_bytes())
    packed[5 * 16 * 16 * 3 + 7] ^= 1
    (tmp_path / "a" / "pictures.bin").write_bytes(packed)
    with pytest.raises(InputError, match="picture of item 'i05' is damaged"):
        check(Dataset.load(tmp_path / "a"))
    path = made(tmp_path / "b").path / "interactions.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|prepare it again"):
        check(Dataset.load(tmp_path / "b"))
