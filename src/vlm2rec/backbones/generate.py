"""Greedy decoding of prompts with pictures, from kept visual tokens.

Prompts of equal length share a batch, so there is no padding and every family's own way of counting positions holds.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.vision import Visual

_ROWS_AT_ONCE = 64


@torch.inference_mode()
def greedy(
    backbone: Backbone,
    prompts: Sequence[tuple[list[int], list[Visual]]],
    max_new_tokens: int,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """The most likely continuation of each prompt `(token ids, its visual tokens)`, as token ids.

    An answer ends before the first token of `stop`. The backbone must have been loaded with `head=True`.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    by_length: dict[int, list[int]] = {}
    for row, (ids, _) in enumerate(prompts):
        by_length.setdefault(len(ids), []).append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = rows[start : start + _ROWS_AT_ONCE]
            found = _decode(backbone, [prompts[row] for row in chosen], max_new_tokens, stop)
            for row, answer in zip(chosen, found, strict=True):
                answers[row] = answer
    return answers


def _decode(
    backbone: Backbone, prompts: Sequence[tuple[list[int], list[Visual]]], max_new_tokens: int, stop: Collection[int]
) -> list[list[int]]:
    model: Any = backbone.model.eval()
    if hasattr(model, "rope_deltas"):
        model.rope_deltas = None  # the Qwen families remember the positions of the last prompt with a picture
    ids = torch.tensor([row for row, _ in prompts], device=model.device)
    visuals = [visual for _, own in prompts for visual in own]
    inputs: dict[str, Any] = backbone.kinds(ids)
    if visuals:
        assert backbone.vision is not None
        inputs.update(backbone.vision.inputs(visuals))
    answers: list[list[int]] = [[] for _ in prompts]
    alive = set(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
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
    return answers
