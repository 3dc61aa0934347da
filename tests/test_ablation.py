"""Every variant of Table 5 goes the whole way: trained, encoded, evaluated, and asked with one side alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from tiny_job import make_config

from vlm2rec import encoder, methods
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.job import run
from vlm2rec.methods.vlm import build_objective
from vlm2rec.objectives import CRTR, WPCL, InfoNCE, Views
from vlm2rec.runs import read_metrics

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_wpcl": ("vlm2rec", {"objective": {"contrast": False}}),
    "no_penalty": ("vlm2rec", {"objective": {"beta": 0}}),
    "no_crtr": ("vlm2rec", {"objective": {"weight": 0}}),
    "constant": ("vlm2rec", {"objective": {"penalty": "constant"}}),
    "detached": ("vlm2rec", {"objective": {"penalty": "detached"}}),
    "sft_modal": ("sft", {"objective": {"modality_weight": 1}}),
    "concat": ("vlm2rec", {"prompt": {"combine": "concat"}}),
    "gated": ("sft", {"prompt": {"combine": "gated"}}),
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llava", tmp_path_factory.mktemp("backbone") / "llava")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_runs_from_training_to_figures(name: str, tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    kind, sections = VARIANTS[name]
    shared = {"training": {"batch_size": 16, "epochs": 1, "samples": "last", "lr": 1e-2}}
    config = make_config(tiny_dataset, llava, kind, **shared, **sections)
    done = run(config, tmp_path / "run", until="evaluate")
    found = done.results()
    assert set(found["dropout"]) == {"f2f", "t2f", "v2f", "t2t", "v2v"}
    assert found["dropout"]["f2f"] == pytest.approx(found["retrieval"]["sampled"]["N@20"], abs=1e-9)
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl", "train")
    assert all(np.isfinite(line["loss"]) for line in logged)
    if name in ("constant", "detached"):
        assert {(line["alpha"], line["beta"]) for line in logged} == {(5.0, 2.0)}, "nothing to learn them from"
    if name == "no_wpcl":
        assert all(line["loss"] == pytest.approx(0.1 * line["crtr"], rel=1e-5) for line in logged)
        assert not {"wpcl", "penalty", "alpha", "beta"} & set(logged[0])
    if name == "no_penalty":
        assert logged[0]["penalty"] == 1
    if name == "concat":
        histories = EmbeddingTable.load(tmp_path / "run" / "histories")
        assert histories["fused"].shape[1] == 2 * histories["text"].shape[1]
    if name == "gated":
        gate = Encoder.load(tmp_path / "run" / "model").gate
        assert gate is not None and float(gate.linear.weight.detach().abs().max()) > 0, "the gate was not trained"
        assert found["cost"]["trainable"]["gate"] == {"all": 2080, "trainable": 2080}
    json.dumps(found, allow_nan=False)


def states(count: int, seed: int) -> Views:
    text, image = torch.randn(2, count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Views(text + image, text, image)


def test_objectives_are_what_the_configuration_says(llava: Path) -> None:
    query, target = states(5, 1), states(7, 2)
    negatives = ~torch.eye(5, 7, dtype=torch.bool)
    infonce, crtr = InfoNCE(0.1), CRTR(1.0)(query, target)  # of the preset `small`, with a weight of .1
    fused, text, image = (infonce(Views(q), Views(t), negatives).item() for q, t in zip(query, target, strict=True))
    wpcl = {kind: WPCL(0.1, 5.0, 2.0, kind=kind)(query, target, negatives).item() for kind in ("adaptive", "constant")}
    expected = {
        "no_wpcl": 0.1 * crtr,
        "no_penalty": fused + 0.1 * crtr,
        "no_crtr": wpcl["adaptive"],
        "constant": wpcl["constant"] + 0.1 * crtr,
        "detached": wpcl["adaptive"] + 0.1 * crtr,
        "sft_modal": fused + text + image,
        "concat": wpcl["adaptive"] + 0.1 * crtr,
        "gated": fused,
    }
    for name, (kind, sections) in VARIANTS.items():
        found = build_objective(make_config(Path("unused"), llava, kind, **sections))(query, target, negatives)
        assert found.item() == pytest.approx(float(expected[name]), rel=1e-12), name
    both = make_config(Path("unused"), llava, objective={"contrast": False, "modality_weight": 3})
    value = build_objective(both)(query, target, negatives).item()
    assert value == pytest.approx(0.1 * float(crtr) + 3 * (text + image), rel=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "llmemb"},
        {"kind": "notellm2"},
        {"kind": "slim", "encoder": "student", "teacher": "template"},
        {"kind": "slim", "encoder": "student", "teacher": "template", "modality": "multimodal", "max_new_tokens": 8},
        {"kind": "vlm_prompt"},
        {"kind": "vlm2rec"},
    ],
)
def test_methods_that_do_not_combine_views_have_no_gate(
    method: dict[str, Any], tiny_dataset: Dataset, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(encoder.Gate):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            made.append(dim)

    monkeypatch.setattr(encoder, "Gate", Counted)
    config = make_config(tiny_dataset, llava, method=method, prompt={"combine": "gated"})
    methods.build(config, Split(tiny_dataset)).check(trained=False)
    assert made == ([32] if method["kind"] == "vlm2rec" else [])
