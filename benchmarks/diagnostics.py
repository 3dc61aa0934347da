"""What `vlm2rec diagnose` takes for the files of a large catalogue: seconds, and the most memory its process held.

Draws two files of item vectors and a log, and diagnoses them as anybody would, in a process of its own. Vectors are
noise about a mean, histories of 4 to 12 events: figures mean nothing, and cost what real ones cost. Memory is the
largest resident set, the pages of the files that were mapped among it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from vlm2rec.progress import progress

ROWS = 10_000  # written at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the files are, or are to be kept; by default they are not")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        files = [folder / name for name in ("text.npy", "image.npy", "log.parquet")]
        if not all(path.exists() for path in files):
            draw(folder, given.items, given.width, given.users)
        shape = np.load(files[0], mmap_mode="r").shape
        print(
            f"{shape[0]:,} items, {shape[1]:,} numbers each, {users_of(files[2]):,} users; {os.cpu_count()} CPU cores"
        )
        seconds, mebibytes, status = diagnosed(*files)
        print(f"{seconds:.0f} s, {mebibytes / 1024:.2f} GiB (status: {status})")


def draw(folder: Path, items: int, width: int, users: int) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("text", "image"):
        vectors = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (items, width))
        with progress(f"drawing {name}", items) as tell:
            for start in range(0, items, ROWS):
                part = vectors[start : start + ROWS]
                part[:] = rng.standard_normal(part.shape, dtype=np.float32) + 0.5
                tell(start + len(part), "")
        vectors.flush()
    events = rng.integers(5, 14, users)
    owners = np.repeat(np.arange(users), events)
    log = {"user_id": owners, "item_id": rng.integers(items, size=len(owners)), "timestamp": np.arange(len(owners))}
    pl.DataFrame(log).write_parquet(folder / "log.parquet")


def users_of(log: Path) -> int:
    return int(pl.scan_parquet(log).select(pl.col("user_id").n_unique()).collect().item())


def diagnosed(text: Path, image: Path, log: Path) -> tuple[float, float, str]:
    """Seconds, MiB at the most, and the status that came of it."""
    asked = ["--text", text, "--image", image, "--sequences", log, "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vlm2rec", "diagnose", *map(str, asked)], stdout=subprocess.PIPE, check=True
    )
    seconds = time.perf_counter() - began
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    return seconds, held / 1024, json.loads(done.stdout)["diagnosis"]["status"]


if __name__ == "__main__":
    main()
