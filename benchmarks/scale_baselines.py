"""Seconds and memory of what stands between a prepared data set and a model, and of the rows that need no model.

Draws a data set's sequences (items by Zipf's law, ten events a user on average), or opens a prepared one (`--data`).
Each part is a process of its own: its largest resident set is the memory, what it has touched of the mapped sequences
included. A line's memory is what the part had taken when the line was done.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vlm2rec.config import ItemKNN, PopRec, Random, TrainingConfig
from vlm2rec.data.candidates import Kind, draw_candidates
from vlm2rec.data.cooccurrence import best_pairs
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split
from vlm2rec.methods.counts import counting_scorer
from vlm2rec.methods.notellm2.pairs import PairBatches
from vlm2rec.seqrec.windows import Windows
from vlm2rec.tasks import rank_users
from vlm2rec.training.batches import Samples

Step = tuple[str, int]  # what was done, and of how many
BATCHES = 200
DRAWN_AT_ONCE = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=lambda text: int(float(text)), default=1_000_000)
    parser.add_argument("--items", type=lambda text: int(float(text)), default=10_000_000)
    parser.add_argument("--data", type=Path, help="a prepared data set, in place of a drawn one")
    parser.add_argument("--users", type=int, default=10_000, help="evaluated on drawn candidates")
    parser.add_argument("--full", type=int, default=1024, help="users evaluated on the whole catalogue")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--scratch", type=Path, help="where the drawn sequences are put; by default for this run only")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        measure(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = given.scratch or Path(folder)
        if given.data is None:
            draw(scratch, given.events, given.items)
        print(f"{'part':10}{'step':32}{'seconds':>9}{'of CPU':>9}{'rows':>14}{'rows/s':>15}{'GiB':>7}", flush=True)
        for part in given.parts:
            asked = ["--here", part, "--scratch", str(scratch)]
            subprocess.run([sys.executable, *sys.argv, *asked], check=True)


def measure(given: argparse.Namespace) -> None:
    """Run one part and print a line a step."""
    began, used = time.perf_counter(), time.process_time()
    dataset = stand_in(given.scratch) if given.data is None else Dataset.load(given.data)
    split = Split(dataset)
    done = [("split", dataset.n_interactions)] if given.here == "split" else PARTS[given.here](split, given)
    if given.here != "split":
        began, used = time.perf_counter(), time.process_time()
    for step, rows in done:
        seconds, busy = time.perf_counter() - began, time.process_time() - used
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        print(
            f"{given.here:10}{step:32}{seconds:9.2f}{busy:9.2f}{rows:14,}{rows / seconds:15,.0f}{held:7.2f}", flush=True
        )
        began, used = time.perf_counter(), time.process_time()


def draw(folder: Path, events: int, items: int) -> None:
    """Sequences of at least three events as `stand_in` reads them; not drawn again where they are."""
    asked = {"events": events, "items": items}
    note = folder / "drawn.json"
    if note.exists() and json.loads(note.read_text()) == asked:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lengths = 2 + rng.geometric(1 / 8, max(1, events // 10))
    np.save(folder / "lengths.npy", lengths)
    flat = np.lib.format.open_memmap(folder / "items.npy", "w+", np.int32, (int(lengths.sum()),))
    for start in range(0, len(flat), DRAWN_AT_ONCE):
        part = flat[start : start + DRAWN_AT_ONCE]
        part[:] = items ** rng.random(len(part)) - 1  # item k in proportion to 1 / (k + 1)
    flat.flush()
    note.write_text(json.dumps(asked))


def stand_in(folder: Path) -> Any:
    """What a Split reads of a data set, without its tables."""
    asked = json.loads((folder / "drawn.json").read_text())
    flat = np.load(folder / "items.npy", mmap_mode="r")
    sequences = Ragged.end_to_end(flat, np.load(folder / "lengths.npy"))
    return SimpleNamespace(
        path=folder,
        name="drawn",
        fingerprint=f"{asked}",
        sequences=sequences,
        n_users=len(sequences),
        n_items=asked["items"],
        n_interactions=len(flat),
        user_ids=Names(),
    )


class Names:
    """User ids that nobody has to keep."""

    def __getitem__(self, user: int) -> str:
        return f"u{user}"


def some(split: Split, count: int) -> np.ndarray:
    """Users all over the data set."""
    return np.unique(np.linspace(0, split.n_users - 1, count).astype(np.int64))


def candidates(kind: Kind) -> Callable[[Split, argparse.Namespace], Iterator[Step]]:
    def part(split: Split, given: argparse.Namespace) -> Iterator[Step]:
        users = some(split, given.users)
        draw_candidates(split, users, "test", kind, 0)
        yield "users", len(users)

    return part


def samples(**settings: object) -> Callable[[Split, argparse.Namespace], Iterator[Step]]:
    def part(split: Split, given: argparse.Namespace) -> Iterator[Step]:
        drawn = Samples(split, TrainingConfig.model_validate({"batch_size": 64, **settings}), 0)
        yield "made, of users", split.n_users
        drawn.batch(0)
        yield "an epoch's order, of samples", len(drawn)
        yield from batches(drawn.batch, drawn.steps_per_epoch, 64)

    return part


def windows(split: Split, given: argparse.Namespace) -> Iterator[Step]:
    drawn = Windows(split, "windows", 128, 0)
    yield "made, of users", split.n_users
    drawn.batch(0)
    yield "an epoch's order, of windows", len(drawn)
    yield from batches(lambda step: drawn.batch(step, negatives=True), drawn.steps_per_epoch, 128)


def batches(batch: Callable[[int], object], steps: int, size: int) -> Iterator[Step]:
    for step in np.linspace(0, steps - 1, BATCHES).astype(int):
        batch(int(step))
    yield f"rows of {BATCHES} batches", BATCHES * size


def pairs(split: Split, given: argparse.Namespace) -> Iterator[Step]:
    found, _ = best_pairs(split.train, split.n_items, 10, 10, 0.0)
    yield "10 pairs an item, of events", int(split.train.lengths.sum())
    drawn = PairBatches(found, split.n_items, 32, 0)
    yield "batches made, of pairs", len(found)
    drawn.batch(drawn.steps_per_epoch - 1)
    yield "an epoch's batches, of pairs", len(found)


def ranking(method: PopRec | ItemKNN | Random) -> Callable[[Split, argparse.Namespace], Iterator[Step]]:
    def part(split: Split, given: argparse.Namespace) -> Iterator[Step]:
        users = some(split, given.users)
        scorer = counting_scorer(method, split, users, "test", 0)
        yield "fitted, on events", int(split.train.lengths.sum())
        rank_users(scorer, split, users, "test", 0, ("sampled", "matched"))
        yield "ranked on two times 100, users", len(users)
        del scorer  # two need not stand in memory together
        users = some(split, given.full)
        scorer = counting_scorer(method, split, users, "test", 0)
        yield "fitted again, on events", int(split.train.lengths.sum())
        rank_users(scorer, split, users, "test", 0, ("full", "full_unseen"))
        yield "ranked on all, users", len(users)

    return part


PARTS: dict[str, Callable[[Split, argparse.Namespace], Iterator[Step]]] = {
    "split": lambda split, given: iter(()),
    "sampled": candidates("sampled"),
    "matched": candidates("matched"),
    "last": samples(),
    "all": samples(samples="all"),
    "branched": samples(samples="all", prefixes="branched"),
    "three": samples(samples="all", samples_per_user=3),
    "windows": windows,
    "pairs": pairs,
    "poprec": ranking(PopRec()),
    "itemknn": ranking(ItemKNN()),
    "random": ranking(Random()),
}


if __name__ == "__main__":
    main()
