"""The pictures that look alike on one page, to judge with one's own eyes."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from PIL import Image

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.pictures.fitting import Pixels
from vlm2rec.data.pictures.lookalikes import ALIKE, DISTANCE, MANY, PLAIN, SAME, TINY, LookAlikes
from vlm2rec.errors import InputError

SHOWN = 200
"""Groups on a page, the largest first; the tables have them all."""
PICTURES = 12
"""Pictures of a group on a page."""
_SIDE = 112  # pixels of the longer side on the page


@dataclass(frozen=True)
class _Card:
    """A picture (a data URI, or "" for none), its title, and what there is to say of it."""

    picture: str
    title: str
    note: str


@dataclass(frozen=True)
class _Group:
    """One row of the page; `more`: how many further items it has."""

    name: str
    cards: list[_Card]
    more: int


def write_sheet(report: LookAlikes, dataset: Dataset, path: Path | str) -> Path:
    """Write placeholders and groups as one HTML page that needs no other file, and return its path.

    Raises InputError if it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    path = Path(path)
    environment = Environment(
        loader=PackageLoader("vlm2rec.data.pictures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = report.placeholders["group"].drop_nulls().unique()
    groups = report.groups.filter(~pl.col("group").is_in(known.implode()))
    page = environment.get_template("lookalikes.html").render(
        name=dataset.name,
        lines=report.lines(),
        placeholders=_placeholders(report.placeholders, dataset),
        groups=_groups(groups, dataset),
        left_out=max(0, groups["group"].n_unique() - SHOWN),
        thresholds={"distance": DISTANCE, "alike": ALIKE, "same": SAME, "many": MANY, "tiny": TINY, "plain": PLAIN},
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another place") from None
    return path


def _placeholders(table: pl.DataFrame, dataset: Dataset) -> list[_Group]:
    made = []
    for (why, _), own in table.group_by("why", "group", maintain_order=True):
        cards = [_card(dataset, row, title, "") for row, title in own.select("row", "title").head(PICTURES).iter_rows()]
        made.append(_Group(f"{why}: {own.height:,}", cards, own.height - len(cards)))
    return made


def _groups(table: pl.DataFrame, dataset: Dataset) -> list[_Group]:
    made = []
    for own in table.partition_by("group", maintain_order=True)[:SHOWN]:
        shown = own.head(PICTURES).select("row", "title", "distance", "alike", "kind")
        cards = [
            _card(dataset, row, title, "same file" if kind == "exact" else f"{distance} bits, {alike:.3f}")
            for row, title, distance, alike, kind in shown.iter_rows()
        ]
        made.append(_Group(f"{own.height:,} items", cards, own.height - len(cards)))
    return made


def _card(dataset: Dataset, row: int, title: str, note: str) -> _Card:
    return _Card(_uri(dataset.pictures[row]), title or dataset.item_ids[row], note)


def _uri(pixels: Pixels | None) -> str:
    if pixels is None:
        return ""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
