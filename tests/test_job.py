"""The main job from end to end, on a tiny random LLaVA and forty users."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import make_config, raw_config, without_clock, write_config

from vlm2rec.config import LoraSettings, load_config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, find_runs, run, sweep
from vlm2rec.methods.vlm import build_encoder
from vlm2rec.metrics import METRICS, summarise
from vlm2rec.objectives import InfoNCE
from vlm2rec.runs import Run, metrics_lines, read_metrics
from vlm2rec.tasks import CANDIDATE_SETS
from vlm2rec.training.batches import Samples
from vlm2rec.training.gradcache import backward_in_parts


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout in the vision tower: frozen, it must never be drawn."""
    folder = families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("qwen2", tmp_path_factory.mktemp("backbones") / "qwen2")


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run a method, SFT and VLM2Rec with what they share kept for both."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("vanilla", "sft", "vlm2rec", "poprec", "itemknn", "random"):
        shared = folder / ".shared" if kind in ("sft", "vlm2rec") else None
        run(make_config(tiny_dataset, llava, kind), folder / kind, shared=shared)
    return {path.name: path for path in folder.iterdir() if path.name != ".shared"}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [without_clock(line) for line in metrics_lines(folder / "metrics.jsonl")]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def check_same_weights(one: Path, other: Path) -> None:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def check_same_outcome(one: Path, other: Path) -> None:
    """Everything but clocks and paths."""
    check_same_weights(one, other)
    assert lines(one) == lines(other)
    first, second = results(one), results(other)
    del first["cost"]["seconds"], second["cost"]["seconds"]
    assert first == second
    assert pl.read_parquet(one / "users.parquet").equals(pl.read_parquet(other / "users.parquet"))
    for table in ("items", "histories"):
        first_table, second_table = EmbeddingTable.load(one / table), EmbeddingTable.load(other / table)
        assert first_table.ids.tolist() == second_table.ids.tolist()
        for view in ("fused", "text", "image"):
            np.testing.assert_array_equal(first_table[view], second_table[view])


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


# What a run leaves behind


GEOMETRY = {"A_pos", "A_neg", "U", "S"}
KEYS = {"schema", "method", "seed", "data", "retrieval", "baselines", "validation", "cost"}


@pytest.mark.parametrize("kind", ["vanilla", "sft", "vlm2rec"])
def test_results_have_the_keys_of_the_contract(runs: dict[str, Path], kind: str) -> None:
    found = results(runs[kind])
    # The tiny checkpoint knows single letters alone, which a run warns of.
    assert set(found) == KEYS | {"dropout", "geometry", "diagnosis", "reference", "cold", "warnings"}
    assert (found["schema"], found["method"], found["seed"]) == (1, kind, 0)
    assert set(found["dropout"]) == {"f2f", "t2f", "v2f", "t2t", "v2v"} == set(found["reference"]["dropout"])
    for geometry in (found["geometry"], found["reference"]["geometry"]):
        assert {view: set(figures) for view, figures in geometry.items()} == dict.fromkeys(
            ("text", "image", "fused"), GEOMETRY
        )
    assert set(found["validation"]) == (set() if kind == "vanilla" else {*METRICS, "epoch"})
    assert all(math.isfinite(number) for number in numbers(found))


@pytest.mark.parametrize("kind", ["poprec", "itemknn", "random"])
def test_results_of_methods_without_vectors(runs: dict[str, Path], kind: str) -> None:
    found = results(runs[kind])
    assert set(found) == KEYS | {"cold"}
    assert found["validation"] == {} and found["method"] == kind
    assert {path.name for path in runs[kind].iterdir()} == {
        "config.toml", "manifest.json", "users.parquet", "baselines.parquet", "results.json", "report.html",
    }  # fmt: skip


