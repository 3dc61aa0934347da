"""Vectors of a run as the page needs them: unit, items in the order of the data set, users in blocks."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm2rec.comparison import Method
from vlm2rec.data.dataset import Dataset
from vlm2rec.embeddings import EmbeddingTable, Vectors, one_sided
from vlm2rec.report.words import display
from vlm2rec.runs import Run

BLOCK = 256
"""Users whose scores are in memory at a time."""
SIDES = ("text", "image")
_PREFERRED = ("vanilla", "sft", "vlm2rec")


class Space:
    """The vectors of a method's run of the lowest seed."""

    def __init__(self, method: Method, dataset: Dataset) -> None:
        """Open the tables of items and histories; nothing is read yet. Raises InputError where one is damaged."""
        self.label = display(method.label)
        self.kind = method.kind
        self.name = method.label
        self._items, self._histories = (EmbeddingTable.load(method.runs[0].path / name) for name in _TABLES)
        column = {item: index for index, item in enumerate(dataset.item_ids)}
        known = [(row, column[str(item)]) for row, item in enumerate(self._items.ids) if str(item) in column]
        self._rows, self._columns = np.array(known, dtype=np.int64).reshape(-1, 2).T
        self._n_items = len(column)

    @property
    def users(self) -> set[str]:
        """Ids of the users whose histories were embedded."""
        return set(map(str, self._histories.ids))

    @property
    def items(self) -> NDArray[np.int64]:
        """Item indices that have vectors, ascending."""
        return np.sort(self._columns)

    @property
    def two_sided(self) -> bool:
        """Whether items and histories have both a text and an image vector."""
        return all(side in table.views for side in SIDES for table in (self._items, self._histories))

    def vectors(self, view: str, items: Sequence[int] | NDArray[np.int64]) -> Vectors:
        """Unit vectors `(n, D)` of some of `items`."""
        row = np.zeros(self._n_items, dtype=np.int64)
        row[self._columns] = self._rows
        return _unit(self._items[view][row[items]])

    def scores(self, view: str, users: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Cosines `(up to BLOCK, N)` of the users' histories of one view and the fused items, block by block.

        An item that has no vector gets -inf.
        """
        items = self._items.unit("fused")[self._rows]
        rows = self._histories.rows(users)
        for start in range(0, len(rows), BLOCK):
            queries = _unit(one_sided(self._histories[view][rows[start : start + BLOCK]], view, items.shape[1]))
            out = np.full((len(queries), self._n_items), -np.inf, dtype=np.float32)
            out[:, self._columns] = queries @ items.T
            yield out


_TABLES = ("items", "histories")


def spaces(methods: Sequence[Method], dataset: Dataset) -> list[Space]:
    """Those of all methods that have vectors (counting ones have none). Raises InputError where some are gone."""
    return [Space(method, dataset) for method in methods if _has_vectors(method.runs[0])]


def _has_vectors(run: Run) -> bool:
    """Whether a run left vectors: its figures of dropout tell so even where the files are gone."""
    return "dropout" in run.results() or any((run.path / name).is_dir() for name in _TABLES)


def chosen(candidates: Sequence[Space], count: int) -> list[Space]:
    """At most `count`: one each of vanilla, SFT and VLM2Rec before any other; in the order given."""
    firsts = [next((space for space in candidates if space.kind == kind), None) for kind in _PREFERRED]
    order = [*(space for space in firsts if space is not None), *candidates]
    kept = list(dict.fromkeys(order))[:count]
    return [space for space in candidates if space in kept]


def drawn(spaces: Sequence[Space], dataset: Dataset) -> list[str]:
    """Users whom all spaces have, in an order drawn by lot with a fixed seed."""
    common = set.intersection(*(space.users for space in spaces)) & set(dataset.user_ids)
    return [str(user) for user in np.random.default_rng(0).permutation(np.array(sorted(common)))]


def _unit(vectors: NDArray[np.float32]) -> Vectors:
    return EmbeddingTable([str(row) for row in range(len(vectors))], {"one": np.asarray(vectors)}).unit("one")
