"""What each modality finds while training goes on, on some validation users, and a warning where one is lost.

Histories and targets are those of validation, so that training may be ended by what is seen; test's are never looked
at. Only the users' own targets are embedded, and each user's candidates are the others among them: figures are those
of a small pool, to be compared with each other over the steps and not with results on 100 candidates.

Many looks at one training are many chances of a false alarm, so a warning is corrected for all that are planned: a
training that loses nothing gives one with a probability of at most 5%.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vlm2rec.config import MonitorConfig
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.measure import Measured, measure
from vlm2rec.diagnostics.space import Floats, Ints
from vlm2rec.diagnostics.status import SIDES
from vlm2rec.diagnostics.verdict import ERROR, conclude, falls
from vlm2rec.progress import notice

PROBES = 10
SHARE = 1 / 8
"""Of the training time, about: what probes may take where their number is not given."""

STEPS_A_PROBE = 4
"""At least, on average: more probes than that would be most of a training."""

WORSE = 1.5
"""A warning is said again where the loss has become so many times what it was."""

Embed = Callable[[Sequence[Sequence[int]]], Mapping[str, Floats]]
"""Histories of item indices to raw vectors `(n, D)` by view."""


@dataclass(frozen=True)
class Look:
    """What one look found.

    Attributes:
        figures: f2f, t2f, v2f (N@20 of so many `users`); S_VIEW, U_VIEW; text_strong and flipped, shares of users.
        fallen: modalities that lie significantly below their start, corrected for all looks.
        warnings: modality, difference, low, high, level, users of what is worth a line now.
        memory: for the next look; JSON.
    """

    figures: dict[str, float]
    fallen: Sequence[str]
    warnings: Sequence[Mapping[str, float | str]]
    memory: Mapping[str, Any]

    @property
    def in_a_row(self) -> int:
        """At how many looks up to this one a modality lay below its start."""
        return int(self.memory["in_a_row"])


class Monitor:
    """Looks at fixed users. Whatever it remembers is handed in and out, so that it can be kept with a checkpoint."""

    def __init__(self, split: Split, users: Ints, embed: Embed, seed: int, run: Path, looks: int) -> None:
        """`users` are looked at; `seed` fixes what is sampled of their vectors; `run` is what a warning points to.

        `looks` are planned after the first, and what warnings are corrected for.
        """
        targets = split.targets_of(users, "validation")
        self._ids = [split.dataset.user_ids[int(user)] for user in users]
        self._histories = [split.history(int(user), "validation").tolist() for user in users]
        self._pool, self._targets = np.unique(targets, return_inverse=True)
        self._candidates = _others(self._pool, targets, [split.past(int(user), "validation") for user in users])
        self._embed, self._seed, self._run, self._looks = embed, seed, run, max(1, looks)

    @property
    def able(self) -> bool:
        """Whether there is anything to rank: somebody has a candidate."""
        return bool((self._candidates >= 0).any())

    def look(self, step: int, memory: Mapping[str, Any]) -> Look:
        """Measure the present weights against those at the first look, whose `memory` is empty; say what was lost."""
        histories, items = self._embed(self._histories), self._embed([[item] for item in self._pool.tolist()])
        measured = measure(self._ids, histories, items, self._targets, self._candidates, self._seed)
        start = pl.DataFrame(memory["start"], schema=measured.users.schema) if memory else measured.users
        found = conclude(measured, start)
        fallen = falls(measured.users, start, self._looks) if memory else {}
        told, warnings = dict(memory.get("told", {})), list[Mapping[str, float | str]]()
        for view, change in fallen.items():
            if view not in told or change["difference"] < WORSE * told[view]:
                told[view] = change["difference"]
                warnings.append({"modality": view, **change, "users": len(self._ids)})
                notice(self._line(step, view, found["dropout"][SIDES[view][1]]["N@20"], change))
        in_a_row = memory.get("in_a_row", 0) + 1 if fallen else 0
        kept = {"start": start.to_dict(as_series=False), "told": told, "in_a_row": in_a_row}
        return Look(dict(_figures(measured, found)), list(fallen), warnings, kept)

    def _line(self, step: int, view: str, now: float, change: Mapping[str, float]) -> str:
        title, name, _ = SIDES[view]
        value, difference, low, high = (
            _short(number) for number in (now, change["difference"], change["low"], change["high"])
        )
        return (
            f"warning: step {step}: {title.lower()} have fallen below their start: {name} {value}, {difference}"
            f" ({low} to {high}) against step 0, {len(self._ids)} validation users, corrected for {self._looks} probes"
            f" (a false alarm in at most {ERROR:.0%} of trainings); see `vlm2rec diagnose {self._run}`"
        )


def probe_steps(total: int, batch_size: int, settings: MonitorConfig) -> frozenset[int]:
    """After how many of `total` steps of `batch_size` samples to look: 0, `total` and log-spaced ones between them.

    Where `settings` names no number, as many as `SHARE` of the training pays for, a step's forward pass taken as a
    third of it (as measured on `nano`).
    """
    if settings.probes == 0:
        return frozenset()
    steps_a_probe = settings.users / batch_size / 3 + (1.0 if settings.gradients else 0.0)
    count = settings.probes or min(PROBES, round(SHARE * total / steps_a_probe))
    count = max(2, min(count, total // STEPS_A_PROBE))
    return frozenset({0, *np.geomspace(total, 1, count - 1).round().astype(int).tolist()})


def _others(pool: Ints, targets: Ints, pasts: Sequence[Ints]) -> np.ndarray:
    """Rows of the pool that are a user's candidates, `(U, len(pool))`, -1 elsewhere: no target, nothing of the past."""
    free = np.stack([~np.isin(pool, [target, *past]) for target, past in zip(targets, pasts, strict=True)])
    return np.where(free, np.arange(len(pool)), -1)


def _figures(measured: Measured, found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    dropout = measured.dropout()
    yield "users", measured.users.height
    yield from ((name, dropout[name]) for name in ("f2f", "t2f", "v2f") if name in dropout)
    yield from ((f"S_{view}", shape["S"]) for view, shape in measured.geometry.items())
    yield from ((f"U_{view}", shape["U"]) for view, shape in measured.geometry.items() if view in SIDES)
    strong = found.get("strong", {})
    yield from ((name, strong[key]) for key, name in (("text", "text_strong"), ("flipped", "flipped")) if key in strong)


def _short(value: float) -> str:
    """-.051."""
    return f"{value:.3f}".replace("0.", ".", 1)
