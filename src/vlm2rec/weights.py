"""Weights in safetensors files: what is read is exactly what is wanted, or refused in one line."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm2rec.damage import RESTORE, listing, misfit, shape_text, tensors_in
from vlm2rec.errors import InputError


def write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors from any device, as they are or in another dtype."""
    save_file({name: value.detach().to("cpu", dtype).contiguous() for name, value in tensors.items()}, path)


def read_weights(path: Path, wanted: Mapping[str, str] | None, advice: str = RESTORE) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU: those that are wanted, each of its shape (see `listing`), and finite.

    `wanted` None: whatever tensors the file has.

    Raises:
        InputError: the file is gone or damaged, a tensor is missing, too many or of another shape, or holds NaN.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, which holds trained weights; {advice}")
    try:
        shapes = {name: shape_text(shape) for name, shape in tensors_in(path).items()}
        found = misfit(shapes, shapes if wanted is None else wanted)
        tensors = load_file(path) if not found else {}
    except (OSError, ValueError, SafetensorError) as error:
        found, tensors = " ".join(str(error).split()), {}
    found = found or _not_finite(tensors)
    if found:
        raise InputError(f"{path}: {found}; {advice}")
    return tensors


@torch.no_grad()
def read_into(path: Path, wanted: Mapping[str, Tensor], advice: str = RESTORE) -> None:
    """Put the tensors of a file into those of the same names. Raises InputError as `read_weights`, before any is."""
    for name, value in read_weights(path, listing(wanted), advice).items():
        wanted[name].copy_(value)


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    wrong = [name for name, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    return f"has NaN or infinity in {len(wrong):,} tensors, such as {wrong[0]}" if wrong else ""


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are: NaN passes through to the least and the largest, so nothing is copied."""
    return value.numel() == 0 or all(bool(end.isfinite()) for end in value.aminmax())
