from pathlib import Path

import polars as pl
import pytest

from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError


def rewrite(folder: Path, ending: str) -> None:
    for name in ("items", "interactions"):
        table = pl.read_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.parquet").unlink()
        write = {"csv": table.write_csv, "jsonl": table.write_ndjson}[ending]
        write(folder / f"{name}.{ending}")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_the_format_of_the_tables_does_not_matter(ending: str, tiny_folder: Path, tmp_path: Path) -> None:
    parquet = prepare(Local(tiny_folder), tmp_path / "a")
    rewrite(tiny_folder, ending)
    assert prepare(Local(tiny_folder), tmp_path / "b").fingerprint == parquet.fingerprint


def test_csv_ids_are_text_and_quoting_holds(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        'title,item_id,price\n"Soap, ""pure""\nand mild",0012,3\nBrush,7,n/a\nComb,007,2.5\n', encoding="utf-8"
    )
    (tmp_path / "interactions.csv").write_text(
        "item_id,timestamp,user_id\n0012,30,01\n7,10,01\n007,20,01\n", encoding="utf-8"
    )
    dataset = prepare(Local(tmp_path), tmp_path / "out", require=["title"], k_core=0)
    assert dataset.item_ids == ["0012", "7", "007"]
    assert dataset.titles[0] == 'Soap, "pure" and mild'
    assert dataset.user_ids == ["01"]
    assert dataset.sequences[0].tolist() == [1, 2, 0]
    assert "price" in dataset.items.columns


def test_whole_number_ids_meet_text_ids(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n9,1,1\n9,2,2\n9,1,3\n")
    dataset = prepare(Local(tmp_path), tmp_path / "out", require=["title"], k_core=0)
    assert dataset.item_ids == ["1", "2"]
    assert dataset.user_ids == ["9"]


def spoil_parquet(folder: Path) -> None:
    content = (folder / "items.parquet").read_bytes()
    (folder / "items.parquet").write_bytes(content[: len(content) // 2])


def spoil_csv(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    (folder / "items.csv").write_bytes(b"item_id,title,image\n1,\xff\xfe\xfa,x.png\n")


def empty_csv(folder: Path) -> None:
    (folder / "items.parquet").unlink()
    (folder / "items.csv").write_bytes(b"")


def remove_pictures(folder: Path) -> None:
    (folder / "images").rename(folder / "photos")


def rename_column(folder: Path) -> None:
    pl.read_parquet(folder / "items.parquet").rename({"image": "picture"}).write_parquet(folder / "items.parquet")


def second_table(folder: Path) -> None:
    (folder / "items.csv").write_text("item_id,title,image\n")


def no_interactions(folder: Path) -> None:
    (folder / "interactions.parquet").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_parquet, "items.parquet: cannot be read as parquet"),
        (spoil_csv, "items.csv: "),
        (empty_csv, "items.csv: cannot be read as csv"),
        (remove_pictures, "images: no such folder; .*--require title"),
        (rename_column, "items.parquet: has no column image"),
        (second_table, "both items.parquet and items.csv"),
        (no_interactions, "has no interactions.parquet"),
    ],
)
def test_a_spoilt_folder_is_one_line(spoil, message: str, tiny_folder: Path, tmp_path: Path) -> None:
    spoil(tiny_folder)
    with pytest.raises(InputError, match=message) as caught:
        prepare(Local(tiny_folder), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_folder_that_is_none_or_prepared_already(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Local(tmp_path / "nowhere").read()
    prepare(Local(tiny_folder), tmp_path / "out")
    with pytest.raises(InputError, match="prepared already"):
        Local(tmp_path / "out").read()
