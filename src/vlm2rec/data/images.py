"""Pictures: decoded, oriented, made RGB and resized once, then packed in one file that is read through a memory map.

Decoding is the slow part of reading a catalogue, and every epoch and every method needs the same pixels, so it
happens once, in threads (Pillow lets go of the interpreter while it decodes). A picture that cannot be decoded is
reported to the caller and never fatal.
"""

import io
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlm2rec.data.ahead import ReadAhead
from vlm2rec.errors import InputError

Fit = Literal["squash", "letterbox", "aspect"]
FITS: tuple[Fit, ...] = ("squash", "letterbox", "aspect")
PACK = "pictures.bin"
INDEX = "pictures.parquet"

_WHITE = (255, 255, 255)
THREADS = min(os.cpu_count() or 1, 16)
"""How many threads decode."""

_MAX_RATIO = 8  # of the sides under `aspect`: no backbone can read a line one pixel high

Pixels = NDArray[np.uint8]
Pictures = Path | Callable[[str], Image.Image] | None


class _Album(Sequence[Pixels | None]):
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


class PictureStore(_Album):
    """The packed pictures of a data set, in item order.

    `store[i]` is a read-only `(H, W, 3)` uint8 array, or None where item i has no picture. Nothing is read before
    it is asked for, and the operating system shares the pages between processes.
    """

    def __init__(self, folder: Path) -> None:
        """Open the pictures in `folder`. Raises InputError if the files are missing or do not fit each other."""
        index = read_index(folder)
        self._offset, self._height, self._width = (
            index[name].to_numpy().astype(np.int64) for name in ("offset", "height", "width")
        )
        self._digests = index["digest"]
        pack = folder / PACK
        expected = int((self._height * self._width).sum()) * 3
        if not pack.is_file() or pack.stat().st_size != expected:
            raise InputError(f"{pack}: missing or cut short; prepare the data set again")
        # An empty file cannot be mapped.
        self._bytes: Pixels = np.memmap(pack, dtype=np.uint8, mode="r") if expected else np.empty(0, np.uint8)

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
        return np.asarray(self._bytes[offset : offset + height * width * 3]).reshape(height, width, 3)


class PictureFiles(_Album):
    """Pictures decoded whenever they are asked for: those of new items, which are looked at once.

    `files[i]` is a `(H, W, 3)` uint8 array made to fit `size` as `prepare` does, or None where item i has no picture
    (its name is None) or it cannot be decoded.
    """

    def __init__(self, folder: Path, names: Sequence[str | None], size: int = 224, fit: Fit = "squash") -> None:
        self._folder, self._names, self._size, self._fit = folder, names, size, fit

    def __len__(self) -> int:
        return len(self._names)

    def _picture(self, index: int) -> Pixels | None:
        name = self._names[index]
        path = _file(self._folder, name) if name is not None else None
        found = _decode_file(path, self._size, self._fit) if path is not None else None
        return None if found is None else found.pixels


def read_index(folder: Path) -> pl.DataFrame:
    """The picture index of a prepared folder: offset (bytes), height, width (pixels; 0: none), digest."""
    try:
        return pl.read_parquet(folder / INDEX, columns=["offset", "height", "width", "digest"])
    except (OSError, pl.exceptions.PolarsError):
        raise InputError(f"{folder / INDEX}: missing or unreadable; prepare the data set again") from None


