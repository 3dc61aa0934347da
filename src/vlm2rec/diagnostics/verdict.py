"""From measurements to a verdict: the evidence with its intervals, a status, and sentences.

What is claimed follows from the thresholds in `status`, for a good outcome and a bad one alike. A change counts when
its 95% interval (over users, paired with step 0 where that is known) lies on one side of zero. That leaves 2.5% below
it by chance, so of two modalities that did not change one is called collapsed in at most 5% of the runs. Whoever looks
more than once asks `falls`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.diagnostics.measure import Measured, stronger
from vlm2rec.diagnostics.sentences import sentences
from vlm2rec.diagnostics.status import SIDES, below_zero, status
from vlm2rec.metrics import mean_interval

ERROR = 0.05
"""How often, at most, `falls` calls something fallen that is not: over all the looks that it is told of."""

_SAME = 1e-6
"""Figures this close are those of the same vectors, measured on another machine."""


def conclude(
    measured: Measured, start: pl.DataFrame | None = None, probes: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The `diagnosis` of `results.json`: a status, sentences, and the evidence with its intervals.

    What each status means stands in `status.status`.

    Args:
        measured: what `measure` found.
        start: its `users` before training, where that is known; users are matched by id.
        probes: lines of `metrics.jsonl` with the alignment of gradients, where training left some.
    """
    users = measured.users
    before = None if start is None else _matched(start, users)
    untrained = before is not None and _same(users, before)
    dropout = {name: _interval(users[name].to_numpy(), "N@20") for name in measured.counts}
    found: dict[str, Any] = {"users": users.height, "chance": measured.chance, "dropout": dropout}
    if before is not None and not untrained:
        found["change"] = {
            name: _interval((users[name] - before[name]).to_numpy(), "difference")
            for name in measured.counts
            if name in before.columns
        }
    if {"f2f", "t2f", "v2f"} <= dropout.keys():
        best = max(("t2f", "v2f"), key=lambda name: float(dropout[name]["N@20"]))
        found["fusion"] = {"against": best, **_interval((users["f2f"] - users[best]).to_numpy(), "difference")}
    strong = stronger(users, None if untrained else before)
    if strong:
        found["strong"] = strong
    for name in ("norms", "effective_rank", "isotropy", "neighbour_overlap", "silent"):
        value = getattr(measured, name)
        if value:
            found[name] = {key: dict(part) if isinstance(part, Mapping) else part for key, part in value.items()}
    separability = {view: shape["S"] for view, shape in measured.geometry.items()}
    said = list(sentences(found, separability, untrained, probes))
    return {"status": status(found), "verdict": said, **found}


def falls(users: pl.DataFrame, start: pl.DataFrame, looks: int) -> dict[str, dict[str, float]]:
    """Modalities that lie significantly below their start, at one of `looks` looks at the same training.

    Every look at every modality is another chance to be wrong. By Bonferroni's correction each test is made at
    `ERROR` / (looks x modalities), one-sided, so that over all of them the probability of a false alarm stays below
    `ERROR`, however the looks hang together.

    Args:
        users: `Measured.users` now.
        start: the same of the first look; users are matched by id.
        looks: how many looks are planned after the first.

    Returns:
        View -> "difference", its interval "low" and "high", and the "level" of that interval.
    """
    before = _matched(start, users)
    sides = {view: name for view, (_, name, _) in SIDES.items() if name in users.columns}
    if before is None or not sides:
        return {}
    error = 2 * ERROR / (looks * len(sides))  # of an interval, which errs on two sides
    found = {
        view: {**_interval((users[name] - before[name]).to_numpy(), "difference", error), "level": 1 - error}
        for view, name in sides.items()
    }
    return {view: change for view, change in found.items() if below_zero(change)}


def _matched(start: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame | None:
    """The users' rows of step 0 in their order; None where one is missing, since it was then measured on others."""
    if not set(users["user_id"]) <= set(start["user_id"]):
        return None
    return users.select("user_id").join(start, on="user_id", how="left", maintain_order="left")


def _same(users: pl.DataFrame, before: pl.DataFrame) -> bool:
    """Whether every figure is that of step 0, margins too: they move with any training, where ranks need not."""
    figures = [name for name in users.columns if name != "user_id"]
    return set(figures) <= set(before.columns) and all(
        np.allclose(users[name].to_numpy(), before[name].to_numpy(), rtol=0, atol=_SAME, equal_nan=True)
        for name in figures
    )


def _interval(values: NDArray[np.float64], name: str, error: float = 0.05) -> dict[str, float]:
    """{name: mean, "low", "high"}; the mean alone where there is no spread to know."""
    mean, low, high = mean_interval(values, error)
    return {name: mean, "low": low, "high": high} if math.isfinite(low) else {name: mean}
