import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mutations import mutated
from raw_amazon import LOGS, META, item_id, log_lines, meta_line, review_line, tables, user_id, write_lines, write_raw

from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.amazon import Amazon, catalogue
from vlm2rec.data.sources.amazon.literal import parse_literal
from vlm2rec.data.sources.broken import Broken
from vlm2rec.errors import InputError

ITEMS, LOG = tables()
FORMS = [(release, name) for release, names in LOGS.items() for name in names]


def log_of(raw: RawData) -> pl.DataFrame:
    assert not isinstance(raw.interactions, pl.DataFrame)
    return pl.concat(raw.interactions)


def items_of(raw: RawData, needed: list[str] | pl.Series = ITEMS["item_id"]) -> pl.DataFrame:
    assert callable(raw.items)
    return raw.items(pl.Series(needed, dtype=pl.String))


def read_meta(folder: Path, release: str, lines: list[str | bytes], needed: list[str]) -> tuple[pl.DataFrame, Broken]:
    path = write_lines(folder / "meta", lines)
    broken = Broken()
    return catalogue.read_items(path, release, pl.Series(needed), broken), broken  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("release", "name"), FORMS)
def test_all_releases_and_forms_of_a_log_give_the_same_tables(
    release: str, name: str, ending: str, tmp_path: Path
) -> None:
    raw = Amazon(write_raw(tmp_path, release, ITEMS, LOG, name, ending=ending), release).read()
    factor = 1000 if release == "2023" else 1
    log = log_of(raw)
    assert log.schema["rating"] == pl.Float32
    text = pl.col("timestamp").cast(pl.Int64)
    assert log.drop(LINE).with_columns(text).rows() == LOG.with_columns(pl.col("timestamp") * factor).rows()
    assert log[LINE].is_sorted() and log[LINE].n_unique() == log.height
    items = ITEMS.with_columns(pl.col("item_id").alias("image")).select(catalogue.COLUMNS)
    assert items_of(raw).equals(items)
    assert (raw.name, raw.time_unit) == ("Beauty", "ms" if factor == 1000 else "s")
    assert raw.pictures == tmp_path / "images"
    assert set(raw.files) == set(tmp_path.iterdir())
    assert raw.broken.table().is_empty()
    assert raw.broken.read == {raw.interactions_from: LOG.height, raw.items_from: ITEMS.height}
    assert (raw.published or {}).get("items") == (12101 if release == "2014" else None)


@pytest.mark.parametrize("release", LOGS)
def test_the_best_log_is_taken_whatever_else_is_there(release: str, tmp_path: Path) -> None:
    for rows, name in zip((4, 3, 2), LOGS[release], strict=True):
        write_raw(tmp_path, release, ITEMS, LOG.head(rows), name)
    write_lines(tmp_path / "README.md", ["of the same folder"])
    assert log_of(Amazon(tmp_path, release).read()).height == 4


@pytest.mark.parametrize("release", LOGS)
def test_one_of_several_domains_is_named(release: str, tmp_path: Path) -> None:
    for rows, domain in ((4, "Toys_and_Games"), (3, "Beauty")):
        write_raw(tmp_path, release, ITEMS, LOG.head(rows), domain=domain)
    with pytest.raises(InputError, match="several domains, Beauty, Toys_and_Games; say which"):
        Amazon(tmp_path, release).read()
    raw = Amazon(tmp_path, release, "Toys_and_Games").read()
    assert (raw.name, log_of(raw).height) == ("Toys_and_Games", 4)
    with pytest.raises(InputError, match="no interactions of Toys, but of Beauty, Toys_and_Games"):
        Amazon(tmp_path, release, "Toys").read()
    (tmp_path / f"{META[release].format('Beauty')}.gz").unlink()
    assert Amazon(tmp_path, release).read().name == "Toys_and_Games"


def no_meta(folder: Path, release: str) -> None:
    (folder / f"{META[release].format('Beauty')}.gz").unlink()


def no_log(folder: Path, release: str) -> None:
    (folder / f"{LOGS[release][0].format('Beauty')}.gz").unlink()


