"""SASRec and GRU4Rec: from the vectors of a history to one state a position. Both look back only.

Histories are padded on the right. A position never looks ahead, so padding changes nothing and needs no mask; states
at padded positions mean nothing.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Kind = Literal["sasrec", "gru4rec"]

LEARNING_RATES: dict[Kind, tuple[float, ...]] = {"sasrec": (1e-3,), "gru4rec": (3e-3,)}
"""Tried where `seqrec.lr` gives none: LLM2Rec's for SASRec, three times that for GRU4Rec, which learns slowly."""

_START = 0.02  # deviation of positions at the start: that of the item table


class SASRec(nn.Module):
    """Causal self-attention over a history (arXiv 1808.09781), norm after each part and GELU, as LLM2Rec runs it."""

    def __init__(self, dim: int, layers: int, heads: int, inner: int, dropout: float, max_history: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_history, dim) * _START)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dim, heads, inner, dropout) for _ in range(layers))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `(B, L, d)`, oldest first, to states `(B, L, d)`."""
        states: Tensor = self.dropout(self.norm(vectors + self.positions[: vectors.shape[1]]))
        for block in self.blocks:
            states = block(states)
        return states


class GRU4Rec(nn.Module):
    """A recurrent net over a history (arXiv 1511.06939): stacked GRUs without bias, and a linear layer behind them.

    A GRU's states never leave [-1, 1], so without that layer scores could spread by the item table's growth alone.
    """

    def __init__(self, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, dim, layers, bias=False, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dense = nn.Linear(dim, dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `(B, L, d)`, oldest first, to states `(B, L, d)`."""
        states: Tensor = self.dense(self.dropout(self.gru(self.dropout(self.norm(vectors)))[0]))
        return states


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.rate = dropout
        self.look = nn.Linear(dim, 3 * dim)
        self.merge = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, inner)
        self.narrow = nn.Linear(inner, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, dim = states.shape
        parts = self.look(states).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        seen = scaled_dot_product_attention(parts[0], parts[1], parts[2], dropout_p=rate, is_causal=True)
        merged = self.merge(seen.transpose(1, 2).reshape(batch, length, dim))
        states = self.norms[0](states + self.dropout(merged))
        result: Tensor = self.norms[1](states + self.dropout(self.narrow(gelu(self.widen(states)))))
        return result
