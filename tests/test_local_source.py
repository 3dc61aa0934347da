import gzip
import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import tiny_tables
from mutations import mutated

from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.local import Local, read_table
from vlm2rec.errors import InputError


def rewrite(folder: Path, ending: str) -> None:
    for name in ("items", "interactions"):
        table = pl.read_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.parquet").unlink()
        plain = folder / f"{name}.{ending.removesuffix('.gz')}"
        (table.write_csv if plain.suffix == ".csv" else table.write_ndjson)(plain)
        if ending.endswith(".gz"):
            (folder / f"{name}.{ending}").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()


def tables(raw: RawData) -> tuple[pl.DataFrame, pl.DataFrame]:
    assert isinstance(raw.items, pl.DataFrame) and not isinstance(raw.interactions, pl.DataFrame)
    return raw.items, pl.concat(raw.interactions)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz", "jsonl.gz"])
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


def test_interactions_may_be_a_folder_of_parts(tiny_folder: Path, tmp_path: Path) -> None:
    whole = prepare(Local(tiny_folder), tmp_path / "a")
    log = pl.read_parquet(tiny_folder / "interactions.parquet")
    (tiny_folder / "interactions.parquet").unlink()
    (tiny_folder / "interactions").mkdir()
    (tiny_folder / "interactions" / "_SUCCESS").touch()
    parts = log.iter_slices(100)
    for number, part in enumerate(parts):
        columns = part.columns[:: -1 if number else 1]  # the order of columns is no difference
        part.select(columns).write_parquet(
            tiny_folder / "interactions" / f"part-{number:03}.parquet", row_group_size=30
        )
    raw = Local(tiny_folder).read()
    _, read = tables(raw)
    assert read.drop(LINE).equals(log) and read[LINE].to_list() == list(range(1, log.height + 1))
    assert raw.broken.read[raw.interactions_from] == log.height
    assert len(raw.files) == 1 + -(-log.height // 100)
    assert prepare(Local(tiny_folder), tmp_path / "b").fingerprint == whole.fingerprint
    log.with_columns(pl.col("timestamp").cast(pl.Int32)).write_parquet(tiny_folder / "interactions" / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: its columns differ from those of part-000\.parquet"):
        prepare(Local(tiny_folder), tmp_path / "c")


def write_tables(folder: Path, ending: str, items: pl.DataFrame, log: pl.DataFrame) -> None:
    for name, table in (("items", items), ("interactions", log)):
        table.write_parquet(folder / f"{name}.parquet")
    if ending != "parquet":
        rewrite(folder, ending)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_columns_may_have_other_names(ending: str, tiny_folder: Path, tmp_path: Path) -> None:
    items, log = tiny_tables()
    named = items.with_columns(image=pl.col("item_id"))
    write_tables(tiny_folder, "parquet", named, log)
    expected = prepare(Local(tiny_folder), tmp_path / "a")
    (tiny_folder / "items.parquet").unlink()
    (tiny_folder / "interactions.parquet").unlink()
    # A column called `title` is in the way of the titles, and two of ours are one of theirs.
    items = items.select(sku="item_id", label="title", title=pl.lit("Mr"))
    log = log.select(sku="item_id", buyer="user_id", when="timestamp")
    write_tables(tiny_folder, ending, items, log)
    with pytest.raises(InputError, match="has no column item_id"):
        prepare(Local(tiny_folder, {"title": "label", "user_id": "buyer", "timestamp": "when"}), tmp_path / "b")
    columns = {"title": "label", "user_id": "buyer", "item_id": "sku", "image": "sku", "timestamp": "when"}
    made = prepare(Local(tiny_folder, columns), tmp_path / "b")
    assert made.fingerprint == expected.fingerprint
    assert set(made.items.columns) == {"item_id", "title", "image"}


def test_two_columns_may_change_places(tiny_folder: Path) -> None:
    items, log = tiny_tables()
    write_tables(tiny_folder, "parquet", items, log.rename({"user_id": "item_id", "item_id": "user_id"}))
    _, read = tables(Local(tiny_folder, {"user_id": "item_id", "item_id": "user_id"}).read())
    assert read.select(log.columns).equals(log)


def test_a_column_that_is_not_there_is_one_line_with_the_nearest(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"--columns user_id=userid: neither items\.parquet nor .* mean user_id\?"):
        Local(tiny_folder, {"user_id": "userid"}).read()
    with pytest.raises(InputError, match=r"there are item_id, title, image, user_id, timestamp$"):
        Local(tiny_folder, {"user_id": "zzz"}).read()


def test_a_picture_that_has_only_an_address_is_named_by_its_item(tiny_folder: Path) -> None:
    items, _ = tiny_tables()
    items.select("item_id", "title", url=pl.lit("http://x.org/") + pl.col("image")).write_parquet(
        tiny_folder / "items.parquet"
    )
    read, _ = tables(Local(tiny_folder).read())
    assert read["image"].equals(items["item_id"].alias("image")) and "url" in read.columns


def test_pictures_may_stay_in_an_archive(tiny_folder: Path, tmp_path: Path) -> None:
    expected = prepare(Local(tiny_folder), tmp_path / "a")
    shutil.make_archive(str(tiny_folder / "images"), "zip", tiny_folder / "images")
    with pytest.raises(InputError, match=r"has pictures in both images and images\.zip"):
        Local(tiny_folder).read()
    shutil.rmtree(tiny_folder / "images")
    assert prepare(Local(tiny_folder), tmp_path / "b").fingerprint == expected.fingerprint


def test_how_times_are_written_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,a\n2,b\n3,c\n")
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n9,1,03/01/2020\n9,2,01/02/2020\n9,3,02/01/2020\n"
    )
    source = Local(tmp_path, time_format="%d/%m/%Y", time_unit="s")
    assert source.read().time_unit == "s"
    made = prepare(Local(tmp_path, time_format="%d/%m/%Y"), tmp_path / "out", require=["title"], k_core=0)
    assert made.sequences[0].tolist() == [2, 0, 1]


def test_rows_without_an_id_or_a_time_are_listed_and_items_unknown_left_out(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(20)))
    rows = [f"u{n % 10},i{n % 20},{n}" for n in range(900)]
    rows[10:10] = ["u1,,5", ",i1,5", "u1,i1,tomorrow", "u1,i1", "u1,i99,7", 'u1,"i1"x,7']
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    made = prepare(Local(tmp_path), tmp_path / "out", require=["title"])
    broken = pl.read_parquet(made.path / "broken.parquet")
    assert broken.select("line", "reason").rows() == [
        (12, "item_id is empty"),
        (13, "user_id is empty"),
        (14, "timestamp is no time"),
        (15, "does not have 3 fields"),
        (17, "has something between a closing quote and the next field"),
    ]
    assert made.n_interactions == 900
    assert made.manifest["left_out"] == {"item not in the catalogue": 1}
    with pytest.raises(InputError, match=r"interactions.csv: 5 of 906 lines cannot be read; the first is line 12"):
        prepare(Local(tmp_path), tmp_path / "b", require=["title"], bad_lines=0.001)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("seed", range(3))
