"""The `amazon-2014`, `amazon-2018` and `amazon-2023` sources: the three releases of Amazon's reviews."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.amazon.catalogue import Release, read_items
from vlm2rec.data.sources.amazon.literal import parse_either
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.delimited import read_plain
from vlm2rec.data.sources.json_lines import Parse, parse_json, read_json_lines
from vlm2rec.data.sources.opening import blocks
from vlm2rec.errors import InputError

_COLUMNS = ("user_id", "item_id", "timestamp", "rating")


@dataclass(frozen=True)
class _Files:
    """How a release names its files ({} is the domain) and their columns.

    Attributes:
        logs: files of interactions, the best first; a file in several parts is a tuple of them.
        meta: the file of items.
        fields: user, item, time and rating in JSON lines.
        columns: of a CSV, which has no header; None: it has one, with the names of `fields`.
        time_unit: of its times.
    """

    logs: tuple[tuple[str, ...], ...]
    meta: str
    fields: tuple[str, str, str, str]
    columns: tuple[str, ...] | None
    time_unit: str

    def domains(self, there: list[str]) -> tuple[set[str], set[str]]:
        """The domains of which a log is there, and those of which the items are."""
        return _domains([name for log in self.logs for name in log], there), _domains([self.meta], there)


_RELEASES: dict[Release, _Files] = {
    "2014": _Files(
        logs=(("reviews_{}_5.json",), ("reviews_{}.json",), ("ratings_{}.csv",)),
        meta="meta_{}.json",
        fields=("reviewerID", "asin", "unixReviewTime", "overall"),
        columns=("user_id", "item_id", "rating", "timestamp"),
        time_unit="s",
    ),
    "2018": _Files(
        logs=(("{}_5.json",), ("{}.json",), ("{}.csv",)),
        meta="meta_{}.json",
        fields=("reviewerID", "asin", "unixReviewTime", "overall"),
        columns=("item_id", "user_id", "rating", "timestamp"),
        time_unit="s",
    ),
    "2023": _Files(
        logs=(("{}.csv",), ("{}.train.csv", "{}.valid.csv", "{}.test.csv"), ("{}.jsonl",)),
        meta="meta_{}.jsonl",
        fields=("user_id", "parent_asin", "timestamp", "rating"),
        columns=None,
        time_unit="ms",
    ),
}
_DOMAIN = r"((?!meta_)[^.]+)"  # in a file's name
_USER = re.compile(rb"A[0-9A-Z]{9,}")
_ITEM = re.compile(rb"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
_LOOKED_AT = 1000  # lines that must show which column is which

# The 5-core of 2014 by domain: users, items, interactions.
_PUBLISHED = {
    "Beauty": (22363, 12101, 198502),
    "Cell_Phones_and_Accessories": (27879, 10429, 194439),
    "Clothing_Shoes_and_Jewelry": (39387, 23033, 278677),
    "Sports_and_Outdoors": (35598, 18357, 296337),
    "Tools_and_Home_Improvement": (16638, 10217, 134476),
    "Toys_and_Games": (19412, 11924, 167597),
    "Video_Games": (24303, 10672, 231780),
}


@dataclass(frozen=True)
class Amazon:
    """A folder with a domain's raw files of one release, plain or .gz (plain, where a file is there both ways).

    Interactions come from the first of these that is there, items from the meta file, pictures from a folder
    `images/` beside them, named by item id:

    - 2014: `reviews_D_5.json` (the 5-core), `reviews_D.json`, `ratings_D.csv`; `meta_D.json`.
    - 2018: `D_5.json`, `D.json`, `D.csv`; `meta_D.json`.
    - 2023: `D.csv`, `D.train.csv` with `D.valid.csv` and `D.test.csv`, `D.jsonl`; `meta_D.jsonl`. An item is a
      parent_asin: the variants of a product are one.

    The CSVs of 2014 and 2018 have no header and their first two columns swapped; they are refused where ids do not
    look like those of users and items.

    Attributes:
        path: the folder.
        release: 2014, 2018 or 2023.
        domain: as in the names of the files, such as Beauty; None: the one that is there.
    """

    path: Path
    release: Release
    domain: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # given as text, it is a path all the same

    def read(self) -> RawData:
        """Find the files. Raises InputError where one is missing, or a CSV's columns are not in their order."""
        files = _RELEASES[self.release]
        domain, log, meta = self._find(files)
        broken = Broken()
        name = str(log[0] if len(log) == 1 else self.path / f"{domain}.{{train,valid,test}}.csv")
        interactions = (
            _from_csv(log, [self._columns(path) for path in log], files.columns is None, broken, name)
            if ".csv" in log[0].suffixes
            else _from_json(log[0], files.fields, parse_either if self.release == "2014" else parse_json, broken)
        )
        counts = _PUBLISHED.get(domain) if self.release == "2014" else None
        return RawData(
            name=domain,
            items=lambda needed: read_items(meta, self.release, needed, broken),
            interactions=interactions,
            pictures=self.path / "images",
            items_from=str(meta),
            interactions_from=name,
            files=(*log, meta),
            broken=broken,
            published=dict(zip(("users", "items", "interactions"), counts, strict=True)) if counts else None,
            time_unit=files.time_unit,
        )

    def _find(self, files: _Files) -> tuple[str, list[Path], Path]:
        """The domain, the files of its interactions and that of its items."""
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder; give the one with the raw files of Amazon {self.release}")
        there = [path.name for path in self.path.iterdir() if path.is_file()]
        logs, metas = files.domains(there)
        if not logs:
            names = ", ".join(log[0].format("DOMAIN") for log in files.logs)
            none = f"has no interactions of Amazon {self.release}; put one of {names} there, .gz or not"
            raise InputError(f"{self.path}: {self._other_release(there) or none}")
        domains = [self.domain] if self.domain else sorted(logs & metas) or sorted(logs)
        if len(domains) > 1:
            raise InputError(f"{self.path}: holds several domains, {', '.join(domains)}; say which with --domain")
        domain = domains[0]
        if domain not in logs:
            raise InputError(f"{self.path}: has no interactions of {domain}, but of {', '.join(sorted(logs))}")
        meta = self._there(files.meta.format(domain))
        if meta is None:
            none = f"has no {files.meta.format(domain)}.gz, where the titles are; put it there too"
            raise InputError(f"{self.path}: {self._other_release(there) or none}")
        return domain, self._log(files, domain), meta

    def _log(self, files: _Files, domain: str) -> list[Path]:
        """The best log that is there, in all its parts."""
        for log in files.logs:
            parts = {name: self._there(name) for name in (name.format(domain) for name in log)}
            found = [path for path in parts.values() if path]
            missing = [name for name, path in parts.items() if not path]
            if found and missing:
                raise InputError(f"{self.path}: has {found[0].name} but not {', '.join(missing)}; put all parts there")
            if found:
                return found
        raise AssertionError(domain)

    def _there(self, name: str) -> Path | None:
        return next((path for path in (self.path / name, self.path / f"{name}.gz") if path.is_file()), None)

    def _other_release(self, there: list[str]) -> str | None:
        """What to say where the files are those of another release."""
        for release, files in _RELEASES.items():
            logs, metas = files.domains(there)
            if release != self.release and logs & metas:
                return f"holds files named as in the release of {release}; prepare it as amazon-{release}"
        return None

    def _columns(self, path: Path) -> list[str]:
        """The names of a CSV's columns. Raises InputError if its header or its ids tell that they are others."""
        _, block = next(blocks(path, 1 << 16), (1, b""))
        rows = [line.rstrip(b"\r").split(b",") for line in block.split(b"\n")[:_LOOKED_AT]]
        files = _RELEASES[self.release]
        if files.columns is None:
            header = [name.decode(errors="replace") for name in rows[0]]
            if not set(files.fields) <= set(header) or len(set(header)) < len(header):
                raise InputError(f"{path}: its first line must name the columns {', '.join(files.fields)}")
            names = dict(zip(files.fields, _COLUMNS, strict=True))
            return [names.get(name, f"\0{place}") for place, name in enumerate(header)]
        rows = [row for row in rows if len(row) == len(files.columns)]
        user, item = files.columns.index("user_id"), files.columns.index("item_id")
        if _share(_USER, rows, user) >= 0.5 and _share(_ITEM, rows, item) >= 0.5:
            return list(files.columns)
        order = ",".join(files.columns)
        if _share(_USER, rows, item) >= 0.5 and _share(_ITEM, rows, user) >= 0.5:
            (other,) = {"2014", "2018"} - {self.release}
            raise InputError(
                f"{path}: has users and items the other way round than {order}; prepare it as amazon-{other}"
            )
        raise InputError(f"{path}: its lines do not look like {order} of Amazon (A2SUAM1J3GNN3B and 0000013714)")