def no_folder(folder: Path, release: str) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("release", LOGS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(no_meta, "has no meta_Beauty"), (no_log, "has no interactions of Amazon"), (no_folder, "no such folder")],
)
def test_what_is_missing_is_said_in_one_line(
    release: str, spoil: Callable[[Path, str], None], words: str, tmp_path: Path
) -> None:
    spoil(write_raw(tmp_path / "raw", release, ITEMS, LOG), release)
    with pytest.raises(InputError, match=words) as caught:
        Amazon(tmp_path / "raw", release).read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", LOGS)
@pytest.mark.parametrize(("release", "name"), FORMS)
def test_files_of_another_release_are_recognised(release: str, name: str, given: str, tmp_path: Path) -> None:
    write_raw(tmp_path, release, ITEMS, LOG, name)
    if given == release:
        Amazon(tmp_path, release).read()
    else:
        with pytest.raises(InputError, match=f"prepare it as amazon-{release}"):
            Amazon(tmp_path, given).read()


def test_parts_of_a_log_are_read_on_end_and_all_of_them_are_needed(tmp_path: Path) -> None:
    write_raw(tmp_path, "2023", ITEMS, LOG, "{}.train.csv", ending="")
    header, *lines = log_lines("2023", "{}.csv", LOG)["{}.csv"]
    for part, rows in (("train", lines[:3]), ("valid", ["what?", *lines[3:5], "x,y"]), ("test", lines[5:])):
        write_lines(tmp_path / f"Beauty.{part}.csv", [header, *rows])
    raw = Amazon(tmp_path, "2023").read()
    log = log_of(raw)
    whole = [line for part in ("train", "valid", "test") for line in (tmp_path / f"Beauty.{part}.csv").open()]
    for user, item, time, rating, line in log.iter_rows():
        assert whole[line - 1] == f"{user},{item},{rating},{time}\n"
    assert [whole[line - 1] for line in raw.broken.table()["line"]] == ["what?\n", "x,y\n"]
    assert set(raw.broken.table()["file"]) == {raw.interactions_from} == set(raw.broken.read)
    (tmp_path / "Beauty.valid.csv").unlink()
    with pytest.raises(InputError, match=r"has Beauty.train.csv but not Beauty.valid.csv; put all parts there"):
        Amazon(tmp_path, "2023").read()


def test_columns_without_a_header_are_never_guessed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_raw(first, "2014", ITEMS, LOG, "ratings_{}.csv", ending="")
    write_raw(second, "2018", ITEMS, LOG, "{}.csv", ending="")
    mine, other = first / "ratings_Beauty.csv", second / "Beauty.csv"
    mine_bytes, other_bytes = mine.read_bytes(), other.read_bytes()
    mine.write_bytes(other_bytes)
    other.write_bytes(mine_bytes)
    with pytest.raises(InputError, match=r"the other way round .* prepare it as amazon-2018"):
        Amazon(first, "2014").read()
    with pytest.raises(InputError, match=r"the other way round .* prepare it as amazon-2014"):
        Amazon(second, "2018").read()
    for content in (b"u1,i1,5.0,13\n" * 9, b"", b"user,item\n", b"\0\xff"):
        mine.write_bytes(content)
        with pytest.raises(InputError, match="do not look like user_id,item_id,rating,timestamp"):
            Amazon(first, "2014").read()
    mine.write_bytes(b"user,item,rating,timestamp\n,,\n" + mine_bytes)
    raw = Amazon(first, "2014").read()
    assert log_of(raw).height == LOG.height + 1  # the header has ids and times that the common checks find bad
    assert raw.broken.table()["line"].to_list() == [2]


