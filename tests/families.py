"""Tiny random checkpoints of every supported family, in Hugging Face layout: real architectures, no downloads."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL = [
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<fake_token_around_image>", "<global-img>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>",
]  # fmt: skip
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def tokenizer() -> hf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["a red lamp and a blue mug, a shopper bought these products"], trainer)
    made = hf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def _qwen2_vl(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    text = {**_TEXT, "vocab_size": vocab, "rope_parameters": {**_MROPE}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **_qwen_ids(ids))
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [1], "window_size": 56, "patch_size": 14,
    }  # fmt: skip
    text = {**_TEXT, "vocab_size": vocab, "rope_parameters": {**_MROPE}}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_ids(ids))
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "deepstack_visual_indexes": [0, 1], "patch_size": 14, "num_position_embeddings": 64,
    }  # fmt: skip
    rope = {**_MROPE, "mrope_interleaved": True}
    text = {**_TEXT, "vocab_size": vocab, "head_dim": 8, "rope_parameters": rope}
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(ids))
    return hf.Qwen3VLForConditionalGeneration(config)


def _internvl(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [56, 56], "patch_size": [14, 14],
    }  # fmt: skip
    config = hf.InternVLConfig(
        text_config={**_TEXT, "vocab_size": vocab, "model_type": "qwen2"},
        vision_config=vision,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config)


def _llava(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    config = hf.LlavaConfig(
        text_config={**_TEXT, "vocab_size": vocab, "model_type": "llama"},
        vision_config=vision,
        image_token_id=ids["<image>"],
    )
    return hf.LlavaForConditionalGeneration(config)


def _smolvlm(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    config = hf.SmolVLMConfig(
        text_config={**_TEXT, "vocab_size": vocab, "model_type": "llama"},
        vision_config=vision,
        scale_factor=2,
        image_token_id=ids["<image>"],
        pad_token_id=0,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def _gemma3(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    config = hf.Gemma3Config(
        text_config={
            **_TEXT,
            "vocab_size": vocab,
            "head_dim": 8,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_id=ids["<image_soft_token>"],
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _qwen2(vocab: int, ids: dict[str, int]) -> hf.PreTrainedModel:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**{**_TEXT, "vocab_size": vocab}))


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


_SIDE = {"height": 56, "width": 56}
_QWEN_PROCESSOR = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
FAMILIES: dict[str, tuple[Callable[[int, dict[str, int]], hf.PreTrainedModel], str | None, dict[str, object]]] = {
    "qwen2_vl": (_qwen2_vl, "Qwen2VLImageProcessor", _QWEN_PROCESSOR),
    "qwen2_5_vl": (_qwen2_5_vl, "Qwen2VLImageProcessor", _QWEN_PROCESSOR),
    "qwen3_vl": (_qwen3_vl, "Qwen2VLImageProcessor", _QWEN_PROCESSOR),
    "internvl": (_internvl, "GotOcr2ImageProcessor", {"size": _SIDE, "crop_to_patches": True}),
    "llava": (_llava, "CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": _SIDE}),
    "smolvlm": (
        _smolvlm, "SmolVLMImageProcessor", {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}},
    ),
    "gemma3": (_gemma3, "Gemma3ImageProcessor", {"size": _SIDE}),
    "qwen2": (_qwen2, None, {}),
}  # fmt: skip


def build(family: str, folder: Path) -> Path:
    """Write a tiny random checkpoint of a family; weights depend on the family's name only."""
    make, processor, settings = FAMILIES[family]
    words = tokenizer()
    torch.manual_seed(len(family))
    model = make(len(words), words.get_vocab()).eval()
    with torch.no_grad():  # wider than the usual .02, so that inputs show in the output of so small a model
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projector starts at zero: it would see nothing
                parameter.normal_(std=0.1)
            elif parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": processor, **settings}))
    return folder


@dataclass
class Shelf:
    """A catalogue in memory."""

    titles: list[str]
    pictures: list[np.ndarray | None]


@torch.no_grad()
def wake(module: torch.nn.Module, std: float = 1.0) -> None:
    """Fresh adapters change nothing: draw what keeps them silent, so that a mistake in them shows."""
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=std)
