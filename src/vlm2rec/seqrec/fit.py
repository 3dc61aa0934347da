"""Fitting a sequential model: next item at every position, best epoch by validation N@20, early stopping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from vlm2rec.config import EvaluationConfig, SeqRecConfig, TrainingConfig
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.splits import Split, Which
from vlm2rec.metrics import count, summarise
from vlm2rec.seqrec.items import Items, Norm, Phase
from vlm2rec.seqrec.models import LEARNING_RATES, GRU4Rec, Kind, SASRec
from vlm2rec.seqrec.windows import Windows
from vlm2rec.tasks import Products
from vlm2rec.training.loop import fit

_LOGITS_AT_ONCE = 1 << 25  # 128 MiB of float32
_USERS_AT_ONCE = 2048
TOLERANCE = 1e-5
"""Scores closer than this are ties: equal items may differ in the last bits of a float32 product."""


class SequenceModel(nn.Module):
    """A sequential model with its items: histories in, scores over the catalogue out."""

    def __init__(self, kind: Kind, items: Items, split: Split, settings: SeqRecConfig) -> None:
        super().__init__()
        self.items = items
        self.backbone: nn.Module
        if kind == "sasrec":
            self.backbone = SASRec(
                settings.dim, settings.layers, settings.heads, settings.inner, settings.dropout, split.max_history
            )
        else:
            self.backbone = GRU4Rec(settings.dim, settings.layers, settings.dropout)
        self.split = split
        self.validation: dict[str, Any] = {}
        """Figures of the epoch that was kept: N@20 and the others, `epoch`, `lr`, `seconds`, `epoch_seconds`."""

    def states(self, table: Tensor, histories: Tensor, users: Tensor, phase: Phase) -> Tensor:
        """States `(B, L, d)` of histories `(B, L)` of item indices, -1 for padding, of `users` `(B,)`."""
        states: Tensor = self.backbone(table[histories.clamp_min(0)])
        return self.items.users(states, users[:, None].expand_as(histories), phase)

    @torch.no_grad()
    def scorer(self, users: np.ndarray, which: Which) -> "SequenceScorer":
        """Scores of `users` with the history they have at validation or test."""
        self.eval()
        table = self.items()
        queries = [
            self._last(table, users[k : k + _USERS_AT_ONCE], which) for k in range(0, len(users), _USERS_AT_ONCE)
        ]
        states = torch.cat(queries)
        if not (torch.isfinite(states).all() and torch.isfinite(table).all()):
            raise FloatingPointError("the sequential model's states are not finite; lower seqrec.lr")
        return SequenceScorer(states.cpu().numpy(), table.cpu().numpy())

    def _last(self, table: Tensor, users: np.ndarray, which: Which) -> Tensor:
        histories, lengths = padded([self.split.history(int(user), which) for user in users], self.split.max_history)
        at = torch.from_numpy(users).to(table.device)
        states = self.states(table, histories.to(table.device), at, which)
        return states[torch.arange(len(users)), lengths - 1]


@dataclass(frozen=True)
class SequenceScorer(Products):
    """Dot products of states `(U, d)` and items `(N, d)`."""

    tolerance: float = TOLERANCE


def fit_sequential(
    kind: Kind,
    items: Callable[[], Items],
    split: Split,
    settings: SeqRecConfig,
    seed: int,
    folder: Path,
    evaluation: EvaluationConfig,
) -> SequenceModel:
    """Fit a model from `items()` for every learning rate of the settings and return the one that validates best.

    What is written under `folder` lets a killed fit continue. The weights of the epoch with the best N@20 on the
    `sampled` candidates of the validation targets are kept; test targets are never looked at.
    """
    best: SequenceModel | None = None
    rates = settings.lr or LEARNING_RATES[kind]
    for lr in rates:
        torch.manual_seed(seed)
        model = SequenceModel(kind, items(), split, settings)
        where = folder / f"lr-{lr:g}" if len(rates) > 1 else folder
        _fit_one(model, kind, split, settings, lr, seed, where, evaluation)
        if best is None or model.validation["N@20"] > best.validation["N@20"]:
            best = model
    assert best is not None
    return best.eval()


def fit_from_vectors(
    kind: Kind,
    items: Callable[[Norm], Items],
    norms: Sequence[Norm],
    split: Split,
    settings: SeqRecConfig,
    seed: int,
    folder: Path,
    evaluation: EvaluationConfig,
) -> SequenceModel:
    """As `fit_sequential`, for every norm of the vectors that `items` starts from; the one that validates best.

    `settings.norm` = "auto" tries `norms`, anything else that norm alone. Its name comes with the figures, as `norm`.
    """
    tried: list[SequenceModel] = []
    for norm in norms if settings.norm == "auto" else (settings.norm,):
        where = folder / f"{kind}-{norm}"
        model = fit_sequential(kind, partial(items, norm), split, settings, seed, where, evaluation)
        model.validation["norm"] = norm
        tried.append(model)
    best = max(tried, key=lambda model: model.validation["N@20"])
    best.validation["seconds"] = sum(model.validation["seconds"] for model in tried)
    return best


def _fit_one(
    model: SequenceModel,
    kind: Kind,
    split: Split,
    settings: SeqRecConfig,
    lr: float,
    seed: int,
    folder: Path,
    evaluation: EvaluationConfig,
) -> None:
    windows = Windows(split, model.items.targets or settings.targets, settings.batch_size, seed)
    loss = model.items.loss or settings.loss
    steps = windows.steps_per_epoch
    training = TrainingConfig(
        epochs=settings.epochs, lr=lr, schedule="constant", warmup=0, weight_decay=settings.weight_decay,
        clip=settings.clip, batch_size=max(2, settings.batch_size), checkpoint_every=max(1, steps),
    )  # fmt: skip
    state = fit(
        model,
        _step(model, windows, loss),
        steps_per_epoch=steps,
        settings=training,
        seed=seed,
        folder=folder,
        validate=_validate(model, split, evaluation),
        patience=settings.patience,
        title=f"{kind} lr {lr:g}",
    )
    figures = {name: value for name, value in state.best.items() if name != "score"}
    model.validation = {
        **figures,
        "epoch": state.best_epoch,
        "lr": lr,
        "seconds": state.seconds,
        "epoch_seconds": state.seconds / max(1, state.validated),
    }


def _step(
    model: SequenceModel, windows: Windows, loss: str
) -> Callable[[int, Callable[[Tensor], None]], Mapping[str, float]]:
    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        batch = windows.batch(k, negatives=loss == "bce")
        table = model.items()
        device = table.device
        inputs, targets = torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)
        states = model.states(table, inputs, torch.from_numpy(batch.users).to(device), "train")
        real = targets >= 0
        states, wanted = states[real], targets[real]
        if loss == "ce":
            value, total = full_softmax(states, table, wanted)
        else:
            assert batch.negatives is not None
            value = total = bce(states, table, wanted, torch.from_numpy(batch.negatives).to(device)[real])
        extra = model.items.penalty(wanted)
        backward(total if extra is None else total + extra)
        return {"loss": float(value.detach()), "samples": float(len(wanted))}

    return step


@torch.no_grad()
def _softmax_gradients(states: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy and its gradients in `states` and `table`, the logits overwritten in place, part by part."""
    rows = max(1, _LOGITS_AT_ONCE // len(table))
    value = states.new_zeros(())
    by_states, by_table = torch.empty_like(states), torch.zeros_like(table)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        logits = states[part] @ table.T
        logits -= logits.amax(1, keepdim=True)
        wanted = logits.gather(1, targets[part, None])
        total = logits.exp_().sum(1, keepdim=True)
        value += (total.log() - wanted).sum()
        by_states[part] = logits @ table / total - table[targets[part]]
        by_table.addmm_(logits.T, states[part] / total).index_add_(0, targets[part], states[part], alpha=-1)
    return value / len(targets), by_states / len(targets), by_table / len(targets)


def full_softmax(states: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of targets `(P,)` among all items, from states `(P, d)` and the table `(N, d)`.

    The `(P, N)` logits of a batch never stand in memory at once. What comes back is the loss, and a stand-in with the
    same gradient to call `backward` on.
    """
    value, by_states, by_table = _softmax_gradients(states, table, targets)
    return value, (states * by_states).sum() + (table * by_table).sum()


def bce(states: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Mean binary cross-entropy of targets and negatives, one each `(P,)`, from states `(P, d)` and table `(N, d)`."""
    positive = (states * table[targets]).sum(-1)
    negative = (states * table[negatives]).sum(-1)
    return -(logsigmoid(positive) + logsigmoid(-negative)).mean()


def _validate(model: SequenceModel, split: Split, evaluation: EvaluationConfig) -> Callable[[int], Mapping[str, float]]:
    users = split.sample("validation", evaluation.validation_users, evaluation.candidate_seed, "validation")
    drawn = draw_candidates(split, users, "validation", "sampled", evaluation.candidate_seed)
    listed = np.column_stack([split.targets_of(users, "validation"), np.maximum(drawn, 0)])

    def validate(epoch: int) -> Mapping[str, float]:
        scorer = model.scorer(users, "validation")
        above, ties = np.zeros((2, len(users)), np.int64)
        for start in range(0, len(users), _USERS_AT_ONCE):
            rows = np.arange(start, min(start + _USERS_AT_ONCE, len(users)))
            scores = scorer.among(rows, listed[rows])
            above[rows], ties[rows] = count(scores[:, 1:], scores[:, 0], drawn[rows] >= 0, TOLERANCE)
        figures = summarise(above, ties)
        return {"score": figures["N@20"], **figures}

    return validate


def padded(histories: list[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    """Histories as `(B, width)` of item indices, -1 behind their end, and their lengths `(B,)`."""
    lengths = torch.tensor([len(history) for history in histories])
    table = torch.full((len(histories), width), -1, dtype=torch.long)
    flat = torch.from_numpy(np.concatenate(histories).astype(np.int64))
    table[torch.arange(width) < lengths[:, None]] = flat
    return table, lengths