def test_spoilt_lines_are_listed_and_the_others_read(ending: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(500)], "title": [f'A "{n}", b' for n in range(500)]})
    log = pl.DataFrame({"user_id": ["u1", "u2"] * 500, "item_id": [*items["item_id"]] * 2, "timestamp": range(1000)})
    for name, table in {"items": items, "interactions": log}.items():
        path = tmp_path / f"{name}.{ending}"
        (table.write_csv if ending == "csv" else table.write_ndjson)(path)
        lines = path.read_bytes().splitlines()
        header = lines[: ending == "csv"]
        path.write_bytes(b"\n".join(header + mutated(lines[len(header) :], rng)))
    try:
        raw = Local(tmp_path).read()
        read_items, read_log = tables(raw)
    except InputError as error:  # a field with a NUL in its name, a thousand fields
        assert "\n" not in str(error)
        return
    broken = raw.broken.table()
    for where, table in ((raw.items_from, read_items), (raw.interactions_from, read_log)):
        listed = broken.filter(file=where)["line"]
        assert listed.is_unique().all() and not set(listed) & set(table[LINE])
        assert table.height > 300  # of 500 and 1000, half of them spoilt
    try:
        made = prepare(Local(tmp_path), tmp_path / "out", require=["title"], k_core=0, bad_lines=1.0)
    except InputError as error:  # an item that is there twice
        assert "\n" not in str(error)
        return
    assert pl.read_parquet(made.path / "broken.parquet").select(pl.struct("file", "line").is_unique().all()).item()


@pytest.mark.parametrize("table", ["items", "interactions"])
def test_damage_inside_a_parquet_file_is_one_line_or_none(table: str, tiny_folder: Path) -> None:
    rng = np.random.default_rng(3)
    path = tiny_folder / f"{table}.parquet"
    whole = pl.read_parquet(path)
    pl.concat([whole] * 20).write_parquet(path, row_group_size=500)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(150):
        spoilt = content.copy()
        start = int(rng.integers(len(content)))
        spoilt[start : start + int(rng.integers(1, 60))] = rng.integers(256)
        path.write_bytes(spoilt.tobytes())
        try:
            tables(Local(tiny_folder).read())
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and f"{table}.parquet" in str(error)
    assert refused > 20


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_name_with_a_nul_is_refused(ending: str, tiny_folder: Path) -> None:
    path = tiny_folder / "items.parquet"
    pl.read_parquet(path).with_columns(pl.lit(1).alias(LINE)).write_parquet(path)
    if ending != "parquet":
        rewrite(tiny_folder, ending)
    with pytest.raises(InputError, match=r"has a column '\\x00line', whose name holds a NUL; rename it"):
        Local(tiny_folder).read()


def test_a_table_read_whole_may_have_no_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\n01,2\n3\n")
    with pytest.raises(InputError, match=r"log\.csv: line 3 cannot be read: does not have 2 fields: '3'"):
        read_table(path)
    path.write_text("user_id,item_id\n01,2\n3,\n")
    assert read_table(path).rows() == [("01", "2"), ("3", None)]
