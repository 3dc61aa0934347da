"""How near reading packed pictures comes to copying memory, and what the search for look-alikes finds and takes.

Without options: packs drawn pictures and lets 1, 2 and 4 processes read all of them in random order, in turns with a
copy of as many bytes from memory of their own, piece by piece. Each says how much memory is its own (private) and how
much its fair part of what is shared (PSS). `--likeness FOLDER` changes the pictures of a folder as shops do and counts
which are still found, and which different ones are taken for each other. `--pairs N` times the search among N hashes.
"""

import argparse
import io
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageEnhance

from vlm2rec.data.pictures.files import open_pictures
from vlm2rec.data.pictures.fitting import fit_picture
from vlm2rec.data.pictures.likeness import alike, differing, hashes, near_pairs, thumbnails
from vlm2rec.data.pictures.lookalikes import ALIKE, DISTANCE, SAME
from vlm2rec.data.pictures.store import PictureStore, pack

ROUNDS = 5
PLANTED = 1000
SIZE = 224

Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="of 224 pixels; 2,000 are 0.3 GB")
    parser.add_argument("--likeness", type=Path, metavar="FOLDER", help="a folder of pictures that all differ")
    parser.add_argument("--changed", type=int, default=800, help="how many of them are changed")
    parser.add_argument("--pairs", type=int, metavar="N")
    given = parser.parse_args()
    if given.likeness:
        likeness(given.likeness, given.changed)
    elif given.pairs:
        pairs(given.pairs)
    else:
        store(given.pictures)


