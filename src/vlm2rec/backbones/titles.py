"""Titles as a language model reads them: samples to learn from, and vectors under bidirectional attention."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from vlm2rec.backbones.bidirectional import attend
from vlm2rec.backbones.load import Backbone, check_digest, language_path, load_backbone, mean_over
from vlm2rec.backbones.lora import check_saved, load_lora, save_lora
from vlm2rec.config import BackboneConfig
from vlm2rec.damage import RESTORE, TENSORS, listing
from vlm2rec.errors import InputError
from vlm2rec.runs import read_json, replacing_folder, write_json
from vlm2rec.weights import read_into, write_weights

IGNORED = -100
_SETTINGS = "titles.json"
WEIGHTS = "language.safetensors"
_UNTITLED = "(no title)"
_BLANK = "_"


@dataclass(frozen=True)
class Sample:
    """Token ids, and at each place the token that its left neighbour's state is to predict; IGNORED: none."""

    ids: list[int]
    labels: list[int]


class TitleReader:
    """Token ids of titles, cut at `max_tokens`, and what a language model is asked about them."""

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        end = backbone.tokenizer.eos_token_id
        self._backbone = backbone
        self._max_tokens = max_tokens
        self._known: dict[str, list[int]] = {}
        self.start, _ = backbone.wrapper(chat=False)
        self.comma = backbone.tokens(",")
        self.end = [*backbone.tokens("\n"), *([end] if end is not None else [])]
        self.blank = backbone.tokens(_BLANK)[-1:]

    def __call__(self, title: str, follows: bool = False) -> list[int]:
        """Token ids of one title, at least one; `follows`: as it stands behind a comma, with a space before it."""
        text = (" " if follows else "") + (title if title.strip() else _UNTITLED)
        if text not in self._known:
            ids = self._backbone.title_tokens(text) or self._backbone.title_tokens(_UNTITLED)
            self._known[text] = ids[: self._max_tokens]
        return self._known[text]

    def next_title(self, history: Sequence[str], target: str) -> Sample:
        """The titles of a history, a comma after each, and the title to come with its end, which alone is asked."""
        read = list(self.start)
        for place, title in enumerate(history):
            read += [*self(title, follows=place > 0), *self.comma]
        said = [*self(target, follows=True), *self.end]
        return Sample([*read, *said], [*[IGNORED] * len(read), *said])

    def masked(self, title: str, share: float, rng: np.random.Generator) -> Sample:
        """A title with a share of its tokens blanked, at least one, which are asked. It must be `maskable`.

        A first token with nothing before it is never blanked: there is no state to predict it from.
        """
        whole = [*self.start, *self(title)]
        first = max(1, len(self.start))
        count = min(max(1, round(share * len(self(title)))), len(whole) - first)
        ids, labels = list(whole), [IGNORED] * len(whole)
        for place in first + rng.choice(len(whole) - first, size=count, replace=False):
            ids[place], labels[place] = self.blank[0], whole[place]
        return Sample(ids, labels)

    def maskable(self, title: str) -> bool:
        """Whether a title has a token with another one before it."""
        return len(self.start) + len(self(title)) > 1


class TitleEncoder:
    """Titles to vectors: the mean over a title's tokens of the final states, each having seen all the others."""

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        self.backbone = backbone
        self.max_tokens = max_tokens
        self.read = TitleReader(backbone, max_tokens)

    def __call__(self, titles: Sequence[str]) -> Tensor:
        """Vectors of titles `(n, D)` float32, not normalised."""
        return self.pooled([self.read(title) for title in titles])

    def pooled(self, titles: Sequence[list[int]]) -> Tensor:
        """The same of token ids; a start token is read and not counted."""
        start = self.read.start
        states, real = self.backbone.states([[*start, *title] for title in titles], masked=True)
        return mean_over(states[:, len(start) :], real[:, len(start) :])

    def save(self, folder: Path | str, settings: BackboneConfig, adapter: PeftModel | None, dtype: torch.dtype) -> None:
        """Write the adapters, PEFT's own files, or without adapters all weights of the language model, in `dtype`.

        `titles.json` says which weights belong to it, and what backbone adapters were trained on.
        """
        with replacing_folder(Path(folder)) as temporary:
            if adapter is not None:
                tensors = save_lora(adapter, temporary)
            else:
                weights = language_parameters(self.backbone)
                write_weights(temporary / WEIGHTS, weights, dtype)
                tensors = {WEIGHTS: listing(weights)}
            backbone = json.loads(settings.model_dump_json(exclude_none=True))
            saved = {"backbone": backbone, "max_tokens": self.max_tokens, TENSORS: tensors}
            if adapter is not None:
                saved["digest"] = self.backbone.digest
            write_json(temporary / _SETTINGS, saved)

    @classmethod
    def load(cls, folder: Path | str) -> "TitleEncoder":
        """Read what `save` wrote, on the GPU where there is one.

        Raises:
            InputError: the folder is no title encoder or not whole, or its backbone is gone or another one by now.
        """
        folder = Path(folder)
        saved = read_json(folder / _SETTINGS, "title encoder")
        try:
            settings, max_tokens = BackboneConfig.model_validate(saved["backbone"]), int(saved["max_tokens"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / _SETTINGS}: not the settings of a title encoder of this version") from None
        adapted = check_saved(folder / _SETTINGS, saved) and not (folder / WEIGHTS).exists()
        backbone = load_backbone(settings)
        check_digest(folder, saved, backbone, settings.path)
        if adapted:
            load_lora(backbone, folder)
        else:
            advice = f"they must be those of the model at backbone.path = {settings.path!r}; {RESTORE}"
            read_into(folder / WEIGHTS, language_parameters(backbone), advice)
        attend(backbone, both_ways=True)
        backbone.model.eval()
        return cls(backbone, max_tokens)


def language_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The language model's parameters, embeddings among them, by their name in `backbone.model`."""
    whole = backbone.vision is None  # a language model is nothing but itself
    return {name: value for name, value in backbone.model.named_parameters() if whole or language_path(name)}
