"""Embedding files of other people's making."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vlm2rec.diagnostics.space import READ_FLOATS, Rows, blocks
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError

_FORMATS = "give .npy (row number = item), .parquet (ids and vectors), or a folder of an embedding table"


@dataclass(frozen=True)
class Vectors:
    """Vectors as a file gives them; `ids` is None where a row's number is all that is known of it."""

    path: Path
    rows: Rows
    ids: list[str] | None


def read_vectors(path: Path, view: str) -> Vectors:
    """Read vectors, memory-mapped where the format allows it.

    `.npy` holds `(n, D)` floats and no ids; `.parquet` one column of lists of numbers and one of ids (item_id, user_id
    or id, or whatever the only other column is called); a folder is what `EmbeddingTable.save` wrote, of which the
    `view` is taken.

    Raises:
        InputError: the file cannot be read, its vectors are of several lengths or not finite, or an id is there twice.
    """
    if path.is_dir():
        table = EmbeddingTable.load(path)
        if view not in table.views:
            raise InputError(f"{path}: has no view {view}, only {', '.join(table.views)}; give another folder")
        found = Vectors(path, table[view], table.ids.tolist())
    elif not path.exists():
        raise InputError(f"{path}: no such file; {_FORMATS}")
    elif path.suffix == ".npy":
        found = Vectors(path, _npy(path), None)
    elif path.suffix == ".parquet":
        found = _parquet(path)
    else:
        raise InputError(f"{path}: of an unknown kind; {_FORMATS}")
    if 0 in found.rows.shape:
        raise InputError(f"{path}: is empty; give vectors")
    if found.ids is not None and len(set(found.ids)) < len(found.ids):
        twice = next(name for place, name in enumerate(found.ids) if name in found.ids[:place])
        raise InputError(f"{path}: id {twice!r} is there more than once; keep one vector each")
    wrong = list(_not_finite(found.rows))
    if wrong:
        first = f"row {wrong[0]}" if found.ids is None else repr(found.ids[wrong[0]])
        raise InputError(
            f"{path}: {len(wrong):,} vectors hold NaN or infinity, the first is that of {first}; encode again"
        )
    return found


def _npy(path: Path) -> Rows:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as .npy ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        raise InputError(f"{path}: holds {dtype} of shape {shape}; give floats of shape (items, width)")
    return np.asarray(array)  # a plain view of the map: small reads of a memmap cost more than the reading


def _parquet(path: Path) -> Vectors:
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path}: cannot be read as Parquet: {reason}") from None
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    others = [name for name in table.columns if name not in lists]
    ids = next(
        (name for name in ("item_id", "user_id", "id") if name in others), others[0] if len(others) == 1 else None
    )
    if len(lists) != 1 or ids is None:
        raise InputError(
            f"{path}: has the columns {', '.join(table.columns)}; give one of ids (item_id) and one of vectors (lists)"
        )
    if table[ids].null_count():
        raise InputError(f"{path}: column {ids} is empty in some rows; give every vector an id")
    column = table[lists[0]]
    column = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    widths = column.list.len().fill_null(0)
    if widths.n_unique() > 1:
        odd = int((widths != widths[0]).arg_max() or 0)
        raise InputError(
            f"{path}: vectors differ in length, {widths[0]} numbers in the first row and {widths[odd]} in row"
            f" {odd + 1}; give all the same"
        )
    try:
        values = column.explode().cast(pl.Float32).to_numpy()
    except pl.exceptions.PolarsError:
        raise InputError(f"{path}: column {lists[0]} holds {column.dtype}; give lists of numbers") from None
    width = int(widths[0]) if len(widths) else 0
    rows = values.reshape(len(widths), width) if width else np.zeros((len(widths), 0), np.float32)
    return Vectors(path, rows, table[ids].cast(pl.String).to_list())


def _not_finite(rows: Rows) -> Iterator[int]:
    """Numbers of the rows that hold a NaN or an infinity."""
    for some in blocks(rows.shape[0], rows.shape[1], READ_FLOATS):
        wrong = ~np.isfinite(np.asarray(rows[some], dtype=np.float32)).all(axis=1)
        yield from (int(some.start + row) for row in np.flatnonzero(wrong))
