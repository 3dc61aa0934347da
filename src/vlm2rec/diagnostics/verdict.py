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

from vlm2rec.diagnostics.measure import Measured, stronger
from vlm2rec.metrics import mean_interval

Status = Literal["collapsed", "harmful", "unbalanced", "balanced", "unknown"]

SIDES = {"text": ("Texts", "t2f", "S_T"), "image": ("Pictures", "v2f", "S_V")}
"""View -> what it is called, its measurement, the sign of its separability."""

ALONE = {"text": "t2t", "image": "v2v"}
"""View -> the measurement that keeps it on both sides."""

WEAK = 0.5
"""A modality that stands above chance by less than this share of what the other does makes a model unbalanced."""

ROOM = 0.1
"""An interval from chance to above this share of the way from there to 1 is too wide to say 'nothing'."""

LONGER = 1.5
"""A ratio of norms beyond which a plain sum is said to lean to one side."""

_SAME = 1e-6
"""Figures this close are those of the same vectors, measured on another machine."""


def conclude(
    measured: Measured, start: pl.DataFrame | None = None, probes: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The `diagnosis` of `results.json`: a status, sentences, and the evidence with its intervals.

    collapsed: a modality has fallen below its start, or finds no more than chance. harmful: the fusion finds less
    than its better half alone. unbalanced: one modality stands above chance by less than half of what the other does.
    balanced: none of these. unknown: one modality alone, or too few users to tell one of them from chance.

    Args:
        measured: what `measure` found.
        start: its `users` before training, where that is known; users are matched by id.
        probes: lines of `metrics.jsonl` with the alignment of gradients, where training left some.
    """
    users = measured.users
    before = None if start is None else _matched(start, users)
    untrained = before is not None and _same(users, before)
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
    strong = stronger(users, None if untrained else before)
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
    """Whether a modality finds no more than chance: its interval does not lie above, nor reaches far beyond."""
    return _reaches_chance(found, view) and not unclear(found, view)


def unclear(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's interval holds chance and much beyond it, so that too few users were asked to tell."""
    high, chance = float(found["dropout"][SIDES[view][1]]["high"]), float(found["chance"])
    return _reaches_chance(found, view) and high > chance + ROOM * (1 - chance)


def _reaches_chance(found: Mapping[str, Any], view: str) -> bool:
    return float(found["dropout"][SIDES[view][1]]["low"]) <= float(found["chance"])


def _status(found: Mapping[str, Any], sides: Sequence[str]) -> Status:
    if len(sides) < 2 or "low" not in found["dropout"]["f2f"]:
        return "unknown"
    if any(collapsed(found, view) for view in sides):
        return "collapsed"
    if _below(found["fusion"]):
        return "harmful"
    if any(unclear(found, view) for view in sides):
        return "unknown"
    return "unbalanced" if _share(found, sides) < WEAK else "balanced"


def _by_strength(found: Mapping[str, Any], sides: Sequence[str]) -> list[str]:
    return sorted(sides, key=lambda view: float(found["dropout"][SIDES[view][1]]["N@20"]))


def _share(found: Mapping[str, Any], sides: Sequence[str]) -> float:
    """What the weaker modality stands above chance, as a share of what the stronger one does; 1 where neither does."""
    weak, strong = (found["dropout"][SIDES[view][1]]["N@20"] - found["chance"] for view in _by_strength(found, sides))
    return float(weak / strong) if strong > 0 else 1.0


def _sentences(found: Mapping[str, Any], sides: Sequence[str], measured: Measured, untrained: bool) -> Iterator[str]:
    if len(sides) < 2:
        yield "There is one modality alone, so nothing can be said of a balance between two."
        return
    if "low" not in found["dropout"]["f2f"]:
        yield "One user has no spread, so nothing can be concluded; measure more of them."
        return
    for view in _by_strength(found, sides):
        yield _modality(found, view, measured.geometry[view]["S"])
    if untrained:
        yield "All is as at step 0: nothing has been trained."
    elif "change" not in found:
        yield "There is no step 0 of these users to compare with, so whether training has done this cannot be told."
    yield from _balance(found, sides)
    yield from _lost(found, sides)
    yield _fusion(found)
    yield from _neighbours(found)
    yield from _lean(found)
    yield from _shares(found)
    for what, number in found.get("silent", {}).items():
        yield (
            f"{number:,} vectors ({what}) are zero: for N@20 they stand at a right angle to everything, all else leaves"
            " them out."
        )


def _modality(found: Mapping[str, Any], view: str, separability: float) -> str:
    title, name, sign = SIDES[view]
    own, change = found["dropout"][name], found.get("change", {}).get(name)
    shown = _shown(name, own)
    chance, space = f"chance {_number(found['chance'])}", f"{sign} = {separability:.2f}"
    if change is None:
        if unclear(found, view):
            return f"{title} cannot be told from chance on so few users: {shown}, {chance}, {space}."
        return f"{title}{' say nothing' if nothing(found, view) else ''}: {shown}, {chance}, {space}."
    start = own["N@20"] - change["difference"]
    moved = f"({_number(start)}; {_number(change['difference'], sign=True)}, {_span(change)})"
    now = space
    if _reaches_chance(found, view):
        few = "too few users to tell them from chance" if unclear(found, view) else "they say nothing now"
        now = f"{space}; {few}, {_number(found['chance'])}"
    if _below(change):
        lost = f"{-change['difference'] / start:.0%}"
        return f"{title} have collapsed: {name} {_number(own['N@20'])} fell {lost} below step 0 {moved}, {now}."
    if change["low"] > 0:
        return f"{title} have gained: {shown} rose above step 0 {moved}, {now}."
    return f"{title} show no change: {shown}, step 0 {moved}, {now}."


def _balance(found: Mapping[str, Any], sides: Sequence[str]) -> Iterator[str]:
    weak, strong = (SIDES[view][0] for view in _by_strength(found, sides))
    share = _share(found, sides)
    if 0 < share < WEAK and not any(_reaches_chance(found, view) for view in sides):
        yield f"{weak} stand above chance by {share:.0%} of what {strong.lower()} do, less than half."


def _lost(found: Mapping[str, Any], sides: Sequence[str]) -> Iterator[str]:
    """Modalities that would find something were they not fused."""
    for view in sides:
        name = ALONE[view]
        own = found["dropout"].get(name)
        if own is not None and nothing(found, view) and own["low"] > found["chance"]:
            yield (
                f"Among themselves, {SIDES[view][0].lower()} do say something: {_shown(name, own)}. It is lost in the"
                " fused items."
            )


def _fusion(found: Mapping[str, Any]) -> str:
    fusion, both = found["fusion"], found["dropout"]["f2f"]["N@20"]
    best = found["dropout"][fusion["against"]]["N@20"]
    other = "pictures" if fusion["against"] == "t2f" else "text"
    shown = (
        f"f2f {_number(both)} against {fusion['against']} {_number(best)} ({_number(fusion['difference'], sign=True)}"
    )
    shown += f", {_span(fusion)})"
    if _below(fusion):
        return f"Adding {other} to the query does harm: {shown}."
    if fusion["low"] > 0:
        return f"Adding {other} to the query pays: {shown}."
    return f"Adding {other} to the query makes no difference that shows: {shown}."


def _neighbours(found: Mapping[str, Any]) -> Iterator[str]:
    shares = found.get("neighbour_overlap", {})
    if not {"text_image", "text_fused", "image_fused"} <= shares.keys():
        return
    text, image = shares["text_fused"], shares["image_fused"]
    follows = "texts" if text > 2 * image else "pictures" if image > 2 * text else "both"
    if max(text, image) <= 2 * shares["chance"]:
        follows = "neither"
    yield (
        f"Of an item's {shares['k']:.0f} nearest neighbours in the fused space, {text:.0%} are so in texts too and"
        f" {image:.0%} in pictures: it follows {follows}. Texts and pictures agree on {shares['text_image']:.1%}"
        f" (chance {shares['chance']:.1%})."
    )


def _lean(found: Mapping[str, Any]) -> Iterator[str]:
    norms = found.get("norms", {})
    side = "histories" if "histories" in norms else "items"
    ratio = norms.get(side, {}).get("ratio")
    if ratio is not None and not 1 / LONGER < ratio < LONGER:
        longer, shorter, times = ("texts", "pictures", ratio) if ratio > 1 else ("pictures", "texts", 1 / ratio)
        yield (
            f"{'History' if side == 'histories' else 'Item'} vectors of {longer} are {times:.1f} times as long as those"
            f" of {shorter}: a plain sum leans to {longer}."
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


def _interval(values: NDArray[np.float64], name: str) -> dict[str, float]:
    """{name: mean, "low", "high"}; the mean alone where there is no spread to know."""
    mean, low, high = mean_interval(values)
    return {name: mean, "low": low, "high": high} if math.isfinite(low) else {name: mean}


def _below(interval: Mapping[str, float]) -> bool:
    return interval.get("high", 0.0) < 0


def _span(interval: Mapping[str, float]) -> str:
    return f"95% {_number(interval['low'], sign=True)} to {_number(interval['high'], sign=True)}"


def _shown(name: str, interval: Mapping[str, float]) -> str:
    """v2f .218 (.200 to .236)."""
    return f"{name} {_number(interval['N@20'])} ({_number(interval['low'])} to {_number(interval['high'])})"


def _number(value: float, sign: bool = False) -> str:
    """.218, or with a sign +.031; one digit more where nothing else would be left, and no sign where nothing is."""
    size = abs(value)
    digits = 2 if size >= 0.9995 else 3 if size >= 0.0005 else 4
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        return ".000"
    return text if digits == 2 else text.replace("0.", ".", 1)
