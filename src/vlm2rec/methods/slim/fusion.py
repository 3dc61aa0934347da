"""SLIM in Task 2: what texts say is joined with what ids have learned, for items and for users (WWW 2024)."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlm2rec.seqrec.items import IdItems, Items, Norm, Phase, normalised


class FusedItems(Items):
    """z_i = f([g(text_i); id_i]) and s_u = f'([g(rationale_u); state_u]), all of them linear; the texts stay frozen.

    Trained as the source does, by binary cross-entropy with one negative, on the last position alone: a rationale
    is about one history, so a user has a single one in training.
    """

    loss: Literal["ce", "bce"] | None = "bce"
    targets: Literal["windows", "last"] | None = "last"

    def __init__(
        self,
        items: np.ndarray,
        rationales: Mapping[Phase, tuple[np.ndarray, np.ndarray]],
        n_users: int,
        dim: int,
        norm: Norm,
    ) -> None:
        """Take item vectors `(N, D)` and, for each phase, who has a rationale `(U,)` and its vectors `(U, D)`.

        Users are standardised by the mean and deviation of training, whatever the phase.
        """
        super().__init__()
        self.register_buffer("texts", torch.from_numpy(normalised(items, norm)))
        reference = rationales["train"][1]
        for phase, (users, vectors) in rationales.items():
            rows = torch.full((n_users,), -1)
            rows[torch.from_numpy(users)] = torch.arange(len(users))
            self.register_buffer(f"rows_{phase}", rows)
            self.register_buffer(f"rationales_{phase}", torch.from_numpy(_normalised_as(vectors, reference, norm)))
        self.ids = IdItems(len(items), dim)
        self.text = nn.Linear(items.shape[1], dim)
        self.item = nn.Linear(2 * dim, dim)
        self.user = nn.Linear(2 * dim, dim)
        for layer in (self.text, self.item, self.user):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self) -> Tensor:
        """All item vectors `(N, d)`."""
        joined: Tensor = self.item(torch.cat([self.text(self.get_buffer("texts")), self.ids()], dim=-1))
        return joined

    def users(self, states: Tensor, users: Tensor, phase: Phase) -> Tensor:
        """States `(…, d)` joined with the rationale that each of the users `(…,)` has in this phase.

        Raises ValueError where a user has none.
        """
        distinct, place = torch.unique(users, return_inverse=True)
        rows = self.get_buffer(f"rows_{phase}")[distinct]
        if (rows < 0).any():
            raise ValueError(f"user {int(distinct[rows < 0][0])} has no rationale in the phase {phase}")
        said = self.text(self.get_buffer(f"rationales_{phase}")[rows])[place]
        joined: Tensor = self.user(torch.cat([said, states], dim=-1))
        return joined


def _normalised_as(vectors: np.ndarray, reference: np.ndarray, norm: Norm) -> np.ndarray:
    """As `normalised`, with the mean and deviation of other vectors where those count."""
    if norm != "standardize":
        return normalised(vectors, norm)
    mean, deviation = reference.mean(0), np.maximum(reference.std(0), 1e-6)
    return np.asarray((vectors - mean) / deviation, np.float32)
