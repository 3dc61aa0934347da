"""Prompts that begin alike, read as one: their common trunk once, and the end of each as a branch of its own.

The prompt of a history's prefix is a beginning of the whole history's prompt, but for the closing tokens. So one row
holds the longest prompt, the closing tokens once more for every shorter one, and three things that make the states at
their ends those of prompts read one by one: a closing token sees the trunk up to where its prompt leaves it, then its
own branch; it stands where it would stand in its own prompt; and the trunk sees no branch.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.vision import Visual


@dataclass(frozen=True)
class Tree:
    """Prompts of one trunk: prompt i is `trunk[: ends[i]] + tail`; `ends` do not fall, and the last is the whole."""

    trunk: list[int]
    ends: list[int]
    tail: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], tail: int) -> "Tree":
        """The tree of prompts that `grown` has put together, with `tail` closing tokens."""
        ends = [len(ids) - tail for ids in prompts]
        longest = prompts[-1]
        return cls(list(longest[: ends[-1]]), ends, list(longest[ends[-1] :]))

    def __len__(self) -> int:
        """Tokens of its row."""
        return len(self.trunk) + len(self.ends) * len(self.tail)


def grown(prompts: Sequence[tuple[Sequence[int], Sequence[Visual]]], tail: int) -> list[list[int]]:
    """Neighbours that make a tree, as their numbers in order; a prompt `(token ids, its pictures)` may be alone in it.

    A prompt joins where it differs from the one before it by some more trunk only: the last `tail` ids are the same,
    and what comes before them begins like the other's, to the very pictures.
    """
    groups: list[list[int]] = []
    for number, (ids, visuals) in enumerate(prompts):
        if groups and _continues(ids, visuals, *prompts[number - 1], tail):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


@dataclass(frozen=True)
class Layout:
    """Trees as n rows of L tokens, padded on the right; all but the last two `(n, L)`.

    Attributes:
        ids: token ids.
        branch: 0 on the trunk, then the branch's number, -1 on padding.
        anchor: place in the row of the last trunk token that a token sees; on the trunk that is itself.
        depth: how many tokens of its branch a token is behind its anchor; 0 on the trunk.
        rows: row of every prompt, tree by tree, `(m,)`.
        lasts: place in that row of the prompt's last token, `(m,)`.
    """

    ids: Tensor
    branch: Tensor
    anchor: Tensor
    depth: Tensor
    rows: Tensor
    lasts: Tensor

    @classmethod
    def of(cls, trees: Sequence[Tree], device: torch.device | str = "cpu") -> "Layout":
        """Lay out at least one tree."""
        longest = max(map(len, trees))
        fields: list[list[list[int]]] = [[], [], [], []]
        rows, lasts = [], []
        for row, tree in enumerate(trees):
            trunk, tail, count = len(tree.trunk), len(tree.tail), len(tree.ends)
            padding = longest - len(tree)
            values = (
                [*tree.trunk, *tree.tail * count, *[0] * padding],
                [*[0] * trunk, *(number for number in range(1, count + 1) for _ in tree.tail), *[-1] * padding],
                [*range(trunk), *(end - 1 for end in tree.ends for _ in tree.tail), *[0] * padding],
                [*[0] * trunk, *[*range(1, tail + 1)] * count, *[0] * padding],
            )
            for field, value in zip(fields, values, strict=True):
                field.append(value)
            rows += [row] * count
            # Without closing tokens a prompt ends on the trunk.
            lasts += [trunk + i * tail - 1 if tail else tree.ends[i - 1] - 1 for i in range(1, count + 1)]
        return cls(*(torch.tensor(values, device=device) for values in (*fields, rows, lasts)))

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What each token sees, to be added to its scores: 0, or the least number of `dtype`; `(n, 1, L, L)`."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        own = self.branch[:, :, None] == self.branch[:, None, :]
        below = (self.branch[:, None, :] == 0) & (place <= self.anchor[:, :, None])
        sees = ((own | below) & (place <= place[:, None]))[:, None]
        return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)

    def positions(self, trunk: Tensor) -> Tensor:
        """Positions of all tokens, given those of trunk tokens, `(axes, n, L)`: a branch goes on from its anchor.

        With several axes (M-RoPE) it goes on from the greatest of the anchor's, as text after a picture does.
        """
        near = trunk.gather(2, self.anchor.expand_as(trunk))
        return torch.where(self.depth == 0, near, near.amax(0) + self.depth)


def branch_states(backbone: Backbone, trees: Sequence[Tree], visuals: Sequence[Visual]) -> Tensor:
    """Final-layer state of the last token of every prompt, tree by tree, `(m, D)`: as `Backbone.last_states`.

    `visuals` are the pictures of all trunks, in reading order.
    """
    model: Any = backbone.model
    layout = Layout.of(trees, model.device)
    kinds = backbone.kinds(layout.ids)
    pictures: dict[str, Any] = {}
    if visuals:
        assert backbone.vision is not None
        pictures = backbone.vision.inputs(visuals)
    if "image_grid_thw" in pictures and "mm_token_type_ids" in kinds:
        # The model's own way of placing pictures on a grid. It takes the branches for text that follows the trunk.
        places, _ = model.get_rope_index(layout.ids, kinds["mm_token_type_ids"], pictures["image_grid_thw"])
        positions = layout.positions(places)
    else:
        places = torch.arange(layout.ids.shape[1], device=layout.ids.device)
        positions = layout.positions(places.expand(1, *layout.ids.shape))[0]
    states: Tensor = model(
        input_ids=layout.ids,
        attention_mask=layout.mask(model.dtype),
        position_ids=positions,
        use_cache=False,
        **kinds,
        **pictures,
    ).last_hidden_state
    return states[layout.rows, layout.lasts]


def why_not(backbone: Backbone) -> str | None:
    """What keeps a backbone from reading branches, as the end of a sentence; None where nothing is known to."""
    text = backbone.model.config.get_text_config()
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"} or getattr(text, "sliding_window", None):
        return "has layers that do not see the whole prompt (a sliding window, say)"
    if "position_ids" not in inspect.signature(backbone.model.forward).parameters:
        return "cannot be told the positions of its tokens"
    if "token_type_ids" in backbone.kinds(torch.zeros(1, 1, dtype=torch.long)):
        return "looks both ways inside a picture"
    return None


def _continues(
    ids: Sequence[int], visuals: Sequence[Visual], before: Sequence[int], seen: Sequence[Visual], tail: int
) -> bool:
    end = len(before) - tail
    return (
        len(ids) >= len(before)
        and ids[:end] == before[:end]
        and ids[len(ids) - tail :] == before[end:]
        and len(visuals) >= len(seen)
        and all(one is other for one, other in zip(visuals, seen, strict=False))
    )
