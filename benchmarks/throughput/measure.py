"""Clocks, operations and memory, and what the machine could do."""

import gc
import importlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from memory import Live
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

GIB = 2**30


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of some work, the GPU's part included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def ceiling(device: torch.device, dtype: torch.dtype, repeats: int = 7) -> float:
    """Operations a second of one large matrix product of random numbers: the median of some."""
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    _ = one @ other
    times = [seconds(lambda: one @ other, device) for _ in range(repeats)]
    return float(2 * side**3 / np.median(times))


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention that some work does, recomputation too.

    Counted by `FlopCounterMode` on the work itself, layers not compiled. Attention counts in full, as it does there:
    a causal kernel does about half of it.
    """
    with counter() as counted, torch.compiler.set_stance("force_eager"):
        work()
    return int(counted.get_total_flops())


def counter() -> FlopCounterMode:
    """A counter that knows the attention of CPUs and over packed rows too."""
    ops: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
    }
    try:
        importlib.import_module("torch.nn.attention.varlen")  # defines the two below

        ops[torch.ops.torch_attn._varlen_attn] = _pieces
        ops[torch.ops.torch_attn._varlen_attn_backward] = _pieces_back
    except (ImportError, AttributeError):
        pass
    return FlopCounterMode(display=False, custom_mapping=ops)


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products of `(B, H, L, d)` and `(B, H', S, d)`, given as shapes."""
    return 4 * query[0] * query[1] * query[2] * key[2] * query[3]


def _attention_back(_gradient: Any, query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """Five products: the scores anew, and a gradient for each factor of the two."""
    return 10 * query[0] * query[1] * query[2] * key[2] * query[3]


def _pieces(query: Tensor, _key: Tensor, _value: Tensor, starts_q: Tensor, starts_k: Tensor, *_: Any, **__: Any) -> int:
    return 4 * _pairs(starts_q, starts_k) * query.shape[1] * query.shape[2]


def _pieces_back(_gradient: Tensor, query: Tensor, *more: Any, **__: Any) -> int:
    starts = [each for each in more if isinstance(each, Tensor) and each.dtype == torch.int32 and each.dim() == 1]
    return 10 * _pairs(*starts[:2]) * query.shape[1] * query.shape[2]


_pieces._get_raw = _pieces_back._get_raw = True  # type: ignore[attr-defined]  # they are given tensors, not shapes


def _pairs(starts_q: Tensor, starts_k: Tensor) -> int:
    return int((starts_q.long().diff() * starts_k.long().diff()).sum())


class Read:
    """Tokens, padding too, that pass through a model until it is closed: those whose embeddings are looked up."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        self._hook = whole.get_input_embeddings().register_forward_hook(self._see)

    def close(self) -> int:
        self._hook.remove()
        return self.tokens

    def _see(self, _module: nn.Module, given: tuple[Tensor, ...], _output: Any) -> None:
        self.tokens += given[0].numel()


def peak(work: Callable[[], Any], model: nn.Module, device: torch.device) -> float:
    """GiB at most in use while some work is done, the weights of one model included.

    As the GPU's allocator has it; on a CPU, of the tensors that operations make (see `memory`).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / GIB
    weights = [*model.parameters(), *model.buffers()]
    with Live(weights) as live:
        work()
    return (sum(weight.nbytes for weight in weights) + live.peak) / GIB


def spread(values: Sequence[float], digits: int) -> str:
    """Median, then the smallest and the largest."""
    return f"{np.median(values):10.{digits}f}{f'{min(values):.{digits}f}-{max(values):.{digits}f}':>14}"


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
