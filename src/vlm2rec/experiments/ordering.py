"""Does the order that the paper's text gives hold: in the means, and in how many seeds?"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from vlm2rec.experiments.spec import Column, Experiment, Line


def order_notes(experiment: Experiment, lines: Sequence[Line]) -> Iterator[str]:
    """A sentence for each task in the first sheet, where the rows of the experiment's order are all there."""
    by_name = {line.row.name: line for line in lines}
    wanted = [name for tier in experiment.order for name in tier]
    if not wanted or not by_name.keys() >= set(wanted):
        return
    for column in experiment.sheets[0].columns:
        is_task = column.figure.startswith(("retrieval.", "seqrec."))
        if is_task and all(column.figure in by_name[name].method.values for name in wanted):
            yield _verdict(experiment, column, by_name)


def _verdict(experiment: Experiment, column: Column, lines: Mapping[str, Line]) -> str:
    names = [name for tier in experiment.order for name in tier]
    means = {name: lines[name].method.mean(column.figure) or 0.0 for name in names}
    broken = _broken(experiment.order, means)
    common = [seed for seed in lines[names[0]].method.seeds if all(seed in lines[n].method.seeds for n in names)]
    kept = sum(
        not _broken(experiment.order, {name: _at(lines[name], column.figure, seed) for name in names})
        for seed in common
    )
    order = " > ".join(", ".join(lines[name].label for name in tier) for tier in experiment.order)
    seeds = f"{kept} of {len(common)} seed{'s' * (len(common) != 1)}"
    if not broken:
        return f"{column.heading}: the paper's order ({order}) holds in the means and in {seeds}."
    wrong = "; ".join(
        f"{lines[low].label} {means[low]:.4f} against {lines[high].label} {means[high]:.4f}" for high, low in broken
    )
    return f"{column.heading}: the paper's order ({order}) does not hold in the means ({wrong}); it does in {seeds}."


def _broken(tiers: Sequence[Sequence[str]], values: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs (should be ahead, should be behind) of neighbouring tiers that stand the other way round, or level."""
    return [
        (high, low)
        for upper, lower in pairwise(tiers)
        for high in upper
        for low in lower
        if not values[high] > values[low]
    ]


def _at(line: Line, figure: str, seed: int) -> float:
    return line.method.values[figure][line.method.seeds.index(seed)]
