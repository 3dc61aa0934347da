"""The pictures of a catalogue as visual tokens: read ahead by threads, looked at once, kept while there is room."""

from collections.abc import Collection
from typing import NamedTuple

import torch

from vlm2rec.backbones.vision import Pixels, VisionTower, Visual, host_room, on_host
from vlm2rec.data.dataset import Catalogue
from vlm2rec.data.pictures.ahead import ReadAhead
from vlm2rec.data.pictures.archives import THREADS

_AT_ONCE = 32  # pictures on a GPU; on a CPU each alone, so that its tokens do not hang on which others were asked for


class _Chunk(NamedTuple):
    """Some items, those of them that have a picture, and these pictures as the tower takes them."""

    items: list[int]
    seen: list[int]
    pixels: Pixels | None


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
        self._passing: set[int] = set()  # there was no room for them, so the next call forgets them
        self._expected: set[int] = set()
        self._coming: tuple[list[int], ReadAhead[list[int], _Chunk]] | None = None

    def look_at(self, catalogue: Catalogue, items: Collection[int]) -> None:
        """Have the visual tokens of some items; they are there until the next call, at least.

        Threads read the pictures while the tower looks at those before. What they raise is raised here.
        """
        if catalogue is not self._catalogue:
            self._forget_coming()
            self._catalogue, self.visuals, self._passing = catalogue, {}, set()
            self.room = host_room() if self._keep else 0
        for item in self._passing.difference(items):
            del self.visuals[item]
        self._passing &= set(items)
        missing = sorted(set(items) - self.visuals.keys())
        if missing:
            with self._reading(missing) as chunks:
                for chunk in chunks:
                    self._take(chunk, self._tower.look(chunk.pixels) if chunk.pixels is not None else [])
            if not self._on_cpu:
                torch.cuda.current_stream(self._tower.model.device).synchronize()
        expected, self._expected = sorted(self._expected - self.visuals.keys()), set()
        if expected and self.readers:
            self._forget_coming()
            self._coming = expected, self._read(expected)

    def expect(self, items: Collection[int]) -> None:
        """Say what `look_at` will be asked for after its next call; that call leaves threads reading them."""
        self._expected = set(items)

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
        pictures, tower = self._catalogue.pictures, self._tower

        def read(chunk: list[int]) -> _Chunk:
            found = [(item, pictures[item]) for item in chunk]
            there = [(item, picture) for item, picture in found if picture is not None]
            pixels = tower.prepare([picture for _, picture in there]) if there else None
            return _Chunk(chunk, [item for item, _ in there], pixels)

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
        self.visuals.update(dict.fromkeys(chunk.items))
        self.visuals.update(zip(chunk.seen, visuals, strict=True))

    def _forget_coming(self) -> None:
        if self._coming is not None:
            self._coming[1].close()
            self._coming = None
