"""The paper's tables as data: their rows, each a few settings laid over one configuration, and their columns.

To add a table: one more `Experiment`. To add a row: one more `Row`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A row of a table: a method, and what sets it apart from others of its kind.

    Attributes:
        name: names the row on the command line, in files and in folders.
        settings: laid over the experiment's configuration; may hold "{row}" for the folder of another row's run.
        needs: rows whose run of the same seed `settings` names; without them the row is left out.
        given: settings that the configuration has to give, since no default serves every machine.
        seeded: whether a seed changes Task 1. Where it does not, one seed is enough for a table of Task 1.
    """

    name: str
    label: str
    group: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    seeded: bool = True


@dataclass(frozen=True)
class Experiment:
    """A table: rows, and columns as heading -> where `results.json` has the figures, less candidate set and metric."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: Mapping[str, str]
    task2: bool = False
    direct: Mapping[str, str] = field(default_factory=dict)
    """Row -> where its figures stand instead, in every column: rows that no sequential model can start from."""


def _row(name: str, label: str, group: str, kind: str, fixed: bool = False, **more: Any) -> Row:
    extra = {key: more.pop(key) for key in ("needs", "given") if key in more}
    method = {"kind": kind, **more.pop("method", {})}
    return Row(name, label, group, {"method": method, **more}, seeded=not fixed, **extra)


_TEXT = {"modalities": "text"}
_INTERNAL = {"modalities": "both", "fusion": "internal"}
_EXTERNAL = {"modalities": "both", "fusion": "external"}

SANITY = (
    _row("random", "Random", "Sanity", "random"),
    _row("poprec", "PopRec", "Sanity", "poprec", fixed=True),
    _row("itemknn", "item-kNN", "Sanity", "itemknn", fixed=True),
)
IDS = (
    _row("gru4rec", "GRU4Rec", "Item ids", "gru4rec"),
    _row("sasrec", "SASRec", "Item ids", "sasrec"),
)
SMALL = (
    _row("bert", "BERT", "Small encoders", "bert", fixed=True),
    _row("clip", "CLIP", "Small encoders", "clip", fixed=True),
    _row("pair", "Text + picture encoder", "Small encoders", "pair", fixed=True, given=("method.text", "method.image")),
)
FOUNDATION = (
    _row("llm_vanilla", "LLM vanilla", "Foundation models", "vanilla", fixed=True, prompt=_TEXT),
    _row("vlm_vanilla_int", "VLM vanilla (Int.)", "Foundation models", "vanilla", fixed=True, prompt=_INTERNAL),
    _row("vlm_vanilla_ext", "VLM vanilla (Ext.)", "Foundation models", "vanilla", fixed=True, prompt=_EXTERNAL),
    _row("llm_sft", "LLM SFT", "Foundation models", "sft", prompt=_TEXT),
    _row("vlm_sft_int", "VLM SFT (Int.)", "Foundation models", "sft", prompt=_INTERNAL),
    _row("vlm_sft_ext", "VLM SFT (Ext.)", "Foundation models", "sft", prompt=_EXTERNAL),
)
EMBEDDERS = (
    _row("llmemb", "LLMEmb", "Recommendation embedders", "llmemb", prompt=_TEXT),
    _row("llm2rec", "LLM2Rec", "Recommendation embedders", "llm2rec", prompt=_TEXT),
    _row("slim", "SLIM", "Recommendation embedders", "slim", prompt=_TEXT, method={"encoder": "bert"}),
    _row("slim_plus", "SLIM+", "Recommendation embedders", "slim", prompt=_TEXT, method={"encoder": "student"}),
    _row("vlm_prompt", "VLM_Prompt", "Recommendation embedders", "vlm_prompt", fixed=True, prompt=_EXTERNAL),
    _row("notellm2", "NoteLLM-2", "Recommendation embedders", "notellm2", prompt=_EXTERNAL),
)
OURS = (_row("vlm2rec", "VLM2Rec", "VLM2Rec", "vlm2rec", prompt=_EXTERNAL),)
HYBRID = (
    _row(
        "hybrid",
        "SASRec + VLM2Rec",
        "Beyond the paper",
        "hybrid",
        needs=("sasrec", "vlm2rec"),
        method={"sequential": "{sasrec}", "embedder": "{vlm2rec}"},
    ),
)

REFERENCE = "vlm2rec"
"""The row that every other is tested against."""

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "table2",
            "Task 1, direct recommendation",
            (*SANITY, *IDS, *SMALL, *FOUNDATION, *EMBEDDERS, *OURS, *HYBRID),
            {"": "retrieval"},
        ),
        Experiment(
            "table4",
            "Task 2, sequential models started from item vectors",
            (*SANITY, *IDS, *SMALL, *FOUNDATION, *EMBEDDERS, *OURS),
            {"GRU4Rec": "seqrec.gru4rec", "SASRec": "seqrec.sasrec"},
            task2=True,
            direct={row.name: "retrieval" for row in SANITY},
        ),
    )
}
