"""Vanilla, SFT and VLM2Rec: one encoder, one loop; they differ in the objective alone."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vlm2rec import parallel
from vlm2rec.backbones.recompute import recompute
from vlm2rec.backbones.sharding import evenly, whole
from vlm2rec.config import SFT, Config, Vanilla
from vlm2rec.damage import damage
from vlm2rec.data.splits import Split, Which
from vlm2rec.diagnostics import diagnose
from vlm2rec.diagnostics.measure import write_users
from vlm2rec.diagnostics.monitor import probe_steps
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import encode
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ADAPTED, TABLES, Embedder, asked_histories, need_pictures, validation_users
from vlm2rec.methods.probes import build_probe
from vlm2rec.objectives import CRTR, WPCL, EachModality, InfoNCE, Objective, VLM2RecLoss
from vlm2rec.process import rank, world
from vlm2rec.runs import Run, locked, replacing, write_json
from vlm2rec.tasks import Cosine, Scorer, metrics_of, rank_users
from vlm2rec.training.batches import Samples, objective_arguments
from vlm2rec.training.checkpoints import State
from vlm2rec.training.loop import Step, fit
from vlm2rec.training.shares import Shares, backward_in_shares


class VLM(Embedder):
    """Vanilla, SFT and VLM2Rec."""

    shared: ClassVar[bool] = True

    def __init__(self, config: Config, split: Split) -> None:
        super().__init__(config, split)
        self._encoder: Encoder | None = None
        self._trained = False  # whether that encoder is what `train` made of it

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """Figures at step 0, the encoder and the vectors, which vanilla has from step 0."""
        start = ("reference.json", "reference.parquet")
        if isinstance(self.config.method, Vanilla):
            return {**super().leaves, "reference": (*start, *TABLES), "train": ADAPTED[:1], "encode": ()}
        return {**super().leaves, "reference": start, "train": ADAPTED}

    @property
    def encoder(self) -> Encoder:
        """The encoder as it comes; `train` fine-tunes it in place."""
        if self._encoder is None:
            self._encoder = build_encoder(self.config)
        return self._encoder

    def check(self, trained: bool) -> None:
        """Pictures where the prompts show some, the longest prompts against the backbone's context, and samples."""
        if self.config.prompt.modalities != "text":
            need_pictures(
                self.split,
                f"prompt.modalities = {self.config.prompt.modalities!r} needs; prepare it with pictures, or set"
                " prompt.modalities=text",
            )
        if not trained:
            self.encoder.check(self.split.dataset, asked_histories(self.split))
        if not trained and not isinstance(self.config.method, Vanilla):
            samples = Samples(self.split, self.config.training, self.config.seed)
            size = min(len(samples), samples.batch_size)
            if size < world():
                raise InputError(
                    f"{world()} processes cannot share batches of {size} samples; start no more than {size}, or raise"
                    " training.batch_size"
                )
            if self.config.training.prefixes == "branched":
                self.encoder.check_branches()

    def reference(self, run: Run, users: np.ndarray, shared: Path | None) -> None:
        """Dropout and geometry at step 0, from the backbone as it comes."""
        config = self.config
        backbone = fingerprint(self.encoder)
        run.record(backbone={"fingerprint": backbone})
        key = [
            backbone,
            self.split.fingerprint,
            config.data.max_history,
            config.backbone.model_dump(mode="json", exclude={"path", "lora", "cache_vision", "compile", "sharded"}),
            config.prompt.model_dump(mode="json"),
            config.evaluation.model_dump(mode="json", include={"users", "candidate_seed"}),
        ]
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
        folder = (shared or run.path) / f"step-0-{digest}"
        lock = locked(folder.with_name(f"{folder.name}.lock")) if rank() == 0 else nullcontext()
        with lock:  # several runs of a sweep may come here at once
            parts = ("reference.json", "reference.parquet", *TABLES)
            if parallel.broadcast(any(damage(folder / name) for name in parts)):
                items = embed_items(self.encoder, self.split, folder / "items")
                histories = embed_histories(self.encoder, self.split, users, "test", folder / "histories")
                if rank() == 0:
                    found = diagnose(histories, items, self.split, users, config.evaluation.candidate_seed)
                    write_users(found.measured.users, folder / "reference.parquet")
                    figures = {name: value for name, value in found.figures().items() if name != "diagnosis"}
                    write_json(folder / "reference.json", figures)
        if rank() == 0:
            self._keep_reference(run, folder, drop=shared is None)

    def _keep_reference(self, run: Run, folder: Path, drop: bool) -> None:
        """What the run needs of the figures at step 0; `drop` where no other run will come for them."""
        for name in ("reference.json", "reference.parquet"):
            with replacing(run.path / name) as temporary:
                shutil.copyfile(folder / name, temporary)
        if isinstance(self.config.method, Vanilla):
            for name in TABLES:
                shutil.copytree(folder / name, run.path / name, dirs_exist_ok=True)
        if drop:
            (folder / "reference.json").unlink()  # first: it says that the rest is whole
            shutil.rmtree(folder)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)

    def train(self, run: Run) -> Mapping[str, Any]:
        """Fine-tune, where the method does; `model/` holds the encoder either way."""
        if isinstance(self.config.method, Vanilla):
            if rank() == 0:
                self.encoder.save(run.path / "model")
            return {}
        found = train(run, self.split, self.encoder)
        self._trained = True
        return found

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Items and the histories of the test users; step 0 has those of the backbone as it comes."""
        if isinstance(self.config.method, Vanilla):
            return {}
        began = time.monotonic()
        if not self._trained:
            self._encoder = None  # as it comes, where step 0 alone was done again: two may not fit beside each other
            self._encoder, self._trained = Encoder.load(run.path / "model"), True
        encode_items(run, self.split, self.encoder)
        embed_histories(self.encoder, self.split, users, "test", run.path / "histories")
        for leftover in (run.path / "checkpoints").glob("*-epoch-*"):
            if rank() == 0 and not leftover.name.startswith("best"):
                shutil.rmtree(leftover)
        return {"seconds": time.monotonic() - began}

    def trained_encoder(self, run: Run) -> Encoder:
        """The one that `train` saved."""
        return Encoder.load(run.path / "model")

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Cosines (Task 1); validation histories are embedded when asked for, and kept beside the test ones."""
        if which == "test":
            return super().scorer(run, users, which)
        out = run.path / "histories-validation"
        ids = [self.split.dataset.user_ids[user] for user in users]
        if damage(out) or EmbeddingTable.load(out).ids.tolist() != ids:
            embed_histories(self.trained_encoder(run), self.split, users, which, out)
        queries, items = EmbeddingTable.load(out), self.item_table(run.path / "items")
        return Cosine(queries.unit("fused"), items.unit("fused"))


