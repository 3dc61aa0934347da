"""What the processes of one run say to each other, where `accelerate launch` started several.

Which one a process is stands in `process`. With one process nothing here does anything, and torch.distributed is never
set up. With several, vectors and gradients go over the group that Accelerate sets up (NCCL between GPUs, gloo between
CPUs); words, and waiting for each other, over a second one on the CPU that has patience: while one process diagnoses,
the others may wait for long. A process that is gone breaks its connections, so nobody waits for it.
"""

import atexit
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from vlm2rec.errors import InputError
from vlm2rec.process import rank, world

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_PATIENCE = timedelta(days=7)
_SECONDS_TO_ASK = 5.0

T = TypeVar("T")
_words: Any = None  # the group for words


def start() -> None:
    """Meet the other processes, and take a GPU of one's own, once; every exchange does so where nobody has.

    Raises InputError where the environment speaks of several processes but says not how they find each other.
    """
    global _words
    if world() == 1 or _words is not None:
        return
    PartialState(cpu=not torch.cuda.is_available())
    if not dist.is_initialized():
        raise InputError(
            f"WORLD_SIZE = {world()}, but these processes cannot find each other; start them with"
            " `accelerate launch -m vlm2rec run CONFIG`, or unset WORLD_SIZE"
        )
    _words = dist.new_group(backend="gloo", timeout=_PATIENCE)
    atexit.register(_leave)


def part() -> bool:
    """Part for good: the first process goes on as if it were the only one, for which this is True; others must end."""
    global _words
    if world() == 1:
        return True
    barrier()
    goes_on = rank() == 0
    _leave()
    _words = None
    if goes_on:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in _LAUNCHED:
            os.environ.pop(name, None)
    return goes_on


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        start()
        dist.barrier(_words)


def broadcast(value: T) -> T:
    """What the first process has, to all."""
    if world() == 1:
        return value
    start()
    box = [value if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, group=_words)
    return box[0]  # type: ignore[return-value]


def anyone(yes: bool) -> bool:
    """Whether any process says yes."""
    if world() == 1:
        return yes
    start()
    said = torch.tensor(int(yes))
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_words)
    return bool(said)


def gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all processes, `(sum(counts), …)`, those of the first one first; without their graphs.

    `counts` says how many rows each process has; they need not be equal.
    """
    if world() == 1:
        return rows.detach()
    start()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([some[:count] for some, count in zip(found, counts, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum `.grad` over the processes, in one exchange, in float32 or wider: equal everywhere, to the last bit.

    A parameter that no process has a gradient of keeps none.
    """
    if world() == 1:
        return
    start()
    given = list(parameters)
    width = torch.float64 if any(parameter.dtype == torch.float64 for parameter in given) else torch.float32
    pieces = [torch.zeros_like(p, dtype=width) if p.grad is None else p.grad.to(width) for p in given]
    there = torch.tensor([p.grad is not None for p in given], dtype=width, device=given[0].device)
    flat = torch.cat([there, *(piece.reshape(-1) for piece in pieces)])
    dist.all_reduce(flat)
    there, *totals = torch.split(flat, [len(given), *(parameter.numel() for parameter in given)])
    for parameter, known, total in zip(given, there.tolist(), totals, strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype) if known else None


def first_to_fail() -> bool:
    """Whether no other process failed before: one is to say why, and what becomes of the others follows from it."""
    if world() == 1:
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=_SECONDS_TO_ASK)
        )
        return int(store.add("vlm2rec/failed", 1)) == 1
    except (KeyError, ValueError, RuntimeError):  # who kept count is gone, or was never there
        return rank() == 0


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
