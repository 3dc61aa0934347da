"""Embedding files of other people's making."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vlm2rec.data.preparing.tables import ids_of
from vlm2rec.diagnostics.space import READ_FLOATS, Rows, blocks
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError

_FORMATS = "give .npy (row number = item), .parquet (ids and vectors), or a folder of an embedding table"
_IDS = ("item_id", "user_id", "id")


@dataclass(frozen=True)
class Vectors:
    """Vectors as a file gives them; `ids` is None where a row's number is all that is known of it."""

    path: Path
    rows: Rows
    ids: list[str] | None


def read_vectors(path: Path | str, view: str) -> Vectors:
    """Read vectors, memory-mapped where the format allows it.

    `.npy` holds `(n, D)` floats and no ids; `.parquet` one column of lists of numbers and one of ids (item_id, user_id
    or id, or whatever the only other column is called); a folder is what `EmbeddingTable.save` wrote, of which the
    `view` is taken.

    Raises:
        InputError: the file cannot be read, its vectors are of several lengths, not finite or all zero, or an id is
            there twice.
    """
    path = Path(path)
    if path.is_dir():
        found = _table(path, view)
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
        twice = Counter(found.ids).most_common(1)[0][0]
        raise InputError(f"{path}: id {twice!r} is there more than once; keep one vector each")
    _check_numbers(found)
    return found


def _table(path: Path, view: str) -> Vectors:
    if not (path / "ids.json").exists():
        raise InputError(f"{path}: is a folder, but no embedding table (ids.json is missing); {_FORMATS}")
    table = EmbeddingTable.load(path)
    if view not in table.views:
        raise InputError(f"{path}: has no view {view}, only {', '.join(table.views)}; give another folder")
    return Vectors(path, table[view], table.ids.tolist())


def _npy(path: Path) -> Rows:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: cannot be read as .npy ({reason}); write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays; write the one that is meant with numpy.save")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{path}: holds {array.dtype} of shape {array.shape}; give floats of shape (rows, width)")
    return np.asarray(array)  # a plain view of the map: small reads of a memmap cost more than the reading


def _parquet(path: Path) -> Vectors:
    try:
        table = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path}: cannot be read as Parquet ({reason}); write it anew") from None
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    others = [name for name in table.columns if name not in lists]
    ids = next((name for name in _IDS if name in others), others[0] if len(others) == 1 else None)
    if len(lists) != 1 or ids is None:
        raise InputError(
            f"{path}: has the columns {', '.join(table.columns) or 'none'}; give one of ids (item_id) and one of"
            " vectors (lists)"
        )
    return Vectors(path, _lists(table[lists[0]], path), ids_of(table, ids, str(path)).to_list())


def _lists(column: pl.Series, path: Path) -> Rows:
    """Lists of numbers as an array `(n, D)` float32. Raises InputError where they are of several lengths."""
    dtype = column.dtype
    assert isinstance(dtype, pl.List | pl.Array)
    if not dtype.inner.is_numeric():
        raise InputError(f"{path}: column {column.name} holds {dtype}; give lists of numbers")
    column = column.arr.to_list() if isinstance(dtype, pl.Array) else column
    widths = column.list.len().fill_null(0)
    if widths.n_unique() > 1:
        odd = int((widths != widths[0]).arg_max() or 0)
        raise InputError(
            f"{path}: vectors differ in length, {widths[0]} numbers in the first row and {widths[odd]} in row"
            f" {odd + 1}; give all the same"
        )
    width = int(widths[0]) if len(widths) else 0
    if width == 0:
        return np.zeros((len(widths), 0), np.float32)
    return column.explode().cast(pl.Float32).to_numpy().reshape(len(widths), width)


def _check_numbers(found: Vectors) -> None:
    """Raises InputError where a number is not finite, or all are zero."""
    wrong: list[int] = []
    zero = True
    count, width = found.rows.shape
    for some in blocks(count, width, READ_FLOATS):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            numbers = np.asarray(found.rows[some], dtype=np.float32)
        wrong += (some.start + np.flatnonzero(~np.isfinite(numbers).all(axis=1))).tolist()
        zero = zero and not numbers.any()
    if wrong:
        first = f"row {wrong[0]}, counted from 0" if found.ids is None else repr(found.ids[wrong[0]])
        raise InputError(
            f"{found.path}: {len(wrong):,} vectors hold NaN or infinity (as float32), the first is that of {first};"
            " give finite ones"
        )
    if zero:
        raise InputError(f"{found.path}: all vectors are zero, so there is nothing to diagnose; give others")
