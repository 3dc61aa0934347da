"""How a text view and an image view become one vector: the sum of the paper (Eq. 2), and other ways (Table 5)."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlm2rec.weights import read_into, write_weights

GATE_FILE = "gate.safetensors"


class Gate(nn.Module):
    """How much of each modality goes into each number of the fusion: `g * text + (1 - g) * image`, learned.

    It starts at g = 1/2 everywhere, where every cosine is that of the sum (Eq. 2). Histories and items share it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """Fused vectors `(B, D)` float32 of two views `(B, D)`."""
        text, image = text.float(), image.float()
        # Directions alone, at a mean square of 1: the lengths of raw states differ by modality and by backbone.
        seen = torch.cat([normalize(view, dim=-1) for view in (text, image)], dim=1) * text.shape[1] ** 0.5
        share = torch.sigmoid(self.linear(seen))
        return share * text + (1 - share) * image

    def save(self, folder: Path | str) -> None:
        """Write the weights into a folder."""
        write_weights(Path(folder) / GATE_FILE, self.state_dict())

    def read(self, folder: Path | str) -> None:
        """Take the weights that `save` wrote. Raises InputError where they are missing, damaged or of another size."""
        read_into(Path(folder) / GATE_FILE, self.state_dict())


def fuse(
    text: Tensor,
    image: Tensor,
    combine: Literal["sum", "unit_sum", "concat", "gated"] = "sum",
    gate: Gate | None = None,
) -> Tensor:
    """Fused vectors of two views `(B, D)`, as `prompt.combine` says: `(B, D)`, or `(B, 2 D)` where concatenated."""
    match combine:
        case "sum":
            return text + image
        case "unit_sum":
            return normalize(text.float(), dim=-1) + normalize(image.float(), dim=-1)
        case "concat":
            return torch.cat([text, image], dim=1)
        case "gated":
            assert gate is not None
            return gate(text, image)  # type: ignore[no-any-return]
