"""How alike pictures look: small copies, hashes of 64 bits, and all pairs of hashes that differ in a few bits.

A hash tells which pictures may look alike, cheaply; `alike` compares the small copies, colours and all. It is made of
the lowest frequencies of the brightness (a discrete cosine transform), which survive another size, compression or
brightness. Two things differ from the usual one. What is common to the catalogue is taken off first: pictures of
things in the middle of a white page would otherwise all look alike. And a bit says that a frequency is stronger by more
than noise, not merely positive: half of the frequencies of a symmetric picture are noise, whose signs are random.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm2rec.data.pictures.archives import THREADS
from vlm2rec.data.pictures.fitting import Pixels

SIDE = 16
"""Pixels of a side of a small copy."""

Thumbnails = NDArray[np.uint8]
Codes = NDArray[np.uint64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_NOISE = 0.005  # of all that a picture varies by; compression and resizing move a frequency by a tenth of it
_LOWEST = 11
_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 16


def _frequencies() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """The first rows of the cosine transform, `(11, 16)`, and the two indices of the 64 lowest frequencies but 0."""
    k, place = np.arange(_LOWEST), np.arange(SIDE)
    waves = np.cos(np.pi * np.outer(k, 2 * place + 1) / (2 * SIDE)) * np.where(k[:, None] == 0, 0.5**0.5, 1)
    down, across = np.divmod(np.arange(_LOWEST**2), _LOWEST)
    chosen = np.lexsort((down, down + across))[1:65]
    return waves.astype(np.float32), down[chosen], across[chosen]


def thumbnails(pictures: Sequence[Pixels | None]) -> tuple[Thumbnails, Mask]:
    """Small copies `(n, 16, 16, 3)`, each pixel the mean of its part, and which pictures there are, `(n,)`."""
    small = np.zeros((len(pictures), SIDE, SIDE, 3), np.uint8)
    there = np.zeros(len(pictures), bool)

    def shrink(start: int) -> None:
        for row in range(start, min(start + _AT_ONCE, len(pictures))):
            pixels = pictures[row]
            if pixels is not None:
                small[row] = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
                there[row] = True

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(shrink, range(0, len(pictures), _AT_ONCE)))
    return small, there


def hashes(small: Thumbnails) -> Codes:
    """A hash `(n,)` of each small copy; hashes of different calls do not compare, as each takes off its own mean."""
    waves, down, across = _frequencies()
    strengths = np.empty((len(small), len(down)), np.float32)
    for start in range(0, len(small), _AT_ONCE):
        luma = small[start : start + _AT_ONCE].astype(np.float32) @ _LUMA
        strengths[start : start + _AT_ONCE] = (waves @ luma @ waves.T)[:, down, across]
    strengths /= np.maximum(np.linalg.norm(strengths, axis=1, keepdims=True), 1e-6)
    if len(small):
        strengths -= strengths.mean(axis=0)
    return np.packbits(strengths > _NOISE, axis=1).view(np.uint64).reshape(len(small))


def alike(small: Thumbnails, one: Rows, other: Rows) -> NDArray[np.float32]:
    """Correlation of all colour values of pairs of small copies, `(pairs,)`, whatever their brightness and contrast."""
    found = np.empty(len(one), np.float32)
    for start in range(0, len(one), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        first, second = (_standard(small[rows[part]]) for rows in (one, other))
        found[part] = np.einsum("nd,nd->n", first, second)
    return found


def _standard(small: Thumbnails) -> NDArray[np.float32]:
    values = small.reshape(len(small), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    return values


def differing(one: Codes, other: Codes) -> NDArray[np.int64]:
    """In how many bits hashes differ."""
    bits = one ^ other
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        bits = (bits & np.uint64(mask)) + ((bits >> np.uint64(shift)) & np.uint64(mask))
    return ((bits * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def near_pairs(codes: Codes, distance: int, accept: Callable[[Rows, Rows], Mask] | None = None) -> tuple[Rows, Rows]:
    """All pairs of hashes that differ in at most so many bits, each once: two arrays of rows, first < second.

    Cut into distance + k blocks of bits, two such hashes agree in at least k whole blocks. So for each choice of k
    blocks the hashes are sorted by these, and only neighbours that agree in all of them are compared. Nothing is
    missed; k is chosen by what sorting and comparing cost. `accept` is asked about each pair found, from threads.
    """
    kept = _blocks_kept(len(codes), distance)
    masks = _block_masks(distance + kept) if kept else np.empty(0, np.uint64)

    def search(chosen: Sequence[int]) -> tuple[Rows, Rows]:
        key = codes & np.bitwise_or.reduce(masks[list(chosen)], initial=np.uint64(0))
        order = np.argsort(key)
        key = key[order]
        found: list[tuple[Rows, Rows]] = []
        at, step = np.flatnonzero(key[1:] == key[:-1]), 1
        while len(at):  # all pairs at this step in the sorted order, as long as there are runs that long
            for start in range(0, len(at), _PAIRS_AT_ONCE):
                part = at[start : start + _PAIRS_AT_ONCE]
                one, other = order[part], order[part + step]
                near = differing(codes[one], codes[other]) <= distance
                one, other = one[near], other[near]
                # The same pair comes up for other choices too; it counts for that of its first k equal blocks.
                equal = (codes[one] ^ codes[other])[:, None] & masks == 0
                first = equal & (np.cumsum(equal, axis=1) <= kept)
                mine = first[:, list(chosen)].all(axis=1)
                one, other = np.minimum(one, other)[mine], np.maximum(one, other)[mine]
                if accept is not None and len(one):
                    good = accept(one, other)
                    one, other = one[good], other[good]
                found.append((one, other))
            step += 1
            at = at[at + step < len(key)]
            at = at[key[at + step] == key[at]]
        return _joined(found)

    with ThreadPoolExecutor(THREADS) as pool:
        return _joined(list(pool.map(search, combinations(range(distance + kept), kept))))


def _joined(parts: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows]:
    nothing = np.empty(0, np.int64)
    one, other = (np.concatenate([nothing, *rows]) for rows in (zip(*parts, strict=True) if parts else ((), ())))
    return one, other


def _blocks_kept(count: int, distance: int) -> int:
    """How many equal blocks to sort by: none compares all with all, more mean more sorts and fewer comparisons."""

    def seconds(kept: int) -> float:
        blocks = distance + kept
        pairs = count**2 / 2 * 2.0 ** (-64 * kept / blocks) if kept else count**2 / 2
        return comb(blocks, kept) * (1e-4 + 1e-7 * count + 2e-8 * pairs)

    return min(range(5), key=seconds)


def _block_masks(blocks: int) -> Codes:
    """The bits of each block; dealt out in turns, so that each has frequencies of every kind."""
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    return np.array([np.bitwise_or.reduce(bits[start::blocks]) for start in range(blocks)], np.uint64)
