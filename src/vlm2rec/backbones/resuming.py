"""Prompts that go on from what a model has read before: keys and values of earlier tokens are kept, not made again.

Prompts of any lengths, behind beginnings of any lengths, are read as one packed row: no padding, no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.packing import Packed, Prompt, places_of, read_packed


@dataclass(frozen=True)
class Begun:
    """A prompt's first L tokens as attention needs them.

    Attributes:
        states: keys and values of every layer, `(layers, 2, H_kv, L, d)`.
        place: position of the token that comes next; not L where pictures stand on a grid.
    """

    states: Tensor
    place: int

    @property
    def tokens(self) -> int:
        """How many tokens were read, L."""
        return self.states.shape[3]


@torch.no_grad()
def read_on(
    backbone: Backbone, begun: Sequence[Begun | None], more: Sequence[Prompt], keep: Sequence[int]
) -> tuple[Tensor, list[Begun | None]]:
    """Read what comes next of some prompts: the last token's state of each, `(n, D)`, and what they have begun then.

    The backbone must be able to read packed prompts (`packing.why_not`).

    Args:
        backbone: the model.
        begun: what was read of each prompt; None: nothing.
        more: the tokens to read behind it, at least one, and their pictures.
        keep: how many of these tokens the result goes on from, the last of them no picture's; 0: it is None.
    """
    known = [0 if before is None else before.tokens for before in begun]
    own = [len(prompt.ids) for prompt in more]
    past = _Past([before.states for before in begun if before is not None])
    # Keys and values of all beginnings lie before those of the row.
    starts, own_starts = list(accumulate(known, initial=0)), list(accumulate(own, initial=sum(known)))
    row = Packed(lasts=[end - sum(known) - 1 for end in own_starts[1:]])
    for i, (before, prompt) in enumerate(zip(begun, more, strict=True)):
        row.ids.extend(prompt.ids)
        row.visuals.extend(prompt.visuals)
        row.positions.append(places_of(prompt, backbone) + (0 if before is None else before.place))
        row.keys.append(np.r_[starts[i] : starts[i + 1], own_starts[i] : own_starts[i + 1]])
    vectors = read_packed(backbone, row, past)
    made = torch.split(past.made(), own, dim=3)
    return vectors, [
        _grown(before, states[:, :, :, :kept], places[0, :kept]) if kept else None
        for before, states, places, kept in zip(begun, made, row.positions, keep, strict=True)
    ]


def _grown(before: Begun | None, states: Tensor, places: np.ndarray) -> Begun:
    grown = states.clone() if before is None else torch.cat([before.states, states], dim=3)
    return Begun(grown, int(places[-1]) + 1)


class _Past(DynamicCache):  # type: ignore[misc]
    """Keys and values of several beginnings, one behind the other, and of the row that goes on from all of them."""

    def __init__(self, begun: Sequence[Tensor]) -> None:
        super().__init__()
        self._begun = list(begun)
        self._made: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values, `(1, H_kv, P + T, d)`, for a layer that has made `(1, H_kv, T, d)` of the row."""
        self._made.append(torch.stack([key[0], value[0]]))
        if not self._begun:
            return key, value
        behind = [torch.cat([states[layer, part] for states in self._begun], dim=1)[None] for part in (0, 1)]
        return torch.cat([behind[0], key], dim=2), torch.cat([behind[1], value], dim=2)

    def made(self) -> Tensor:
        """What the layers have made, `(layers, 2, H_kv, T, d)`."""
        return torch.stack(self._made)
