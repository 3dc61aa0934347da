"""Raw files, compressed or not, as blocks of whole lines: any size in little memory."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from vlm2rec.errors import InputError

BLOCK = 1 << 25
"""Bytes of lines at a time."""
LONGEST = 1 << 26
"""Bytes a line may have."""


def open_raw(path: Path) -> IO[bytes]:
    """A file for reading in bytes, unpacked on the way if it ends in .gz. Raises InputError if it cannot be opened."""
    try:
        return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None


def blocks(path: Path, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines and the number of each one's first line, counted from 1; a byte-order mark is left out.

    Every block but the last ends in a line break.

    Raises:
        InputError: the file cannot be read, is cut short or damaged inside its compression, or has a line longer
            than `LONGEST`.
    """
    number, rest = 1, b""
    with open_raw(path) as file:
        while True:
            try:
                read = file.read(size)
            except (EOFError, OSError, zlib.error) as error:
                what = "is cut short" if isinstance(error, EOFError) else f"cannot be unpacked ({error})"
                raise InputError(f"{path}: {what} after line {number:,}; fetch it again") from None
            block = rest + read
            if number == 1:
                block = block.removeprefix(b"\xef\xbb\xbf")
            if not read:
                if block:
                    yield number, block
                return
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if len(rest) > LONGEST:
                line = number + block.count(b"\n")
                raise InputError(f"{path}: line {line:,} has no end; is this a text file?")
            if end:
                yield number, block[:end]
                number += block.count(b"\n", 0, end)
