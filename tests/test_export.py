from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Given
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.export import FORMATS, Format, export
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData, Source
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.errors import InputError


def source(to: Format, folder: Path) -> Source:
    return RecBole(folder) if to == "recbole" else Local(folder)


def made_again(dataset: Dataset, to: Format, tmp_path: Path) -> Dataset:
    out = tmp_path / "out"
    export(dataset, to, out)
    return prepare(source(to, out), tmp_path / "again", require=["title"], k_core=0)


def dataset_with(
    tmp_path: Path, items: dict[str, pl.Series], events: dict[str, pl.Series], ids: list[str] | None = None
) -> Dataset:
    """Nine events of three users with three items, with these further columns."""
    ids = ids or ["a", "b", "c"]
    shelf = pl.DataFrame({"item_id": ids, "title": ["A", 'the "B"', '"C"'], **items})
    log = pl.DataFrame(
        {"user_id": [*"xxxyyyzzz"], "item_id": ids * 3, "timestamp": [3, 2, 1, 5, 5, 5, 1 << 60, 8, 9], **events}
    )
    return prepare(Given(RawData("made", shelf, log)), tmp_path / "made", require=["title"], k_core=0)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\t\n\r"), max_size=6)
wild = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
number = st.floats() | st.none()
finite = st.floats(allow_nan=False, allow_infinity=False) | st.none()


def nine(values: st.SearchStrategy) -> st.SearchStrategy[list]:
    return st.lists(values, min_size=9, max_size=9)


