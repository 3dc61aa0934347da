"""The configuration of a run: typed, frozen, strict; TOML in, TOML out.

A run is one method and one seed. Every number that changes a result is a field here, so a run directory's
`config.toml` is enough to repeat it. An unknown key is an error that names the key and the nearest right one.
"""

from vlm2rec.config.methods import (
    CLIP,
    SFT,
    SLIM,
    Bert,
    GRU4Rec,
    Hybrid,
    ItemKNN,
    LLM2Rec,
    LLMEmb,
    Method,
    NoteLLM2,
    Pair,
    PopRec,
    Random,
    SASRec,
    Vanilla,
    VLM2Rec,
    VLMPrompt,
)
from vlm2rec.config.reading import config_toml, load_config, override_all, parse_config, parse_override, read_toml
from vlm2rec.config.sections import (
    BackboneConfig,
    DataConfig,
    EvaluationConfig,
    LoraSettings,
    ObjectiveConfig,
    PromptConfig,
    Section,
    SeqRecConfig,
    TrainingConfig,
)
from vlm2rec.config.tree import PRESETS, Config

__all__ = [
    "CLIP",
    "PRESETS",
    "SFT",
    "SLIM",
    "BackboneConfig",
    "Bert",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "GRU4Rec",
    "Hybrid",
    "ItemKNN",
    "LLM2Rec",
    "LLMEmb",
    "LoraSettings",
    "Method",
    "NoteLLM2",
    "ObjectiveConfig",
    "Pair",
    "PopRec",
    "PromptConfig",
    "Random",
    "SASRec",
    "Section",
    "SeqRecConfig",
    "TrainingConfig",
    "VLM2Rec",
    "VLMPrompt",
    "Vanilla",
    "config_toml",
    "load_config",
    "override_all",
    "parse_config",
    "parse_override",
    "read_toml",
]
