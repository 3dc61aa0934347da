"""LLM2Rec (arXiv 2506.21579): a language model learns what follows what, then to embed single titles.

CSFT trains it to say the next title of a history; MNTP to fill blanks in a title under bidirectional attention; a
contrast of each title with itself, under two draws of attention dropout, shapes the vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlm2rec.backbones.align import batch as rows_of
from vlm2rec.backbones.bidirectional import attend, check_bidirectional, check_dropout, drop_attention
from vlm2rec.backbones.load import Backbone, load_backbone, towers
from vlm2rec.backbones.lora import add_lora
from vlm2rec.backbones.recompute import recompute
from vlm2rec.backbones.titles import IGNORED, WEIGHTS, Sample, TitleEncoder, language_parameters
from vlm2rec.config import Config, TrainingConfig
from vlm2rec.config import LLM2Rec as Settings
from vlm2rec.damage import damage
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ADAPTED, ItemEmbedder, need_titles, validation_users
from vlm2rec.objectives import InfoNCE, Views
from vlm2rec.runs import Run
from vlm2rec.training.batches import Samples
from vlm2rec.training.gradcache import backward_in_parts
from vlm2rec.training.loop import Step
from vlm2rec.training.stages import Stage, drop_weights, fit_stages, stage_records

_VALIDATED = 2000  # users at most, unless evaluation.validation_users says otherwise
_MASKS = 3  # keeps the draws of masks apart from others of the same seed


class LLM2Rec(ItemEmbedder):
    """Three trainings of one language model; an item is the mean of its title's states, at raw norm."""

    tuning: "Tuning | None" = None

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """The language model, by its adapters or whole, and the vectors."""
        assert isinstance(self.config.method, Settings)
        weights = ADAPTED[1:] if self.config.method.tuning == "lora" else (f"model/{WEIGHTS}",)
        return {**super().leaves, "train": ("model/titles.json", *weights)}

    def check(self, trained: bool) -> None:
        """Titles in the data that fit the context, and a language model that can be made to look both ways."""
        need_titles(self.split, "method.kind = 'llm2rec' needs; prepare it with titles")
        if trained:
            return
        backbone, path = load_backbone(self.config.backbone, head=True), self.config.backbone.path
        self.tuning = Tuning(self.config, self.split, backbone)
        self.tuning.check_lengths()
        check_bidirectional(backbone, path)
        settings = self.tuning.settings
        if settings.contrast_steps and settings.contrast_dropout:
            check_dropout(backbone, settings.contrast_dropout, path)

    def train(self, run: Run) -> Mapping[str, Any]:
        """The stages, each in a folder of `stages/`, and the model to `model/`."""
        assert self.tuning is not None
        stages, folder, seed = self.tuning.stages(), run.path / "stages", self.config.seed
        if any(damage(run.path / name) for name in self.leaves["train"]):
            adapter = self.tuning.make_trainable()
            run.record(trainable=towers(self.tuning.backbone.model))
            fit_stages(self.tuning.module, stages, folder, seed, f"llm2rec seed {seed}")
            self.tuning.save(run.path / "model", adapter)
        drop_weights(stages, folder)
        found = stage_records(stages, folder)
        validation = found["csft"]["validation"] if "csft" in found else {}
        return {
            "validation": {f"csft_{name}": value for name, value in validation.items()},
            "steps": {name: record["steps"] for name, record in found.items()},
            "seconds": sum(record["seconds"] for record in found.values()),
        }

    def encode_items(self, run: Run) -> EmbeddingTable:
        """Every item to `items/`, by what `model/` holds."""
        self.tuning = None  # two models may not fit beside each other
        encoder, dataset = TitleEncoder.load(run.path / "model"), self.split.dataset

        def embed(items: Sequence[int]) -> Mapping[str, Tensor]:
            return {"fused": encoder([dataset.titles[item] for item in items])}

        return in_shards(range(self.split.n_items), dataset.item_ids, embed, run.path / "items", "items")


