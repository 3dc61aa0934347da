"""Zero-shot transfer: the source's encoder as it is, whatever the configuration says of backbone and prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_tables, write_pictures
from families import build
from test_seqrec import SMALL
from tiny_job import raw_config

from vlm2rec.compare import compare
from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, run
from vlm2rec.methods import build as build_method

VIEWS = ("fused", "text", "image")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    for family in ("llava", "smolvlm"):
        build(family, folder / family)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another catalogue and other users: 30 items, 25 users."""
    folder = tmp_path_factory.mktemp("other")
    items, interactions = tiny_tables(users=25, items=30)
    write_pictures(folder / "raw" / "images", items["image"].to_list())
    items.with_columns(title=pl.lit("Other ") + pl.col("title").str.reverse()).write_parquet(
        folder / "raw/items.parquet"
    )
    interactions.write_parquet(folder / "raw/interactions.parquet")
    return prepare(Local(folder / "raw"), folder / "data", picture_size=32, k_core=0)


@pytest.fixture(scope="module")
def sources(tiny_dataset: Dataset, backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of VLM2Rec with a gate and a prompt of its own, one of vanilla, and one of SFT on titles alone."""
    folder = tmp_path_factory.mktemp("sources")
    prompts: dict[str, dict[str, Any]] = {
        "vlm2rec": {"combine": "gated", "opening": "Taken, in turn:"},
        "vanilla": {},
        "sft": {"modalities": "text"},
    }
    for kind, prompt in prompts.items():
        raw = raw_config(
            tiny_dataset, backbones / "llava", kind, prompt=prompt, monitor={"probes": 0}, training={"epochs": 1}
        )
        run(parse_config(raw), folder / kind)
    return {kind: folder / kind for kind in prompts}


def transfer(dataset: Dataset, backbones: Path, source: Path, /, **sections: Any) -> Config:
    """On another backbone than any source's, which must not matter."""
    method = {"kind": "transfer", "source": str(source)}
    return parse_config(raw_config(dataset, backbones / "smolvlm", method=method, **sections))


@pytest.mark.parametrize("kind", ["vlm2rec", "vanilla", "sft"])
def test_onto_the_same_data_it_is_the_run_itself(
    tiny_dataset: Dataset, backbones: Path, sources: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    done = run(transfer(tiny_dataset, backbones, sources[kind], prompt={"combine": "concat"}), tmp_path / "run")
    for table in ("items", "histories"):
        own, there = (EmbeddingTable.load(folder / table) for folder in (done.path, sources[kind]))
        assert own.ids.tolist() == there.ids.tolist() and own.views.keys() == there.views.keys()
        for view in own.views:
            np.testing.assert_allclose(own[view], there[view], atol=1e-6)
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (done.path, sources[kind]))
    assert found["method"] == "transfer"
    for part in ("retrieval", "dropout", "cold"):
        assert found[part] == expected[part]
    assert done.manifest["source"]["same_data"] is True and done.manifest["source"]["method"] == kind
    assert not (done.path / "model").exists() and "reference" not in found


def test_on_other_data_items_and_histories_are_the_targets(
    tiny_dataset: Dataset, other: Dataset, backbones: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    """Both tasks, in two goes as after a kill; the encoder is asked about the other shop's products by hand."""
    numbers = {**SMALL.model_dump(mode="json"), "backbones": ["sasrec"]}
    config = transfer(other, backbones, sources["vlm2rec"], seqrec=numbers, data={"max_history": 4})
    run(config, tmp_path / "run", until="encode")
    done = continue_run(tmp_path / "run", until="report")
    split, encoder = Split(other, 4), Encoder.load(sources["vlm2rec"] / "model")
    users = range(split.n_users)
    expected = {
        "items": encoder.items(other, range(split.n_items)),
        "histories": encoder.histories(other, [split.history(user, "test").tolist() for user in users]),
    }
    for name, views in expected.items():
        table = EmbeddingTable.load(done.path / name)
        for view, vectors in zip(VIEWS, views, strict=True):
            assert vectors is not None
            np.testing.assert_allclose(table[view], vectors.detach(), atol=1e-5)
    results = done.results()
    assert results["data"]["items"] == 30 and set(results["cold"]) == {"retrieval", "sasrec"}
    assert 0 < results["seqrec"]["sasrec"]["sampled"]["N@20"] < 1
    source = done.manifest["source"]
    assert source["same_data"] is False and source["data"]["fingerprint"] == tiny_dataset.fingerprint
    assert (done.path / "report.html").exists() and compare([done.path]).methods[0].label == "transfer"


def test_validation_histories_are_those_before_the_last_but_one(
    other: Dataset, backbones: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    config, split = transfer(other, backbones, sources["vanilla"]), Split(other, 10)
    done = run(config, tmp_path / "run", until="encode")
    users = np.array([3, 1])
    scorer = build_method(config, split).scorer(done, users, "validation")
    encoder = Encoder.load(sources["vanilla"] / "model")
    queries = encoder.histories(other, [other.sequences[user][:-2][-10:].tolist() for user in users]).fused
    items = encoder.items(other, range(split.n_items)).fused
    cosines = torch.cosine_similarity(queries.detach()[:, None], items.detach()[None], dim=-1)
    np.testing.assert_allclose(scorer.scores(np.arange(2)), cosines, atol=1e-5)


def test_sources_that_cannot_be_used_are_one_line(
    tiny_dataset: Dataset, other: Dataset, backbones: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    def refused(message: str, source: Path, dataset: Dataset = other) -> None:
        with pytest.raises(InputError, match=message) as caught:
            run(transfer(dataset, backbones, source), tmp_path / "run")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()

    refused("no run directory", tmp_path / "nowhere")
    run(parse_config(raw_config(other, backbones / "llava", "poprec")), tmp_path / "poprec")
    refused(r"method\.source = .*is a run of poprec; give one of vanilla, sft, vlm2rec", tmp_path / "poprec")
    vanilla = raw_config(other, backbones / "llava", "vanilla")
    run(parse_config(vanilla), tmp_path / "half", until="reference")
    refused(r"is not trained; finish it with `vlm2rec run`", tmp_path / "half")
    chained = run(transfer(other, backbones, sources["vanilla"]), tmp_path / "chained", until="encode")
    refused("is a run of transfer", chained.path)
    raw = tmp_path / "raw"
    raw.mkdir()
    items, interactions = tiny_tables()
    items.drop("image").write_parquet(raw / "items.parquet")
    interactions.write_parquet(raw / "interactions.parquet")
    blind = prepare(Local(raw), tmp_path / "blind", require=["title"])
    refused(
        "has no pictures, which the prompts of .*vanilla need; take a source that reads titles",
        sources["vanilla"],
        blind,
    )
    assert run(transfer(blind, backbones, sources["sft"]), tmp_path / "titles").results()["retrieval"]


def test_prompts_that_do_not_fit_the_source_are_refused(
    other: Dataset, backbones: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    """The source's context, made short, decides; the configuration's own backbone would read them."""
    short = tmp_path / "llava"
    shutil.copytree(backbones / "llava", short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 60
    (short / "config.json").write_text(json.dumps(config))
    source = tmp_path / "source"
    shutil.copytree(sources["sft"], source)
    saved = json.loads((source / "model" / "encoder.json").read_text())
    saved["backbone"]["path"] = str(short)
    (source / "model" / "encoder.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"takes \d+ tokens, the backbone reads 60") as caught:
        run(transfer(other, backbones, source), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
