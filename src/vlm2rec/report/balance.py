"""Whether a method looks at both modalities: the diagnosis, its evidence, and how it came about in training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

import numpy as np

from vlm2rec.comparison import VIEWS, Method
from vlm2rec.diagnostics.describe import STATUS
from vlm2rec.diagnostics.status import status
from vlm2rec.grid import Grid
from vlm2rec.metrics import mean_interval
from vlm2rec.report.curves import seeds
from vlm2rec.report.figures import Bar, Group, number
from vlm2rec.report.logs import Logs
from vlm2rec.report.parts import NONE, Panel, Sheet, slug, without_empty
from vlm2rec.report.plots import BarChart, LineChart
from vlm2rec.report.words import diagnosis_of, display, status_of

_LONG = 14  # characters of a name that a narrow chart's title has room for; the block's heading has it all
_SIDES = {"f2f": "fused", "t2f": "text", "v2f": "image", "t2t": "text_own", "v2v": "image_own"}
"""Query and items -> colour."""
_PROBES: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "gradients",
        "gradients against the update",
        "cosine with g_total",
        (("text", "g_T", "grad_cos_text"), ("image", "g_V", "grad_cos_image")),
    ),
    (
        "monitor",
        "N@20",
        "N@20",
        (("fused", "f2f", "f2f"), ("text", "t2f", "t2f"), ("image", "v2f", "v2f")),
    ),
    (
        "separability",
        "separability S",
        "S",
        (("fused", "fused", "S_fused"), ("text", "text", "S_text"), ("image", "pictures", "S_image")),
    ),
)
"""Name, title, axis, and (colour, label, key of the probe) of each curve."""
_VIEWS = (("text", "text"), ("image", "pictures"), ("fused", "fused"))
_MEASURES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Length of text vectors over that of picture vectors (geometric mean). A plain sum leans to the longer side.",
        (
            ("norm ratio, histories", "norms.histories.ratio", ".2f"),
            ("norm ratio, items", "norms.items.ratio", ".2f"),
        ),
    ),
    (
        "How many directions the items really spread over. A space that has caved in has few.",
        tuple((f"effective rank, {name}", f"effective_rank.{view}", ".1f") for view, name in _VIEWS),
    ),
    (
        "Mean cosine of random pairs of items. 0: all directions are used; towards 1: all lie in a narrow cone.",
        tuple((f"mean cosine, {name}", f"isotropy.{view}", ".2f") for view, name in _VIEWS),
    ),
    (
        "Nearest neighbours in common. A fused space that has text's neighbours and not those of pictures follows text;"
        " chance is what unrelated spaces share.",
        (
            ("neighbours, fused and text", "neighbour_overlap.text_fused", ".1%"),
            ("neighbours, fused and pictures", "neighbour_overlap.image_fused", ".1%"),
            ("neighbours, text and pictures", "neighbour_overlap.text_image", ".1%"),
            ("neighbours, chance", "neighbour_overlap.chance", ".1%"),
        ),
    ),
    (
        "By the margin of Eq. 6. Far from 50%: one modality leads for nearly everybody. Flipped: the other one led at"
        " step 0.",
        (("users with stronger text", "strong.text", ".0%"), ("users flipped", "strong.flipped", ".0%")),
    ),
)
"""How to read a group of figures, and (label, key under "diagnosis", form) of each."""


@dataclass(frozen=True)
class Block:
    """What the page says of one method."""

    label: str
    status: str
    """Empty where the run has no diagnosis."""
    meaning: str
    verdict: tuple[str, ...]
    note: str
    remedy: str
    """The command that makes the diagnosis that is missing; empty where it is there."""
    warnings: tuple[str, ...]
    bars: tuple[Panel, ...]
    curves: tuple[Panel, ...]

    @property
    def css(self) -> str:
        """The status as a class: that of most seeds, where they differ."""
        return self.status.partition(" (")[0].replace(" ", "-")


def blocks(methods: Sequence[Method], chance: Mapping[str, float], logs: Logs) -> list[Block]:
    """One for each method whose modalities were measured apart. `chance`: candidate set -> N@20 of knowing nothing."""
    return [_block(method, chance, logs) for method in methods if _bars(method)]


def _block(method: Method, chance: Mapping[str, float], logs: Logs) -> Block:
    found, name = diagnosis_of(method), display(method.label)
    panels = []
    for key, title, axis, curves in _PROBES:
        # Test's N@20 is of other users among other candidates: the same name must not stand for both.
        pool = "" if key == "gradients" else f", {_watched(method, logs)}"
        heading = f"{name}: {title}" if len(name) <= _LONG else title[0].upper() + title[1:]
        series = [one for css, label, probe in curves for one in seeds(method, logs, "probe", probe, css, label)]
        chart = LineChart(f"{heading}{pool}", series, "training step", f"{axis}{pool}", log_x=True)
        panels.append(Panel(f"{key}-{slug(method.label)}", chart))
    groups = _bars(method)
    levels = {round(chance[group.label], 4) for group in groups if group.label in chance}
    level = levels.pop() if len(levels) == 1 else None  # one line for both candidate sets, if it is the same
    bars = BarChart(f"{name}: N@20 by query and items", groups, chance=level)
    return Block(
        name,
        status_of(method),
        STATUS[status(found)].partition(": ")[2] if found else "",
        tuple(map(str, found.get("verdict", ()))),
        _note(method),
        "" if found else f"vlm2rec diagnose {quote(str(method.runs[0].path))}",
        tuple(
            _warning(line, run.config.seed if len(method.runs) > 1 else None)
            for run in method.runs
            for line in logs.lines(run.path, "warning")
        ),
        without_empty([Panel(f"modalities-{slug(method.label)}", bars)]),
        without_empty(panels),
    )


def _watched(method: Method, logs: Logs) -> str:
    """Whom the monitor looked at; how many of them older runs do not say."""
    counts = {line["users"] for run in method.runs for line in logs.lines(run.path, "probe") if "users" in line}
    return f"{counts.pop():,} validation users" if len(counts) == 1 else "validation users"


def _note(method: Method) -> str:
    return f"Sentences are those of seed {method.seeds[0]}; bars are means over seeds." if len(method.seeds) > 1 else ""


def _bars(method: Method) -> list[Group]:
    """Sampled candidates with all pairs of query and items, and matched ones with those that were ranked on them."""
    groups = []
    for candidates, views in (("sampled", tuple(_SIDES)), ("matched", VIEWS)):
        found = [bar for view in views if (bar := _bar(method, candidates, view)) is not None]
        if len(found) > 1:
            groups.append(Group(candidates, tuple(found)))
    return groups


def _bar(method: Method, candidates: str, view: str) -> Bar | None:
    name = f"dropout.{view}" if candidates == "sampled" else f"{candidates}.{view}"
    value = method.mean(name)
    if value is None:
        return None
    start = method.mean(f"reference.{name}") if method.kind != "vanilla" else None
    return Bar(_SIDES[view], view, value, _reach(method, candidates, view), start)


def _reach(method: Method, candidates: str, view: str) -> float | None:
    """Half a 95% interval over users, each averaged over seeds; as diagnosed where single users were not kept."""
    users = method.users.get(f"{candidates}.{view}")
    if users is not None:
        mean, bottom, _ = mean_interval(np.mean(users, axis=0))
        return mean - bottom if math.isfinite(bottom) else None
    low, high = (method.mean(f"diagnosis.dropout.{view}.{end}") for end in ("low", "high"))
    return None if candidates != "sampled" or low is None or high is None else (high - low) / 2


def side_by_side(methods: Sequence[Method], chance: Mapping[str, float]) -> tuple[Panel, ...]:
    """Modality dropout of all methods in one chart a candidate set (Fig. 1a); none for a single method."""
    having = [method for method in methods if _bars(method)]
    if len(having) < 2:
        return ()
    panels = []
    for candidates, note in (("sampled", "Sampled candidates."), ("matched", "Candidates matched in popularity.")):
        groups = []
        for method in having:
            found = [bar for view in VIEWS if (bar := _bar(method, candidates, view)) is not None]
            groups.append(Group(display(method.label), tuple(found) if len(found) > 1 else ()))
        title = f"N@20 by what the query keeps ({candidates})"
        panels.append(Panel(f"dropout-{candidates}", BarChart(title, groups, chance=chance.get(candidates)), note))
    return without_empty(panels)


def measures(methods: Sequence[Method]) -> Sheet | None:
    """The measurements of all diagnosed methods, methods as columns, with how to read them."""
    having = [method for method in methods if diagnosis_of(method)]
    rows, groups, notes = list[tuple[str, ...]](), list[int](), dict[int, str]()
    for group, (note, wanted) in enumerate(_MEASURES):
        for label, key, form in wanted:
            cells = [_measure(method, f"diagnosis.{key}", form) for method in having]
            if set(cells) - {NONE}:
                if group not in groups:
                    notes[len(rows)] = note
                rows.append((label, *cells))
                groups.append(group)
    header = ("measured", *(display(method.label) for method in having))
    grid = Grid("Norms, spread, neighbours and margins", header, tuple(rows), groups=tuple(groups))
    return Sheet("measures", grid, notes) if rows else None


def _measure(method: Method, name: str, form: str) -> str:
    mean, sd = method.mean(name), method.sd(name)
    if mean is None:
        return NONE
    shown, spread = (("" if value is None else format(value, form)) for value in (mean, sd))
    # A spread that rounds to nothing tells nothing.
    return shown + (f" ± {spread}" if spread.strip("0.%") else "")


def _warning(line: Mapping[str, Any], seed: int | None) -> str:
    """A line of the monitor in words; what it does not say is left out."""
    side = {"text": "texts", "image": "pictures"}.get(
        str(line.get("modality")), str(line.get("modality", "a modality"))
    )
    said = f"step {line.get('step', '?')}: {side} had fallen below their start"
    numbers = [line.get(key) for key in ("difference", "low", "high")]
    if all(isinstance(value, int | float) for value in numbers):
        change, low, high = (number(float(value)) for value in numbers if value is not None)
        users = f", {line['users']:,} validation users" if "users" in line else ""
        # Older runs were warned by an interval of 95% at every probe.
        level = f"{line['level']:.2%} interval, corrected for all probes," if "level" in line else "95%"
        said += f" by {change.removeprefix('−')} of N@20 ({level} {low} to {high}{users})"
    return said + ("" if seed is None else f", seed {seed}")
