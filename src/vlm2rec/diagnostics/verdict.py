"""From measurements to a verdict in words, each sentence with its evidence.

What is claimed follows from the thresholds written here, for a good outcome and a bad one alike. A change counts when
its 95% interval (over users, paired with step 0 where that is known) lies on one side of zero.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.diagnostics.measure import Measured
from vlm2rec.metrics import mean_interval

Status = Literal["collapsed", "harmful", "unbalanced", "balanced", "unknown"]

SIDES = {"text": ("Texts", "t2f", "S_T"), "image": ("Pictures", "v2f", "S_V")}
"""View -> what it is called, its measurement, the sign of its separability."""

WEAK = 0.5
"""A modality that stands above chance by less than this share of what the other does makes a model unbalanced."""

LONGER = 1.5
"""A ratio of norms beyond which a plain sum is said to lean to one side."""


def conclude(
    measured: Measured, start: pl.DataFrame | None = None, probes: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The `diagnosis` of `results.json`: a status, sentences, and the evidence with its intervals.

    collapsed: a modality has fallen below its start, or finds no more than chance. harmful: the fusion finds less
    than its better half alone. unbalanced: one modality stands above chance by less than half of what the other does.
    balanced: none of these. unknown: one modality alone, or too few users for an interval.

    Args:
        measured: what `measure` found.
        start: its `users` before training, where that is known; users are matched by id.
        probes: lines of `metrics.jsonl` with the alignment of gradients, where training left some.
    """
    users = measured.users
    before = None if start is None else _matched(start, users)
    untrained = before is not None and all((users[name] == before[name]).all() for name in measured.counts)
    dropout = {name: _interval(users[name].to_numpy(), "N@20") for name in measured.counts}
    found: dict[str, Any] = {"chance": measured.chance, "dropout": dropout}
    if before is not None and not untrained:
        found["change"] = {
            name: _interval((users[name] - before[name]).to_numpy(), "difference")
            for name in measured.counts
            if name in before.columns
        }
    if {"f2f", "t2f", "v2f"} <= dropout.keys():
        best = max(("t2f", "v2f"), key=lambda name: float(dropout[name]["N@20"]))
        found["fusion"] = {"against": best, **_interval((users["f2f"] - users[best]).to_numpy(), "difference")}
    strong = _strong(users, None if untrained else before)
    if strong:
        found["strong"] = strong
    for name in ("norms", "effective_rank", "isotropy", "neighbour_overlap", "silent"):
        value = getattr(measured, name)
        if value:
            found[name] = {key: dict(part) if isinstance(part, Mapping) else part for key, part in value.items()}
    sides = [view for view, (_, name, _) in SIDES.items() if name in dropout]
    sentences = [*_sentences(found, sides, measured, untrained), *_gradients(probes)]
    return {"status": _status(found, sides), "verdict": sentences, **found}


