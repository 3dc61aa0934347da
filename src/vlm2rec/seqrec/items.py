"""What a sequential model looks its items up in and scores them against.

One `(N, d)` table serves both ends: the item at a position of a history and the candidates at its output. Where it
comes from is a method's own affair: learned from nothing (the ID rows), or made from vectors by a linear adapter.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Phase = Literal["train", "validation", "test"]
Norm = Literal["l2", "standardize", "none"]


class Items(nn.Module):
    """Base: `forward()` gives all item vectors `(N, d)`. The rest is for methods whose source changes more than that.

    Attributes:
        loss: the loss that the method's source trains with; None leaves it to the settings.
        targets: the positions it trains on; None leaves it to the settings.
    """

    loss: Literal["ce", "bce"] | None = None
    targets: Literal["windows", "last"] | None = None

    def forward(self) -> Tensor:
        """All item vectors `(N, d)`."""
        raise NotImplementedError

    def users(self, states: Tensor, users: Tensor, phase: Phase) -> Tensor:
        """States of histories `(…, d)` of the users `(…,)`, changed by whatever else is known of them."""
        return states

    def penalty(self, positives: Tensor) -> Tensor | None:
        """A term to add to the loss, given the batch's targets `(n,)`."""
        return None


class IdItems(Items):
    """A vector an item, learned from nothing. Both ends of the table get their gradient."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(count, dim) * 0.02)

    def forward(self) -> Tensor:
        """All item vectors `(N, d)`."""
        return self.table


class TableItems(Items):
    """Given vectors `(N, D)` through one linear adapter to d; the vectors stay as they are unless `tuned` (Task 2)."""

    def __init__(self, vectors: np.ndarray, dim: int, tuned: bool = False) -> None:
        super().__init__()
        table = torch.from_numpy(np.array(vectors, dtype=np.float32))
        self.table = nn.Parameter(table, requires_grad=tuned)
        self.adapter = nn.Linear(table.shape[1], dim)
        nn.init.xavier_normal_(self.adapter.weight)
        nn.init.zeros_(self.adapter.bias)

    def forward(self) -> Tensor:
        """All item vectors `(N, d)`."""
        adapted: Tensor = self.adapter(self.table)
        return adapted


def normalised(vectors: np.ndarray, norm: Norm) -> np.ndarray:
    """A table `(N, D)` at unit length a row (`l2`), at mean 0 and variance 1 a column (`standardize`), or as it is."""
    wide = np.asarray(vectors, dtype=np.float32)
    if norm == "l2":
        return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float32)
    if norm == "standardize":
        return np.asarray((wide - wide.mean(0)) / np.maximum(wide.std(0), 1e-6), np.float32)
    return wide
