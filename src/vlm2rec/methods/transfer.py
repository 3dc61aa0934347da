"""Zero-shot transfer: an encoder trained on one data set, used as it is on another (Sec. 5.4.3, Table 6)."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from vlm2rec.config import Transfer as Settings
from vlm2rec.data.splits import Which
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import Embedder, asked_histories, need_pictures
from vlm2rec.methods.vlm import embed_histories, embed_items
from vlm2rec.runs import Run
from vlm2rec.tasks import Cosine, Scorer

_KINDS = ("vanilla", "sft", "vlm2rec")


class Transfer(Embedder):
    """Nothing is trained. Backbone and prompts are the source's; what the configuration says of them is not read."""

    def check(self, trained: bool) -> None:
        """The source stands and is of a method whose encoder is all of it; pictures and prompts fit its backbone."""
        if self.encoder.prompt.modalities != "text":
            need_pictures(self.split, f"the prompts of {self._source.path} need; take a source that reads titles alone")
        self.encoder.check(self.split.dataset, asked_histories(self.split))

    @cached_property
    def encoder(self) -> Encoder:
        """The source's, trained."""
        return Encoder.load(self._source.path / "model")

    def train(self, run: Run) -> Mapping[str, Any]:
        """Note whose encoder it is, and whether it was trained on this very data after all."""
        source = self._source
        data = source.manifest.get("data", {})
        run.record(
            parts={"source": source.config.method.kind},
            source={
                "method": source.config.method.kind,
                "seed": source.config.seed,
                "data": data,
                "same_data": data.get("fingerprint") == self.split.dataset.fingerprint,
            },
        )
        return {}

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Items and the histories of the test users."""
        began = time.monotonic()
        embed_items(self.encoder, self.split, run.path / "items")
        embed_histories(self.encoder, self.split, users, "test", run.path / "histories")
        return {"seconds": time.monotonic() - began}

    def trained_encoder(self, run: Run) -> Encoder:
        """The source's."""
        return self.encoder

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Cosines (Task 1); validation histories are embedded when asked for."""
        if which == "test":
            return super().scorer(run, users, which)
        out = run.path / "histories-validation"
        queries = embed_histories(self.encoder, self.split, users, which, out)
        return Cosine(queries.unit("fused"), self.item_table(run.path / "items").unit("fused"))

    @cached_property
    def _source(self) -> Run:
        """The run that the encoder is of. Raises InputError where it cannot be used."""
        assert isinstance(self.config.method, Settings)
        source = Run.open(self.config.method.source)
        where, kind = f"method.source = {str(source.path)!r}", source.config.method.kind
        if kind not in _KINDS:
            raise InputError(f"{where}: is a run of {kind}; give one of {', '.join(_KINDS)}")
        if not source.is_done("train"):
            raise InputError(f"{where}: is not trained; finish it with `vlm2rec run`")
        return source
