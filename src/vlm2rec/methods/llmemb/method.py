"""LLMEmb (arXiv 2409.19925): a language model learns to tell items apart by their attributes (SCFT); the vectors,
shrunk by PCA, start a sequential model behind an adapter that is held close to collaborative vectors (RAT)."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from vlm2rec.backbones.load import Backbone, mean_over, towers
from vlm2rec.backbones.recompute import recompute
from vlm2rec.config import Config, TrainingConfig
from vlm2rec.config import LLMEmb as Settings
from vlm2rec.damage import damage
from vlm2rec.data.sources.shop import is_drawn
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ADAPTED, TABLES, ItemEmbedder
from vlm2rec.methods.llmemb.attributes import Clause, Pairs, attribute_columns, header, item_clauses, sentence
from vlm2rec.methods.vlm import build_encoder
from vlm2rec.runs import Run
from vlm2rec.seqrec.fit import SequenceModel, fit_sequential
from vlm2rec.seqrec.items import IdItems, Items, Norm, normalised
from vlm2rec.seqrec.windows import Windows
from vlm2rec.training.gradcache import backward_in_parts
from vlm2rec.training.loop import fit

Targets = Literal["soft", "onehot"]
_LEAST_TEMPERATURE = 1e-3


class LLMEmb(ItemEmbedder):
    """Task 1: cosines of SCFT vectors, or of what RAT makes of them (`method.task1`). Task 2: RAT."""

    norms: ClassVar[tuple[Norm, ...]] = ("none",)
    kept: ClassVar[Mapping[str, Sequence[str]]] = {
        **ItemEmbedder.kept,
        "encode": (*ItemEmbedder.kept["encode"], "stages/scft*", "stages/pca", "stages/sasrec-*"),
    }

    def __init__(self, config: Config, split: Split) -> None:
        super().__init__(config, split)
        self._encoder: Encoder | None = None

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """The adapters, and the vectors with their PCA, which Task 2 starts from."""
        return {**super().leaves, "train": ADAPTED, "encode": (*TABLES, "stages/pca")}

    @property
    def settings(self) -> Settings:
        """The method's own numbers."""
        assert isinstance(self.config.method, Settings)
        return self.config.method

    @cached_property
    def columns(self) -> list[str]:
        """The attributes that are read."""
        dataset = self.split.dataset
        return attribute_columns(dataset.items, self.settings.attributes, is_drawn(dataset))

    @cached_property
    def items(self) -> list[tuple[Clause, ...]]:
        """What is said of each item."""
        return item_clauses(self.split.dataset, self.columns)

    def check(self, trained: bool) -> None:
        """Items that differ in words, room for these words, and events for what RAT trains."""
        assert self.items
        if self.config.seqrec.backbones or self.settings.task1 == "rat":
            Windows(self.split, self.config.seqrec.targets, self.config.seqrec.batch_size, self.config.seed)
        if not trained:
            prompt = self.config.prompt.model_copy(update={"modalities": "text", "combine": "sum"})
            self._encoder = build_encoder(self.config.model_copy(update={"prompt": prompt}))
            taken = len(self._tokens(self._encoder.backbone, []))
            if taken >= self._limit(self._encoder.backbone):
                raise InputError(
                    f"method.max_tokens = {self.settings.max_tokens}: the line before an item's attributes takes"
                    f" {taken} tokens already; raise it"
                )

    def train(self, run: Run) -> Mapping[str, Any]:
        """SCFT; the last weights are kept, as in the source. The adapters go to `model/`."""
        config, settings, encoder = self.config, self.settings, self._encoder
        assert encoder is not None
        encoder.add_lora(settings.lora, config.seed)
        recompute(encoder.backbone, config.training.gradient_checkpointing)
        run.record(trainable=towers(encoder.backbone.model))
        loss = SCFTLoss(settings.temperature, settings.targets, settings.normalize)
        pairs = Pairs(self.items, settings.batch_size, settings.drop, config.seed)
        training = TrainingConfig(
            epochs=1, batch_size=settings.batch_size, lr=settings.lr, schedule="linear", warmup=0, weight_decay=0,
            clip=config.training.clip, checkpoint_every=config.training.checkpoint_every,
        )  # fmt: skip
        state = fit(
            nn.ModuleDict({"encoder": encoder, "loss": loss}),
            self._step(pairs, encoder, loss),
            steps_per_epoch=settings.steps,
            settings=training,
            seed=config.seed,
            folder=run.path,
            title=f"SCFT seed {config.seed}",
        )
        encoder.save(run.path / "model")
        learned = {"temperature": float(loss.temperature.detach()), "items": len(pairs), "attributes": self.columns}
        return {"steps": state.step, "seconds": state.seconds, **learned}

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Items by `encode_items`, histories by their mean; the manifest gets what PCA kept."""
        began = time.monotonic()
        super().encode(run, users)
        kept = EmbeddingTable.load(run.path / "stages" / "pca").manifest
        return {"seconds": time.monotonic() - began, "task1": self.settings.task1, "pca": kept}

    def encode_items(self, run: Run) -> EmbeddingTable:
        """SCFT vectors and their PCA; `items/` gets the former, or RAT's table (`method.task1`)."""
        stages, ids = run.path / "stages", self.split.dataset.item_ids
        direct = self.settings.task1 == "scft"
        scft = run.path / "items" if direct else stages / "scft"
        if damage(stages / "pca") or damage(scft):
            encoder = self._encoder or Encoder.load(run.path / "model")

            def embed(items: Sequence[int]) -> Mapping[str, Tensor]:
                rows = [self._tokens(encoder.backbone, self.items[item]) for item in items]
                return {"fused": mean_states(encoder.backbone, rows, encoder.batch_tokens)}

            vectors = in_shards(range(len(ids)), ids, embed, scft, "items")["fused"]
            reduced, share = principal(vectors, self.settings.dim)
            kept = {"asked": self.settings.dim, "kept": reduced.shape[1], "variance": share}
            EmbeddingTable(ids, {"fused": reduced}, kept).save(stages / "pca")
        if direct:
            return EmbeddingTable.load(scft)
        chosen = self.config.seqrec.norm
        norm = self.norms[0] if chosen == "auto" else chosen
        model = self._fit(run, partial(self.sequence_items, run, norm), f"sasrec-{norm}")  # Task 2 finds it done
        with torch.no_grad():
            table = EmbeddingTable(ids, {"fused": model.items().cpu().numpy()})
        table.save(run.path / "items")
        return table

    def sequence_items(self, run: Run, norm: Norm) -> Items:
        """RAT: PCA vectors behind the two-layer adapter, aligned with the vectors of a SASRec that knows ids alone."""
        settings, seqrec = self.settings, self.config.seqrec
        vectors = normalised(self.item_table(run.path / "stages" / "pca")["fused"], norm)
        known = self._collaborative(run) if settings.alignment else None
        tuned = seqrec.table == "tuned"
        return AlignedItems(vectors, seqrec.dim, known, settings.alignment, settings.alignment_temperature, tuned)

    def _collaborative(self, run: Run) -> np.ndarray:
        """Item vectors `(N, d)` of the SASRec row on the same split, fitted once, whatever is aligned with them."""
        out = run.path / "stages" / "ids" / "vectors"
        if damage(out):
            ids = self.split.dataset.item_ids
            with torch.random.fork_rng():  # or the adapter's start would depend on whether this was done before a kill
                model = self._fit(run, partial(IdItems, self.split.n_items, self.config.seqrec.dim), "ids")
            with torch.no_grad():
                EmbeddingTable(ids, {"fused": model.items().cpu().numpy()}, model.validation).save(out)
        return self.item_table(out)["fused"]

    def _fit(self, run: Run, items: Callable[[], Items], stage: str) -> SequenceModel:
        config = self.config
        folder = run.path / "stages" / stage
        return fit_sequential("sasrec", items, self.split, config.seqrec, config.seed, folder, config.evaluation)

    def _step(
        self, pairs: Pairs, encoder: Encoder, loss: "SCFTLoss"
    ) -> Callable[[int, Callable[[Tensor], None]], Mapping[str, float]]:
        part = self.settings.micro_batch
        embed = partial(mean_states, encoder.backbone, batch_tokens=encoder.batch_tokens)

        def both(vectors: Tensor) -> Tensor:
            value: Tensor = loss(*vectors.chunk(2))
            return value

        def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
            one, other = pairs.batch(k)
            rows = [self._tokens(encoder.backbone, clauses) for clauses in (*one, *other)]
            value = backward_in_parts(embed, rows, both, None if part is None else 2 * part, backward)
            return {"loss": float(value), "samples": len(one), "temperature": float(loss.temperature.detach())}

        return step

    def _tokens(self, backbone: Backbone, clauses: Sequence[Clause]) -> list[int]:
        """An item as token ids, its end of text included, cut at `max_tokens`."""
        end = backbone.tokenizer.eos_token_id
        around = [*backbone.wrapper(chat=False)[0]], [] if end is None else [int(end)]
        words = backbone.title_tokens(header(self.split.dataset.name) + sentence(clauses))
        return [*around[0], *words[: self._limit(backbone) - len(around[0]) - len(around[1])], *around[1]]

    def _limit(self, backbone: Backbone) -> int:
        return min(self.settings.max_tokens, backbone.context)


