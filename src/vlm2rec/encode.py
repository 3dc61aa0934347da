"""Encoder and catalogue to an `EmbeddingTable`, in shards that survive a kill."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from vlm2rec.data.dataset import Catalogue
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.progress import progress
from vlm2rec.runs import replacing

_SHARD = 128


def encode(
    encoder: Encoder,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int]],
    ids: Sequence[str],
    out: Path,
    title: str = "encoding",
) -> EmbeddingTable:
    """Embed histories of item indices (an item is a history of one) and write a table to `out`.

    Shards already written under `out` + `.parts` are taken as they are: they must stem from the same weights.
    Raises FloatingPointError where the model gives a vector that is not finite.
    """
    parts = out.with_name(out.name + ".parts")
    shards = list(_shards(histories))
    with progress(title, len(histories)) as tell:
        for number, shard in enumerate(shards):
            path = parts / f"{number:06d}.npy"
            if not path.exists():
                vectors = _vectors(encoder, catalogue, shard)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, vectors)
            tell(min((number + 1) * _SHARD, len(histories)), "")
    stacked = np.concatenate([np.load(parts / f"{number:06d}.npy") for number in range(len(shards))], axis=1)
    names = ("fused", "text", "image")[: len(stacked)]
    table = EmbeddingTable(np.array(ids, dtype=str), dict(zip(names, stacked, strict=True)))
    table.save(out)
    shutil.rmtree(parts)
    return EmbeddingTable.load(out)


@torch.inference_mode()
def _vectors(encoder: Encoder, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> np.ndarray:
    """Views of some histories, `(1 or 3, n, D)` float32."""
    encoder.eval()
    views = [view for view in encoder.histories(catalogue, histories) if view is not None]
    vectors = torch.stack([view.float() for view in views]).cpu().numpy()
    if not np.isfinite(vectors).all():
        raise FloatingPointError("the encoder gave vectors that are not finite; lower training.lr or use float32")
    return vectors


def _shards(histories: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(histories), _SHARD):
        yield histories[start : start + _SHARD]
