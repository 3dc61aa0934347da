"""One contrastive batch on several processes: each embeds its share, and all see the loss of the whole.

GradCache (see `gradcache`) over processes: vectors are gathered without their graphs, every process takes the gradient
of the same loss at all of them, and pushes that of its own rows back through its own graph. Summed over the processes
this is the gradient that one process with the whole batch would have, for any objective.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vlm2rec import parallel
from vlm2rec.process import rank, world
from vlm2rec.training.gradcache import backward_in_parts, seeded

_SEEDS_EACH = 1_000_003  # more than any process has parts

Input = TypeVar("Input")


def share(count: int, who: int, among: int) -> range:
    """The rows that one of several processes has of `count`: runs in order, of sizes that differ by one at most."""
    return range(count * who // among, count * (who + 1) // among)


class Shares:
    """Who embeds what of a batch: of several lists of rows (histories, targets), each process has a run.

    Every row makes `copies` vectors. In one process they stand list by list, in a list copy by copy: that order is
    what `gather` restores.
    """

    def __init__(self, sizes: Sequence[int], copies: int = 1) -> None:
        self._sizes = sizes
        starts = np.cumsum([0, *(copies * size for size in sizes)])
        self._places = [
            np.concatenate(
                [
                    np.array(share(size, who, world()), dtype=np.int64) + start + copy * size
                    for start, size in zip(starts, sizes, strict=False)
                    for copy in range(copies)
                ]
            )
            for who in range(world())
        ]

    @property
    def most(self) -> int:
        """Vectors of the process that has most."""
        return max(map(len, self._places))

    def own(self, number: int, rows: Sequence[Input]) -> Sequence[Input]:
        """This process's run of the list `number`."""
        part = share(self._sizes[number], rank(), world())
        return rows[part.start : part.stop]

    def gather(self, vectors: Tensor) -> Tensor:
        """All vectors `(n, D)` from those of every process, without their graphs."""
        joined = parallel.gather(vectors, [len(places) for places in self._places])
        order = torch.from_numpy(np.concatenate(self._places)).to(joined.device)
        return torch.empty_like(joined).index_copy(0, order, joined)

    def back(self, gradient: Tensor) -> Tensor:
        """This process's rows of a gradient at all vectors."""
        return gradient[torch.from_numpy(self._places[rank()]).to(gradient.device)]


def backward_in_shares(
    embed: Callable[[Sequence[Input]], Tensor],
    inputs: Sequence[Input],
    loss: Callable[[Tensor], Tensor],
    part: int | None,
    backward: Callable[[Tensor], None],
    shares: Shares,
    parameters: Sequence[nn.Parameter],
) -> Tensor:
    """Make the gradients of `loss` at the vectors of the whole batch, equal on every process.

    Args:
        embed: n inputs to `(n, D)`; with several processes it is called equally often by all, if need be with none.
        inputs: this process's own, in the order of `shares`.
        loss: of all vectors, in the order of one process.
        part: at most so many inputs at once in memory, in each process; None: its whole share.
        parameters: all that are trained, without gradients yet. Those that `loss` itself uses count once.

    Returns the loss, detached. Each process draws its own dropout, both passes over a part the same.
    """
    if world() == 1:
        return backward_in_parts(embed, inputs, loss, part, backward)
    # All draw the same number, and whose it is makes a seed of it: a CPU looks at the last 32 bits of that alone.
    seed = int(torch.randint(2**31, ())) + _SEEDS_EACH * rank()
    size = shares.most if part is None else min(part, shares.most)
    parts = [inputs[start : start + size] for start in range(0, shares.most, size)]
    once = len(parts) == 1
    with torch.set_grad_enabled(once):
        embedded = [seeded(embed, some, seed + number) for number, some in enumerate(parts)]
    vectors = shares.gather(torch.cat(embedded)).requires_grad_()
    value = loss(vectors)
    backward(value)
    if rank() > 0:  # the same there as here
        for parameter in parameters:
            parameter.grad = None
    assert vectors.grad is not None
    slopes = torch.split(shares.back(vectors.grad), [len(some) for some in parts])
    for number, (some, slope) in enumerate(zip(parts, slopes, strict=True)):
        again = embedded[0] if once else seeded(embed, some, seed + number)
        if again.requires_grad:  # it does not where there is nothing of this process's own in a part
            backward((again * slope).sum())
    parallel.sum_gradients(parameters)
    return value.detach()