class SCFTLoss(nn.Module):
    """`soft_contrast` with a temperature that is learned, stored raw and kept positive in use."""

    def __init__(self, temperature: float, targets: Targets, normalize: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.targets: Targets = targets
        self.normalize = normalize

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Loss of two views `(B, D)`, a scalar."""
        return soft_contrast(one, other, self.temperature.clamp_min(_LEAST_TEMPERATURE), self.targets, self.normalize)


def soft_contrast(
    one: Tensor, other: Tensor, temperature: Tensor | float, targets: Targets = "soft", unit: bool = False
) -> Tensor:
    """Symmetric cross-entropy of X Y^T / tau, X = `one` and Y = `other`, both `(B, D)`: a mean over rows, a scalar.

    `soft`: against P = softmax over rows of tau (X X^T + Y Y^T) / 2, the backward direction against P^T, both part of
    the graph, as the source's code has it. `onehot`: against the diagonal, which is InfoNCE both ways. `unit`
    normalises the vectors first. In float32 or wider.
    """
    with torch.autocast(one.device.type, enabled=False):
        x, y = (view if view.dtype == torch.float64 else view.float() for view in (one, other))
        if unit:
            x, y = normalize(x, dim=-1), normalize(y, dim=-1)
        logits = x @ y.T / temperature
        if targets == "onehot":
            wanted = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        else:
            wanted = ((x @ x.T + y @ y.T) / 2 * temperature).softmax(dim=1)
        there = (wanted * log_softmax(logits, dim=1)).sum(1)
        back = (wanted.T * log_softmax(logits.T, dim=1)).sum(1)
        return -(there + back).mean() / 2


class AlignedItems(Items):
    """Given vectors `(N, D)` through two linear layers to d, held close to `known` `(N, d)` where there is one (RAT).

    The middle is half as wide as the vectors (768 for the source's 1536), but never narrower than the model.
    """

    loss = "bce"
    known: Tensor | None

    def __init__(
        self,
        vectors: np.ndarray,
        dim: int,
        known: np.ndarray | None,
        alignment: float,
        temperature: float,
        tuned: bool = False,
    ) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(np.array(vectors, dtype=np.float32)), requires_grad=tuned)
        width = self.table.shape[1]
        middle = max(width // 2, dim)
        self.adapter = nn.Sequential(nn.Linear(width, middle), nn.Linear(middle, dim))
        for name, parameter in self.adapter.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_normal_)(parameter)
        self.register_buffer("known", None if known is None else torch.from_numpy(np.array(known, dtype=np.float32)))
        self.alignment = alignment
        self.temperature = temperature

    def forward(self) -> Tensor:
        """All item vectors `(N, d)`."""
        adapted: Tensor = self.adapter(self.table)
        return adapted

    def penalty(self, positives: Tensor) -> Tensor | None:
        """Alignment of the batch's targets, each once: an item there twice would be its own negative."""
        if self.known is None:
            return None
        items = positives.bincount().nonzero()[:, 0]
        return self.alignment * soft_contrast(self.known[items], self.adapter(self.table[items]), self.temperature)


def mean_states(backbone: Backbone, rows: Sequence[Sequence[int]], batch_tokens: int) -> Tensor:
    """Mean final state over the tokens of each row of ids, `(n, D)` in float32; rows of like length share a pass."""
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    at_once = max(1, batch_tokens // len(rows[order[0]]))
    means = []
    for start in range(0, len(order), at_once):
        states, real = backbone.states([rows[row] for row in order[start : start + at_once]])
        means.append(mean_over(states, real))
    return torch.cat(means)[torch.tensor(order).argsort().to(means[0].device)]


def principal(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
    """Vectors `(N, D)`, N > 1, on their first principal axes, `(N, k)` float32, and the share of variance these hold.

    k = min(dim, D, N - 1): there are no more axes. An axis points to where its largest entry is positive.
    """
    centred = np.asarray(vectors, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    kept = min(dim, centred.shape[1], len(centred) - 1)
    variances, axes = variances[::-1].clip(0), axes[:, ::-1][:, :kept]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(kept)])
    share = variances[:kept].sum() / max(variances.sum(), np.finfo(np.float64).tiny)
    return (centred @ axes).astype(np.float32), float(share)
