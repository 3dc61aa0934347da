"""A run directory: made once, continued, never taken for another's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm2rec.config import Config, load_config, parse_config
from vlm2rec.errors import InputError
from vlm2rec.runs import (
    Run,
    locked,
    metrics_lines,
    read_json,
    read_metrics,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


def config(**given: object) -> Config:
    return parse_config({"data": {"path": "somewhere"}, **given})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_new_run_holds(tmp_path: Path) -> None:
    asked = config(seed=3, training={"users": 64}, method={"kind": "sft"})
    run = Run.create(tmp_path / "deep" / "run", asked)
    assert {path.name for path in run.path.iterdir()} == {"config.toml", "manifest.json"}
    assert load_config(run.path / "config.toml") == asked
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["seed"] == 3 and manifest["done"] == {}
    assert parse_config(manifest["config"]) == asked
    assert {"vlm2rec", "torch", "transformers", "polars", "python"} <= set(manifest["versions"])


def test_opened_again_it_is_the_same(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "run", config())
    first.finish("train", steps=4)
    before = files(tmp_path)
    for again in (Run.create(tmp_path / "run", config()), Run.open(tmp_path / "run")):
        assert again.config == config()
        assert again.manifest["done"] == {"train": {"steps": 4}}
        assert again.is_done("train") and not again.is_done("encode")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"training": {"users": 5}}, "training.users is None there, 5 here"),
        ({"method": {"kind": "sft"}}, "method.kind is 'vlm2rec' there, 'sft' here"),
        ({"data": {"path": "elsewhere"}}, "data.path is 'somewhere' there, 'elsewhere' here"),
    ],
)
def test_another_config_is_refused_and_named(tmp_path: Path, other: dict[str, object], says: str) -> None:
    Run.create(tmp_path / "run", config())
    before = files(tmp_path)
    with pytest.raises(InputError) as caught:
        Run.create(tmp_path / "run", config(**other))
    assert says in str(caught.value) and "--out" in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "other folder", "other manifest", "broken manifest", "list"])
def test_what_is_no_run_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        name, content = {
            "other folder": ("letter.txt", "mine"),
            "other manifest": ("manifest.json", '{"kind": "dataset"}'),
            "broken manifest": ("manifest.json", "{"),
            "list": ("manifest.json", "[]"),
        }[kind]
        (path / name).write_text(content)
    before = files(tmp_path)
    for attempt in (lambda: Run.create(path, config()), lambda: Run.open(path)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_nothing_there_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run directory"):
        Run.open(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert Run.create(tmp_path, config()).path == tmp_path


@pytest.mark.parametrize("left", [["config.toml"], [".manifest.json.abc1"], ["config.toml", ".manifest.json.abc1"]])
def test_killed_while_it_was_made(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).write_text("")
    run = Run.create(tmp_path, config())
    assert load_config(run.path / "config.toml") == config()
    assert Run.open(tmp_path).config == config()


def test_a_stage_runs_once_and_is_listed_when_it_stands(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config())
    calls: list[str] = []

    def work() -> dict[str, float]:
        calls.append("work")
        if len(calls) == 1:
            raise RuntimeError
        return {"seconds": 1.5}

    with pytest.raises(RuntimeError):
        run.stage("train", work)
    assert not Run.open(run.path).is_done("train")
    for _ in range(3):
        Run.open(run.path).stage("train", work)
    assert len(calls) == 2
    assert Run.open(run.path).manifest["done"] == {"train": {"seconds": 1.5}}


def test_results_of_an_unfinished_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config())
    with pytest.raises(InputError, match=r"finished run.*results\.json"):
        run.results()
    write_json(run.path / "results.json", {"schema": 1})
    assert run.results() == {"schema": 1}


def test_lines_that_a_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(metrics_lines(path)) == []
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "validation", "step": 1}\n{"kind": "tra')
    assert [line["kind"] for line in metrics_lines(path)] == ["train", "validation"]
    assert read_metrics(path, "validation") == [{"kind": "validation", "step": 1}]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    write_text(path, "first")
    assert path.read_text() == "first" and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    for content in ("first", "second"):
        with replacing_folder(path) as temporary:
            (temporary / content).write_text(content)
        assert files(path) == {content: content.encode()}
    with pytest.raises(RuntimeError), replacing_folder(path) as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert files(tmp_path) == {"a/folder/second": b"second"}
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_a_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the old one is taken away, the old or the new one stands, or neither: never a part."""
    path = tmp_path / "folder"
    with replacing_folder(path) as temporary:
        for name in "abc":
            (temporary / name).write_text("old")
    whole = files(path)

    def killed(folder: Path, *args: object, **kwargs: object) -> None:
        for file in sorted(Path(folder).glob("*"))[:1]:
            file.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt), replacing_folder(path) as temporary:
        for name in "abc":
            (temporary / name).write_text("new")
    assert not path.exists() or files(path) in (whole, dict.fromkeys(whole, b"new"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "results.json", {"a": [value]})
    assert not list(tmp_path.iterdir())


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    for content in ("{", "[1]", "\x00"):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=r"x\.json"):
            read_json(tmp_path / "x.json", "thing")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"x\.json"):
        read_json(tmp_path / "x.json", "thing")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        Run.create(tmp_path / "file" / "run", config())
    assert caught.value.filename and caught.value.errno
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


HOLDER = """
import sys, time
from pathlib import Path
from vlm2rec.runs import locked
print("asking", flush=True)
with locked(Path(sys.argv[1]) / "deep" / "x.lock"):
    print("held", flush=True)
    if sys.argv[2] == "forever":
        time.sleep(600)
    (Path(sys.argv[1]) / "done").write_text("")
"""


def hold(folder: Path, how: str) -> "subprocess.Popen[str]":
    asked = [sys.executable, "-c", HOLDER, str(folder), how]
    other = subprocess.Popen(asked, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "asking\n"
    return other


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    with locked(tmp_path / "deep" / "x.lock"):
        other = hold(tmp_path, "briefly")
        time.sleep(0.5)
        assert other.poll() is None and not (tmp_path / "done").exists()
    assert other.communicate(timeout=60)[0] == "held\n" and other.returncode == 0
    assert (tmp_path / "done").exists()
    with locked(tmp_path / "deep" / "x.lock"):  # let go of by either
        pass


def test_a_process_that_dies_lets_its_lock_go(tmp_path: Path) -> None:
    first = hold(tmp_path, "forever")
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second = hold(tmp_path, "briefly")
    first.kill()
    first.communicate(timeout=60)
    assert second.communicate(timeout=60)[0] == "held\n" and (tmp_path / "done").exists()


def test_a_lock_is_let_go_of_where_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "x.lock"):
        raise RuntimeError
    with locked(tmp_path / "x.lock"):
        pass