class Tuning:
    """The language model in training: what is trained, on what, in which stages.

    Only training events and the titles in them are trained on; validation targets choose between weights of the first
    stage.
    """

    def __init__(self, config: Config, split: Split, backbone: Backbone) -> None:
        assert isinstance(config.method, Settings) and backbone.generator is not None
        self.config = config
        self.settings = config.method
        self.split = split
        self.titles = split.dataset.titles
        self.backbone = backbone
        self.module: Any = backbone.generator
        self.encoder = TitleEncoder(backbone, config.prompt.max_title_tokens)
        self.read = self.encoder.read
        self.precision: torch.dtype = backbone.model.dtype
        every_prefix = {"samples": "all", "prefixes": "separate", "batch_size": self.settings.csft_batch}
        self.samples = Samples(split, config.training.model_copy(update=every_prefix), config.seed)

    @cached_property
    def items(self) -> np.ndarray:
        """Items of training events whose title has a token to blank, `(n,)`."""
        known = np.flatnonzero(self.split.popularity)
        return np.array([i for i in known if self.titles[i].strip() and self.read.maskable(self.titles[i])])

    def check_lengths(self) -> None:
        """Raise InputError where a prompt is longer than the backbone's context, or no title can be blanked."""
        if self.settings.csft_steps:
            longest = max(self._longest(self._read_of(user)) for user in range(self.split.n_users))
            what = f"a history of {self.split.max_history} titles and the next one take"
        else:
            longest = len(self.read.start) + max(len(self.read(title)) for title in self.titles)
            what = "the longest title takes"
        if longest > self.backbone.context:
            raise InputError(
                f"{what} {longest} tokens, the backbone reads {self.backbone.context};"
                " lower data.max_history or prompt.max_title_tokens"
            )
        if (self.settings.mntp_steps or self.settings.contrast_steps) and not len(self.items):
            raise InputError(f"{self.split.dataset.path}: no item to train on has a title of two tokens to learn from")

    def make_trainable(self) -> PeftModel | None:
        """Adapters in the language model, or all of it and its head in float32: small steps vanish in bfloat16."""
        recompute(self.backbone, self.config.training.gradient_checkpointing)
        if self.settings.tuning == "lora":
            return add_lora(self.backbone, self.settings.lora, self.config.seed)
        head = self.module.get_output_embeddings()
        for parameter in (*language_parameters(self.backbone).values(), *head.parameters()):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        return None

    def save(self, folder: Path, adapter: PeftModel | None) -> None:
        """Write what `TitleEncoder.load` reads."""
        self.encoder.save(folder, self.config.backbone, adapter, self.precision)

    def stages(self) -> list[Stage]:
        """Those that have steps, in order."""
        own, found = self.settings, []
        if own.csft_steps:
            steps = min(own.csft_steps, own.csft_epochs * self.samples.steps_per_epoch)
            epochs = min(max(1, own.csft_validations), steps)
            settings = self._numbers(own.csft_batch, own.csft_lr, own.csft_warmup, epochs)
            validate = self._validate if own.csft_validations else None
            step = self._token_step(self.next_titles, masked=False)
            found.append(Stage("csft", step, steps // epochs, settings, partial(self._attend, False, 0.0), validate))
        if own.mntp_steps:
            settings = self._numbers(own.mntp_batch, own.mntp_lr, warmup=0.0)
            step = self._token_step(self.blanked_titles, masked=True)
            found.append(Stage("mntp", step, own.mntp_steps, settings, partial(self._attend, True, 0.0)))
        if own.contrast_steps:
            settings = self._numbers(own.contrast_batch, own.contrast_lr, own.contrast_warmup)
            prepare = partial(self._attend, True, own.contrast_dropout)
            found.append(Stage("contrast", self._contrast_step, own.contrast_steps, settings, prepare))
        return found

    def next_titles(self, k: int) -> list[Sample]:
        """Batch k of CSFT."""
        drawn = self.samples.batch(k)
        targets = [drawn.targets[place] for place in drawn.positive]
        return [self._next_title(history, target) for history, target in zip(drawn.histories, targets, strict=True)]

    def blanked_titles(self, k: int) -> list[Sample]:
        """Batch k of MNTP."""
        rng = np.random.default_rng([self.config.seed, _MASKS, k])
        rows = rows_of(self.items, self.settings.mntp_batch, self.config.seed, k)
        return [self.read.masked(self.titles[item], self.settings.mask, rng) for item in rows]

    def _next_title(self, history: Sequence[int], target: int) -> Sample:
        return self.read.next_title([self.titles[item] for item in history], self.titles[target])

    def _read_of(self, user: int) -> np.ndarray:
        """What CSFT reads of a user: training events, and the validation target with all that is before it."""
        if self.split.targets["validation"][user] < 0:
            return self.split.train[user]
        return np.append(self.split.past(user, "validation"), self.split.target(user, "validation"))

    def _longest(self, events: np.ndarray) -> int:
        """Tokens of the longest window of a sequence as CSFT reads it; 0 where there is none."""
        if not len(events):
            return 0
        titles = [self.titles[item] for item in events]
        alone = np.array([len(self.read(title)) for title in titles])
        behind = np.array([len(self.read(title, follows=True)) for title in titles]) + len(self.read.comma)
        ends = np.concatenate([[0], np.cumsum(behind)])
        last = np.arange(1, len(ends))
        first = np.maximum(last - self.split.max_history - 1, 0)
        windows = ends[last] - ends[first] - behind[first] + alone[first]
        return int(windows.max()) + len(self.read.start) + len(self.read.end)

    def _numbers(self, batch_size: int, lr: float, warmup: float, epochs: int = 1) -> TrainingConfig:
        chosen = {"batch_size": batch_size, "lr": lr, "warmup": warmup, "epochs": epochs}
        return self.config.training.model_copy(update=chosen)

    def _attend(self, both_ways: bool, dropout: float) -> None:
        attend(self.backbone, both_ways)
        drop_attention(self.backbone, dropout)

    def _mixed(self) -> torch.autocast:
        """Float32 weights compute in the backbone's own precision."""
        wanted = self.settings.tuning == "full" and self.precision != torch.float32
        return torch.autocast(self.backbone.model.device.type, self.precision, enabled=wanted)

    def _parts(self, samples: Sequence[Sample], most: int) -> Iterator[list[Sample]]:
        """Samples of like length together, as many as memory holds."""
        size = self.settings.micro_batch or most
        ordered = sorted(samples, key=lambda sample: len(sample.ids))
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _token_step(self, samples: Callable[[int], list[Sample]], masked: bool) -> Step:
        def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
            drawn = samples(k)
            count, total = sum(map(asked, drawn)), 0.0
            for part in self._parts(drawn, len(drawn)):
                loss = self._token_loss(part, masked) / count
                backward(loss)
                total += float(loss.detach())
            return {"loss": total, "samples": float(len(drawn))}

        return step

    def _token_loss(self, samples: Sequence[Sample], masked: bool) -> Tensor:
        """Cross-entropy, summed over all that is asked in some samples."""
        longest = max(len(sample.ids) for sample in samples)
        rows = [[*sample.labels, *[IGNORED] * (longest - len(sample.ids))] for sample in samples]
        labels = torch.tensor(rows, device=self.backbone.model.device)
        with self._mixed():
            states, _ = self.backbone.states([sample.ids for sample in samples], masked=masked)
            logits = self.backbone.logits(states_before(states, labels))
        return token_loss(logits, labels)

    @torch.no_grad()
    def _validate(self, epoch: int) -> Mapping[str, float]:
        """Loss of saying the validation targets after what is before them."""
        users = validation_users(self.config, self.split, self.samples.users, _VALIDATED)
        samples = [
            self._next_title(self.split.history(user, "validation").tolist(), self.split.target(user, "validation"))
            for user in users.tolist()
        ]
        parts = self._parts(samples, self.settings.csft_batch)
        loss = sum(float(self._token_loss(part, masked=False)) for part in parts) / sum(map(asked, samples))
        return {"score": -loss, "loss": loss}

    def _contrast_step(self, k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        """Each title against itself under another dropout, the batch's other titles its negatives."""
        rows = rows_of(self.items, self.settings.contrast_batch, self.config.seed, k)
        titles = [self.read(self.titles[item]) for item in rows]
        negatives = torch.tensor([[one != other for other in titles] for one in titles])
        objective, part = InfoNCE(self.settings.temperature), self.settings.micro_batch

        def embed(some: Sequence[list[int]]) -> Tensor:
            with self._mixed():
                return self.encoder.pooled(some)

        def loss(vectors: Tensor) -> Tensor:
            first, second = vectors.chunk(2)
            found: Tensor = objective(Views(first), Views(second), negatives.to(vectors.device))
            return found

        value = backward_in_parts(embed, [*titles, *titles], loss, None if part is None else 2 * part, backward)
        return {"loss": float(value), "samples": float(len(titles))}


def asked(sample: Sample) -> int:
    """How many tokens of a sample are to be predicted."""
    return sum(label != IGNORED for label in sample.labels)


def states_before(states: Tensor, labels: Tensor) -> Tensor:
    """States `(P, D)` from which labels `(n, L)` are predicted: each the left neighbour's, of states `(n, L, D)`."""
    return states[:, :-1][labels[:, 1:] != IGNORED]


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of labels `(n, L)` given their logits `(P, V)` in reading order; summed, in float32."""
    wanted = labels[:, 1:]
    return cross_entropy(logits.float(), wanted[wanted != IGNORED], reduction="sum")
