"""Greedy decoding of prompts with pictures, from kept visual tokens.

Prompts of words alone are padded on the left, so that all of a batch end together. With a picture among them, or where
a family counts positions in a way of its own (M-RoPE), prompts of equal length share a batch and nothing is padded.
"""

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.vision import Visual

_ROWS_AT_ONCE = 64

Asked = tuple[list[int], list[Visual]]
"""Token ids of a prompt and its visual tokens, in reading order."""


@torch.inference_mode()
def greedy(
    backbone: Backbone, prompts: Sequence[Asked], max_new_tokens: int, stop: Collection[int] = ()
) -> list[list[int]]:
    """The most likely continuation of each prompt, as token ids.

    An answer ends before the first token of `stop`. The backbone must have been loaded with `head=True`.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for rows in batches(backbone, prompts):
        found = _decode(backbone, [prompts[row] for row in rows], max_new_tokens, stop)
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    return answers


def batches(backbone: Backbone, prompts: Sequence[Asked]) -> list[list[int]]:
    """Rows that are decoded together, at most 64, longest first: a function of the prompts alone."""
    mixed = _takes_positions(backbone)
    kinds: dict[tuple[bool, int], list[int]] = {}
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row][0])):
        ids, visuals = prompts[row]
        alike = mixed and not visuals
        kinds.setdefault((alike, 0 if alike else len(ids)), []).append(row)
    return [
        rows[start : start + _ROWS_AT_ONCE] for rows in kinds.values() for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]


def _decode(
    backbone: Backbone, prompts: Sequence[Asked], max_new_tokens: int, stop: Collection[int]
) -> list[list[int]]:
    model: Any = backbone.model.eval()
    if hasattr(model, "rope_deltas"):
        model.rope_deltas = None  # the Qwen families remember the positions of the last prompt with a picture
    longest = max(len(row) for row, _ in prompts)
    ids = torch.tensor([[*[0] * (longest - len(row)), *row] for row, _ in prompts], device=model.device)
    real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row, _ in prompts], device=model.device)
    padded = bool((real == 0).any())
    visuals = [visual for _, own in prompts for visual in own]
    inputs: dict[str, Any] = backbone.kinds(ids)
    if visuals:
        assert backbone.vision is not None
        inputs.update(backbone.vision.inputs(visuals))
    positions = (real.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = set(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
        if padded:
            inputs |= {"attention_mask": real, "position_ids": positions}
        outputs = model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
        cache = outputs.past_key_values
        token = backbone.logits(outputs.last_hidden_state[:, -1]).argmax(-1)
        for row, found in enumerate(token.tolist()):
            if row in alive and found in stop:
                alive.discard(row)
            elif row in alive:
                answers[row].append(found)
        if not alive:
            break
        ids = token[:, None]
        inputs = backbone.kinds(ids)
        real, positions = torch.cat([real, torch.ones_like(ids)], dim=1), positions[:, -1:] + 1
    return answers


def _takes_positions(backbone: Backbone) -> bool:
    """Whether a family counts positions one by one and can be told them, as padding on the left needs."""
    plain = not hasattr(backbone.model, "get_rope_index") and not backbone.kinds(torch.zeros(1, 1, dtype=torch.long))
    return plain and "position_ids" in inspect.signature(backbone.model.forward).parameters
