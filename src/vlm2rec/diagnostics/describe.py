"""A diagnosis as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm2rec.diagnostics.status import status
from vlm2rec.grid import Grid

STATUS = {
    "collapsed": "collapsed: a modality finds significantly less than it did before training",
    "below chance": "below chance: a modality finds significantly less than chance",
    "at chance": "at chance: the model cannot read a modality, which finds no more than chance",
    "harmful": "harmful: the fusion finds less than its better half alone",
    "unbalanced": "unbalanced: one modality stands above chance by less than half of what the other does",
    "balanced": "balanced: both modalities find something, and fusing them does no harm",
    "unknown": "unknown: too little to go by",
}
WARNING = "warning: "
"""Begins a note that has to be read before the verdict."""


def describe(results: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The verdict, the tables behind it, and what was left out; `results` as in `results.json`.

    Notes that begin with `WARNING` come before the verdict, the others at the end.
    """
    found = results["diagnosis"]
    grids = [_dropout(found), _geometry(results["geometry"], found), _overlap(found)]
    parts = [
        "\n".join(note for note in notes if note.startswith(WARNING)),
        STATUS[status(found)],
        "\n".join(f"- {sentence}" for sentence in found["verdict"]),
        *(grid.render("text") for grid in grids if grid.rows),
        "\n".join(f"note: {note}" for note in notes if not note.startswith(WARNING)),
    ]
    return "\n\n".join(part for part in parts if part)


def _dropout(found: Mapping[str, Any]) -> Grid:
    rows = []
    for name, own in found["dropout"].items():
        change = found.get("change", {}).get(name)
        start = "–" if change is None else f"{own['N@20'] - change['difference']:.4f}"
        rows.append((name, f"{own['N@20']:.4f}", _span(own), start, "–" if change is None else _span(change, "+")))
    rows.append(("chance", f"{found['chance']:.4f}", "", "", ""))
    header = ("query to items", "N@20", "95% interval", "at step 0", "95% of the change")
    users = f", {found['users']:,} users" if "users" in found else ""
    return Grid(f"Modality dropout, sampled candidates{users}", header, tuple(rows))


def _geometry(geometry: Mapping[str, Mapping[str, float]], found: Mapping[str, Any]) -> Grid:
    rows = []
    for view, figures in geometry.items():
        cells = [f"{figures[name]:.4f}" for name in ("A_pos", "A_neg", "U")]
        more = [
            _text(found.get(name, {}).get(view), form)
            for name, form in (("effective_rank", ".1f"), ("isotropy", ".3f"))
        ]
        rows.append((view, *cells, f"{figures['S']:.3f}", *more))
    header = ("view", "A_pos", "A_neg", "U", "S", "effective rank", "mean cosine")
    return Grid("Geometry on unit vectors", header, tuple(rows))


def _overlap(found: Mapping[str, Any]) -> Grid:
    shares = found.get("neighbour_overlap", {})
    names = {
        "text_image": "text, image",
        "text_fused": "text, fused",
        "image_fused": "image, fused",
        "chance": "chance",
    }
    rows = [(label, f"{shares[name]:.1%}") for name, label in names.items() if name in shares]
    queries = f", {shares['queries']:,} items looked up" if "queries" in shares else ""
    return Grid(f"Neighbours in common, of {shares.get('k', 0):.0f}{queries}", ("views", "share"), tuple(rows))


def _span(interval: Mapping[str, float], sign: str = "") -> str:
    return f"{interval['low']:{sign}.4f} … {interval['high']:{sign}.4f}" if "low" in interval else "–"


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
