"""Pictures: decoded, oriented, made RGB and resized once, then packed in one file that is read through a memory map.

Decoding is the slow part of reading a catalogue, and every epoch and every method needs the same pixels, so it
happens once, in threads (Pillow lets go of the interpreter while it decodes). A picture that cannot be decoded is
reported to the caller and never fatal.
"""

import io
import warnings
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Self, overload
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from vlm2rec.data.pictures.ahead import ReadAhead
from vlm2rec.data.pictures.files import Album, Draw, open_pictures
from vlm2rec.data.pictures.fitting import Fit, Pixels, as_rgb, fit_picture
from vlm2rec.errors import InputError

PACK = "pictures.bin"
INDEX = "pictures.parquet"

_SCHEMA = {
    "offset": pl.Int64,
    "height": pl.Int32,
    "width": pl.Int32,
    "digest": pl.String,
    "source_height": pl.Int32,
    "source_width": pl.Int32,
    "crc": pl.UInt32,
}
_COPIED = 1 << 24  # bytes at a time
_OPENING = Lock()

Rows = Sequence[int] | NDArray[np.integer]


class _ByNumber(Sequence[Pixels | None]):
    """Pictures by number, and slices of them; whoever inherits says what one of them is."""

    @overload
    def __getitem__(self, index: int) -> Pixels | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pixels | None]: ...
    def __getitem__(self, index: int | slice) -> Pixels | list[Pixels | None] | None:
        if isinstance(index, slice):
            return [self._picture(i) for i in range(*index.indices(len(self)))]
        return self._picture(index)

    @abstractmethod
    def _picture(self, index: int) -> Pixels | None: ...


class PictureStore(_ByNumber):
    """The packed pictures of a data set, in item order.

    `store[i]` is a read-only `(H, W, 3)` uint8 array, or None where item i has no picture. Nothing is read before
    it is asked for, and the operating system shares the pages between processes. Copied to another process (pickled),
    it is opened there anew.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the pictures in `folder`. Raises InputError if the files are missing or do not fit each other."""
        folder = Path(folder)
        index = read_index(folder, ("offset", "height", "width", "digest"))
        self._folder = folder
        self._offset, self._height, self._width = (
            index[name].to_numpy().astype(np.int64) for name in ("offset", "height", "width")
        )
        self._digests = index["digest"]
        pack = folder / PACK
        expected = int((self._height * self._width).sum()) * 3
        if not pack.is_file() or pack.stat().st_size != expected:
            raise InputError(f"{pack}: missing or cut short; prepare the data set again")
        # An empty file cannot be mapped.
        # As a plain array: a slice of it costs a fifth of a slice of NumPy's own kind of map.
        self._bytes: Pixels = np.asarray(np.memmap(pack, np.uint8, "r")) if expected else np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self._folder,)

    @cached_property
    def digests(self) -> list[str | None]:
        """Hash of each picture as it came from its source; None: no picture."""
        return self._digests.to_list()

    def __len__(self) -> int:
        return len(self._offset)

    def _picture(self, index: int) -> Pixels | None:
        height, width, offset = int(self._height[index]), int(self._width[index]), int(self._offset[index])
        if height == 0:
            return None
        return self._bytes[offset : offset + height * width * 3].reshape(height, width, 3)


class PictureFiles(_ByNumber):
    """Pictures decoded whenever they are asked for: those of new items, which are looked at once.

    `files[i]` is a `(H, W, 3)` uint8 array made to fit `size` as `prepare` does, or None where item i has no picture
    (its name is None) or it cannot be decoded.
    """

    def __init__(
        self, pictures: Path | str | Draw | None, names: Sequence[str | None], size: int = 224, fit: Fit = "squash"
    ) -> None:
        """Open where the pictures are (see `open_pictures`); `names` says which one an item has."""
        self._album, self._names, self._size, self._fit = open_pictures(pictures), names, size, fit

    def __len__(self) -> int:
        return len(self._names)

    def _picture(self, index: int) -> Pixels | None:
        name = self._names[index]
        found = None if name is None else _decode(self._album, name, self._size, self._fit)
        return None if found is None else found.pixels


def read_index(folder: Path | str, columns: Sequence[str] = tuple(_SCHEMA)) -> pl.DataFrame:
    """The picture index of a prepared folder, a row an item.

    Columns: offset (bytes), height, width (pixels; 0: none), digest, source_height, source_width (pixels of the
    picture as it came), and crc (of what is packed). Raises InputError if it is missing or damaged.
    """
    folder = Path(folder)
    try:
        return pl.read_parquet(folder / INDEX, columns=list(columns), glob=False)
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(f"{folder / INDEX}: missing or unreadable; prepare the data set again") from None


@dataclass(frozen=True)
class Decoded:
    """One picture, ready to pack.

    Attributes:
        pixels: `(H, W, 3)`.
        digest: hash of what it was made from: the bytes of its file, or what was drawn.
        source: height and width in pixels of what it was made from.
    """

    pixels: Pixels
    digest: str
    source: tuple[int, int]