def fit_picture(image: Image.Image, size: int, fit: Fit) -> Pixels:
    """Orient, flatten and resize one picture to `(H, W, 3)` uint8.

    `squash` fills a square and forgets the shape, `letterbox` keeps it on a white square, `aspect` keeps it and
    makes the longer side `size` (beyond 8:1 it squashes). Transparent parts become white, the usual paper of
    product pictures. Of a moving picture the first frame counts.
    """
    if image.format == "JPEG":
        image.draft(None, (2 * size, 2 * size))  # a big photograph is decoded small already, still twice what is kept
    image = _rgb(ImageOps.exif_transpose(image))
    width, height = image.size
    if fit == "squash":
        return np.asarray(_resize(image, size, size))
    scale = size / max(width, height)
    shortest = 1 if fit == "letterbox" else -(-size // _MAX_RATIO)
    inner = _resize(image, max(shortest, round(width * scale)), max(shortest, round(height * scale)))
    if fit == "aspect":
        return np.asarray(inner)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(square)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip to white
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray((grey >> 8 if grey.max() > 255 else grey).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, _WHITE)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


@dataclass(frozen=True)
class Decoded:
    """One picture, ready to pack: pixels `(H, W, 3)` and the hash of what it was made from."""

    pixels: Pixels
    digest: str


def find(pictures: Pictures, name: str) -> bool:
    """Whether a picture of that name is there at all; whether it can be decoded shows later."""
    if pictures is None or not name:
        return False
    return not isinstance(pictures, Path) or _file(pictures, name) is not None


def _file(folder: Path, name: str) -> Path | None:
    """The file of that name under the folder, or None; a name never leads out of the folder."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return None
    path = folder / relative
    return path if path.is_file() else None


def _decode_file(path: Path, size: int, fit: Fit) -> Decoded | None:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            pixels = fit_picture(image, size, fit)
    except Exception:  # Pillow raises nearly every type there is on a damaged file
        return None
    return Decoded(pixels, blake2b(content, digest_size=16).hexdigest())


def _draw(draw: Callable[[str], Image.Image], name: str, size: int, fit: Fit) -> Decoded:
    image = draw(name)
    content = repr(image.size).encode() + np.ascontiguousarray(_rgb(image)).tobytes()
    return Decoded(fit_picture(image, size, fit), blake2b(content, digest_size=16).hexdigest())


def decode(pictures: Pictures, names: Sequence[str], size: int, fit: Fit) -> Generator[Decoded | None]:
    """Decode in threads and yield in order, None for a picture that is missing, broken or absurdly large.

    A few pictures a thread are held at a time, so memory does not grow with the catalogue. A picture with so many
    pixels that Pillow suspects a decompression bomb counts as broken. A drawing function is called from one thread,
    and what it raises is passed on: that is a mistake in the program, not in the data.
    """

    def one(name: str) -> Decoded | None:
        if pictures is None:
            return None
        if not isinstance(pictures, Path):
            return _draw(pictures, name, size, fit)
        path = _file(pictures, name)
        return None if path is None else _decode_file(path, size, fit)

    workers = THREADS if isinstance(pictures, Path) else 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with ReadAhead(one, names, workers, 8 * workers) as found:
            yield from found


def pack(
    folder: Path,
    pictures: Pictures,
    names: Sequence[str | None],
    size: int,
    fit: Fit,
    progress: Callable[[int, int], None] | None = None,
) -> list[bool]:
    """Decode `names` (None: no picture) into `folder` and return which of them were broken.

    Writes `pictures.bin` and its index; `PictureStore(folder)` reads them. `progress` is told (done, all) after each
    picture, from the calling thread.
    """
    wanted = [name for name in names if name is not None]
    rows: list[tuple[int, int, int, str | None]] = [(0, 0, 0, None)] * len(names)
    there = [row for row, name in enumerate(names) if name is not None]
    offset = 0
    with (folder / PACK).open("wb") as file, closing(decode(pictures, wanted, size, fit)) as results:
        for done, (row, found) in enumerate(zip(there, results, strict=True), start=1):
            if found is not None:
                height, width, _ = found.pixels.shape
                rows[row] = (offset, height, width, found.digest)
                offset += file.write(np.ascontiguousarray(found.pixels).data)
            if progress is not None:
                progress(done, len(wanted))
    _write_index(folder, rows)
    return [name is not None and digest is None for name, (*_, digest) in zip(names, rows, strict=True)]


def keep(folder: Path, rows: Sequence[int]) -> None:
    """Forget all packed pictures but those of `rows` (ascending), moving the rest up in place."""
    index = read_index(folder)
    kept: list[tuple[int, int, int, str | None]] = []
    end = 0
    with (folder / PACK).open("r+b") as file:
        for row in rows:
            offset, height, width, digest = index.row(row)
            if height == 0:
                kept.append((0, 0, 0, None))
                continue
            if offset != end:
                file.seek(offset)
                content = file.read(height * width * 3)
                file.seek(end)
                file.write(content)
            kept.append((end, height, width, digest))
            end += height * width * 3
        file.truncate(end)
    _write_index(folder, kept)


def _write_index(folder: Path, rows: list[tuple[int, int, int, str | None]]) -> None:
    schema = {"offset": pl.Int64, "height": pl.Int32, "width": pl.Int32, "digest": pl.String}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / INDEX)
