"""The colours of pages and figures, by CSS class.

Text, image and fused, and the methods m0 … m5 among themselves, stay apart in the common colour-vision deficiencies
(simulated: no two nearer than 16 in CIELAB).
"""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#fcfbf8",
    "card": "#f4f2ec",
    "ink": "#1f2328",
    "soft": "#5d646d",
    "rule": "#dcd8ce",
    "grid": "#e7e3d9",
    "fused": "#3b4252",
    "text": "#3f7cac",
    "image": "#d97b29",
    "text_own": "#a4c4dd",
    "image_own": "#f0c296",
    "good": "#2e7d4f",
    "bad": "#b3432b",
    "accent": "#8a5a17",
    "m0": "#8d959f",
    "m1": "#c8442c",
    "m2": "#0f5f56",
    "m3": "#7b4fb0",
    "m4": "#c9a227",
    "m5": "#4a9be0",
}
"""On a light page, and in figures."""

DARK: Mapping[str, str] = {
    "paper": "#16181c",
    "card": "#1f2227",
    "ink": "#e7e5df",
    "soft": "#a0a6ae",
    "rule": "#363a41",
    "grid": "#2a2e34",
    "fused": "#c3c9d4",
    "text": "#6aa9da",
    "image": "#eb9a4f",
    "text_own": "#355a78",
    "image_own": "#85552a",
    "good": "#67bf8b",
    "bad": "#e3836a",
    "accent": "#dcae6a",
    "m0": "#c9cdd3",
    "m1": "#ea6a4b",
    "m2": "#1f8a7b",
    "m3": "#9a6fd8",
    "m4": "#e3bf45",
    "m5": "#68b8f5",
}
"""On a dark page."""

PRINT: Mapping[str, str] = {**LIGHT, "paper": "#fff", "card": "#f7f6f2", "ink": "#111", "soft": "#555", "rule": "#ccc"}
"""On paper."""

DRAWN = ("fused", "text", "image", "text_own", "image_own", "m0", "m1", "m2", "m3", "m4", "m5")
"""Classes of bars, dots and curves."""
