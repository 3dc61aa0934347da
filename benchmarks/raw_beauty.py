"""How long `vlm2rec data prepare amazon-2014` takes on raw files of the true size of Beauty, and how much memory.

Writes a raw folder as the release of 2014 has it from a prepared table of its 5-core (`items.parquet` with item_id and
title, `interactions.parquet` with user_id, item_id and timestamp): reviews with text, 259,204 lines of items of which
only the 5-core's are real, and 2.02 million ratings whose 5-core is that one. Then prepares it, each time in a process
of its own, and prints that process's seconds and peak memory. Files that are there already are used again.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

DOMAIN = "Beauty"
META_LINES = 259_204
RATINGS = 2_023_070
START, DAY = 1_100_000_000, 86_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="folder of items.parquet and interactions.parquet")
    parser.add_argument("raw", type=Path, help="folder to write the raw files and the data sets into")
    parser.add_argument("--pictures", action="store_true", help="draw a JPEG for every item, and prepare with them too")
    parser.add_argument("--write-only", action="store_true", help="do not prepare")
    given = parser.parse_args()
    write(given.tables, given.raw, given.pictures)
    if not given.write_only:
        print(f"{'raw folder':<12}{'require':<12}{'wall s':>8}{'CPU s':>8}{'peak GiB':>10}  what it says")
        for folder in ("reviews", "ratings", *(["pictures"] if given.pictures else [])):
            require = "title,image" if folder == "pictures" else "title"
            out = given.raw / f"prepared-{folder}-{os.getpid()}"
            wall, cpu, peak, said = prepare(given.raw / folder, out, require)
            print(f"{folder:<12}{require:<12}{wall:8.1f}{cpu:8.1f}{peak:10.2f}  {said}", flush=True)


def prepare(raw: Path, out: Path, require: str) -> tuple[float, float, float, str]:
    """Seconds of wall and CPU, peak GiB, and the last words of one `data prepare`."""
    command = [sys.executable, "-m", "vlm2rec", "data", "prepare", "amazon-2014", str(raw), "--out", str(out)]
    with (out.parent / f"{out.name}.txt").open("w+") as said:
        start = time.perf_counter()
        child = subprocess.Popen([*command, "--require", require], stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        said.seek(0)
        lines = said.read().strip().splitlines()
    words = " | ".join(lines[-2:-1] if status == 0 else [f"failed ({status})", *lines[-1:]])
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, words


def write(tables: Path, raw: Path, pictures: bool) -> None:
    """Folders with the reviews of the 5-core, with all ratings, and with reviews and pictures; with the same items."""
    items = pl.read_parquet(tables / "items.parquet")
    log = pl.read_parquet(tables / "interactions.parquet")
    words = items["title"].str.split(" ").explode().drop_nulls().to_numpy()
    log = log.with_columns(pl.col("timestamp") * DAY + START + (pl.col("user_id").hash(0) % 3000).cast(pl.Int64) * DAY)
    known = items["item_id"].to_list()
    real = set(known)
    invented = [name for name in (f"B00{number:07d}" for number in range(META_LINES)) if name not in real]
    names = [*known, *invented[: META_LINES - len(known)]]
    for folder in ("reviews", "ratings", *(["pictures"] if pictures else [])):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    meta = raw / "reviews" / f"meta_{DOMAIN}.json.gz"
    pack(meta, meta_lines(names, items["title"].to_list(), words))
    reviews = raw / "reviews" / f"reviews_{DOMAIN}_5.json.gz"
    pack(reviews, review_lines(log, words))
    ratings = raw / "ratings" / f"ratings_{DOMAIN}.csv"
    if not ratings.exists():
        all_ratings(log, names).write_csv(ratings, include_header=False)
    link(meta, raw / "ratings")
    if pictures:
        link(meta, raw / "pictures")
        link(reviews, raw / "pictures")
        draw(raw / "pictures" / "images", known)
    for path in (meta, reviews, ratings):
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB", flush=True)


def link(file: Path, folder: Path) -> None:
    if not (there := folder / file.name).exists():
        there.hardlink_to(file)


def pack(path: Path, lines: Iterable[str]) -> None:
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        with gzip.open(partial, "wt", compresslevel=1, encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        partial.replace(path)


def texts(words: NDArray[np.object_], median: float, count: int, random: np.random.Generator) -> Iterator[str]:
    """Texts of random words, with as many as reviews have: log-normal, the median given."""
    for start in range(0, count, 10_000):
        lengths = np.exp(random.normal(np.log(median), 0.8, min(10_000, count - start))).astype(int) + 1
        drawn = words[random.integers(0, len(words), lengths.sum())].tolist()
        ends = np.cumsum(lengths).tolist()
        yield from (" ".join(drawn[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True))


def review_lines(log: pl.DataFrame, words: NDArray[np.object_]) -> Iterator[str]:
    random = np.random.default_rng(0)
    rows = log.sort("item_id").select("user_id", "item_id", "timestamp").iter_rows()
    said, summaries = texts(words, 60, log.height, random), texts(words, 4, log.height, random)
    stars = random.integers(1, 6, log.height).tolist()
    for (user, item, when), text, summary, star in zip(rows, said, summaries, stars, strict=True):
        review = {"reviewerID": user, "asin": item, "reviewerName": user[:5].title(), "helpful": [star, 5]}
        review |= {"reviewText": text, "overall": float(star), "summary": summary, "unixReviewTime": when}
        yield json.dumps(review | {"reviewTime": time.strftime("%m %d, %Y", time.gmtime(when))})


def meta_lines(names: list[str], titles: list[str], words: NDArray[np.object_]) -> Iterator[str]:
    """Items as Python literals of 1 to 2 kB; those without a title are given one of random words."""
    random = np.random.default_rng(1)
    described, titled = texts(words, 50, len(names), random), texts(words, 8, len(names), random)
    related = np.array(names)
    for row in random.permutation(len(names)).tolist():
        also = related[random.integers(0, len(names), 70)].tolist()
        item = {"asin": names[row], "description": next(described), "title": next(titled)}
        if row < len(titles):
            item["title"] = titles[row]
        yield repr(
            item
            | {
                "price": round(float(random.gamma(2, 10)), 2),
                "imUrl": f"http://ecx.images-amazon.com/images/I/{row}.jpg",
            }
            | {"related": {"also_bought": also[:40], "also_viewed": also[40:66], "bought_together": also[66:]}}
            | {"salesRank": {DOMAIN: row}, "brand": str(words[row % len(words)])}
            | {"categories": [[DOMAIN, "Skin Care", "Face", "Creams & Moisturizers"]]}
        )


def all_ratings(log: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The 5-core's events among those of users who have four at most, as the 5-core was cut from."""
    random = np.random.default_rng(2)
    more = RATINGS - log.height
    users = np.sort(random.integers(0, more * 2 // 3, more))
    rank = np.arange(more) - np.searchsorted(users, users)  # of an event among its user's
    users = users * 8 + rank // 4
    popular = (random.pareto(0.8, more) * 20).astype(np.int64) % len(names)
    drawn = {
        "user_id": pl.Series(users).cast(pl.String).str.zfill(13).str.pad_start(14, "A"),
        "item_id": pl.Series(names).gather(pl.Series(popular)),
        "timestamp": START + random.integers(0, 3500, more) * DAY,
    }
    both = pl.concat([log.select(drawn.keys()), pl.DataFrame(drawn).cast({"timestamp": pl.Int64})], how="vertical")
    both = both.with_columns(rating=pl.Series(random.integers(1, 6, both.height)).cast(pl.Float64))
    return both.select("user_id", "item_id", "rating", "timestamp").sample(fraction=1.0, shuffle=True, seed=0)


def draw(folder: Path, names: list[str]) -> None:
    random = np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    for name in names[len(list(folder.iterdir())) :]:
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        coarse.resize((300, 300), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
