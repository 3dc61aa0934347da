"""Less memory for a training step: activations that are thrown away and computed again when their gradient is due."""

from typing import Any, Literal

from torch.utils.checkpoint import checkpoint

from vlm2rec.backbones.load import Backbone, language_path
from vlm2rec.errors import InputError

Recompute = bool | Literal["mlp"]


def recompute(backbone: Backbone, what: Recompute) -> None:
    """Recompute whole layers (True) or only their feed-forward parts ("mlp"); adapters come first.

    Raises InputError where the layers have no such part.
    """
    if what is True:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    elif what == "mlp":
        whole = backbone.vision is None
        found: list[Any] = [
            module
            for name, module in backbone.model.named_modules()
            if name.endswith(".mlp") and (whole or language_path(name))
        ]
        if not found:
            raise InputError(
                f"training.gradient_checkpointing=mlp: the layers of {backbone.model.config.model_type} have no part of"
                " that name; set it to true or false"
            )
        for module in found:
            module.forward = _Recomputed(module.forward)


class _Recomputed:
    """A module's forward pass, recomputed; without gradients it is what it was."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self._forward, *args, use_reentrant=False, **kwargs)
