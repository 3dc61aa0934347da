"""What a catalogue says of its items, as "attribute is value" clauses, and views of an item that lose some of these."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError

Clause = tuple[str, str]
"""An attribute and its value."""

_VALUE = 100  # characters kept of a value; a title is kept whole, so that no two become one
_UNTITLED: tuple[Clause, ...] = (("title", "(no title)"),)
_NOT_SAID = {"item_id", "image", "asin"}
_NOT_SAID_ENDINGS = ("_id", "url")


def attribute_columns(items: pl.DataFrame, named: Sequence[str] | None = None, drawn: bool = False) -> list[str]:
    """The columns of an items table that say something of an item: those `named`, or all that hold words or numbers.

    Ids, links, pictures and nested records say nothing. Of a `drawn` shop only the title is taken: its other columns
    are the answer key.

    Raises:
        InputError: a named column is not there.
    """
    if named is not None:
        missing = [column for column in named if column not in items.columns]
        if missing:
            raise InputError(
                f"method.attributes names {missing[0]!r}, which the items do not have;"
                f" known: {', '.join(items.columns)}"
            )
        return list(named)
    if drawn:
        return ["title"]
    return [
        column
        for column, dtype in items.schema.items()
        if column.lower() not in _NOT_SAID and not column.lower().endswith(_NOT_SAID_ENDINGS) and _says(dtype)
    ]


def item_clauses(dataset: Dataset, columns: Sequence[str]) -> list[tuple[Clause, ...]]:
    """Each item's clauses in the order of `columns`; what an item lacks is left out, one without anything is untitled.

    Raises:
        InputError: fewer than two items differ in what is said of them.
    """
    clauses = []
    for row in dataset.items[list(columns)].iter_rows():
        said = [(name, _words(value)) for name, value in zip(columns, row, strict=True)]
        cut = [(name.replace("_", " "), words if name == "title" else words[:_VALUE]) for name, words in said if words]
        clauses.append(tuple(cut) or _UNTITLED)
    if len(set(clauses)) < 2:
        raise InputError(
            f"{dataset.path}: nothing tells its items apart ({', '.join(columns)}), so there is nothing to contrast;"
            " prepare it with titles or other attributes"
        )
    return clauses


def header(name: str) -> str:
    """The line before an item's clauses; `name` is that of the data set, which stands for the domain."""
    return f"An item of the catalogue {name.replace('_', ' ')} and its attributes:\n"


def sentence(clauses: Sequence[Clause]) -> str:
    """Clauses as text."""
    return ";".join(f"{name} is {value}" for name, value in clauses)


class Pairs:
    """Two views of each of a batch of items; batch k is a function of (seed, k).

    Items of which the very same is said count once, so no batch asks a model to tell them apart.
    """

    def __init__(self, items: Sequence[tuple[Clause, ...]], batch_size: int, drop: float, seed: int) -> None:
        self._items = list(dict.fromkeys(items))
        self._size = min(batch_size, len(self._items))
        self._drop = drop
        self._seed = seed

    def __len__(self) -> int:
        """Items that differ."""
        return len(self._items)

    def batch(self, step: int) -> tuple[list[list[Clause]], list[list[Clause]]]:
        """Both views of the items of a step, row by row; an epoch's rest that fills no batch waits for the next."""
        epoch, place = divmod(step, len(self) // self._size)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self))
        rows = order[place * self._size : (place + 1) * self._size]
        return two_views([self._items[row] for row in rows], self._drop, np.random.default_rng([self._seed, step, 1]))


def two_views(
    items: Sequence[tuple[Clause, ...]], drop: float, rng: np.random.Generator
) -> tuple[list[list[Clause]], list[list[Clause]]]:
    """Two views of every item, each shuffled and without the share `drop` of it.

    Items whose views would say the same lose nothing: different items must not be asked to differ where they do not.
    """
    views = [[_view(clauses, drop, rng) for clauses in items] for _ in range(2)]
    whole: set[int] = set()
    while found := _alike(views) - whole:
        for row in sorted(found):
            for view in views:
                view[row] = _view(items[row], 0.0, rng)
        whole |= found
    return views[0], views[1]


def _view(clauses: Sequence[Clause], drop: float, rng: np.random.Generator) -> list[Clause]:
    """Clauses in random order, less the last int(drop n); where these are too few to lose one, words of the title."""
    order = rng.permutation(len(clauses))
    lost = int(drop * len(clauses))
    kept = [clauses[k] for k in order[: len(order) - lost]]
    if lost:
        return kept
    return [(name, _thinned(value, drop, rng) if name == "title" else value) for name, value in kept]


def _thinned(title: str, drop: float, rng: np.random.Generator) -> str:
    """A title without int(drop n) of its n words, the rest in order; one is always left, since drop < 1."""
    words = title.split()
    kept = np.sort(rng.permutation(len(words))[: len(words) - int(drop * len(words))])
    return " ".join(words[k] for k in kept)


def _alike(views: Sequence[Sequence[Sequence[Clause]]]) -> set[int]:
    """Rows that say, in either view and in any order, what another row says."""
    rows: dict[tuple[Clause, ...], set[int]] = defaultdict(set)
    for view in views:
        for row, clauses in enumerate(view):
            rows[tuple(sorted(clauses))].add(row)
    return {row for some in rows.values() if len(some) > 1 for row in some}


def _says(dtype: Any) -> bool:
    return _says(dtype.inner) if isinstance(dtype, pl.List) else dtype == pl.String or dtype.is_numeric()


def _words(value: object) -> str:
    """A value as one line; lists, however nested, with commas; "" where there is none."""
    if isinstance(value, list):
        return ", ".join(words for words in map(_words, value) if words)
    if value is None:
        return ""
    return " ".join((f"{value:.10g}" if isinstance(value, float) else str(value)).split())
