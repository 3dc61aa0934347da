"""Training objectives: InfoNCE (Eq. 3), WPCL (Eqs. 6-10), CRTR (Eqs. 11-13) and their sum (Eq. 14).

They see tensors only. Similarities, softmaxes and penalties are computed in float32 or wider whatever comes
in: at a temperature of .001 cosines become logits of +-1000, which half precision cannot tell apart.

Where the paper is silent (see PAPERS.md): losses are means over the users that have a negative; the penalty
stays in the graph, because only then does the stop-gradient of Eq. 8 change anything.

`log_q` `(N,)`, not in the paper: the log of each target's share of what batches draw (logQ correction, Yi et al.,
RecSys 2019). Targets of other users stand in a batch as often as they are popular, so the plain loss learns to hold
popularity against an item; with `log_q` taken off the logits, it no longer does.
"""

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


class InfoNCE(nn.Module):
    """Contrast a user's next item with the negatives, on fused cosines (Eq. 3).

    `query` holds B users, `target` N items, `negatives[i, j]` says that item j is a negative of user i,
    `positive[i]` which item is i's own (None: item i, then N >= B). Returns a scalar: the mean over users with
    at least one negative; with no such user, 0 that still has a gradient.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar."""
        return _contrast(query, target, negatives, positive, self.temperature, None, log_q)


Penalty = Literal["adaptive", "detached", "constant"]


