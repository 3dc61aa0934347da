"""Whose gradient the update follows: cos(g_total, g_m) for m in {text, image} (Sec. 3, Fig. 1b).

g_total is the gradient of the method's own objective on the fused vectors; g_m that of InfoNCE where histories and
items are read in modality m alone. As in GradCache, a loss's gradient at the vectors is pushed back through the model,
so that all losses share one forward pass (or two, where memory holds a part of the inputs only).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

Input = TypeVar("Input")

Gradient = list[Tensor]
"""One tensor a parameter."""

Loss = Callable[[Mapping[str, Tensor]], Tensor]
"""A scalar, from the vectors `(n, D)` of each group of inputs."""


def gradients(
    embed: Callable[[Sequence[Input]], Tensor],
    inputs: Mapping[str, Sequence[Input]],
    losses: Mapping[str, Loss],
    parameters: Sequence[nn.Parameter],
    part: int | None = None,
) -> dict[str, Gradient]:
    """The gradient of every loss with respect to `parameters`, which get no `.grad` by it.

    Args:
        embed: n inputs to `(n, D)`; a vector is the same whenever it is asked for (no dropout), and beside whatever.
        inputs: by group. A loss is pushed back through the groups that it uses.
        losses: by name.
        parameters: what to differentiate by; one that a loss does not reach gets zeros.
        part: at most so many inputs at once in memory; None: all.
    """
    whole = part is None or all(len(rows) <= part for rows in inputs.values())
    parts = {group: [rows] if whole else _cut(rows, part) for group, rows in inputs.items()}
    with torch.set_grad_enabled(whole):
        embedded = {group: [embed(some) for some in pieces] for group, pieces in parts.items()}
    slopes = _at_vectors({group: torch.cat(pieces).detach() for group, pieces in embedded.items()}, losses)
    found = {name: [torch.zeros_like(parameter) for parameter in parameters] for name in losses}
    for group, pieces in parts.items():
        rows = [len(some) for some in pieces]
        pulls = {name: torch.split(slope[group], rows) for name, slope in slopes.items() if group in slope}
        for number, some in enumerate(pieces):
            vectors = embedded[group][number] if whole else embed(some)
            _push_back(vectors, {name: pull[number] for name, pull in pulls.items()}, parameters, found)
    return found


def compared(found: Mapping[str, Gradient]) -> dict[str, float]:
    """Lengths of the gradients "total", "text" and "image", and the cosines between them.

    Products are summed in float64. A cosine with a gradient of zeros, or one that is not finite, is left out.

    Returns:
        {"grad_norm_total", "grad_norm_text", "grad_norm_image", "grad_cos_text", "grad_cos_image",
        "grad_cos_between"}
    """
    norms = {name: math.sqrt(_product(gradient, gradient)) for name, gradient in found.items()}
    figures = {f"grad_norm_{name}": norm for name, norm in norms.items() if math.isfinite(norm)}
    pairs = {"text": ("total", "text"), "image": ("total", "image"), "between": ("text", "image")}
    for name, (one, other) in pairs.items():
        length = norms[one] * norms[other]
        if math.isfinite(length) and length > 0:
            figures[f"grad_cos_{name}"] = max(-1.0, min(1.0, _product(found[one], found[other]) / length))
    return figures


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each part's own mode again behind it.

    Layers that checkpoint activations are left to do so: they would not in evaluation mode, and the memory of a
    training step would not do.
    """
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    for each, _ in modes:
        if isinstance(each, GradientCheckpointingLayer) and each.gradient_checkpointing:
            each.training = True  # the layer's own, not that of the dropout in it
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _cut(rows: Sequence[Input], part: int | None) -> list[Sequence[Input]]:
    assert part is not None
    return [rows[start : start + part] for start in range(0, len(rows), part)]


def _at_vectors(vectors: Mapping[str, Tensor], losses: Mapping[str, Loss]) -> dict[str, dict[str, Tensor]]:
    """Each loss's gradient at the vectors, `(n, D)` by group, for the groups that it uses."""
    for leaf in vectors.values():
        leaf.requires_grad_()
    slopes = {
        name: torch.autograd.grad(loss(vectors), list(vectors.values()), allow_unused=True)
        for name, loss in losses.items()
    }
    return {
        name: {group: slope for group, slope in zip(vectors, given, strict=True) if slope is not None}
        for name, given in slopes.items()
    }


def _push_back(
    vectors: Tensor,
    pulls: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    found: Mapping[str, Gradient],
) -> None:
    """Add to `found` the vector-Jacobian product of every pull `(n, D)` at `vectors` `(n, D)`."""
    last = len(pulls) - 1
    for number, (name, pull) in enumerate(pulls.items()):
        given = torch.autograd.grad(vectors, parameters, pull, retain_graph=number < last, allow_unused=True)
        for total, some in zip(found[name], given, strict=True):
            if some is not None:
                total += some


def _product(one: Gradient, other: Gradient) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))
