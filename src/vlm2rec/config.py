"""The configuration of a run: typed, frozen, strict; TOML in, TOML out.

A run is one method and one seed. Every number that changes a result is a field here, so a run directory's
`config.toml` is enough to repeat it. An unknown key is an error that names the key and the nearest right one.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from vlm2rec.errors import InputError


class Section(BaseModel):
    """A table of the configuration: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which prepared data set, and how much of a history a model sees."""

    path: Path
    max_history: int = Field(10, ge=1)  # last events kept (Sec. 5.1.1)


class LoraSettings(Section):
    """Low-rank adapters on the language model only (Sec. 5.1.1)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    targets: Literal["all", "attention"] = "all"  # all seven projections, or q, k, v, o


class BackboneConfig(Section):
    """A Hugging Face checkpoint (folder or hub name), or `nano`, the built-in one."""

    path: str = "nano"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    image_size: int | None = Field(None, ge=28)  # side in pixels before the image processor; None: as stored
    cache_vision: bool = True  # keep visual tokens: the tower is frozen, so they never change
    lora: LoraSettings = LoraSettings()


class PromptConfig(Section):
    """What the backbone reads (Sec. 2.2.1) and how two views become one (Sec. 2.3)."""

    fusion: Literal["external", "internal"] = "external"
    modalities: Literal["both", "text", "image"] = "both"
    sum: Literal["raw", "unit"] = "raw"  # raw states (Eq. 2), or each view at unit norm first
    max_title_tokens: int = Field(32, ge=1)
    chat: bool = True  # wrap in the tokenizer's chat template, where it has one
    opening: str = "A shopper bought these products, oldest first:\n"
    closing: str = "In one word, the shopper's taste is:"


class ObjectiveConfig(Section):
    """Numbers of Eqs. 3 and 6-14. `alpha` and `beta` are where learning starts."""

    temperature: float = Field(0.1, gt=0)
    crtr_temperature: float = Field(0.1, gt=0)
    weight: float = Field(0.5, ge=0)  # lambda of Eq. 14
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(1.0, ge=0)
    stop_gradient: bool = True


class TrainingConfig(Section):
    """The training loop."""

    users: int | None = Field(None, ge=1)  # few-shot: this many users, drawn from the seed (Table 7)
    samples: Literal["last", "all"] = "last"  # last item of S[:-2], or every prefix of it
    samples_per_user: int | None = Field(None, ge=1)  # at most so many a user and epoch, drawn anew each epoch
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=2)
    micro_batch: int | None = Field(None, ge=1)  # samples at once in memory (GradCache); None: the whole batch
    lr: float = Field(1e-5, gt=0)
    schedule: Literal["linear", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)  # gradient norm
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(50, ge=1)  # steps


class EvaluationConfig(Section):
    """Who is evaluated, against which candidates."""

    users: int | None = Field(None, ge=1)  # test users, drawn from the candidate seed; None: all
    validation_users: int | None = Field(None, ge=1)  # None: all (few-shot: the users trained on)
    candidate_seed: int = 0
    batch_tokens: int = Field(8192, ge=1)  # padded tokens a forward pass when encoding


class Vanilla(Section):
    """The backbone as it comes."""

    kind: Literal["vanilla"] = "vanilla"


class SFT(Section):
    """InfoNCE fine-tuning (Eq. 3)."""

    kind: Literal["sft"] = "sft"


class VLM2Rec(Section):
    """WPCL + CRTR fine-tuning (Eq. 14)."""

    kind: Literal["vlm2rec"] = "vlm2rec"


class PopRec(Section):
    """Rank by how often an item was bought in training."""

    kind: Literal["poprec"] = "poprec"


class ItemKNN(Section):
    """Rank by co-occurrence with the history's items in training."""

    kind: Literal["itemknn"] = "itemknn"


class Random(Section):
    """Rank by lot: what chance alone reaches."""

    kind: Literal["random"] = "random"


Method = Annotated[Vanilla | SFT | VLM2Rec | PopRec | ItemKNN | Random, Field(discriminator="kind")]

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
    seed: int = Field(0, ge=0)
    data: DataConfig
    method: Method = VLM2Rec()
    backbone: BackboneConfig = BackboneConfig()
    prompt: PromptConfig = PromptConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

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
        if self.method.kind == "vlm2rec" and (self.prompt.fusion != "external" or self.prompt.modalities != "both"):
            raise ValueError(
                "method.kind=vlm2rec compares a text view with an image view, so it needs"
                " prompt.fusion=external and prompt.modalities=both"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, lay `section.key=value` overrides over it, and check the whole.

    Raises:
        InputError: the file is missing or no TOML, or a key or a value is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file; `vlm2rec init` writes a commented one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error.__class__.__name__}); give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _set(raw, override)
    return parse_config(raw, origin=str(path))


def parse_config(raw: Mapping[str, Any], origin: str = "config") -> Config:
    """Check a nested mapping. Raises InputError, naming `origin` and the offending key."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {_explain(error.errors()[0])}") from None


def config_toml(config: Config) -> str:
    """The configuration as TOML, every value spelled out; reading it back gives an equal Config."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def parse_override(override: str) -> tuple[list[str], Any]:
    """Split `a.b=value` into its path and its value; the value is read as TOML, else as a bare string."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InputError(f"--set {override}: write it as section.key=value")
    return key.strip().split("."), _value(text.strip())


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(raw: dict[str, Any], override: str) -> None:
    path, value = parse_override(override)
    table = raw
    for depth, key in enumerate(path[:-1]):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override}: {'.'.join(path[: depth + 1])} is a value, not a section")
    table[path[-1]] = value


def _explain(error: ErrorDetails) -> str:
    """One line for the first thing pydantic found."""
    kinds = {"vanilla", "sft", "vlm2rec", "poprec", "itemknn", "random"}
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["method"]:
        del path[1:2]  # the kind, which pydantic puts between the section and the key
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        section = _section(path[:-1])
        near = difflib.get_close_matches(path[-1], section, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known here: {', '.join(section)}"
        return f"unknown key {where}; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; give it in the file or with --set {where}=…"
    if error["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(str(error["input"].get("kind")), kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(kinds))}"
        return f"unknown method.kind {error['input'].get('kind')!r}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message}" if where else message


def _section(path: Sequence[str]) -> list[str]:
    """The keys that are known at a path of the tree."""
    fields = Config.model_fields
    for part in path:
        annotation = fields[part].annotation if part in fields else None
        if part == "method" or not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return ["kind"]
        fields = annotation.model_fields
    return list(fields)
