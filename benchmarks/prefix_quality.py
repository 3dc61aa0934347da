"""What every prefix as a target is worth for the same time: N@20 on the test users after equal CPU seconds of training.

Three ways to spend them: the last item of each user alone (the paper), every prefix as a prompt of its own, every
prefix of a window in one batch ("branched"). Each gets as many steps as fit into the budget by its own speed, measured
over its first steps, and a learning rate that falls to zero over just these. Seeds change adapters, batches and
dropout; users and candidates stay. Differences are tested over users (each one's mean over the seeds).
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlm2rec.compare import paired_test
from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.data.splits import Split, sample_users
from vlm2rec.demo import SETTINGS
from vlm2rec.encode import embed
from vlm2rec.methods.vlm import build_encoder, build_objective, training_step
from vlm2rec.metrics import ndcg
from vlm2rec.tasks import Cosine, rank_users
from vlm2rec.training.batches import Samples
from vlm2rec.training.loop import fit

WAYS = {
    "last item": {"samples": "last"},
    "separate": {"samples": "all"},
    "branched": {"samples": "all", "prefixes": "branched"},
}
MEASURED_STEPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared data set; by default the demo's shop is drawn")
    parser.add_argument("--method", default="sft", choices=("sft", "vlm2rec"))
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--users", type=int, default=500, help="test users")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        path = given.data or prepare(ShopWorld(), Path(scratch) / "shop", picture_size=112).path
        split = Split(Dataset.load(path), 10)
        users = sample_users(split.n_users, given.users, 0, "test")
        scores: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for seed in range(given.seeds):
            for way in WAYS:
                config = configured(path, given.method, given.batch, seed, way)
                found, steps, took = spend(config, split, users, given.seconds, Path(scratch) / f"{way}-{seed}")
                scores[way].append(found)
                print(f"seed {seed}  {way:10} {steps:4} steps, {took:.0f} s: N@20 {found.mean():.4f}", flush=True)
    print(f"\n{given.method}, {given.batch} samples a step, {given.seconds:.0f} CPU s, {len(users)} users")
    for way, values in scores.items():
        means = [float(value.mean()) for value in values]
        line = f"{way:10} N@20 {np.mean(means):.4f} ± {np.std(means, ddof=1) if len(means) > 1 else 0:.4f}"
        if way != "last item":
            gain, low, high, _, p = paired_test(np.mean(values, axis=0), np.mean(scores["last item"], axis=0))
            line += f"   {gain:+.4f} ({low:+.4f} to {high:+.4f}, p {p:.2g}) over the last item"
        print(line)


def configured(path: Path, method: str, batch: int, seed: int, way: str) -> Config:
    training = {"batch_size": batch, "lr": SETTINGS["training"]["lr"], "epochs": 1, **WAYS[way]}
    raw = {**SETTINGS, "seed": seed, "data": {"path": str(path)}, "method": {"kind": method}, "training": training}
    return parse_config(raw)


def spend(
    config: Config, split: Split, users: np.ndarray, seconds: float, folder: Path
) -> tuple[np.ndarray, int, float]:
    """Train for so long; each user's N@20 `(U,)`, the steps made, and the CPU seconds they took."""
    encoder, objective = build_encoder(config), build_objective(config)
    encoder.add_lora(config.backbone.lora, config.seed)
    encoder.look_at(split.dataset, range(split.n_items))
    module = nn.ModuleDict({"encoder": encoder, "objective": objective}).train()
    step = training_step(Samples(split, config.training, config.seed), split, encoder, objective, config)
    step(0, Tensor.backward)  # warms up
    began = time.process_time()
    for k in range(MEASURED_STEPS):
        step(k, Tensor.backward)
    steps = max(1, round(seconds * MEASURED_STEPS / (time.process_time() - began)))
    module.zero_grad()
    began = time.process_time()
    fit(
        module, step, steps_per_epoch=steps, settings=config.training, seed=config.seed, folder=folder,
        no_decay=list(objective.parameters()),
    )  # fmt: skip
    took = time.process_time() - began
    histories = [split.history(int(user), "test").tolist() for user in users]
    queries, items = (
        embed(encoder, split.dataset, some)["fused"] for some in (histories, [[i] for i in range(split.n_items)])
    )
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, items)]
    ranks = rank_users(Cosine(*unit), split, users, "test", 0, ("sampled",))
    return ndcg(ranks["above"].to_numpy(), ranks["ties"].to_numpy(), 20), steps, took


if __name__ == "__main__":
    main()
