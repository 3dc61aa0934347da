"""Encoder and catalogue to an `EmbeddingTable`, in shards that survive a kill."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vlm2rec.data.dataset import Catalogue
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.progress import progress
from vlm2rec.runs import replacing

_SHARD = 128

T = TypeVar("T")


def encode(
    encoder: Encoder,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int]],
    ids: Sequence[str],
    out: Path,
    title: str = "encoding",
) -> EmbeddingTable:
    """Embed histories of item indices (an item is a history of one) and write a table to `out`.

    As `in_shards`.
    """
    encoder.eval()

    def views(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        found = encoder.histories(catalogue, rows)
        return {name: view for name, view in zip(("fused", "text", "image"), found, strict=True) if view is not None}

    return in_shards(histories, ids, views, out, title)


def in_shards(
    rows: Sequence[T],
    ids: Sequence[str],
    embed: Callable[[Sequence[T]], Mapping[str, Tensor]],
    out: Path,
    title: str,
    shard: int = _SHARD,
    manifest: Mapping[str, Any] | None = None,
) -> EmbeddingTable:
    """A table of `embed`'s views `(b, D)` of all rows, made `shard` rows at a time and written to `out`.

    Shards already written under `out` + `.parts` are taken as they are: they must stem from the same weights.
    Raises FloatingPointError where a vector is not finite.
    """
    parts = out.with_name(out.name + ".parts")
    starts = range(0, len(rows), shard)
    with progress(title, len(rows)) as tell:
        for start in starts:
            path = parts / f"{start:09d}.npz"
            if not path.exists():
                with torch.inference_mode():
                    views: dict[str, Any] = {
                        name: view.float().cpu().numpy() for name, view in embed(rows[start : start + shard]).items()
                    }
                if not all(np.isfinite(view).all() for view in views.values()):
                    raise FloatingPointError(
                        "the encoder gave vectors that are not finite; lower the learning rate or use float32"
                    )
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, **views)
            tell(min(start + shard, len(rows)), "")
    shards = [np.load(parts / f"{start:09d}.npz") for start in starts]
    names = shards[0].files
    stacked = {name: np.concatenate([each[name] for each in shards]) for name in names}
    EmbeddingTable(np.array(ids, dtype=str), stacked, manifest).save(out)
    shutil.rmtree(parts)
    return EmbeddingTable.load(out)
