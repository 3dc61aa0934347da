"""Where the pictures of a source come from: a folder, an archive read in place, or a function that draws them.

An archive is never unpacked. What it holds is listed once, and a picture is read where it lies.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from vlm2rec.data.pictures.archives import LARGEST, THREADS, Tar, Zip
from vlm2rec.data.pictures.names import ENDINGS, all_inside, among, candidates, endings_of, text
from vlm2rec.errors import InputError

Draw = Callable[[str], Image.Image]

_PACKED = (".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
_AT_ONCE = 1 << 16
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Album(Protocol):
    """Pictures by the name that a source gives them.

    A name is a path with "/" between its parts, as the items table has it. Upper and lower case differ. A name without
    a picture's ending is also that of the file with an ending (`B0001` of `B0001.jpg`; of several endings the first in
    `ENDINGS`). No name leads out of the folder or the archive.
    """

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

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        return np.zeros(len(names), bool)

    def read(self, name: str) -> None:
        return None


class _Drawn:
    threads = 1  # whoever wrote the function need not think of threads

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        return (names.cast(pl.String) != "").fill_null(False).to_numpy()

    def read(self, name: str) -> Image.Image:
        return self._draw(name)


class _Folder:
    threads = THREADS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: set[str] = set()
        self._endings: Sequence[str] = ()  # that files in the folders listed so far have

    def has(self, names: pl.Series) -> NDArray[np.bool_]:
        """List the folders that names lead to, each once, which takes a fraction of asking for every file."""
        plain = all_inside(names)
        parents = plain.str.replace(r"[^/]*$", "").drop_nulls().unique()
        listed = [part for parent in parents for part in self._list(parent)]
        files = pl.concat([pl.Series([], dtype=pl.String), *listed])
        self._endings = [ending for ending in ENDINGS if ending in {*self._endings, *endings_of(files)}]
        self._listed.update(parents)
        return among(plain, files)

    def read(self, name: str) -> bytes | None:
        path, found = self._find(name)
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

    def _list(self, parent: str) -> Iterator[pl.Series]:
        """The files in a folder as paths, some at a time: ten million names are too many for Python's lists."""
        try:
            with os.scandir(self._folder / parent) as entries:
                files = (f"{parent}{entry.name}" for entry in entries if _is_file(entry))
                while part := list(islice(files, _AT_ONCE)):
                    yield text(part)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return
            raise InputError(
                f"{self._folder / parent}: cannot be listed ({error.strerror}); check its rights"
            ) from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
