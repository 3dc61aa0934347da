"""Any Hugging Face vision-language or language model, as the encoder needs it.

Families differ in two small things only: the strings around a picture's tokens, and which extra inputs their
forward wants. Both are read here; nothing of transformers is forked.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

import vlm2rec.backbones.efficientnet  # noqa: F401  registers EfficientNet-Lite0 with the Auto classes
from vlm2rec.backbones import attention
from vlm2rec.backbones.hub import locate, shortened
from vlm2rec.backbones.pretrained import FAILURES, load_pretrained, sample_digest
from vlm2rec.backbones.vision import VisionTower, Visual
from vlm2rec.config import BackboneConfig
from vlm2rec.errors import InputError
from vlm2rec.process import world

# What a family's own processor writes before and after a picture's run of image tokens (one tile a picture).
_AROUND_PICTURE = {
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>"),
    "internvl": ("<img>", "</img>"),
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "gemma3": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
}
# Vision towers that attend within windows or pictures of one long row: SDPA would take them one by one.
_WINDOWED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
BUILT_IN = Path(__file__).with_name("nano_checkpoint")
"""`nano`, as `vlm2rec.backbones.nano` builds it."""

_KINDS = ("token_type_ids", "mm_token_type_ids")
_CONTENT = "VLM2REC-CONTENT"


@dataclass(frozen=True)
class Backbone:
    """A loaded model, its tokenizer and, where it has eyes, its vision tower.

    `model` has no language head. `generator` is the same model with its head, weights shared, where that was asked for.
    `digest` is `sample_digest` of the model as it came.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vision: VisionTower | None
    before_picture: tuple[int, ...]
    image_token: int | None
    after_picture: tuple[int, ...]
    generator: PreTrainedModel | None = None
    digest: str = ""

    @property
    def dim(self) -> int:
        """Width D of the embeddings."""
        return int(self.model.config.get_text_config().hidden_size)

    @cached_property
    def context(self) -> int:
        """Longest prompt in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of a prompt; a special token's name in it stands for that token."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def title_tokens(self, title: str) -> list[int]:
        """Token ids of a title, all of it taken as plain words: one that says "<image>" is no picture."""
        return list(self.tokenizer(title, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def picture_tokens(self, count: int) -> list[int]:
        """The run of ids that stands for a picture of `count` visual tokens."""
        if self.image_token is None:
            raise InputError("this backbone has no image token, so it cannot read pictures; use prompt.modalities=text")
        return [*self.before_picture, *[self.image_token] * count, *self.after_picture]

    def wrapper(self, chat: bool) -> tuple[list[int], list[int]]:
        """Ids before and after a prompt: the chat template with its generation prompt, or a bare start token."""
        if chat and self.tokenizer.chat_template:
            content: Any = _CONTENT
            if self.vision is not None and "['type']" in str(self.tokenizer.chat_template):
                content = [{"type": "text", "text": _CONTENT}]
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            before, found, after = str(text).partition(_CONTENT)
            if found:
                return self.tokens(before), self.tokens(after)
        start = self.tokenizer.bos_token_id
        adds_start = start is not None and start in self.tokenizer("")["input_ids"]
        return ([start] if adds_start else []), []

    def last_states(self, ids: Sequence[Sequence[int]], visuals: Sequence[Visual]) -> Tensor:
        """Final-layer state of each row's last token, `(n, D)`, of prompts padded on the right.

        A causal model never looks at the padding behind a row's end, so no attention mask is made and the fast
        attention paths stay open. `visuals` are the pictures of all rows, in reading order.
        """
        states, real = self.states(ids, visuals)
        return states[torch.arange(len(ids), device=states.device), real.sum(1) - 1]

    def states(
        self, ids: Sequence[Sequence[int]], visuals: Sequence[Visual] = (), masked: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Final-layer states of every token, `(n, L, D)`, padded on the right, and which are real, `(n, L)` bool.

        `masked` hands the model an attention mask too: a model that looks both ways needs it, a causal one does not.
        `visuals` are the pictures of all rows, in reading order.
        """
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=self.model.device)
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self.model.device)
        inputs: dict[str, Any] = {"input_ids": padded, "use_cache": False}
        if masked:
            inputs["attention_mask"] = real
        inputs.update(self.kinds(padded))
        if visuals:
            assert self.vision is not None
            inputs.update(self.vision.inputs(visuals))
        states: Tensor = self.model(**inputs).last_hidden_state
        return states, real.bool()

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits `(…, V)` of states `(…, D)`, in their dtype. Needs `load_backbone(…, head=True)`."""
        assert self.generator is not None
        logits: Tensor = self.generator.get_output_embeddings()(states)
        return logits

    def kinds(self, padded: Tensor) -> dict[str, Tensor]:
        """Which tokens are picture: Gemma 3 attends both ways inside one; the Qwen families place it on a grid."""
        if self.image_token is None:
            return {}
        names = [name for name in _KINDS if name in _parameters(self.model)]
        return {name: torch.eq(padded, self.image_token).long() for name in names}


def load_backbone(settings: BackboneConfig, head: bool = False) -> Backbone:
    """Load from a local folder, from the hub, or `nano`, which comes with the package; to the GPU where there is one.

    `head` keeps the language head, for methods that generate text or learn from it.

    Raises:
        InputError: nothing is there, or it is no model that transformers can read.
    """
    path, where = _resolve(settings.path), f"backbone.path = {settings.path!r}"
    try:
        config = AutoConfig.from_pretrained(path)
        kind = _with_head(config) if head else AutoModel
        advice = "the checkpoint is not whole or not of this config; take another copy of it"
        loaded = load_pretrained(kind, path, where, advice, config=config, dtype=_dtype(settings.dtype))
        tokenizer = AutoTokenizer.from_pretrained(path)
    except InputError:
        raise
    except FAILURES as error:
        raise InputError(
            f"{where}: no model could be loaded from it ({shortened(error)});"
            " give the folder of a Hugging Face checkpoint or a hub name; `vlm2rec backbone smol` makes one without"
            " a hub"
        ) from None
    loaded.requires_grad_(False).eval()
    digest = sample_digest(loaded.base_model if head else loaded)
    if settings.sharded and world() > 1:
        from vlm2rec.backbones.sharding import shard

        shard(loaded)
    elif torch.cuda.is_available():
        loaded.cuda()
    _own_attention(loaded)
    model = loaded.base_model if head else loaded
    image_token = getattr(config, "image_token_id", None) if hasattr(config, "vision_config") else None
    vision = VisionTower.load(path, model, settings.image_size) if image_token is not None else None
    before, after = _AROUND_PICTURE.get(config.model_type, ("", ""))
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        vision=vision,
        before_picture=tuple(tokenizer(before, add_special_tokens=False)["input_ids"]),
        image_token=image_token,
        after_picture=tuple(tokenizer(after, add_special_tokens=False)["input_ids"]),
        generator=loaded if head else None,
        digest=digest,
    )


def check_digest(folder: Path, saved: Mapping[str, Any], backbone: Backbone, path: str) -> None:
    """Raise InputError where a model was saved with another backbone than stands at `path` now.

    `saved` is the JSON that was saved with it; that of earlier versions says nothing of its backbone.
    """
    if saved.get("digest", backbone.digest) != backbone.digest:
        raise InputError(
            f"{folder}: was trained on another backbone than backbone.path = {path!r} holds now; put the one it was"
            " trained on there"
        )


def mean_over(states: Tensor, real: Tensor) -> Tensor:
    """Mean over the real tokens: states `(n, L, D)`, real `(n, L)` bool or 0 and 1, means `(n, D)` float32."""
    return (states.float() * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def towers(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Parameters, all and trainable, of the language model, the vision tower and the projector.

    The embedding table of the language model counts to it. Everything whose path names neither a language model
    nor a vision part is the projector's where there is a vision part, else the language model's.
    """
    parts: dict[str, dict[str, int]] = {}
    names = dict(model.named_parameters())
    has_eyes = any(_is_vision(name) for name in names)
    for name, parameter in names.items():
        if _is_projector(name):
            part = "projector"
        elif _is_vision(name):
            part = "vision"
        else:
            part = "language" if not has_eyes or language_path(name) else "projector"
        counts = parts.setdefault(part, {"all": 0, "trainable": 0})
        counts["all"] += parameter.numel()
        counts["trainable"] += parameter.numel() if parameter.requires_grad else 0
    return parts


