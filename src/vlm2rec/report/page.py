"""Everything that a page shows, from a comparison of runs and their data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm2rec.comparison import QUICK, Comparison, marked_quick, seeds_text
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.report import balance, curves, recipe, tables
from vlm2rec.report.cold import cold_charts, cold_sheets
from vlm2rec.report.confused import Confusions, confusions
from vlm2rec.report.examples import Cards, Shopper, shoppers
from vlm2rec.report.figures import number
from vlm2rec.report.logs import Logs
from vlm2rec.report.maps import maps
from vlm2rec.report.parts import Panel, Sheet
from vlm2rec.report.vectors import spaces
from vlm2rec.report.words import Finding, display, findings
from vlm2rec.runs import Run


@dataclass(frozen=True)
class Items:
    """What is shown of single items: it needs the data set and vectors.

    Attributes:
        note: why there are no shoppers; empty if there are some.
        pictures: item index -> data URI.
    """

    note: str
    shoppers: Sequence[Shopper] = ()
    confused: Sequence[Confusions] = ()
    maps: Sequence[Panel] = ()
    pictures: dict[int, str] | None = None


@dataclass(frozen=True)
class Page:
    """The parts of the page in reading order; empty ones are not shown."""

    title: str
    quick: bool
    """Whether a run was made with --quick; the title says so."""
    name: str
    data: dict[str, Any]
    evaluated: int
    several_seeds: bool
    candidate_seed: int
    chance: str
    warnings: Sequence[str]
    """What was said when the runs began."""
    findings: Sequence[Finding]
    retrieval: Sheet
    not_counted: str
    differences: dict[str, dict[str, str]]
    metrics: Sequence[Sheet]
    blocks: Sequence[balance.Block]
    measures: Sheet | None
    side_by_side: Sequence[Panel]
    geometry: Sheet | None
    items: Items
    cold: Sequence[Panel]
    cold_sheets: Sequence[Sheet]
    missing: Sheet | None
    sequential: Sequence[Sheet]
    tests: Sheet | None
    on_seeds: str
    """On how many seeds the tests rest."""
    curves: Sequence[Panel]
    cost: Sheet | None
    recipes: Sequence[recipe.Recipe]
    command: str
    versions: Sequence[tuple[str, str]]
    fingerprints: Sequence[tuple[str, str]]

    def sheets(self) -> Iterator[Sheet]:
        """All tables as files have them: each says for itself whether it is of quick runs."""
        some = (self.measures, self.geometry, self.missing, self.tests, self.cost)
        for sheet in (self.retrieval, *self.metrics, *filter(None, some), *self.cold_sheets, *self.sequential):
            yield replace(sheet, grid=marked_quick(sheet.grid, self.quick))

    def panels(self) -> Iterator[Panel]:
        """All charts, likewise."""
        own = (panel for block in self.blocks for panel in (*block.bars, *block.curves))
        for panel in (*own, *self.side_by_side, *self.items.maps, *self.cold, *self.curves):
            yield replace(panel, chart=marked_quick(panel.chart, self.quick))


def build(comparison: Comparison, title: str | None) -> Page:
    """Read what the runs left and lay it out. `title`: by default the name of the data set."""
    first, methods = comparison.methods[0].runs[0], comparison.methods
    name, items = _items(comparison, first)
    logs = Logs(comparison)
    chance = comparison.chance.get("sampled")
    return Page(
        title=(title or f"{name}: who buys what next") + (f" ({QUICK})" if comparison.quick else ""),
        quick=comparison.quick,
        name=name,
        data=first.results().get("data", {}),
        evaluated=comparison.evaluated_users,
        several_seeds=any(len(method.seeds) > 1 for method in methods),
        candidate_seed=first.config.evaluation.candidate_seed,
        chance=number(chance) if chance is not None else "unknown",
        warnings=comparison.warnings,
        findings=findings(comparison),
        retrieval=tables.retrieval(comparison),
        differences={
            key: {display(label): value for label, value in values.items()}
            for key, values in comparison.differences.items()
        },
        not_counted=comparison.not_counted,
        metrics=tables.metrics(comparison.rows),
        blocks=balance.blocks(methods, comparison.chance, logs),
        measures=balance.measures(methods),
        side_by_side=balance.side_by_side(methods, comparison.chance),
        geometry=tables.geometry(methods),
        items=items,
        cold=cold_charts(methods),
        cold_sheets=cold_sheets(methods),
        missing=tables.missing(methods),
        sequential=tables.sequential(methods),
        tests=tables.tests(comparison),
        on_seeds=seeds_text(comparison.tests),
        curves=curves.training(methods, logs),
        cost=tables.cost(methods, logs),
        recipes=recipe.recipes(methods),
        command=recipe.report_command(comparison),
        versions=recipe.versions(comparison),
        fingerprints=recipe.fingerprints(comparison),
    )


def _items(comparison: Comparison, run: Run) -> tuple[str, Items]:
    """The name of the data set, and what can be shown of its items."""
    path = run.config.data.path
    try:
        dataset = Dataset.load(path)
    except InputError:
        return path.name, Items(f"The data set is no longer at {path}, so no shoppers are shown.")
    if dataset.fingerprint != run.manifest.get("data", {}).get("fingerprint"):
        return path.name, Items(f"{path} now holds other data than the runs were made from, so no shoppers are shown.")
    having, cards = spaces(comparison.methods, dataset), Cards(dataset)
    split = Split(dataset, run.config.data.max_history, run.config.data.split)
    people = shoppers(having, split, cards)
    confused = confusions(having, split, cards)
    note = "" if people else "None of these runs keeps embeddings, so no shoppers are shown."
    return dataset.name, Items(note, people, confused, maps(having, dataset), cards.pictures)
