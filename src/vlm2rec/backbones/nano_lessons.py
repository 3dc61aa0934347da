"""What the built-in backbone learns from: drawn things with captions, short sentences, and lists to sum up.

Everything is made up from a seed. Colours come from the whole colour wheel, words from lists of common words; no
product of the demo's shop is among them, nor is a brand of it. Pictures and words get the same lessons, so neither
is favoured: what a picture shows, how a sentence goes on, and what is in a list of either.
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
    *("camping", "work", "travel", "children", "parties", "gardening", "cooking", "school", "holidays", "winter"),
    *("summer", "sports", "reading", "sleeping", "painting", "music", "gifts", "hiking", "pets", "bathing"),
    *("driving", "cycling", "fishing"),
)
_WORDS = {"thing": _THINGS, "quality": _QUALITIES, "maker": _MAKERS, "use": _USES}
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
    "{quality} {thing} for {use}",
    "{maker} {quality} {thing}",
    "{thing} for {use}",
)
_OPENINGS = ("Here is a list of products:\n", "These things, oldest first:\n", "A list:\n")
_CLOSINGS = ("In one word, they share:", "One word for all of them:", "In one word, what the shopper likes is:")
_LONGEST_LIST = 3


@dataclass(frozen=True)
class Lesson:
    """Pieces of text; each `PICTURE` among them is one of `pictures` (indices), in order.

    Without `answers` the text itself is what is to be learned, word by word. With them it is the next word alone,
    and any of the answers is right.
    """

    pieces: tuple[str, ...]
    pictures: tuple[int, ...] = ()
    answers: tuple[str, ...] = ()


class Lessons:
    """A supply of lessons. The lessons of step k are a function of (seed, k).

    Attributes:
        pictures: `(n, size, size, 3)` uint8.
        facts: what each picture shows, by name: colour, pattern, kind and form.
    """

    def __init__(self, seed: int, pictures: int, size: int = 64) -> None:
        rng = np.random.default_rng([seed, 0])
        self._seed = seed
        drawn = [_thing(rng) for _ in range(pictures)]
        self.facts = [facts for _, facts in drawn]
        self.pictures: npt.NDArray[np.uint8] = np.stack([np.asarray(draw(look, size, 2)) for look, _ in drawn])
        groups: dict[tuple[str, str], list[int]] = {}
        for index, facts in enumerate(self.facts):
            for trait in ("colour", "pattern", "kind"):
                groups.setdefault((trait, facts[trait]), []).append(index)
        self._alike = [groups[trait] for trait in sorted(groups)]

    def captions(self, step: int, count: int) -> list[Lesson]:
        """Pictures, each with a line that says what it shows."""
        rng = np.random.default_rng([self._seed, 1, step])
        chosen = rng.integers(len(self.facts), size=count)
        return [Lesson((PICTURE, _pick(rng, _CAPTIONS).format(**self.facts[i])), (int(i),)) for i in chosen]

    def sentences(self, step: int, count: int) -> list[Lesson]:
        """Short texts about things."""
        rng = np.random.default_rng([self._seed, 2, step])
        return [Lesson((_sentence(rng, {})[0],)) for _ in range(count)]

    def lists(self, step: int, count: int) -> list[Lesson]:
        """One to three pictures, or one to three sentences, to be summed up by any word that is in them.

        In half of the lists all entries have something in common, which is then the likeliest word.
        """
        rng = np.random.default_rng([self._seed, 3, step])
        return [self._list_of_pictures(rng) if k % 2 else _list_of_sentences(rng) for k in range(count)]

    def texts(self, count: int) -> list[str]:
        """Lessons' words, for training a tokenizer on."""
        lessons = self.captions(0, count) + self.sentences(0, count) + self.lists(0, count)
        return [piece for lesson in lessons for piece in (*lesson.pieces, *_spaced(lesson.answers)) if piece != PICTURE]

    def _list_of_pictures(self, rng: np.random.Generator) -> Lesson:
        pool = _pick(rng, self._alike) if rng.random() < 0.5 else range(len(self.facts))
        chosen = [_pick(rng, pool) for _ in range(rng.integers(1, _LONGEST_LIST + 1))]
        answers = tuple(word for index in chosen for word in self.facts[index].values())
        return Lesson(_listing(rng, [PICTURE] * len(chosen)), tuple(chosen), answers)


def _list_of_sentences(rng: np.random.Generator) -> Lesson:
    shared: dict[str, str] = {}
    if rng.random() < 0.5:
        sort = _pick(rng, tuple(_WORDS))
        shared = {sort: _pick(rng, _WORDS[sort])}
    entries = [_sentence(rng, shared) for _ in range(rng.integers(1, _LONGEST_LIST + 1))]
    answers = tuple(word for _, words in entries for word in words)
    return Lesson(_listing(rng, [text for text, _ in entries]), answers=answers)


def _listing(rng: np.random.Generator, entries: Sequence[str]) -> tuple[str, ...]:
    lines = [piece for number, entry in enumerate(entries, start=1) for piece in (f"{number}. ", entry, "\n")]
    return (_pick(rng, _OPENINGS), *lines, _pick(rng, _CLOSINGS))


def _sentence(rng: np.random.Generator, fixed: dict[str, str]) -> tuple[str, list[str]]:
    """A text, and the words that carry its meaning."""
    words = {sort: _pick(rng, options) for sort, options in _WORDS.items()} | fixed
    form = _pick(rng, _SENTENCES)
    text = form.format(**words)
    return text[0].upper() + text[1:], [word for sort, word in words.items() if f"{{{sort}}}" in form]


def _spaced(words: Sequence[str]) -> list[str]:
    return [f" {word}" for word in words]


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
