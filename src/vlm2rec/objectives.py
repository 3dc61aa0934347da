"""Training objectives: InfoNCE (Eq. 3), WPCL (Eqs. 6-10), CRTR (Eqs. 11-13) and their sum (Eq. 14).

They see tensors only. Calling an objective gives its loss, a scalar; `terms` gives the loss together with what it was
made of, for logs. Within one call the cosines of each view are computed once. Similarities, softmaxes and penalties are
computed in float32 or wider whatever comes in: at a temperature of .001 cosines become logits of +-1000, which half
precision cannot tell apart.

Where the paper is silent (see PAPERS.md): losses are means over the users that have a negative; the penalty
stays in the graph, because only then does the stop-gradient of Eq. 8 change anything.

`log_q` `(N,)`, not in the paper: the log of each target's share of what batches draw (logQ correction, Yi et al.,
RecSys 2019). Targets of other users stand in a batch as often as they are popular, so the plain loss penalises
popular items; with `log_q` taken off the logits, it no longer does.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize

from vlm2rec.errors import InputError


class Views(NamedTuple):
    """Last-token states of some sequences or items, each `(B, D)`, not normalised.

    `text` and `image` are None where only a joint pass was made (internal fusion, one modality). A row of zeros in one
    of them is a modality that is not there (an item without a picture, say): it is compared with nothing.
    """

    fused: Tensor
    text: Tensor | None = None
    image: Tensor | None = None


class Terms(NamedTuple):
    """A batch's loss, a scalar with its gradient, and what it was made of: scalars by name, detached."""

    loss: Tensor
    figures: Mapping[str, Tensor]