def three_ids(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values.filter(bool), min_size=3, max_size=3, unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_exported_prepares_to_the_same(
    to: Format, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp(to)
    texts, numbers = (text if to == "recbole" else wild), (finite if to == "jsonl" else number)
    columns = {
        "note": pl.Series(data.draw(nine(texts | st.none())), dtype=pl.String),
        "rating": pl.Series(data.draw(nine(numbers)), dtype=pl.Float64),
        "count": pl.Series(data.draw(nine(st.integers(-(2**63), 2**63 - 1) | st.none())), dtype=pl.Int64),
    }
    shelf = {"brand": pl.Series(data.draw(nine(texts | st.none()))[:3], dtype=pl.String)}
    made = dataset_with(tmp_path, shelf, columns, data.draw(three_ids(texts)))
    again = made_again(made, to, tmp_path)
    assert again.fingerprint == made.fingerprint
    assert again.manifest["times"] == made.manifest["times"]
    for before, after in ((made.items, again.items), (made.interactions, again.interactions)):
        assert sorted(after.columns) == sorted(before.columns)
        after = after.select(pl.col(name).cast(dtype) for name, dtype in before.schema.items())
        assert after.equals(before, null_equal=True)


def test_recbole_holds_lists_and_types(tmp_path: Path) -> None:
    items = {
        "tags": pl.Series([["red", '"blue"'], [], None]),
        "vector": pl.Series([[0.1, float("nan")], [1e300], None]),
        "new": pl.Series([True, False, None]),
    }
    made = dataset_with(tmp_path, items, {"rating": pl.Series([5.1] * 9, dtype=pl.Float32)})
    again = made_again(made, "recbole", tmp_path)
    assert again.items["tags"].to_list() == [["red", '"blue"'], [], None]
    assert again.items["vector"].equals(made.items["vector"], null_equal=True)
    assert again.items["new"].to_list() == ["true", "false", None]
    assert again.interactions["rating"].cast(pl.Float32).equals(made.interactions["rating"])
    header = (tmp_path / "out" / "out.item").read_text().splitlines()[0].split("\t")
    assert header == [
        "item_id:token",
        "title:token_seq",
        "image:token",
        "tags:token_seq",
        "vector:float_seq",
        "new:token",
    ]
    assert (tmp_path / "out" / "out.item").read_text().splitlines()[1].startswith("a\tA\t\tred ")


@pytest.mark.parametrize("to", FORMATS)
def test_pictures_come_back_pixel_by_pixel(to: Format, tiny_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny_dataset, to, out, pictures=True)
    again = prepare(source(to, out), tmp_path / "again", k_core=0, picture_size=32)
    assert again.item_ids == tiny_dataset.item_ids
    for before, after in zip(tiny_dataset.pictures, again.pictures, strict=True):
        np.testing.assert_array_equal(before, after)
    assert again.sequences.flat().tolist() == tiny_dataset.sequences.flat().tolist()


def test_an_item_without_a_picture_has_no_file(tmp_path: Path) -> None:
    made = dataset_with(tmp_path, {"image": pl.Series(["a.png", "b.png", "c.png"])}, {})
    export(made, "csv", tmp_path / "out", pictures=True)
    assert not any((tmp_path / "out" / "images").iterdir())
    assert pl.read_csv(tmp_path / "out" / "items.csv")["image"].to_list() == [""] * 3
    export(made, "csv", tmp_path / "named")
    assert pl.read_csv(tmp_path / "named" / "items.csv")["image"].to_list() == ["a.png", "b.png", "c.png"]


NINE = [None] * 8
REFUSED: list[tuple[Format, dict, str]] = [
    ("csv", {"tags": pl.Series([["a"]] * 9)}, r"column tags holds List\(String\), which CSV files cannot"),
    ("csv", {"note": pl.Series(["a\0", *NINE])}, "column note holds a NUL in row \\d,"),
    ("csv", {"raw": pl.Series([b"a"] * 9)}, "column raw holds Binary"),
    ("jsonl", {"raw": pl.Series([b"a"] * 9)}, "column raw holds Binary"),
    ("jsonl", {"raws": pl.Series([{"x": [b"a"]}] * 9)}, "column raws holds Struct"),
    ("jsonl", {"score": pl.Series([*NINE, float("nan")])}, "column score holds a number that is not finite in row \\d"),
    ("recbole", {"note": pl.Series([*NINE, "a\tb"])}, "column note holds a tab, a line break or a NUL in row \\d"),
    ("recbole", {"note": pl.Series([*NINE, "a\nb"])}, "column note holds a tab"),
    ("recbole", {"note": pl.Series([*NINE, "a\rb"])}, "column note holds a tab"),
    ("recbole", {"tags": pl.Series([*NINE, ["a b"]])}, "column tags holds a list of something empty or with blanks"),
    ("recbole", {"tags": pl.Series([*NINE, ["a", ""]])}, "column tags holds a list of something empty"),
    ("recbole", {"tags": pl.Series([*NINE, ["a", None]])}, "column tags holds a list of something empty"),
    ("recbole", {"tags": pl.Series([*NINE, [["a"]]])}, "column tags holds List"),
    ("recbole", {"both": pl.Series([{"a": 1}] * 9)}, "column both holds Struct"),
    ("recbole", {"a:b": pl.Series([1] * 9)}, "column 'a:b' has a name"),
    ("csv", {"": pl.Series([1] * 9)}, "column '' has a name"),
]


@pytest.mark.parametrize(("to", "events", "message"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(
    to: Format, events: dict, message: str, tmp_path: Path
) -> None:
    made = dataset_with(tmp_path, {}, events)
    with pytest.raises(InputError, match=message) as caught:
        export(made, to, tmp_path / "out")
    assert "\n" not in str(caught.value) and "interactions.parquet" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    export(made, "parquet", tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").equals(made.interactions)


def test_nothing_is_overwritten(from_sequences: Callable[..., Dataset], tmp_path: Path) -> None:
    made = from_sequences([[0, 1, 2], [2, 1, 0]], 3)
    (tmp_path / "out").mkdir()
    export(made, "recbole", tmp_path / "out")  # an empty folder is free
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == {"out.inter", "out.item"}
    with pytest.raises(InputError, match="out: exists"):
        export(made, "csv", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(InputError, match="--to xml: unknown"):
        export(made, "xml", tmp_path / "b")  # type: ignore[arg-type]
