"""Backbones larger than a GPU: each process keeps a part of every decoder layer and borrows the rest while it runs.

This is torch's FSDP2 (`fully_shard`), called as it is. Accelerate's plugin would hand over the model together with its
optimizer, after which adapters are cut up too; here only frozen weights are, before there are adapters. So adapters,
optimizer, checkpoints and gradients are what they are in any run, and encoding works without training.

Layers are put together by all processes at once, so all must run the model equally often: see `in_turns`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from vlm2rec import parallel
from vlm2rec.backbones.load import Backbone, decoder
from vlm2rec.process import world

Input = TypeVar("Input")


def shard(model: nn.Module) -> None:
    """Cut the weights of the decoder layers, in place; the rest of the model goes to this process's GPU as it is.

    The model may lie on the CPU: no more than one whole layer is on the GPU at a time.
    """
    parallel.start()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (world(),))
    text, layers = decoder(model)
    for layer in layers:
        layer.to(kind)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    model.to(kind)
    # Without weights of its own: it is what lets one layer's weights arrive while the layer before it computes.
    fully_shard(text, mesh=mesh, ignored_params=set(text.parameters()))


def whole(value: Tensor) -> Tensor:
    """A weight as one tensor, put together where it is cut; then all processes must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def in_turns(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Have every process run a sharded model as often as the one that runs it most inside.

    Before each run all tell whether they have one to make; who has none makes an empty one, whose states are in the
    yielded list when the block is over. Does nothing where the model is not sharded.
    """
    idle: list[Tensor] = []
    modules = backbone.model.modules() if world() > 1 else iter(())
    text = next((module for module in modules if isinstance(module, FSDPModule)), None)
    if text is None:
        yield idle
        return
    assert isinstance(text, nn.Module)
    hook = text.register_forward_pre_hook(lambda *_: _also(), prepend=True)
    try:
        yield idle
    finally:
        hook.remove()
    while parallel.anyone(False):
        idle.append(backbone.last_states([[0]], []))


def evenly(embed: Callable[[Sequence[Input]], Tensor], backbone: Backbone) -> Callable[[Sequence[Input]], Tensor]:
    """`embed`, called by all processes with as many inputs as they like, none included; its graphs are of one size."""
    if world() == 1:
        return embed

    def embedded(some: Sequence[Input]) -> Tensor:
        with in_turns(backbone) as idle:
            vectors = embed(some)
        for states in idle:
            vectors = vectors + states.sum() * 0
        return vectors

    return embedded


def _also() -> None:
    parallel.anyone(True)
