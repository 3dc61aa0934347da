"""The tables of a configuration that every method reads."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A table of the configuration: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LeaveOneOut(Section):
    """Of each user's events the last is the test target, the one before it the validation target (Sec. 5.1.1)."""

    kind: Literal["leave_one_out"] = "leave_one_out"
    domain: str | None = None  # of a pair of data sets: both targets are the user's last events in this one


class TimeSplit(Section):
    """Two cut-offs for everybody: training ends before the first, test targets lie at or after the second."""

    kind: Literal["time"] = "time"
    # A share of all events (the last tenth is tested, the tenth before it validates), or the cut-off itself: a date
    # (UTC), or a number as the data set's times have it.
    validation: int | float | str = 0.1
    test: int | float | str = 0.1
    target: Literal["last", "first"] = "last"  # which of a user's events behind the cut-off is to be found

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _share_or_time(cls, given: Any) -> Any:
        if isinstance(given, date):  # as TOML has it; a datetime is one too
            return given.isoformat()
        if isinstance(given, str):
            try:
                datetime.fromisoformat(given)
            except ValueError:
                raise ValueError("is no date; write it as 2014-05-01, or give a share below 1") from None
        elif isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
            raise ValueError("give a share above 0 and below 1, a date as 2014-05-01, or a time as the data has it")
        return given

    @model_validator(mode="after")
    def _leaves_something(self) -> "TimeSplit":
        shares = [given for given in (self.validation, self.test) if not isinstance(given, str) and given < 1]
        if sum(shares) >= 1:
            raise ValueError("data.split.validation and data.split.test leave nothing to train on; lower them")
        return self


class ColdItems(Section):
    """Some items are hidden from training and from histories; the targets are events of these."""

    kind: Literal["cold_items"] = "cold_items"
    validation: float = Field(0.1, gt=0, lt=1)  # share of the items
    test: float = Field(0.1, gt=0, lt=1)
    items: Literal["random", "newest"] = "random"  # by lot, or those that came last (then test's after validation's)
    seed: int = Field(0, ge=0)  # of the lot

    @model_validator(mode="after")
    def _leaves_something(self) -> "ColdItems":
        if self.validation + self.test >= 1:
            raise ValueError("data.split.validation and data.split.test leave no item to train on; lower them")
        return self


SplitConfig = Annotated[LeaveOneOut | TimeSplit | ColdItems, Field(discriminator="kind")]

SPLITS: dict[str, type[Section]] = {
    member.model_fields["kind"].default: member for member in get_args(get_args(SplitConfig)[0])
}
"""Kind -> class."""


class DataConfig(Section):
    """Which prepared data set, how much of a history a model sees, and what is held out."""

    path: Path
    max_history: int = Field(10, ge=1)  # last events kept (Sec. 5.1.1)
    split: SplitConfig = LeaveOneOut()

    @field_validator("split", mode="before")
    @classmethod
    def _of_the_usual_kind(cls, given: Any) -> Any:
        return {"kind": "leave_one_out", **given} if isinstance(given, dict) else given


