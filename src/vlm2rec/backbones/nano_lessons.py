"""What the built-in backbone learns from: drawn things with captions, short sentences, and lists with a question.

Everything is made up from a seed. Colours come from the whole colour wheel, words from lists of common words; no
product of the demo's shop is among them. Pictures and words get lessons of the same three sorts, so neither is
favoured: say what it is, read it, and name in one word what a few of them share.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vlm2rec.data.sources.shop_brush import FORMS, PATTERNS, Colour, Look
from vlm2rec.data.sources.shop_drawing import KINDS, draw

PICTURE = "<image>"  # stands for a picture in a lesson

_Option = TypeVar("_Option")

# Hue in degrees, saturation and brightness ranges of what English calls by each name.
_DYES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-9, 9), (0.6, 0.85), (0.7, 0.92)),
    "orange": ((20, 36), (0.6, 0.85), (0.8, 0.97)),
    "yellow": ((44, 58), (0.5, 0.85), (0.85, 0.99)),
    "green": ((85, 150), (0.35, 0.7), (0.5, 0.8)),
    "teal": ((172, 192), (0.5, 0.8), (0.5, 0.75)),
    "blue": ((206, 236), (0.5, 0.8), (0.6, 0.9)),
    "purple": ((258, 288), (0.35, 0.7), (0.5, 0.8)),
    "pink": ((325, 350), (0.25, 0.5), (0.85, 0.98)),
    "brown": ((15, 32), (0.45, 0.7), (0.35, 0.55)),
    "grey": ((0, 360), (0.0, 0.06), (0.45, 0.7)),
    "black": ((0, 360), (0.0, 0.2), (0.12, 0.25)),
    "white": ((0, 360), (0.0, 0.05), (0.93, 1.0)),
}
_THINGS = (
    *("mug", "teapot", "vase", "bowl", "lamp", "chair", "cushion", "bag", "backpack", "shirt", "hat", "umbrella"),
    *("table", "clock", "book", "blanket", "tent", "bottle", "box", "candle", "basket", "towel", "plate", "jacket"),
    *("scarf", "bicycle", "radio", "camera", "ball", "kite", "pen", "mirror", "rug", "shelf", "kettle", "spoon"),
)
_QUALITIES = (
    *("handmade", "recycled", "classic", "sturdy", "light", "vintage", "new", "old", "soft", "warm", "cheap"),
    *("modern", "simple", "large", "small", "strong", "smooth", "heavy", "bright", "quiet", "thin", "thick"),
    *("folding", "cotton", "wooden", "steel", "glass", "leather", "paper", "clay", "wool", "plastic"),
)
_MAKERS = (
    *("Anders", "Bellini", "Carter", "Dalton", "Everest", "Fisher", "Garland", "Hudson", "Iris", "Jensen"),
    *("Kepler", "Larsen", "Morris", "Nova", "Olsen", "Parker", "Quinn", "Rivera", "Summit", "Turner"),
    *("Union", "Viking", "Wagner", "Yale"),
)
_USES = (
    *("camping", "the office", "travel", "children", "parties", "the garden", "the kitchen", "school", "the beach"),
    *("winter", "summer", "sports", "cooking", "reading", "sleeping", "painting", "music", "gifts", "hiking"),
    *("pets", "the bath", "the car", "cycling", "fishing"),
)
_CAPTIONS = (
    "A {form} {colour} {kind}, {pattern}",
    "{kind}: {colour}, {pattern}, {form}",
    "This picture shows a {pattern} {kind}. It is {colour}.",
    "{colour} {pattern} {kind}",
)
_SENTENCES = (
    "{maker} {quality} {thing} for {use}",
    "{quality} {thing} for {use}, {maker}",
    "{maker} {thing} for {use}, {quality}",
    "A {quality} {thing} by {maker}. It is made for {use}.",
    "{quality} {maker} {thing}",
    "{thing} for {use}",
)
_OPENINGS = (
    "Here is a list of products:\n",
    "Someone bought these things, the oldest first:\n",
    "What these have in common is a matter of taste.\n",
    "A list:\n",
)
_CLOSINGS = (
    "In one word, they share:",
    "One word for all of them:",
    "In one word, what the shopper likes is:",
)


@dataclass(frozen=True)
class Lesson:
    """Pieces of text to learn to continue; each `PICTURE` among them is one of `pictures` (indices), in order."""

    pieces: tuple[str, ...]
    pictures: tuple[int, ...] = ()


class Lessons:
    """A supply of lessons. Lesson batch k is a function of (seed, k).

    Attributes:
        pictures: `(n, size, size, 3)` uint8.
        facts: what each picture shows, by name: colour, pattern, kind and form.
    """

    def __init__(self, seed: int, pictures: int = 1600, size: int = 64) -> None:
        rng = np.random.default_rng([seed, 0])
        self._seed = seed
        drawn = [_thing(rng) for _ in range(pictures)]
        self.facts = [facts for _, facts in drawn]
        self.pictures: npt.NDArray[np.uint8] = np.stack([np.asarray(draw(look, size, 2)) for look, _ in drawn])
        self._showing: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
        for trait in ("colour", "pattern", "kind"):
            for value in {facts[trait] for facts in self.facts}:
                rows = np.array([index for index, facts in enumerate(self.facts) if facts[trait] == value])
                self._showing[trait, value] = rows
        self._shared = sorted(self._showing)

    def captions(self, step: int, count: int) -> list[Lesson]:
        """Pictures and what they show."""
        rng = np.random.default_rng([self._seed, 1, step])
        chosen = rng.choice(len(self.facts), size=count, replace=count > len(self.facts))
        return [Lesson((PICTURE, _pick(rng, _CAPTIONS).format(**self.facts[i])), (int(i),)) for i in chosen]

    def sentences(self, step: int, count: int) -> list[Lesson]:
        """Short texts about things."""
        rng = np.random.default_rng([self._seed, 2, step])
        return [Lesson((_sentence(rng, {}),)) for _ in range(count)]

    def lists(self, step: int, count: int) -> list[Lesson]:
        """Two to four pictures, or two to four sentences, and the one word they have in common."""
        rng = np.random.default_rng([self._seed, 3, step])
        return [self._list_of_pictures(rng) if k % 2 else _list_of_sentences(rng) for k in range(count)]

    def texts(self, count: int) -> list[str]:
        """Lessons' words, for training a tokenizer on."""
        lessons = self.captions(0, count) + self.sentences(0, count) + self.lists(0, count)
        return [piece for lesson in lessons for piece in lesson.pieces if piece != PICTURE]

    def _list_of_pictures(self, rng: np.random.Generator) -> Lesson:
        trait, value = self._shared[rng.integers(len(self._shared))]
        rows = self._showing[trait, value]
        count = min(len(rows), int(rng.integers(2, 5)))
        chosen = tuple(int(i) for i in rng.choice(rows, size=count, replace=False))
        return Lesson(_listing(rng, [PICTURE] * len(chosen), value), chosen)


