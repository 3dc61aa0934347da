"""How training went: loss and what goes with it, validation, and margins by modality."""

from collections.abc import Sequence

from vlm2rec.compare import COUNTING
from vlm2rec.comparison import Method
from vlm2rec.report.figures import Series
from vlm2rec.report.logs import Logs
from vlm2rec.report.parts import Panel, slug, without_empty
from vlm2rec.report.plots import LineChart
from vlm2rec.report.words import display

COLOURS = 6
_CURVES = (
    ("loss", "train", "loss", "Training loss"),
    ("validation", "validation", "N@20", "Validation N@20"),
    ("penalty", "train", "penalty", "Penalty w on negatives (Eq. 9)"),
    ("gap", "train", "gap", "Gap between the margins (Eq. 8)"),
    ("norms", "train", "norm_ratio", "|z_T| / |z_V|"),
)
_SIDES = (("text", "text"), ("image", "pictures"))


def training(methods: Sequence[Method], logs: Logs) -> tuple[Panel, ...]:
    """A chart of all methods for each figure, and one of margins for each method; further seeds are faint."""
    trained = [method for method in methods if method.kind not in (*COUNTING, "vanilla")]
    panels = []
    for name, kind, key, title in _CURVES:
        series = [
            one
            for place, method in enumerate(trained)
            for one in seeds(method, logs, kind, key, f"m{place % COLOURS}", display(method.label))
        ]
        panels.append(Panel(f"training-{name}", LineChart(title, series, "step", title)))
    for method in trained:
        both = [one for side, label in _SIDES for one in seeds(method, logs, "train", f"margin_{side}", side, label)]
        title = f"Margins, {display(method.label)}"
        panels.append(Panel(f"margins-{slug(method.label)}", LineChart(title, both, "step", "margin (Eq. 6)")))
    return without_empty(panels)


def seeds(method: Method, logs: Logs, kind: str, key: str, css: str, label: str) -> list[Series]:
    """One curve a seed of one figure of the log, all but the first faint."""
    curves = [logs.curve(run.path, kind, key) for run in method.runs]
    return [Series(css, label, x, y, faint=place > 0) for place, (x, y) in enumerate(curves) if x]
