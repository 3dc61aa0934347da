"""Low-rank adapters (LoRA) on the language model alone.

The projections are found by their path, not by the end of their name: Qwen2.5-VL's vision tower reuses
`gate_proj`, `up_proj` and `down_proj`, so a list of endings would adapt the tower too.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from vlm2rec.backbones.load import Backbone, language_path
from vlm2rec.backbones.lora_linear import lean
from vlm2rec.config import LoraSettings
from vlm2rec.errors import InputError

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
_ALL = (*_ATTENTION, "gate_proj", "up_proj", "down_proj", "gate_up_proj")


def add_lora(backbone: Backbone, settings: LoraSettings, seed: int) -> PeftModel:
    """Put fresh adapters into the backbone, in place; they start as the identity.

    Raises:
        InputError: the language model has none of the projections that LoRA knows.
    """
    endings = _ALL if settings.targets == "all" else _ATTENTION
    targets = [name for name in _language_linears(backbone) if name.rsplit(".", 1)[-1] in endings]
    if not targets:
        raise InputError(f"backbone {backbone.model.config.model_type}: found no projections to adapt with LoRA")
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(backbone.model, config)
    lean(adapted)
    return adapted


def load_lora(backbone: Backbone, folder: Path) -> PeftModel:
    """Put adapters that `PeftModel.save_pretrained` wrote into the backbone, in place."""
    adapted = PeftModel.from_pretrained(backbone.model, str(folder))
    lean(adapted)
    return adapted


def _language_linears(backbone: Backbone) -> list[str]:
    whole = backbone.vision is None  # a language model is nothing but itself
    return [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear) and (whole or language_path(name))
    ]
