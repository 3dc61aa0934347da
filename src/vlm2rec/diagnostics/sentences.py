"""A diagnosis in sentences, each with its evidence and on how many users it rests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm2rec.diagnostics.status import (
    ALONE,
    SIDES,
    WEAK,
    at_chance,
    below_chance,
    below_zero,
    by_strength,
    reaches_chance,
    share,
    sides_of,
    unclear,
)
from vlm2rec.metrics import FEW

LONGER = 1.5
"""A ratio of norms beyond which a plain sum is said to lean to one side."""


def sentences(
    found: Mapping[str, Any], separability: Mapping[str, float], untrained: bool, probes: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What `found`, the evidence of a diagnosis, says.

    `separability` is S by view, `untrained` whether all is as at step 0, `probes` the lines of `metrics.jsonl` with
    the alignment of gradients.
    """
    yield from _measured(found, separability, untrained)
    yield from _gradients(probes)


def _measured(found: Mapping[str, Any], separability: Mapping[str, float], untrained: bool) -> Iterator[str]:
    sides = sides_of(found)
    if len(sides) < 2:
        yield "There is one modality alone, so nothing can be said of a balance between two."
        return
    if "low" not in found["dropout"]["f2f"]:
        yield "One user has no spread, so nothing can be concluded; measure more of them."
        return
    for view in by_strength(found, sides):
        yield _modality(found, view, separability[view])
    if found["users"] < FEW:
        yield f"All this rests on {_users(found)}, fewer than {FEW}: measure more of them before relying on it."
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
    for what, count in found.get("silent", {}).items():
        yield (
            f"{count:,} vectors ({what}) are zero: for N@20 they stand at a right angle to everything, all else leaves"
            " them out."
        )


def _modality(found: Mapping[str, Any], view: str, separability: float) -> str:
    title, name, sign = SIDES[view]
    own, change = found["dropout"][name], found.get("change", {}).get(name)
    level, space = f"chance {number(found['chance'])}", f"{sign} = {separability:.2f}"
    shown = f"{_shown(name, own)}, {level}, {_users(found)}, {space}"
    if change is None:
        if unclear(found, view):
            return f"{title} cannot be told from chance on so few users: {shown}."
        if below_chance(found, view):
            return f"{title} find less than chance: {shown}."
        if at_chance(found, view):
            return f"{title} find no more than chance: {shown}; the model cannot read them."
        return f"{title}: {shown}."
    start = own["N@20"] - change["difference"]
    moved = f"({number(start)}; {number(change['difference'], sign=True)}, {_span(change)}, {_users(found)})"
    now = space
    if reaches_chance(found, view):
        place = "less than" if below_chance(found, view) else "no more than"
        few = "too few users to tell them from" if unclear(found, view) else f"they now find {place}"
        now = f"{space}; {few} {level}"
    if below_zero(change):
        lost = f"{-change['difference'] / start:.0%}"
        return f"{title} have collapsed: {name} {number(own['N@20'])} fell {lost} below step 0 {moved}, {now}."
    if change["low"] > 0:
        return f"{title} have gained: {_shown(name, own)} rose above step 0 {moved}, {now}."
    return f"{title} show no change: {_shown(name, own)}, step 0 {moved}, {now}."


def _balance(found: Mapping[str, Any], sides: Sequence[str]) -> Iterator[str]:
    weak, strong = (SIDES[view][0] for view in by_strength(found, sides))
    part = share(found, sides)
    if 0 < part < WEAK and not any(reaches_chance(found, view) for view in sides):
        yield (
            f"{weak} stand above chance by {part:.0%} of what {strong.lower()} do, less than half ({_users(found)})."
        )


def _lost(found: Mapping[str, Any], sides: Sequence[str]) -> Iterator[str]:
    """Modalities that would find something were they not fused."""
    for view in sides:
        name = ALONE[view]
        own = found["dropout"].get(name)
        lost = at_chance(found, view) or below_chance(found, view)
        if own is not None and lost and own["low"] > found["chance"]:
            yield (
                f"Among themselves, {SIDES[view][0].lower()} do say something: {_shown(name, own)}, {_users(found)}."
                " It is lost in the fused items."
            )


def _fusion(found: Mapping[str, Any]) -> str:
    fusion, both = found["fusion"], found["dropout"]["f2f"]["N@20"]
    best = found["dropout"][fusion["against"]]["N@20"]
    other = "pictures" if fusion["against"] == "t2f" else "text"
    shown = f"f2f {number(both)} against {fusion['against']} {number(best)} ({number(fusion['difference'], sign=True)}"
    shown += f", {_span(fusion)}, {_users(found)})"
    if below_zero(fusion):
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
        f" (chance {shares['chance']:.1%}; {shares['queries']:,} items looked up)."
    )


def _lean(found: Mapping[str, Any]) -> Iterator[str]:
    norms = found.get("norms", {})
    side = "histories" if "histories" in norms else "items"
    ratio = norms.get(side, {}).get("ratio")
    if ratio is not None and not 1 / LONGER < ratio < LONGER:
        longer, shorter, times = ("texts", "pictures", ratio) if ratio > 1 else ("pictures", "texts", 1 / ratio)
        over = _users(found) if side == "histories" else "all items"
        yield (
            f"{'History' if side == 'histories' else 'Item'} vectors of {longer} are {times:.1f} times as long as those"
            f" of {shorter} ({over}): a plain sum leans to {longer}."
        )


def _shares(found: Mapping[str, Any]) -> Iterator[str]:
    strong = found.get("strong", {})
    if "text" in strong:
        flipped = f"; for {strong['flipped']:.0%} it was the other one at step 0" if "flipped" in strong else ""
        yield (
            f"By the margin of Eq. 6, texts are the stronger modality for {strong['text']:.0%} of {_users(strong)}"
            f"{flipped}."
        )


def _gradients(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How far each modality's gradient went along with the update, from the first probe to the last (Fig. 1b)."""
    for sign, name in (("g_T", "grad_cos_text"), ("g_V", "grad_cos_image")):
        course = [(int(line["step"]), float(line[name])) for line in probes if name in line]
        if len(course) > 1:
            (first, began), (last, ended) = course[0], course[-1]
            step, lowest = min(course, key=lambda point: point[1])
            yield (
                f"cos(g_total, {sign}) was {number(began)} at step {first} and {number(ended)} at step {last}; lowest"
                f" {number(lowest)}, at step {step} (one batch of training samples)."
            )


def _users(found: Mapping[str, Any]) -> str:
    count = int(found["users"])
    return f"{count:,} user{'' if count == 1 else 's'}"


def _span(interval: Mapping[str, float]) -> str:
    return f"95% {number(interval['low'], sign=True)} to {number(interval['high'], sign=True)}"


def _shown(name: str, interval: Mapping[str, float]) -> str:
    """v2f .218 (.200 to .236)."""
    return f"{name} {number(interval['N@20'])} ({number(interval['low'])} to {number(interval['high'])})"


def number(value: float, sign: bool = False) -> str:
    """.218, or with a sign +.031; one digit more where nothing else would be left, and no sign where nothing is."""
    size = abs(value)
    digits = 2 if size >= 0.9995 else 3 if size >= 0.0005 else 4
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        return ".000"
    return text if digits == 2 else text.replace("0.", ".", 1)
