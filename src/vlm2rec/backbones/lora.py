"""Low-rank adapters (LoRA) on the language model alone.

The projections are found by their path, not by the end of their name: Qwen2.5-VL's vision tower reuses
`gate_proj`, `up_proj` and `down_proj`, so a list of endings would adapt the tower too.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from vlm2rec.backbones.hub import shortened
from vlm2rec.backbones.load import Backbone, language_path
from vlm2rec.backbones.lora_linear import lean
from vlm2rec.config import LoraSettings
from vlm2rec.damage import RESTORE, TENSORS, damage, listing
from vlm2rec.errors import InputError
from vlm2rec.weights import read_weights

ADAPTERS = "adapter_model.safetensors"
_SETTINGS = "adapter_config.json"
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


def save_lora(adapter: PeftModel, folder: Path) -> dict[str, dict[str, str]]:
    """Write adapters into a folder, PEFT's own files; what `damage.TENSORS` keeps of them."""
    adapter.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    return {ADAPTERS: listing(_tensors(adapter))}


def check_saved(path: Path, saved: Mapping[str, Any]) -> bool:
    """Whether a saved model has adapters, found out before its backbone is read.

    Models of earlier versions list no tensors: those have adapters that hold some, or lie in a run that trained some.

    Args:
        path: the model's JSON file; the weights lie beside it.
        saved: what stands in it.

    Raises:
        InputError: weights that it lists are gone, damaged or others, or there are adapters that it does not list.
    """
    folder, listed = path.parent, saved.get(TENSORS)
    there = any((folder / name).exists() for name in (_SETTINGS, ADAPTERS))
    if listed is None:
        return there or _trained_adapters(folder.parent / "manifest.json")
    if found := damage(path):
        raise InputError(f"{folder}: {found}; {RESTORE}")
    if there and ADAPTERS not in listed:
        raise InputError(f"{folder}: has adapters that {path.name} does not list; take them away, or take another copy")
    return ADAPTERS in listed


def _trained_adapters(manifest: Path) -> bool:
    """Whether a file is the manifest of a run whose training had adapters; how many numbers they have is kept there."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return "train" in content["done"] and any(part["trainable"] for part in content["trainable"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def load_lora(backbone: Backbone, folder: Path) -> PeftModel:
    """Put adapters that `save_lora` wrote into the backbone, in place.

    PEFT itself passes over tensors that are missing or that it does not know, which leaves the bare backbone.

    Raises:
        InputError: a file is gone or damaged, or the adapters are not exactly those of this backbone.
    """
    if not (folder / _SETTINGS).is_file():
        raise InputError(f"{folder / _SETTINGS}: no such file, which says where the adapters belong; {RESTORE}")
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel(backbone.model, config)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder / _SETTINGS}: does not fit {backbone.model.name_or_path} ({shortened(error)}); {RESTORE}"
        ) from None
    advice = f"they must be those of the backbone they were trained on; {RESTORE}"
    weights = read_weights(folder / ADAPTERS, listing(_tensors(adapted)), advice)
    set_peft_model_state_dict(adapted, weights)
    lean(adapted)
    return adapted


def _tensors(adapter: PeftModel) -> dict[str, torch.Tensor]:
    """The adapters' weights under the names that PEFT saves them by."""
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    return found


def _language_linears(backbone: Backbone) -> list[str]:
    whole = backbone.vision is None  # a language model is nothing but itself
    return [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear) and (whole or language_path(name))
    ]
