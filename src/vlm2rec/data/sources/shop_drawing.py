"""Product pictures for the demo's shop: a dozen household things, drawn with Pillow.

A picture shows a `Look`: what kind of thing it is, its form, its colour, its pattern, and details that nobody
shops by (background, size, position, mirroring). Everything a look holds is visible, and nothing else is drawn,
so what a picture can tell is known exactly.
"""

from collections.abc import Callable

from PIL import Image

from vlm2rec.data.sources.shop_brush import STEEL, WOOD, Brush, Look, arc, curve, oval

_OVERSAMPLING = 3


def draw(look: Look, size: int = 112, oversampling: int = _OVERSAMPLING) -> Image.Image:
    """The picture of a look, `(size, size)` RGB; drawn larger and shrunk, so edges are smooth."""
    brush = Brush(look, size * oversampling)
    _FIGURES[look.kind](brush, look.form == "round")
    picture = brush.finish()
    return picture.resize((size, size), Image.Resampling.BOX) if oversampling > 1 else picture


# Figures. Each draws one kind of thing, in a round or an angular form.


def _mug(brush: Brush, rounded: bool) -> None:
    if rounded:
        brush.line(arc(0.68, 0.5, 0.14, 0.15, -80, 80), 0.055, 0.75)
        brush.body(curve([(0.22, 0.3), (0.7, 0.3), (0.72, 0.5), (0.62, 0.74), (0.3, 0.74), (0.2, 0.5)]))
        brush.trim(oval(0.46, 0.285, 0.255, 0.055), 0.6)
    else:
        brush.line([(0.66, 0.38), (0.83, 0.38), (0.83, 0.62), (0.66, 0.62)], 0.055, 0.75)
        brush.body([(0.24, 0.25), (0.68, 0.25), (0.68, 0.78), (0.24, 0.78)])
        brush.trim(oval(0.46, 0.25, 0.22, 0.045), 0.6)


def _teapot(brush: Brush, rounded: bool) -> None:
    if rounded:
        brush.line(arc(0.74, 0.55, 0.13, 0.15, -85, 85), 0.045, 0.7)
        brush.trim(curve([(0.3, 0.66), (0.12, 0.44), (0.13, 0.38), (0.18, 0.39), (0.34, 0.5)]), 0.85)
        brush.body(oval(0.5, 0.57, 0.27, 0.23))
        brush.trim(oval(0.5, 0.36, 0.15, 0.045), 0.72)
    else:
        brush.line([(0.68, 0.42), (0.86, 0.42), (0.82, 0.68), (0.68, 0.68)], 0.045, 0.7)
        brush.trim([(0.34, 0.7), (0.1, 0.4), (0.18, 0.36), (0.36, 0.52)], 0.85)
        brush.body([(0.34, 0.36), (0.66, 0.36), (0.76, 0.79), (0.24, 0.79)])
        brush.trim([(0.36, 0.32), (0.64, 0.32), (0.67, 0.38), (0.33, 0.38)], 0.72)
    brush.trim(oval(0.5, 0.29, 0.04, 0.04), 0.6)


def _vase(brush: Brush, rounded: bool) -> None:
    for x, y, bend in ((0.36, 0.15, 0.44), (0.5, 0.11, 0.5), (0.64, 0.16, 0.56)):
        brush.line([(0.5, 0.4), (bend, 0.25), (x, y)], 0.016, 1.0, (96, 140, 92))
        brush.trim(oval(x, y, 0.045, 0.045), 1.0, (244, 214, 148))
    if rounded:
        brush.body(
            curve(
                [
                    (0.42, 0.33),
                    (0.58, 0.33),
                    (0.57, 0.43),
                    (0.74, 0.64),
                    (0.6, 0.87),
                    (0.4, 0.87),
                    (0.26, 0.64),
                    (0.43, 0.43),
                ]
            )
        )
    else:
        brush.body([(0.33, 0.34), (0.67, 0.34), (0.6, 0.88), (0.4, 0.88)])
    brush.trim(oval(0.5, 0.335, 0.085 if rounded else 0.17, 0.025), 0.55)


def _bowl(brush: Brush, rounded: bool) -> None:
    if rounded:
        brush.trim([(0.4, 0.72), (0.6, 0.72), (0.63, 0.79), (0.37, 0.79)], 0.75)
        brush.body([(0.14, 0.4), *arc(0.5, 0.4, 0.36, 0.36, 0, 180), (0.14, 0.4)])
    else:
        brush.trim([(0.36, 0.74), (0.64, 0.74), (0.64, 0.8), (0.36, 0.8)], 0.75)
        brush.body([(0.12, 0.38), (0.88, 0.38), (0.7, 0.75), (0.3, 0.75)])
    brush.trim(oval(0.5, 0.39, 0.37, 0.075), 0.6)


def _lamp(brush: Brush, rounded: bool) -> None:
    brush.line([(0.5, 0.5), (0.5, 0.84)], 0.035, 1.0, WOOD)
    brush.trim(oval(0.5, 0.86, 0.17, 0.04), 1.0, WOOD)
    if rounded:
        brush.body([(0.18, 0.52), *arc(0.5, 0.52, 0.32, 0.38, 180, 360), (0.82, 0.52)])
    else:
        brush.body([(0.36, 0.16), (0.64, 0.16), (0.82, 0.56), (0.18, 0.56)])


