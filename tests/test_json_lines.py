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

from vlm2rec.data.sources import json_lines
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.json_lines import read_json_lines
from vlm2rec.data.sources.opening import blocks
from vlm2rec.errors import InputError

FIELDS = ("id", "time", "né")
# How a value is written, and the text it is read as; ...: no field may hold it.
VALUES: list[tuple[str, Any]] = [
    *[(number, number) for number in ("0", "-0", "7", "5.0", "1.10", "1e3", "-1E-7", "1e400", "9" * 5000)],
    *[("null", None), ("true", "true"), ("false", "false"), ('""', ""), ('"5.0"', "5.0"), ('"null"', "null")],
    *[(r'"\u00e9\n\"\\\/"', 'é\n"\\/'), (r'"\ud83e\uddfc"', "🧼"), ('"🧼\u2028"', "🧼\u2028"), (r'"\u0000"', "\0")],
    *[(r'"\ud83e"', ...), (r'"\udc00 x"', ...), ("[1]", ...), ("{}", ...), ("[]", ...)],
]
NO_JSON = ("NaN", "-Infinity", "007", "+1", ".5", "1.", "'x'", "None", '"a\tb"', '"\\x"', "", "tru")
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
        path = write_lines(Path(folder) / "log.jsonl", lines)
        table, broken = read(path, FIELDS)
    assert table.rows() == expected
    assert table.schema == {**dict.fromkeys(FIELDS, pl.String), "line": pl.Int64}
    assert bad_lines(broken) == bad
    assert broken.read == {str(path): len(lines)}


def good(line: bytes) -> dict[str, Any] | None:
    """A plain reading to compare with: the record if it is one, with text where FIELDS are."""
    try:
        record = json.loads(line.decode(), parse_int=str, parse_float=str, parse_constant=lambda name: 1 / 0)
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
    except (ValueError, RecursionError, ZeroDivisionError):
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
    assert table.to_dicts() == [{**row, "line": number} for number, row in rows.items()]
    assert bad_lines(broken) == [number for number, line in lines.items() if number not in rows and line.strip()]
    assert len(bad_lines(broken)) > 500 and len(rows) > 1000


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.text('{}[]":,\\u0d8en1. ', max_size=30).map(str.encode), max_size=8))
def test_any_bytes_are_read_or_listed(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        (path := Path(folder) / "log.jsonl").write_bytes(content := b"\n".join(lines).removeprefix(b"\xef\xbb\xbf"))
        for fields in (FIELDS, None):
            table, broken = read(path, fields)
            whole = [number for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
            # Python's white space is wider than JSON's: such a line is blank here, too.
            assert sorted([*table["line"], *bad_lines(broken)]) == whole


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
    assert table.columns == ["b", "a", "new", "line"]
    assert table.rows() == [
        ("1.50", '[1e3, "x", {"y": null}]', None, 1),
        ("true", "[1]", '{"k": [false, 12345678901234567890]}', 2),
        (None, None, None, 3),
    ]
    assert broken.table()["reason"].to_list() == ["b is a list"]
    assert broken.read == {str(path): 4}


def test_an_empty_file_is_a_table_without_rows(tmp_path: Path) -> None:
    (path := tmp_path / "log.jsonl").write_bytes(b"")
    (table,) = read_json_lines(path, Broken(), FIELDS)
    assert table.schema == {**dict.fromkeys(FIELDS, pl.String), "line": pl.Int64}
    assert table.is_empty()


def too_many(path: Path) -> None:
    write_lines(path, [json.dumps({f"f{n}": 1}) for n in range(2000)])


def line_taken(path: Path) -> None:
    write_lines(path, ['{"line": 1}'])


@pytest.mark.parametrize(("spoil", "words"), [(too_many, "1,000 different fields"), (line_taken, "rename it")])
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