def build_encoder(config: Config) -> Encoder:
    """The backbone of a configuration, without adapters."""
    return Encoder.build(config.backbone, config.prompt, config.evaluation.batch_tokens)


def build_objective(config: Config) -> Objective:
    """InfoNCE for SFT, WPCL + CRTR for VLM2Rec; `objective` has what Table 5 takes away and adds."""
    numbers = config.objective
    found: InfoNCE | VLM2RecLoss
    if isinstance(config.method, SFT):
        found = InfoNCE(numbers.temperature)
    else:
        wpcl = WPCL(numbers.temperature, numbers.alpha, numbers.beta, numbers.stop_gradient, numbers.penalty)
        found = VLM2RecLoss(wpcl if numbers.contrast else None, CRTR(numbers.crtr_temperature), numbers.weight)
    if numbers.modality_weight:
        return EachModality(found, numbers.temperature, numbers.modality_weight)
    return found


def train(run: Run, split: Split, encoder: Encoder) -> dict[str, Any]:
    """Fine-tune the encoder in place, keep the epoch that validates best, save it to `model/`.

    Returns what the manifest keeps: the best epoch's validation figures, steps, seconds, and why training was ended
    before its time, where it was.
    """
    config = run.config
    encoder.add_lora(config.backbone.lora, config.seed)
    recompute(encoder.backbone, config.training.gradient_checkpointing)
    objective = build_objective(config)
    run.record(trainable=encoder.towers())
    samples = Samples(split, config.training, config.seed)
    users = validation_users(config, split, samples.users)
    total = config.training.epochs * samples.steps_per_epoch
    probed = probe_steps(total, config.training.batch_size, config.monitor)
    state = fit(
        nn.ModuleDict({"encoder": encoder, "objective": objective}),
        training_step(samples, split, encoder, objective, config),
        steps_per_epoch=samples.steps_per_epoch,
        settings=config.training,
        seed=config.seed,
        folder=run.path,
        validate=_validate(run, split, encoder, users),
        no_decay=list(objective.parameters()),
        probe=build_probe(run, split, encoder, objective, samples, users, looks=len(probed) - 1),
        probe_steps=probed,
        title=f"{config.method.kind} seed {config.seed}",
    )
    if rank() == 0:
        encoder.save(run.path / "model")
    return {
        "validation": _validation(state),
        "steps": state.step,
        "seconds": state.seconds,
        "probe_seconds": state.probe_seconds,
        "users": len(samples.users),
        **({"stopped": state.stopped} if state.stopped else {}),
    }


