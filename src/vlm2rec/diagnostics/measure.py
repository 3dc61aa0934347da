"""All measurements of one set of embeddings in one go: a view's unit vectors are made once, and one view at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import spread
from vlm2rec.diagnostics.dropout import PAIRS, Counts, K, counts_of, queries_of
from vlm2rec.diagnostics.geometry import alignment, margins, uniformity
from vlm2rec.diagnostics.space import Ints, Rows, Space, listing
from vlm2rec.metrics import ndcg
from vlm2rec.progress import Tell, progress
from vlm2rec.runs import replacing

VIEWS = ("fused", "text", "image")
OVERLAPS = (("text", "image"), ("text", "fused"), ("image", "fused"))


@dataclass(frozen=True)
class Measured:
    """What was measured, before any conclusion.

    Attributes:
        users: a row a user: user_id, N@20 of every measurement of `PAIRS` there is, margin_text and margin_image
            (Eq. 6, cosines; null where a vector or a negative is missing).
        counts: measurement -> each user's candidates above the target and tied with it.
        chance: N@20 of a scorer that knows nothing.
        geometry: view -> A_pos, A_neg, U, S.
        norms: "histories", "items" -> mean length of text and image vectors, and their ratio (a geometric mean).
        effective_rank, isotropy: by view, of the items.
        neighbour_overlap: pair of views -> share of common nearest neighbours; empty where it cannot be measured.
        silent: "VIEW of histories", "VIEW of items" -> how many vectors are zero, where some are.
    """

    users: pl.DataFrame
    counts: Mapping[str, Counts]
    chance: float
    geometry: Mapping[str, Mapping[str, float]]
    norms: Mapping[str, Mapping[str, float]]
    effective_rank: Mapping[str, float]
    isotropy: Mapping[str, float]
    neighbour_overlap: Mapping[str, float]
    silent: Mapping[str, int]

    def dropout(self) -> dict[str, float]:
        """N@20 by measurement, means over users."""
        return {name: float(self.users[name].mean()) for name in self.counts}  # type: ignore[arg-type]


def measure_users(
    histories: Mapping[str, Rows], items: Mapping[str, Rows], split: Split, users: np.ndarray, seed: int
) -> Measured:
    """`measure` the test users on their `sampled` candidates, with progress shown.

    `histories` have a row a user, `items` a row an item. Raises ValueError as `measure` does.
    """
    targets = split.targets_of(users, "test")
    candidates = draw_candidates(split, users, "test", "sampled", seed)
    ids = [split.dataset.user_ids[int(user)] for user in users]
    with progress("measuring modalities", len(items)) as tell:
        return measure(ids, histories, items, targets, candidates, seed, tell)


def measure(
    user_ids: Sequence[str],
    histories: Mapping[str, Rows],
    items: Mapping[str, Rows],
    targets: Ints,
    candidates: Ints,
    seed: int,
    tell: Tell = lambda done, view: None,
) -> Measured:
    """Measure modality dropout, geometry, margins, norms, spread and neighbours.

    Memory holds one view of the items at a time, and of the histories a few at a time.

    Args:
        user_ids: (U,).
        histories: view ("fused", "text", "image") -> (U, D) raw vectors; views may be missing.
        items: view -> (N, D); a fused view may be twice as wide as the others (concatenation: text first).
        targets: (U,) item index bought next.
        candidates: (U, C) item indices to rank the target against, -1 where there is none.
        seed: fixes what is sampled: pairs for U, items for rank and neighbours.
        tell: told after each view how many are done.

    Raises:
        ValueError: shapes do not fit, no view is on both sides, a vector is not finite, or nobody has a negative.
    """
    ordered = [*VIEWS, *(view for view in items if view not in VIEWS)]  # a method may have one of its own
    views = [view for view in ordered if view in items and view in histories]
    if not views:
        raise ValueError(f"no view is on both sides: histories have {', '.join(histories)}, items {', '.join(items)}")
    listed, valid = listing(targets, candidates, items[views[0]].shape[0])
    found: dict[str, _View] = {}
    queries = spread.neighbour_queries(items[views[0]].shape[0], seed)  # the same items in every view
    for view in views:
        found[view] = _measure_view(view, items[view], histories, listed, valid, queries, seed)
        tell(len(found), view)
    by_name = {name: counts for view in found.values() for name, counts in view.counts.items()}
    counts = {name: by_name[name] for name in PAIRS if name in by_name}
    columns = {name: ndcg(*some, K) for name, some in counts.items()}
    columns |= {f"margin_{view}": found[view].margins for view in ("text", "image") if view in found}
    lengths = {
        "histories": {view: each.history_lengths for view, each in found.items()},
        "items": {view: each.item_lengths for view, each in found.items()},
    }
    return Measured(
        users=pl.DataFrame({"user_id": list(user_ids), **columns}).with_columns(pl.selectors.float().fill_nan(None)),
        counts=counts,
        chance=float(ndcg(np.zeros(len(valid), np.int64), valid.sum(axis=1), K).mean()),
        geometry={view: each.geometry for view, each in found.items()},
        norms={side: norms for side, by_view in lengths.items() if (norms := _norms(by_view))},
        effective_rank={view: each.effective_rank for view, each in found.items()},
        isotropy={view: each.isotropy for view, each in found.items()},
        neighbour_overlap=_overlaps(found, queries),
        silent={
            f"{view} of {side}": int((some == 0).sum())
            for side, by_view in lengths.items()
            for view, some in by_view.items()
            if (some == 0).any()
        },
    )


@dataclass(frozen=True)
class _View:
    """What is measured while one view's items are in memory."""

    counts: dict[str, Counts]
    margins: NDArray[np.float64]
    geometry: dict[str, float]
    effective_rank: float
    isotropy: float
    history_lengths: NDArray[np.float64]
    item_lengths: NDArray[np.float64]
    neighbours: NDArray[np.int64] | None  # None where so few items have a vector that all are neighbours


