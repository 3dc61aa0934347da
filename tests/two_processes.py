"""What `test_processes.py` has several processes do at once: started as a script, once a process.

The same functions give the outcome of one process, where the test calls them itself.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from test_gradcache import ITEMS, USERS, Embedder, loss_of, objectives
from tiny_job import make_config, write_config
from torch import Tensor

from vlm2rec import cli, parallel
from vlm2rec.backbones.recompute import recompute
from vlm2rec.backbones.sharding import whole
from vlm2rec.config import Config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.encode import _make, encode, in_shards
from vlm2rec.job import run
from vlm2rec.methods.vlm import build_encoder, build_objective, fingerprint, training_step
from vlm2rec.process import rank, settle
from vlm2rec.training import loop
from vlm2rec.training.batches import Samples
from vlm2rec.training.shares import Shares, backward_in_shares

LORA = {"rank": 4, "dropout": 0.0}
DIES_AT = 3
CASES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "sft-parts": {"kind": "sft", "training": {"micro_batch": 2}},
    "vlm2rec": {"kind": "vlm2rec"},
    "vlm2rec-parts": {"kind": "vlm2rec", "training": {"micro_batch": 1}},
    "branched": {"kind": "vlm2rec", "training": {"prefixes": "branched", "samples": "all", "batch_size": 21}},
    "gated": {"kind": "vlm2rec", "prompt": {"combine": "gated"}},
    "internal": {"kind": "sft", "prompt": {"fusion": "internal"}},
    # Rows of few tokens: the processes need the model a different number of times.
    "sharded": {"kind": "vlm2rec", "backbone": {"sharded": True}, "evaluation": {"batch_tokens": 100}},
    "sharded-parts": {
        "kind": "vlm2rec",
        "backbone": {"sharded": True},
        "evaluation": {"batch_tokens": 100},
        "training": {"micro_batch": 2, "gradient_checkpointing": True},
    },
}


def config_of(data: Path, checkpoint: Path, kind: str, **sections: Any) -> Config:
    """A batch of 7 samples: no even share for two."""
    given = {"batch_size": 7, **sections.pop("training", {})}
    own = {"lora": LORA, **sections.pop("backbone", {})}
    return make_config(data, checkpoint, kind, training=given, backbone=own, **sections)


def pure(part: int | None) -> dict[str, Tensor]:
    """Gradients in float64 of a small network, for every objective."""
    found = {}
    for name, objective in objectives().items():
        embedder = Embedder()
        shares = Shares((USERS, ITEMS), copies=2)
        rows = np.arange(2 * (USERS + ITEMS))
        lists = (rows[: 2 * USERS].reshape(2, USERS), rows[2 * USERS :].reshape(2, ITEMS))
        own = [int(row) for number, copies in enumerate(lists) for some in copies for row in shares.own(number, some)]
        parameters = [*embedder.parameters(), *objective.parameters()]
        value = backward_in_shares(
            embedder, own, lambda v, o=objective: loss_of(o, v), part, Tensor.backward, shares, parameters
        )
        found[f"{name}.loss"] = value
        found |= {f"{name}.{i}": p.grad for i, p in enumerate(parameters) if p.grad is not None}
    return found


def gradients(data: Path, checkpoint: Path, step: int, kind: str, **sections: Any) -> tuple[dict[str, Tensor], Any]:
    """Loss and gradients of one batch, adapters that are no identity; and the encoder."""
    config = config_of(data, checkpoint, kind, **sections)
    split = Split(Dataset.load(data))
    encoder = build_encoder(config)
    encoder.add_lora(config.backbone.lora, seed=3)
    recompute(encoder.backbone, config.training.gradient_checkpointing)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    objective = build_objective(config)
    encoder.train(), objective.train()
    work = training_step(Samples(split, config.training, config.seed), split, encoder, objective, config)
    torch.manual_seed(0)
    figures = work(step, Tensor.backward)
    found = {
        name: parameter.grad.clone()
        for each in (encoder, objective)
        for name, parameter in each.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": torch.tensor(figures["loss"], dtype=torch.float64), **found}, encoder


def tables(data: Path, checkpoint: Path, out: Path) -> list[int]:
    """The catalogue by a sharded backbone and by a whole one; by hand in shards of 7, of which the second is there.

    Returns what this process embedded by hand.
    """
    split = Split(Dataset.load(data))
    histories = [split.history(user, "test").tolist() for user in range(split.n_users)]
    users = list(range(split.n_users))
    for name, sharded in (("whole", False), ("cut", True)):
        config = config_of(data, checkpoint, "vanilla", backbone={"sharded": sharded}, evaluation={"batch_tokens": 100})
        encoder = build_encoder(config)
        encode(encoder, split.dataset, histories, split.dataset.user_ids, out / name)
    whole_one = build_encoder(config_of(data, checkpoint, "vanilla"))
    done: list[int] = []

    def embed(some: Sequence[int]) -> dict[str, Tensor]:
        done.extend(some)
        return {"fused": whole_one.histories(split.dataset, [histories[user] for user in some]).fused}

    if rank() == 0:  # as a process that was killed left it
        _make(embed, users[7:14], out / "small.parts" / f"{7:09d}.npz")
        done.clear()
    parallel.barrier()
    in_shards(users, split.dataset.user_ids, embed, out / "small", "histories", shard=7)
    return done


def masks(part: int | None) -> dict[str, Tensor]:
    """What dropout lets through whenever something is embedded: `(calls, rows of the largest part, 32)`."""
    weight, seen = torch.nn.Parameter(torch.ones(32)), list[Tensor]()

    def embed(some: Sequence[int]) -> Tensor:
        vectors = torch.nn.functional.dropout(torch.ones(len(some), 32) * weight, 0.5)
        seen.append(torch.nn.functional.pad(vectors.detach(), (0, 0, 0, 4 - len(some))))
        return vectors

    torch.manual_seed(1)
    shares = Shares((7,))
    own = shares.own(0, range(7))
    backward_in_shares(embed, own, lambda v: v.square().sum(), part, Tensor.backward, shares, [weight])
    return {"seen": torch.stack(seen)}


def refused(*arguments: object) -> str:
    """What the command line says on either stream, and its status."""
    said, leave = io.StringIO(), os._exit

    def stop(status: int) -> None:
        raise SystemExit(status)

    os._exit, sys.argv = stop, ["vlm2rec", *map(str, arguments)]  # type: ignore[assignment]
    try:
        with redirect_stderr(said), redirect_stdout(said):
            cli.main()
    except SystemExit as stopped:
        return f"{stopped.code} {said.getvalue()}"
    finally:
        os._exit = leave
    raise AssertionError("nothing was refused")


def dying(step: int) -> Callable[..., float]:
    """The learning rate, but the second process is killed when it asks for that of a step."""
    real = loop.learning_rate

    def rate(k: int, *arguments: Any) -> float:
        if k == step and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(k, *arguments)

    return rate


def main(data: Path, checkpoint: Path, out: Path, job: Path) -> None:
    """Everything, in an order that leaves the deadly part for last."""
    settle()
    torch.set_num_threads(1)
    mine = out / f"process-{rank()}"
    mine.mkdir()
    for name, part in (("none", None), ("1", 1), ("7", 7)):
        save_file(pure(part), mine / f"pure-{name}.safetensors")
    for name, sections in CASES.items():
        found, encoder = gradients(data, checkpoint, 2, **sections)
        save_file(found, mine / f"{name}.safetensors")
        if name == "sharded":
            cut = {key: value for key, value in encoder.named_parameters() if type(value).__name__ == "DTensor"}
            (mine / "sharded.txt").write_text(
                f"{len(cut)} {sum(p.to_local().numel() for p in cut.values())} {fingerprint(encoder)}"
            )
            assert all("lora_" not in key and whole(value).shape == value.shape for key, value in cut.items())
            if rank() == 0:
                encoder.save(out / "saved")
    for part in (None, 2):
        save_file(masks(part), mine / f"masks-{str(part).lower()}.safetensors")
    (mine / "embedded.json").write_text(json.dumps(tables(data, checkpoint, out)))
    file = write_config(mine / "config.toml", config_of(data, checkpoint, "poprec"))
    (mine / "refused.txt").write_text(refused("run", file, "--out", out / "refused"))
    loop.learning_rate = dying(DIES_AT)
    parallel.barrier()
    run(config_of(data, checkpoint, "vlm2rec", training={"batch_size": 15, "prefixes": "separate"}), job)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