def collapsed(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality has fallen below its start, or finds no more than chance."""
    return fell(found, view) or nothing(found, view)


def fell(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's N@20 lies below its start, the whole interval of the difference below zero."""
    change = found.get("change", {}).get(SIDES[view][1])
    return change is not None and _below(change)


def nothing(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's interval does not lie above chance."""
    return float(found["dropout"][SIDES[view][1]]["low"]) <= float(found["chance"])


def _status(found: Mapping[str, Any], sides: Sequence[str]) -> Status:
    if len(sides) < 2 or "low" not in found["dropout"]["f2f"]:
        return "unknown"
    if any(collapsed(found, view) for view in sides):
        return "collapsed"
    if _below(found["fusion"]):
        return "harmful"
    gains = sorted(found["dropout"][SIDES[view][1]]["N@20"] - found["chance"] for view in sides)
    return "unbalanced" if gains[0] < WEAK * gains[1] else "balanced"


def _sentences(found: Mapping[str, Any], sides: Sequence[str], measured: Measured, untrained: bool) -> Iterator[str]:
    if len(sides) < 2:
        yield "There is one modality alone, so nothing can be said of a balance between two."
        return
    if "low" not in found["dropout"]["f2f"]:
        yield "One user has no spread, so nothing can be concluded; measure more of them."
        return
    for view in sorted(sides, key=lambda view: float(found["dropout"][SIDES[view][1]]["N@20"])):
        yield _modality(found, view, measured.geometry[view]["S"])
    if untrained:
        yield "This is step 0: nothing has been trained."
    elif "change" not in found:
        yield "There is no step 0 to compare with, so whether training has done this cannot be told."
    yield _fusion(found)
    yield from _neighbours(found)
    yield from _lean(found)
    yield from _shares(found)
    for what, number in found.get("silent", {}).items():
        yield f"{number:,} vectors ({what}) are zero and took no part there."


def _modality(found: Mapping[str, Any], view: str, separability: float) -> str:
    title, name, sign = SIDES[view]
    own, change = found["dropout"][name], found.get("change", {}).get(name)
    shown = f"{name} {_number(own['N@20'])} ({_number(own['low'])} to {_number(own['high'])})"
    chance, space = f"chance {_number(found['chance'])}", f"{sign} = {separability:.2f}"
    if change is None:
        says = " say nothing" if nothing(found, view) else ""
        return f"{title}{says}: {shown}, {chance}, {space}."
    start = own["N@20"] - change["difference"]
    moved = f"({_number(start)}; {_number(change['difference'], sign=True)}, {_span(change)})"
    now = f"{space}; they say nothing now, {chance}" if nothing(found, view) else space
    if _below(change):
        lost = f"{-change['difference'] / start:.0%}"
        return f"{title} have collapsed: {name} {_number(own['N@20'])} fell {lost} below step 0 {moved}, {now}."
    if change["low"] > 0:
        return f"{title} have gained: {shown} rose above step 0 {moved}, {now}."
    return f"{title} stayed where they were: {shown}, step 0 {moved}, {now}."


def _fusion(found: Mapping[str, Any]) -> str:
    fusion, both = found["fusion"], found["dropout"]["f2f"]["N@20"]
    best = found["dropout"][fusion["against"]]["N@20"]
    other = "pictures" if fusion["against"] == "t2f" else "text"
    shown = (
        f"f2f {_number(both)} against {fusion['against']} {_number(best)} ({_number(fusion['difference'], sign=True)}"
    )
    shown += f", {_span(fusion)})"
    if _below(fusion):
        return f"Adding {other} does harm: {shown}."
    if fusion["low"] > 0:
        return f"Adding {other} pays: {shown}."
    return f"Adding {other} makes no difference that shows: {shown}."


def _neighbours(found: Mapping[str, Any]) -> Iterator[str]:
    shares = found.get("neighbour_overlap", {})
    if not {"text_image", "text_fused", "image_fused"} <= shares.keys():
        return
    text, image = shares["text_fused"], shares["image_fused"]
    follows = "texts" if text > 2 * image else "pictures" if image > 2 * text else "both"
    yield (
        f"Of an item's {shares['k']:.0f} nearest neighbours in the fused space, {text:.0%} are so in texts too and"
        f" {image:.0%} in pictures: it follows {follows}. Texts and pictures agree on {shares['text_image']:.1%}"
        f" (chance {shares['chance']:.1%})."
    )


def _lean(found: Mapping[str, Any]) -> Iterator[str]:
    ratio = found.get("norms", {}).get("histories", {}).get("ratio")
    if ratio is not None and not 1 / LONGER < ratio < LONGER:
        longer, shorter, times = ("texts", "pictures", ratio) if ratio > 1 else ("pictures", "texts", 1 / ratio)
        yield (
            f"History vectors of {longer} are {times:.1f} times as long as those of {shorter}: a plain sum leans to"
            f" {longer}."
        )


def _shares(found: Mapping[str, Any]) -> Iterator[str]:
    strong = found.get("strong", {})
    if "text" in strong:
        flipped = f"; for {strong['flipped']:.0%} it was the other one at step 0" if "flipped" in strong else ""
        yield f"By the margin of Eq. 6, texts are the stronger modality for {strong['text']:.0%} of the users{flipped}."


def _gradients(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How far each modality's gradient went along with the update, from the first probe to the last (Fig. 1b)."""
    for sign, name in (("g_T", "grad_cos_text"), ("g_V", "grad_cos_image")):
        course = [(int(line["step"]), float(line[name])) for line in probes if name in line]
        if len(course) > 1:
            (first, began), (last, ended) = course[0], course[-1]
            step, lowest = min(course, key=lambda point: point[1])
            yield (
                f"cos(g_total, {sign}) was {_number(began)} at step {first} and {_number(ended)} at step {last}; lowest"
                f" {_number(lowest)}, at step {step}."
            )


def _strong(users: pl.DataFrame, before: pl.DataFrame | None) -> dict[str, float]:
    """Share of users whose text margin is the larger, and of those for whom that was otherwise at step 0."""
    now = _leads(users)
    if now is None:
        return {}
    found = {"text": float(np.nanmean(now))} if np.isfinite(now).any() else {}
    then = None if before is None else _leads(before)
    if then is not None and np.isfinite(now + then).any():
        found["flipped"] = float(np.nanmean(np.abs(now - then)))
    return found


def _leads(users: pl.DataFrame) -> NDArray[np.float64] | None:
    """1 where text's margin is at least the pictures', 0 where it is not, NaN where one is unknown; `(U,)`."""
    if not {"margin_text", "margin_image"} <= set(users.columns):
        return None
    ahead = users.select((pl.col("margin_text") >= pl.col("margin_image")).cast(pl.Float64)).to_series()
    return ahead.fill_null(math.nan).to_numpy()


def _matched(start: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame | None:
    """The users' rows of step 0 in their order; None where one is missing, since it was then measured on others."""
    joined = users.select("user_id").join(start, on="user_id", how="left", maintain_order="left")
    return joined if joined.height == users.height and joined["f2f"].null_count() == 0 else None


def _interval(values: NDArray[np.float64], name: str) -> dict[str, float]:
    """{name: mean, "low", "high"}; the mean alone where there is no spread to know."""
    mean, low, high = mean_interval(values)
    return {name: mean, "low": low, "high": high} if math.isfinite(low) else {name: mean}


def _below(interval: Mapping[str, float]) -> bool:
    return interval.get("high", 0.0) < 0


def _span(interval: Mapping[str, float]) -> str:
    return f"95% {_number(interval['low'], sign=True)} to {_number(interval['high'], sign=True)}"


def _number(value: float, sign: bool = False) -> str:
    """.218, or with a sign +.031."""
    return f"{value:{'+' if sign else ''}.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"
