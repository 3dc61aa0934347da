"""Which file a source means by the name of a picture: for one name, and in the same way for ten million."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from threading import Lock

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
    """Which plain names are paths of these files: `candidates` of many names."""
    bare = files.filter(files.str.contains(_ENDING)).str.replace(_ENDING, "")
    found = names.is_in(files.implode()) | (names.is_in(bare.implode()) & ~names.str.contains(_ENDING))
    return found.fill_null(False).to_numpy()


def elsewhere(names: pl.Series, files: pl.Series) -> pl.DataFrame:
    """The files that plain names mean which are no paths of files, one row a name and file that it may mean.

    The rule of folders and of archives: a name is a path inside the only folder that holds all pictures or, failing
    that, the base name of a file in whatever folder. A name that files of several folders have is no name of any: it
    has a row for each of them. Hidden files and folders are never found so.

    Columns: name, file, and files (how many it may mean; 1 where it is found).
    """
    files = files.filter(~files.str.contains(r"(^|/)\."))
    inner, top = files.filter(files.str.contains("/", literal=True)), _only_top(files)
    within = _meant(names, inner, inner.str.strip_prefix(top)) if top else _meant(names, inner[:0], inner[:0])
    within = within.sort("rank").unique("name", keep="first", maintain_order=True)
    rest = names.filter(~names.is_in(within["name"].implode()))
    based = _meant(rest, inner, inner.str.replace("^.*/", ""))
    based = based.with_columns(folder=pl.col("file").str.replace("/[^/]*$", "")).with_columns(
        folders=pl.col("folder").n_unique().over("name")
    )
    found = based.filter(pl.col("folders") == 1).sort("rank").unique("name", keep="first", maintain_order=True)
    return pl.concat(
        [
            pl.concat([within, found], how="diagonal").select("name", "file", files=pl.lit(1, pl.UInt32)),
            based.filter(pl.col("folders") > 1)
            .select("name", "file", files=pl.len().over("name"))
            .sort("name", "file"),
        ]
    )


def _only_top(files: pl.Series) -> str:
    """The folder, with its "/", that holds all files that are called as pictures are (or, without any, all); or ""."""
    pictures = files.filter(files.str.contains(_ENDING))
    tops = (pictures if len(pictures) else files).str.extract("^([^/]*/)").unique()
    return str(tops[0]) if len(tops) == 1 and tops[0] is not None else ""


def _meant(names: pl.Series, files: pl.Series, keys: pl.Series) -> pl.DataFrame:
    """The files that names mean if files are called `keys`: columns name, file, rank (the lowest comes first)."""
    asked = names.to_frame("name")
    bare = asked.filter(~pl.col("name").str.contains(_ENDING))
    called = pl.DataFrame({"name": keys, "file": files}).filter(pl.col("name").is_in(names.implode()))
    endings = keys.str.extract(_ENDING)
    ended = pl.DataFrame({"name": keys.str.replace(_ENDING, ""), "file": files, "ending": endings}).filter(
        pl.col("ending").is_not_null() & pl.col("name").is_in(bare["name"].implode())
    )
    order = pl.DataFrame({"ending": ENDINGS, "rank": range(len(ENDINGS))}, schema_overrides={"rank": pl.Int64})
    ended = ended.join(order, on="ending").select("name", "file", "rank")
    return pl.concat([called.with_columns(rank=pl.lit(-1, pl.Int64)), ended])


def text(names: list[str]) -> pl.Series:
    """A column of file names; those that are no Unicode can be in no items table and are left out."""
    try:
        return pl.Series(names, dtype=pl.String)
    except UnicodeEncodeError:
        return pl.Series([name for name in names if name.isascii() or _is_unicode(name)], dtype=pl.String)


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


class Named:
    """Files by the names that a source gives them; whoever inherits says which files there are.

    Attributes:
        ambiguous: names, of those asked for, that files of several folders have -> those files.
    """

    def __init__(self) -> None:
        self.ambiguous: dict[str, list[str]] = {}
        self._elsewhere: dict[str, str] = {}  # names that are no paths -> the file that each means
        self._looking = Lock()

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        """Which names are those of files, `(n,)`. All files are listed only if a name is no path of one."""
        plain = all_inside(names)
        found = among(plain, self._beside(plain))
        rest = plain.filter(~pl.Series(found)).drop_nulls().unique()
        if len(rest):
            self._look(rest)
            found |= (
                plain.is_in(pl.Series(list(self._elsewhere), dtype=pl.String).implode()).fill_null(False).to_numpy()
            )
        return found

    def _not_beside(self, name: str) -> str | None:
        """The file that a name means which is no path of one; None: there is none."""
        plain = inside(name)
        if plain is None:
            return None
        if plain not in self._elsewhere and plain not in self.ambiguous:
            self._look(pl.Series([plain], dtype=pl.String))
        return self._elsewhere.get(plain)

    def _look(self, names: pl.Series) -> None:
        with self._looking:  # files are listed once, whichever thread asks first
            found = elsewhere(names, self._all())
        self._elsewhere.update(found.filter(pl.col("files") == 1).select("name", "file").iter_rows())
        for (name,), files in found.filter(pl.col("files") > 1).group_by("name", maintain_order=True):
            self.ambiguous[str(name)] = files["file"].to_list()

    @abstractmethod
    def _beside(self, names: pl.Series) -> pl.Series:
        """The files in the folders that plain names lead to, or more; as paths."""

    @abstractmethod
    def _all(self) -> pl.Series:
        """All files, as paths."""