def test_a_csv_of_2023_is_read_by_its_header(tmp_path: Path) -> None:
    write_raw(tmp_path, "2023", ITEMS, LOG, "{}.csv", ending="")
    path = tmp_path / "Beauty.csv"
    rows = [[*line.split(","), "x"] for line in path.read_text().splitlines()]
    rows[0][-1] = "item_id"  # not what the release calls an item
    path.write_text("\r\n".join(",".join(row[::-1]) for row in rows))
    assert log_of(Amazon(tmp_path, "2023").read()).select("user_id", "item_id").equals(LOG.select("user_id", "item_id"))
    for header in ("user_id,item_id,rating,timestamp", "user_id,parent_asin,rating,timestamp,rating", ""):
        path.write_text(f"{header}\nA,B,5.0,1\n")
        with pytest.raises(InputError, match="first line must name the columns user_id, parent_asin"):
            Amazon(tmp_path, "2023").read()


def test_reviews_of_2014_may_be_python_literals(tmp_path: Path) -> None:
    write_raw(tmp_path, "2014", ITEMS, LOG, ending="")
    path = tmp_path / "reviews_Beauty_5.json"
    plain = log_of(Amazon(tmp_path, "2014").read())
    records = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [repr(record) if place % 3 else json.dumps(record) for place, record in enumerate(records)])
    raw = Amazon(tmp_path, "2014").read()
    assert log_of(raw).equals(plain)
    assert raw.broken.table().is_empty()


def test_numbers_that_python_has_no_literal_for_spoil_no_line() -> None:
    assert parse_literal("{'a': nan, 'b': [1, -inf, inf], 'c': (nan,), 'd': 'nan', 'e': -1}") == {
        "a": None,
        "b": [1, None, None],
        "c": (None,),
        "d": "nan",
        "e": -1,
    }
    for text in ("{'a': nano}", "{'a': nan()}", "{'a': -nan}", "[nan for nan in 1]", "{'a': [inf.x]}"):
        with pytest.raises(ValueError, match="no Python literal"):
            parse_literal(text)