class WPCL(nn.Module):
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
        own = _own(positive, negatives)
        text, image = (
            _margin(z, e, negatives, own)
            for z, e in zip(_modalities(query, "query"), _modalities(target, "target"), strict=True)
        )
        return text, image

    def gap(self, query: Views, target: Views, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
        """Stronger margin, held fixed, less the weaker one, `(B,)`, >= 0 (Eqs. 7-8); 0 where one is missing."""
        both = torch.stack(self.margins(query, target, negatives, positive))
        both = both.masked_fill(both.isnan().any(dim=0), 0)  # what is not there does not lag behind
        strong, weak = both.amax(0), both.amin(0)
        return (strong.detach() if self.stop_gradient else strong) - weak

    def penalty(self, query: Views, target: Views, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
        """Weight of each user's negatives, `(B,)`, >= 1 (Eq. 9)."""
        gap = self.gap(query, target, negatives, positive)
        alpha, beta = self.alpha.clamp(min=0).to(gap.dtype), self.beta.clamp(min=0).to(gap.dtype)
        pull = alpha * gap
        weight = 1 + beta * torch.logaddexp(pull, torch.zeros_like(pull))
        if self.kind == "adaptive":
            return weight
        judged = negatives.any(dim=1)
        if self.kind == "constant" and bool(judged.any()):
            weight = weight[judged].mean().expand_as(weight)
        return weight.detach()

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar (Eq. 10, as a mean)."""
        penalty = self.penalty(query, target, negatives, positive)
        return _contrast(query, target, negatives, positive, self.temperature, penalty, log_q)

    def no_decay(self) -> list[nn.Parameter]:
        """Parameters that weight decay must leave alone: it would shrink the penalty by itself."""
        return [self.alpha, self.beta]


class CRTR(nn.Module):
    """Cross-modal Relational Topology Regularization (Eqs. 11-13).

    Each modality ranks all N targets for each user; the two distributions are pulled together by the mean of
    both KL divergences. Neither side is detached. `negatives` and `positive` are ignored. Users and targets that lack
    a modality take no part: there is nothing that their other one should agree with.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, query: Views, target: Views, negatives: Tensor | None = None, positive: Tensor | None = None
    ) -> Tensor:
        """Loss, a scalar >= 0."""
        sides = [_modalities(query, "query"), _modalities(target, "target")]
        users, items = (text.any(dim=1) & image.any(dim=1) for text, image in sides)
        if not bool(users.any() & items.any()):
            return (sides[0][0].sum() + sides[0][1].sum()) * 0
        text, image = (
            log_softmax(_cosine(z[users], e[items]) / self.temperature, dim=-1) for z, e in zip(*sides, strict=True)
        )
        forward = kl_div(image, text, reduction="batchmean", log_target=True)
        backward = kl_div(text, image, reduction="batchmean", log_target=True)
        return (forward + backward) / 2


class VLM2RecLoss(nn.Module):
    """`wpcl + weight * crtr` (Eq. 14); `weight * crtr` where `wpcl` is None (Table 5, "w/o WPCL")."""

    def __init__(self, wpcl: WPCL | None, crtr: CRTR, weight: float) -> None:
        super().__init__()
        self.wpcl = wpcl
        self.crtr = crtr
        self.weight = weight

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar."""
        crtr: Tensor = self.weight * self.crtr(query, target)
        return crtr if self.wpcl is None else self.wpcl(query, target, negatives, positive, log_q) + crtr


class EachModality(nn.Module):
    """`objective + weight * (InfoNCE on text + InfoNCE on pictures)`, both sides of one modality.

    A control that is not in the paper: it asks of each modality to be of use alone, and knows nothing of which is weak.
    """

    def __init__(self, objective: InfoNCE | WPCL | VLM2RecLoss, temperature: float, weight: float) -> None:
        super().__init__()
        self.objective = objective
        self.alone = InfoNCE(temperature)
        self.weight = weight

    def forward(
        self,
        query: Views,
        target: Views,
        negatives: Tensor,
        positive: Tensor | None = None,
        log_q: Tensor | None = None,
    ) -> Tensor:
        """Loss, a scalar."""
        value: Tensor = self.objective(query, target, negatives, positive, log_q)
        for z, e in zip(_modalities(query, "query"), _modalities(target, "target"), strict=True):
            among = comparable(z, e, negatives, positive)
            value = value + self.weight * self.alone(Views(z), Views(e), among, positive, log_q)
        return value


def comparable(query: Tensor, target: Tensor, negatives: Tensor, positive: Tensor | None = None) -> Tensor:
    """The `negatives` `(B, N)` that can be told from the positive in one modality, `query` (B, D) and `target` (N, D).

    None of a user who lacks the modality, or whose positive does; no target that lacks it.
    """
    there = target.any(dim=1)
    judged = query.any(dim=1) & there[_own(positive, negatives)]
    return negatives & there & judged[:, None]


Objective = InfoNCE | WPCL | VLM2RecLoss | EachModality


def _contrast(
    query: Views,
    target: Views,
    negatives: Tensor,
    positive: Tensor | None,
    temperature: float,
    penalty: Tensor | None,
    log_q: Tensor | None,
) -> Tensor:
    logits = _cosine(query.fused, target.fused) / temperature  # (B, N)
    _check_shapes(logits, negatives, positive)
    if log_q is not None:
        logits = logits - log_q.to(logits)
    rows = negatives.any(dim=1)
    if not bool(rows.any()):
        return logits.sum() * 0
    own = _own(positive, negatives)
    # Rows without a negative go first: the logsumexp of nothing has no gradient.
    logits, negatives, own = logits[rows], negatives[rows], own[rows]
    against = logits.masked_fill(~negatives, -torch.inf).logsumexp(dim=1)
    if penalty is not None:
        against = against + penalty[rows].log()
    towards = logits.gather(1, own[:, None])[:, 0]
    return (torch.logaddexp(towards, against) - towards).mean()


def _margin(query: Tensor, target: Tensor, negatives: Tensor, own: Tensor) -> Tensor:
    cosine = _cosine(query, target)
    _check_shapes(cosine, negatives, own)
    among = comparable(query, target, negatives, own)
    towards = cosine.gather(1, own[:, None])[:, 0]
    against = (cosine * among).sum(1) / among.sum(1).clamp(min=1)
    return (towards - against).masked_fill(negatives.any(dim=1) & ~among.any(dim=1), torch.nan)


def _cosine(query: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        return _unit(query) @ _unit(target).T


def _unit(vectors: Tensor) -> Tensor:
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return normalize(wide, dim=-1, eps=1e-12)


def _check_shapes(cosine: Tensor, negatives: Tensor, positive: Tensor | None) -> None:
    """Raise InputError unless negatives `(B, N)` and positive `(B,)` go with the cosines `(B, N)`: else they spread."""
    users, items = cosine.shape
    if negatives.shape != cosine.shape or negatives.dtype != torch.bool:
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
