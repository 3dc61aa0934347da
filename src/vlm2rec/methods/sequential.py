"""The ID rows: SASRec and GRU4Rec over items that are numbers and nothing else."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from vlm2rec.config import SASRec
from vlm2rec.data.splits import Which
from vlm2rec.methods.base import Recommender, SequenceResult
from vlm2rec.runs import Run, replacing_folder
from vlm2rec.seqrec.fit import SequenceModel, fit_sequential
from vlm2rec.seqrec.items import IdItems
from vlm2rec.seqrec.models import Kind
from vlm2rec.tasks import Scorer


class Sequential(Recommender):
    """One sequential model, learned from nothing: the same row in the tables of both tasks."""

    @property
    def kind(self) -> Kind:
        """Which of the two."""
        return "sasrec" if isinstance(self.config.method, SASRec) else "gru4rec"

    def train(self, run: Run) -> Mapping[str, Any]:
        """Fit on S[:-2], stop early by validation; weights to `model/`."""
        config = self.config
        model = fit_sequential(
            self.kind, self._items, self.split, config.seqrec, config.seed, run.path, config.evaluation
        )
        with replacing_folder(run.path / "model") as folder:
            save_file(
                {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
            )
        figures = dict(model.validation)
        seconds = {name: figures.pop(name) for name in ("seconds", "epoch_seconds")}
        return {"validation": figures, **seconds}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Its own scores, the whole catalogue by dot product."""
        model = SequenceModel(self.kind, self._items(), self.split, self.config.seqrec)
        model.load_state_dict(load_file(run.path / "model" / "model.safetensors"))
        return model.scorer(users, which)

    def sequence_task(self, run: Run, users: np.ndarray) -> dict[str, SequenceResult]:
        """Task 2 is the same model again."""
        return {self.kind: SequenceResult(self.scorer(run, users, "test"), {})}

    def _items(self) -> IdItems:
        return IdItems(self.split.n_items, self.config.seqrec.dim)
