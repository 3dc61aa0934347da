"""Small frozen encoders as rows: BERT on titles, CLIP on both, or a text and a picture encoder side by side."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm2rec.backbones.small import Clip, PictureEncoder, TextEncoder
from vlm2rec.config import CLIP, Bert, Pair
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.methods.base import ItemEmbedder, need_pictures, need_titles
from vlm2rec.runs import Run

Embed = Callable[[Sequence[int]], Mapping[str, Tensor]]
_AT_ONCE = 64


class Frozen(ItemEmbedder):
    """Nothing is trained: the encoder is the method."""

    def check(self, trained: bool) -> None:
        """The encoder must load, and the data have what it reads."""
        need_titles(self.split, f"method.kind = {self.config.method.kind!r} needs")
        if not isinstance(self.config.method, Bert):
            need_pictures(self.split, f"method.kind = {self.config.method.kind!r} needs; take method.kind=bert instead")
        self._embed = self._load()

    def encode_items(self, run: Run) -> EmbeddingTable:
        """Every item to `items/`, in shards that survive a kill."""
        return in_shards(
            range(self.split.n_items), self.split.dataset.item_ids, self._embed, run.path / "items", "items", _AT_ONCE
        )

    def _load(self) -> Embed:
        method = self.config.method
        if isinstance(method, Bert):
            text = TextEncoder(method.path, method.pooling)
            return lambda items: {"fused": text(self._titles(items))}
        if isinstance(method, CLIP):
            clip = Clip(method.path)

            def both(items: Sequence[int]) -> Mapping[str, Tensor]:
                found = {"text": clip.texts(self._titles(items)), "image": self._see(clip.pictures, items)}
                return {"fused": found["text"] + found["image"], **found}

            return both
        assert isinstance(method, Pair)
        text, picture = TextEncoder(method.text, method.pooling), PictureEncoder(method.image)

        def beside(items: Sequence[int]) -> Mapping[str, Tensor]:
            parts = (text(self._titles(items)), self._see(picture, items))
            return {"fused": torch.cat([normalize(part, dim=-1) for part in parts], dim=1)}

        return beside

    def _titles(self, items: Sequence[int]) -> list[str]:
        return [self.split.dataset.titles[item] or "(no title)" for item in items]

    def _see(self, encoder: Callable[[Sequence[np.ndarray]], Tensor], items: Sequence[int]) -> Tensor:
        """Vectors of the items' pictures, `(n, D)`; zeros where an item has none."""
        pictures = [self.split.dataset.pictures[item] for item in items]
        seen = [row for row, picture in enumerate(pictures) if picture is not None]
        if not seen:  # any picture tells how wide a vector is
            first = next(picture for picture in self.split.dataset.pictures if picture is not None)
            return torch.zeros(len(items), encoder([first]).shape[1])
        vectors = encoder([picture for picture in pictures if picture is not None]).cpu()
        return torch.zeros(len(items), vectors.shape[1]).index_copy(0, torch.tensor(seen), vectors)
