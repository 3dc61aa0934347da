"""Pictures in a .zip or .tar, which is never unpacked: its files are listed once, and each is read where it lies."""

import os
import struct
import tarfile
import weakref
import zipfile
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from vlm2rec.data.pictures.names import Named, candidates, endings_of, inside, text
from vlm2rec.errors import InputError

THREADS = min(os.cpu_count() or 1, 16)
"""How many threads read and decode."""
LARGEST = 1 << 26
"""Bytes that a picture's file may have; a larger one counts as broken. What an archive unpacks is held in memory."""


class _Archive(Named):
    """The files of an archive."""

    threads = THREADS

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None
        weakref.finalize(self, os.close, self._file)
        names: list[str] = []
        numbers = array("q")
        try:
            for name, *described in self._members():
                plain = inside(name)
                if plain is not None and not plain.startswith("__MACOSX/"):  # what macOS adds of its own
                    names.append(plain)
                    numbers.extend(described)
        except OverflowError:
            raise InputError(f"{path}: says that files lie beyond its end; fetch it again") from None
        self._described = np.frombuffer(numbers, np.int64).reshape(len(names), -1) if names else np.empty((0, 1), int)
        self._endings = endings_of(text(names))
        self._rows = dict(zip(names, range(len(names)), strict=True))

    def read(self, name: str) -> bytes | None:
        rows = map(self._rows.get, candidates(name, self._endings))
        row = next((row for row in rows if row is not None), None)
        if row is None and (file := self._not_beside(name)) is not None:
            row = self._rows[file]
        return None if row is None else self._content(*self._described[row].tolist())

    def _beside(self, names: pl.Series) -> pl.Series:
        return self._all()

    def _all(self) -> pl.Series:
        return text(list(self._rows))

    def _part(self, offset: int, size: int) -> bytes:
        """Bytes of the archive, fewer where it ends; no seeking, so that threads do not wait for each other."""
        try:
            return os.pread(self._file, size, offset)
        except (OSError, ValueError):  # a damaged archive can name any place
            return b""

    @abstractmethod
    def _members(self) -> Iterator[tuple[str, *tuple[int, ...]]]:
        """Name and numbers of each file, in order; of two of one name the later counts."""

    @abstractmethod
    def _content(self, *described: int) -> bytes | None: ...


class Zip(_Archive):
    """A .zip of plain or deflated files. Raises InputError if it is damaged, encrypted or packed in another way."""

    def _members(self) -> Iterator[tuple[str, int, int, int, int, int]]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = archive.infolist()
        except Exception as error:  # a damaged list of files raises nearly every type there is
            raise InputError(f"{self._path}: cannot be read as .zip ({_reason(error)}); fetch it again") from None
        for member in members:
            if member.filename.endswith("/"):
                continue
            if member.flag_bits & 1:
                raise InputError(f"{self._path}: is encrypted ({member.filename!r}); unpack it and give the folder")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{self._path}: {member.filename!r} is packed in a rare way ({member.compress_type});"
                    " unpack it and give the folder"
                )
            packed, size = member.compress_size, member.file_size
            yield member.filename, member.header_offset, packed, size, member.CRC, member.compress_type

    def _content(self, *described: int) -> bytes | None:
        offset, packed, size, crc, kind = described
        if max(packed, size) > LARGEST:
            return None
        head = self._part(offset, 30)
        if len(head) < 30 or not head.startswith(b"PK\3\4"):
            return None
        name, extra = struct.unpack_from("<HH", head, 26)
        content = self._part(offset + 30 + name + extra, packed)
        if kind == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)  # one more: it lied
            except zlib.error:
                return None
        return content if len(content) == size and zlib.crc32(content) == crc else None


class Tar(_Archive):
    """A .tar that is not packed; links in it are passed over. Raises InputError if it is damaged or cut short."""

    def _members(self) -> Iterator[tuple[str, int, int]]:
        if self._path.stat().st_size % tarfile.BLOCKSIZE:
            raise InputError(f"{self._path}: is cut short; fetch it again")
        try:
            with tarfile.open(self._path, "r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would remember a million of them
                    if member.isreg() and not member.issparse():
                        yield member.name, member.offset_data, member.size
        except InputError:
            raise
        except Exception as error:  # as for a zip
            raise InputError(f"{self._path}: cannot be read as .tar ({_reason(error)}); fetch it again") from None

    def _content(self, *described: int) -> bytes | None:
        offset, size = described
        content = self._part(offset, size) if size <= LARGEST else b""
        return content if len(content) == size else None


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
