"""Search: no point twice, reproducible, resumable, shared by processes, and blind to the test users."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import families
import pytest
from tiny_job import make_config, write_config

from vlm2rec.config import load_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.errors import InputError
from vlm2rec.runs import Run, read_metrics
from vlm2rec.tune import Search, tune
from vlm2rec.tune.draw import BY_LOT, draw

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


def trials(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "trials.json").read_text())["trials"]


def points(out: Path) -> list[tuple[str, ...]]:
    keys = [entry.partition("=")[0] for entry in SPACE]
    return [tuple(trial[key] for key in keys) for trial in trials(out)]


# Draws


@pytest.fixture
def search(file: Path) -> Callable[..., Search]:
    def read(*space: str, seed: int = 0) -> Search:
        return Search.read(file, space or SPACE, [f"seed={seed}"])

    return read


def drawn(search: Search, count: int, value: Callable[[int], float | None] = float) -> list[int]:
    tried: dict[int, float | None] = {}
    for number in range(count):
        index = draw(search, tried, number)
        assert index not in tried
        tried[index] = value(index)
    return list(tried)


def test_every_point_is_drawn_once(search: Callable[..., Search]) -> None:
    space = search()
    assert space.size == 24 > 2 * BY_LOT
    assert sorted(drawn(space, 24)) == list(range(24))
    assert sorted(drawn(space, 24, lambda index: None if index % 3 else 0.1)) == list(range(24)), "while others work"
    assert [space.index(space.point(index)) for index in range(24)] == list(range(24))
    listed = [entry.partition("=")[2].split(",") for entry in SPACE]
    assert [tuple(space.point(index).values()) for index in range(24)] == list(product(*listed))


def test_draws_are_those_of_the_seed(search: Callable[..., Search]) -> None:
    assert drawn(search(), 16) == drawn(search(), 16)
    assert drawn(search(), 16) != drawn(search(seed=1), 16)
    assert drawn(search(), BY_LOT, lambda index: None) == drawn(search(), BY_LOT), "the first hang on nothing else"
    assert len({drawn(search(seed=seed), 1)[0] for seed in range(200)}) == 24, "any point may come first"


def test_draws_learn_from_what_was_found(search: Callable[..., Search]) -> None:
    """Better than by lot at finding the top of a hill: 24 of 2,401 points, on average over seeds."""
    lists = [f"{key}={','.join(map(str, range(1, 8)))}" for key in ("training.epochs", "objective.temperature")]
    lists += [f"{key}={','.join(map(str, range(2, 9)))}" for key in ("training.batch_size", "backbone.lora.rank")]

    def height(space: Search, index: int) -> float:
        return -sum((float(value) - 4.0) ** 2 for value in space.point(index).values())

    lot, learnt = [], []
    for seed in range(8):
        space = search(*lists, seed=seed)
        lot.append(max(height(space, index) for index in drawn(space, 24, lambda index: None)))
        learnt.append(max(height(space, index) for index in drawn(space, 24, lambda index, s=space: height(s, index))))
    assert sum(learnt) / 8 > sum(lot) / 8 + 1


# Trials


def test_more_trials_than_points(file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    tune(file, ["training.lr=1e-3,1e-2"], [], 5, tmp_path / "out", said.append)
    assert said[0] == "--trials 5: the space has 2 points, so all 2 of them are trained"
    assert len(said) == 3 and {trial["training.lr"] for trial in trials(tmp_path / "out")} == {"1e-3", "1e-2"}


def test_a_trial_that_diverges_does_not_end_the_search(file: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    best = tune(file, ["training.lr=1e-3,1e30"], ["training.clip=1e30"], 2, out, said.append)
    written = json.loads((out / "trials.json").read_text())
    assert [trial["training.lr"] for trial in written["trials"]] == ["1e-3"] and load_config(best).training.lr == 1e-3
    (failed,) = written["failed"]
    assert failed["training.lr"] == "1e30" and "lower the learning rate" in failed["reason"]
    assert [line for line in said if "failed: " in line and "training.lr=1e30" in line]
    with pytest.raises(InputError, match=r"all of them failed, as trials\.json says"):
        tune(file, ["training.lr=1e30"], ["training.clip=1e30"], 1, tmp_path / "none", said.append)


def test_values_that_do_not_go_together_are_noted(file: Path, tmp_path: Path) -> None:
    space = ["training.prefixes=separate,branched", "training.samples=all,last"]
    wide = ["training.samples=all", "training.batch_size=32", "training.epochs=1"]
    tune(file, space, wide, 4, tmp_path / "out", lambda line: None)
    (failed,) = json.loads((tmp_path / "out" / "trials.json").read_text())["failed"]
    assert (failed["training.prefixes"], failed["training.samples"]) == ("branched", "last")
    assert "none to share" in failed["reason"] and len(trials(tmp_path / "out")) == 3


def test_a_point_that_cannot_be_trained_ends_only_a_search_that_found_nothing(file: Path, tmp_path: Path) -> None:
    """Which words fit is known when the prompts are made. What fails from the start is more than a point."""
    said: list[str] = []
    space = [f"prompt.closing=next,{'what next ' * 200}"]
    tune(file, space, ["training.epochs=1", "seed=1"], 2, tmp_path / "out", said.append)
    (failed,) = json.loads((tmp_path / "out" / "trials.json").read_text())["failed"]
    assert (failed["trial"], len(trials(tmp_path / "out"))) == (1, 1) and "data.max_history" in failed["reason"]
    with pytest.raises(InputError, match=r"data\.max_history"):
        tune(file, [space[0].replace("next,", "", 1)], [], 2, tmp_path / "none", said.append)


def test_a_folder_of_another_search(tuned: tuple[Path, list[str]], file: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned[0], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    more = ["training.lr=1e-4,1e-3,1e-2,3e-2,1", *SPACE[1:]]
    for space, overrides in ((more, ["evaluation.users=10"]), (SPACE[:2], ["evaluation.users=10"]), (SPACE, [])):
        with pytest.raises(InputError, match=r"another search .*; give another --out, or remove the folder"):
            tune(file, space, overrides, 4, tmp_path / "out", lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before


def test_trials_without_a_study_are_taken_over(tuned: tuple[Path, list[str]], file: Path, tmp_path: Path) -> None:
    """As folders of earlier versions are, and any whose study.db was lost: a trial is its folder."""
    out, said = tmp_path / "out", []
    shutil.copytree(tuned[0], out)
    before = trials(out)
    for name in ("study.db", "trials.json", "best.toml"):
        (out / name).unlink()
    tune(file, SPACE, ["evaluation.users=10"], 4, out, said.append)
    assert (trials(out), said) == (before, []) and (out / "best.toml").exists()
    (out / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"study\.db: is damaged; remove it"):
        tune(file, SPACE, ["evaluation.users=10"], 4, out, said.append)


def test_odd_names_of_folders(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "50% off? #1 & more"
    assert tune(file, ["training.lr=1e-3"], [], 1, out, lambda line: None) == out / "best.toml"
    assert (out / "study.db").exists() and [path.name for path in tmp_path.iterdir()] == [out.name]


# Processes


def search_in(file: Path, out: Path, count: int, *more: str) -> subprocess.Popen[str]:
    space = [part for entry in SPACE for part in ("--space", entry)]
    command = [sys.executable, "-m", "vlm2rec", "tune", file, "--out", out, "--trials", count, *space, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_two_processes_share_a_search(tuned: tuple[Path, list[str]], file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    started = [search_in(file, out, 6, "--set", "evaluation.users=10") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    done = [line.split("]")[0] for text, _ in said for line in text.splitlines() if line.startswith("[")]
    assert sorted(done) == [f"[{number}/6" for number in range(1, 7)], "each trial in one process"
    assert all("N@20" in text for text, _ in said), "both worked"
    assert all(err == "" or "continues" not in err for _, err in said) and not any("Trial" in err for _, err in said)
    assert len(set(points(out))) == 6 and [trial["trial"] for trial in trials(out)] == list(range(6))
    assert points(out)[:4] == points(tuned[0])[:4], "the draws of one process alone"
    best = json.loads((out / "trials.json").read_text())["best"]
    assert load_config(out / "best.toml") == Run.open(out / f"trial-{best:03d}").config


def test_killed_it_goes_on_with_the_trial_that_it_was_at(file: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", ["--set", "training.checkpoint_every=1", "--set", "training.users=40"]
    process = search_in(file, out, 3, *more)
    began = time.monotonic()
    while not list(out.glob("trial-001/checkpoints/step-00000002-*")):
        assert process.poll() is None and time.monotonic() - began < 240, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(trials(out)) == 1
    step = max(int(checkpoint.name.split("-")[1]) for checkpoint in out.glob("trial-001/checkpoints/step-*"))
    again = search_in(file, out, 3, *more)
    said, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert said.splitlines()[0] == "trial-001 was begun and not finished; it is taken up again"
    assert f"continues at step {step} of " in err
    assert [trial["trial"] for trial in trials(out)] == [0, 1, 2] and len(set(points(out))) == 3
    whole = tmp_path / "whole"
    assert search_in(file, whole, 3, *more).wait(240) == 0
    assert trials(whole) == trials(out), "as if it had never been killed"
