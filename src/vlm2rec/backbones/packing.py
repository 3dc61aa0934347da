"""Prompts as one row without padding, in which what several of them begin with stands, and is read, once.

All prompts of a batch open with the same words; those of a history's prefixes have most of their tokens in common. So
a batch is a tree of pieces: each piece is a run of tokens that some prompts share behind the pieces they share
already. A token sees the pieces above its own and what came before it in its own, at the places it has in its own
prompt: its state is that of the prompt read alone.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from vlm2rec.backbones import attention
from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.vision import Visual

_WORTH = 8  # tokens saved, below which a piece of its own is not made: each is a call of its own on a CPU
_ROUNDING, _COARSE_ROUNDING = 0.01, 0.15  # of a vector's length, in float32 and in anything narrower


@dataclass(frozen=True)
class Prompt:
    """One forward pass's input: token ids and, in reading order, the visual tokens that they leave room for."""

    ids: list[int]
    visuals: list[Visual]


@dataclass
class Packed:
    """A row of T tokens in n pieces.

    Attributes:
        lasts: place in the row of the last token of every prompt.
        ids: token ids, T of them.
        positions: of each piece's tokens in their own prompt, `(axes, length)`; three axes on a grid, else one.
        keys: places in the row of the tokens that each piece sees, its own last.
        visuals: pictures in the order of the row.
    """

    lasts: list[int]
    ids: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)
    visuals: list[Visual] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each piece."""
        return [piece.shape[1] for piece in self.positions]


def packed_states(backbone: Backbone, prompts: Sequence[Prompt]) -> Tensor:
    """Final-layer state of the last token of every prompt, `(n, D)`, read as one row. `why_not` comes first."""
    packed = pack(prompts, backbone.image_token, _merge(backbone))
    return read_packed(backbone, packed)


def read_packed(backbone: Backbone, packed: Packed, past: Cache | None = None) -> Tensor:
    """The same of a row that is packed already; its `keys` count from the first of the tokens in `past`, if any."""
    model: Any = backbone.model
    lengths, seen = packed.lengths, [len(keys) for keys in packed.keys]
    ids, keys, lasts, starts, starts_seen = (
        _on(backbone, values)
        for values in (
            packed.ids, np.concatenate(packed.keys), packed.lasts, [0, *accumulate(lengths)], [0, *accumulate(seen)],
        )
    )  # fmt: skip
    positions = _on(backbone, np.concatenate(packed.positions, axis=1))
    pictures: dict[str, Any] = {}
    if packed.visuals:
        assert backbone.vision is not None
        pictures = backbone.vision.inputs(packed.visuals)
    states: Tensor = model(
        input_ids=ids[None],
        position_ids=positions if len(positions) == 1 else positions[:, None],
        # Not looked at; it keeps the model from making one of its own.
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device),
        use_cache=False,
        past_key_values=past,
        cu_seq_lens_q=starts.int(),
        cu_seq_lens_k=starts_seen.int(),
        max_length_q=max(lengths),
        max_length_k=max(seen),
        key_rows=keys,
        **backbone.kinds(ids[None]),
        **pictures,
    ).last_hidden_state
    return states[0, lasts]


@torch.no_grad()
def why_not(backbone: Backbone) -> str | None:
    """What keeps a backbone from reading packed prompts, as the end of a sentence; None where nothing does.

    A model may take bounds and positions and heed neither; so a few tokens are read both ways.
    """
    text = backbone.model.config.get_text_config()
    if set(getattr(text, "layer_types", None) or ()) - {"full_attention"} or getattr(text, "sliding_window", None):
        return "has layers that do not see the whole prompt (a sliding window, say)"
    if "position_ids" not in inspect.signature(backbone.model.forward).parameters:
        return "cannot be told the positions of its tokens"
    if "token_type_ids" in backbone.kinds(torch.zeros(1, 1, dtype=torch.long)):
        return "looks both ways inside a picture"
    if text._attn_implementation != attention.TEXT:
        return f"does not let its attention be replaced (it is {text._attn_implementation!r})"
    prompts = _trial(backbone)
    training = backbone.model.training
    backbone.model.eval()
    alone = torch.cat([backbone.last_states([prompt.ids], []) for prompt in prompts]).float()
    together = packed_states(backbone, prompts).float()
    backbone.model.train(training)
    error = float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max())
    if not error < (_ROUNDING if backbone.model.dtype == torch.float32 else _COARSE_ROUNDING):
        return "does not give packed prompts the vectors that it gives prompts read one by one"
    if not _on_a_grid(backbone):
        return "places the tokens of a picture otherwise than the Qwen-VL models do"
    return None


def rows(prompts: Sequence[Prompt], image_token: int | None, limit: int) -> list[list[int]]:
    """Which prompts go into a row together, by number: those that begin alike, as long as a row has `limit` tokens.

    A prompt longer than that has a row of its own.
    """
    signs = signatures(prompts, image_token)
    found: list[list[int]] = []
    size, before = 0, None
    for number in sorted(range(len(prompts)), key=signs.__getitem__):
        sign = signs[number]
        new = len(sign) - (0 if before is None else _common(before, sign))
        if not found or size + new > limit:
            found.append([])
            size, new = 0, len(sign)
        found[-1].append(number)
        size, before = size + new, sign
    return found


def pack(prompts: Sequence[Prompt], image_token: int | None, merge: int | None = None) -> Packed:
    """One row of some prompts; `merge` as in `places`."""
    signs = signatures(prompts, image_token)
    packed = Packed(lasts=[-1] * len(prompts))

    def grow(group: list[int], start: int, above: tuple[np.ndarray, ...]) -> None:
        """Add the pieces of some prompts, in order of their signs, that have their first `start` tokens in common."""
        end = _common(signs[group[0]], signs[group[-1]], start)  # what lies between two in order shares what they share
        ended = [i for i in group if len(signs[i]) == end]
        if end > start and (len(ended) == len(group) or (end - start) * (len(group) - 1) >= _WORTH):
            above = (*above, _add(packed, prompts[group[0]], start, end, above, image_token, merge))
            for i in ended:
                packed.lasts[i] = len(packed.ids) - 1
            group, start = group[len(ended) :], end  # the shortest come first
        for _, same in groupby(group, key=lambda i: signs[i][end : end + 1]):
            grow(list(same), start, above)

    grow(sorted(range(len(prompts)), key=signs.__getitem__), 0, ())
    return packed


def signatures(prompts: Sequence[Prompt], image_token: int | None) -> list[list[int]]:
    """Token ids, with those of a picture replaced by a negative number that is that picture's alone."""
    numbers: dict[int, int] = {}
    found = []
    for prompt in prompts:
        sign = list(prompt.ids)
        for start, visual in _spans(prompt, image_token):
            number = -1 - numbers.setdefault(id(visual.tokens), len(numbers))
            sign[start : start + len(visual.tokens)] = [number] * len(visual.tokens)
        found.append(sign)
    return found


