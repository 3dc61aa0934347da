"""Text tables, plain and quoted, against readers written character by character."""

import csv
import gzip
import io
import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec.data.sources import LINE, quoted
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.delimited import first_line, read_plain
from vlm2rec.data.sources.quoted import read_quoted
from vlm2rec.errors import InputError

Cells = list[str | None]


def plain_reference(content: bytes, separator: bytes, width: int, encoding: str = "utf-8") -> tuple[dict, set]:
    """Good rows by line, and the lines that are broken."""
    good: dict[int, Cells] = {}
    bad: set[int] = set()
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        cells = line.split(separator)
        stray = b"\0" in line or b"\r" in line or (len(separator) > 1 and b"\x1f" in line)
        try:
            texts = [cell.decode(encoding) or None for cell in cells]
        except UnicodeDecodeError:
            stray = True
        if stray or len(cells) != width:
            bad.add(number)
        else:
            good[number] = texts
    return good, bad


def quoted_reference(content: bytes) -> tuple[list[str], dict, set]:
    """The header, good rows by line, and the lines that are broken, one character after the other."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    content += b"" if content.endswith(b"\n") else b"\n"
    header: list[str] | None = None
    good: dict[int, Cells] = {}
    bad: set[int] = set()
    place, number = 0, 1
    while place < len(content):
        after = content.index(b"\n", place) + 1
        found = one_row(content, place)
        if found is None:
            assert header is not None, "the header cannot be read"
            bad.add(number)
            place, number = after, number + 1
            continue
        cells, end = found
        lines = content.count(b"\n", place, end)
        blank = content[place:end] in (b"\n", b"\r\n")
        if header is None:
            header = [(cell or b"").decode() for cell in cells]
        elif not blank:
            try:
                texts = [None if cell is None else cell.decode() for cell in cells]
            except UnicodeDecodeError:
                texts = []
            if len(texts) != len(header) or b"\0" in content[place:end]:
                bad.add(number)
            else:
                good[number] = texts
        place, number = end, number + lines
    assert header is not None
    return header, good, bad


def one_row(content: bytes, place: int) -> tuple[list[bytes | None], int] | None:
    cells: list[bytes | None] = []
    while True:
        cell = b""
        if content[place : place + 1] == b'"':
            place += 1
            while True:
                char = content[place : place + 1]
                if not char:
                    return None
                if char == b'"':
                    if content[place + 1 : place + 2] != b'"':
                        break
                    place += 1
                cell += char
                place += 1
            place += 1
            cells.append(cell)
        else:
            while (char := content[place : place + 1]) not in (b",", b"\n", b"\r"):
                cell += char
                place += 1
            cells.append(cell or None)
        if content[place : place + 1] == b",":
            place += 1
        elif content[place : place + 1] == b"\n":
            return cells, place + 1
        elif content[place : place + 2] == b"\r\n":
            return cells, place + 2
        else:
            return None


def rows_of(tables: list[pl.DataFrame]) -> dict[int, Cells]:
    table = pl.concat(tables)
    assert all(dtype == pl.String for name, dtype in table.schema.items() if name != LINE)
    assert table[LINE].is_sorted() and table[LINE].is_unique().all()
    return {row[-1]: list(row[:-1]) for row in table.iter_rows()}


def check_plain(path: Path, content: bytes, separator: str, width: int, size: int, encoding: str = "utf-8") -> None:
    path.write_bytes(content)
    broken = Broken()
    columns = [f"c{place}" for place in range(width)]
    found = rows_of(list(read_plain(path, separator, columns, broken, encoding=encoding, size=size)))
    good, bad = plain_reference(content, separator.encode(), width, encoding)
    assert found == good
    assert sorted(broken.table()["line"].to_list()) == sorted(bad)
    assert sum(broken.read.values()) == len(good) + len(bad)


def check_quoted(path: Path, content: bytes, size: int = 1 << 25) -> None:
    path.write_bytes(content)
    header, good, bad = quoted_reference(content)
    broken = Broken()
    tables = list(read_quoted(path, broken, size=size))
    assert tables[0].columns == [*header, LINE]
    assert rows_of(tables) == good
    assert sorted(broken.table()["line"].to_list()) == sorted(bad)
    assert sum(broken.read.values()) == len(good) + len(bad)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delimited") / "table.txt"


PIECES = [
    b"a",
    b"7",
    b"\t",
    b"::",
    b":",
    b"\n",
    b"\r\n",
    b"\r",
    b'"',
    b",",
    b" ",
    b"\0",
    b"\xff",
    b"\x1f",
    "é".encode(),
]
soup = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(soup, st.sampled_from(["\t", "::", ","]), st.integers(1, 4), st.sampled_from([1, 7, 1 << 20]))
def test_plain_rows_are_those_of_splitting_line_by_line(place, content, separator, width, size) -> None:
    check_plain(place, content, separator, width, size)


@settings(max_examples=100, deadline=None)
@given(soup, st.sampled_from([1, 1 << 20]))
def test_latin_1_is_read_as_such(place, content, size) -> None:
    check_plain(place, content, "::", 2, size, "latin-1")


CSV_PIECES = [
    b"a",
    b"7",
    b'"',
    b'"',
    b'""',
    b",",
    b",",
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\0",
    b"\xff",
    "é".encode(),
]
csv_soup = st.lists(st.sampled_from(CSV_PIECES), max_size=60).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(csv_soup, st.sampled_from([1, 5, 1 << 20]))
def test_quoted_rows_are_those_of_reading_character_by_character(place, content, size) -> None:
    check_quoted(place, b"x,y,z\n" + content, size)


CELLS = [
    *("", "a", "7 é", '""', '"a"', '"a"b', '"a" ', ' "a"', 'a"b', 'a""', '"a', '"a""', '"a""b"', '"a,b"', '"a\nb"'),
    *('"a\r\nb"', '"a\rb"', "a\rb", '"\n', '"a\n""\n"', "a\0", '"\0"'),
]
csv_rows = st.lists(st.lists(st.sampled_from(CELLS), min_size=3, max_size=3).map(",".join), max_size=6)


@settings(max_examples=500, deadline=None)
@given(csv_rows, st.sampled_from(["\n", "\r\n"]), st.sampled_from([1, 5, 1 << 20]))
def test_quoted_rows_of_the_right_width_too(place, rows, end, size) -> None:
    check_quoted(place, f"x,y,z{end}{end.join(rows)}".encode(), size)


cell = st.text(st.sampled_from('ab",\n\r é7'), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cell, cell), max_size=8), st.sampled_from(["\n", "\r\n"]), st.sampled_from([1, 1 << 20]))
def test_what_the_csv_module_writes_is_read_whole(place, rows, end, size) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("x", "y"), *rows])
    place.write_bytes(buffer.getvalue().encode())
    broken = Broken()
    found = pl.concat(read_quoted(place, broken, size=size))
    assert found.select("x", "y").rows() == rows
    assert broken.table().is_empty()


def spoilt(seed: int, line: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(line))
    what = seed % 8
    if what == 0:
        return line[:at]
    if what == 1:
        return line[:at] + bytes([rng.randrange(256)]) + line[at + 1 :]
    if what == 2:
        return line + line
    if what == 3:
        return line[:at] + b'"' + line[at:]
    if what == 4:
        return line[:at] + b"\xc3" + line[at:]
    if what == 5:
        return line.replace(b",", b"", 1)
    if what == 6:
        return line[:at] + b"\0" + line[at:]
    return bytes(rng.randrange(256) for _ in range(at))


@pytest.mark.parametrize("size", [1000, 1 << 25])
def test_thousands_of_spoilt_lines_are_each_listed_once_and_no_other_is_lost(place, size) -> None:
    rng = random.Random(size)
    lines = [
        b'u%d,"Soap, ""No. %d""\nwith oil",%d' % (n, n, n % 5) if n % 3 else b"u%d,Comb,%d" % (n, n)
        for n in range(6000)
    ]
    for n in rng.sample(range(6000), 3000):
        lines[n] = spoilt(n, lines[n], rng)
    content = b"\n".join(lines)
    check_quoted(place, b"user,title,n\n" + content, size)
    check_plain(place, content, ",", 3, size)


def test_a_broken_line_is_listed_not_fatal(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"1::2::5::9\n1::2::5\n\n1::\xff::5::9\n2::2::5::9::8\n3::4::::7")
    broken = Broken()
    table = pl.concat(read_plain(path, "::", ["u", "i", "r", "t"], broken, only=["i", "u", "r"]))
    assert table.rows() == [("2", "1", "5", 1), ("4", "3", None, 6)]
    assert broken.table().rows() == [
        (str(path), 2, "does not have 4 fields", "1::2::5"),
        (str(path), 4, "is not UTF-8", "1::\ufffd::5::9"),
        (str(path), 5, "does not have 4 fields", "2::2::5::9::8"),
    ]
    assert broken.read == {str(path): 5}


def test_a_lost_quote_costs_its_own_row_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b'id,title\n1,"a\n2,b\n3,"c\nd"\n4,5" nail\n5,"e"f\n6,"g')
    broken = Broken()
    table = pl.concat(read_quoted(path, broken))
    assert table.rows() == [("2", "b", 3), ("3", "c\nd", 4), ("4", '5" nail', 6)]
    assert broken.table().select("line", "reason").rows() == [
        (2, "has something between a closing quote and the next field"),
        (7, "has something between a closing quote and the next field"),
        (8, "has a quote that is never closed"),
    ]


def test_an_endless_field_is_given_up(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quoted, "LONGEST", 100)
    rows = [b"%d,good\n" % n for n in range(100)]
    rows[7] = b'7,"lost\n'
    place.write_bytes(b"id,title\n" + b"".join(rows))
    broken = Broken()
    tables = list(read_quoted(place, broken, size=50))
    assert sum(not part.is_empty() for part in tables) > 10  # it is given up long before the end of the file
    table = pl.concat(tables)
    assert table["id"].to_list() == [f"{n}" for n in range(100) if n != 7]
    assert broken.table()["line"].to_list() == [9]


def test_a_header_is_left_out_and_gzip_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfuser,item\r\n007,\r\n"
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    for name in ("a.csv", "a.csv.gz"):
        assert first_line(tmp_path / name) == "user,item"
        plain = pl.concat(read_plain(tmp_path / name, ",", ["user", "item"], Broken(), header=True))
        assert plain.rows() == [("007", None, 2)]
        assert pl.concat(read_quoted(tmp_path / name, Broken())).equals(plain)


def test_a_table_without_rows_has_its_columns(place) -> None:
    place.write_bytes(b"")
    assert first_line(place) == ""
    assert pl.concat(read_plain(place, ",", ["a", "b"], Broken())).columns == ["a", "b", LINE]
    place.write_bytes(b"a,b")
    assert pl.concat(read_plain(place, ",", ["a", "b"], Broken(), header=True)).shape == (0, 3)
    assert pl.concat(read_quoted(place, Broken())).shape == (0, 3)


def test_columns_without_a_name_are_left_out(place) -> None:
    place.write_bytes(b",user,,item\n0,a,,b\n1,c,,d\n")
    assert pl.concat(read_quoted(place, Broken())).rows() == [("a", "b", 2), ("c", "d", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n1,2\n", "its first line is empty"),
        (b'id,"title\n1,2\n', "a quote in its header is never closed"),
        (b'id,"title"s\n1,2\n', "its header has something between"),
        (b"id,\xff\n1,2\n", "its header is not UTF-8"),
        (b"id,title,id\n", "two columns are called 'id'"),
    ],
)
def test_a_header_that_cannot_be_read_is_one_line(place, content, message) -> None:
    place.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_quoted(place, Broken()))
    assert "\n" not in str(caught.value)
