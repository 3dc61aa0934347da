"""A finished stage that has lost a file is done again, whatever the manifest says, and so is what stands on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import polars as pl
import pytest
from program import Call, check_refused
from tiny_job import make_config

from vlm2rec.compare import compare
from vlm2rec.config import Config
from vlm2rec.data.dataset import Dataset
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.experiments.schedule import Task
from vlm2rec.job import Job, continue_run, run
from vlm2rec.report.html import write_report
from vlm2rec.runs import Run
from vlm2rec.stages import STAGES

EVERYTHING_BEHIND = ("encode", "evaluate", "seqrec", "report")
ON_FIGURES = ("evaluate", "seqrec", "report")

# Of a trained method: what is lost -> the stages that are done again.
COSTS: dict[str, tuple[str, ...]] = {
    "report.html": ("report",),
    "results.json": ON_FIGURES,
    "users.parquet": ON_FIGURES,
    "modalities.parquet": ON_FIGURES,
    "items": EVERYTHING_BEHIND,
    "items/fused.npy": EVERYTHING_BEHIND,
    "items/ids.json": EVERYTHING_BEHIND,
    "items/manifest.json": EVERYTHING_BEHIND,
    "histories/text.npy": EVERYTHING_BEHIND,
    "reference.json": ("reference", *ON_FIGURES),
    "reference.parquet": ("reference", *ON_FIGURES),
    "model": ("train", *EVERYTHING_BEHIND),
    "model/encoder.json": ("train", *EVERYTHING_BEHIND),
    "model/adapter_config.json": ("train", *EVERYTHING_BEHIND),
    "model/adapter_model.safetensors": ("train", *EVERYTHING_BEHIND),
}


def gone(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def emptied(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def cut_short(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {"gone": gone, "empty": emptied, "cut short": cut_short}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


@pytest.fixture(scope="module")
def configs(tiny_dataset: Dataset, llava: Path) -> dict[str, Config]:
    training = {"epochs": 1, "batch_size": 20}
    seqrec = {"backbones": ["sasrec"], "epochs": 1, "dim": 8, "inner": 8}
    kinds = {"sft": {"training": training, "seqrec": seqrec}, "vanilla": {}, "poprec": {}}
    kinds["sasrec"] = {"seqrec": {"epochs": 1, "dim": 8, "inner": 8}}
    return {kind: make_config(tiny_dataset, llava, kind, **sections) for kind, sections in kinds.items()}


@pytest.fixture(scope="module")
def finished(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("finished")
    return {kind: run(config, root / kind).path for kind, config in configs.items()}


@pytest.fixture
def copied(finished: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return shutil.copytree(finished[kind], tmp_path / kind)

    return copy


def stages_done(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, until: str = "report") -> list[str]:
    """Go on with a run, and say which stages had work to do."""
    worked: list[str] = []
    with monkeypatch.context() as patch:
        for stage in STAGES:
            work = getattr(Job, stage)

            def noted(job: Job, stage: str = stage, work: Any = work) -> Any:
                worked.append(stage)
                return work(job)

            patch.setattr(Job, stage, noted)
        run(config, folder, until=until)
    return worked


def check_as_before(folder: Path, before: Path) -> None:
    """Everything but clocks; seeds are fixed, so what is made again is what was there."""
    first, second = (json.loads((each / "results.json").read_text()) for each in (folder, before))
    for each in (first, second):
        del each["cost"]
        for figures in each["validation"].values():
            if isinstance(figures, dict):
                del figures["seconds"], figures["epoch_seconds"]
    assert first == second
    assert pl.read_parquet(folder / "users.parquet").equals(pl.read_parquet(before / "users.parquet"))
    assert (folder / "report.html").stat().st_size > 1000
    for name in ("items", "histories"):
        if (before / name).exists():
            tables = [EmbeddingTable.load(each / name) for each in (folder, before)]
            for view in tables[1].views:
                np.testing.assert_array_equal(tables[0][view], tables[1][view])
    assert sorted(Run.open(folder).manifest["done"]) == sorted(STAGES)


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        *((lost, "gone") for lost in COSTS),
        *((lost, "cut short") for lost in COSTS if Path(lost).suffix),
        *((lost, "empty") for lost in ("report.html", "users.parquet", "items", "items/fused.npy", "model")),
    ],
)
def test_what_is_lost_is_made_again(
    lost: str, how: str, configs: dict[str, Config], finished: dict[str, Path], copied: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = copied("sft")
    DAMAGES[how](folder / lost)
    assert tuple(stages_done(configs["sft"], folder, monkeypatch)) == COSTS[lost]
    said = [line for line in capsys.readouterr().err.splitlines() if "done again" in line]
    assert len(said) == 1 and said[0].startswith(f"{folder}: {lost}") and f"so {COSTS[lost][0]} is done" in said[0]
    assert all(stage in said[0].partition("stands on it")[2] for stage in COSTS[lost][1:])
    check_as_before(folder, finished["sft"])
    assert stages_done(configs["sft"], folder, monkeypatch) == [], "and then it is done"


@pytest.mark.parametrize(
    ("kind", "lost", "again"),
    [
        ("vanilla", "items/image.npy", ("reference", *ON_FIGURES)),
        ("vanilla", "model/encoder.json", ("train", *EVERYTHING_BEHIND)),
        ("poprec", "users.parquet", ON_FIGURES),
        ("sasrec", "model/model.safetensors", ("train", *EVERYTHING_BEHIND)),
    ],
)
def test_each_method_knows_what_it_leaves(
    kind: str, lost: str, again: tuple[str, ...], configs: dict[str, Config], finished: dict[str, Path],
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = copied(kind)
    (folder / lost).unlink()
    assert tuple(stages_done(configs[kind], folder, monkeypatch)) == again
    check_as_before(folder, finished[kind])


def test_step_0_made_again_does_not_stand_in_for_the_trained_encoder(
    configs: dict[str, Config], finished: dict[str, Path], copied: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Both need an encoder: the backbone as it comes, and what training made of it."""
    folder = copied("sft")
    (folder / "reference.json").unlink()
    shutil.rmtree(folder / "items")
    assert tuple(stages_done(configs["sft"], folder, monkeypatch)) == ("reference", *EVERYTHING_BEHIND)
    check_as_before(folder, finished["sft"])


