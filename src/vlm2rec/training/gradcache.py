"""Contrastive batches larger than memory (GradCache, arXiv 2101.06983).

A contrastive loss couples every vector of the batch, but a vector's own graph is needed only while its gradient is
pushed back. So: embed all inputs in parts without a graph; take the loss's gradient at the vectors; then embed each
part again with a graph and push that gradient through it. Memory is that of one part, the result the same.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Input = TypeVar("Input")


def backward_in_parts(
    embed: Callable[[Sequence[Input]], Tensor],
    inputs: Sequence[Input],
    loss: Callable[[Tensor], Tensor],
    part: int | None,
    backward: Callable[[Tensor], None],
) -> Tensor:
    """Accumulate the gradients of `loss(embed(inputs))`, at most `part` inputs at a time.

    Where `part` is None, or holds them all, they are embedded once, with their graph.

    `embed` turns n inputs into `(n, D)`; both passes over a part draw the same dropout. Returns the loss, detached.
    """
    if part is None or part >= len(inputs):
        value = loss(embed(inputs))
        backward(value)
        return value.detach()
    parts = [inputs[start : start + part] for start in range(0, len(inputs), part)]
    seed = int(torch.randint(2**31, ()))
    with torch.no_grad():
        vectors = torch.cat([seeded(embed, some, seed + number) for number, some in enumerate(parts)])
    vectors.requires_grad_(True)
    value = loss(vectors)
    backward(value)
    assert vectors.grad is not None
    for number, (some, gradient) in enumerate(zip(parts, torch.split(vectors.grad, part), strict=True)):
        backward((seeded(embed, some, seed + number) * gradient).sum())
    return value.detach()


def seeded(embed: Callable[[Sequence[Input]], Tensor], some: Sequence[Input], seed: int) -> Tensor:
    """`embed` of some inputs, with the random numbers of a seed."""
    torch.manual_seed(seed)
    return embed(some)
