"""Encoding, side by side in one process: pictures read ahead or in turns, and users event by event or anew.

Pictures are JPEG files. Each repetition has the tower look at all of them, and encodes all items into a table, with
threads that read ahead and without, in turns. Then users buy one item after the other: their vectors by
`Sessions.append_many`, and by `Encoder.histories`, whose pictures have been looked at in both cases.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlm2rec.backbones.gallery import Gallery
from vlm2rec.config import BackboneConfig, PromptConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.pictures.store import PictureFiles
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.encode import encode
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.sessions import Sessions


@dataclass
class NewItems:
    """Titles, and pictures that are decoded when they are asked for."""

    titles: list[str]
    pictures: PictureFiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set; by default a shop is drawn")
    parser.add_argument("--backbone", default="nano", help="folder or hub name")
    parser.add_argument("--fusion", default="external", choices=("external", "internal"))
    parser.add_argument("--items", type=int, default=384)
    parser.add_argument("--side", type=int, default=500, help="of the JPEG files, in pixels")
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--users", type=int, nargs="*", default=[1, 16], help="users who buy at the same time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = given.data
            if path is None:
                shop = ShopWorld(shoppers=1000, products=given.items)
                path = prepare(shop, Path(scratch) / "shop", picture_size=112, k_core=0).path
            items = jpegs(Dataset.load(path), given.items, given.side, Path(scratch) / "jpeg")
            prompt = PromptConfig(fusion=given.fusion)
            encoder = Encoder.build(BackboneConfig(path=given.backbone), prompt).eval()
        except InputError as error:
            raise SystemExit(str(error)) from None
        print(
            f"{given.backbone} on {encoder.device}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores,",
            end="",
        )
        print(f" load {os.getloadavg()[0]:.1f}; {len(items.titles)} pictures of {given.side} pixels, {given.fusion}")
        read_ahead(encoder, items, Path(scratch), given.repeats)
        for users in given.users:
            event_by_event(encoder, items, users, given.window, given.repeats)
        print(f"load {os.getloadavg()[0]:.1f}")


def jpegs(dataset: Dataset, count: int, side: int, folder: Path) -> NewItems:
    """The data set's first items that have a picture, their pictures as JPEG files."""
    folder.mkdir()
    there = [i for i in range(len(dataset.titles)) if dataset.pictures[i] is not None][:count]
    for i in there:
        picture = dataset.pictures[i]
        assert picture is not None
        Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    height = max(len(picture) for picture in dataset.pictures[: there[-1] + 1] if picture is not None)
    return NewItems([dataset.titles[i] for i in there], PictureFiles(folder, [f"{i}.jpg" for i in there], height))


def read_ahead(encoder: Encoder, items: NewItems, scratch: Path, repeats: int) -> None:
    """Pictures and items a second, with threads that read ahead and without."""
    tower, everything = encoder.backbone.vision, range(len(items.titles))
    assert tower is not None
    threads = Gallery(tower, keep=True).readers

    def pictures(readers: int) -> None:
        fresh(readers)
        encoder.look_at(items, everything)

    def vectors(readers: int) -> None:
        fresh(readers)
        with contextlib.redirect_stderr(io.StringIO()):
            ids = [str(i) for i in everything]
            encode(encoder, items, [[i] for i in everything], ids, scratch / "table", items=True)

    def fresh(readers: int) -> None:
        encoder.gallery = Gallery(tower, keep=True)
        encoder.gallery.readers = readers

    def decoded(_: int) -> None:
        for i in everything:
            tower.prepare([items.pictures[i]])

    print(f"{'a second':28}{'in turns':>22}{f'{threads} reading ahead':>22}{'ratio':>20}")
    for name, work in (("pictures, JPEG to tokens", pictures), ("items, JPEG to vector", vectors)):
        in_turns, ahead = alternately((lambda w=work: w(0), lambda w=work: w(threads)), repeats)
        rates = [[len(items.titles) / second for second in seconds] for seconds in (in_turns, ahead)]
        ratios = [slow / fast for slow, fast in zip(in_turns, ahead, strict=True)]
        print(f"{name:28}{spread(rates[0], 1)}{spread(rates[1], 1)}{spread(ratios, 2, 20)}")
    (seconds,) = alternately((lambda: decoded(0),), repeats)
    print(f"{'pictures read, one thread':28}{spread([len(items.titles) / second for second in seconds], 1)}")


@torch.no_grad()
def event_by_event(encoder: Encoder, items: NewItems, users: int, window: int, repeats: int) -> None:
    """Milliseconds that one more event of each user takes, by the length of the histories that it completes."""
    random = np.random.default_rng(0)
    bought = random.integers(len(items.titles), size=(users, window))
    encoder.look_at(items, set(bought.flatten().tolist()))
    times: dict[int, tuple[list[float], list[float]]] = {length: ([], []) for length in range(1, window + 1)}
    size = 0
    for repeat in range(repeats + 1):  # the first warms up
        sessions = Sessions(encoder, items, window, users)
        for length in range(1, window + 1):
            histories = bought[:, :length].tolist()
            events = [(user, int(bought[user, length - 1])) for user in range(users)]
            works = (lambda h=histories: encoder.histories(items, h), lambda s=sessions, e=events: s.append_many(e))
            for number in (0, 1) if repeat % 2 else (1, 0):
                took = timed(works[number])
                if repeat:
                    times[length][number].append(took)
            size = max(size, sessions.bytes)
    print(f"\n{users} user(s): ms an event of each{'anew':>22}{'one more event':>22}{'ratio':>20}")
    for length, (anew, more) in times.items():
        ratios = [slow / fast for slow, fast in zip(anew, more, strict=True)]
        print(f"history of {length:<17}", end="")
        print(f"{spread([1e3 * s for s in anew], 1)}{spread([1e3 * s for s in more], 1)}{spread(ratios, 2, 20)}")
    print(f"kept at most {size / users / 2**20:.2f} MiB a user")


def alternately(works: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds that each of them takes, in turns; the first round warms up and does not count."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        order = list(range(len(works)))
        for number in order if repeat % 2 else reversed(order):
            took = timed(works[number])
            if repeat:
                times[number].append(took)
    return times


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes, on a GPU until it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def spread(values: Sequence[float], digits: int, width: int = 22) -> str:
    """Median, then the smallest and the largest."""
    ends = f"({min(values):.{digits}f}-{max(values):.{digits}f})"
    return f"{f'{np.median(values):.{digits}f} {ends}':>{width}}"


if __name__ == "__main__":
    main()