def test_a_model_trained_anew_takes_nothing_from_the_old_one(
    configs: dict[str, Config], copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither vectors nor the sequential models started from them, whose checkpoints lie in the folder."""
    folder = copied("sft")
    shutil.rmtree(folder / "model")
    monkeypatch.setattr(Job, "encode", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(configs["sft"], folder)
    assert (folder / "model" / "encoder.json").exists()
    assert not (folder / "items").exists() and not (folder / "histories").exists()
    assert not list((folder / "stages").glob("sasrec-*"))
    assert (folder / "results.json").exists(), "figures stay until there are others"
    assert list(Run.open(folder).manifest["done"]) == ["reference", "train"]


def test_only_as_far_as_asked(
    configs: dict[str, Config], finished: dict[str, Path], copied: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = copied("sft")
    (folder / "model" / "adapter_model.safetensors").unlink()
    assert stages_done(configs["sft"], folder, monkeypatch, until="encode") == ["train", "encode"]
    continue_run(folder, until="report")
    check_as_before(folder, finished["sft"])


def test_runs_from_before_there_were_diagnoses_miss_nothing(
    configs: dict[str, Config], copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("sft")
    results = json.loads((folder / "results.json").read_text())
    del results["diagnosis"]
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("modalities.parquet", "reference.parquet"):
        (folder / name).unlink()
    assert stages_done(configs["sft"], folder, monkeypatch) == []


def test_other_data_is_said_before_anything_is_removed(
    configs: dict[str, Config], copied: Callable[[str], Path]
) -> None:
    folder = copied("sft")
    shutil.rmtree(folder / "model")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["fingerprint"] = "other"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other data"):
        run(configs["sft"], folder)
    assert (folder / "items" / "fused.npy").exists()
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_what_runs_share_of_step_0_is_made_again_where_it_is_not_whole(
    configs: dict[str, Config], finished: dict[str, Path], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    run(configs["sft"], tmp_path / "first", shared=shared, until="reference")
    kept = next(path for path in shared.iterdir() if path.is_dir())
    for name in ("items/fused.npy", "reference.parquet"):
        (kept / name).unlink()
        done = run(configs["vanilla"], tmp_path / name.replace("/", "-"), shared=shared).path
        np.testing.assert_array_equal(
            EmbeddingTable.load(done / "items")["fused"], EmbeddingTable.load(finished["vanilla"] / "items")["fused"]
        )


def test_an_experiment_does_not_count_a_run_without_its_figures_as_done(
    configs: dict[str, Config], copied: Callable[[str], Path]
) -> None:
    folder = copied("sft")
    task = Task("sft", configs["sft"], folder, "evaluate")
    assert task.is_done
    cut_short(folder / "users.parquet")
    assert not task.is_done


@pytest.mark.parametrize("how", list(DAMAGES))
@pytest.mark.parametrize("lost", ["results.json", "users.parquet", "manifest.json", "items/fused.npy", "items"])
def test_comparing_and_reporting_what_has_lost_files_is_one_line(
    lost: str, how: str, copied: Callable[[str], Path], tmp_path: Path, call: Call
) -> None:
    folder = copied("sft")
    DAMAGES[how](folder / lost)
    check_refused(call("report", folder, "--out", tmp_path / "page.html"), str(folder), Path(lost).name)
    if "items" not in lost:
        check_refused(call("compare", folder), str(folder), Path(lost).name)
    for reads in (lambda: write_report([folder], tmp_path / "page.html"), lambda: compare([folder])):
        try:
            reads()
        except InputError as error:
            assert "\n" not in str(error)
    assert not (tmp_path / "page.html").exists() or "items" in lost


def test_the_log_is_missed_in_a_report(
    copied: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied("sft")
    (folder / "metrics.jsonl").unlink()
    write_report([folder], tmp_path / "page.html")
    assert "metrics.jsonl is missing" in capsys.readouterr().err
