"""What follows from the figures of a diagnosis: a status, and the questions behind it.

Pure functions of the mapping that `results.json` keeps under "diagnosis", so that a status written by an older
version is found anew from its evidence. A statement counts where a whole 95% interval over users supports it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Status = Literal["collapsed", "below chance", "at chance", "harmful", "unbalanced", "balanced", "unknown"]

SIDES = {"text": ("Texts", "t2f", "S_T"), "image": ("Pictures", "v2f", "S_V")}
"""View -> what it is called, its measurement, the sign of its separability."""

ALONE = {"text": "t2t", "image": "v2v"}
"""View -> the measurement that keeps it on both sides."""

WEAK = 0.5
"""A modality that stands above chance by less than this share of what the other does makes a model unbalanced."""

ROOM = 0.1
"""An interval from chance to above this share of the way from there to 1 is too wide to call a modality at chance."""


def status(found: Mapping[str, Any]) -> Status:
    """The first of these that holds.

    collapsed: a modality finds significantly less than at step 0. below chance: one finds significantly less than
    chance. at chance: one finds no more than chance, trained or not. harmful: the fusion finds less than its better
    half alone. unbalanced: one modality stands above chance by less than half of what the other does. balanced: none
    of these. unknown: one modality alone, too few users to tell one of them from chance, or evidence that is not there.
    """
    sides = sides_of(found)
    if len(sides) < 2 or "low" not in found["dropout"].get("f2f", {}) or not {"chance", "fusion"} <= found.keys():
        return "unknown"
    if any(fell(found, view) for view in sides):
        return "collapsed"
    if any(below_chance(found, view) for view in sides):
        return "below chance"
    if any(at_chance(found, view) for view in sides):
        return "at chance"
    if below_zero(found["fusion"]):
        return "harmful"
    if any(unclear(found, view) for view in sides):
        return "unknown"
    return "unbalanced" if share(found, sides) < WEAK else "balanced"


def sides_of(found: Mapping[str, Any]) -> list[str]:
    """The modalities that were measured apart."""
    return [view for view, (_, name, _) in SIDES.items() if name in found.get("dropout", {})]


def fell(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's N@20 lies below its start, the whole interval of the difference below zero.

    Never so where there is no start to compare with.
    """
    change = found.get("change", {}).get(SIDES[view][1])
    return change is not None and below_zero(change)


def below_chance(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality finds less than chance, the whole interval below it."""
    return float(_own(found, view)["high"]) < float(found["chance"])


def at_chance(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality finds no more than chance: its interval holds chance, and reaches not far beyond."""
    return reaches_chance(found, view) and not below_chance(found, view) and not unclear(found, view)


def unclear(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's interval holds chance and much beyond it, so that too few users were asked to tell."""
    high, chance = float(_own(found, view)["high"]), float(found["chance"])
    return reaches_chance(found, view) and high > chance + ROOM * (1 - chance)


def reaches_chance(found: Mapping[str, Any], view: str) -> bool:
    """Whether a modality's interval does not lie above chance."""
    return float(_own(found, view)["low"]) <= float(found["chance"])


def by_strength(found: Mapping[str, Any], sides: Sequence[str]) -> list[str]:
    """The modalities, the one that finds less first."""
    return sorted(sides, key=lambda view: float(_own(found, view)["N@20"]))


def share(found: Mapping[str, Any], sides: Sequence[str]) -> float:
    """What the weaker modality stands above chance, as a share of what the stronger one does; 1 where neither does."""
    weak, strong = (_own(found, view)["N@20"] - found["chance"] for view in by_strength(found, sides))
    return float(weak / strong) if strong > 0 else 1.0


def below_zero(interval: Mapping[str, float]) -> bool:
    """Whether a whole interval lies below zero."""
    return interval.get("high", 0.0) < 0


def _own(found: Mapping[str, Any], view: str) -> Mapping[str, float]:
    own: Mapping[str, float] = found["dropout"][SIDES[view][1]]
    return own