@pytest.mark.parametrize(
    "value",
    [
        "__import__('pathlib').Path('ran').touch()",
        "open('ran', 'w')",
        "[c for c in ().__class__.__base__.__subclasses__()]",
        "9**9**9**9",
        "'a' * 10**10",
        "(" * 10_000,
        "-" * 500_000 + "1",
        "1" + "+1" * 200_000,
        "[" + "[]," * 2_000_000 + "]",
        "9" * 100_000,
        "{[]: 1}",
        "f'{1}'",
        "'\\N{no such letter}'",
        "'\\x0'",
    ],
)
def test_a_literal_is_data_and_never_run(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    line = f"{{'asin': '{item_id(1)}', 'title': 'x', 'related': {value}}}"
    good = [meta_line("2014", row) for row in ITEMS.iter_rows(named=True)]
    table, broken = read_meta(tmp_path, "2014", [good[0], line, good[2]], [item_id(n) for n in range(3)])
    assert table["item_id"].to_list() == [item_id(0), item_id(2)]
    assert broken.table()["line"].to_list() == [2]
    assert not (tmp_path / "ran").exists()
    assert not recwarn.list


def test_a_backslash_too_many_is_no_fault_and_no_noise(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    line = f"{{'asin': '{item_id(1)}', 'title': u'5\\' \\d soap', 'price': 3, 'also': (1j, ...)}}"
    table, broken = read_meta(tmp_path, "2014", [line], [item_id(1)])
    assert table.select("title", "price").rows() == [("5' \\d soap", "3")]
    assert broken.table().is_empty() and not recwarn.list


@pytest.mark.parametrize("release", LOGS)
def test_only_lines_of_needed_items_are_read_in_full(release: str, tmp_path: Path) -> None:
    key = "parent_asin" if release == "2023" else "asin"
    lines: list[str | bytes] = [f'{{"{key}": "{item_id(number)}", "title": "x", oops}}' for number in range(3)]
    lines += [b"", b"what?", f'{{"title": "no {key} at all"}}'.encode(), f'{{"{key}": null}}'.encode()]
    table, broken = read_meta(tmp_path, release, lines, [item_id(1), item_id(9)])
    assert table.is_empty() and table.columns == list(catalogue.COLUMNS)
    assert broken.table()["line"].to_list() == [2, 5, 6, 7]
    assert broken.read == {str(tmp_path / "meta"): 7}


def some_meta(release: str, number: int) -> bytes:
    """Lines that name their item once, and such that must be read in full to know."""
    row = ITEMS.row(number % ITEMS.height, named=True) | {"item_id": item_id(number % 9)}
    if number % 2:
        return meta_line(release, row).encode()
    key = "parent_asin" if release == "2023" else "asin"
    record: dict[str, Any] = {key: row["item_id"], "title": row["title"], "n": [None, -1.5]}
    record = dict(reversed(record.items())) if number % 4 else record
    return (repr(record) if release == "2014" and number % 3 else json.dumps(record, ensure_ascii=False)).encode()


@pytest.mark.parametrize("release", LOGS)
def test_a_glance_at_a_line_tells_the_same_as_reading_it(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [item_id(number) for number in range(0, 9, 2)]
    lines = mutated([some_meta(release, number) for number in range(3000)], random.Random(0))
    quick, listed = read_meta(tmp_path, release, list(lines), needed)
    monkeypatch.setattr(catalogue, "_glance", lambda key, ids: None)
    slow, all_listed = read_meta(tmp_path, release, list(lines), needed)
    assert quick.equals(slow)
    assert set(listed.table().rows()) <= set(all_listed.table().rows())
    numbers = all_listed.table()["line"]
    assert numbers.n_unique() == len(numbers) > 500
    assert listed.read == all_listed.read
    assert set(quick["item_id"]) == set(needed)


def test_a_line_that_seems_to_name_another_item_is_read_in_full(tmp_path: Path) -> None:
    lines: list[str | bytes] = [
        "{'description': \"say 'asin': 'B1', or not\", 'asin': 'B2', 'title': 'a'}",
        "{'asin': 'B' '3', 'title': 'b'}",
        "{'asin': u'B4', 'title': 'c'}",
        "{u'asin'  : 'B\\x35', 'title': 'd'}",
        '{"title": "\\"asin\\": \\"B1\\"", "\\u0061sin": "B6"}',
    ]
    table, broken = read_meta(tmp_path, "2014", lines, [f"B{number}" for number in range(2, 7)])
    assert table["item_id"].to_list() == [f"B{number}" for number in range(2, 7)]
    assert broken.table().is_empty()


@pytest.mark.parametrize("release", LOGS)
@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_spoilt_meta_lines_cost_only_themselves(release: str, seed: int, tmp_path: Path) -> None:
    known = [item_id(number) for number in range(12)]
    good = [some_meta(release, number) for number in range(2000)]
    spoilt = mutated(good, random.Random(seed))
    table, _ = read_meta(tmp_path, release, list(spoilt), known)
    sound = [line for line, before in zip(spoilt, good, strict=True) if line == before]
    first, broken = read_meta(tmp_path, release, list(sound), known)
    assert broken.table().is_empty()
    assert 500 < len(sound) < 1500
    assert set(first["item_id"]) <= set(table["item_id"])
    table.select("title", "url").write_parquet(tmp_path / "x")  # valid text throughout


@pytest.mark.parametrize(("release", "name"), FORMS)
def test_thousands_of_spoilt_log_lines_cost_only_themselves(release: str, name: str, tmp_path: Path) -> None:
    items, log = tables(users=300)
    write_raw(tmp_path, release, items, log, name, ending="")
    raw = Amazon(tmp_path, release).read()
    whole = log_of(raw)
    path = Path(raw.files[0])
    lines = path.read_bytes().splitlines()
    head = 1 if name.endswith(".csv") and release == "2023" else 0
    lines[head:] = [line.replace(b"\n", b"") for line in mutated(lines[head:], random.Random(1))]
    before = path.read_bytes().splitlines()
    write_lines(path, lines)
    raw = Amazon(tmp_path, release).read()
    table = log_of(raw)
    same = pl.Series([number for number, line in enumerate(lines, 1) if line == before[number - 1]])
    key = ["user_id", "item_id", "timestamp", "rating", LINE]
    kept = whole.filter(pl.col(LINE).is_in(same.implode())).select(key)
    assert kept.height > 200
    assert table.filter(pl.col(LINE).is_in(same.implode())).select(key).equals(kept)
    numbers = [*table[LINE], *raw.broken.table()["line"]]
    assert len(numbers) == len(set(numbers))
    read = [number for number in numbers if number <= len(lines)]
    blank = (b"", b"\r") if name.endswith(".csv") else (b"", b"\r", b" ", b"\t")
    assert sorted(read) == [number for number, line in enumerate(lines, 1) if line not in blank and number > head]


@pytest.mark.parametrize("release", LOGS)
def test_the_first_record_with_a_title_and_a_picture_wins(release: str, tmp_path: Path) -> None:
    row = ITEMS.row(0, named=True)
    versions = [
        {**row, "title": "", "brand": "no title"},
        {**row, "url": "", "brand": "no picture"},
        {**row, "brand": "whole"},
        {**row, "brand": "whole, too"},
    ]
    between = meta_line(release, {**ITEMS.row(1, named=True)})
    for last, brand in ((1, "no title"), (2, "no picture"), (3, "whole"), (4, "whole")):
        lines = [meta_line(release, version) for version in versions[:last]]
        lines = [line.replace("http", "ftp") if "no picture" in line else line for line in lines]
        table, _ = read_meta(tmp_path, release, [lines[0], between, *lines[1:]], [item_id(0), item_id(1)])
        assert table["item_id"].to_list() == [item_id(0), item_id(1)]  # in the order of first sight
        assert table["brand"][0] == brand


PAGES = [
    "\n\n var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();",
    "<!DOCTYPE html><html lang='en'>",
    "Soap <script type='text/javascript'>x()</script>",
    '<span id="productTitle" class="a-size-large">',
    ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget{",
]


@pytest.mark.parametrize("release", LOGS)
def test_page_source_is_no_title_but_tags_and_signs_are_left_to_the_cleaning(release: str, tmp_path: Path) -> None:
    fine = [
        "Soap <b>pure</b> & mild",
        "<3 for cats",
        "Time to get {ready}",
        "TargetTime",
        "#1 Soap",
        ".5 oz {x",
        "Head & Body",
    ]
    titles = [*PAGES, *fine]
    rows = [{**ITEMS.row(0, named=True), "item_id": item_id(n), "title": title} for n, title in enumerate(titles)]
    lines: list[str | bytes] = [meta_line(release, row) for row in rows]
    table, broken = read_meta(tmp_path, release, lines, [row["item_id"] for row in rows])
    assert table["title"].to_list() == [*[None] * len(PAGES), *fine]
    assert broken.table().is_empty()


@pytest.mark.parametrize("release", LOGS)
def test_half_a_character_costs_a_title_that_half_and_a_list_costs_the_line(release: str, tmp_path: Path) -> None:
    key = "parent_asin" if release == "2023" else "asin"
    lines: list[str | bytes] = [
        rf'{{"{key}": "B0", "title": "cut \ud83e", "brand": ["x"], "store": {{}}, "price": "$", "images": "?"}}',
        f'{{"{key}": "B1", "title": ["x"]}}',
        rf'{{"{key}": "\ud83e", "title": "x"}}',
        f'{{"{key}": "B2", "title": 1984, "price": "${"5" * 99}", "categories": ["{PAGES[4]}", "Soap"]}}',
    ]
    table, broken = read_meta(tmp_path, release, lines, ["B0", "B1", "B2"])
    assert table.rows() == [
        ("B0", "cut ", "B0", None, None, None, None),
        ("B2", "1984", "B2", None, None, "Soap", None),
    ]
    assert broken.table()["line"].to_list() == [2, 3]


SHOP = "https://images-na.ssl-images-amazon.com/images"
NONE = [
    "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif",
    "http://g-ecx.images-amazon.com/images/G/01/nav2/update-page._CB192192236_.gif",
    "https://m.media-amazon.com/images/I/01RmK+J4pJL._AC_.gif",
    "https://m.media-amazon.com/images/I/01RmK%2BJ4pJL.gif",
    "https://m.media-amazon.com/images/G/01/transparent-pixel._V192234675_.gif",
    "data:image/gif;base64,R0lGOD",
    "http://",
    "http://a.com/a b.jpg",
    "",
]


@pytest.mark.parametrize(
    ("release", "record", "url"),
    [
        ("2014", {"imUrl": f"{SHOP}/I/41xL._SX300_.jpg"}, f"{SHOP}/I/41xL._SX300_.jpg"),
        *[("2014", {"imUrl": url}, None) for url in NONE],
        ("2014", {"imUrl": None}, None),
        ("2018", {"imageURL": [f"{SHOP}/I/4-xL._SS40_.jpg"], "imageURLHighRes": ["http://big"]}, "http://big"),
        ("2018", {"imageURL": [f"{SHOP}/I/4-xL._SS40_.jpg"], "imageURLHighRes": NONE}, f"{SHOP}/I/4-xL.jpg"),
        ("2018", {"image": [f"{SHOP}/I/4%2BL.SX50_SY65_CR,0,0,50,65_.jpg"]}, f"{SHOP}/I/4%2BL.jpg"),
        ("2018", {"image": [f"{SHOP}/I/4L.SX50_PKmb-play-button-overlay-thumb_.jpg"]}, f"{SHOP}/I/4L.jpg"),
        ("2018", {"image": "http://text"}, "http://text"),
        ("2018", {"image": [], "imageURL": [3, None, {}]}, None),
        ("2023", {"images": [{"variant": "PT01", "large": "http://1"}, {"large": "http://2"}]}, "http://1"),
        (
            "2023",
            {"images": [{"variant": "PT01", "large": "http://1"}, {"variant": "MAIN", "hi_res": "http://2"}]},
            "http://2",
        ),
        (
            "2023",
            {"images": [{"variant": "MAIN", "large": NONE[2], "hi_res": None}, {"thumb": "http://3"}]},
            "http://3",
        ),
        ("2023", {"images": [{"variant": "MAIN", "thumb": f"{SHOP}/I/5L._AC_US40_.jpg"}]}, f"{SHOP}/I/5L.jpg"),
        (
            "2023",
            {"images": {"large": ["http://1", "http://2"], "variant": ["PT01", "MAIN"], "hi_res": [None], "thumb": 3}},
            "http://2",
        ),
        ("2023", {"images": {}}, None),
        ("2023", {"images": [None, "http://x", [1]]}, None),
    ],
)
def test_the_best_picture_is_chosen_and_a_spacer_is_none(
    release: str, record: dict[str, Any], url: str | None, tmp_path: Path
) -> None:
    key = "parent_asin" if release == "2023" else "asin"
    table, broken = read_meta(tmp_path, release, [json.dumps({key: "B0", "title": "x", **record})], ["B0"])
    assert table.select("image", "url").rows() == [("B0", url)]
    assert broken.table().is_empty()


def test_reviews_may_be_there_twice_and_lack_ids(tmp_path: Path) -> None:
    write_raw(tmp_path, "2018", ITEMS, LOG, "{}.json", ending="")
    event = {"user_id": user_id(1), "item_id": item_id(1), "timestamp": 5, "rating": 2.0}
    line = review_line("2018", event)
    write_lines(tmp_path / "Beauty.json", [line, line, '{"asin": "B0", "overall": "?"}'])
    raw = Amazon(tmp_path, "2018").read()
    one = (user_id(1), item_id(1), "5", 2.0)
    assert log_of(raw).rows() == [(*one, 1), (*one, 2), (None, "B0", None, None, 3)]
    assert raw.broken.table().is_empty()


@pytest.mark.parametrize("what", [LOGS["2014"][0], LOGS["2014"][2], META["2014"]])
def test_a_cut_archive_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    items, log = tables(users=400)
    write_raw(tmp_path, "2014", items, log, what if what in LOGS["2014"] else None)
    path = tmp_path / f"{what.format('Beauty')}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cut short") as caught:
        raw = Amazon(tmp_path, "2014").read()
        log_of(raw)
        items_of(raw)
    assert "\n" not in str(caught.value)
