"""Which file a source means by the name of a picture: for one name, and in the same way for ten million."""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

_KINDS = ("avif", "bmp", "gif", "jfif", "jpeg", "jpg", "png", "tif", "tiff", "webp")
ENDINGS = tuple(sorted(f".{kind}" for lower in _KINDS for kind in (lower, lower.upper())))
"""What the file name of a picture may end in where a source's name has no such ending, in the order of trying."""

_ENDING = rf"({'|'.join(map(re.escape, ENDINGS))})$"
# A part of a path that is empty, "." or "..", or a name with a NUL: what `inside` has to look at.
_ODD = r"(^|/)\.{0,2}(/|$)|\x00"


def inside(name: str) -> str | None:
    """A name as a plain relative path; None where it leads nowhere or out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        return None
    return "/".join(parts)


def candidates(name: str, endings: Sequence[str] = ENDINGS) -> Sequence[str]:
    """The files that a name may mean, in the order in which they are looked for, if files have only these endings."""
    plain = inside(name)
    if plain is None:
        return ()
    return (plain,) if plain.endswith(ENDINGS) else (plain, *(plain + ending for ending in endings))


def endings_of(files: pl.Series) -> Sequence[str]:
    """Which of `ENDINGS` these files have, in the same order: fewer to try."""
    found = set(files.str.extract(_ENDING).unique())
    return tuple(ending for ending in ENDINGS if ending in found)


def all_inside(names: pl.Series) -> pl.Series:
    """`inside` of many names; only the few odd ones go through Python."""
    names = names.cast(pl.String)
    odd = names.str.contains(_ODD).fill_null(False)
    if not odd.any():
        return names
    plain = pl.Series([inside(name) for name in names.filter(odd)], dtype=pl.String)
    return names.scatter(odd.arg_true(), plain)


def among(names: pl.Series, files: pl.Series) -> NDArray[np.bool_]:
    """Which plain names mean one of these files: `_candidates` of many names."""
    bare = files.filter(files.str.contains(_ENDING)).str.replace(_ENDING, "")
    found = names.is_in(files.implode()) | (names.is_in(bare.implode()) & ~names.str.contains(_ENDING))
    return found.fill_null(False).to_numpy()


def text(names: list[str]) -> pl.Series:
    """A column of file names; those that are no Unicode can be in no items table and are left out."""
    try:
        return pl.Series(names, dtype=pl.String)
    except UnicodeEncodeError:
        return pl.Series([name for name in names if name.isascii() or _is_unicode(name)], dtype=pl.String)


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
