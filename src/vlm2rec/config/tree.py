"""The whole configuration, and the presets that fill it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from vlm2rec.config.methods import (
    CLIP,
    SLIM,
    Bert,
    GRU4Rec,
    Hybrid,
    ItemKNN,
    Method,
    Pair,
    PopRec,
    Random,
    SASRec,
    Transfer,
    VLM2Rec,
)
from vlm2rec.config.sections import (
    BackboneConfig,
    DataConfig,
    EvaluationConfig,
    MonitorConfig,
    ObjectiveConfig,
    PromptConfig,
    Section,
    SeqRecConfig,
    TrainingConfig,
)

# One set of numbers a name, the same everywhere. Values that a file or `--set` gives win over them.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "objective": {"temperature": 0.1, "crtr_temperature": 0.1, "weight": 0.5, "alpha": 1.0, "beta": 1.0},
        "training": {"lr": 1e-5, "batch_size": 8, "epochs": 3, "samples": "last"},
    },
    "small": {
        "objective": {"temperature": 0.1, "crtr_temperature": 1.0, "weight": 0.1, "alpha": 5.0, "beta": 2.0},
        "training": {"lr": 2e-4, "batch_size": 64, "epochs": 3, "samples": "all"},
    },
}


class Config(Section):
    """One run: one method, one seed."""

    preset: Literal["paper", "small"] = "paper"
    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig
    method: Method = VLM2Rec()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seqrec: SeqRecConfig = SeqRecConfig()

    def checkpoints(self) -> dict[str, str]:
        """The checkpoints that the method loads, without the built-in `nano`: key -> folder or hub name."""
        method = self.method
        match method:
            case PopRec() | ItemKNN() | Random() | SASRec() | GRU4Rec() | Hybrid() | Transfer():
                return {}
            case Bert() | CLIP():
                return {"method.path": method.path}
            case Pair():
                return {"method.text": method.text, "method.image": method.image}
        found = {"backbone.path": self.backbone.path}
        if isinstance(method, SLIM):
            if method.encoder == "bert":
                found["method.text_encoder"] = method.text_encoder
            if method.teacher == "model" and method.teacher_path is not None:
                found["method.teacher_path"] = method.teacher_path
        built_in = ("backbone.path", "method.teacher_path")  # where `nano` stands for it
        return {key: name for key, name in found.items() if not (name == "nano" and key in built_in)}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        filled = {"data": {}, **raw}  # so that what is reported missing is data.path
        for section, values in PRESETS.get(str(raw.get("preset", "paper")), {}).items():
            given = filled.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = {**values, **given}
        return filled

    @model_validator(mode="after")
    def _method_fits_prompt(self) -> "Config":
        kind, objective = self.method.kind, self.objective
        two_views = self.prompt.fusion == "external" and self.prompt.modalities == "both"
        if not two_views:
            needs = "it needs prompt.fusion=external and prompt.modalities=both"
            if kind == "vlm2rec":
                raise ValueError(f"method.kind=vlm2rec compares a text view with an image view, so {needs}")
            if kind == "sft" and objective.modality_weight:
                raise ValueError(
                    f"objective.modality_weight={objective.modality_weight:g} asks for two views, so {needs}"
                )
            if self.prompt.combine in ("concat", "gated"):
                raise ValueError(
                    f"prompt.combine={self.prompt.combine} joins a text view with an image view, so {needs}"
                )
        if not objective.contrast and kind == "sft":
            raise ValueError(
                "objective.contrast=false leaves CRTR alone, which method.kind=sft has not; set it to true"
            )
        if not objective.contrast and kind == "vlm2rec" and not objective.weight:
            raise ValueError(
                "objective.contrast=false leaves CRTR alone, and objective.weight=0 not even it; raise that"
            )
        return self
