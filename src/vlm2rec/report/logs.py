"""What training left in `metrics.jsonl`, read once for the whole page."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vlm2rec.comparison import Comparison, Method
from vlm2rec.progress import notice
from vlm2rec.report.figures import thin
from vlm2rec.runs import metrics_lines

Lines = Sequence[Mapping[str, Any]]


class Logs:
    """The lines of every run of a comparison, by kind (train, validation, probe, warning)."""

    def __init__(self, comparison: Comparison) -> None:
        self._lines: dict[Path, dict[str, list[dict[str, Any]]]] = {}
        for run in (run for method in comparison.methods for run in method.runs):
            path = run.path / "metrics.jsonl"
            if not path.exists() and run.manifest["done"].get("train", {}).get("steps"):
                notice(f"{run.path}: metrics.jsonl is missing, so the report has no curves of its training")
            own = self._lines.setdefault(run.path, defaultdict(list))
            for line in metrics_lines(path):
                own[str(line.get("kind"))].append(line)

    def lines(self, run: Path, kind: str) -> Lines:
        """All of one kind, in the order of the file."""
        return self._lines[run].get(kind, [])

    def curve(self, run: Path, kind: str, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one figure, thinned where they are many; empty where no line has it."""
        found = [
            (float(line["step"]), float(line[key]))
            for line in self.lines(run, kind)
            if isinstance(line.get(key), int | float)
        ]
        return thin([step for step, _ in found], [value for _, value in found])

    def typical(self, method: Method, key: str, *, highest: bool) -> float | None:
        """The median over training steps of a figure, or the highest value, averaged over seeds; None without one."""
        take = max if highest else median
        found = []
        for run in method.runs:
            values = [float(line[key]) for line in self.lines(run.path, "train") if key in line]
            if values:
                found.append(float(take(values)))
        return sum(found) / len(found) if found else None
