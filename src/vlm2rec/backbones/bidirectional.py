"""A causal language model made to look both ways, and the proof that it does.

Where `is_causal` of the text model's config is False, transformers (5.18 and later) builds a bidirectional mask and
tells SDPA so. The flag of the attention modules alone, which older recipes set, changes nothing under eager
attention, nor under SDPA once a batch is padded; and there are families that read neither. None of them complains: a
model that stayed causal would train and embed as if nothing were wrong. So a model is probed before it is used.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vlm2rec.backbones.load import Backbone
from vlm2rec.errors import InputError

_CLEARLY = 10.0  # times the noise between two passes of a causal model, which is 0 but for odd kernels
_NEGLIGIBLE = 0.1  # of what a real token changes


def attend(backbone: Backbone, both_ways: bool) -> None:
    """Let every token of the language model see all tokens, or only those before it."""
    _decoder(backbone).config.is_causal = not both_ways


def drop_attention(backbone: Backbone, share: float) -> int:
    """Have attention drop a share of its weights in training mode; returns how many modules took the number."""
    # A module reads the config when it is made and never again.
    modules = [
        m for m in _decoder(backbone).modules() if isinstance(getattr(m, "attention_dropout", None), float | int)
    ]
    for module in modules:
        module.attention_dropout = share
    return len(modules)


def check_bidirectional(backbone: Backbone, path: str) -> None:
    """Try on a few tokens that `attend` works, with padding and without; leaves the model causal.

    Raises:
        InputError: a later token does not reach an earlier one, or padding does.
    """
    attend(backbone, both_ways=False)
    noise, _ = _probe(backbone)
    attend(backbone, both_ways=True)
    reach, spill = _probe(backbone)
    attend(backbone, both_ways=False)
    if reach <= _CLEARLY * noise or spill > _NEGLIGIBLE * reach:
        raise InputError(
            f"backbone.path = {path!r}: the attention of {backbone.model.config.model_type} cannot be made to look both"
            " ways, which method.kind = 'llm2rec' needs; take a backbone of another family"
        )


@torch.no_grad()
def check_dropout(backbone: Backbone, share: float, path: str) -> None:
    """Try that `drop_attention` works: two passes of a model in training must differ. Leaves it at 0.

    Raises:
        InputError: they do not, or attention takes no such number.
    """
    ids, real = _tokens(backbone)
    taken = drop_attention(backbone, share)
    backbone.model.train()
    one, other = (_states(backbone, ids, real) for _ in range(2))
    backbone.model.eval()
    drop_attention(backbone, 0.0)
    if not taken or torch.equal(one, other):
        raise InputError(
            f"backbone.path = {path!r}: the attention of {backbone.model.config.model_type} has no dropout to set,"
            " which method.contrast_dropout needs; take a backbone of another family, or set method.contrast_steps=0"
        )


@torch.no_grad()
def _probe(backbone: Backbone) -> tuple[float, float]:
    """How far, relative to its norm, a state moves with a later token (the least of two batches), and with padding."""
    ids, real = _tokens(backbone)
    later, padding = ids.clone(), ids.clone()
    later[0, -1] = padding[1, 2:] = ids[1, 0]
    moved = []
    for rows in (slice(0, 2), slice(0, 1)):  # with padding in the batch, and without
        before, after = (_states(backbone, some[rows], real[rows])[0, :-1] for some in (ids, later))
        moved.append(_change(before, after))
    before, after = (_states(backbone, some, real)[1, :2] for some in (ids, padding))
    return min(moved), _change(before, after)


def _tokens(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """A row of six tokens and one of two, padded: ids and attention mask, `(2, 6)`."""
    special = {*backbone.tokenizer.added_tokens_decoder, backbone.image_token}
    a, b, c, d, e, f, g, h = islice((token for token in range(len(backbone.tokenizer)) if token not in special), 8)
    device = backbone.model.device
    ids = torch.tensor([[a, b, c, d, e, f], [g, h, 0, 0, 0, 0]], device=device)
    return ids, torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]], device=device)


def _states(backbone: Backbone, ids: Tensor, real: Tensor) -> Tensor:
    found = backbone.model(input_ids=ids, attention_mask=real, use_cache=False, **backbone.kinds(ids))
    states: Tensor = found.last_hidden_state
    return states.float()


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())


def _decoder(backbone: Backbone) -> Any:
    """The language model alone."""
    return backbone.model.get_decoder()