def _chair(brush: Brush, rounded: bool) -> None:
    for top, foot in ((0.32, 0.26), (0.68, 0.74), (0.4, 0.38), (0.6, 0.62)):
        brush.line([(top, 0.62), (foot, 0.92)], 0.03, 1.0, WOOD)
    if rounded:
        brush.body(
            curve([(0.3, 0.14), (0.5, 0.08), (0.7, 0.14), (0.74, 0.38), (0.68, 0.56), (0.32, 0.56), (0.26, 0.38)])
        )
        brush.body(oval(0.5, 0.62, 0.28, 0.085))
    else:
        brush.body([(0.28, 0.1), (0.72, 0.1), (0.7, 0.56), (0.3, 0.56)])
        brush.body([(0.26, 0.54), (0.74, 0.54), (0.8, 0.68), (0.2, 0.68)])


def _cushion(brush: Brush, rounded: bool) -> None:
    if rounded:
        brush.body(oval(0.5, 0.5, 0.36, 0.35))
        brush.trim(oval(0.5, 0.5, 0.035, 0.035), 0.6)
    else:
        corners = [
            (0.13, 0.15),
            (0.5, 0.2),
            (0.87, 0.15),
            (0.81, 0.5),
            (0.87, 0.85),
            (0.5, 0.8),
            (0.13, 0.85),
            (0.19, 0.5),
        ]
        brush.body(corners)


def _bag(brush: Brush, rounded: bool) -> None:
    brush.line(arc(0.5, 0.4, 0.17, 0.27, 180, 360), 0.035, 0.7)
    if rounded:
        brush.body(curve([(0.24, 0.38), (0.76, 0.38), (0.86, 0.66), (0.72, 0.87), (0.28, 0.87), (0.14, 0.66)]))
    else:
        brush.body([(0.2, 0.37), (0.8, 0.37), (0.84, 0.88), (0.16, 0.88)])


def _backpack(brush: Brush, rounded: bool) -> None:
    brush.line(arc(0.5, 0.17, 0.09, 0.09, 180, 360), 0.035, 0.6)
    brush.trim(oval(0.21, 0.62, 0.07, 0.2), 0.7)
    brush.trim(oval(0.79, 0.62, 0.07, 0.2), 0.7)
    if rounded:
        brush.body(
            curve([(0.3, 0.22), (0.5, 0.13), (0.7, 0.22), (0.78, 0.55), (0.74, 0.88), (0.26, 0.88), (0.22, 0.55)])
        )
        brush.trim(curve([(0.34, 0.6), (0.66, 0.6), (0.68, 0.72), (0.64, 0.82), (0.36, 0.82), (0.32, 0.72)]), 0.8)
    else:
        brush.body([(0.26, 0.15), (0.74, 0.15), (0.78, 0.9), (0.22, 0.9)])
        brush.trim([(0.33, 0.6), (0.67, 0.6), (0.67, 0.83), (0.33, 0.83)], 0.8)
    brush.line([(0.36, 0.65), (0.64, 0.65)], 0.014, 1.0, STEEL)


def _shirt(brush: Brush, rounded: bool) -> None:
    hem = 0.86
    brush.body(
        [
            *[(0.37, 0.17), (0.63, 0.17), (0.8, 0.24), (0.94, 0.44), (0.81, 0.52), (0.73, 0.42), (0.73, hem)],
            *[(0.27, hem), (0.27, 0.42), (0.19, 0.52), (0.06, 0.44), (0.2, 0.24)],
        ]
    )
    if rounded:
        brush.trim(arc(0.5, 0.165, 0.13, 0.12, 0, 180), 0.55)
    else:
        brush.trim([(0.37, 0.165), (0.63, 0.165), (0.5, 0.38)], 0.55)
        brush.line([(0.5, 0.4), (0.5, hem)], 0.012, 0.6)


def _cap(brush: Brush, rounded: bool) -> None:
    if rounded:
        brush.trim(curve([(0.56, 0.6), (0.84, 0.6), (0.96, 0.68), (0.86, 0.72), (0.5, 0.67)]), 0.7)
        brush.body([(0.12, 0.66), *arc(0.43, 0.62, 0.31, 0.36, 180, 360), (0.74, 0.66)])
        brush.trim(oval(0.43, 0.265, 0.03, 0.022), 0.6)
    else:
        brush.trim(oval(0.5, 0.7, 0.43, 0.09), 0.72)
        brush.body([(0.3, 0.26), (0.7, 0.26), (0.74, 0.7), (0.26, 0.7)])
        brush.trim([(0.27, 0.58), (0.73, 0.58), (0.74, 0.68), (0.26, 0.68)], 0.5)


def _umbrella(brush: Brush, rounded: bool) -> None:
    brush.line([(0.5, 0.1), (0.5, 0.8), *arc(0.57, 0.82, 0.07, 0.08, 180, 10)], 0.024, 1.0, WOOD)
    if rounded:
        dome = arc(0.5, 0.54, 0.44, 0.42, 180, 360)
    else:
        dome = [(0.06, 0.54), (0.26, 0.27), (0.5, 0.13), (0.74, 0.27), (0.94, 0.54)]
    hem = [point for k in range(4) for point in arc(0.83 - 0.22 * k, 0.54, 0.11, 0.06, 0, -180)]
    brush.body([*dome, *hem])


_FIGURES: dict[str, Callable[[Brush, bool], None]] = {
    "mug": _mug,
    "teapot": _teapot,
    "vase": _vase,
    "bowl": _bowl,
    "lamp": _lamp,
    "chair": _chair,
    "cushion": _cushion,
    "bag": _bag,
    "backpack": _backpack,
    "shirt": _shirt,
    "hat": _cap,
    "umbrella": _umbrella,
}
KINDS: tuple[str, ...] = tuple(_FIGURES)
