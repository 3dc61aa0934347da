"""Prepare synthetic logs of 1M, 10M, 100M events: seconds, CPU seconds, peak memory, and how they grow.

    python benchmarks/scale.py --folder scratch --sizes 1 10 100        # millions of events

A log draws from a tenth as many users and items as it has events (ten million of each at 100M), some popular and most
not, with ids of 13 letters, times in no order and a rating. Items have titles of four words and no pictures. Each size
is prepared in a process of its own with a 5-core; writing the raw files does not count.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl

AT_ONCE = 1 << 22


def draw_log(folder: Path, events: int, ending: str) -> None:
    """Raw tables of that many events, written a few million at a time."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "interactions" if ending == "parquet" else folder).mkdir(parents=True)
    people = things = max(100, events // 10)
    words = pl.Series([f"word{number}" for number in range(2000)])
    rng = np.random.default_rng(0)
    title = pl.DataFrame({str(k): words[rng.integers(0, 2000, things)] for k in range(4)})
    number = pl.Series(np.arange(things))
    titles = title.select(pl.concat_str(pl.all(), separator=" ")).to_series()
    items = pl.DataFrame({"item_id": _ids("item", number), "title": titles})
    items.write_parquet(folder / "items.parquet")
    for part, start in enumerate(range(0, events, AT_ONCE)):
        size = min(AT_ONCE, events - start)
        # Powers of a uniform number fall on rank r as r to the -.8 (items) and -.5 (users): a long tail on both sides.
        user = (people * rng.random(size) ** 2).astype(np.int64)
        item = (things * rng.random(size) ** 5).astype(np.int64)
        table = pl.DataFrame(
            {
                "user_id": _ids("user", pl.Series(_mixed(user, people))),
                "item_id": _ids("item", pl.Series(_mixed(item, things))),
                "timestamp": rng.integers(1_500_000_000, 1_700_000_000, size),
                "rating": rng.integers(1, 6, size).astype(np.int8),
            }
        )
        if ending == "parquet":
            table.write_parquet(folder / "interactions" / f"part-{part:04d}.parquet")
        else:
            with (folder / "interactions.csv").open("ab") as file:
                table.write_csv(file, include_header=part == 0)


def _mixed(numbers: np.ndarray, n: int) -> np.ndarray:
    """Popular ones spread over all numbers."""
    return numbers * 7_919 % n


def _ids(kind: str, numbers: pl.Series) -> pl.Series:
    return kind + numbers.cast(pl.String).str.zfill(9)


CHILD = """
import json, resource, sys, time
from pathlib import Path
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
began = time.perf_counter()
marks = {}
def tell(stage, done, total):
    marks[stage] = time.perf_counter() - began
made = prepare(Local(Path(sys.argv[1])), Path(sys.argv[2]), require=["title"], progress=tell)
seconds = time.perf_counter() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "gib": usage.ru_maxrss / 2**20,
    "users": made.n_users, "items": made.n_items, "events": made.n_interactions, "marks": marks}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; 100M events take some 6 GB")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10], help="millions of events")
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    asked = parser.parse_args()
    for size in asked.sizes:
        raw, out = asked.folder / f"raw-{size:g}-{asked.format}", asked.folder / f"data-{size:g}"
        if not raw.exists():
            draw_log(raw, int(size * 1e6), asked.format)
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run([sys.executable, "-c", CHILD, raw, out], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
        print(
            f"{size:6g}M  {found['seconds']:7.1f} s  {found['cpu']:7.1f} s of CPU  {found['gib']:5.2f} GiB"
            f"  {found['seconds'] / size:.2f} us an event  kept {found['users']:,} users, {found['items']:,} items,"
            f" {found['events']:,} events",
            flush=True,
        )
        print("        ", "  ".join(f"{stage} until {at:.1f} s" for stage, at in found["marks"].items()), flush=True)


if __name__ == "__main__":
    main()