def test_every_method_counts_the_same_data(runs: dict[str, Path], tiny_dataset: Dataset) -> None:
    expected = {
        "users": len(tiny_dataset.user_ids),
        "items": len(tiny_dataset.item_ids),
        "interactions": tiny_dataset.interactions.height,
        "evaluated_users": len(tiny_dataset.user_ids),
        "split": Split(tiny_dataset).record,
    }
    for folder in runs.values():
        assert results(folder)["data"] == expected
        found = results(folder)["retrieval"]
        assert tuple(found) == CANDIDATE_SETS and all(set(found[kind]) == set(METRICS) for kind in found)


def test_figures_follow_from_the_kept_ranks(runs: dict[str, Path], tiny_dataset: Dataset) -> None:
    sets = {}
    for kind, folder in runs.items():
        frame = pl.read_parquet(folder / "users.parquet")
        assert frame.columns == ["user_id", "task", "view", "candidates", "above", "ties"]
        assert frame.dtypes[0] == pl.String and all(dtype.is_integer() for dtype in frame.dtypes[3:])
        for view in CANDIDATE_SETS:
            some = frame.filter((pl.col("task") == "retrieval") & (pl.col("view") == view))
            assert some["user_id"].to_list() == tiny_dataset.user_ids
            found = summarise(some["above"].to_numpy(), some["ties"].to_numpy())
            assert found == results(folder)["retrieval"][view]
            assert (some["above"] + some["ties"] <= some["candidates"]).all()
            sets.setdefault(view, some["candidates"].to_list())
            assert some["candidates"].to_list() == sets[view], f"{kind} had other candidates"
        tasks = set(frame["task"])
        one_sided = (
            {f"dropout:{name}" for name in ("t2f", "v2f", "t2t", "v2v")} if "dropout" in results(folder) else set()
        )
        assert tasks == {"retrieval"} | one_sided
        for task in tasks - {"retrieval"}:
            some = frame.filter((pl.col("task") == task) & (pl.col("view") == "sampled"))
            value = summarise(some["above"].to_numpy(), some["ties"].to_numpy())["N@20"]
            assert value == pytest.approx(results(folder)["dropout"][task.removeprefix("dropout:")], abs=1e-9)


@pytest.mark.parametrize("kind", ["vanilla", "sft", "vlm2rec"])
def test_f2f_is_retrieval_on_sampled_candidates(runs: dict[str, Path], kind: str) -> None:
    found = results(runs[kind])
    assert found["dropout"]["f2f"] == pytest.approx(found["retrieval"]["sampled"]["N@20"], abs=1e-9)
    assert len(set(found["dropout"].values())) == 5, "the views are not told apart"


def test_step_0_is_the_backbone_as_it_comes(runs: dict[str, Path]) -> None:
    vanilla = results(runs["vanilla"])
    assert vanilla["dropout"] == vanilla["reference"]["dropout"]
    assert vanilla["geometry"] == vanilla["reference"]["geometry"]
    for kind in ("sft", "vlm2rec"):
        assert results(runs[kind])["reference"] == vanilla["reference"]
        assert results(runs[kind])["dropout"] != vanilla["dropout"], "training changed nothing"


def test_the_log_says_what_there_is_to_see(runs: dict[str, Path]) -> None:
    common = {
        "kind", "step", "epoch", "loss", "lr", "grad_norm", "samples_per_s", "memory_gib",
        "margin_text", "margin_image", "gap", "norm_ratio",
    }  # fmt: skip
    own = {"penalty", "alpha", "beta", "wpcl", "crtr"}
    for kind, keys in (("sft", common), ("vlm2rec", common | own)):
        written = read_metrics(runs[kind] / "metrics.jsonl", "train")
        assert [line["step"] for line in written] == [1, 2, 3, 4]
        assert all(set(line) == keys for line in written)
        assert all(math.isfinite(number) for line in written for number in numbers(line))
        validated = read_metrics(runs[kind] / "metrics.jsonl", "validation")
        assert [line["epoch"] for line in validated] == [1, 2]
        best = max(validated, key=lambda line: line["N@20"])
        kept = results(runs[kind])["validation"]
        assert kept == {**{name: best[name] for name in METRICS}, "epoch": best["epoch"]}
    for line in read_metrics(runs["vlm2rec"] / "metrics.jsonl", "train"):
        assert line["loss"] == pytest.approx(line["wpcl"] + 0.1 * line["crtr"], rel=1e-5)
        assert line["penalty"] >= 1
    assert read_metrics(runs["vlm2rec"] / "metrics.jsonl", "train")[0]["alpha"] == 5.0


