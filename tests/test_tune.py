"""Random search: reproducible, resumable, and blind to the test users."""

import json
from pathlib import Path

import families
import pytest
from tiny_job import make_config, write_config

from vlm2rec.config import load_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.runs import Run, read_metrics
from vlm2rec.tune import tune

SPACE = ["training.lr=1e-4,1e-3,1e-2,3e-2", "objective.temperature=0.05,0.1,0.2", "training.epochs=1,2"]


@pytest.fixture(scope="module")
def file(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    llava = families.build("llava", folder / "llava")
    config = make_config(tiny_dataset, llava, "sft", training={"users": 16, "batch_size": 8, "checkpoint_every": 50})
    return write_config(folder / "c.toml", config)


@pytest.fixture(scope="module")
def tuned(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, said = tmp_path_factory.mktemp("tuned") / "out", []
    assert tune(file, SPACE, ["evaluation.users=10"], 4, out, said.append) == out / "best.toml"
    return out, said


def test_the_best_on_validation_wins(tuned: tuple[Path, list[str]]) -> None:
    out, said = tuned
    written = json.loads((out / "trials.json").read_text())
    trials, best = written["trials"], written["best"]
    assert len(trials) == len(said) == 4 and [trial["trial"] for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        run = Run.open(out / f"trial-{trial['trial']:03d}")
        config = run.config
        assert float(trial["training.lr"]) == config.training.lr
        assert int(trial["training.epochs"]) == config.training.epochs
        assert float(trial["objective.temperature"]) == config.objective.temperature
        assert config.evaluation.users == 10 and config.training.users == 16
        validated = read_metrics(run.path / "metrics.jsonl", "validation")
        assert trial["N@20"] == max(line["N@20"] for line in validated)
    assert trials[best]["N@20"] == max(trial["N@20"] for trial in trials)
    assert load_config(out / "best.toml") == Run.open(out / f"trial-{best:03d}").config
    assert len({(t["training.lr"], t["objective.temperature"], t["training.epochs"]) for t in trials}) > 1


def test_the_test_users_are_not_looked_at(tuned: tuple[Path, list[str]]) -> None:
    """Nothing of a trial says how it does at test; step 0, which no trial changes, is measured once for all."""
    for trial in tuned[0].glob("trial-*"):
        assert not {"results.json", "users.parquet", "histories"} & {path.name for path in trial.iterdir()}
        assert list(Run.open(trial).manifest["done"]) == ["reference", "train"]
    assert len([path for path in (tuned[0] / ".shared").iterdir() if path.is_dir()]) == 1


def test_run_again_it_goes_on_with_the_same_draws(tuned: tuple[Path, list[str]], file: Path) -> None:
    out, _ = tuned
    before = json.loads((out / "trials.json").read_text())["trials"]
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("trial-*/**/*")}
    tune(file, SPACE, ["evaluation.users=10"], 5, out, lambda line: None)
    after = json.loads((out / "trials.json").read_text())["trials"]
    assert after[:4] == before and len(after) == 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "a trial was run twice"


@pytest.mark.parametrize(
    ("space", "overrides", "says"),
    [
        (["training.lr=1e-4,fast"], [], r"training\.lr = 'fast'"),
        (["training.rate=1,2"], [], "unknown key training.rate"),
        (["training.lr"], [], r"section\.key=value"),
        (["training.lr="], [], r"training\.lr"),
        (SPACE, ["method.kind=vanilla"], "nothing to tune by; take sft"),
        (SPACE, ["method.kind=llmemb"], "nothing to tune by"),
    ],
)
def test_a_search_that_cannot_be_done_is_not_begun(
    file: Path, tmp_path: Path, space: list[str], overrides: list[str], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        tune(file, space, overrides, 3, tmp_path / "out", lambda line: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sequential_models_are_tuned_alike(file: Path, tmp_path: Path) -> None:
    small = ["method.kind=sasrec", "seqrec.dim=8", "seqrec.inner=8", "seqrec.epochs=2"]
    best = load_config(tune(file, ["seqrec.dropout=0.1,0.5"], small, 2, tmp_path / "out", lambda line: None))
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert best.seqrec.dropout == float(trials["trials"][trials["best"]]["seqrec.dropout"])
