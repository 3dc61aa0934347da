"""Less memory for a training step: activations that are thrown away and computed again when their gradient is due."""

from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import checkpoint

from vlm2rec.backbones.load import Backbone, decoder
from vlm2rec.errors import InputError

Recompute = bool | Literal["mlp"]


def recompute(backbone: Backbone, what: Recompute) -> None:
    """Recompute whole layers (True) or only their feed-forward parts ("mlp"); adapters come first.

    Raises InputError where the layers have no such part.
    """
    if what is True:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    elif what == "mlp":
        found: list[Any] = [layer.mlp for layer in decoder(backbone.model)[1] if hasattr(layer, "mlp")]
        if not found:
            raise InputError(
                f"training.gradient_checkpointing=mlp: the layers of {backbone.model.config.model_type} have no part of"
                " that name; set it to true or false"
            )
        for module in found:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