class LoraSettings(Section):
    """Low-rank adapters on the language model only (Sec. 5.1.1)."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    targets: Literal["all", "attention"] = "all"  # all seven projections, or q, k, v, o


class BackboneConfig(Section):
    """A Hugging Face checkpoint (folder or hub name), or `nano`, the built-in one of the drawn shop."""

    path: str = "nano"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    image_size: int | None = Field(None, ge=28)  # side in pixels before the image processor; None: as stored
    # The language model's layers through torch.compile, but for what training.gradient_checkpointing computes again:
    # minutes at the start, faster on a GPU.
    compile: bool = False
    sharded: bool = False  # several processes: each GPU keeps a part of the language model's layers (FSDP), not all
    cache_vision: bool = True  # keep visual tokens: the tower is frozen, so they never change
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _one_of_both(self) -> "BackboneConfig":
        if self.compile and self.sharded:
            raise ValueError("backbone.compile=true and backbone.sharded=true do not go together; leave one out")
        return self


class PromptConfig(Section):
    """What the backbone reads (Sec. 2.2.1) and how two views become one (Sec. 2.3)."""

    fusion: Literal["external", "internal"] = "external"
    modalities: Literal["both", "text", "image"] = "both"
    # External fusion: raw states summed (Eq. 2), unit vectors summed, both side by side, or a learned gate.
    combine: Literal["sum", "unit_sum", "concat", "gated"] = "sum"
    # External fusion of an item without title or picture: the pass reads "(no picture)" all the same, or its vector is
    # left out, or, in a catalogue, that of the most similar item stands in for it. Histories leave it out then too.
    missing: Literal["placeholder", "drop", "borrow"] = "borrow"
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
    # Controls of Table 5: w without its gradient, or the batch's mean w for all; no WPCL, CRTR alone; an InfoNCE on
    # each modality besides, so weighted.
    penalty: Literal["adaptive", "detached", "constant"] = "adaptive"
    contrast: bool = True
    modality_weight: float = Field(0.0, ge=0)
    logq: bool = False  # take the log of each target's popularity off its logit: batches draw items by popularity


class TrainingConfig(Section):
    """The training loop."""

    users: int | None = Field(None, ge=1)  # few-shot: this many users, drawn from the seed (Table 7)
    samples: Literal["last", "all"] = "last"  # last item of S[:-2], or every prefix of it
    samples_per_user: int | None = Field(None, ge=1)  # at most so many a user and epoch, drawn anew each epoch
    # Each prefix by lot, or all prefixes of a window in one batch, where they are branches of one prompt, read once.
    # A user's first window gives the histories of "separate"; each later one asks for its last half, so histories
    # there are more than half of data.max_history items long instead of all of it. A window's samples share a batch.
    prefixes: Literal["separate", "branched"] = "separate"
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=2)  # samples: (history, next item) pairs
    micro_batch: int | None = Field(None, ge=1)  # samples at once in memory (GradCache); None: the whole batch
    lr: float = Field(1e-5, gt=0)
    schedule: Literal["linear", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1)  # share of all steps
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)  # gradient norm
    # Throw activations away and compute them again: of whole layers (true), or of their feed-forward parts ("mlp").
    gradient_checkpointing: bool | Literal["mlp"] = False
    checkpoint_every: int = Field(50, ge=1)  # steps

    @field_validator("prefixes")
    @classmethod
    def _has_prefixes_to_share(cls, prefixes: str, info: ValidationInfo) -> str:
        if prefixes == "branched" and info.data.get("samples") == "last":
            raise ValueError("training.samples=last has one prefix a user, so none to share; set training.samples=all")
        return prefixes


class MonitorConfig(Section):
    """How SFT and VLM2Rec are watched while they train: gradients of both modalities, and what each still finds."""

    # Steps to look at: before the first, after the last, and log-spaced between them; 0 is none. None: 10, or fewer
    # where they would take more than about an eighth of the training. Never more than one in four steps.
    probes: int | None = Field(None, ge=0)
    users: int = Field(128, ge=2)  # of the validation users
    gradients: bool = True  # what Fig. 1b shows; the dearer half of a probe where batches are large
    stop: bool = False  # end training after the second probe in a row at which a modality lies below its start

    @model_validator(mode="after")
    def _can_compare(self) -> "MonitorConfig":
        if self.probes == 1:
            raise ValueError("monitor.probes = 1: one look shows no change; set 0, or 2 and more")
        if self.stop and self.probes == 0:
            raise ValueError(
                "monitor.stop=true needs probes to go by; set monitor.probes to 3 or more, or leave it out"
            )
        return self


class EvaluationConfig(Section):
    """Who is evaluated, against which candidates."""

    users: int | None = Field(None, ge=1)  # test users, drawn from the candidate seed; None: all
    validation_users: int | None = Field(None, ge=1)  # None: all (few-shot: the users trained on)
    candidate_seed: int = 0
    missing: bool = False  # measure too what is found where titles or pictures are missing (vanilla, sft, vlm2rec)
    batch_tokens: int = Field(8192, ge=1)  # about so many tokens a forward pass


class SeqRecConfig(Section):
    """Task 2: sequential models (Sec. 5.1.3). What stands here holds for the ID rows too."""

    backbones: tuple[Literal["sasrec", "gru4rec"], ...] = ()  # started from the method's item vectors
    dim: int = Field(128, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    inner: int = Field(256, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    loss: Literal["ce", "bce"] = "ce"
    targets: Literal["windows", "last"] = "windows"  # every position of every window of S[:-2], or the last position
    table: Literal["frozen", "tuned"] = "frozen"  # whether the vectors that a table starts from are trained too
    norm: Literal["auto", "l2", "standardize", "none"] = "auto"  # of those vectors; auto: the better on validation
    # Several: the best on validation is kept. None: each model's own.
    lr: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, min_length=1)
    batch_size: int = Field(256, ge=1)
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(5.0, gt=0)  # gradient norm
    epochs: int = Field(200, ge=1)
    patience: int = Field(10, ge=1)  # epochs without a better validation N@20

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "SeqRecConfig":
        if self.dim % self.heads:
            raise ValueError(f"seqrec.dim = {self.dim} is not a multiple of seqrec.heads = {self.heads}")
        return self