def test_the_directory_holds_what_the_contract_lists(runs: dict[str, Path]) -> None:
    for kind in ("vanilla", "sft", "vlm2rec"):
        listed = {"config.toml", "manifest.json", "model", "items", "users.parquet", "results.json", "report.html"}
        if kind != "vanilla":
            listed |= {"metrics.jsonl", "checkpoints"}
        assert listed <= {path.name for path in runs[kind].iterdir()}
        assert not [path for path in runs[kind].rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".pickle")]
        assert not [path for path in runs[kind].rglob(".*")], "temporary files are left"
        manifest = json.loads((runs[kind] / "manifest.json").read_text())
        assert list(manifest["done"]) == ["reference", "train", "encode", "evaluate", "seqrec", "report"]
        assert load_config(runs[kind] / "config.toml") == Run.open(runs[kind]).config
    trainable = json.loads((runs["sft"] / "manifest.json").read_text())["trainable"]
    assert {part: counts["trainable"] > 0 for part, counts in trainable.items()} == {
        "language": True, "vision": False, "projector": False,
    }  # fmt: skip


# Vectors


@pytest.mark.parametrize("kind", ["vanilla", "sft", "vlm2rec"])
def test_the_saved_model_makes_the_saved_vectors(runs: dict[str, Path], tiny_dataset: Dataset, kind: str) -> None:
    encoder = Encoder.load(runs[kind] / "model")
    items, histories = (EmbeddingTable.load(runs[kind] / name) for name in ("items", "histories"))
    assert items.ids.tolist() == tiny_dataset.item_ids and histories.ids.tolist() == tiny_dataset.user_ids
    split = Split(tiny_dataset)
    with torch.inference_mode():
        some = encoder.items(tiny_dataset, range(len(items)))
        asked = encoder.histories(tiny_dataset, [split.history(u, "test").tolist() for u in range(split.n_users)])
    for table, views in ((items, some), (histories, asked)):
        for name, vectors in views._asdict().items():
            np.testing.assert_allclose(table[name], vectors.numpy(), atol=2e-5)
    np.testing.assert_allclose(items["fused"], items["text"] + items["image"], atol=1e-5)


@dataclass
class Novelties:
    titles: list[str]
    pictures: list[np.ndarray | None]


def test_new_products_can_be_embedded(runs: dict[str, Path], tiny_dataset: Dataset) -> None:
    encoder = Encoder.load(runs["vlm2rec"] / "model")
    wide = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    known = tiny_dataset.pictures[3]
    new = Novelties(["a teapot", "", tiny_dataset.titles[3], "a hat"], [wide, wide, known, None])
    with torch.inference_mode():
        views = encoder.items(new, range(4))
        mixed = encoder.histories(new, [[0, 1, 3], [3]])
    assert views.fused.shape == (4, 32) and mixed.fused.shape == (2, 32)
    assert views.text is not None and views.image is not None and torch.isfinite(views.fused).all()
    np.testing.assert_allclose(views.fused[2], EmbeddingTable.load(runs["vlm2rec"] / "items")["fused"][3], atol=2e-5)
    np.testing.assert_allclose(mixed.fused[1], views.fused[3], atol=2e-5)
    torch.testing.assert_close(views.image[0], views.image[1], atol=2e-5, rtol=0)
    assert not torch.allclose(views.text[0], views.text[1], atol=1e-3)
    assert not torch.allclose(views.image[0], views.image[3], atol=1e-3)


