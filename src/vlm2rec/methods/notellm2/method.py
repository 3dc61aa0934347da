"""NoteLLM-2 (arXiv 2405.16789): items that are bought together, contrasted fused and by their pictures alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm2rec.backbones.load import towers
from vlm2rec.backbones.recompute import recompute
from vlm2rec.config import NoteLLM2 as Settings
from vlm2rec.data.cooccurrence import best_pairs
from vlm2rec.data.ragged import Ragged
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ADAPTED, ItemEmbedder, need_pictures, need_titles
from vlm2rec.methods.notellm2.model import FUSION_FILE, PairLoss, RecordEmbedder
from vlm2rec.methods.notellm2.pairs import PairBatches
from vlm2rec.runs import Run
from vlm2rec.training.batches import Samples
from vlm2rec.training.gradcache import backward_in_parts
from vlm2rec.training.loop import Step, fit


class NoteLLM2(ItemEmbedder):
    """Trained on pairs of items; an item's vector is its fused one."""

    _embedder: RecordEmbedder | None = None

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """Adapters and late fusion, and the vectors."""
        return {**super().leaves, "train": (*ADAPTED, f"model/{FUSION_FILE}")}

    @property
    def settings(self) -> Settings:
        """The method's own numbers."""
        assert isinstance(self.config.method, Settings)
        return self.config.method

    def check(self, trained: bool) -> None:
        """Titles, pictures, a model with eyes, pairs to train on, and records that fit the context."""
        for need in (need_titles, need_pictures):
            need(self.split, "method.kind = 'notellm2' needs; prepare it with titles and pictures")
        if self.config.prompt.modalities != "both":
            raise InputError(
                f"prompt.modalities = {self.config.prompt.modalities!r}: method.kind = 'notellm2' reads titles and"
                " pictures; set prompt.modalities=both"
            )
        if self.settings.out_dim == 0:
            raise InputError("method.out_dim = 0: give a width of 1 or more, or -1 for the backbone's own")
        if trained:
            return
        self._batches = self._pairs()
        config = self.config
        prompt = config.prompt.model_copy(update={"combine": "sum"})  # fusion is the method's own
        encoder = Encoder.build(config.backbone, prompt, config.evaluation.batch_tokens)
        self._embedder = RecordEmbedder(encoder, self.split.dataset, self.settings.out_dim, config.seed)
        titles, digests = self.split.dataset.titles, self.split.dataset.pictures.digests
        shown = [item for item in range(self.split.n_items) if digests[item] is not None]
        self._embedder.prompts([max(shown, key=lambda item: len(titles[item]))])

    def train(self, run: Run) -> Mapping[str, Any]:
        """Contrast pairs from S[:-2]; adapters and late fusion to `model/`. Nothing is chosen on validation."""
        config, settings = self.config, self.settings
        embedder = self._embedder
        assert embedder is not None
        embedder.encoder.add_lora(config.backbone.lora, config.seed)
        recompute(embedder.encoder.backbone, config.training.gradient_checkpointing)
        objective = PairLoss(settings.scale, settings.visual_weight)
        fusion = sum(weight.numel() for weight in embedder.fusion.parameters())
        counts = {**towers(embedder.encoder.backbone.model), "late fusion": {"all": fusion, "trainable": fusion}}
        run.record(trainable=counts)
        numbers = {
            "epochs": settings.epochs,
            "batch_size": settings.batch_pairs,
            "micro_batch": settings.micro_batch,
            "lr": settings.lr,
            "warmup": settings.warmup,
            "weight_decay": settings.weight_decay,
        }
        state = fit(
            nn.ModuleDict({"embedder": embedder, "objective": objective}),
            training_step(self._batches, embedder, objective, settings.micro_batch),
            steps_per_epoch=self._batches.steps_per_epoch,
            settings=config.training.model_copy(update=numbers),
            seed=config.seed,
            folder=run.path,
            no_decay=[objective.scale],
            title=f"notellm2 seed {config.seed}",
        )
        embedder.save(run.path / "model")
        return {"steps": state.step, "seconds": state.seconds, "pairs": len(self._batches.pairs)}

    def encode_items(self, run: Run) -> EmbeddingTable:
        """Every item to `items/`: n'_m as `fused`, n'_v as `visual`.

        n'_v is no `image` view: nothing draws it towards the n'_m of other items, so what it finds among fused items
        would tell how far apart the two places in the prompt are, not whether the pictures were left behind.
        """
        if self._embedder is None:
            self._embedder = RecordEmbedder.load(run.path / "model", self.split.dataset, self.settings.out_dim)
        embedder = self._embedder.eval()

        def embed(items: Sequence[int]) -> Mapping[str, Tensor]:
            fused, visual = embedder(items).unbind(1)
            return {"fused": fused, "visual": visual}

        return in_shards(range(self.split.n_items), self.split.dataset.item_ids, embed, run.path / "items", "items")

    def _pairs(self) -> PairBatches:
        """Pairs of the training users, within `data.max_history` events of S[:-2]."""
        settings, split = self.settings, self.split
        users = Samples(split, self.config.training, self.config.seed).users
        sequences = Ragged(split.train.values, split.train.starts[users], split.train.lengths[users])
        chosen, highest = best_pairs(
            sequences, split.n_items, split.max_history, settings.neighbours, settings.min_count
        )
        if not len(chosen):
            best = f"the highest score is {highest:.3g}" if highest else "no user has two different items"
            raise InputError(
                f"{split.dataset.path}: no pair of items scores above method.min_count = {settings.min_count:g} in the"
                f" training histories ({best}); lower it"
            )
        return PairBatches(chosen, split.n_items, settings.batch_pairs, self.config.seed)


def training_step(batches: PairBatches, embedder: RecordEmbedder, objective: PairLoss, part: int | None) -> Step:
    """One batch's gradients and figures, for `fit`; at most `part` pairs at once in memory."""

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        batch = batches.batch(k)
        pairs = len(batch.rows) // 2
        rows = torch.from_numpy(batch.rows).to(embedder.encoder.device)
        negatives = torch.from_numpy(batch.negatives).to(embedder.encoder.device)
        logged: dict[str, float] = {"samples": float(pairs)}

        def loss(vectors: Tensor) -> Tensor:
            fused, visual = vectors[rows].unbind(1)
            value: Tensor = objective(fused, visual, negatives)
            with torch.no_grad():
                logged.update(
                    loss=float(value),
                    fused=float(objective.contrast(fused, negatives)),
                    visual=float(objective.contrast(visual, negatives)),
                    scale=float(objective.scale),
                )
            return value

        backward_in_parts(embedder, batch.items, loss, None if part is None else 2 * part, backward)
        return logged

    return step
