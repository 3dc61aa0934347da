"""Backbones at their published sizes, with random weights, written once to a folder that the project loads by its path.

Sizes are those of the public config.json files: they decide the speed. The tokenizer is made up, since none can be
fetched without a network: a small byte-level BPE with the family's own marks around a picture and a ChatML wrapper with
a system line. It is kept coarse, so that ten titles of the built-in shop take about 200 tokens, as ten real ones do
with a real tokenizer. Its few ids lie in the published vocabulary, whose table keeps its size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_SPECIAL = (
    "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<fake_token_around_image>",
    "<global-img>",
)  # fmt: skip
_WORDS = 420  # of the vocabulary
_WRAPPER = "user\nsystem\nassistant\nYou are a helpful assistant. A shopper bought these products, oldest first:\n"
_CLOSING = "In one word, the shopper's taste is: (no picture)"
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_PROCESSOR = {"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "temporal_patch_size": 2}
_DONE = "preset.json"


@dataclass(frozen=True)
class Preset:
    """A published vision-language model.

    Attributes:
        kind: `model_type` in transformers.
        text: configuration of its language model.
        vision: configuration of its vision tower.
        image_token: what stands in a prompt for one visual token.
        processor: `preprocessor_config.json`.
        side: of a picture in pixels, such that its visual tokens are as many as `history` pictures can have.
        history: items of a history that fit its context.
        more: other parts of its configuration.
    """

    kind: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    image_token: str
    processor: Mapping[str, Any]
    side: int
    history: int = 10
    more: Mapping[str, Any] | None = None

    def config(self, tiny: bool = False) -> hf.PreTrainedConfig:
        """The configuration; `tiny`: as narrow and shallow as the family allows, to try the rest with."""
        ids = {token: number for number, token in enumerate(_SPECIAL)}
        text, vision = dict(self.text), dict(self.vision)
        if tiny:
            text |= {name: value for name, value in _TINY_TEXT.items() if name in text}
            vision |= {name: value for name, value in _TINY_VISION.items() if name in vision}
        marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        more = dict(self.more or {})
        if self.kind.startswith("qwen"):
            more["video_token_id"] = ids["<|video_pad|>"]
            more["vision_start_token_id"] = ids["<|vision_start|>"]
            more["vision_end_token_id"] = ids["<|vision_end|>"]
        return hf.AutoConfig.for_model(
            self.kind, text_config=text | marks, vision_config=vision, image_token_id=ids[self.image_token], **more
        )

    def write(self, folder: Path, texts: list[str], tiny: bool = False) -> Path:
        """The checkpoint in `folder`; one that is there already is left as it is. Weights are drawn on the GPU."""
        made_of = {"kind": self.kind, "text": dict(self.text), "vision": dict(self.vision), "tiny": tiny}
        if (folder / _DONE).exists() and json.loads((folder / _DONE).read_text()) == made_of:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        with torch.device(device):
            model = hf.AutoModel.from_config(self.config(tiny), dtype=torch.float32 if tiny else torch.bfloat16)
        model.save_pretrained(folder)
        _tokenizer(texts, self.image_token).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(self.processor)))
        (folder / _DONE).write_text(json.dumps(made_of))
        return folder


def _tokenizer(texts: list[str], image_token: str) -> hf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words around titles are plain English and tokens of their own; a title's words are two or three each.
    raw.train_from_iterator([*texts, *[_WRAPPER, _CLOSING] * 10 * len(texts)], trainer)
    marks = {"image_token": image_token, "video_token": "<|video_pad|>"}
    if image_token == "<IMG_CONTEXT>":  # names that InternVL's own processor asks for
        marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": image_token}
        marks["video_token"] = "<video>"
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", extra_special_tokens=marks
    )
    made.chat_template = _CHAT
    return made


def _rope(theta: float, sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": sections, **more}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PRESETS: dict[str, Preset] = {
    "qwen2.5-vl-3b": Preset(
        kind="qwen2_5_vl",
        text={
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000,
            "tie_word_embeddings": True, "rope_parameters": _rope(1e6, [16, 24, 24]),
        },
        vision={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token="<|image_pad|>",
        processor={**_QWEN_PROCESSOR, "patch_size": 14},
        side=224,  # 64 tokens
    ),
    "qwen3-vl-2b": Preset(
        kind="qwen3_vl",
        text={
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
            "tie_word_embeddings": True, "rope_parameters": _rope(5e6, [24, 20, 20], mrope_interleaved=True),
        },
        vision={
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
            "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304,
        },
        image_token="<|image_pad|>",
        processor={**_QWEN_PROCESSOR, "patch_size": 16},
        side=256,  # 64 tokens
    ),
    "qwen3-vl-8b": Preset(
        kind="qwen3_vl",
        text={
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
            "tie_word_embeddings": False, "rope_parameters": _rope(5e6, [24, 20, 20], mrope_interleaved=True),
        },
        vision={
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
            "patch_size": 16, "deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304,
        },
        image_token="<|image_pad|>",
        processor={**_QWEN_PROCESSOR, "patch_size": 16},
        side=256,
    ),
    "internvl3-2b": Preset(
        kind="internvl",
        text={
            "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151674,
            "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        vision={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
        },
        image_token="<IMG_CONTEXT>",
        processor={"image_processor_type": "GotOcr2ImageProcessor", "size": _square(448), "crop_to_patches": False},
        side=448,  # 256 tokens
        more={"image_seq_length": 256, "downsample_ratio": 0.5},
    ),
    "llava-1.5-7b": Preset(
        kind="llava",
        text={
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        },
        vision={
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
        },
        image_token="<image>",
        processor={
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "crop_size": _square(336),
        },
        side=336,  # 576 tokens, so no more than six pictures fit the context
        history=6,
        more={"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_seq_length": 576},
    ),
    "smolvlm": Preset(  # SmolVLM2-2.2B; a picture is its one overview tile
        kind="smolvlm",
        text={
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64, "vocab_size": 49280,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        },
        vision={
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 384, "patch_size": 14,
        },
        image_token="<image>",
        processor={
            "image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 1536},
            "max_image_size": {"longest_edge": 384},
        },
        side=384,  # 81 tokens
        more={"scale_factor": 3, "pad_token_id": 0},
    ),
}  # fmt: skip

_TINY_TEXT = {
    "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 1024, "head_dim": 128,
}  # fmt: skip
_TINY_VISION = {
    "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 256,
    "num_hidden_layers": 3, "num_attention_heads": 2, "fullatt_block_indexes": [1], "deepstack_visual_indexes": [0, 1],
}  # fmt: skip
