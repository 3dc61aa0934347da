"""The embedder: prompts, backbone and fusion. Histories and items in, `Views` out (Sec. 2.2-2.3)."""

import json
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from vlm2rec.backbones.gallery import Gallery
from vlm2rec.backbones.load import Backbone, check_digest, decoder, load_backbone, towers
from vlm2rec.backbones.lora import add_lora, check_saved, load_lora, save_lora
from vlm2rec.backbones.packing import Prompt, packed_states, rows, why_not
from vlm2rec.backbones.vision import Visual
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig
from vlm2rec.damage import TENSORS, listing
from vlm2rec.data.dataset import Catalogue
from vlm2rec.errors import InputError
from vlm2rec.fusion import GATE_FILE, Gate, fuse
from vlm2rec.indices import check_histories, check_indices
from vlm2rec.objectives import Views
from vlm2rec.prompts import Modality, Picture, Segment, Text, Title, history_prompt, passes
from vlm2rec.runs import read_json, replacing_folder, write_json

_FILE = "encoder.json"
_HISTORIES_CHECKED = 2000


class Encoder(nn.Module):
    """A backbone that turns histories and items into vectors.

    Each history takes one pass (internal fusion, or a single modality) or two (external fusion: titles, then
    pictures). `forward` runs any list of prompts; `histories` and `items` do the whole way for a catalogue.
    """

    def __init__(self, backbone: Backbone, settings: BackboneConfig, prompt: PromptConfig, batch_tokens: int) -> None:
        super().__init__()
        if backbone.vision is None and prompt.modalities != "text":
            raise InputError(
                f"backbone.path = {settings.path!r} reads no pictures, but prompt.modalities = {prompt.modalities!r};"
                " take a vision-language model, or set prompt.modalities=text"
            )
        self.backbone = backbone
        self.model = backbone.model  # registered, so parameters() and to() reach it
        self.settings = settings
        self.prompt = prompt
        self.batch_tokens = batch_tokens
        self.adapter: PeftModel | None = None
        self.gate = Gate(backbone.dim).to(self.device) if prompt.combine == "gated" else None
        self.unpacked = why_not(backbone)  # the end of a sentence; None: prompts are packed
        if settings.compile:
            for layer in decoder(backbone.model)[1]:
                layer.compile(dynamic=True)
        self._opening, self._closing = backbone.wrapper(prompt.chat)
        self._texts: dict[str, list[int]] = {}
        self._catalogue: Catalogue | None = None
        self._titles: dict[str, list[int]] = {}  # by their words: an item's may change
        self.gallery: Gallery | None = None
        if backbone.vision is not None and self.passes != ("text",):
            self.gallery = Gallery(backbone.vision, settings.cache_vision)

    @classmethod
    def build(
        cls, settings: BackboneConfig, prompt: PromptConfig, batch_tokens: int = 8192, head: bool = False
    ) -> "Encoder":
        """The backbone as it comes, without adapters; `head` keeps its language head, for what generates text."""
        return cls(load_backbone(settings, head), settings, prompt, batch_tokens)

    @classmethod
    def load(cls, folder: Path | str, head: bool = False) -> "Encoder":
        """Read what `save` wrote; `head` as for `build`.

        Raises:
            InputError: the folder is no saved encoder or not whole, or its backbone is gone or another one by now.
        """
        folder = Path(folder)
        saved = read_json(folder / _FILE, "saved encoder")
        try:
            settings, prompt = BackboneConfig(**saved["backbone"]), PromptConfig(**saved["prompt"])
            batch_tokens = int(saved["batch_tokens"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / _FILE}: not the settings of an encoder of this version") from None
        adapted = check_saved(folder / _FILE, saved)
        encoder = cls.build(settings, prompt, batch_tokens, head)
        check_digest(folder, saved, encoder.backbone, settings.path)
        if adapted:
            encoder.adapter = load_lora(encoder.backbone, folder)
        if encoder.gate is not None:
            encoder.gate.read(folder)
        return encoder.eval()

    def save(self, folder: Path | str) -> None:
        """Write the settings, the adapters (PEFT's own files) and the gate; the backbone stays where it is.

        `encoder.json` says which weights belong to it, and what backbone they were trained on.
        """
        with replacing_folder(Path(folder)) as temporary:
            tensors = save_lora(self.adapter, temporary) if self.adapter is not None else {}
            if self.gate is not None:
                self.gate.save(temporary)
                tensors[GATE_FILE] = listing(self.gate.state_dict())
            write_json(
                temporary / _FILE,
                {
                    "backbone": json.loads(self.settings.model_dump_json(exclude_none=True)),
                    "prompt": json.loads(self.prompt.model_dump_json()),
                    "batch_tokens": self.batch_tokens,
                    "digest": self.backbone.digest,
                    TENSORS: tensors,
                },
            )

    def add_lora(self, settings: LoraSettings, seed: int) -> None:
        """Put fresh, trainable adapters into the language model; until trained they change nothing."""
        self.adapter = add_lora(self.backbone, settings, seed)

    @property
    def device(self) -> torch.device:
        """Where the backbone lies."""
        return next(self.parameters()).device

    @property
    def passes(self) -> tuple[Modality, ...]:
        """The forward passes one embedding takes."""
        return passes(self.prompt)

    def towers(self) -> dict[str, dict[str, int]]:
        """Parameters, all and trainable, of the backbone's towers and of the gate, where there is one."""
        found = towers(self.backbone.model)
        if self.gate is not None:
            count = sum(weight.numel() for weight in self.gate.parameters())
            found["gate"] = {"all": count, "trainable": count}
        return found

    def histories(self, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> Views:
        """Embed histories of item indices, oldest first: Views of `(B, D)`.

        Raises:
            InputError: an index is no item of the catalogue, a history is empty, or a prompt is longer than the
                backbone's context.
        """
        return self.assemble(self(self.prompts(catalogue, histories)), self.there(catalogue, histories))

    def items(self, catalogue: Catalogue, indices: Sequence[int]) -> Views:
        """Embed items: Views of `(N, D)`. The same as histories of that one item; raises InputError as these do."""
        check_indices(indices, len(catalogue.titles))
        return self.histories(catalogue, [[index] for index in indices])

    def prompts(self, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> list[Prompt]:
        """All prompts of some histories, pass by pass: `len(passes) * B` of them.

        Raises:
            InputError: as `histories`.
        """
        self._check(catalogue, histories)
        self.look_at(catalogue, {item for history in histories for item in history})
        return [self.rest(history, modality) for modality in self.passes for history in histories]

    def check(self, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> None:
        """Try whether the longest of these histories fit the backbone's context, before anything is computed.

        A picture is taken to need as many visual tokens as the first one does. Raises InputError, as `prompts`.
        """
        self._check(catalogue, histories)
        longest = sorted(histories, key=len, reverse=True)[:_HISTORIES_CHECKED]
        items = {item for history in longest for item in history}
        first = next((item for item in sorted(items) if catalogue.pictures[item] is not None), None)
        self.look_at(catalogue, [first] if first is not None and self.gallery is not None else [])
        known = {} if self.gallery is None else self.gallery.visuals
        supposed = dict.fromkeys(items, known.get(first) if first is not None else None)
        try:
            if self.gallery is not None:
                self.gallery.visuals = {**supposed, **known}
            for modality in self.passes:
                for history in longest:
                    self.rest(history, modality)
        finally:
            if self.gallery is not None:
                self.gallery.visuals = known

    def check_branches(self) -> None:
        """Try whether the backbone reads prompts together, what they share once. Raises InputError where not."""
        if self.unpacked is not None:
            raise InputError(
                f"training.prefixes=branched: backbone.path = {self.settings.path!r} ({self.model.config.model_type})"
                f" {self.unpacked}; set training.prefixes=separate"
            )

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Last-token state of every prompt, `(n, D)`, not normalised.

        Prompts share rows of about `batch_tokens` tokens, without padding, and what they begin with is read once (in
        training they share its dropout too). A vector does not depend on which others were beside it. Where a family
        cannot be packed, prompts of like length share a padded batch.
        """
        if not prompts:
            return torch.zeros(0, self.backbone.dim, dtype=self.model.dtype, device=self.device)
        if self.unpacked is None:
            found = rows(prompts, self.backbone.image_token, self.batch_tokens)
            states = [packed_states(self.backbone, [prompts[i] for i in row]) for row in found]
        else:
            found = _buckets([len(prompt.ids) for prompt in prompts], self.batch_tokens)
            states = [
                self.backbone.last_states(
                    [prompts[i].ids for i in bucket], [visual for i in bucket for visual in prompts[i].visuals]
                )
                for bucket in found
            ]
        order = torch.tensor([i for row in found for i in row], device=self.device)
        return torch.cat(states)[order.argsort()]

    def read(self, segments: Sequence[Segment], opened: bool = False) -> Prompt:
        """Tokens and pictures of any segments, inside the chat template where there is one; `look_at` comes first.

        `opened`: what they go on from has opened it.
        """
        ids, visuals = [] if opened else list(self._opening), []
        for segment in segments:
            match segment:
                case Text(text):
                    ids += self._text(text)
                case Title(item):
                    ids += self._title(item)
                case Picture(item):
                    visual = self.visual(item)
                    if visual is None:
                        ids += self._text("(no picture)")
                    else:
                        ids += self.backbone.picture_tokens(len(visual.tokens))
                        visuals.append(visual)
        return Prompt([*ids, *self._closing], visuals)

    def there(self, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> Tensor | None:
        """Which modalities some histories have, `(B, 2)` for text and image; None where that changes nothing.

        One that has neither is read as it is, placeholders and all.
        """
        if self.prompt.missing == "placeholder" or len(self.passes) == 1:
            return None
        titles, pictures = catalogue.titles, catalogue.pictures
        seen = self.gallery.visuals if self.gallery is not None and catalogue is self._catalogue else {}
        known = {
            item: (bool(titles[item]), (seen[item] if item in seen else pictures[item]) is not None)
            for item in {item for history in histories for item in history}
        }
        rows = [[any(known[item][view] for item in history) for view in range(2)] for history in histories]
        found = torch.tensor([row if any(row) else [True, True] for row in rows], device=self.device)
        return None if bool(found.all()) else found

    def rest(self, history: Sequence[int], modality: Modality, read: int = 0, tokens: int = 0) -> Prompt:
        """What is left of a history's prompt behind its first `read` items, which took `tokens`; `look_at` comes first.

        Raises:
            InputError: the whole prompt is longer than the backbone's context.
        """
        prompt = self.read(history_prompt(history, modality, self.prompt, read), opened=read > 0)
        if tokens + len(prompt.ids) > self.backbone.context:
            raise InputError(
                f"a prompt of {len(history)} items takes {tokens + len(prompt.ids)} tokens, the backbone reads"
                f" {self.backbone.context}; lower data.max_history, prompt.max_title_tokens or backbone.image_size"
            )
        return prompt

    @property
    def closing(self) -> int:
        """How many tokens close every prompt of a history."""
        return len(self._text(self.prompt.closing)) + len(self._closing)

    def assemble(self, vectors: Tensor, there: Tensor | None = None) -> Views:
        """Fuse the vectors of `prompts`, `(len(passes) * B, D)`, into Views of `(B, D)` (Eq. 2).

        Concatenated, the fused view is `(B, 2 D)`. A view that is not `there` (see that method) is zero, and the fused
        one is what the other view makes of it.
        """
        if len(self.passes) == 1:
            return Views(vectors)
        text, image = vectors.chunk(2)
        if there is not None:
            text, image = text * there[:, :1], image * there[:, 1:]
        fused = fuse(text, image, self.prompt.combine, self.gate)
        if there is not None and self.gate is not None:
            fused = torch.where(there.all(dim=1, keepdim=True), fused, (text + image).float())
        return Views(fused, text, image)

    def look_at(self, catalogue: Catalogue, items: Collection[int]) -> None:
        """Have the visual tokens of every item that is about to be read, until it is called for others.

        Whatever has changed in the catalogue since is looked at anew.
        """
        if catalogue is not self._catalogue:
            self._catalogue, self._titles = catalogue, {}
        if self.gallery is not None:
            self.gallery.look_at(catalogue, items)

    def expect(self, histories: Sequence[Sequence[int]]) -> None:
        """Say which histories will be embedded after the next ones: threads read their pictures meanwhile."""
        if self.gallery is not None:
            self.gallery.expect({item for history in histories for item in history})

    def visual(self, item: int) -> Visual | None:
        """An item's visual tokens, once `look_at` has seen it; None where it has no picture."""
        assert self.gallery is not None
        return self.gallery.visuals[item]

    def mark(self, catalogue: Catalogue, item: int) -> Hashable:
        """What stands for all that a prompt shows of an item: equal as long as its title and picture are."""
        picture = self.gallery.mark(catalogue.pictures, item) if self.gallery is not None else None
        return catalogue.titles[item], picture

    def _check(self, catalogue: Catalogue, histories: Sequence[Sequence[int]]) -> None:
        titles = len(catalogue.titles)
        if self.gallery is not None and len(catalogue.pictures) != titles:
            raise InputError(
                f"the catalogue has {titles:,} titles and {len(catalogue.pictures):,} pictures; give one of each for"
                ' every item, "" and None where it has none'
            )
        check_histories(histories, titles)

    def _text(self, text: str) -> list[int]:
        if text not in self._texts:
            self._texts[text] = self.backbone.tokens(text)
        return self._texts[text]

    def _title(self, item: int) -> list[int]:
        assert self._catalogue is not None
        title = self._catalogue.titles[item]
        if title not in self._titles:
            ids = self.backbone.title_tokens(title or "(no title)")
            self._titles[title] = ids[: self.prompt.max_title_tokens]
        return self._titles[title]


def _buckets(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows in falling order of length, cut where padding would pass a twentieth or the tokens pass `batch_tokens`."""
    buckets: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[buckets[-1][0]] if buckets else 0
        if not buckets or lengths[i] < 0.95 * longest or (len(buckets[-1]) + 1) * longest > batch_tokens:
            buckets.append([])
        buckets[-1].append(i)
    return buckets