def encode_items(run: Run, split: Split, encoder: Encoder) -> EmbeddingTable:
    """Items to `items/`; what validation of the best epoch embedded already is taken from there."""
    out = run.path / "items"
    done = run.manifest["done"].get("train")
    kept = _items_of_epoch(run, int(done["validation"]["epoch"])) if done else None
    if kept is not None and parallel.broadcast(not damage(kept)):
        if rank() == 0:
            shutil.copytree(kept, out, dirs_exist_ok=True)
        parallel.barrier()
        return EmbeddingTable.load(out)
    return embed_items(encoder, split, out)


def embed_items(encoder: Encoder, split: Split, out: Path) -> EmbeddingTable:
    """Every item of the catalogue to a table at `out`."""
    dataset = split.dataset
    return encode(encoder, dataset, [[i] for i in range(split.n_items)], dataset.item_ids, out, "items", items=True)


def embed_histories(encoder: Encoder, split: Split, users: np.ndarray, which: Which, out: Path) -> EmbeddingTable:
    """The histories that `users` have at validation or test to a table at `out`."""
    histories = [split.history(int(user), which).tolist() for user in users]
    return encode(encoder, split.dataset, histories, [split.dataset.user_ids[u] for u in users], out, "histories")


def fingerprint(encoder: Encoder) -> str:
    """A short hash of the backbone's weights: names, shapes and sums, so that it takes no second read."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(encoder.backbone.model.state_dict().items()):
        if "lora_" not in name:
            total = whole(value).double().sum().item()
            digest.update(f"{name.replace('.base_layer', '')}{tuple(value.shape)}{total:.10e}".encode())
    return digest.hexdigest()


def training_step(samples: Samples, split: Split, encoder: Encoder, objective: Objective, config: Config) -> Step:
    """One batch's gradients and figures, for `fit`."""
    part, embed = config.training.micro_batch, evenly(encoder, encoder.backbone)
    prompts_a_sample = 2 * len(encoder.passes)

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        batch = samples.batch(k)
        items = [[item] for item in batch.targets]
        shares = Shares((len(batch.histories), len(items)), len(encoder.passes))
        prompts = [
            prompt
            for number, rows in enumerate((batch.histories, items))
            for prompt in encoder.prompts(split.dataset, shares.own(number, rows))
        ]
        queries = len(batch.histories) * len(encoder.passes)
        there = [encoder.there(split.dataset, histories) for histories in (batch.histories, items)]
        negatives, positive, log_q = objective_arguments(batch, split, config.objective.logq, encoder.device)
        seen: dict[str, Tensor] = {}

        def loss(vectors: Tensor) -> Tensor:
            query = encoder.assemble(vectors[:queries], there[0])
            target = encoder.assemble(vectors[queries:], there[1])
            found = objective.terms(query, target, negatives, positive, log_q)
            seen.update(found.figures, loss=found.loss.detach())
            return found.loss

        trained = [p for each in (encoder, objective) for p in each.parameters() if p.requires_grad]
        most = None if part is None else part * prompts_a_sample
        backward_in_shares(embed, prompts, loss, most, backward, shares, trained)
        # Read together and last: to read one number is to wait for all that a GPU was told to do before it.
        numbers = torch.stack([value.double() for value in seen.values()]).tolist()
        logged = {name: number for name, number in zip(seen, numbers, strict=True) if not math.isnan(number)}
        return {**logged, "loss": numbers[-1], "samples": float(len(batch.histories))}

    return step


def _validate(run: Run, split: Split, encoder: Encoder, users: np.ndarray) -> Callable[[int], Mapping[str, float]]:
    config = run.config

    def validate(epoch: int) -> Mapping[str, float]:
        items = embed_items(encoder, split, _items_of_epoch(run, epoch))
        out = run.path / "checkpoints" / f"histories-epoch-{epoch:04d}"
        queries = embed_histories(encoder, split, users, "validation", out)
        if rank() > 0:
            return {}  # the first one's figures count
        ranks = rank_users(
            Cosine(queries.unit("fused"), items.unit("fused")),
            split,
            users,
            "validation",
            config.evaluation.candidate_seed,
            ("sampled",),
        )
        figures = metrics_of(ranks, "retrieval", "sampled")
        return {"score": figures["N@20"], **figures}

    return validate


def _items_of_epoch(run: Run, epoch: int) -> Path:
    return run.path / "checkpoints" / f"items-epoch-{epoch:04d}"


def _validation(state: State) -> dict[str, float]:
    figures = {name: value for name, value in state.best.items() if name != "score"}
    return {**figures, "epoch": state.best_epoch}
