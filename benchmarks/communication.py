"""What processes that share a training step send each other: counted in the real code, and planned for larger machines.

Starts `--processes` processes on this CPU (gloo) that train together, counts what they hand to the exchanges of
`vlm2rec.parallel` in one step, holds it against the formula, and times the step and the exchanges. Then the formula for
Qwen2.5-VL-3B (LoRA of rank 16 on all projections) and the given bandwidths, on paper.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vlm2rec import parallel
from vlm2rec.config import parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.data.splits import Split
from vlm2rec.methods.vlm import build_encoder, build_objective, training_step
from vlm2rec.process import rank, world
from vlm2rec.training.batches import Samples, objective_arguments

# Qwen2.5-VL-3B: inputs and outputs of the seven projections of a decoder layer, and its layers.
_PROJECTIONS = ((2048, 2048), (2048, 256), (2048, 256), (2048, 2048), (2048, 11008), (2048, 11008), (11008, 2048))
_LAYERS, _WIDTH, _RANK, _HALF = 36, 2048, 16, 2
_VECTORS = 4  # a sample: history and target, titles and pictures
_PRODUCTS = 26  # of (B, D) and (D, N), that objective, its gradient and the logged figures make
_SAMPLES_PER_SECOND = 36.0  # of one H100, as aimed at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set; by default a shop is drawn")
    parser.add_argument("--backbone", default="nano", help="folder or hub name")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="samples a step, of all processes together")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nvlink", type=float, default=300e9, help="bytes/s a GPU sends within a node (reached)")
    parser.add_argument("--network", type=float, default=50e9, help="bytes/s a node sends (8 GPUs)")
    given = parser.parse_args()
    if world() > 1:
        count(given.data, given.backbone, given.batch, given.repeats)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = (
            given.data or prepare(ShopWorld(shoppers=300, products=150), Path(scratch) / "shop", picture_size=112).path
        )
        start(given, path)
        drawing(path)
    plan(given.nvlink, given.network)


def start(given: argparse.Namespace, path: Path) -> None:
    """This script again, in several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = str(given.processes)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    asked = ["--data", path, "--backbone", given.backbone, "--batch", given.batch, "--repeats", given.repeats]
    quiet = {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    all_ = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, asked)],
            env={**os.environ, **quiet, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(given.processes)
    ]
    if any([each.wait() for each in all_]):
        raise SystemExit("a process failed")


def count(path: Path, backbone: str, batch: int, repeats: int) -> None:
    """Train a few steps and print what went over the wire, from the first process."""
    config = parse_config(
        {
            "preset": "small",
            "data": {"path": str(path)},
            "method": {"kind": "vlm2rec"},
            "backbone": {"path": backbone},
            "training": {"batch_size": batch},
        }
    )
    parallel.start()
    split = Split(Dataset.load(path), config.data.max_history)
    encoder, objective = build_encoder(config), build_objective(config)
    encoder.add_lora(config.backbone.lora, seed=0)
    encoder.look_at(split.dataset, range(split.n_items))
    samples = Samples(split, config.training, 0)
    step = training_step(samples, split, encoder, objective, config)
    sent: dict[str, list[int]] = {"all_gather": [], "all_reduce": []}
    spent = [0.0]
    for name, place in (("all_gather", 1), ("all_reduce", 0)):
        setattr(dist, name, counted(getattr(dist, name), sent[name], place, spent))
    seconds, exchanges = [], []
    for k in range(repeats + 1):  # the first warms up
        for each in (*sent.values(), spent):
            each.clear()
        spent.append(0.0)
        dist.barrier()
        began = time.perf_counter()
        step(k, Tensor.backward)
        seconds.append(time.perf_counter() - began)
        exchanges.append(spent[0])
        encoder.zero_grad(), objective.zero_grad()
    if rank() > 0:
        return
    drawn = samples.batch(repeats)
    most = -(-len(drawn.histories) // world()) + -(-len(drawn.targets) // world())
    vectors = len(encoder.passes) * most * encoder.backbone.dim * encoder.model.dtype.itemsize
    trained = [p for each in (encoder, objective) for p in each.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained) + len(trained)
    print(f"{backbone}, {world()} processes, {batch} samples a step; load {os.getloadavg()[0]:.1f}")
    print(f"vectors a process sends    {sum(sent['all_gather']):>12,} bytes   formula {vectors:,}")
    print(f"gradients a process sums   {sum(sent['all_reduce']):>12,} bytes   formula {4 * numbers:,}")
    print(
        f"a step {np.median(seconds[1:]):.3f} s, of which exchanges, waiting included, {np.median(exchanges[1:]):.3f} s"
    )


def counted(exchange: Callable[..., Any], sent: list[int], place: int, spent: list[float]) -> Callable[..., Any]:
    """An exchange that notes the bytes of the tensor that a process hands over, and its time."""

    def noted(*arguments: Any, **options: Any) -> Any:
        if options.get("group") is None:
            sent.append(arguments[place].nbytes)
        began = time.perf_counter()
        found = exchange(*arguments, **options)
        spent[0] += time.perf_counter() - began
        return found

    return noted


def drawing(path: Path) -> None:
    """What every process does alike, however many there are: draw the whole batch."""
    split = Split(Dataset.load(path), 10)
    print("drawing the whole batch, on every process:", end="")
    for batch in (64, 512, 4096):
        given = {"preset": "small", "data": {"path": str(path)}, "training": {"batch_size": batch}}
        samples = Samples(split, parse_config(given).training, 0)
        samples.batch(0)
        began = time.perf_counter()
        drawn = samples.batch(0)
        objective_arguments(drawn, split, False, torch.device("cpu"))
        print(f"  {len(drawn.histories)} samples {1000 * (time.perf_counter() - began):.1f} ms", end="")
    print()


def plan(nvlink: float, network: float) -> None:
    """Bytes and milliseconds of a step for Qwen2.5-VL-3B, nothing overlapped; all batches as many samples a GPU."""
    lora = _LAYERS * _RANK * sum(map(sum, _PROJECTIONS))
    summed = 4 * lora
    print(f"\nQwen2.5-VL-3B: {lora:,} trained numbers, {summed / 1e6:.0f} MB of gradients")
    print(" GPUs  a GPU  gathered MB  gather ms  sum ms  loss ms  step ms   share")
    for gpus in (8, 64):
        nodes = gpus // 8
        for each in (8, 16, 32, 64):
            own = _VECTORS * each * _WIDTH * _HALF
            gather = own * (gpus - 1) / nvlink + own * 8 * (nodes - 1) / network
            total = 2 * summed * 7 / 8 / nvlink + 2 * summed * (nodes - 1) / nodes / network
            loss = _PRODUCTS * 2 * (gpus * each) ** 2 * _WIDTH / 50e12
            step = each / _SAMPLES_PER_SECOND
            share = (gather + total + loss) / (step + gather + total + loss)
            print(
                f"{gpus:>5}{each:>7}{own * gpus / 1e6:>13.1f}{1e3 * gather:>11.2f}{1e3 * total:>8.2f}"
                f"{1e3 * loss:>9.2f}{1e3 * step:>9.0f}{share:>8.1%}"
            )


if __name__ == "__main__":
    main()