def test_fresh_adapters_change_nothing(tiny_dataset: Dataset, llava: Path, runs: dict[str, Path]) -> None:
    encoder = build_encoder(make_config(tiny_dataset, llava))
    encoder.add_lora(LoraSettings(rank=4), seed=7)
    encoder.eval()
    with torch.inference_mode():
        vectors = encoder.items(tiny_dataset, range(24)).fused.numpy()
    np.testing.assert_allclose(vectors, EmbeddingTable.load(runs["vanilla"] / "items")["fused"], atol=2e-5)


def test_in_training_a_vector_is_the_same_with_a_gradient_and_without(tiny_dataset: Dataset, llava: Path) -> None:
    """What GradCache rests on, LoRA's dropout included. Rows that begin alike must not share it."""
    encoder = build_encoder(make_config(tiny_dataset, llava))
    encoder.add_lora(LoraSettings(rank=4), seed=7)
    families.wake(encoder)
    encoder.train()
    prompts = encoder.prompts(tiny_dataset, [[item] for item in range(24)])
    seen: list[torch.Tensor] = []

    def embed(some: Any) -> torch.Tensor:
        vectors: torch.Tensor = encoder(some)
        seen.append(vectors.detach())
        return vectors

    backward_in_parts(embed, prompts, lambda vectors: vectors.square().sum(), 24, torch.Tensor.backward)
    assert len(seen) == 4
    for before, after in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert not torch.allclose(seen[0], encoder(prompts[:24]).detach(), atol=1e-3), "there is no dropout to compare"


# Training


def test_a_batch_in_parts_trains_the_same(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    folders = []
    for part in (None, 5):
        training = {"epochs": 1, "micro_batch": part}
        config = make_config(
            tiny_dataset, llava, training=training, backbone={"lora": {"rank": 4, "dropout": 0.0}}
        )  # fmt: skip
        folders.append(run(config, tmp_path / str(part), until="train").path)
    whole, parts = (lines(folder) for folder in folders)
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys() and one["kind"] == other["kind"]
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3, abs=1e-4)
    for name, value in adapter(folders[0]).items():
        torch.testing.assert_close(value, adapter(folders[1])[name], atol=3e-4, rtol=0)