def _measure_view(
    view: str,
    items: Rows,
    histories: Mapping[str, Rows],
    listed: Ints,
    valid: NDArray[np.bool_],
    queries: Ints,
    seed: int,
) -> _View:
    space = Space(items)  # let go of when this returns: there is never more than one
    alone = next((name for name, pair in PAIRS.items() if pair == (view, view)), view)
    asked = {alone: histories[view], **queries_of(histories, view, space.vectors.shape[1])}
    distances = space.distances(asked, listed)
    own = distances[alone]
    return _View(
        counts={name: counts_of(apart.squared, valid) for name, apart in distances.items() if name in PAIRS},
        margins=margins(own, valid),
        geometry={**alignment(own, valid), "U": uniformity(space, histories[view], own.lengths > 0, seed)},
        effective_rank=spread.effective_rank(space, seed),
        isotropy=spread.isotropy(space),
        history_lengths=own.lengths,
        item_lengths=space.lengths,
        neighbours=spread.nearest(space, queries) if (~space.empty).sum() > spread.K + 1 else None,
    )


def stronger(users: pl.DataFrame, before: pl.DataFrame | None = None) -> dict[str, float]:
    """Share of users whose text margin is at least the other, and of those for whom that was otherwise `before`.

    Both hold `Measured.users`, in the same order. Users of whom a margin is unknown are left out, "users" says how
    many are left; empty where nobody is, and without "flipped" where that is known of nobody.
    """
    now = _text_leads(users)
    known = np.isfinite(now)
    found = {"text": float(np.nanmean(now)), "users": int(known.sum())} if known.any() else {}
    moved = np.abs(now - _text_leads(before)) if before is not None else np.full(len(now), np.nan)
    return {**found, "flipped": float(np.nanmean(moved))} if np.isfinite(moved).any() else found


def _text_leads(users: pl.DataFrame) -> NDArray[np.float64]:
    """1 where text's margin is at least the pictures', 0 where it is not, NaN where one is unknown; `(U,)`."""
    if not {"margin_text", "margin_image"} <= set(users.columns):
        return np.full(users.height, np.nan)
    ahead = users.select((pl.col("margin_text") >= pl.col("margin_image")).cast(pl.Float64)).to_series()
    return ahead.fill_null(np.nan).to_numpy()


def write_users(users: pl.DataFrame, path: Path) -> None:
    """Keep `Measured.users`."""
    with replacing(path) as temporary:
        users.write_parquet(temporary)


def read_users(path: Path) -> pl.DataFrame | None:
    """What `write_users` wrote; None where there is nothing."""
    return pl.read_parquet(path, glob=False) if path.exists() else None


def _norms(by_view: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Mean lengths of both modalities' vectors, and by how much text is the longer; empty where one is missing."""
    if not {"text", "image"} <= by_view.keys():
        return {}
    text, image = by_view["text"], by_view["image"]
    both = (text > 0) & (image > 0)
    if not both.any():
        return {}
    ratio = float(np.exp(np.mean(np.log(text[both]) - np.log(image[both]))))
    return {"text": float(text[both].mean()), "image": float(image[both].mean()), "ratio": ratio}


def _overlaps(found: Mapping[str, _View], queries: Ints) -> dict[str, float]:
    """Shares of neighbours in common, what chance would give, and how many items were asked; empty if it is none.

    Asked are those of `queries` that have a vector in every view.
    """
    there = np.all([each.item_lengths[queries] > 0 for each in found.values()], axis=0)
    near = {view: each.neighbours[there] for view, each in found.items() if each.neighbours is not None}
    pairs = [(first, second) for first, second in OVERLAPS if first in near and second in near]
    if not pairs or not there.any():
        return {}
    shares = {f"{first}_{second}": spread.overlap(near[first], near[second]) for first, second in pairs}
    n_items = len(found[pairs[0][0]].item_lengths)
    return {**shares, "chance": spread.K / (n_items - 1), "k": spread.K, "queries": int(there.sum())}
