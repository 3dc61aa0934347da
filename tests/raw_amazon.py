"""Raw files of an Amazon release, written from tables."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

LOGS: dict[str, tuple[str, ...]] = {
    "2014": ("reviews_{}_5.json", "reviews_{}.json", "ratings_{}.csv"),
    "2018": ("{}_5.json", "{}.json", "{}.csv"),
    "2023": ("{}.csv", "{}.train.csv", "{}.jsonl"),
}
META = {"2014": "meta_{}.json", "2018": "meta_{}.json", "2023": "meta_{}.jsonl"}


def user_id(number: int) -> str:
    return f"A{number:013d}"


def item_id(number: int) -> str:
    return f"B{number:09d}"


def tables(users: int = 8, items: int = 6) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items (`item_id`, `title`, `url`, `brand`, `category`, `price`) and a log in which every user has every item."""
    names = [item_id(number) for number in range(items)]
    catalogue = pl.DataFrame(
        {
            "item_id": names,
            "title": [f'Soap No. {number}, "pure" & mild, 5\' long, caf\u00e9 \U0001f9fc' for number in range(items)],
            "url": [f"http://ecx.images-amazon.com/images/I/41x{number}L.jpg" for number in range(items)],
            "brand": [f"Brand {number % 2}" for number in range(items)],
            "category": ["Beauty > Skin Care"] * items,
            "price": [f"{number}.5" for number in range(items)],
        }
    )
    rows = [
        (user_id(user), names[(user + step) % items], 1_300_000_000 + 86400 * step, float(1 + (user + step) % 5))
        for user in range(users)
        for step in range(items)
    ]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    return catalogue, log


def meta_line(release: str, item: Mapping[str, str]) -> str:
    """An item as a line of the release's meta file."""
    path = item["category"].split(" > ")
    if release == "2014":
        record: dict[str, Any] = {
            "asin": item["item_id"],
            "description": "It's soap: 'asin' is no part of it.\n",
            "title": item["title"],
            "price": float(item["price"]),
            "imUrl": item["url"],
            "related": {"also_bought": ["B000000009", "B000000008"]},
            "salesRank": {"Beauty": 5},
            "brand": item["brand"],
            "categories": [path, ["Beauty", "Bath"]],
        }
        return repr(record)
    if release == "2018":
        record = {
            "category": path,
            "tech1": "",
            "description": ['A "soap": as in {"asin": "B"}'],
            "title": item["title"],
            "also_buy": ["B000000009"],
            "brand": item["brand"],
            "price": item["price"],
            "asin": item["item_id"],
            "imageURL": [item["url"].replace("L.jpg", "L._SS40_.jpg")],
            "imageURLHighRes": [item["url"]],
        }
    else:
        record = {
            "main_category": "All Beauty",
            "title": item["title"],
            "images": [
                {"thumb": "http://t/x.jpg", "large": "http://t/other.jpg", "variant": "PT01", "hi_res": None},
                {"thumb": "http://t/y.jpg", "large": item["url"], "variant": "MAIN", "hi_res": "http://t/hires.jpg"},
            ],
            "store": item["brand"],
            "price": float(item["price"]),
            "categories": path,
            "details": {"ASIN": "x"},
            "parent_asin": item["item_id"],
        }
    return json.dumps(record)


def review_line(release: str, event: Mapping[str, Any]) -> str:
    """An event as a line of the release's reviews."""
    if release == "2023":
        record = {
            "rating": event["rating"],
            "title": "Five stars",
            "text": 'Not "user_id": "x"',
            "images": [{"small_image_url": "http://t"}],
            "asin": "B0VARIANT0",
            "parent_asin": event["item_id"],
            "user_id": event["user_id"],
            "timestamp": event["timestamp"] * 1000,
        }
    else:
        record = {
            "reviewerID": event["user_id"],
            "asin": event["item_id"],
            "helpful": [0, 1],
            "reviewText": 'I said: {"asin": "B"}\n',
            "overall": event["rating"],
            "unixReviewTime": event["timestamp"],
        }
    return json.dumps(record)


def log_lines(release: str, name: str, log: pl.DataFrame) -> dict[str, list[str]]:
    """The lines of each file of a log that is named so."""
    rows = list(log.iter_rows(named=True))
    if not name.endswith(".csv"):
        return {name: [review_line(release, row) for row in rows]}
    if release == "2023":
        history = ",history" if ".train" in name else ""
        header = f"user_id,parent_asin,rating,timestamp{history}"
        lines = [
            f"{r['user_id']},{r['item_id']},{r['rating']},{r['timestamp'] * 1000}{history and ',B1 B2'}" for r in rows
        ]
        if not history:
            return {name: [header, *lines]}
        third = len(lines) // 3
        parts = (lines[: len(lines) - 2 * third], lines[len(lines) - 2 * third : len(lines) - third], lines[-third:])
        names = (name.replace(".train", f".{part}") for part in ("train", "valid", "test"))
        return {name: [header, *part] for name, part in zip(names, parts, strict=True)}
    first = ("user_id", "item_id") if release == "2014" else ("item_id", "user_id")
    return {name: [f"{row[first[0]]},{row[first[1]]},{row['rating']},{row['timestamp']}" for row in rows]}


def write_lines(path: Path, lines: Iterable[str | bytes]) -> Path:
    """Lines as a file, packed if its name says so."""
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def write_raw(
    folder: Path,
    release: str,
    items: pl.DataFrame,
    log: pl.DataFrame,
    name: str | None = None,
    domain: str = "Beauty",
    ending: str = ".gz",
    more: Sequence[str] = (),
) -> Path:
    """A raw folder; `name` is one of `LOGS`, by default the first, `more` are lines for the end of the meta file."""
    folder.mkdir(exist_ok=True)
    for file, lines in log_lines(release, (name or LOGS[release][0]).format(domain), log).items():
        write_lines(folder / f"{file}{ending}", lines)
    meta = [meta_line(release, item) for item in items.iter_rows(named=True)]
    write_lines(folder / f"{META[release].format(domain)}{ending}", [*meta, *more])
    return folder
