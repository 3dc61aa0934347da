"""How much faster every prefix trains as a branch than as a prompt of its own: both, side by side, in one process.

Each repetition times one training step of either kind (batch, prompts, forward, backward; not the optimizer, which is
the same), in turns, and takes the ratio of their samples a second. Visual tokens are made before the clock starts.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.data.splits import Split
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.vlm import build_encoder, build_objective, training_step
from vlm2rec.training.batches import Samples
from vlm2rec.training.loop import Step

KINDS = ("separate", "branched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set; by default a shop is drawn")
    parser.add_argument("--backbone", default="nano", help="folder or hub name")
    parser.add_argument("--method", default="vlm2rec", choices=("sft", "vlm2rec"))
    parser.add_argument("--batch", type=int, default=64, help="samples a step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        path = (
            given.data or prepare(ShopWorld(shoppers=300, products=150), Path(scratch) / "shop", picture_size=112).path
        )
        try:
            compare(path, given.backbone, given.method, given.batch, given.repeats)
        except InputError as error:
            raise SystemExit(str(error)) from None


def compare(path: Path, backbone: str, method: str, batch: int, repeats: int) -> None:
    """Time both kinds in turns and print the table."""
    configs = {kind: config(path, backbone, method, batch, kind) for kind in KINDS}
    one = configs["separate"]
    split = Split(Dataset.load(path), one.data.max_history)
    encoder, objective = build_encoder(one), build_objective(one)
    encoder.check_branches()
    encoder.add_lora(one.backbone.lora, seed=0)
    objective.to(encoder.device)
    encoder.look_at(split.dataset, range(split.n_items))
    steps = {
        kind: training_step(Samples(split, asked.training, 0), split, encoder, objective, asked)
        for kind, asked in configs.items()
    }
    read = counted(encoder)
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    tokens: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):  # the first warms up
        for kind in KINDS if repeat % 2 else reversed(KINDS):
            read.clear()
            seconds, samples = timed(steps[kind], repeat)
            encoder.zero_grad()
            if repeat:
                speeds[kind].append(samples / seconds)
                tokens[kind].append(sum(read) / samples)
    lengths = [len(events) for events in split.train]
    print(f"{backbone} on {encoder.device}, {torch.get_num_threads()} thread(s), {method}, {batch} samples a step")
    print(f"{split.dataset.name}: {np.mean(lengths):.1f} training events a user, windows of {split.max_history}")
    print(f"{'':10}{'samples/s':>12}{'min-max':>18}{'tokens a sample':>18}")
    for kind in KINDS:
        print(f"{kind:10}{spread(speeds[kind], 1)}{np.mean(tokens[kind]):18.0f}")
    ratios = [fast / slow for fast, slow in zip(speeds["branched"], speeds["separate"], strict=True)]
    print(f"{'ratio':10}{spread(ratios, 2)}   over {repeats} pairs of steps")


def config(path: Path, backbone: str, method: str, batch: int, kind: str) -> Config:
    return parse_config(
        {
            "preset": "small",
            "data": {"path": str(path)},
            "method": {"kind": method},
            "backbone": {"path": backbone},
            "training": {"samples": "all", "prefixes": kind, "batch_size": batch},
        }
    )


def counted(encoder: Encoder) -> list[int]:
    """A list that grows by the tokens, padding too, of every forward pass."""
    read: list[int] = []
    encoder.backbone.model.register_forward_hook(
        lambda _module, _args, kwargs, _output: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return read


def timed(step: Step, number: int) -> tuple[float, float]:
    """Seconds that a step takes, and its samples."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    samples = step(number, Tensor.backward)["samples"]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, samples


def spread(values: Sequence[float], digits: int) -> str:
    """Median, then the smallest and the largest."""
    return f"{np.median(values):12.{digits}f}{f'{min(values):.{digits}f}-{max(values):.{digits}f}':>18}"


if __name__ == "__main__":
    main()