def test_without_penalty_and_topology_vlm2rec_is_sft(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    """Clipping is off: beta's own gradient would count into the norm of all."""
    given = {"objective": {"beta": 0, "weight": 0}, "training": {"clip": 1e9}}
    folders = [
        run(make_config(tiny_dataset, llava, kind, **given), tmp_path / kind, until="train").path
        for kind in ("sft", "vlm2rec")
    ]
    first, second = (adapter(folder) for folder in folders)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-6, rtol=0)
    for one, other in zip(*(read_metrics(f / "metrics.jsonl", "train") for f in folders), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert other["penalty"] == 1


def test_the_seed_decides(tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    """That the same seed gives the same is in every test of continuing."""
    other = run(make_config(tiny_dataset, llava, "sft", seed=1), tmp_path, until="train").path
    assert all(not torch.equal(value, adapter(runs["sft"])[name]) for name, value in adapter(other).items())
    reference = json.loads((other / "reference.json").read_text())
    assert reference == results(runs["sft"])["reference"]


# Stopping and going on


def test_done_is_done(runs: dict[str, Path], tiny_dataset: Dataset, llava: Path) -> None:
    for kind in ("vlm2rec", "vanilla", "poprec"):
        before = stamps(runs[kind])
        run(make_config(tiny_dataset, llava, kind), runs[kind])
        continue_run(runs[kind], until="evaluate")
        assert stamps(runs[kind]) == before


def test_stages_alone_reach_the_same(tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    folder = tmp_path / "stages"
    run(make_config(tiny_dataset, llava), folder, until="train")
    assert (folder / "model").exists() and not (folder / "items").exists()
    continue_run(folder, until="encode")
    assert (folder / "items").exists() and not (folder / "users.parquet").exists()
    continue_run(folder, until="evaluate")
    assert (folder / "results.json").exists() and not (folder / "report.html").exists()
    check_same_outcome(folder, runs["vlm2rec"])


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("train", "vlm2rec"), ("encode", "vlm2rec"), *((s, "vanilla") for s in ("reference", "train", "evaluate"))],
)
def test_killed_before_a_stage_is_listed(
    stage: str, kind: str, tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The files stand, the manifest does not say so."""
    config, finish = make_config(tiny_dataset, llava, kind), Run.finish

    def killed(self: Run, name: str, **info: Any) -> None:
        if name == stage:
            raise KeyboardInterrupt
        finish(self, name, **info)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run")
    if kind == "vanilla":
        first, second = (EmbeddingTable.load(folder / "items") for folder in (tmp_path / "run", runs[kind]))
        np.testing.assert_array_equal(first["fused"], second["fused"])
        assert results(tmp_path / "run")["dropout"] == results(runs[kind])["dropout"]
    else:
        check_same_outcome(tmp_path / "run", runs[kind])


def test_killed_while_validating(
    tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlm2rec.methods.vlm as vlm

    embed, calls = vlm.embed_histories, []

    def killed(*args: Any) -> EmbeddingTable:
        calls.append(args)
        if len(calls) == 3:  # at step 0 and after the first epoch it may live
            raise KeyboardInterrupt
        return embed(*args)

    config = make_config(tiny_dataset, llava)
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "embed_histories", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl", "validation")) == 1
    run(config, tmp_path / "run")
    check_same_outcome(tmp_path / "run", runs["vlm2rec"])


def test_killed_by_the_system_and_continued(
    tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path]
) -> None:
    """A real process, a real SIGKILL in the middle of the third step."""
    config = make_config(tiny_dataset, llava)
    folder, file = tmp_path / "run", write_config(tmp_path / "config.toml", config)
    code = f"""
import os, signal, sys
from vlm2rec.objectives import Objective
terms, calls = Objective.terms, []
def dying(*given):
    calls.append(given)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return terms(*given)
Objective.terms = dying
sys.argv = ["vlm2rec", "run", {str(file)!r}, "--out", {str(folder)!r}]
from vlm2rec.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert list(Run.open(folder).manifest["done"]) == ["reference"]
    assert [path.name[:13] for path in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]
    run(config, folder)
    check_same_outcome(folder, runs["vlm2rec"])


def test_live_vision_trains_the_same(tiny_dataset: Dataset, llava: Path, tmp_path: Path, runs: dict[str, Path]) -> None:
    """Pictures seen anew at every step, in training mode: the frozen tower's dropout must not come in."""
    live = run(make_config(tiny_dataset, llava, backbone={"cache_vision": False}), tmp_path, until="encode").path
    for name, value in adapter(live).items():
        torch.testing.assert_close(value, adapter(runs["vlm2rec"])[name], atol=1e-4, rtol=0)
    tables = [EmbeddingTable.load(folder / "items").unit("fused") for folder in (live, runs["vlm2rec"])]
    assert (tables[0] * tables[1]).sum(axis=1).min() > 1 - 1e-5


# Other shapes of a run


def test_logq_takes_popularity_off_the_logits(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    """The first step's loss, before anything is learned, by hand from the same batch."""
    config = make_config(tiny_dataset, llava, "sft", objective={"logq": True}, backbone={"lora": {"dropout": 0.0}})
    logged = read_metrics(run(config, tmp_path / "run", until="train").path / "metrics.jsonl", "train")[0]["loss"]
    split, encoder = Split(tiny_dataset, config.data.max_history), build_encoder(config)
    batch = Samples(split, config.training, config.seed).batch(0)
    query, target = (encoder.histories(tiny_dataset, batch.histories), encoder.items(tiny_dataset, batch.targets))
    share = np.array([sum((own == item).sum() for own in split.train) for item in batch.targets], float)
    arguments = (query, target, torch.from_numpy(batch.negatives), torch.from_numpy(batch.positive))
    objective = InfoNCE(config.objective.temperature)
    expected = objective(*arguments, torch.from_numpy(np.log(share / sum(map(len, split.train)))))
    assert logged == pytest.approx(float(expected.detach()), rel=1e-4)
    assert logged != pytest.approx(float(objective(*arguments).detach()), rel=1e-2)


def test_a_language_model_reads_titles(tiny_dataset: Dataset, qwen2: Path, tmp_path: Path) -> None:
    folder = run(make_config(tiny_dataset, qwen2, "sft", prompt={"modalities": "text"}), tmp_path / "run").path
    found = results(folder)
    assert set(found["dropout"]) == {"f2f"} and set(found["geometry"]) == {"fused"}
    assert list(EmbeddingTable.load(folder / "items").views) == ["fused"]
    assert not {"gap", "margin_text"} & set(read_metrics(folder / "metrics.jsonl", "train")[0])
    assert set(pl.read_parquet(folder / "users.parquet")["task"]) == {"retrieval"}


def test_text_alone_needs_no_pictures(
    from_sequences: Callable[..., Dataset], qwen2: Path, llava: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    events = [rng.choice(15, rng.integers(4, 9), replace=False).tolist() for _ in range(20)]
    blind = from_sequences([*events, list(range(15))], 15)
    config = make_config(blind, qwen2, "sft", prompt={"modalities": "text"}, training={"epochs": 1})
    assert math.isfinite(results(run(config, tmp_path / "run").path)["dropout"]["f2f"])
    with pytest.raises(InputError, match=r"has no pictures.*prompt\.modalities=text") as caught:
        run(make_config(blind, llava), tmp_path / "blind")
    assert "\n" not in str(caught.value) and not (tmp_path / "blind").exists()


def test_internal_fusion_gives_one_view(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    folder = run(make_config(tiny_dataset, llava, "sft", prompt={"fusion": "internal"}), tmp_path / "run").path
    found = results(folder)
    assert set(found["dropout"]) == {"f2f"} and set(found["geometry"]) == {"fused"}
    for name in ("items", "histories"):
        assert list(EmbeddingTable.load(folder / name).views) == ["fused"]


def test_few_shot(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    """Trained and validated on the same users, tested on others that the candidate seed draws."""
    config = make_config(
        tiny_dataset, llava, "sft", training={"users": 8, "batch_size": 4, "epochs": 1}, evaluation={"users": 9}
    )  # fmt: skip
    folder = run(config, tmp_path / "run", until="train").path
    kept = json.loads((folder / "manifest.json").read_text())["done"]["train"]
    assert kept["users"] == 8 and kept["steps"] == 2
    validated = EmbeddingTable.load(next((folder / "checkpoints").glob("histories-epoch-*")))
    assert len(validated) == 8
    continue_run(folder, until="evaluate")
    frame = pl.read_parquet(folder / "users.parquet")
    assert frame["user_id"].n_unique() == 9 == results(folder)["data"]["evaluated_users"]
    other = run(make_config(tiny_dataset, llava, "poprec", seed=5, evaluation={"users": 9}), tmp_path / "pop").path
    assert set(pl.read_parquet(other / "users.parquet")["user_id"]) == set(frame["user_id"])


# Refusals


def test_another_config_in_the_same_place(runs: dict[str, Path], tiny_dataset: Dataset, llava: Path) -> None:
    before = stamps(runs["sft"])
    for other in ({"seed": 1}, {"training": {"lr": 5e-3}}):
        with pytest.raises(InputError, match="another config") as caught:
            run(make_config(tiny_dataset, llava, "sft", **other), runs["sft"])
        assert "\n" not in str(caught.value)
    assert stamps(runs["sft"]) == before


def test_data_that_changed_since(tiny_folder: Path, llava: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path / "data", llava, "sft")
    prepare(Local(tiny_folder), tmp_path / "data", picture_size=32)
    run(config, tmp_path / "run", until="reference")
    items = pl.read_parquet(tiny_folder / "items.parquet")
    items.with_columns(pl.col("title") + "!").write_parquet(tiny_folder / "items.parquet")
    shutil.rmtree(tmp_path / "data")
    prepare(Local(tiny_folder), tmp_path / "data", picture_size=32)
    before = stamps(tmp_path / "run")
    with pytest.raises(InputError, match="other data") as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert stamps(tmp_path / "run") == before


def test_nothing_is_made_where_the_job_cannot_start(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data": {"path": str(tmp_path / "no")}}, "not a prepared data set"),
        ({"backbone": {"path": str(tmp_path / "no")}}, r"backbone\.path"),
        ({"prompt": {"opening": "very " * 600}}, "the backbone reads 512"),
    ]
    for sections, says in wrong:
        with pytest.raises(InputError, match=says) as caught:
            run(parse_config(raw_config(tiny_dataset, llava, **sections)), tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()


# Many runs


def test_a_sweep_makes_a_run_a_combination_and_goes_on(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path / "c.toml", make_config(tiny_dataset, llava, training={"epochs": 1}))
    out, said = tmp_path / "sweep", []
    asked = ["seed=0,1", "method.kind=vanilla,poprec", "evaluation.users=20", 'prompt.opening="Bought, in turn:"']
    folders = sweep(file, asked, out, said.append)
    assert [folder.name for folder in folders] == [
        f"seed={seed}-kind={kind}" for seed in (0, 1) for kind in ("vanilla", "poprec")
    ]
    assert len(said) == 4 and said[0].startswith("[1/4]")
    for folder in folders:
        config = Run.open(folder).config
        assert f"seed={config.seed}-kind={config.method.kind}" == folder.name
        assert config.evaluation.users == 20 and config.prompt.opening == "Bought, in turn:"
        assert results(folder)["data"]["evaluated_users"] == 20
    assert len([path for path in (out / ".shared").iterdir() if path.is_dir()]) == 1, (
        "figures at step 0 do not depend on the seed"
    )
    assert find_runs([out]) == sorted(folders)
    before = stamps(out)
    assert sweep(file, asked, out, said.append) == folders
    assert stamps(out) == before
    more = sweep(file, [*asked[1:], "seed=0,1,2"], tmp_path / "more", said.append)
    assert len(more) == 6


def test_a_sweep_over_paths_makes_folders_side_by_side(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path / "c.toml", make_config(tiny_dataset, llava, "poprec"))
    folders = sweep(file, [f"backbone.path={llava},{tmp_path / 'unused'}"], tmp_path / "out", lambda line: None)
    assert {folder.parent for folder in folders} == {tmp_path / "out"}
    assert find_runs([tmp_path / "out"]) == sorted(folders)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.kind=poprec,sftt"], "did you mean sft"),
        (["seed=,"], "lists no value"),
        (["method.kind=poprec,random", "trainig.lr=1"], "did you mean training"),
    ],
)
def test_a_sweep_that_cannot_be_done_whole_is_not_begun(
    tiny_dataset: Dataset, llava: Path, tmp_path: Path, overrides: list[str], says: str
) -> None:
    file = write_config(tmp_path / "c.toml", make_config(tiny_dataset, llava))
    with pytest.raises(InputError, match=says):
        sweep(file, overrides, tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out").exists()


def test_finding_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    root = runs["sft"].parent
    assert find_runs([root]) == sorted(runs.values())
    assert find_runs([runs["sft"], runs["poprec"]]) == [runs["sft"], runs["poprec"]]
    with pytest.raises(InputError, match="no run directory here or below"):
        find_runs([root, tmp_path])
