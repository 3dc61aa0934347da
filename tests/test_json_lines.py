import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated
from raw_amazon import write_lines

from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import LINE, json_lines
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.json_lines import read_json_lines
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.opening import blocks
from vlm2rec.errors import InputError

FIELDS = ("id", "time", "né")
# How a value is written, and the text it is read as; ...: no field may hold it.
VALUES: list[tuple[str, Any]] = [
    *[(number, number) for number in ("0", "-0", "7", "5.0", "1.10", "1e3", "-1E-7", "1e400", "9" * 5000)],
    *[
        ("NaN", None),
        ("-Infinity", None),
        ("null", None),
        ("true", "true"),
        ("false", "false"),
        ('""', ""),
        ('"5.0"', "5.0"),
        ('"null"', "null"),
    ],
    *[(r'"\u00e9\n\"\\\/"', 'é\n"\\/'), (r'"\ud83e\uddfc"', "🧼"), ('"🧼\u2028"', "🧼\u2028"), (r'"\u0000"', "\0")],
    *[(r'"\ud83e"', ...), (r'"\udc00 x"', ...), ("[1]", ...), ("{}", ...), ("[]", ...)],
]
NO_JSON = ("nan", "+Infinity", "007", "+1", ".5", "1.", "'x'", "None", '"a\tb"', '"\\x"', "", "tru")
JUNK = ("1", '"x"', "[[{}]]", '{"id": 3, "time": [4]}', '"\\"id\\": 5"', "null", r'"\ud83e"', "-2.5E+10")


def read(path: Path, *args: Any, **more: Any) -> tuple[pl.DataFrame, Broken]:
    broken = Broken()
    return pl.concat(read_json_lines(path, broken, *args, **more)), broken


def bad_lines(broken: Broken) -> list[int]:
    return broken.table()["line"].to_list()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_field_is_text_as_it_is_written_and_every_bad_line_is_listed(data: st.DataObject) -> None:
    lines, expected, bad = [], [], []
    for number in range(1, data.draw(st.integers(1, 12)) + 1):
        # Of a field that is there twice, the last counts.
        cells = data.draw(st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)), max_size=5))
        row = dict.fromkeys(FIELDS) | {field: value for field, (_, value) in cells}
        written = [f"{json.dumps(field)}: {text}" for field, (text, _) in cells]
        for name in data.draw(st.lists(st.sampled_from(("x", "ID", "text", "line")), max_size=3)):
            written.insert(data.draw(st.integers(0, len(written))), f'"{name}": {data.draw(st.sampled_from(JUNK))}')
        wrong = data.draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(NO_JSON), min_size=1, max_size=1))
        written += [f'"x": {text}' for text in wrong]
        space = data.draw(st.sampled_from(("", " ", "\t", "\r")))
        lines.append(space + "{" + f"{space}, ".join(written) + "}" + space)
        if wrong or ... in row.values():
            bad.append(number)
        else:
            expected.append((*row.values(), number))
    with TemporaryDirectory() as folder:
        # A record behind them, or there may be none that can be read.
        path = write_lines(Path(folder) / "log.jsonl", [*lines, "{}"])
        table, broken = read(path, FIELDS)
    expected.append((None, None, None, len(lines) + 1))
    assert table.rows() == expected
    assert table.schema == {**dict.fromkeys(FIELDS, pl.String), LINE: pl.Int64}
    assert bad_lines(broken) == bad
    assert broken.read == {str(path): len(lines) + 1}


def good(line: bytes) -> dict[str, Any] | None:
    """A plain reading to compare with: the record if it is one, with text where FIELDS are."""
    try:
        record = json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=lambda name: None)
        if not isinstance(record, dict):
            return None
        row = {}
        for field in FIELDS:
            value = record.get(field)
            if isinstance(value, list | dict):
                return None
            row[field] = json.dumps(value) if isinstance(value, bool) else value
            str(value).encode()
        return row
    except (ValueError, RecursionError):
        return None


def some_line(number: int) -> bytes:
    record = {"id": f"u{number}", "x": [{"id": None}, 1.5], "time": number, "né": "è🧼\n", "text": 'a "b" \\ c'}
    return json.dumps(record, ensure_ascii=number % 2 == 0).encode()