def _domains(names: list[str], there: list[str]) -> set[str]:
    pattern = re.compile("|".join(f"{re.escape(name)}(?:[.]gz)?".replace(r"\{\}", _DOMAIN) for name in names))
    return {match[match.lastindex or 0] for match in map(pattern.fullmatch, there) if match}


def _share(looks: re.Pattern[bytes], rows: list[list[bytes]], column: int) -> float:
    return sum(bool(looks.fullmatch(row[column])) for row in rows) / max(len(rows), 1)


def _from_json(path: Path, fields: Sequence[str], parse: Parse, broken: Broken) -> Iterator[pl.DataFrame]:
    for table in read_json_lines(path, broken, fields, parse=parse):
        yield _finished(table.rename(dict(zip(fields, _COLUMNS, strict=True))))


def _from_csv(
    paths: Sequence[Path], columns: Sequence[Sequence[str]], header: bool, broken: Broken, name: str
) -> Iterator[pl.DataFrame]:
    """The files one after the other; their lines are counted on, as those of one file of that name."""
    before = 0
    for path, names in zip(paths, columns, strict=True):
        own, last = Broken(), 0
        for table in read_plain(path, ",", names, own, header=header, only=_COLUMNS):
            last = table.item(-1, LINE) if table.height else last
            yield _finished(table.with_columns(pl.col(LINE) + before))
        for _, line, reason, text in own.table().iter_rows():
            broken.add(name, before + line, reason, text)
            last = max(last, line)
        broken.count(name, own.read.get(str(path), 0))
        before += last


def _finished(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(*_COLUMNS[:3], pl.col("rating").cast(pl.Float32, strict=False), LINE)
