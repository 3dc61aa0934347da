"""One picture made to fit: oriented, flattened on white, its grey scaled to 8 bits, resized."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Fit = Literal["squash", "letterbox", "aspect"]
FITS: tuple[Fit, ...] = ("squash", "letterbox", "aspect")
Pixels = NDArray[np.uint8]

_WHITE = (255, 255, 255)
_MAX_RATIO = 8  # of the sides under `aspect`: no backbone can read a line one pixel high


def fit_picture(image: Image.Image, size: int, fit: Fit) -> Pixels:
    """Orient, flatten and resize one picture to `(H, W, 3)` uint8.

    `squash` fills a square and forgets the shape, `letterbox` keeps it on a white square, `aspect` keeps it and
    makes the longer side `size` (beyond 8:1 it squashes). Transparent parts become white, the usual paper of
    product pictures. Of a moving picture the first frame counts. Grey of more than 8 bits is scaled by its largest
    value: white is 255 or, above that, 65,535; in floating point 1, 255 or 65,535.

    Raises:
        ValueError: grey of more than 8 bits has values below 0 or above 65,535.
    """
    if image.format == "JPEG":
        image.draft(None, (2 * size, 2 * size))  # a big photograph is decoded small already, still twice what is kept
    image = as_rgb(ImageOps.exif_transpose(image))
    width, height = image.size
    if fit == "squash":
        return np.asarray(_resize(image, size, size))
    scale = size / max(width, height)
    shortest = 1 if fit == "letterbox" else -(-size // _MAX_RATIO)
    inner = _resize(image, max(shortest, round(width * scale)), max(shortest, round(height * scale)))
    if fit == "aspect":
        return np.asarray(inner)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(square)


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, transparent parts white. Raises ValueError as `fit_picture` does."""
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, _WHITE)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floating point in 8, which `convert` would clip to black and white.

    What white is, the largest value tells: 255, or 65,535 where it is above 255, or (floating point) 1 where it is
    none. Raises ValueError where a value is negative, above 65,535 or no number: then nobody can tell.
    """
    grey = np.asarray(image).astype(np.float64)
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= 65_535):  # false for NaN too
        raise ValueError(f"grey from {low} to {high}; white is 1, 255 or 65,535")
    scale = 1 / 257 if high > 255 else 255.0 if image.mode.startswith("F") and high <= 1 else 1.0
    return Image.fromarray(np.rint(grey * scale).astype(np.uint8))
