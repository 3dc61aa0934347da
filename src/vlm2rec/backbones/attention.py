"""Attention over one row that holds many pieces: packed prompts of a language model, windows of a vision tower.

It takes the place of SDPA in a loaded model, by transformers' own interface. Called without bounds it is SDPA. With
them (`cu_seq_lens_q`, `cu_seq_lens_k`, as for flash attention) every piece attends to its own keys and to no others;
causal pieces may have more keys than queries and then end together, as prompts that go on from a shared beginning do.
On a GPU that is one varlen kernel; elsewhere pieces of equal size share a call, so nothing is padded or masked out.
"""

import inspect
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TEXT = "vlm2rec"
VISION = "vlm2rec_flash"
"""The same for vision towers: they hand over the bounds of their windows only where the name has "flash" in it."""

_HALF = (torch.float16, torch.bfloat16)
_ROUNDING = 0.02  # of a kernel in bfloat16, by the norm
_WIDEST = 256  # head that flash attention takes; and multiples of 8 alone


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    key_rows: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: query `(1, H, T, d)`, key and value `(1, H_kv, T, d)`, out `(1, T, H, d)`.

    Args:
        module: the attention module; says whether it is causal where `is_causal` does not.
        query: states of a row.
        key: likewise.
        value: likewise.
        attention_mask: for SDPA; with bounds it is not looked at.
        scaling: of the scores; None: d to the power of -1/2.
        dropout: share of weights to drop.
        is_causal: whether a token sees only those before it.
        cu_seq_lens_q: `(n + 1,)` where the queries of n pieces begin and end; None: SDPA, batches and masks as usual.
        cu_seq_lens_k: the same of their keys, counted in `key_rows`.
        max_length_q: most queries of a piece.
        max_length_k: most keys of a piece.
        key_rows: `(K,)` which of the T tokens are the keys of the pieces, one piece after the other; None: their own.
        kwargs: what else a model hands on.
    """
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs
        )
        return plain
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, H, d)
    if key_rows is not None:
        k, v = (_Rows.apply(states, key_rows) for states in (k, v))  # type: ignore[no-untyped-call]
    kernel, width = _KERNELS.get(q.device.type), q.shape[-1]
    if kernel is not None and q.dtype in _HALF and width % 8 == 0 and width <= _WIDEST and not dropout:
        longest = (max_length_q or len(q), max_length_k or len(k))
        found = kernel(q, k, v, cu_seq_lens_q.int(), cu_seq_lens_k.int(), longest, scaling, causal)
    else:
        found = pieces(q, k, v, cu_seq_lens_q, cu_seq_lens_k, scaling, causal, dropout)
    return found[None], None


AttentionInterface.register(TEXT, attend)
AttentionInterface.register(VISION, attend)
AttentionMaskInterface.register(TEXT, sdpa_mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # sizes are numbers here, and every batch has others
def pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    scaling: float | None,
    causal: bool,
    dropout: float = 0.0,
) -> Tensor:
    """The same by SDPA, pieces of a size at once: query `(T, H, d)`, key and value `(K, H_kv, d)`, out `(T, H, d)`."""
    begins = starts_q.tolist()
    widths_q, widths_k = (starts.diff().tolist() for starts in (starts_q, starts_k))
    # Split, not sliced: the gradient of every slice would be a tensor as long as the row.
    queries, keys, values = torch.split(query, widths_q), torch.split(key, widths_k), torch.split(value, widths_k)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, widths in enumerate(zip(widths_q, widths_k, strict=True)):
        groups.setdefault(widths, []).append(number)
    outputs, order = [], []
    for (width_q, width_k), group in groups.items():
        q, k, v = (torch.stack([all_of[i] for i in group]).transpose(1, 2) for all_of in (queries, keys, values))
        square = width_q == width_k
        mask = None if square or not causal else q.new_ones(width_q, width_k, dtype=torch.bool).tril(width_k - width_q)
        found = scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=causal and square, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(found.transpose(1, 2).flatten(0, 1))
        order += [row for i in group for row in range(begins[i], begins[i] + width_q)]
    return torch.cat(outputs)[torch.tensor(order).argsort().to(query.device)]


def use_kernel(device: torch.device) -> None:
    """Take torch's varlen kernel on this device, where there is one and it `agrees`.

    Called before a model runs: a model's layers may be compiled, and a decision like this one cannot be.
    """
    kernel = _varlen_kernel() if device.type == "cuda" and device.type not in _KERNELS else None
    if kernel is not None and agrees(kernel, device):
        _KERNELS[device.type] = kernel


def agrees(kernel: "Kernel", device: torch.device) -> bool:
    """Whether a kernel gives on random numbers what `pieces` does, and its gradients."""
    sizes_q, sizes_k = [5, 130, 17, 1], [5, 200, 17, 40]
    starts_q, starts_k = (torch.tensor([0, *accumulate(sizes)], device=device).int() for sizes in (sizes_q, sizes_k))
    random = torch.Generator(device).manual_seed(0)
    halves = [
        torch.randn(sum(sizes), heads, 64, device=device, dtype=torch.bfloat16, generator=random).requires_grad_(True)
        for sizes, heads in ((sizes_q, 4), (sizes_k, 2), (sizes_k, 2))
    ]
    wholes = [half.detach().float().requires_grad_(True) for half in halves]
    for causal in (True, False):
        with torch.enable_grad():
            expected = pieces(wholes[0], wholes[1], wholes[2], starts_q, starts_k, None, causal)
            try:
                found = kernel(halves[0], halves[1], halves[2], starts_q, starts_k, (130, 200), None, causal)
                slopes = torch.autograd.grad(found.float().square().sum(), halves)
            except (RuntimeError, TypeError, ValueError):
                return False
            wanted = torch.autograd.grad(expected.square().sum(), wholes)
        for one, other in zip((found.detach(), *slopes), (expected.detach(), *wanted), strict=True):
            if not float((one.float() - other).norm() / other.norm()) < _ROUNDING:
                return False
    return True


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int], float | None, bool], Tensor]
_KERNELS: dict[str, Kernel] = {}


def _varlen_kernel() -> Kernel | None:
    """Flash attention over pieces, causal ones ending together; its arguments have changed between releases."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # new in torch 2.10
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    windows, groups = "window_size" in known, "enable_gqa" in known

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, longest: tuple[int, int],
        scaling: float | None, causal: bool,
    ) -> Tensor:  # fmt: skip
        given: dict[str, Any] = {"window_size": (-1, 0 if causal else -1)} if windows else {"is_causal": causal}
        if q.shape[1] != k.shape[1]:
            if groups:
                given["enable_gqa"] = True
            else:
                k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
        return varlen_attn(q, k, v, starts_q, starts_k, *longest, scale=scaling, **given)  # type: ignore[return-value]

    return kernel


class _Rows(torch.autograd.Function):
    """Rows of a tensor, taken as often as they are named; their gradients are summed in float32.

    The beginning of all prompts of a batch is named by every one of them: in bfloat16 most of its gradient would round
    away.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(states)
        return states[rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(ctx.count, *gradient.shape[1:], dtype=wide, device=gradient.device)
        return total.index_add_(0, rows, gradient.to(wide)).to(gradient.dtype), None
