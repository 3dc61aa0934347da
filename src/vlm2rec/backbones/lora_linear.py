"""A linear layer with a LoRA adapter, made for training: PEFT's layer with another way through it.

PEFT's own keeps, for the backward pass, a dropped-out copy of the input and its mask for each of the seven adapters of
a layer, in float32 where adapters are; at 3B that is half of all activations. Here the input alone is kept, once for
all adapters that read it, and the mask is drawn again from its seed. Adapters stay float32 and are multiplied in the
dtype of the states: the products of a float32 adapter take a GPU as long as the layer itself.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def lean(model: nn.Module) -> None:
    """Give every plain LoRA layer of a model, in place, the way through it of this module."""
    for module in model.modules():
        layer: Any = module
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear and not layer.fan_in_fan_out:
            layer.__class__ = LeanLinear


class LeanLinear(Linear):  # type: ignore[misc]
    """PEFT's layer; where something else than one plain adapter is asked for, it does as PEFT does."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """States `(…, in)` to `(…, out)`: `W x + b + scale * B A dropout(x)`."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(names) == 1 and names[0] not in self.lora_variant and not args and not kwargs
        if not plain or self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        (name,) = names
        base, dropout = self.get_base_layer(), self.lora_dropout[name]
        share = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        seed = int(torch.randint(2**62, ())) if share else 0
        weights = (base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight)
        found: Tensor = _Adapted.apply(x, *weights, self.scaling[name], share, seed)  # type: ignore[no-untyped-call]
        return found


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, share: float,
        seed: int,
    ) -> Tensor:  # fmt: skip
        states = x.reshape(-1, x.shape[-1])
        inner = _dropped(states, mask(states, share, seed)) @ down.to(x.dtype).T / (1 - share)  # (T, r)
        outputs = linear(states, weight, bias).addmm_(inner, up.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x, weight, down, up, inner)
        ctx.numbers = scale, share, seed
        return outputs.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, inner = ctx.saved_tensors
        scale, share, seed = ctx.numbers
        states, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        at_inner = gradient @ up.to(gradient.dtype) * scale / (1 - share)
        at_up = (gradient.T @ inner).to(up.dtype) * scale
        kept = mask(states, share, seed)
        at_down = (at_inner.T @ _dropped(states, kept)).to(down.dtype)
        at_x = None
        if ctx.needs_input_grad[0]:
            through = _dropped(at_inner @ down.to(gradient.dtype), kept)
            at_x = (gradient @ weight).add_(through).view_as(x)
        return at_x, None, None, at_down, at_up, None, None, None


def mask(states: Tensor, share: float, seed: int) -> Tensor | None:
    """True, but for a `share`, `(T, in)`: the same for the same seed; None where nothing is dropped.

    16 random bits a number, four times as many as one draw has: drawing is most of what dropout costs a CPU.
    """
    if not share:
        return None
    bits = torch.empty(-(-states.numel() // 4), dtype=torch.int64, device=states.device)
    if not states.is_meta:
        bits.random_(-(2**63), None, generator=torch.Generator(states.device).manual_seed(seed))
    least = round(share * 2**16) - 2**15
    return (bits.view(torch.int16)[: states.numel()] >= least).view_as(states)


def _dropped(states: Tensor, kept: Tensor | None) -> Tensor:
    return states if kept is None else torch.where(kept, states, 0)