def language_path(name: str) -> bool:
    """Whether a module path lies in the language model of a vision-language model."""
    return "language_model." in name or "text_model." in name


def _own_attention(model: PreTrainedModel) -> None:
    """Attention that takes rows of many pieces, where the model would use SDPA: it is that, and more."""
    attention.use_kernel(model.device)
    config = model.config
    if config.get_text_config()._attn_implementation == "sdpa":
        config.get_text_config()._attn_implementation = attention.TEXT
    eyes = getattr(config, "vision_config", None)
    if eyes is not None and eyes._attn_implementation == "sdpa" and config.model_type in _WINDOWED:
        eyes._attn_implementation = attention.VISION


def decoder(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.ModuleList]:
    """The language model, without its head, and the list of its layers.

    Raises InputError where there is no such list.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) and isinstance(module[0], GradientCheckpointingLayer)
    ]
    if not found:
        raise InputError(
            f"{type(model).__name__}: its decoder layers cannot be told apart, which backbone.compile,"
            " backbone.sharded and training.gradient_checkpointing=mlp need; leave them out"
        )
    name, layers = next((pair for pair in found if language_path(f"{pair[0]}.")), found[0])
    return model.get_submodule(name.rpartition(".")[0]), layers


def _with_head(config: Any) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def _is_vision(name: str) -> bool:
    return any(part in name for part in ("vision_tower.", "visual.", "vision_model."))


def _is_projector(name: str) -> bool:
    return any(part in name for part in ("multi_modal_projector.", "connector.", "visual.merger.", "deepstack_merger"))


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _dtype(name: str) -> torch.dtype:
    if name == "auto":
        # bfloat16 on a CPU is hundreds of times slower than float32.
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _resolve(path: str) -> str:
    return str(BUILT_IN) if path == "nano" else locate(path, "backbone.path")
