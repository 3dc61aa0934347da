from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build
from test_seqrec import SMALL
from tiny_job import raw_config

import vlm2rec.tasks as tasks
from vlm2rec.compare import compare
from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, run
from vlm2rec.methods.hybrid import Mixture, Standardised
from vlm2rec.tasks import Table, metrics_of, rank_users

SEEDS = (0, 1)


def settings(dataset: Dataset, checkpoint: Path, method: dict[str, Any], seed: int) -> Config:
    numbers = {**SMALL.model_dump(mode="json"), "epochs": 3}
    raw = raw_config(dataset, checkpoint, seqrec=numbers, seed=seed, method=method)
    raw["training"]["epochs"] = 1
    return parse_config(raw)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llava", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def parts(tiny_dataset: Dataset, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for seed in SEEDS:
        for kind in ("sasrec", "sft"):
            run(settings(tiny_dataset, checkpoint, {"kind": kind}, seed), folder / f"{kind}-{seed}")
    return folder


def hybrid(dataset: Dataset, checkpoint: Path, parts: Path, seed: int, **changes: Any) -> Config:
    method = {"kind": "hybrid", "sequential": str(parts / f"sasrec-{seed}"), "embedder": str(parts / f"sft-{seed}")}
    return settings(dataset, checkpoint, {**method, **changes}, seed)


def test_a_mixture_by_hand() -> None:
    def alone(*scores: float) -> Standardised:
        return Standardised.over(Table(np.array([scores])), 1, 2)

    first, second = alone(1, 3), alone(500, 100)  # standardised: -1, 1 and 1, -1
    rows = np.array([0])
    assert Mixture(first, second, 1.0).scores(rows) == pytest.approx(np.array([[-1, 1]]))
    assert Mixture(first, second, 0.0).scores(rows) == pytest.approx(np.array([[1, -1]]))
    assert Mixture(first, second, 0.75).scores(rows) == pytest.approx(np.array([[-0.5, 0.5]]))
    assert Mixture(first, alone(7, 7), 0.5).scores(rows) == pytest.approx(np.array([[-0.5, 0.5]]))
    assert Mixture(first, second, 0.75).among(rows, np.array([[1, 1, 0]])) == pytest.approx(
        np.array([[0.5, 0.5, -0.5]])
    )


@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (1024, 1024)])
def test_standardised_in_tiles_as_at_once(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the scores differ by a billionth of what they are."""
    monkeypatch.setattr(tasks, "_USERS_AT_ONCE", tile[0])
    monkeypatch.setattr(tasks, "_ITEMS_AT_ONCE", tile[1])
    scores = np.random.default_rng(0).standard_normal((5, 40)) * [[1], [1e4], [1e-9], [1], [0]] + [
        [0],
        [7],
        [1],
        [-3],
        [2],
    ]
    found = Standardised.over(Table(scores), 5, 40)
    np.testing.assert_allclose(found.mean, scores.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, scores.std(axis=1).clip(1e-12), rtol=1e-6)
    np.testing.assert_allclose(found.scores(np.array([3, 1])).std(axis=1), 1)


def test_the_weight_is_the_best_on_validation(
    tiny_dataset: Dataset, checkpoint: Path, parts: Path, tmp_path: Path
) -> None:
    folders = []
    for seed in SEEDS:
        done = run(hybrid(tiny_dataset, checkpoint, parts, seed), tmp_path / str(seed))
        folders.append(done.path)
        chosen = done.results()["validation"]
        for kind in ("sasrec", "sft"):  # what a weight of 1 or 0 would have given
            alone = run(settings(tiny_dataset, checkpoint, {"kind": kind}, seed), parts / f"{kind}-{seed}")
            assert chosen["N@20"] >= alone.results()["validation"]["N@20"] - 1e-6
    # Seeds of one hybrid are one method, though the folders they were made from differ.
    found = compare([*folders, *(parts / f"sft-{seed}" for seed in SEEDS)])
    assert [(m.label, m.seeds) for m in found.methods] == [("sft", SEEDS), ("hybrid", SEEDS)]


def test_the_test_score_is_that_of_its_parts(
    tiny_dataset: Dataset, checkpoint: Path, parts: Path, tmp_path: Path
) -> None:
    from vlm2rec import methods

    run(hybrid(tiny_dataset, checkpoint, parts, 0), tmp_path / "run", until="encode")
    done = continue_run(tmp_path / "run", until="report")  # a new process would come this way
    split, users = Split(tiny_dataset, 10), np.arange(len(tiny_dataset.user_ids))
    scores = []
    for kind in ("sasrec", "sft"):
        config = settings(tiny_dataset, checkpoint, {"kind": kind}, 0)
        part = run(config, parts / f"{kind}-0")
        raw = methods.build(config, split).scorer(part, users, "test").scores(users).astype(float)
        scores.append((raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True))
    weight = done.results()["validation"]["weight"]
    mixed = Table(weight * scores[0] + (1 - weight) * scores[1], tolerance=1e-5)
    ranks = rank_users(mixed, split, users, "test", 0, ("sampled",))
    assert done.results()["retrieval"]["sampled"] == pytest.approx(metrics_of(ranks, "retrieval", "sampled"))


def test_parts_that_do_not_fit_are_one_line(
    tiny_dataset: Dataset, checkpoint: Path, parts: Path, tmp_path: Path
) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            run(hybrid(tiny_dataset, checkpoint, parts, 0, **changes), tmp_path / "run")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()

    refused("sequential.*is a run of sft; give one of sasrec or gru4rec", sequential=str(parts / "sft-0"))
    refused("embedder.*is a run of sasrec, which has no vectors", embedder=str(parts / "sasrec-0"))
    refused("no run directory", embedder=str(parts / "nowhere"))
    counting = settings(tiny_dataset, checkpoint, {"kind": "poprec"}, 0)
    run(counting, tmp_path / "half", until="train")
    refused("is not finished", sequential=str(tmp_path / "half"))
    shorter = hybrid(tiny_dataset, checkpoint, parts, 0)
    shorter = shorter.model_copy(update={"data": shorter.data.model_copy(update={"max_history": 3})})
    with pytest.raises(InputError, match=r"data\.max_history is 10 there and 3 here"):
        run(shorter, tmp_path / "run")
