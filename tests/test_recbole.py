import random
from pathlib import Path

import polars as pl
import pytest
from conftest import tiny_tables, write_pictures
from mutations import mutated

from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.errors import InputError

LOG = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
SHELF = "item_id:token\tmovie_title:token_seq\tclass:token_seq\tprice:float\tvector:float_seq\n"


def write(folder: Path, log: str | bytes = "", shelf: str | bytes | None = None, name: str = "shop") -> Path:
    folder.mkdir(exist_ok=True)
    for ending, content in (("inter", log), ("item", shelf)):
        if content is not None:
            (folder / f"{name}.{ending}").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def tables(raw: RawData) -> tuple[pl.DataFrame, pl.DataFrame]:
    assert isinstance(raw.items, pl.DataFrame) and not isinstance(raw.interactions, pl.DataFrame)
    return raw.items, pl.concat(raw.interactions)


def test_columns_have_the_types_of_the_header(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "shop",
        LOG + "01\t007\t4.5\t978300760.0\r\n02\t007\t\t1\n",
        SHELF + '007\t"Quoted ""Soap"""\tsoft soap\t2e0\t1 -.5\n8\tHalf "quoted\t\t\t\n9\t""\t""\t 3\t\n',
    )
    raw = RecBole(folder).read()
    items, log = tables(raw)
    assert log.drop(LINE).rows() == [("01", "007", 4.5, "978300760.0"), ("02", "007", None, "1")]
    assert items.drop(LINE).to_dicts() == [
        {"title": 'Quoted "Soap"', "item_id": "007", "class": ["soft", "soap"], "price": 2.0, "vector": [1.0, -0.5],
         "image": "007"},
        {"title": 'Half "quoted', "item_id": "8", "class": None, "price": None, "vector": None, "image": "8"},
        {"title": "", "item_id": "9", "class": [], "price": 3.0, "vector": None, "image": "9"},
    ]  # fmt: skip
    assert (raw.name, raw.broken.table().height) == ("shop", 0)


def test_it_prepares_to_what_the_same_tables_do_as_a_local_folder(tiny_folder: Path, tmp_path: Path) -> None:
    items, log = tiny_tables()
    text = {
        "inter": "user_id:token\titem_id:token\ttimestamp:float\n"
        + log.write_csv(include_header=False, separator="\t"),
        "item": "item_id:token\ttitle:token\timage:token\n" + items.write_csv(include_header=False, separator="\t"),
    }
    folder = write(tmp_path / "shop", text["inter"], text["item"])
    write_pictures(folder / "images", items["image"].to_list())
    local = prepare(Local(tiny_folder), tmp_path / "local")
    assert prepare(RecBole(folder), tmp_path / "recbole").fingerprint == local.fingerprint


def test_titles_are_found_by_usual_names_or_told(tmp_path: Path) -> None:
    shelf = "item_id:token\tname:token\titem_name:token_seq\tart:token\n1\ta\tb\tc\n"
    folder = write(tmp_path / "shop", LOG, shelf)
    items, _ = tables(RecBole(folder).read())
    assert (items["title"][0], items["name"][0], items["image"][0]) == ("b", "a", "1")
    items, _ = tables(RecBole(folder, {"title": "art", "image": "name"}).read())
    assert items.select("title", "item_name", "image").row(0) == ("c", ["b"], "a")
    items, _ = tables(RecBole(folder, {"brand": "item_name"}).read())
    assert items.select("title", "brand").row(0) == ("a", ["b"])


def test_other_names_of_columns_are_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "shop", "session:token\tsku:token\twhen:float\na\tx\t1\n", "sku:token\tname:token\nx\tX\n"
    )
    columns = {"user_id": "session", "item_id": "sku", "timestamp": "when"}
    items, log = tables(RecBole(folder, columns).read())
    assert log.rows() == [("a", "x", "1", 2)]
    assert items.select("item_id", "title", "image").rows() == [("x", "X", "x")]
    with pytest.raises(InputError, match=r"--columns item_id=sk: .* did you mean sku\?"):
        RecBole(folder, {"item_id": "sk"}).read()


