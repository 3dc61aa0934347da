"""Checkpoints as transformers reads them, which must be whole: it makes up what it does not find, with a warning."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from vlm2rec.damage import damage
from vlm2rec.errors import InputError

FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises where there is nothing that it can read."""

_SAMPLED = 16  # numbers of each tensor

# Tensors that a checkpoint may have and a model not, since nothing here asks for them.
_UNUSED = {
    r"(^|\.)lm_head\.": "a language head: models are loaded without it unless they generate text",
    r"^(cls|mlm_head|vocab_transform|vocab_projector|vocab_layer_norm|lm_head)\.": "BERT's and its kin's language head",
    r"^(classifier|score|qa_outputs)\.": "the head of a classifier, which an encoder is often published with",
    r"(^|\.)mtp\.": "layers that predict several tokens ahead (Qwen, DeepSeek)",
    r"\.position_ids$": "a count from 0 that older versions of transformers saved",
    r"(\.rotary_emb\.|\.)inv_freq$": "rotary frequencies that older versions saved; they follow from the config",
    r"\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$": "GPT's causal mask, which older versions saved",
}
# Tensors that a model may lack, since nothing here reads what they make.
_NOT_READ = {
    r"(^|\.)num_batches_tracked$": "a counter of batch normalisation's training",
}


def load_pretrained(
    kind: Any, path: Any, where: str, advice: str, not_read: str = "", **options: Any
) -> PreTrainedModel:
    """`kind.from_pretrained(path)`, with exactly the weights of the checkpoint.

    Args:
        kind: a model class of transformers, or one of its Auto classes.
        path: a folder or a hub name.
        where: what a message calls it.
        advice: what to do about one that is not whole.
        not_read: a pattern of names of tensors that may be missing besides, since the caller does not read what they
            make.
        options: for `from_pretrained`.

    Raises:
        InputError: tensors are missing, too many or of another shape. What transformers raises is one of `FAILURES`.
    """
    model, found = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    patterns = [*_NOT_READ, *([not_read] if not_read else [])]
    missing = sorted(name for name in found["missing_keys"] if not _any(patterns, name))
    others = sorted(name for name in found["unexpected_keys"] if not _any(_UNUSED, name))
    misshapen = sorted(found["mismatched_keys"])
    said = ""
    if misshapen:
        name, ours, theirs = misshapen[0]
        said = f"{_weights(len(misshapen))} of another shape ({name} {tuple(ours)}, config.json says {tuple(theirs)})"
    elif missing:
        said = f"{_weights(len(missing))} missing ({_some(missing)})"
    elif others:
        said = f"{_weights(len(others))} not of this model ({_some(others)})"
    if said:
        raise InputError(f"{where}: {said}; {advice}")
    return model


@torch.no_grad()
def sample_digest(model: torch.nn.Module) -> str:
    """A short hash of a model's weights: names, shapes and some numbers of each, so that it reads next to nothing.

    Numbers are rounded to bfloat16, so that a model is the same in float32 and as a GPU holds it.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.named_parameters()):
        some = value.flatten()[:: max(1, value.numel() // _SAMPLED)][:_SAMPLED].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(value.shape)}".encode() + some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def check_built(folder: Path) -> None:
    """Raise InputError where a checkpoint that was built here has lost its weights: it must not count as standing."""
    if found := damage(folder / "model.safetensors"):
        raise InputError(f"{folder}: {found}; remove the folder, and the same command builds it anew")


def _weights(count: int) -> str:
    return f"{count} weights are" if count > 1 else "1 weight is"


def _some(names: list[str]) -> str:
    return names[0] + (", …" if len(names) > 1 else "")


def _any(patterns: Any, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
