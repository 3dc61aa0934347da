"""Popularity, item-kNN and chance beside every run: the figures that their own runs would have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_job import make_config

from vlm2rec.compare import compare
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.job import run
from vlm2rec.methods import baselines
from vlm2rec.metrics import summarise

SETS = ("sampled", "matched", "full", "full_unseen")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    shared = folder / ".shared"
    kinds = ("poprec", "itemknn", "random")
    return {
        kind: run(make_config(tiny_dataset, Path("nano"), kind), folder / kind, shared=shared).path for kind in kinds
    }


@pytest.mark.parametrize("kind", ["poprec", "itemknn"])
def test_they_are_what_a_run_of_its_own_finds(runs: dict[str, Path], kind: str) -> None:
    own = pl.read_parquet(runs[kind] / "users.parquet").drop("task")
    for other in runs.values():
        counted = pl.read_parquet(other / "baselines.parquet").filter(pl.col("task") == kind).drop("task")
        assert counted.equals(own)
        assert results(other)["baselines"][kind] == results(runs[kind])["retrieval"]


def test_chance_is_the_expectation_of_whatever_knows_nothing(runs: dict[str, Path], tiny_dataset: Dataset) -> None:
    found = results(runs["poprec"])["baselines"]["chance"]
    split = Split(tiny_dataset)
    for view, others in (("full", split.n_items - 1), ("sampled", None)):
        ranks = pl.read_parquet(runs["random"] / "users.parquet").filter(pl.col("view") == view)
        ties = ranks["candidates"].to_numpy() if others is None else np.full(ranks.height, others)
        assert found[view] == pytest.approx(summarise(np.zeros(len(ties), int), ties.astype(int)))
    # Random numbers come near to it, give or take what forty users leave to chance.
    assert results(runs["random"])["retrieval"]["full"]["N@20"] == pytest.approx(found["full"]["N@20"], abs=0.12)
    assert set(found) == set(SETS)


def test_runs_of_a_folder_count_once(
    runs: dict[str, Path], tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = runs["poprec"].parent / ".shared"
    kept = list(shared.glob("baselines-*.parquet"))
    assert len(kept) == 1

    def refuse(*_: object) -> None:
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr(baselines, "counting_scorer", refuse)
        again = run(make_config(tiny_dataset, Path("nano"), "random", seed=3), tmp_path / "again", shared=shared).path
    assert results(again)["baselines"] == results(runs["poprec"])["baselines"]
    others = make_config(tiny_dataset, Path("nano"), "random", evaluation={"candidate_seed": 1})
    run(others, tmp_path / "other", shared=shared)
    assert len(list(shared.glob("baselines-*.parquet"))) == 2, "other candidates are counted anew"


def test_a_single_run_is_shown_with_them(runs: dict[str, Path]) -> None:
    assert [m.label for m in compare([runs["poprec"]]).rows] == ["chance (exact)", "itemknn (counted)", "poprec"]
    assert [m.label for m in compare(list(runs.values())).rows] == ["random", "poprec", "itemknn"]
    page = (runs["poprec"] / "report.html").read_text()
    assert "item-kNN (counted)" in page and "PopRec (counted)" not in page and "Chance (exact)" in page


def test_a_quick_run_says_so(tiny_dataset: Dataset, tmp_path: Path) -> None:
    folder = run(make_config(tiny_dataset, Path("nano"), "poprec"), tmp_path / "run", quick=True).path
    assert "(quick)" in (folder / "report.html").read_text() and compare([folder]).quick
