"""`vlm2rec diagnose RUN`: what a run keeps for its diagnosis, and what is said of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import families
import numpy as np
import polars as pl
import pytest
from program import Call, check_refused
from scipy import stats
from tiny_job import make_config

from vlm2rec.data.dataset import Dataset
from vlm2rec.diagnostics.describe import STATUS
from vlm2rec.diagnostics.measure import read_users
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.job import diagnose_run, run
from vlm2rec.metrics import ndcg
from vlm2rec.runs import write_json


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs. Not to be written to."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("vanilla", "sft", "poprec"):
        run(make_config(tiny_dataset, llava, kind, training={"epochs": 1}), folder / kind)
    return {path.name: path for path in folder.iterdir()}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_verdict_and_its_evidence(runs: dict[str, Path], call: Call) -> None:
    before, found = stamps(runs["sft"]), results(runs["sft"])["diagnosis"]
    said = call("diagnose", runs["sft"])
    assert said.status == 0 and said.err == ""
    assert said.out.startswith(STATUS[found["status"]]) and all(f"- {line}" in said.out for line in found["verdict"])
    for table in ("Modality dropout", "Geometry on unit vectors", "Neighbours in common"):
        assert table in said.out
    assert "note:" not in said.out
    assert stamps(runs["sft"]) == before, "a run that has its diagnosis is only read"


def test_as_json(runs: dict[str, Path], call: Call) -> None:
    said = call("diagnose", runs["sft"], "--json")
    assert said.status == 0 and said.err == ""
    kept = {name: results(runs["sft"])[name] for name in ("dropout", "geometry", "diagnosis")}
    assert json.loads(said.out) == {**kept, "notes": []}


def test_step_0_is_kept_for_each_user_and_paired(runs: dict[str, Path]) -> None:
    start, now = (read_users(runs["sft"] / f"{name}.parquet") for name in ("reference", "modalities"))
    found = results(runs["sft"])
    assert start is not None and now is not None
    ids = EmbeddingTable.load(runs["sft"] / "histories").ids.tolist()
    assert start["user_id"].to_list() == now["user_id"].to_list() == ids
    for name in ("f2f", "t2f", "v2f", "t2t", "v2v"):
        assert found["reference"]["dropout"][name] == pytest.approx(start[name].mean())
        test = stats.ttest_rel(now[name], start[name]).confidence_interval()
        change = found["diagnosis"]["change"][name]
        assert change["difference"] == pytest.approx(found["dropout"][name] - start[name].mean())
        assert [change["low"], change["high"]] == pytest.approx([test.low, test.high])
    margins = [np.asarray(frame["margin_text"] >= frame["margin_image"]) for frame in (start, now)]
    assert found["diagnosis"]["strong"] == pytest.approx(
        {"text": margins[1].mean(), "users": 40, "flipped": (margins[0] != margins[1]).mean()}
    )


def test_ranks_of_one_sided_queries_are_those_of_the_diagnosis(runs: dict[str, Path]) -> None:
    found, ranks = results(runs["sft"])["diagnosis"], pl.read_parquet(runs["sft"] / "users.parquet")
    for name in ("t2f", "v2f", "t2t", "v2v"):
        rows = ranks.filter((pl.col("task") == f"dropout:{name}") & (pl.col("view") == "sampled"))
        assert rows.height == 40
        gains = ndcg(rows["above"].to_numpy(), rows["ties"].to_numpy(), 20)
        assert gains.mean() == pytest.approx(found["dropout"][name]["N@20"])


def test_before_training_nothing_has_changed(runs: dict[str, Path], call: Call) -> None:
    found = results(runs["vanilla"])["diagnosis"]
    assert "change" not in found and "All is as at step 0: nothing has been trained." in found["verdict"]
    assert "All is as at step 0" in call("diagnose", runs["vanilla"]).out


@pytest.mark.parametrize("kind", ["sft", "vanilla"])
def test_a_run_from_before_there_were_diagnoses(runs: dict[str, Path], call: Call, kind: str, tmp_path: Path) -> None:
    """It is made up for from the tables that the run has, and kept."""
    old = shutil.copytree(runs[kind], tmp_path / "old")
    right = results(old)
    write_json(old / "results.json", {name: value for name, value in right.items() if name != "diagnosis"})
    said = call("diagnose", old)
    assert said.status == 0 and said.out == call("diagnose", runs[kind]).out
    assert results(old) == right


def test_a_run_whose_step_0_knows_no_users(runs: dict[str, Path], tmp_path: Path) -> None:
    old = shutil.copytree(runs["sft"], tmp_path / "old")
    (old / "reference.parquet").unlink()
    write_json(old / "results.json", {k: v for k, v in results(old).items() if k != "diagnosis"})
    found = diagnose_run(old)["diagnosis"]
    assert "change" not in found and "flipped" not in found["strong"]
    assert "There is no step 0 of these users to compare with" in " ".join(found["verdict"])
    assert found["dropout"] == results(runs["sft"])["diagnosis"]["dropout"]


def test_a_run_that_is_not_finished_is_finished_first(
    tiny_dataset: Dataset, llava: Path, call: Call, tmp_path: Path
) -> None:
    run(make_config(tiny_dataset, llava, "vanilla"), tmp_path / "run", until="train")
    said = call("diagnose", tmp_path / "run")
    assert said.status == 0 and "All is as at step 0" in said.out
    assert "diagnosis" in results(tmp_path / "run")


def test_a_method_without_vectors(runs: dict[str, Path], call: Call) -> None:
    check_refused(call("diagnose", runs["poprec"]), str(runs["poprec"]), "poprec has no embeddings")
    check_refused(call("diagnose", runs["poprec"], "--json"), "nothing to diagnose")


def test_what_is_no_run(call: Call, tiny_dataset: Dataset, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, tiny_dataset.path):
        check_refused(call("diagnose", path), str(path), "run")


def test_the_tables_of_a_run_as_files(runs: dict[str, Path], tiny_dataset: Dataset, call: Call) -> None:
    """A run's items, and its histories for users, are files like any other: the same figures but for step 0."""
    items, histories = runs["sft"] / "items", runs["sft"] / "histories"
    asked = ["--text", items, "--image", items, "--sequences", tiny_dataset.path]
    said = call("diagnose", *asked, "--text-users", histories, "--image-users", histories, "--json")
    assert said.status == 0, said.err
    found, right = json.loads(said.out), results(runs["sft"])
    assert found["dropout"] == pytest.approx(right["dropout"], abs=1e-9)
    for name in ("t2t", "v2v"):
        assert found["dropout"][name] == pytest.approx(right["dropout"][name])
    for view in ("text", "image"):
        assert found["geometry"][view] == pytest.approx(right["geometry"][view])
    check_refused(call("diagnose", "--text", runs["sft"], *asked[2:]), f"{runs['sft']}: is a folder, but no embedding")