def store(count: int) -> None:
    """Pack, read, print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        drawing = open_pictures(lambda name: Image.fromarray(np.roll(noise, int(name), axis=0)))
        pack(folder, drawing, [str(number) for number in range(count)], SIZE, "squash")
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        size = count * SIZE * SIZE * 3 / 1e9
        print(f"{count:,} pictures of {SIZE} pixels, {size:.2f} GB; {os.cpu_count()} cores, load {load}")
        heads = ("pictures GB/s", "memory GB/s", "share", "private MiB", "PSS MiB", "RSS MiB")
        print(f"{'processes':>10}" + "".join(f"{head:>15}" for head in heads))
        context = multiprocessing.get_context("spawn")
        for processes in (1, 2, 4):
            barrier, results = context.Barrier(processes), context.Queue()
            workers = [context.Process(target=read, args=(folder, barrier, results, n)) for n in range(processes)]
            for worker in workers:
                worker.start()
            found = [results.get() for _ in workers]
            for worker in workers:
                worker.join()
            speeds = np.array([speed for speed, _ in found]).sum(axis=0)  # rounds, kinds
            shares = speeds[:, 0] / speeds[:, 1]
            private, pss, rss = np.mean([memory for _, memory in found], axis=0)
            row = [np.median(speeds[:, 0]), np.median(speeds[:, 1]), np.median(shares)]
            memory = "".join(f"{size:>15.0f}" for size in (private, pss, rss))
            print(f"{processes:>10}" + "".join(f"{number:>15.2f}" for number in row) + memory)


def read(folder: Path, barrier: Barrier, results: "multiprocessing.Queue[object]", seed: int) -> None:
    """In a process: read all pictures in random order, then as many bytes of its own memory, in turns."""
    pictures = PictureStore(folder)
    into = np.empty((SIZE, SIZE, 3), np.uint8)
    order = np.random.default_rng(seed).permutation(len(pictures)).tolist()

    def from_store() -> None:
        for row in order:
            np.copyto(into, pictures[row])

    from_store()
    barrier.wait()  # all have touched every page
    memory = own_memory()
    barrier.wait()
    own = np.ones((len(pictures), SIZE, SIZE, 3), np.uint8)

    def from_memory() -> None:
        for piece in own:
            np.copyto(into, piece)

    speeds = []
    for _ in range(ROUNDS):
        seconds = []
        for kind in (from_store, from_memory):
            barrier.wait()
            began = time.perf_counter()
            kind()
            seconds.append(time.perf_counter() - began)
        speeds.append([own.nbytes / 1e9 / taken for taken in seconds])
    results.put((speeds, memory))


def own_memory() -> tuple[float, float, float]:
    """Private, proportional and resident memory of this process in MiB."""
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {row[0]: int(row[1]) / 1024 for row in rows}
    return sizes["Private_Clean:"] + sizes["Private_Dirty:"], sizes["Pss:"], sizes["Rss:"]


def saved(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        return Image.open(content)

    return change


def sized(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Image.Resampling.BICUBIC)

    return change


def cropped(share: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        across, down = max(1, round(image.width * share)), max(1, round(image.height * share))
        return image.crop((across, down, image.width - across, image.height - down))

    return change


CHANGES: dict[str, Change] = {
    "JPEG, quality 90": saved(90),
    "JPEG, quality 50": saved(50),
    "JPEG, quality 25": saved(25),
    "half the size": sized(0.5),
    "a third of the size": sized(1 / 3),
    "twice the size": sized(2),
    "brightness 0.8": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brightness 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast 0.8": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "half, quality 50, brightness 1.1": lambda image: ImageEnhance.Brightness(saved(50)(sized(0.5)(image))).enhance(
        1.1
    ),
    "1% cut off each side": cropped(0.01),
    "2% cut off each side": cropped(0.02),
    "3% cut off each side": cropped(0.03),
    "5% cut off each side": cropped(0.05),
}


def likeness(folder: Path, changed: int) -> None:
    """Change pictures, hash all together, and count."""
    images = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    count = len(images)
    chosen = np.random.default_rng(0).permutation(count)[:changed]
    originals, _ = thumbnails([fit_picture(image, SIZE, "squash") for image in images])
    copies = {
        name: thumbnails([fit_picture(change(images[row]), SIZE, "squash") for row in chosen])[0]
        for name, change in CHANGES.items()
    }
    one, other = np.triu_indices(count, 1)
    codes = hashes(originals)
    apart = differing(codes[one], codes[other])
    print(f"{count:,} pictures, {len(one):,} pairs of different ones.")
    heads = ("alone", "0.9", "0.95", f"{ALIKE}", f"{SAME}")
    print("Confused by their hashes, alone and with a likeness of at least")
    print(" " * 15 + "".join(f"{head:>10}" for head in heads))
    for distance in (6, DISTANCE, 10, 12):
        near = apart <= distance
        likenesses = alike(originals, one[near], other[near])
        counts = [int((likenesses >= least).sum()) for least in (-1, 0.9, 0.95, ALIKE, SAME)]
        print(f"{distance:>10} bits" + "".join(f"{number:>10,}" for number in counts))
    print(f"Of {len(chosen)} changed ones, found at {DISTANCE} bits and a likeness of 0.95, {ALIKE}, {SAME}")
    for name, small in copies.items():
        codes = hashes(np.concatenate([originals, small]))
        near = differing(codes[chosen], codes[count:]) <= DISTANCE
        likenesses = alike(np.concatenate([originals, small]), chosen, count + np.arange(len(chosen)))
        shares = [float((near & (likenesses >= least)).mean()) for least in (0.95, ALIKE, SAME)]
        print(f"  {name:34}" + "".join(f"{share:>8.3f}" for share in shares))


def pairs(count: int) -> None:
    """Random hashes with pairs planted that differ in 0 to `DISTANCE` bits."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, count, dtype=np.uint64)
    planted = min(PLANTED, count // 4)
    sources = rng.choice(count // 2, planted, replace=False)
    for number, source in enumerate(sources):
        flips = np.uint64(1) << rng.choice(64, number % (DISTANCE + 1), replace=False).astype(np.uint64)
        codes[count // 2 + number] = codes[source] ^ np.bitwise_or.reduce(flips, initial=np.uint64(0))
    began = time.perf_counter()
    one, other = near_pairs(codes, DISTANCE)
    taken = time.perf_counter() - began
    found = pl.DataFrame({"one": one, "other": other}).join(
        pl.DataFrame({"one": sources, "other": count // 2 + np.arange(planted)}), on=["one", "other"], how="inner"
    )
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{count:,} hashes, {count * (count - 1) // 2:,} pairs: {taken:.1f} s, {held:.0f} MiB; load {load}")
    print(f"{len(one):,} pairs within {DISTANCE} bits, {found.height:,} of {planted:,} planted ones among them")


if __name__ == "__main__":
    main()