def test_without_a_catalogue_there_are_no_titles_but_pictures_do(tmp_path: Path) -> None:
    rows = "".join(f"u{user}\ti{item}\t1\t{item}\n" for user in range(4) for item in range(4))
    folder = write(tmp_path / "shop", LOG + rows)
    write_pictures(folder / "images", [f"i{item}.jpg" for item in range(4)])
    assert prepare(RecBole(folder), tmp_path / "out", require=["image"], k_core=3).item_ids == ["i0", "i1", "i2", "i3"]


def test_a_value_that_is_not_of_its_type_makes_the_line_broken(tmp_path: Path) -> None:
    log = LOG + "1\ta\t5\t1\n1\tb\tgood\t2\n1\tc\n1\td\t4\t3\n"
    folder = write(tmp_path / "shop", log, SHELF + "a\tA\t\t\t1 two\nb\tB\t\t\t1 2\nc\tC\t\tcheap\tx\n")
    raw = RecBole(folder).read()
    items, events = tables(raw)
    assert items["item_id"].to_list() == ["b"] and events["item_id"].to_list() == ["a", "d"]
    assert raw.broken.table().select("line", "reason", "text").rows() == [
        (3, "rating is no float", "good"),
        (4, "does not have 4 fields", "1\tc"),
        (2, "vector is no float_seq", "1 two"),
        (4, "price is no float", "cheap"),
    ]


def test_spoilt_lines_are_listed_and_the_others_read(tmp_path: Path) -> None:
    rng = random.Random(1)
    log = [f"u{n % 50}\ti{n % 40}\t{n % 5}\t{n}".encode() for n in range(4000)]
    shelf = [f'i{n}\t"Thing ""{n}"""\tred blue\t{n}.5\t1 2 {n}'.encode() for n in range(4000)]
    folder = write(
        tmp_path / "shop",
        LOG.encode() + b"\n".join(mutated(log, rng)),
        SHELF.encode() + b"\n".join(mutated(shelf, rng)),
    )
    raw = RecBole(folder).read()
    items, events = tables(raw)
    broken = raw.broken.table()
    for where, table, lines in ((raw.items_from, items, shelf), (raw.interactions_from, events, log)):
        listed = broken.filter(file=where)["line"]
        assert listed.is_unique().all() and table[LINE].is_unique().all()
        assert not set(listed) & set(table[LINE])
        assert len(listed) + table.height == raw.broken.read[where]
        content = Path(where).read_bytes().split(b"\n")
        untouched = {line for line, text in enumerate(content, start=1) if text in set(lines)}
        assert untouched <= set(table[LINE])


@pytest.mark.parametrize(
    ("log", "shelf", "message"),
    [
        ("user_id\titem_id\n", None, "its header has 'user_id' between its tabs; there must be NAME:TYPE"),
        ("user_id:token\titem_id:int\n", None, "'item_id:int'"),
        ("user_id:token,item_id:token\n", None, "'user_id:token,item_id:token'"),
        ("", None, "its header has ''"),
        (b"user\xff:token\n", None, "line 1 is not UTF-8"),
        (LOG, "item_id:token\titem_id:token\n", "has it twice: 'item_id'"),
        ("user_id:token\ta\0b:token\n", None, "name holds a NUL"),
    ],
)
def test_a_header_that_is_not_recboles_is_one_line(log, shelf, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        RecBole(write(tmp_path / "shop", log, shelf)).read()
    assert "\n" not in str(caught.value)


def test_one_log_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no \.inter file"):
        RecBole(tmp_path).read()
    write(tmp_path / "shop", LOG, None, "a")
    write(tmp_path / "shop", LOG + "1\t1\t1\t1\n", None, "b")
    with pytest.raises(InputError, match=r"has a\.inter, b\.inter"):
        RecBole(tmp_path / "shop").read()
    assert RecBole(tmp_path / "shop" / "b.inter").read().name == "b"
