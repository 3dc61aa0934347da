"""How large a backbone is and how many tokens it reads of a data set: what the cost of a run follows from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm2rec.config import Config
from vlm2rec.data.splits import Split
from vlm2rec.doctor import memory_of
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.prompts import Modality, passes

_ITEMS_TRIED = 8
_BYTES_IN_BFLOAT16 = 2
_PATCHES_A_TOKEN = 4  # most towers merge 2 x 2 patches into a token


@dataclass(frozen=True)
class Shape:
    """A published language model: layers, width, width of keys, inner width, vocabulary, parameters of its eyes."""

    depth: int
    hidden: int
    keys: int
    inner: int
    vocabulary: int
    vision: float = 0.0

    @property
    def layers(self) -> float:
        """Parameters that every token passes through."""
        return self.depth * (2 * self.hidden**2 + 2 * self.hidden * self.keys + 3 * self.hidden * self.inner)

    def adapters(self, rank: int, attention_only: bool) -> int:
        """Parameters of LoRA on q, k, v, o and, unless `attention_only`, the three projections of the inner layer."""
        ends = 4 * self.hidden + 2 * (self.hidden + self.keys)
        return self.depth * rank * (ends + (0 if attention_only else 3 * (self.hidden + self.inner)))


PUBLISHED = {
    "Qwen2.5-VL-3B": Shape(36, 2048, 256, 11008, 151936, 0.67e9),
    "Qwen2.5-VL-7B": Shape(28, 3584, 512, 18944, 152064, 0.67e9),
    "Qwen2.5-3B": Shape(36, 2048, 256, 11008, 151936),
    "Qwen2.5-7B": Shape(28, 3584, 512, 18944, 152064),
}
"""For plans on machines where the backbone is not: part of its name -> its published shape."""

_FIXED_TOKENS, _TOKENS_A_SLOT = 24.0, 3.0  # the prompt's own words, a number and a line's end
_CHARACTERS_A_TOKEN, _PIXELS_A_TOKEN = 4.0, 28


@dataclass(frozen=True)
class Size:
    """Of a backbone, as one configuration reads one data set.

    Attributes:
        layers: parameters that every token passes through.
        vision: floating-point operations a picture.
        trainable: parameters of the adapters, and of a gate between the modalities.
        gib: weights, and gradients and moments of the adapters.
        fixed: tokens of a prompt without items, for each pass.
        item: tokens an item adds, for each pass.
        assumed: where this was not read off the backbone itself, what was taken instead.
    """

    layers: float
    vision: float
    trainable: int
    gib: float
    fixed: dict[Modality, float]
    item: dict[Modality, float]
    assumed: str = ""

    def tokens(self, items: float) -> float:
        """Tokens of all prompts of a history of so many items."""
        return sum(self.fixed[name] + items * self.item[name] for name in self.fixed)


_known: dict[str, Size] = {}


def size_of(config: Config, split: Split) -> Size:
    """Of a published shape where its name is known, else read off the backbone, which has to be on this machine.

    Raises:
        InputError: it is neither known nor here.
    """
    key = "".join(part.model_dump_json() for part in (config.backbone, config.prompt, config.data))
    if key not in _known:
        shape = next((shape for name, shape in PUBLISHED.items() if name in config.backbone.path), None)
        _known[key] = _read(config, split) if shape is None else _published(shape, config, split)
    return _known[key]


def _read(config: Config, split: Split) -> Size:
    settings = config.backbone
    if settings.path != "nano" and not Path(settings.path).is_dir():
        raise InputError(f"{settings.path} is not on this machine, and its size is not known")
    encoder = Encoder.build(settings, config.prompt)
    encoder.add_lora(settings.lora, config.seed)
    model = encoder.backbone.model
    counts = encoder.towers()
    trainable = sum(tower["trainable"] for tower in counts.values())
    weights, adapters = memory_of(encoder)
    tried = range(min(_ITEMS_TRIED, split.n_items))
    lengths = {}
    for count in (1, 2):  # what a second item adds is what every item adds
        prompts = encoder.prompts(split.dataset, [[item] * count for item in tried])
        ids = np.array([len(prompt.ids) for prompt in prompts]).reshape(len(encoder.passes), -1)
        lengths[count] = ids.mean(axis=1)
    item = lengths[2] - lengths[1]
    tokens = float(item.max()) if encoder.backbone.vision is not None else 0.0
    return Size(
        layers=counts["language"]["all"] - model.get_input_embeddings().weight.numel(),
        vision=2.0 * counts.get("vision", {"all": 0})["all"] * tokens * _PATCHES_A_TOKEN,
        trainable=trainable,
        gib=weights + adapters,
        fixed=dict(zip(encoder.passes, (lengths[1] - item).tolist(), strict=True)),
        item=dict(zip(encoder.passes, item.tolist(), strict=True)),
    )


def _published(shape: Shape, config: Config, split: Split) -> Size:
    settings = config.backbone
    if not shape.vision and config.prompt.modalities != "text":
        raise InputError(f"{settings.path} reads no pictures, but prompt.modalities = {config.prompt.modalities!r}")
    side = settings.image_size or split.dataset.manifest["options"]["picture_size"]
    picture = (side / _PIXELS_A_TOKEN) ** 2
    characters = np.mean([len(title) for title in split.dataset.titles])
    title = min(float(characters) / _CHARACTERS_A_TOKEN, config.prompt.max_title_tokens)
    adds = {"text": title, "image": picture + 2, "both": title + picture + 2}
    names = passes(config.prompt)
    trainable = shape.adapters(settings.lora.rank, settings.lora.targets == "attention")
    if config.prompt.combine == "gated":
        trainable += shape.hidden * (2 * shape.hidden + 1)
    weights = (shape.layers + shape.hidden * shape.vocabulary + shape.vision) * _BYTES_IN_BFLOAT16
    return Size(
        layers=shape.layers,
        vision=2.0 * shape.vision * picture * _PATCHES_A_TOKEN,
        trainable=trainable,
        gib=(weights + 3 * trainable * _BYTES_IN_BFLOAT16) / 2**30,
        fixed=dict.fromkeys(names, _FIXED_TOKENS),
        item={name: adds[name] + _TOKENS_A_SLOT for name in names},
        assumed=f"{Path(settings.path).name} by its published shape, a token for {_CHARACTERS_A_TOKEN:g} characters of"
        f" a title, {picture:.0f} tokens a picture of {side} pixels",
    )
