"""The brush behind the shop's pictures: parts, cloth, light and outlines, in the unit square with y down.

Made with Pillow alone, and quickly: a picture costs a few milliseconds, so a catalogue is drawn in a second or two.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

PATTERNS: tuple[str, ...] = ("plain", "stripes", "dots", "checks", "zigzag", "flowers")
FORMS: tuple[str, ...] = ("round", "angular")
WOOD: Colour = (176, 128, 84)
STEEL: Colour = (126, 134, 144)
_CREAM: Colour = (250, 244, 230)


@dataclass(frozen=True)
class Look:
    """All that a product picture shows. Lengths are shares of the picture's side."""

    kind: str  # one of KINDS
    form: str  # one of FORMS
    colour: Colour
    pattern: str  # one of PATTERNS
    background: Colour = (236, 238, 240)
    scale: float = 1.0  # 1: the thing fills about 70 % of the side
    shift: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False
    phase: float = 0.0  # where the pattern starts, in [0, 1)


class Brush:
    """Paints parts on a background, in the unit square with y down; keeps the look's colours and geometry."""

    def __init__(self, look: Look, side: int) -> None:
        self.side = side
        self._look = look
        self._canvas = _backdrop(look.background, side)
        self._layer = Image.new("RGB", (side, side))
        self._solid = Image.new("L", (side, side), 0)
        self._texture = _texture(look, side)

    def body(self, points: Points) -> None:
        """A part in the product's colour and pattern."""
        self._fill(points, self._texture)

    def trim(self, points: Points, shade: float = 0.78, colour: Colour | None = None) -> None:
        """A plain part in the product's colour (or another), darkened by `shade`."""
        self._fill(points, _scaled(colour or self._look.colour, shade))

    def line(self, points: Points, width: float = 0.02, shade: float = 0.6, colour: Colour | None = None) -> None:
        """A stroke with round ends, `width` in units."""
        mask = Image.new("L", (self.side, self.side), 0)
        pen = ImageDraw.Draw(mask)
        path = self._place(points)
        thick = max(1, round(width * self.side * self._look.scale))
        pen.line(path, fill=255, width=thick, joint="curve")
        for x, y in (path[0], path[-1]):
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
        self._lay(mask, _scaled(colour or self._look.colour, shade))

    def finish(self) -> Image.Image:
        """The picture: backdrop, a soft shadow, the thing lit from the upper left."""
        side = self.side
        shadow = ImageChops.offset(self._solid, 0, side // 40).reduce(8)
        shadow = shadow.filter(ImageFilter.GaussianBlur(side / 200)).resize((side, side)).point(_SHADOW)
        self._canvas.paste((40, 42, 54), (0, 0), shadow)
        lit = ImageChops.multiply(self._layer, _light(side))
        self._canvas.paste(lit, (0, 0), self._solid)
        return self._canvas

    def _fill(self, points: Points, paint: Image.Image | Colour) -> None:
        mask = Image.new("L", (self.side, self.side), 0)
        path = self._place(points)
        ImageDraw.Draw(mask).polygon(path, fill=255)
        self._lay(mask, paint)
        edge = _scaled(self._look.colour, 0.55)
        ImageDraw.Draw(self._layer).line([*path, path[0]], fill=edge, width=max(1, self.side // 130), joint="curve")

    def _lay(self, mask: Image.Image, paint: Image.Image | Colour) -> None:
        self._layer.paste(paint, (0, 0, self.side, self.side), mask)
        self._solid = ImageChops.lighter(self._solid, mask)

    def _place(self, points: Points) -> list[tuple[float, float]]:
        look, flip = self._look, -1.0 if self._look.mirrored else 1.0
        (dx, dy), scale = look.shift, look.scale
        return [
            ((0.5 + flip * (x - 0.5) * scale + dx) * self.side, (0.5 + (y - 0.5) * scale + dy) * self.side)
            for x, y in points
        ]


# Textures and light.


def _texture(look: Look, side: int) -> Image.Image:
    """The product's cloth: its colour under its pattern, over the whole square."""
    cloth = Image.new("RGB", (side, side), look.colour)
    pen = ImageDraw.Draw(cloth)
    # A pale product gets a dark pattern, any other a cream one: the pattern must be seen on every colour.
    pale = 0.3 * look.colour[0] + 0.59 * look.colour[1] + 0.11 * look.colour[2] > 195
    ink = _scaled(look.colour, 0.5) if pale else _CREAM
    cell = side * 0.17 * look.scale
    start = (look.phase - 1) * cell
    steps = range(int(side / cell) + 3)
    if look.pattern == "stripes":
        for k in steps:
            pen.rectangle((0, start + k * cell, side, start + (k + 0.42) * cell), fill=ink)
    elif look.pattern == "checks":
        veil = Image.new("L", (side, side), 0)
        weave = ImageDraw.Draw(veil)
        for k in steps:
            weave.rectangle((start + k * cell, 0, start + (k + 0.5) * cell, side), fill=120)
        bands = Image.new("L", (side, side), 0)
        across = ImageDraw.Draw(bands)
        for k in steps:
            across.rectangle((0, start + k * cell, side, start + (k + 0.5) * cell), fill=120)
        cloth.paste(ink, (0, 0, side, side), ImageChops.add(veil, bands))
    elif look.pattern == "dots":
        _scatter(steps, cell, start, lambda x, y: pen.ellipse(_box(x, y, cell * 0.29), fill=ink))
    elif look.pattern == "flowers":
        _scatter(steps, cell * 1.25, start, lambda x, y: _flower(pen, x, y, cell * 0.26, ink))
    elif look.pattern == "zigzag":
        for k in steps:
            y = start + k * cell
            path = [(j * cell * 0.6, y + (cell * 0.45 if j % 2 else 0)) for j in range(-1, int(side / cell / 0.6) + 3)]
            pen.line(path, fill=ink, width=max(1, round(cell * 0.3)))
    return cloth


def _scatter(steps: range, cell: float, start: float, stamp: Callable[[float, float], None]) -> None:
    for row in steps:
        for column in steps:
            stamp(start + (column + 0.5 * (row % 2)) * cell, start + row * cell * 0.87)


def _flower(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, ink: Colour) -> None:
    for k in range(5):
        turn = 2 * math.pi * k / 5
        pen.ellipse(_box(x + radius * math.cos(turn), y + radius * math.sin(turn), radius * 0.62), fill=ink)
    pen.ellipse(_box(x, y, radius * 0.55), fill=(238, 180, 60))


def _box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return (x - radius, y - radius, x + radius, y + radius)


def _backdrop(colour: Colour, side: int) -> Image.Image:
    """A wall that grows a little darker towards the floor."""
    return ImageChops.multiply(Image.new("RGB", (side, side), colour), _wall(side))


@lru_cache(maxsize=8)
def _wall(side: int) -> Image.Image:
    ramp = np.linspace(255, 232, side).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp[:, None, None], (side, side, 3)).copy())


@lru_cache(maxsize=8)
def _light(side: int) -> Image.Image:
    """Light from the upper left: full there, 70 % in the lower right."""
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    ramp = 255 * (1.04 - 0.2 * across - 0.14 * down).clip(0, 1)
    return Image.fromarray(np.repeat(ramp.astype(np.uint8)[:, :, None], 3, axis=2))


_SHADOW = [value * 90 // 255 for value in range(256)]


def _scaled(colour: Colour, shade: float) -> Colour:
    red, green, blue = (min(255, round(channel * shade)) for channel in colour)
    return (red, green, blue)


# Outlines.


def oval(x: float, y: float, across: float, down: float) -> list[tuple[float, float]]:
    """Points of a whole ellipse."""
    return arc(x, y, across, down, 0, 360)


def arc(x: float, y: float, across: float, down: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points of an ellipse's arc; degrees, clockwise from the right as y points down."""
    turns = np.radians(np.linspace(start, stop, 25))
    return [(x + across * math.cos(turn), y + down * math.sin(turn)) for turn in turns]


def curve(points: Points, steps: int = 6) -> list[tuple[float, float]]:
    """A closed Catmull-Rom curve through the points."""
    knots = np.asarray(points, dtype=np.float64)
    before, after, beyond = np.roll(knots, 1, 0), np.roll(knots, -1, 0), np.roll(knots, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (part[:, None, :] for part in (before, knots, after, beyond))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return [(float(x), float(y)) for x, y in curve.reshape(-1, 2)]