def _decode(album: Album, name: str, size: int, fit: Fit) -> Decoded | None:
    content = album.read(name)
    if isinstance(content, Image.Image):
        drawn = repr(content.size).encode() + np.ascontiguousarray(as_rgb(content)).tobytes()
        return Decoded(fit_picture(content, size, fit), _digest(drawn), (content.height, content.width))
    if content is None:
        return None
    try:
        with _open(content) as image:
            source = image.height, image.width
            return Decoded(fit_picture(image, size, fit), _digest(content), source)
    except Exception:  # Pillow raises nearly every type there is on a damaged file
        return None


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _open(content: bytes) -> Image.Image:
    """Read what a picture says of itself; one with so many pixels that Pillow suspects a bomb raises.

    What to do about a warning is a setting of the whole process, so threads take turns here. That costs nothing:
    this much of the work holds the interpreter anyway.
    """
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content))


def decode(album: Album, names: Iterable[str], size: int, fit: Fit) -> Generator[Decoded | None]:
    """Decode in threads and yield in order, None for a picture that is missing, broken or absurdly large.

    A few pictures a thread are held at a time, so memory does not grow with the catalogue. A picture with so many
    pixels that Pillow suspects a decompression bomb counts as broken. A drawing function is called from one thread,
    and what it raises is passed on: that is a mistake in the program, not in the data.
    """
    with ReadAhead(lambda name: _decode(album, name, size, fit), names, album.threads, 8 * album.threads) as found:
        yield from found


def pack(
    folder: Path,
    album: Album,
    names: Sequence[str | None],
    size: int,
    fit: Fit,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.bool_]:
    """Decode `names` (None: no picture) into `folder` and return which of them were broken, `(n,)`.

    Writes `pictures.bin` and its index; `PictureStore(folder)` reads them. `progress` is told (done, all) after each
    picture, from the calling thread.
    """
    there = [row for row, name in enumerate(names) if name is not None]
    shapes = np.zeros((len(names), 4), np.int64)  # height and width, packed and as they came
    digests: list[str | None] = [None] * len(names)
    checks = np.zeros(len(names), np.uint32)
    broken = np.zeros(len(names), bool)
    wanted = (name for name in names if name is not None)
    with (folder / PACK).open("wb") as file, closing(decode(album, wanted, size, fit)) as results:
        for done, (row, found) in enumerate(zip(there, results, strict=True), start=1):
            if found is None:
                broken[row] = True
            else:
                shapes[row] = *found.pixels.shape[:2], *found.source
                digests[row] = found.digest
                pixels = np.ascontiguousarray(found.pixels).data
                checks[row] = crc32(pixels)
                file.write(pixels)
            if progress is not None:
                progress(done, len(there))
    height, width, source_height, source_width = shapes.T
    columns = {"height": height, "width": width, "source_height": source_height, "source_width": source_width}
    texts = pl.Series(digests, dtype=pl.String)
    _write_index(folder, pl.DataFrame({**columns, "digest": texts, "crc": checks}))
    return broken


def keep(folder: Path, rows: Rows, bare: Rows = ()) -> None:
    """Forget all packed pictures but those of `rows` (ascending), moving the rest up in place.

    `bare`: rows whose picture goes too, though they stay.
    """
    index = read_index(folder)
    gone = pl.Series(np.isin(np.arange(index.height), np.asarray(bare, np.int64)))
    nothing = pl.lit(None, pl.String)
    index = index.with_columns(
        pl.when(gone).then(nothing if name == "digest" else 0).otherwise(name).alias(name) for name in index.columns
    )[np.asarray(rows, np.int64)]
    there = index.filter(pl.col("height") > 0)
    start = there["offset"].to_numpy()
    end = start + _sizes(there)
    # Pictures that lie one after another move together.
    first = np.flatnonzero(np.append(True, start[1:] != end[:-1])[: len(start)])
    runs = zip(start[first].tolist(), np.append(end[first[1:] - 1], end[-1:]).tolist(), strict=True)
    to = 0
    with (folder / PACK).open("r+b") as file:
        for begin, stop in runs:
            for part in range(begin, stop if begin != to else begin, _COPIED):
                file.seek(part)
                content = file.read(min(_COPIED, stop - part))
                file.seek(to + part - begin)
                file.write(content)
            to += stop - begin
        file.truncate(to)
    _write_index(folder, index)


def _sizes(index: pl.DataFrame) -> NDArray[np.int64]:
    """Bytes of each packed picture."""
    height, width = (index[name].to_numpy().astype(np.int64) for name in ("height", "width"))
    sizes: NDArray[np.int64] = height * width * 3
    return sizes


def _write_index(folder: Path, index: pl.DataFrame) -> None:
    """Write the rows of pictures that lie end to end; an item without one has offset 0."""
    sizes = _sizes(index)
    offset = pl.Series(np.where(sizes > 0, np.cumsum(sizes) - sizes, 0), dtype=pl.Int64)
    index.with_columns(offset=offset).select(pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items()).write_parquet(
        folder / INDEX
    )