class Comparison:
    """A batch of B queries and N targets, and what the terms of an objective have in common: each view's cosines."""

    def __init__(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> None:
        self.query, self.target, self.negatives, self.log_q = query, target, negatives, log_q
        self._positive = positive

    @cached_property
    def own(self) -> Tensor:
        """Which target is each query's own, `(B,)`. Raises InputError where `negatives` or `positive` do not fit."""
        _check_shapes(len(self.query.fused), len(self.target.fused), self.negatives, self._positive)
        return _own(self._positive, self.negatives)

    @cached_property
    def fused(self) -> Tensor:
        """Cosines of the fused view, `(B, N)`."""
        return _cosine(self.query.fused, self.target.fused)

    @cached_property
    def modalities(self) -> "tuple[Modality, Modality]":
        """Text and image. Raises ValueError where the encoder made no such views."""
        sides = zip(_modalities(self.query, "query"), _modalities(self.target, "target"), strict=True)
        text, image = (Modality(self, query, target) for query, target in sides)
        return text, image

    def figures(self) -> dict[str, Tensor]:
        """Mean margin of each modality, mean gap, mean |z_T| / |z_V|: how a collapse is seen while it happens."""
        if self.query.text is None or self.query.image is None:
            return {}
        text, image = (modality.margin.detach() for modality in self.modalities)
        lengths = [view.detach().float().norm(dim=1) for view in (self.query.text, self.query.image)]
        return {
            "margin_text": text.nanmean(),
            "margin_image": image.nanmean(),
            "gap": (text - image).abs().nan_to_num(0.0).mean(),
            "norm_ratio": (lengths[0] / lengths[1])[(lengths[0] > 0) & (lengths[1] > 0)].mean(),
        }


class Modality:
    """One modality of a comparison: queries `(B, D)` and targets `(N, D)`, of which rows of zeros lack it."""

    def __init__(self, comparison: Comparison, query: Tensor, target: Tensor) -> None:
        self.query, self.target = query, target
        self._comparison = comparison

    @cached_property
    def cosines(self) -> Tensor:
        """`(B, N)`."""
        return _cosine(self.query, self.target)

    @cached_property
    def negatives(self) -> Tensor:
        """The negatives `(B, N)` that this modality can tell from the positive; see `comparable`."""
        return comparable(self.query, self.target, self._comparison.negatives, self._comparison.own)

    @cached_property
    def margin(self) -> Tensor:
        """Cosine to the positive less the mean cosine to the negatives, `(B,)` (Eq. 6); see `WPCL.margins`."""
        own, among = self._comparison.own, self.negatives
        towards = self.cosines.gather(1, own[:, None])[:, 0]
        against = (self.cosines * among).sum(1) / among.sum(1).clamp(min=1)
        return (towards - against).masked_fill(self._comparison.negatives.any(dim=1) & ~among.any(dim=1), torch.nan)


class Objective(nn.Module):
    """A loss on a batch of queries and targets; a new one defines `compute`.

    `query` holds B users, `target` N items, `negatives[i, j]` says that item j is a negative of user i,
    `positive[i]` which item is i's own (None: item i, then N >= B).
    """

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar."""
        return self.compute(Comparison(query, target, negatives, positive, log_q)).loss

    def terms(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Terms:
        """The loss, with the figures of the batch and of the objective; NaN where a batch has no such thing."""
        batch = Comparison(query, target, negatives, positive, log_q)
        found = self.compute(batch)
        with torch.no_grad():
            return Terms(found.loss, {**batch.figures(), **found.figures})

    def compute(self, batch: Comparison) -> Terms:
        """The loss, and figures of this objective alone."""
        raise NotImplementedError


class InfoNCE(Objective):
    """Contrast a user's next item with the negatives, on fused cosines (Eq. 3).

    The loss is the mean over users with at least one negative; with no such user, 0 that still has a gradient.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def compute(self, batch: Comparison) -> Terms:
        """The loss; there are no figures of its own."""
        return Terms(_contrast(batch.fused, batch.negatives, batch.own, self.temperature, batch.log_q), {})


Penalty = Literal["adaptive", "detached", "constant"]


class WPCL(Objective):
    """Weak-modality Penalized Contrastive Learning (Eqs. 6-10).

    InfoNCE whose negatives weigh `1 + beta * softplus(alpha * gap)` for each user, where the gap is by how much
    the weaker modality's margin falls short of the stronger one's. `alpha` and `beta` are learnable, stored raw
    and clamped at 0 in use (exclude them from weight decay: see `no_decay`).

    Two controls, not in the paper, keep the weights' size and take away a part of what they know: "detached" lets no
    gradient through them, "constant" gives every user of a batch the mean of their weights, and no gradient either.
    There is then nothing to learn `alpha` and `beta` from, so they stay as they are.
    """

    def __init__(
        self,
        temperature: float,
        alpha: float = 1.0,
        beta: float = 1.0,
        stop_gradient: bool = True,
        kind: Penalty = "adaptive",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.stop_gradient = stop_gradient
        self.kind = kind
        learnt = kind == "adaptive"
        self.alpha = nn.Parameter(torch.tensor(float(alpha)), requires_grad=learnt)
        self.beta = nn.Parameter(torch.tensor(float(beta)), requires_grad=learnt)

    def margins(
        self, query: Views, target: Views, negatives: Tensor, positive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per-user margin of each modality, text and image, `(B,)` (Eq. 6).

        Cosine to the positive less the mean cosine to the negatives; a user without negatives gets the former. NaN
        where the user, the positive or all negatives lack the modality.
        """
        text, image = Comparison(query, target, negatives, positive).modalities
        return text.margin, image.margin

    def gap(self, query: Views, target: Views, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
        """Stronger margin, held fixed, less the weaker one, `(B,)`, >= 0 (Eqs. 7-8); 0 where one is missing."""
        return self._gap(Comparison(query, target, negatives, positive))

    def penalty(self, query: Views, target: Views, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
        """Weight of each user's negatives, `(B,)`, >= 1 (Eq. 9)."""
        return self._penalty(Comparison(query, target, negatives, positive))

    def compute(self, batch: Comparison) -> Terms:
        """The loss (Eq. 10, as a mean), the mean penalty, and the two parameters."""
        penalty = self._penalty(batch)
        loss = _contrast(batch.fused, batch.negatives, batch.own, self.temperature, batch.log_q, penalty)
        figures = {"penalty": penalty.mean(), "alpha": self.alpha, "beta": self.beta, "wpcl": loss}
        return Terms(loss, {name: value.detach() for name, value in figures.items()})

    def no_decay(self) -> list[nn.Parameter]:
        """Parameters that weight decay must leave alone: it would shrink the penalty by itself."""
        return [self.alpha, self.beta]

    def _gap(self, batch: Comparison) -> Tensor:
        both = torch.stack([modality.margin for modality in batch.modalities])
        both = both.masked_fill(both.isnan().any(dim=0), 0)  # what is not there does not lag behind
        strong, weak = both.amax(0), both.amin(0)
        return (strong.detach() if self.stop_gradient else strong) - weak

    def _penalty(self, batch: Comparison) -> Tensor:
        gap = self._gap(batch)
        alpha, beta = self.alpha.clamp(min=0).to(gap.dtype), self.beta.clamp(min=0).to(gap.dtype)
        pull = alpha * gap
        weight = 1 + beta * torch.logaddexp(pull, torch.zeros_like(pull))
        if self.kind == "adaptive":
            return weight
        judged = batch.negatives.any(dim=1)
        if self.kind == "constant" and bool(judged.any()):
            weight = weight[judged].mean().expand_as(weight)
        return weight.detach()


class CRTR(Objective):
    """Cross-modal Relational Topology Regularization (Eqs. 11-13).

    Each modality ranks all N targets for each user; the two distributions are pulled together by the mean of
    both KL divergences. Neither side is detached. `negatives` and `positive` are ignored. Users and targets that lack
    a modality take no part: there is nothing that their other one should agree with.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor | None = None,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar >= 0."""
        if negatives is None:
            negatives = torch.zeros(len(query.fused), len(target.fused), dtype=torch.bool, device=query.fused.device)
        return super().forward(query, target, negatives, positive, log_q)

    def compute(self, batch: Comparison) -> Terms:
        """The loss, which is its one figure."""
        loss = self._loss(*batch.modalities)
        return Terms(loss, {"crtr": loss.detach()})

    def _loss(self, text: Modality, image: Modality) -> Tensor:
        users = text.query.any(dim=1) & image.query.any(dim=1)
        items = text.target.any(dim=1) & image.target.any(dim=1)
        if not bool(users.any() & items.any()):
            return (text.query.sum() + image.query.sum()) * 0
        of_text, of_image = (
            log_softmax(modality.cosines[users][:, items] / self.temperature, dim=-1) for modality in (text, image)
        )
        forward = kl_div(of_image, of_text, reduction="batchmean", log_target=True)
        backward = kl_div(of_text, of_image, reduction="batchmean", log_target=True)
        return (forward + backward) / 2


class VLM2RecLoss(Objective):
    """`wpcl + weight * crtr` (Eq. 14); `weight * crtr` where `wpcl` is None (Table 5, "w/o WPCL")."""

    def __init__(self, wpcl: WPCL | None, crtr: CRTR, weight: float) -> None:
        super().__init__()
        self.wpcl = wpcl
        self.crtr = crtr
        self.weight = weight

    def compute(self, batch: Comparison) -> Terms:
        """The loss, and the figures of both parts."""
        crtr = self.crtr.compute(batch)
        if self.wpcl is None:
            return Terms(self.weight * crtr.loss, crtr.figures)
        wpcl = self.wpcl.compute(batch)
        return Terms(wpcl.loss + self.weight * crtr.loss, {**crtr.figures, **wpcl.figures})


class EachModality(Objective):
    """`objective + weight * (InfoNCE on text + InfoNCE on pictures)`, both sides of one modality.

    A control that is not in the paper: it asks of each modality to be of use alone, and knows nothing of which is weak.
    """

    def __init__(self, objective: Objective, temperature: float, weight: float) -> None:
        super().__init__()
        self.objective = objective
        self.temperature = temperature
        self.weight = weight

    def compute(self, batch: Comparison) -> Terms:
        """The loss, and the figures of what it is added to."""
        loss, figures = self.objective.compute(batch)
        for modality in batch.modalities:
            alone = _contrast(modality.cosines, modality.negatives, batch.own, self.temperature, batch.log_q)
            loss = loss + self.weight * alone
        return Terms(loss, figures)


def comparable(query: Tensor, target: Tensor, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
    """The `negatives` `(B, N)` that can be told from the positive in one modality, `query` (B, D) and `target` (N, D).

    None of a user who lacks the modality, or whose positive does; no target that lacks it.
    """
    there = target.any(dim=1)
    judged = query.any(dim=1) & there[_own(positive, negatives)]
    return negatives & there & judged[:, None]


def _contrast(
    cosines: Tensor,
    negatives: Tensor,
    own: Tensor,
    temperature: float,
    log_q: Tensor | None,
    penalty: Tensor | None = None,
) -> Tensor:
    """InfoNCE of cosines `(B, N)`; a user's negatives weigh `penalty` `(B,)`."""
    logits = cosines / temperature
    if log_q is not None:
        logits = logits - log_q.to(logits)
    rows = negatives.any(dim=1)
    if not bool(rows.any()):
        return logits.sum() * 0
    # Rows without a negative go first: the logsumexp of nothing has no gradient.
    logits, negatives, own = logits[rows], negatives[rows], own[rows]
    against = logits.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
    if penalty is not None:
        against = against + penalty[rows].log()
    towards = logits.gather(1, own[:, None])[:, 0]
    return (torch.logaddexp(towards, against) - towards).mean()


def _cosine(query: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        return _unit(query) @ _unit(target).T


def _unit(vectors: Tensor) -> Tensor:
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return normalize(wide, dim=-1, eps=1e-12)


def _check_shapes(users: int, items: int, negatives: Tensor, positive: Tensor | None) -> None:
    """Raise InputError unless negatives `(B, N)` and positive `(B,)` fit B queries and N targets: else they spread."""
    if negatives.shape != (users, items) or negatives.dtype != torch.bool:
        raise InputError(
            f"negatives are {tuple(negatives.shape)} of {negatives.dtype}; give ({users}, {items}) of torch.bool, a row"
            " a query and a column a target"
        )
    if positive is not None and (positive.shape != (users,) or positive.dtype != torch.int64):
        raise InputError(
            f"positive is {tuple(positive.shape)} of {positive.dtype}; give ({users},) of torch.int64, a target a query"
        )
    if positive is None and items < users:
        raise InputError(f"{items} targets for {users} queries: give `positive`, or a target for every query")


def _own(positive: Tensor | None, negatives: Tensor) -> Tensor:
    if positive is None:
        return torch.arange(negatives.shape[0], device=negatives.device)
    return positive


def _modalities(views: Views, what: str) -> tuple[Tensor, Tensor]:
    if views.text is None or views.image is None:
        raise ValueError(f"{what} has no text and image views; this objective needs external fusion of both")
    return views.text, views.image
