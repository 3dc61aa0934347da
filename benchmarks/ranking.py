"""How near ranking against the whole catalogue comes to the bare product of its tiles, and the memory it takes.

Draws unit vectors of users and items and ranks every user on `full` and `full_unseen`. Users go in groups; after each
group (or before it, in turns) the clock runs over the products of the same tiles, whose scores nobody looks at. All of
this is a process of its own: its largest resident set is the memory.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split
from vlm2rec.progress import progress
from vlm2rec.tasks import Cosine, item_blocks, rank_users, user_blocks

GROUPS = 10
ROWS = 10_000  # drawn at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        compare(given.users, given.items, given.dim)
        return
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run([sys.executable, *sys.argv, "--here"], env={**os.environ, **threads}, check=True)


def compare(users: int, items: int, dim: int) -> None:
    """Time both in turns and print the table."""
    rng = np.random.default_rng(0)
    vectors = Cosine(drawn(rng, users, dim), drawn(rng, items, dim))
    split = bought(rng, users, items)
    kinds = {"ranking": rank, "products": multiply}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    size = max(1, users // GROUPS)
    rank(vectors, split, np.arange(min(users, 8)))  # warms up
    with progress("groups", users) as tell:
        for number, start in enumerate(range(0, users, size)):
            group = np.arange(start, min(start + size, users))
            for kind in kinds if number % 2 else reversed(kinds):
                began = time.perf_counter()
                kinds[kind](vectors, split, group)
                seconds[kind].append(time.perf_counter() - began)
            tell(int(group[-1]) + 1, "")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{users:,} users, {items:,} items, {dim} numbers each; {torch.get_num_threads()} thread(s), load {load}")
    print(f"{'':10}{'seconds':>10}{'users/s':>10}{'TFLOP/s':>10}")
    for kind, taken in seconds.items():
        total = sum(taken)
        print(f"{kind:10}{total:10.1f}{users / total:10.0f}{2e-12 * users * items * dim / total:10.3f}")
    shares = [bare / whole for bare, whole in zip(seconds["products"], seconds["ranking"], strict=True)]
    print(f"share of the products' speed: {np.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f})")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    print(f"memory: {held / 2**20:.2f} GiB at the most, vectors {(users + items) * dim * 4 / 2**30:.2f} GiB of it")


def rank(vectors: Cosine, split: Split, group: np.ndarray) -> None:
    own = Cosine(vectors.queries[group], vectors.items)
    rank_users(own, split, group, "test", 0, ("full", "full_unseen"))


def multiply(vectors: Cosine, split: Split, group: np.ndarray) -> None:
    for part in user_blocks(len(group)):
        for columns in item_blocks(split.n_items):
            vectors.scores(group[part], columns)


def drawn(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Unit vectors `(count, dim)`."""
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, ROWS):
        part = vectors[start : start + ROWS]
        rng.standard_normal(part.shape, np.float32, part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def bought(rng: np.random.Generator, users: int, items: int) -> Split:
    """Histories of 4 to 12 events and their targets, without a data set on disk."""
    lengths = rng.integers(5, 14, users)
    sequences = Ragged.end_to_end(rng.integers(items, size=lengths.sum(), dtype=np.int32), lengths)
    names = [str(user) for user in range(users)]
    dataset: Any = SimpleNamespace(sequences=sequences, n_items=items, user_ids=names, fingerprint="")
    return Split(dataset)


if __name__ == "__main__":
    main()
