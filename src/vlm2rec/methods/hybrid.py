"""A hybrid row: what ids know and what titles and pictures tell, in one score."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vlm2rec.config import Config, GRU4Rec, SASRec
from vlm2rec.config import Hybrid as Settings
from vlm2rec.data.splits import Which, split_of
from vlm2rec.errors import InputError
from vlm2rec.methods.base import Embedder, Recommender, validation_users
from vlm2rec.methods.sequential import Sequential
from vlm2rec.progress import progress
from vlm2rec.runs import Run
from vlm2rec.tasks import Scorer, item_blocks, metrics_of, rank_users, user_blocks

WEIGHTS = np.linspace(0, 1, 21)
"""Shares of the sequential model that are tried; 0 and 1 are the two parts alone."""


@dataclass(frozen=True)
class Standardised:
    """Another scorer's scores at mean 0 and deviation 1 over the catalogue, for each user."""

    scorer: Scorer
    mean: np.ndarray
    deviation: np.ndarray
    tolerance: float = 1e-5

    @classmethod
    def over(cls, scorer: Scorer, users: int, items: int) -> "Standardised":
        """Go through the catalogue once for both figures, `(users,)` each."""
        mean, deviation = np.empty((2, users))
        with progress("standardising", users) as tell:
            for part in user_blocks(users):
                mean[part], deviation[part] = _spread(scorer, np.arange(part.start, part.stop), items)
                tell(part.stop, "")
        return cls(scorer, mean, deviation)

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Scores `(b, n)` in float64."""
        return self._standard(self.scorer.scores(rows, columns), rows)

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores `(b, C)` in float64."""
        return self._standard(self.scorer.among(rows, items), rows)

    def _standard(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = (scores - self.mean[rows, None]) / self.deviation[rows, None]
        return scaled


@dataclass(frozen=True)
class Mixture:
    """`weight` times the first scorer's scores plus the rest times the second's.

    Scores of the two have no common unit, so both must be standardised.
    """

    first: Standardised
    second: Standardised
    weight: float
    tolerance: float = 1e-5

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        """Scores `(b, n)`."""
        return self._mixed(self.first.scores(rows, columns), self.second.scores(rows, columns))

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores `(b, C)`."""
        return self._mixed(self.first.among(rows, items), self.second.among(rows, items))

    def _mixed(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self.weight * first + (1 - self.weight) * second


class Hybrid(Recommender):
    """Two finished runs; the one number that is learned, their weight, is chosen on validation."""

    def check(self, trained: bool) -> None:
        """Both runs stand, are of the right kinds and were made from and judged on the same data."""
        _ = self._parts

    def train(self, run: Run) -> Mapping[str, Any]:
        """The weight with the best N@20 on validation, and what kinds it joins."""
        run.record(parts={name: part.config.method.kind for name, (part, _) in self._parts.items()})
        seed, users = self.config.evaluation.candidate_seed, validation_users(self.config, self.split, None)
        first, second = self._scorers(users, "validation")
        tried = []
        for weight in WEIGHTS:
            scorer = Mixture(first, second, float(weight))
            ranks = rank_users(scorer, self.split, users, "validation", seed, ("sampled",))
            tried.append({"weight": float(weight), **metrics_of(ranks, "retrieval", "sampled")})
        return {"validation": max(tried, key=lambda figures: figures["N@20"])}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """The mixture at the chosen weight."""
        return Mixture(*self._scorers(users, which), run.manifest["done"]["train"]["validation"]["weight"])

    @cached_property
    def _parts(self) -> dict[str, tuple[Run, Recommender]]:
        """Both runs and their methods. Raises InputError as `check` does."""
        assert isinstance(self.config.method, Settings)
        folders = {"sequential": self.config.method.sequential, "embedder": self.config.method.embedder}
        runs = {name: Run.open(folder) for name, folder in folders.items()}
        return {name: (run, self._fitting(name, run)) for name, run in runs.items()}

    def _scorers(self, users: np.ndarray, which: Which) -> tuple[Standardised, Standardised]:
        first, second = (
            Standardised.over(method.scorer(run, users, which), len(users), self.split.n_items)
            for run, method in (self._parts["sequential"], self._parts["embedder"])
        )
        return first, second

    def _fitting(self, name: str, run: Run) -> Recommender:
        """The method of a part's run. Raises InputError where it cannot be this part."""
        from vlm2rec.methods import build

        where = f"method.{name} = {str(run.path)!r}"
        config: Config = run.config
        if not run.is_done("evaluate"):
            raise InputError(f"{where}: is not finished; finish it with `vlm2rec run`")
        data = run.manifest["data"]
        if data["fingerprint"] != self.split.dataset.fingerprint:
            raise InputError(f"{where}: was made from other data than {self.config.data.path}")
        if split_of(data) != self.split.fingerprint:
            raise InputError(f"{where}: was made with another data.split; give both the same")
        for key, theirs, ours in (
            ("data.max_history", config.data.max_history, self.config.data.max_history),
            ("evaluation.users", config.evaluation.users, self.config.evaluation.users),
            ("evaluation.candidate_seed", config.evaluation.candidate_seed, self.config.evaluation.candidate_seed),
        ):
            if theirs != ours:
                raise InputError(f"{where}: {key} is {theirs} there and {ours} here; give both the same")
        if name == "sequential" and not isinstance(config.method, SASRec | GRU4Rec):
            raise InputError(f"{where}: is a run of {config.method.kind}; give one of sasrec or gru4rec")
        method = Sequential(config, self.split) if name == "sequential" else build(config, self.split)
        if name == "embedder" and not isinstance(method, Embedder):
            raise InputError(f"{where}: is a run of {config.method.kind}, which has no vectors; give one that has")
        return method


def _spread(scorer: Scorer, rows: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation `(b,)` of each row's scores over the catalogue."""
    start, total, squares = np.zeros((3, len(rows)))
    for columns in item_blocks(items):
        tile = scorer.scores(rows, columns).astype(np.float64)
        if columns.start == 0:
            start = tile.mean(axis=1)  # near the mean, so that squares about it lose no digits
        tile -= start[:, None]
        total += tile.sum(axis=1)
        squares += np.einsum("bn,bn->b", tile, tile)
    variance = squares / items - (total / items) ** 2
    return start + total / items, np.sqrt(np.maximum(variance, 0)).clip(min=1e-12)