def _list_of_sentences(rng: np.random.Generator) -> Lesson:
    trait, values = _pick(rng, (("thing", _THINGS), ("quality", _QUALITIES), ("maker", _MAKERS), ("use", _USES)))
    value = _pick(rng, values)
    forms = [form for form in _SENTENCES if "{" + trait + "}" in form]
    entries = [_sentence(rng, {trait: value}, forms) for _ in range(rng.integers(2, 5))]
    return Lesson(_listing(rng, entries, value))


def _listing(rng: np.random.Generator, entries: Sequence[str], answer: str) -> tuple[str, ...]:
    lines = [piece for number, entry in enumerate(entries, start=1) for piece in (f"{number}. ", entry, "\n")]
    return (_pick(rng, _OPENINGS), *lines, f"{_pick(rng, _CLOSINGS)} {answer}")


def _sentence(rng: np.random.Generator, fixed: dict[str, str], forms: Sequence[str] = _SENTENCES) -> str:
    words = {
        "thing": _pick(rng, _THINGS),
        "quality": _pick(rng, _QUALITIES),
        "maker": _pick(rng, _MAKERS),
        "use": _pick(rng, _USES),
    }
    text = _pick(rng, forms).format(**(words | fixed))
    return text[0].upper() + text[1:]


def _thing(rng: np.random.Generator) -> tuple[Look, dict[str, str]]:
    name = _pick(rng, tuple(_DYES))
    (hue, saturation, brightness) = (rng.uniform(*bounds) for bounds in _DYES[name])
    wall = rng.integers(205, 250) + rng.integers(-8, 9, size=3)
    facts = {
        "colour": name,
        "pattern": _pick(rng, PATTERNS),
        "kind": _pick(rng, KINDS),
        "form": _pick(rng, FORMS),
    }
    look = Look(
        kind=facts["kind"],
        form=facts["form"],
        colour=_rgb(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, brightness), 255),
        pattern=facts["pattern"],
        background=_rgb(wall, 1),
        scale=float(rng.uniform(0.85, 1.1)),
        shift=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.05, 0.05))),
        mirrored=bool(rng.integers(2)),
        phase=float(rng.random()),
    )
    return look, facts


def _rgb(channels: Sequence[float] | npt.NDArray[np.int64], scale: float) -> Colour:
    red, green, blue = (int(scale * channel) for channel in channels)
    return (red, green, blue)


def _pick(rng: np.random.Generator, options: Sequence[_Option]) -> _Option:
    return options[int(rng.integers(len(options)))]
