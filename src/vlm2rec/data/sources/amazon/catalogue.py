"""The items of an Amazon release: the meta file's lines, one record an item or several, as a table."""

import html
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import polars as pl

from vlm2rec.data.sources.amazon.literal import parse_either
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.json_lines import add_broken, as_text, parse_json, read_records

Release = Literal["2014", "2018", "2023"]

COLUMNS = ("item_id", "title", "image", "url", "brand", "category", "price")

# A title that a crawler cut out of the page's source: script, style, or a tag with attributes that opens it. The
# release of 2018 says itself to leave out titles with getTime. Other tags are left to the common cleaning.
_PAGE = re.compile(
    r"\bgetTime\b|</?(?:script|style|html|head|body|meta|link|iframe|!doctype)\b"
    r"|^\s*<\w+\s[^>]*=|^\s*[.#@][\w-]+[^{}]{0,80}\{[^{}]*:",
    re.IGNORECASE,
)
# Addresses that lead to no product: the shop's "no image available", its buttons, spacers and marks of a video, and
# the pictures that it shows in place of a cover.
_NO_PICTURE = re.compile(
    r"/no-im(?:g|age)|/x-site/icons/|/update-page|transparent-pixel|play-button|placeholder|/(?:01RmK(?:\+|%2B)J4pJL"
    r"|01AodW1Gh-L|01QFb8SNuTL|01PkLIhTX3L|21xiVkxN-SL|01GmVhVRioL|01RPy1SfeqL|01-y6Ov3R(?:\+|%2B)L|01e-XWjq3EL"
    r"|11RGjrCdvsL|01MKUOLsA5L|31CTP6oiIBL)\b",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"https?://[^\s\x00-\x1f\ud800-\udfff]{1,2000}")
# What a picture's address asks of the shop (size, crop, frame) between the picture's name and its ending.
_ASKED = re.compile(r"(/images/I/[^./]+)\.[^/]*\.(\w+)$")
_HALF = re.compile("[\ud800-\udfff]")
_PRICE = 40  # characters


def read_items(path: Path, release: Release, needed: pl.Series, broken: Broken) -> pl.DataFrame:
    """The needed items that the file has, in its order, as text: the columns `COLUMNS`.

    An item that is there several times has the first record with a title and a picture's address or, failing that,
    the first with a title, or the first. `image` is the item's id, `url` where its picture can be fetched or null,
    `category` a path such as "Beauty > Skin Care". All lines are counted in `broken`; read in full, and listed there
    if they cannot be, are those whose item is needed or cannot be told at a glance. A brand, a category, a price or
    a picture that is not as expected counts as none.
    """
    key = "parent_asin" if release == "2023" else "asin"
    ids = {item_id.encode() for item_id in needed}
    parse = parse_either if release == "2014" else parse_json
    best: dict[str, tuple[int, tuple[str | None, ...]]] = {}
    for number, line, record in read_records(path, broken, parse, _glance(key, ids)):
        try:
            item_id = as_text(record.get(key))
            title = as_text(record.get("title")) if not isinstance(record.get("title"), str) else record["title"]
        except ValueError as error:
            add_broken(broken, path, number, f"{key} or title is {error}", line)
            continue
        if not item_id:
            add_broken(broken, path, number, f"has no {key}", line)
        elif item_id.encode() in ids:
            title = None if title is None or _PAGE.search(title) else _HALF.sub("", title)
            url = next(filter(_leads_to_picture, _addresses(record, release)), None)
            worth = 2 * bool(title and title.strip()) + bool(url)
            if item_id not in best or worth > best[item_id][0]:
                brand = _plain(record.get("store" if release == "2023" else "brand"))
                row = (item_id, title, item_id, url, brand, _category(record), _price(record.get("price")))
                best[item_id] = (worth, row)
    return pl.DataFrame([row for _, row in best.values()], schema=dict.fromkeys(COLUMNS, pl.String), orient="row")


def _glance(key: str, ids: set[bytes]) -> Callable[[bytes], bool]:
    """Whether a line must be read in full: its item is needed, or the line does not name just one item plainly.

    In JSON a quote that belongs to a text has a backslash before it, so what looks like the key is the key.
    """
    name = key.encode()
    named = re.compile(rb"([\"'])" + name + rb"\1\s*:\s*u?([\"'])([^\"'\\]*)\2\s*[,}]")

    def wanted(line: bytes) -> bool:
        place = line.find(name)
        if place > 0 and line.find(name, place + 1) < 0:
            found = named.match(line, place - 1)
            if found:
                return found[3] in ids
        return True

    return wanted


def _addresses(record: dict[str, Any], release: Release) -> Iterator[str]:
    """Addresses of an item's pictures, best first: of its main picture, about as large as needed."""
    if release == "2014":
        yield from _texts(record.get("imUrl"))
    elif release == "2018":
        yield from _texts(record.get("imageURLHighRes"))
        # 40 pixels; without what it asks of the shop, the address is that of the large one.
        for name in ("imageURL", "image"):
            yield from (_ASKED.sub(r"\1.\2", address) for address in _texts(record.get(name)))
    else:
        for picture in sorted(_pictures(record.get("images")), key=lambda picture: picture.get("variant") != "MAIN"):
            yield from _texts(picture.get("large"))
            yield from _texts(picture.get("hi_res"))
            yield from (_ASKED.sub(r"\1.\2", address) for address in _texts(picture.get("thumb")))


def _pictures(images: object) -> list[dict[str, Any]]:
    """The pictures one by one: a list of them as it is, an object of lists (of sizes) turned over."""
    if isinstance(images, dict):
        lists = {name: held for name, held in images.items() if isinstance(held, list)}
        return [dict(zip(lists, held, strict=True)) for held in zip_longest(*lists.values())]
    return [picture for picture in images if isinstance(picture, dict)] if isinstance(images, list) else []


def _leads_to_picture(address: str) -> bool:
    return bool(_ADDRESS.fullmatch(address)) and not _NO_PICTURE.search(address)


def _category(record: dict[str, Any]) -> str | None:
    """The path of the first category, from the broadest on."""
    for name in ("categories", "category", "main_category"):
        path = record.get(name)
        if isinstance(path, list) and path and isinstance(path[0], list):
            path = path[0]
        parts = [part for text in _texts(path) if (part := _plain(text))]
        if parts:
            return " > ".join(parts)
    return None


def _texts(value: object) -> list[str]:
    """A text, or the texts of a list; nothing where there are none."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _plain(value: object) -> str | None:
    if not isinstance(value, str) or _PAGE.search(value):
        return None
    return " ".join(html.unescape(_HALF.sub("", value)).split()) or None


def _price(value: object) -> str | None:
    text = _plain(str(value) if isinstance(value, float) or type(value) is int else value)
    return text if text and len(text) <= _PRICE and any(map(str.isdigit, text)) else None