def places(prompt: Prompt, image_token: int | None, merge: int | None) -> np.ndarray:
    """Positions of a prompt's tokens, `(axes, L)`.

    With `merge` (a Qwen-VL vision tower's `spatial_merge_size`) a picture with a grid stands on it (M-RoPE, arXiv
    2409.12191): time, height and width go on from the text before, and the text behind from the larger of the last two.
    """
    if merge is None:
        return np.arange(len(prompt.ids))[None]
    runs, end, at = [], 0, 0
    for start, visual in _spans(prompt, image_token):
        assert visual.grid is not None
        text = np.arange(at, at + start - end)
        time, height, width = visual.grid.tolist()
        grid = np.indices((time, height // merge, width // merge)).reshape(3, -1)
        at += len(text)
        runs += [np.broadcast_to(text, (3, len(text))), grid + at]
        end, at = start + len(visual.tokens), at + max(height, width) // merge
    tail = np.arange(at, at + len(prompt.ids) - end)
    return np.concatenate([*runs, np.broadcast_to(tail, (3, len(tail)))], axis=1)


def places_of(prompt: Prompt, backbone: Backbone) -> np.ndarray:
    """`places` as a backbone has them."""
    return places(prompt, backbone.image_token, _merge(backbone))


def _trial(backbone: Backbone) -> list[Prompt]:
    """Prompts of a few words that begin alike, and one that does not."""
    special = {*backbone.tokenizer.added_tokens_decoder, backbone.image_token}
    words = list(islice((token for token in range(len(backbone.tokenizer)) if token not in special), 16))
    return [Prompt([*words[:12], *tail], []) for tail in ([], words[:3], words[5:9])] + [Prompt(words[4:], [])]


def _on_a_grid(backbone: Backbone) -> bool:
    """Whether `places` are the model's own, where its pictures stand on a grid."""
    merge = _merge(backbone)
    if merge is None:
        return True
    assert backbone.image_token is not None
    grids = [torch.tensor([1, height * merge, width * merge]) for height, width in ((2, 3), (1, 1))]
    visuals = [Visual(torch.zeros(int(grid.prod()) // merge**2, 1), grid) for grid in grids]
    word = _trial(backbone)[0].ids[0]
    ids = [word, *[backbone.image_token] * 6, word, word, backbone.image_token, word]
    model: Any = backbone.model
    row = torch.tensor([ids])
    expected, _ = model.get_rope_index(row, torch.eq(row, backbone.image_token).long(), torch.stack(grids))
    return bool(np.array_equal(places(Prompt(ids, visuals), backbone.image_token, merge), expected[:, 0].numpy()))


def _merge(backbone: Backbone) -> int | None:
    """How many patches make one token in each direction, where pictures stand on a grid (M-RoPE)."""
    if not hasattr(backbone.model, "get_rope_index"):
        return None
    return int(backbone.model.config.vision_config.spatial_merge_size)


def _on(backbone: Backbone, values: Sequence[int] | np.ndarray) -> Tensor:
    """Whole numbers on the model's device; on their way to a GPU nobody waits for them."""
    made = torch.as_tensor(np.asarray(values, dtype=np.int64))
    if backbone.model.device.type == "cuda":
        made = made.pin_memory()
    return made.to(backbone.model.device, non_blocking=True)


def _add(
    packed: Packed,
    prompt: Prompt,
    start: int,
    end: int,
    above: tuple[np.ndarray, ...],
    image_token: int | None,
    merge: int | None,
) -> np.ndarray:
    """Put `prompt.ids[start:end]` behind the row; returns the rows it takes."""
    own = np.arange(len(packed.ids), len(packed.ids) + end - start)
    packed.ids.extend(prompt.ids[start:end])
    packed.positions.append(places(prompt, image_token, merge)[:, start:end])
    packed.keys.append(np.concatenate([*above, own]))
    packed.visuals.extend(visual for place, visual in _spans(prompt, image_token) if start <= place < end)
    return own


def _spans(prompt: Prompt, image_token: int | None) -> list[tuple[int, Visual]]:
    """Where each picture's tokens begin."""
    found, place = [], 0
    for visual in prompt.visuals:
        assert image_token is not None
        place = prompt.ids.index(image_token, place)
        found.append((place, visual))
        place += len(visual.tokens)
    return found


def _common(one: Sequence[int], other: Sequence[int], start: int = 0) -> int:
    """How many first tokens two signatures share, given that they share `start`."""
    end = min(len(one), len(other))
    return next((k for k in range(start, end) if one[k] != other[k]), end)
