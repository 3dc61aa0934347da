"""The rows of the paper's tables: each a few settings laid over one configuration.

A row of one name is one run, whichever tables it stands in.
"""

from dataclasses import replace
from typing import Any

from vlm2rec.experiments.spec import Row


def _row(name: str, label: str, group: str, kind: str, fixed: bool = False, **more: Any) -> Row:
    extra = {key: more.pop(key) for key in ("needs", "given", "data") if key in more}
    method = {"kind": kind, **more.pop("method", {})}
    return Row(name, label, group, {"method": method, **more}, seeded=not fixed, **extra)


def grouped(group: str, *rows: Row) -> tuple[Row, ...]:
    """The same rows under another heading."""
    return tuple(replace(row, group=group) for row in rows)


_TEXT = {"modalities": "text"}
_INTERNAL = {"modalities": "both", "fusion": "internal"}
_EXTERNAL = {"modalities": "both", "fusion": "external"}

SANITY = (
    _row("random", "Random", "Sanity", "random"),
    _row("poprec", "PopRec", "Sanity", "poprec", fixed=True),
    _row("itemknn", "item-kNN", "Sanity", "itemknn", fixed=True),
)

GRU4REC = _row("gru4rec", "GRU4Rec", "Item ids", "gru4rec")
SASREC = _row("sasrec", "SASRec", "Item ids", "sasrec")
IDS = (GRU4REC, SASREC)

BERT = _row("bert", "BERT", "Small encoders", "bert", fixed=True)
CLIP = _row("clip", "CLIP", "Small encoders", "clip", fixed=True)
PAIR = _row(
    "pair", "Text + picture encoder", "Small encoders", "pair", fixed=True, given=("method.text", "method.image")
)
SMALL = (BERT, CLIP, PAIR)

_FOUNDATION = "Foundation models"
LLM_VANILLA = _row("llm_vanilla", "LLM vanilla", _FOUNDATION, "vanilla", fixed=True, prompt=_TEXT)
VANILLA_INT = _row("vlm_vanilla_int", "VLM vanilla (Int.)", _FOUNDATION, "vanilla", fixed=True, prompt=_INTERNAL)
VANILLA = _row("vlm_vanilla_ext", "VLM vanilla (Ext.)", _FOUNDATION, "vanilla", fixed=True, prompt=_EXTERNAL)
LLM_SFT = _row("llm_sft", "LLM SFT", _FOUNDATION, "sft", prompt=_TEXT)
SFT_INT = _row("vlm_sft_int", "VLM SFT (Int.)", _FOUNDATION, "sft", prompt=_INTERNAL)
SFT = _row("vlm_sft_ext", "VLM SFT (Ext.)", _FOUNDATION, "sft", prompt=_EXTERNAL)
FOUNDATION = (LLM_VANILLA, VANILLA_INT, VANILLA, LLM_SFT, SFT_INT, SFT)

_EMBEDDERS = "Recommendation embedders"
LLMEMB = _row("llmemb", "LLMEmb", _EMBEDDERS, "llmemb", prompt=_TEXT)
LLM2REC = _row("llm2rec", "LLM2Rec", _EMBEDDERS, "llm2rec", prompt=_TEXT)
NOTELLM2 = _row("notellm2", "NoteLLM-2", _EMBEDDERS, "notellm2", prompt=_EXTERNAL)
EMBEDDERS = (
    LLMEMB,
    LLM2REC,
    _row("slim", "SLIM", _EMBEDDERS, "slim", prompt=_TEXT, method={"encoder": "bert"}),
    _row("slim_plus", "SLIM+", _EMBEDDERS, "slim", prompt=_TEXT, method={"encoder": "student"}),
    _row("vlm_prompt", "VLM_Prompt", _EMBEDDERS, "vlm_prompt", fixed=True, prompt=_EXTERNAL),
    NOTELLM2,
)

_OURS = "VLM2Rec"
VLM2REC = _row("vlm2rec", "VLM2Rec", _OURS, "vlm2rec", prompt=_EXTERNAL)
HYBRID = _row(
    "hybrid",
    "SASRec + VLM2Rec",
    "Beyond the paper",
    "hybrid",
    needs=("sasrec", "vlm2rec"),
    method={"sequential": "{sasrec}", "embedder": "{vlm2rec}"},
)


def _ours(name: str, label: str, group: str, kind: str = "vlm2rec", prompt: Any = None, **more: Any) -> Row:
    """A variant of VLM2Rec or of SFT on the two prompts of external fusion."""
    return _row(name, label, group, kind, prompt={**_EXTERNAL, **(prompt or {})}, **more)


