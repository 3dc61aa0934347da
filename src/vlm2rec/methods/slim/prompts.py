"""What SLIM's teacher and student are asked, and the three steps of a rationale (WWW 2024, Wang et al.).

A rationale goes from the shopper's tastes over categories and brands to concrete products, one numbered line a step.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.preparing.tables import clean_title
from vlm2rec.data.splits import Split
from vlm2rec.prompts import Picture, Segment, Text, Title
from vlm2rec.seqrec.items import Phase

STEPS = ("Tastes", "Categories and brands", "Products")
_HEADINGS = tuple(
    re.compile(rf"^[^\w\n]*(?:step\W*)?(?:\d\W+)?{name}\b[^\w\n]*", re.IGNORECASE | re.MULTILINE)
    for name in (r"tastes?", r"categor(?:y|ies)(?:\s+(?:and|or|&)\s+brands?)?", r"products?")
)
# Under which names data sets keep the two; the first that is there counts.
_CATEGORY = ("category", "categories", "genres", "genre", "main_category")
_BRAND = ("brand", "store")

_TASK = (
    "Reason from these purchases to what the shopper will want next, in three steps. Keep each step to one or two short"
    " sentences, and answer in exactly these three lines:\n"
    "1. Tastes: what the purchases say of the shopper's preferences.\n"
    "2. Categories and brands: those that fit the tastes.\n"
    "3. Products: a few concrete products of them, by name.\n"
)
_SHORT_TASK = "Tastes, then categories and brands, then products for this shopper:"


class Shelf:
    """All that is said and shown of the items: a `Catalogue` whose titles go on behind the last item.

    Title i is item i's title, title i + N its categories, title i + 2 N its brand. So prompts hold all three as plain
    words, each cut by itself; "" where there is none.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.size = len(dataset.titles)
        self.ids = dataset.item_ids
        self.names = dataset.titles
        self.categories = _column(dataset.items, _CATEGORY)
        self.brands = _column(dataset.items, _BRAND)
        self.titles: Sequence[str] = [*self.names, *self.categories, *self.brands]
        self.pictures = dataset.pictures

    def text(self, item: int) -> str:
        """Title; categories; brand, as far as they are known."""
        said = [self.names[item] or "(no title)", self.categories[item], self.brands[item]]
        return "; ".join(part for part in said if part)

    def segments(self, item: int, pictures: bool) -> list[Segment]:
        """The item in a prompt: title, categories and brand in brackets, and the picture if wanted."""
        places = [
            item + column * self.size
            for column, words in enumerate((self.categories, self.brands), start=1)
            if words[item]
        ]
        found: list[Segment] = [Title(item)]
        for number, place in enumerate(places):
            found += [Text("; " if number else " ("), Title(place)]
        if places:
            found.append(Text(")"))
        return [*found, Text(" "), Picture(item)] if pictures else found


@dataclass(frozen=True)
class Question:
    """A prompt about a history, oldest first: in words, by which its answer is known, and as a backbone reads it."""

    history: tuple[int, ...]
    text: str
    segments: tuple[Segment, ...]


def teacher_question(shelf: Shelf, history: Sequence[int], pictures: bool) -> Question:
    """The full instruction, which any chat model can follow."""
    return _question(shelf, history, pictures, _TASK)


def student_question(shelf: Shelf, history: Sequence[int], pictures: bool) -> Question:
    """The short prompt of the student, who learns from answers what is wanted."""
    return _question(shelf, history, pictures, _SHORT_TASK)


def history_at(split: Split, user: int, phase: Phase) -> list[int]:
    """The history that a rationale of `phase` is about, oldest first, at most `max_history` items.

    In training it is what precedes the last training event; empty where there is one alone.
    """
    if phase == "train":
        return [int(item) for item in split.train[user][:-1][-split.max_history :]]
    return [int(item) for item in split.history(user, phase)]


def rationale(tastes: str, categories: str, products: str) -> str:
    """The three steps in the layout that the teacher is asked for."""
    parts = zip(STEPS, (tastes, categories, products), strict=True)
    return "\n".join(f"{number}. {name}: {words}" for number, (name, words) in enumerate(parts, start=1))


def steps(answer: str) -> tuple[str, str, str] | None:
    """What an answer says at each step, in this order; None where a step is missing or says nothing.

    A step opens a line; numbers and Markdown around its name do no harm.
    """
    found, place = [], 0
    for heading in _HEADINGS:
        match = heading.search(answer, place)
        if match is None:
            return None
        found.append(match.span())
        place = match.end()
    ends = [start for start, _ in found[1:]] + [len(answer)]
    said = [answer[start:end].strip() for (_, start), end in zip(found, ends, strict=True)]
    if not all(re.search(r"\w", words) for words in said):
        return None
    return said[0], said[1], said[2]


def _question(shelf: Shelf, history: Sequence[int], pictures: bool, task: str) -> Question:
    segments: list[Segment] = [Text("A shopper bought these products, oldest first:\n")]
    for number, item in enumerate(history, start=1):
        segments += [Text(f"{number}. "), *shelf.segments(item, pictures), Text("\n")]
    segments.append(Text(task))
    words = "".join(_words(shelf, segment) for segment in segments)
    return Question(tuple(history), words, tuple(segments))


def _words(shelf: Shelf, segment: Segment) -> str:
    match segment:
        case Text(text):
            return text
        case Title(item):
            return shelf.titles[item] or "(no title)"
        case Picture(item):
            return f"(picture of item {shelf.ids[item]})"


def _column(items: pl.DataFrame, names: Sequence[str]) -> list[str]:
    found = next((name for name in names if name in items.columns), None)
    return [""] * items.height if found is None else [", ".join(_flat(value)) for value in items[found].to_list()]


def _flat(value: Any) -> list[str]:
    """The words of a cell, which may be a list, or a list of lists as in Amazon's category paths; each once."""
    if isinstance(value, list):
        return list(dict.fromkeys(word for part in value for word in _flat(part)))
    text = "" if value is None else clean_title(str(value))
    return [text] if text else []
