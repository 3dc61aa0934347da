"""The pictures of a catalogue as visual tokens: read ahead by threads, looked at once, kept while there is room."""

from collections.abc import Collection, Hashable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch

from vlm2rec.backbones.vision import Pixels, VisionTower, Visual, host_room, on_host
from vlm2rec.data.dataset import Catalogue
from vlm2rec.data.pictures.ahead import ReadAhead
from vlm2rec.data.pictures.archives import THREADS
from vlm2rec.data.pictures.fitting import Pixels as Picture
from vlm2rec.data.pictures.store import PictureFiles, PictureStore

_FIXED = (PictureStore, PictureFiles)  # pictures on a disk: the object stands for them

_AT_ONCE = 32  # pictures on a GPU; on a CPU each alone, so that its tokens do not hang on which others were asked for


class _Chunk(NamedTuple):
    """Some items, those of them that have a picture, and these pictures as the tower takes them."""

    items: list[int]
    seen: list[int]
    pixels: Pixels | None
    marks: dict[int, Hashable]


class Gallery:
    """Visual tokens of the items that were looked at last, and of as many others as there is room for.

    Attributes:
        visuals: by item; None where an item has no picture.
        readers: threads that read pictures ahead of the tower; 0: none, and each waits for the one before.
        room: bytes left for tokens that are kept, in host memory. The first to come are kept: passes over a whole
            catalogue would never find the latest.
    """

    def __init__(self, tower: VisionTower, keep: bool) -> None:
        self.visuals: dict[int, Visual | None] = {}
        self._tower, self._keep = tower, keep
        # A picture is read in a millisecond or a few: beside a tower on the same cores one thread is enough.
        self.readers = 1 if self._on_cpu else THREADS
        self.room = 0
        self._catalogue: Catalogue | None = None
        self._pictures: Sequence[Picture | None] = ()
        self._marks: dict[int, Hashable] = {}  # of the pictures that `visuals` were made of
        self._passing: set[int] = set()  # there was no room for them, so the next call forgets them
        self._expected: set[int] = set()
        self._coming: tuple[list[int], ReadAhead[list[int], _Chunk]] | None = None

    def look_at(self, catalogue: Catalogue, items: Collection[int]) -> None:
        """Have the visual tokens of some items; they are there until the next call, at least.

        Threads read the pictures while the tower looks at those before. What they raise is raised here.
        """
        pictures = catalogue.pictures
        others = pictures is not self._pictures and any(isinstance(each, _FIXED) for each in (pictures, self._pictures))
        if catalogue is not self._catalogue or others:
            self._forget_coming()
            self._catalogue, self.visuals, self._passing, self._marks = catalogue, {}, set(), {}
            self.room = host_room() if self._keep else 0
        self._pictures = pictures
        for item in self._passing.difference(items):
            del self.visuals[item]
        self._passing &= set(items)
        self._forget_changed(items)
        while missing := sorted(set(items) - self.visuals.keys()):
            ahead = self._coming is not None
            with self._reading(missing) as chunks:
                for chunk in chunks:
                    self._take(chunk, self._tower.look(chunk.pixels) if chunk.pixels is not None else [])
            if ahead:  # it may have been read before it was changed
                self._forget_changed(missing)
            if not self._on_cpu:
                torch.cuda.current_stream(self._tower.model.device).synchronize()
        expected, self._expected = sorted(self._expected - self.visuals.keys()), set()
        if expected and self.readers:
            self._forget_coming()
            self._coming = expected, self._read(expected)

    def expect(self, items: Collection[int]) -> None:
        """Say what `look_at` will be asked for after its next call; that call leaves threads reading them."""
        self._expected = set(items)

    def mark(self, pictures: Sequence[Picture | None], item: int) -> Hashable:
        """What stands for a picture: its content, or nothing where pictures cannot change, as those of a data set."""
        if isinstance(pictures, _FIXED):
            return None
        return _mark(pictures[item])

    def _forget_changed(self, items: Collection[int]) -> None:
        """Drop the visual tokens of pictures that are no longer what they were made of."""
        if isinstance(self._pictures, _FIXED):
            return
        for item in set(items) & self.visuals.keys():
            if self._marks.get(item) != self.mark(self._pictures, item):
                visual = self.visuals.pop(item)
                if item not in self._passing and visual is not None:
                    self.room += visual.bytes
                self._passing.discard(item)

    @property
    def _on_cpu(self) -> bool:
        return bool(self._tower.model.device.type == "cpu")

    def _reading(self, items: list[int]) -> ReadAhead[list[int], _Chunk]:
        """The chunks of these items: what was expected, where it is that."""
        if self._coming is not None and self._coming[0] == items:
            (_, chunks), self._coming = self._coming, None
            return chunks
        self._forget_coming()
        return self._read(items)

    def _read(self, items: list[int]) -> ReadAhead[list[int], _Chunk]:
        assert self._catalogue is not None
        pictures, tower = self._pictures, self._tower
        fixed = isinstance(pictures, _FIXED)

        def read(chunk: list[int]) -> _Chunk:
            found = [(item, pictures[item]) for item in chunk]
            there = [(item, picture) for item, picture in found if picture is not None]
            pixels = tower.prepare([picture for _, picture in there]) if there else None
            marks = {} if fixed else {item: _mark(picture) for item, picture in found}
            return _Chunk(chunk, [item for item, _ in there], pixels, marks)

        size = 1 if self._on_cpu else _AT_ONCE
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        return ReadAhead(read, parts, self.readers, self.readers + 1)

    def _take(self, chunk: _Chunk, visuals: list[Visual]) -> None:
        size = sum(visual.bytes for visual in visuals)
        if size > self.room:
            self._passing.update(chunk.items)
        else:
            self.room -= size
            if visuals and not self._on_cpu:
                visuals = on_host(visuals)
        self._marks.update(chunk.marks)
        self.visuals.update(dict.fromkeys(chunk.items))
        self.visuals.update(zip(chunk.seen, visuals, strict=True))

    def _forget_coming(self) -> None:
        if self._coming is not None:
            self._coming[1].close()
            self._coming = None


def _mark(picture: Picture | None) -> Hashable:
    """A picture's shape and a hash of its pixels; None of None."""
    if picture is None:
        return None
    pixels = np.ascontiguousarray(picture)
    return pixels.shape, pixels.dtype.str, blake2b(pixels.data, digest_size=16).digest()
