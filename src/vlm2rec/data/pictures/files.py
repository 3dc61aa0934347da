"""Where the pictures of a source come from: a folder, an archive read in place, or a function that draws them.

An archive is never unpacked. What it holds is listed once, and a picture is read where it lies.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from vlm2rec.data.pictures.archives import LARGEST, THREADS, Tar, Zip
from vlm2rec.data.pictures.names import ENDINGS, Named, candidates, endings_of, text
from vlm2rec.errors import InputError

Draw = Callable[[str], Image.Image]

_PACKED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
_AT_ONCE = 1 << 16
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Album(Protocol):
    """Pictures by the name that a source gives them.

    A name is a path with "/" between its parts, as the items table has it. Upper and lower case differ. A name without
    a picture's ending is also that of the file with an ending (`B0001` of `B0001.jpg`; of several endings the first in
    `ENDINGS`). A name that is no path may be one inside the only folder that holds all pictures, or the base name of
    files of one folder. No name leads out of the folder or the archive.
    """

    @property
    def ambiguous(self) -> Mapping[str, Sequence[str]]:
        """Names, of those asked for, that files of several folders have -> those files; they count as missing."""
        ...

    @property
    def threads(self) -> int:
        """How many threads may read at a time."""
        ...

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        """Which names are those of pictures, `(n,)`; whether they can be decoded shows later."""
        ...

    def read(self, name: str) -> bytes | Image.Image | None:
        """The content of the file or what is drawn; None where there is none, or it is damaged or too large."""
        ...


def open_pictures(pictures: Path | str | Draw | None) -> Album:
    """Open a folder (one that is not there holds nothing), a .zip, a .tar, or a function that draws by name.

    A packed .tar.gz or the like is refused: to read one picture of it, all before it would have to be unpacked.

    Raises:
        InputError: it is none of these, or an archive that is missing, damaged, encrypted or packed in a rare way.
    """
    if pictures is None:
        return _Nothing()
    if not isinstance(pictures, Path | str):
        return _Drawn(pictures)
    pictures = Path(pictures)
    name = pictures.name.lower()
    if pictures.is_dir():
        return _Folder(pictures)
    if name.endswith(_PACKED):
        raise InputError(f"{pictures}: pictures in it cannot be read one by one; unpack it and give the folder")
    if name.endswith(".zip"):
        return Zip(pictures)
    if name.endswith(".tar"):
        return Tar(pictures)
    if pictures.exists():
        raise InputError(f"{pictures}: is no folder of pictures; give a folder, a .zip or a .tar")
    return _Nothing()


class _Nothing:
    threads = 1
    ambiguous: Mapping[str, Sequence[str]] = MappingProxyType({})

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        return np.zeros(len(names), bool)

    def read(self, name: str) -> None:
        return None


class _Drawn:
    threads = 1  # whoever wrote the function need not think of threads
    ambiguous: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        return (names.cast(pl.String) != "").fill_null(False).to_numpy()

    def read(self, name: str) -> Image.Image:
        return self._draw(name)


class _Folder(Named):
    threads = THREADS

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._listed: set[str] = set()
        self._endings: Sequence[str] = ()  # that files in the folders listed so far have
        self._whole: pl.Series | None = None

    def read(self, name: str) -> bytes | None:
        path, found = self._find(name)
        if found is None and (other := self._not_beside(name)) is not None:
            path, found = self._find(other)
        if found is None or found.st_size > LARGEST:
            return None
        try:
            with open(path, "rb") as file:  # noqa: PTH123 (a Path would cost as much as the reading)
                return file.read(LARGEST)
        except OSError:
            return None

    def _find(self, name: str) -> tuple[str, os.stat_result | None]:
        path = ""
        endings = self._endings if f"{name.rpartition('/')[0]}/".lstrip("/") in self._listed else ENDINGS
        for candidate in candidates(name, endings):
            path = f"{self._folder}/{candidate}"
            try:
                found = os.stat(path)  # noqa: PTH116
            except (OSError, ValueError):  # ValueError: characters that no file name can have
                continue
            if stat.S_ISREG(found.st_mode):
                return path, found
        return path, None

    def _beside(self, names: pl.Series) -> pl.Series:
        """List the folders that names lead to, each once, which takes a fraction of asking for every file."""
        parents = names.str.replace(r"[^/]*$", "").drop_nulls().unique()
        listed = [part for parent in parents for part in self._list(parent)]
        files = pl.concat([pl.Series([], dtype=pl.String), *listed])
        self._endings = [ending for ending in ENDINGS if ending in {*self._endings, *endings_of(files)}]
        self._listed.update(parents)
        return files

    def _all(self) -> pl.Series:
        if self._whole is None:
            seen: set[tuple[int, int]] = set()
            parts = [part for folder in self._folders("", seen) for part in self._list(folder)]
            self._whole = pl.concat([pl.Series([], dtype=pl.String), *parts])
        return self._whole

    def _folders(self, parent: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        """This folder and all in it that are not hidden; links are followed, and no folder is named twice."""
        try:
            own = os.stat(self._folder / parent)  # noqa: PTH116
            if (own.st_dev, own.st_ino) in seen:
                return
            seen.add((own.st_dev, own.st_ino))
            with os.scandir(self._folder / parent) as entries:
                inner = sorted(entry.name for entry in entries if entry.name[0] != "." and _is(entry.is_dir))
        except OSError:  # not there, or it may not be listed, which `_list` says
            inner = []
        yield parent
        for name in inner:
            yield from self._folders(f"{parent}{name}/", seen)

    def _list(self, parent: str) -> Iterator[pl.Series]:
        """The files in a folder as paths, some at a time: ten million names are too many for Python's lists."""
        try:
            with os.scandir(self._folder / parent) as entries:
                files = (f"{parent}{entry.name}" for entry in entries if _is(entry.is_file))
                while part := list(islice(files, _AT_ONCE)):
                    yield text(part)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return
            raise InputError(
                f"{self._folder / parent}: cannot be listed ({error.strerror}); check its rights"
            ) from None


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False
