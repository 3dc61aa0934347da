"""Encoder and catalogue to an `EmbeddingTable`, in shards that survive a kill and that processes share out."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vlm2rec import parallel
from vlm2rec.backbones.sharding import in_turns
from vlm2rec.damage import damage
from vlm2rec.data.dataset import Catalogue
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.process import rank, world
from vlm2rec.progress import notice, progress
from vlm2rec.runs import replacing

_SHARD = 128

T = TypeVar("T")


def encode(
    encoder: Encoder,
    catalogue: Catalogue,
    histories: Sequence[Sequence[int]],
    ids: Sequence[str],
    out: Path | str,
    title: str = "encoding",
    items: bool = False,
) -> EmbeddingTable:
    """Embed histories of item indices (an item is a history of one) and write a table to `out`.

    `items` says that they are a whole catalogue: items that lack a modality then borrow it (see `lend`). Else as
    `in_shards`.
    """
    encoder.eval()
    finish = partial(lend, encoder) if items else None
    views, turns = partial(_views, encoder, catalogue), in_turns(encoder.backbone)
    return in_shards(histories, ids, views, out, title, finish=finish, together=turns, soon=encoder.expect)


def embed(encoder: Encoder, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Views `(n, D)` float32 of a few histories of item indices, in memory. The encoder is left in evaluation mode.

    Raises FloatingPointError where a vector is not finite.
    """
    encoder.eval()
    with torch.no_grad():
        shards = [
            _views(encoder, catalogue, histories[start : start + _SHARD]) for start in range(0, len(histories), _SHARD)
        ]
    found = {name: torch.cat([shard[name] for shard in shards]).float().cpu().numpy() for name in shards[0]}
    _check_finite(found)
    return found


def in_shards(
    rows: Sequence[T],
    ids: Sequence[str],
    embed: Callable[[Sequence[T]], Mapping[str, Tensor]],
    out: Path | str,
    title: str,
    shard: int = _SHARD,
    manifest: Mapping[str, Any] | None = None,
    finish: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
    together: AbstractContextManager[Any] | None = None,
    soon: Callable[[Sequence[T]], None] | None = None,
) -> EmbeddingTable:
    """A table of `embed`'s views `(b, D)` of all rows, made `shard` rows at a time and written to `out`.

    Shards already written under `out` + `.parts` are taken as they are: they must stem from the same weights. The
    table's manifest has the `seconds` that `embed` took, or would have taken had it made all shards. `finish` is given
    the views of all rows before they are written.

    Several processes, which all must come here, make every so manieth shard each; the first one joins them. `together`
    is entered while shards are made. `soon` is told, before a shard is made, which rows come after it.
    Raises FloatingPointError where a vector is not finite.
    """
    out = Path(out)
    parts = out.with_name(out.name + ".parts")
    paths = {start: parts / f"{start:09d}.npz" for start in range(0, len(rows), shard)}
    seconds, made = 0.0, 0
    if there := sum(path.exists() for path in paths.values()):
        notice(f"{title}: {there} of {len(paths)} shards are done")
    with progress(title, len(rows)) as tell, together or nullcontext():
        own = list(paths)[rank() :: world()]
        for start, after in zip_longest(own, own[1:]):
            if damage(paths[start]):
                began = time.monotonic()
                if soon is not None and after is not None and damage(paths[after]):
                    soon(rows[after : after + shard])
                _make(embed, rows[start : start + shard], paths[start])
                seconds, made = seconds + time.monotonic() - began, made + len(rows[start : start + shard])
            tell(min(start + shard * world(), len(rows)), "")
    parallel.barrier()
    if rank() == 0:
        shards = [np.load(path) for path in paths.values()]
        stacked = {name: np.concatenate([each[name] for each in shards]) for name in shards[0].files}
        if finish is not None:
            stacked = finish(stacked)
        timed = {"seconds": seconds * len(rows) / made / world()} if made else {}
        EmbeddingTable(np.array(ids, dtype=str), stacked, {**(manifest or {}), **timed}).save(out)
        shutil.rmtree(parts)
    parallel.barrier()
    return EmbeddingTable.load(out)


def _make(embed: Callable[[Sequence[T]], Mapping[str, Tensor]], rows: Sequence[T], path: Path) -> None:
    """Embed some rows and write their shard."""
    with torch.no_grad():  # and not inference_mode: sharded weights that it put together could not be trained with
        views: dict[str, Any] = {name: view.float().cpu().numpy() for name, view in embed(rows).items()}
    _check_finite(views)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **views)


def lend(
    encoder: Encoder,
    views: dict[str, np.ndarray],
    whole: Mapping[str, np.ndarray] | None = None,
    themselves: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Fuse items that lack a modality with what the most similar item has of it; `prompt.missing = "borrow"`.

    Left out of the sum, a missing view puts an item at a disadvantage against whole ones (or at an advantage, if an
    average stands in its place): histories are sums of both. One real item's view keeps all on one footing. The text
    and image views stay as they are, zero where there is nothing.

    Args:
        views: "fused", "text", "image" of some items, (n, D); a missing view is zero.
        whole: of the items to borrow from, those that have both; None: the items themselves.
        themselves: (n,) rows of `whole` that items must not borrow from: their own, where it is known after all.
    """
    lenders = views if whole is None else whole
    if encoder.prompt.missing != "borrow" or not {"text", "image"} <= views.keys():
        return views
    able = np.flatnonzero(lenders["text"].any(axis=1) & lenders["image"].any(axis=1))
    there = {view: np.asarray(views[view].any(axis=1)) for view in ("text", "image")}
    rows = np.flatnonzero(there["text"] != there["image"])
    if not len(rows) or not len(able):
        return views
    filled = {view: views[view][rows].copy() for view in ("text", "image")}
    for own, other in (("text", "image"), ("image", "text")):
        lacking = np.flatnonzero(there[own][rows])
        if len(lacking):
            forbidden = None if themselves is None else themselves[rows[lacking]]
            nearest = _most_similar(views[own][rows[lacking]], lenders[own], able, forbidden)
            filled[other][lacking] = lenders[other][nearest]
    vectors = torch.from_numpy(np.concatenate([filled["text"], filled["image"]])).to(encoder.device)
    with torch.inference_mode():
        fused = encoder.assemble(vectors).fused.float().cpu().numpy()
    return {**views, "fused": _replaced(views["fused"], rows, fused)}


def _most_similar(
    queries: np.ndarray, vectors: np.ndarray, able: np.ndarray, forbidden: np.ndarray | None
) -> np.ndarray:
    """The row of `vectors`, among those `able`, with the largest cosine to each query; never the forbidden one."""
    unit = vectors[able] / np.linalg.norm(vectors[able], axis=1, keepdims=True)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _SHARD):
        cosines = queries[start : start + _SHARD] @ unit.T
        if forbidden is not None:
            cosines[forbidden[start : start + _SHARD, None] == able[None, :]] = -np.inf
        found[start : start + _SHARD] = able[cosines.argmax(axis=1)]
    return found


def _replaced(vectors: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    changed = np.array(vectors)
    changed[rows] = others
    return changed


def _views(encoder: Encoder, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    found = encoder.histories(catalogue, histories)
    return {name: view for name, view in zip(("fused", "text", "image"), found, strict=True) if view is not None}


def _check_finite(views: Mapping[str, np.ndarray]) -> None:
    if not all(np.isfinite(view).all() for view in views.values()):
        raise FloatingPointError("the encoder gave vectors that are not finite; lower the learning rate or use float32")