@pytest.mark.parametrize("seed", range(3))
def test_thousands_of_spoilt_lines_cost_only_themselves(seed: int, tmp_path: Path) -> None:
    content = b"\n".join(mutated(list(map(some_line, range(3000))), random.Random(seed)))
    (tmp_path / "log.jsonl").write_bytes(content)
    table, broken = read(tmp_path / "log.jsonl", FIELDS)
    lines = dict(enumerate(content.split(b"\n"), 1))
    rows = {number: row for number, line in lines.items() if (row := good(line)) is not None}
    assert table.to_dicts() == [{**row, LINE: number} for number, row in rows.items()]
    assert bad_lines(broken) == [number for number, line in lines.items() if number not in rows and line.strip()]
    assert len(bad_lines(broken)) > 500 and len(rows) > 1000


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.text('{}[]":,\\u0d8en1. ', max_size=30).map(str.encode), max_size=8))
def test_any_bytes_are_read_or_listed(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        (path := Path(folder) / "log.jsonl").write_bytes(content := b"\n".join(lines).removeprefix(b"\xef\xbb\xbf"))
        for fields in (FIELDS, None):
            whole = [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
            try:
                table, broken = read(path, fields)
            except InputError as error:
                assert (
                    "no line of it can be read" in str(error) and f"line {whole[0]}:" in str(error)
                ) or "NUL" in str(error)
                continue
            # Python's white space is wider than JSON's: such a line is blank here, too.
            assert sorted([*table[LINE], *bad_lines(broken)]) == whole


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"id": ' + b'{"a":' * 100_000, "nested too deeply"),
        (b'["id"]', "no object"),
        (b'{"id": ["a"]}', "id is a list"),
        (b'{"id": {"a": 1}}', "id is an object"),
        (rb'{"id": "\ud800"}', "id is no text: half of a surrogate pair"),
        (b'{"id": "a"} {"id": "b"}', "no JSON"),
        (b'{"id": "a"', "no JSON"),
        (b"\0" * 100, "no JSON"),
        ("\u00a0{}".encode(), "no JSON"),
    ],
)
def test_a_bad_line_is_listed_with_its_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl.gz", [b'{"id": 1}', line, b"", b'{"id": 2}'])
    table, broken = read(path, ["id"])
    assert table.rows() == [("1", 1), ("2", 4)]
    assert broken.table().select("file", "line", "reason").rows() == [(str(path), 2, reason)]
    assert broken.read == {str(path): 4}


def test_blocks_and_tables_may_end_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", [some_line(n) if n % 7 else b"{" for n in range(100)])
    whole, broken = read(path, FIELDS)
    monkeypatch.setattr(json_lines, "ROWS", 5)
    monkeypatch.setattr(json_lines, "blocks", lambda path: blocks(path, 333))
    tables = list(read_json_lines(path, small := Broken(), FIELDS))
    assert max(table.height for table in tables) == 5
    assert pl.concat(tables).equals(whole)
    assert small.table().equals(broken.table()) and small.read == broken.read


def test_all_fields_are_found_and_what_is_nested_is_kept_as_json(tmp_path: Path) -> None:
    lines = [
        '{"b": 1.50, "a": [1e3, "x", {"y": null}]}',
        '{"b": true, "new": {"k": [false, 12345678901234567890]}, "a": "[1]"}',
        "{}",
        '{"b": [1]}',
    ]
    path = write_lines(tmp_path / "items.jsonl", lines)
    table, broken = read(path, flat=["b"])
    assert table.columns == ["b", "a", "new", LINE]
    assert table.rows() == [
        ("1.50", '[1e3, "x", {"y": null}]', None, 1),
        ("true", "[1]", '{"k": [false, 12345678901234567890]}', 2),
        (None, None, None, 3),
    ]
    assert broken.table()["reason"].to_list() == ["b is a list"]
    assert broken.read == {str(path): 4}


def test_numbers_that_json_has_not_are_null_and_spoil_no_line(tmp_path: Path) -> None:
    """As Python writes them; in what is nested too."""
    lines = ['{"a": NaN, "b": 1}', '{"a": [1, NaN, {"c": -Infinity}], "b": Infinity}', '{"a": "NaN", "b": "nan"}']
    table, broken = read(write_lines(tmp_path / "items.jsonl", lines))
    assert table.drop(LINE).rows() == [(None, "1"), ('[1, null, {"c": null}]', None), ("NaN", "nan")]
    assert not len(broken)


RECORDS = [{"item_id": n, "title": f"T{n}, or so", "user_id": "u", "timestamp": n} for n in range(30)]
PLAIN = "\n".join(map(json.dumps, RECORDS))
NOT_LINES: dict[str, tuple[bytes, str]] = {
    "array": (json.dumps(RECORDS).encode(), "line 1: no object: .*one JSON array: .* jq -c '.\\[\\]' does"),
    "array, a record a line": (b"[" + PLAIN.replace("\n", ",\n").encode() + b"]", "line 1: no JSON: .*one JSON array"),
    "pretty": (
        "\n".join(json.dumps(r, indent=1) for r in RECORDS).encode(),
        "line 1: no JSON: '{'; .* several lines: .* jq",
    ),
    "UTF-16": (PLAIN.encode("utf-16"), "line 1: not UTF-8: .* looks like UTF-16: save it as UTF-8"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "line 1: no JSON: .* looks like UTF-16"),
    "csv": (b"item_id,title\n1,x\n2,y\n", "line 1: no JSON: 'item_id,title'; it looks like CSV: .*\\.csv"),
    "packed": (gzip.compress(PLAIN.encode()), "line 1: .* unpack it, or give its name the right ending"),
    "page": (b"<html>\n<body>\n", "line 1: no JSON: '<html>'; is it the file that is meant"),
}


@pytest.mark.parametrize("kind", NOT_LINES)
@pytest.mark.parametrize("table", ["items", "interactions"])
def test_a_file_of_which_no_line_can_be_read_says_so_first(kind: str, table: str, tmp_path: Path) -> None:
    content, words = NOT_LINES[kind]
    for name in ("items", "interactions"):
        (tmp_path / f"{name}.jsonl").write_text(PLAIN)
    (tmp_path / f"{table}.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=rf"{table}\.jsonl: no line of it can be read; the first is {words}") as caught:
        prepare(Local(tmp_path), tmp_path / "out", require=["title"], bad_lines=1.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no line of it can be read"):
        read(tmp_path / f"{table}.jsonl", ["item_id"])


def test_much_of_another_kind_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_HOPELESS", 10)
    monkeypatch.setattr(json_lines, "blocks", lambda path, size=0: blocks(path, 100))
    path = write_lines(tmp_path / "log.jsonl", ["what?"] * 1000)
    broken = Broken()
    with pytest.raises(InputError, match="no line of it can be read"):
        list(read_json_lines(path, broken, FIELDS))
    assert len(broken) < 100


def test_numbers_that_json_has_not_where_they_are_needed(tmp_path: Path) -> None:
    """Without an id or a time a line is broken; without a title an item has none, without a rating an event."""
    items = [f'{{"item_id": "i{n}", "title": "T{n}", "price": NaN}}' for n in range(3)]
    write_lines(tmp_path / "items.jsonl", [*items, '{"item_id": "i3", "title": NaN}', '{"item_id": NaN, "title": "x"}'])
    events = [f'{{"user_id": "u", "item_id": "i{n}", "timestamp": {n}, "rating": 5, "x": NaN}}' for n in range(3)]
    more = [
        '{"user_id": NaN, "item_id": "i1", "timestamp": 1, "rating": 5}',
        '{"user_id": "u", "item_id": "i1", "timestamp": NaN, "rating": 5}',
        '{"user_id": "u", "item_id": "i1", "timestamp": 1, "rating": NaN}',
    ]
    write_lines(tmp_path / "interactions.jsonl", events + more)
    made = prepare(Local(tmp_path), tmp_path / "out", require=["title"], k_core=0, min_rating=1, bad_lines=0.5)
    assert made.item_ids == ["i0", "i1", "i2"]
    assert made.items["price"].to_list() == made.interactions["x"].to_list() == [None] * 3
    assert made.manifest["dropped"]["item"] == {"no title": 1}
    assert made.manifest["left_out"] == {"no rating": 1}
    listed = pl.read_parquet(made.path / "broken.parquet")
    assert listed.select("line", "reason").rows() == [
        (4, "user_id is empty"),
        (5, "timestamp is no time"),
        (5, "item_id is empty"),
    ]


def test_an_empty_file_is_a_table_without_rows(tmp_path: Path) -> None:
    (path := tmp_path / "log.jsonl").write_bytes(b"")
    (table,) = read_json_lines(path, Broken(), FIELDS)
    assert table.schema == {**dict.fromkeys(FIELDS, pl.String), LINE: pl.Int64}
    assert table.is_empty()


def too_many(path: Path) -> None:
    write_lines(path, [json.dumps({f"f{n}": 1}) for n in range(2000)])


def odd_name(path: Path) -> None:
    write_lines(path, [r'{"a\u0000": 1}'])


@pytest.mark.parametrize(
    ("spoil", "words"), [(too_many, "1,000 different fields"), (odd_name, "name holds a NUL; rename it")]
)
def test_what_is_no_table_is_refused(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    spoil(path := tmp_path / "items.jsonl")
    with pytest.raises(InputError, match=words) as caught:
        list(read_json_lines(path, Broken()))
    assert "\n" not in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl.gz", map(some_line, range(3000)))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"cut short") as caught:
        list(read_json_lines(path, Broken(), FIELDS))
    assert "\n" not in str(caught.value)
