"""The ID rows, SASRec and GRU4Rec over items that are numbers and nothing else; or started from anybody's vectors."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlm2rec.config import GRU4Rec, SASRec
from vlm2rec.data.splits import Which
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.methods.base import Embedder, Recommender, SequenceResult
from vlm2rec.runs import Run, replacing_folder
from vlm2rec.seqrec.fit import SequenceModel, fit_from_vectors, fit_sequential
from vlm2rec.seqrec.items import IdItems, Items, Norm, TableItems, normalised
from vlm2rec.seqrec.models import Kind
from vlm2rec.tasks import Scorer
from vlm2rec.weights import read_into, write_weights

_WEIGHTS = "model/model.safetensors"


class Sequential(Recommender):
    """One sequential model. From ids it is the same row in the tables of both tasks."""

    @property
    def kind(self) -> Kind:
        """Which of the two."""
        return self.config.method.kind  # type: ignore[return-value]

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """The weights."""
        return {"train": (_WEIGHTS,)}

    @cached_property
    def vectors(self) -> np.ndarray | None:
        """Given vectors in the order of the catalogue, `(n_items, D)`; None for ids.

        Raises:
            InputError: there is no such table or view, or an item of the catalogue is not in it.
        """
        method = self.config.method
        assert isinstance(method, SASRec | GRU4Rec)
        if method.items is None:
            return None
        if not (method.items / "ids.json").exists() and (method.items / "items" / "ids.json").exists():
            raise InputError(f"{method.items}: is a run; give the table of its items, {method.items / 'items'}")
        table, path = EmbeddingTable.load(method.items), self.split.dataset.path
        if method.view not in table.views:
            raise InputError(
                f"{method.items}: has no view {method.view!r}; set method.view to {' or '.join(table.views)}"
            )
        try:
            rows = table.rows(self.split.dataset.item_ids)
        except InputError as error:
            raise InputError(f"{method.items}: are embeddings of another catalogue than {path}: {error}") from None
        return np.asarray(table[method.view][rows])

    def check(self, trained: bool) -> None:
        """Given vectors must be those of this catalogue."""
        if not trained:
            _ = self.vectors

    def train(self, run: Run) -> Mapping[str, Any]:
        """Fit on the training events, stop early by validation; weights to `model/`."""
        config = self.config
        if self.vectors is None:
            model = fit_sequential(
                self.kind, self._items, self.split, config.seqrec, config.seed, run.path, config.evaluation
            )
        else:
            model = fit_from_vectors(
                self.kind, self._items, Embedder.norms, self.split, config.seqrec, config.seed, run.path / "stages",
                config.evaluation,
            )  # fmt: skip
        with replacing_folder(run.path / "model") as folder:
            write_weights(folder / Path(_WEIGHTS).name, model.state_dict())
        figures = dict(model.validation)
        seconds = {name: figures.pop(name) for name in ("seconds", "epoch_seconds")}
        return {"validation": figures, **seconds}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Its own scores, the whole catalogue by dot product."""
        model = SequenceModel(self.kind, self._items(), self.split, self.config.seqrec)
        read_into(run.path / _WEIGHTS, model.state_dict())
        return model.scorer(users, which)

    def sequence_task(self, run: Run, users: np.ndarray) -> dict[str, SequenceResult]:
        """Task 2 is the same model again."""
        return {self.kind: SequenceResult(self.scorer(run, users, "test"), {})}

    def _items(self, norm: Norm = "none") -> Items:
        settings, vectors = self.config.seqrec, self.vectors
        if vectors is None:
            return IdItems(self.split.n_items, settings.dim)
        return TableItems(normalised(vectors, norm), settings.dim, tuned=settings.table == "tuned")