_ABLATION, _CONTROL, _FUSION = "Ablation", "Beyond the paper: controls", "Fusion"
ABLATION = (
    *grouped(_ABLATION, VLM2REC),
    _ours("no_wpcl", "w/o WPCL", _ABLATION, objective={"contrast": False}),
    _ours("no_penalty", "w/o penalty (InfoNCE + CRTR)", _ABLATION, objective={"beta": 0}),
    _ours("no_stop_gradient", "w/o stop-gradient", _ABLATION, objective={"stop_gradient": False}),
    _ours("no_crtr", "w/o CRTR", _ABLATION, objective={"weight": 0}),
    *grouped(_ABLATION, SFT),
)
CONTROLS = (
    _ours("constant_penalty", "penalty alike for all users", _CONTROL, objective={"penalty": "constant"}),
    _ours("detached_penalty", "penalty without its gradient", _CONTROL, objective={"penalty": "detached"}),
    _ours("sft_modal", "SFT + InfoNCE on each modality", _CONTROL, "sft", objective={"modality_weight": 1}),
    _ours("sft_unit_sum", "SFT, unit vectors summed", _CONTROL, "sft", {"combine": "unit_sum"}),
    _ours("vlm2rec_unit_sum", "VLM2Rec, unit vectors summed", _CONTROL, "vlm2rec", {"combine": "unit_sum"}),
)
FUSION = (
    *grouped(_FUSION, SFT_INT),
    _ours("sft_concat", "SFT, concatenated", _FUSION, "sft", {"combine": "concat"}),
    _ours("sft_gated", "SFT, gated", _FUSION, "sft", {"combine": "gated"}),
    _ours("vlm2rec_concat", "VLM2Rec, concatenated", _FUSION, "vlm2rec", {"combine": "concat"}),
    _ours("vlm2rec_gated", "VLM2Rec, gated", _FUSION, "vlm2rec", {"combine": "gated"}),
)

FEW_SHOT = tuple(
    _ours(f"vlm2rec_k{users}", f"VLM2Rec (K = {users})", "VLM2Rec, few-shot", training={"users": users})
    for users in (64, 128, 256, 512, 1024)
)
"""The paper begins at 128; 64 is for small data sets."""

SWEEPS = {
    key: tuple(
        _ours(f"{name}_{value:g}".replace(".", "p"), f"{label} = {value:g}", label, objective={key: value})
        for value in values
    )
    for key, name, label, values in (
        ("temperature", "tau_wpcl", "τ of WPCL", (0.05, 0.1, 0.5, 1.0)),
        ("crtr_temperature", "tau_crtr", "τ of CRTR", (0.001, 0.01, 0.1, 1.0)),
        ("weight", "lambda", "λ", (0.1, 0.5, 1.0)),
    )
}
"""Key of `objective` -> a row for each value of the paper's grid (Sec. 5.1.1), all else as configured."""

FAMILY = (
    _row("vanilla", "vanilla", "", "vanilla", fixed=True, prompt=_EXTERNAL),
    _row("vlm2rec", "VLM2Rec", "", "vlm2rec", prompt=_EXTERNAL),
)
"""Rows of every backbone that the file names."""


SOURCE = "_source"
"""Ends the name of a row that is trained on the other data set."""


def _from_source(row: Row) -> tuple[Row, Row]:
    """A row trained on the source's data, and the row that brings its encoder here, untrained on the target."""
    source = row.name + SOURCE
    trained = Row(source, f"{row.label}, on the source", "Source", row.settings, seeded=row.seeded, data="source")
    settings = {**row.settings, "method": {"kind": "transfer", "source": f"{{{source}}}"}}
    return trained, Row(f"{row.name}_transfer", row.label, row.group, settings, needs=(source,), seeded=row.seeded)


TRANSFERRED = tuple(_from_source(row) for row in (LLM_SFT, SFT, VLM2REC))


def _without_parts(row: Row) -> Row:
    """The row's encoder once more, evaluated with pictures or titles taken away too."""
    settings = {**row.settings, "evaluation": {"missing": True}}
    if row.seeded:
        settings["method"] = {"kind": "transfer", "source": f"{{{row.name}}}"}
    needs = (row.name,) if row.seeded else ()
    return Row(f"{row.name}_missing", row.label, row.group, settings, needs=needs, seeded=row.seeded)


MISSING = tuple(_without_parts(row) for row in (VANILLA, SFT, VLM2REC))
