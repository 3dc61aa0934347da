"""`vlm2rec demo`: the main job from end to end on a shop that the program draws, with nothing to download.

The shop's tastes are known, so the best possible score is known too. Vanilla, SFT and VLM2Rec are trained and
measured as any user's data would be; what comes out is reported as it is.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm2rec.compare import compare
from vlm2rec.comparison import Comparison, Method
from vlm2rec.config import Config, parse_config
from vlm2rec.data.prepare import bar, prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.job import run
from vlm2rec.report.html import write_report
from vlm2rec.report.words import findings

METHODS = ("random", "poprec", "itemknn", "vanilla", "sft", "vlm2rec")
_COLUMNS = (
    ("f2f", "dropout.f2f"),
    ("t2f", "dropout.t2f"),
    ("v2f", "dropout.v2f"),
    ("S_T", "geometry.text.S"),
    ("S_V", "geometry.image.S"),
)

# Frozen, with the shop's own parameters, on vanilla and SFT alone (README, "How the demo was made").
SETTINGS: dict[str, Any] = {
    "preset": "small",
    "backbone": {"path": "nano", "lora": {"dropout": 0.05}},
    "training": {"users": 600, "samples_per_user": 6, "epochs": 1, "batch_size": 32, "lr": 2e-3},
    "evaluation": {"users": 500},
}


def run_demo(out: Path | str, seed: int, say: Callable[[str], None] = print) -> Path:
    """Draw the shop, run every method, print the table; return the report's path.

    Everything goes to `out`, and what stands there already is not made again.

    Raises:
        InputError: `out` holds something else.
    """
    out, began = Path(out), time.monotonic()
    say("drawing the shop and its shoppers")
    with bar() as progress:
        data = prepare(ShopWorld(seed=seed), out / "data", picture_size=112, progress=progress)
    folders = []
    for number, method in enumerate(METHODS, start=1):
        say(f"[{number}/{len(METHODS)}] {method}")
        folder = out / "runs" / method
        run(demo_config(data.path, method, seed), folder, shared=out / "runs" / ".shared")
        folders.append(folder)
    comparison = compare(folders)
    say("\n" + table(comparison))
    for finding in findings(comparison):
        say(f"{finding.heading}: {finding.text}")
    report = write_report(folders, out / "report.html", title="vlm2rec demo: a shop whose tastes are known")
    say(f"\n{time.monotonic() - began:.0f} s in all")
    return report


def demo_config(data: Path, method: str, seed: int) -> Config:
    """The configuration of one method of the demo."""
    raw = {
        **SETTINGS,
        "seed": seed,
        "data": {"path": str(data)},
        "method": {"kind": method},
    }
    return parse_config(raw, origin="demo")


def table(comparison: Comparison) -> str:
    """N@20 on sampled candidates by query view, separability, and what an oracle reaches, as text."""
    rows = [["N@20 on 100 candidates", *(name for name, _ in _COLUMNS)]]
    rows += [_row(method) for method in comparison.methods]
    oracle = next((method for method in comparison.methods if method.mean("oracle.sampled.N@20") is not None), None)
    if oracle is not None:
        known = [oracle.mean(f"oracle.{half}sampled.N@20") for half in ("", "title.", "picture.")]
        rows.append(["oracle", *(_text(value) for value in known), "", ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows) + "\n"


def _row(method: Method) -> list[str]:
    values = [method.mean(name) for _, name in _COLUMNS]
    if values[0] is None:  # a method without vectors has but one figure
        values[0] = method.mean("retrieval.sampled.N@20")
    return [method.label, *(_text(value) for value in values)]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
