"""VLM_Prompt (arXiv 2508.04571): a frozen model fills slots about an item, and its state is the item's vector."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm2rec.backbones.generate import greedy
from vlm2rec.backbones.load import load_backbone
from vlm2rec.backbones.packing import Prompt
from vlm2rec.config import VLMPrompt as Settings
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import in_shards
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.base import ItemEmbedder, need_pictures
from vlm2rec.prompts import Picture, Segment, Text, Title
from vlm2rec.runs import Run

# Five slots a domain, and an example of them filled.
SLOTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beauty": (
        ("category", "who it is for", "purpose", "form", "occasion"),
        ("lip balm", "adults", "moisturising", "stick", "winter"),
    ),
    "toys": (
        ("category", "age group", "kind of play", "material", "theme"),
        ("building set", "6 to 9", "construction", "plastic", "space"),
    ),
    "sports": (
        ("category", "activity", "purpose", "material", "setting"),
        ("bottle", "running", "hydration", "steel", "outdoors"),
    ),
    "clothing": (
        ("type", "colour", "where it is worn", "material", "style"),
        ("scarf", "dark blue", "neck", "wool", "classic"),
    ),
    "baby": (
        ("category", "age group", "purpose", "material", "where it is used"),
        ("bib", "6 months", "feeding", "cotton", "kitchen"),
    ),
    "pets": (
        ("category", "kind of pet", "purpose", "material", "where it is used"),
        ("leash", "dog", "walking", "nylon", "outdoors"),
    ),
    "movies": (
        ("genre", "mood", "era", "audience", "setting"),
        ("western", "tense", "1960s", "adults", "desert town"),
    ),
    "general": (
        ("category", "who it is for", "purpose", "material", "style"),
        ("desk lamp", "students", "reading", "metal", "plain"),
    ),
}
_NAMES = {"movie": "movies", "film": "movies", "toy": "toys", "sport": "sports", "cloth": "clothing", "pet": "pets"}
_CLOSING = "The five keywords, one for each bracket:"


class VLMPrompt(ItemEmbedder):
    """Nothing is trained. `last`: the state of the prompt's last token; `generated`: the mean over the keywords'."""

    def check(self, trained: bool) -> None:
        """A model with eyes, pictures in the data, and prompts that fit the context."""
        need_pictures(self.split, "method.kind = 'vlm_prompt' needs; prepare it with pictures")
        prompt = self.config.prompt.model_copy(update={"modalities": "both", "combine": "sum"})
        backbone = load_backbone(self.config.backbone, head=self.settings.pooling == "generated")
        if backbone.vision is None:
            raise InputError(
                f"backbone.path = {self.config.backbone.path!r} reads no pictures, which method.kind = 'vlm_prompt'"
                " needs; take a vision-language model"
            )
        self.encoder = Encoder(backbone, self.config.backbone, prompt, self.config.evaluation.batch_tokens)
        titles, pictures = self.split.dataset.titles, self.split.dataset.pictures.digests
        kinds = [[item for item in range(len(titles)) if bool(pictures[item]) is seen] for seen in (True, False)]
        longest = [max(kind, key=lambda item: len(titles[item])) for kind in kinds if kind]
        used = max(len(prompt.ids) for prompt in self._prompts(longest))
        used += self.settings.max_new_tokens if self.settings.pooling == "generated" else 0
        if used > self.encoder.backbone.context:
            raise InputError(
                f"the slot prompt takes {used} tokens with its answer, the backbone reads"
                f" {self.encoder.backbone.context}; lower method.max_new_tokens, prompt.max_title_tokens or"
                " backbone.image_size"
            )

    @property
    def settings(self) -> Settings:
        """The method's own numbers."""
        assert isinstance(self.config.method, Settings)
        return self.config.method

    def encode_items(self, run: Run) -> EmbeddingTable:
        """Every item to `items/`; with `generated`, the keywords to `keywords.jsonl`, again where a kill cut in."""
        ids, settings = self.split.dataset.item_ids, self.settings
        keywords = run.path / "keywords.jsonl"

        def embed(items: Sequence[int]) -> Mapping[str, Tensor]:
            prompts = self._prompts(items)
            if settings.pooling == "last":
                return {"fused": self.encoder(prompts)}
            vectors, answers = self._generated(prompts)
            with keywords.open("a", encoding="utf-8") as file:
                for item, answer in zip(items, answers, strict=True):
                    file.write(json.dumps({"item_id": ids[item], "keywords": answer}) + "\n")
            return {"fused": vectors}

        manifest = {"domain": domain_of(settings, self.split.dataset.name), "pooling": settings.pooling}
        return in_shards(range(self.split.n_items), ids, embed, run.path / "items", "items", manifest=manifest)

    def _prompts(self, items: Sequence[int]) -> list[Prompt]:
        domain = domain_of(self.settings, self.split.dataset.name)
        self.encoder.look_at(self.split.dataset, items)
        return [self.encoder.read(slot_prompt(item, domain, self.settings.with_title)) for item in items]

    def _generated(self, prompts: Sequence[Prompt]) -> tuple[Tensor, list[str]]:
        """Mean final state of each answer's tokens `(n, D)`, and the answers; an empty answer leaves the last state."""
        backbone: Any = self.encoder.backbone
        stop = {backbone.tokenizer.eos_token_id} - {None}
        answers = greedy(backbone, [(p.ids, p.visuals) for p in prompts], self.settings.max_new_tokens, stop)
        vectors = []
        for prompt, answer in zip(prompts, answers, strict=True):
            states, _ = backbone.states([[*prompt.ids, *answer]], prompt.visuals)
            vectors.append(states[0, len(prompt.ids) - (not answer) :].float().mean(0))
        return torch.stack(vectors), [backbone.tokenizer.decode(answer).strip() for answer in answers]


def slot_prompt(item: int, domain: str, with_title: bool) -> list[Segment]:
    """The instruction for one item: role, slots, an example, the picture and, if wanted, the title."""
    names, example = SLOTS[domain]
    asked = " ".join(f"[{name}]" for name in names)
    filled = ", ".join(example)
    opening = (
        "You describe the pictures of a catalogue so that like things are found together. Answer with five keywords,"
        f" one for each bracket: {asked}. An answer looks like this: {filled}.\nPicture: "
    )
    segments: list[Segment] = [Text(opening), Picture(item), Text("\n")]
    if with_title:
        segments += [Text("Title: "), Title(item), Text("\n")]
    return [*segments, Text(_CLOSING)]


def domain_of(settings: Settings, name: str) -> str:
    """The domain of the slots: as set, else what the data set's name tells, else `general`."""
    if settings.domain != "auto":
        return settings.domain
    words = re.findall("[a-z]+", name.lower())
    known = {**{domain: domain for domain in SLOTS}, **_NAMES}
    return next((domain for start, domain in known.items() for word in words if word.startswith(start)), "general")
