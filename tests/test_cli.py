"""The command line: what it prints, and that bad input is one line, status 2, and nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import families
import polars as pl
import pytest
from program import Call, Said, check_refused
from tiny_job import make_config, write_config

from vlm2rec import __version__
from vlm2rec.config import load_config
from vlm2rec.data.dataset import Dataset


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("qwen2", tmp_path_factory.mktemp("backbones") / "qwen2")


@pytest.fixture
def config(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "mine.toml", make_config(tiny_dataset, llava, training={"epochs": 1}))


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Bad input


@pytest.mark.parametrize("verb", ["run", "train", "sweep", "doctor", "tune"])
def test_a_config_that_is_not_there(call: Call, verb: str, tmp_path: Path) -> None:
    more = {"doctor": [], "tune": ["--space", "training.lr=1e-4", "--out", tmp_path / "out"]}
    said = call(verb, tmp_path / "no.toml", *more.get(verb, ["--out", tmp_path / "out"]))
    check_refused(said, "no.toml: no such config file", "vlm2rec init")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[data\npath = 1", "not valid TOML"),
        ("", "data.path is missing"),
        ("seed = 1", "data.path is missing"),
        ('[data]\npath = "x"\n[trainig]\nlr = 1', "unknown key trainig; did you mean training?"),
        ('[data]\npath = "x"\n[training]\nlearning_rate = 1', "unknown key training.learning_rate"),
        ('[data]\npath = "x"\n[backbone.lora]\nrnk = 1', "did you mean backbone.lora.rank?"),
        ('[data]\npath = "x"\n[method]\nkind = "vlm2recs"', "did you mean vlm2rec?"),
        ('[data]\npath = "x"\n[method]\nkind = "sft"\ntemperature = 1', "unknown key method.temperature"),
        ('method = "sft"\n[data]\npath = "x"', "method"),
        ('training = 3\n[data]\npath = "x"', "training"),
        ('[data]\npath = "x"\n[training]\nlr = "fast"', "training.lr = 'fast'"),
        ('[data]\npath = "x"\n[training]\nlr = nan', "training.lr"),
        ('[data]\npath = "x"\n[training]\nbatch_size = 0', "training.batch_size = 0"),
        ('[data]\npath = "x"\n[prompt]\nfusion = "internal"', "prompt.fusion=external"),
        ('preset = "smal"\n[data]\npath = "x"', "preset = 'smal'"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_config_that_is_wrong(call: Call, content: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_refused(call("run", path, "--out", tmp_path / "out"), str(path), says)
    assert not (tmp_path / "out").exists() and not files(tmp_path / "cwd")


def test_a_folder_for_a_config(call: Call, tmp_path: Path) -> None:
    check_refused(call("run", tmp_path), "give a TOML file")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.learn=1", "unknown key training.learn"),
        ("objective.temprature=1", "did you mean objective.temperature?"),
        ("sed=1", "did you mean seed?"),
        ("training.lr", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("seed.deep=3", "seed is a value, not a section"),
        ("training.epochs=many", "training.epochs = 'many'"),
        ("method.kind=none", "method"),
    ],
)
def test_a_wrong_override(call: Call, config: Path, override: str, says: str, tmp_path: Path) -> None:
    check_refused(call("run", config, "--set", override, "--out", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def _set(key: str, value: object) -> list[str]:
    return ["--set", f"{key}={value}"]


def test_data_that_is_none(call: Call, config: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "cwd", config):
        said = call("run", config, *_set("data.path", path), "--out", tmp_path / "out")
        check_refused(said, f"{path}: not a prepared data set", "vlm2rec data prepare")
    check_refused(call("data", "describe", tmp_path / "absent"), "not a prepared data set")
    assert not (tmp_path / "out").exists()


def test_backbones_that_are_none(call: Call, config: Path, qwen2: Path, llava: Path, tmp_path: Path) -> None:
    broken = _made(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    for path in (tmp_path / "absent", broken, config):
        said = call("run", config, *_set("backbone.path", path), "--out", tmp_path / "out")
        check_refused(said, "backbone.path", str(path))
    said = call("run", config, *_set("backbone.path", qwen2), "--out", tmp_path / "out")
    check_refused(said, "reads no pictures", "prompt.modalities=text")
    (no_processor := _made(tmp_path / "halved"))
    for file in llava.iterdir():
        if file.name != "preprocessor_config.json":
            os.link(file, no_processor / file.name)
    said = call("run", config, *_set("backbone.path", no_processor), "--out", tmp_path / "out")
    check_refused(said, "no image processor", "preprocessor_config.json")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_damaged(call: Call, config: Path, llava: Path, tmp_path: Path) -> None:
    damaged = _made(tmp_path / "damaged")
    for file in llava.iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    check_refused(call("run", config, *_set("backbone.path", damaged), "--out", tmp_path / "out"), "backbone.path")
    assert not (tmp_path / "out").exists()


def test_a_prompt_longer_than_the_context(call: Call, config: Path, tmp_path: Path) -> None:
    said = call("run", config, *_set("prompt.closing", "what next " * 200), "--out", tmp_path / "out")
    check_refused(said, "the backbone reads 512", "data.max_history")
    assert not (tmp_path / "out").exists()


def test_a_run_directory_of_another_config(call: Call, config: Path, tmp_path: Path) -> None:
    asked = [*_set("method.kind", "poprec"), "--out", tmp_path / "run"]
    assert call("run", config, *asked).status == 0
    before = files(tmp_path)
    check_refused(call("run", config, *asked, *_set("seed", 1)), "another config", "seed is 0 there, 1 here", "--out")
    assert files(tmp_path) == before


def test_a_place_that_is_taken_or_cannot_be(call: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("mine")
    poprec = _set("method.kind", "poprec")
    check_refused(call("run", config, *poprec, "--out", tmp_path / "letter"), "is no run directory")
    check_refused(call("run", config, *poprec, "--out", tmp_path), "is no run directory")
    check_refused(call("run", config, *poprec, "--out", tmp_path / "letter" / "run"), "letter")
    check_refused(call("run", config, *poprec, "--out", "/proc/nowhere/run"), "/proc/nowhere")
    assert (tmp_path / "letter").read_text() == "mine" and not files(tmp_path / "cwd")


@pytest.mark.parametrize("verb", ["encode", "evaluate", "report", "compare"])
def test_what_is_no_run(call: Call, verb: str, tiny_dataset: Dataset, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "cwd", tiny_dataset.path):
        check_refused(call(verb, path), str(path), "run")
    assert not files(tmp_path / "cwd")


def test_a_run_whose_data_or_backbone_is_gone(call: Call, config: Path, tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert call("data", "prepare", "local", tiny_folder, "--out", data, "--picture-size", 32).status == 0
    asked = [*_set("method.kind", "poprec"), *_set("data.path", data)]
    assert call("run", config, *asked, "--out", tmp_path / "run").status == 0
    data.rename(tmp_path / "moved")
    check_refused(call("evaluate", tmp_path / "run"), "not a prepared data set")
    assert call("report", tmp_path / "run").status == 0, "a report needs the run alone"


def test_a_report_of_what_is_not_finished(call: Call, config: Path, tmp_path: Path) -> None:
    said = call("train", config, *_set("method.kind", "poprec"), "--out", tmp_path / "run")
    assert said.status == 0
    for verb in ("report", "compare"):
        check_refused(call(verb, tmp_path / "run"), str(tmp_path / "run"))


def test_a_manifest_that_is_damaged(call: Call, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert call("run", config, *_set("method.kind", "poprec"), "--out", run).status == 0
    manifest = json.loads((run / "manifest.json").read_text())
    for content in ("{", "[]", json.dumps({**manifest, "config": {}}), json.dumps({"config": manifest["config"]})):
        (run / "manifest.json").write_text(content)
        check_refused(call("evaluate", run), str(run))


def _spoil(folder: Path, how: str) -> Sequence[object]:
    items, events = (pl.read_parquet(folder / f"{name}.parquet") for name in ("items", "interactions"))
    match how:
        case "no items":
            (folder / "items.parquet").unlink()
        case "no interactions":
            (folder / "interactions.parquet").unlink()
        case "unreadable":
            (folder / "items.parquet").write_bytes(b"PAR1 and no more")
        case "no title":
            items.drop("title").write_parquet(folder / "items.parquet")
        case "no timestamp":
            events.drop("timestamp").write_parquet(folder / "interactions.parquet")
        case "unknown item":
            events.with_columns(item_id=pl.lit("stranger")).write_parquet(folder / "interactions.parquet")
        case "nothing left":
            return ["--k-core", 1000]
        case "what to require":
            return ["--require", "title,price"]
        case "empty":
            events.clear().write_parquet(folder / "interactions.parquet")
    return []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no items", "items"),
        ("no interactions", "interactions"),
        ("unreadable", "items.parquet"),
        ("no title", "title"),
        ("no timestamp", "timestamp"),
        ("unknown item", "stranger"),
        ("nothing left", "nothing is left"),
        ("what to require", "price"),
        ("empty", "interactions"),
    ],
)
def test_raw_data_that_cannot_be_prepared(call: Call, tiny_folder: Path, how: str, says: str, tmp_path: Path) -> None:
    options = _spoil(tiny_folder, how)
    check_refused(call("data", "prepare", "local", tiny_folder, "--out", tmp_path / "out", *options), says)
    assert not (tmp_path / "out").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_raw_data_that_is_not_there(call: Call, tmp_path: Path) -> None:
    check_refused(call("data", "prepare", "local", tmp_path / "no", "--out", tmp_path / "out"), str(tmp_path / "no"))
    check_refused(call("data", "prepare", "local", "--out", tmp_path / "out"), "give the folder")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_data_set_is_not_overwritten(call: Call, tiny_folder: Path, tmp_path: Path) -> None:
    (_made(tmp_path / "mine") / "letter").write_text("mine")
    check_refused(call("data", "prepare", "local", tiny_folder, "--out", tmp_path / "mine"), "mine")
    assert files(tmp_path / "mine") == {"letter"}


def test_vectors_that_blow_up(call: Call, config: Path, tmp_path: Path) -> None:
    """A learning rate beyond reason: said in a line, and the run can be looked into."""
    said = call("run", config, *_set("training.lr", "1e30"), *_set("training.clip", "1e30"), "--out", tmp_path / "run")
    assert said.status == 2 and "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith("vlm2rec: ") and "lower the learning rate" in said.err
    assert not (tmp_path / "run" / "results.json").exists()


def test_verbs_and_options_that_do_not_exist(call: Call, config: Path) -> None:
    for arguments in (["rum"], ["run"], ["run", config, "--sett", "a=1"], ["data", "prepare", "nowhere", "--out", "x"]):
        said = call(*arguments)
        assert said.status == 2 and "Traceback" not in said.err and said.out == ""


# Good input


def test_help_and_version(call: Call) -> None:
    for verb in ("run", "sweep", "train", "encode", "evaluate", "compare", "report", "tune", "doctor", "init", "demo"):
        said = call(verb, "--help")
        assert said.status == 0 and "Usage" in said.out and said.err == ""
        assert verb in call("--help").out
    assert call("--version").out == f"{__version__}\n"


def test_init_writes_a_config_that_can_be_read(call: Call, tmp_path: Path) -> None:
    said = call("init")
    assert (said.status, said.out, said.err) == (0, "config.toml\n", "")
    load_config(tmp_path / "cwd" / "config.toml")
    before = (tmp_path / "cwd" / "config.toml").read_text()
    assert "#" in before
    check_refused(call("init"), "exists already")
    assert (tmp_path / "cwd" / "config.toml").read_text() == before
    assert call("init", tmp_path / "other.toml").status == 0


def test_from_raw_data_to_a_report(call: Call, tiny_folder: Path, llava: Path, tmp_path: Path) -> None:
    """Each verb prints the path it wrote, and that path alone in its last line."""
    data, cwd = tmp_path / "data", tmp_path / "cwd"
    said = call("data", "prepare", "local", tiny_folder, "--out", data, "--picture-size", 32)
    assert (said.status, said.out.splitlines()[-1]) == (0, str(data))
    assert said.out.startswith("40 users, 24 items, ")
    assert json.loads(call("data", "describe", data, "--json").out)
    assert "users" in call("data", "describe", data).out
    config = write_config(tmp_path / "mine.toml", make_config(data, llava, training={"epochs": 1}))
    said = call("run", config)
    assert (said.status, said.out) == (0, "runs/mine-vlm2rec-seed0/report.html\n")
    run = cwd / "runs" / "mine-vlm2rec-seed0"
    assert (run / "report.html").exists()
    assert call("run", config).out == said.out
    for verb, wrote in (("encode", "items"), ("evaluate", "results.json")):
        assert call(verb, run).out == f"{run / wrote}\n"
    vanilla = call("train", config, *_set("method.kind", "vanilla"), "--out", "runs/vanilla")
    assert vanilla.out == "runs/vanilla/model\n" and (cwd / "runs" / "vanilla" / "model").exists()
    assert call("evaluate", "runs/vanilla").status == 0
    compared = call("compare", "runs", "--out", "table.md")
    assert compared.status == 0 and compared.out.splitlines()[-1] == "table.md"
    assert "vanilla" in compared.out and "vlm2rec" in (cwd / "table.md").read_text()
    assert call("report", "runs", "--out", "all.html").out == "all.html\n"
    swept = call("sweep", config, *_set("method.kind", "poprec,random"))
    assert swept.out.splitlines()[-1] == "runs/mine" and "random" in swept.out
    assert (cwd / "runs" / "mine" / "kind=random" / "results.json").exists()


def test_as_a_program(config: Path, tmp_path: Path) -> None:
    """In a process of its own: standard output is the answer alone, and `python -m vlm2rec` is the same program."""
    script = str(Path(sys.executable).with_name("vlm2rec"))
    done = subprocess.run([script, "run", "no.toml"], capture_output=True, text=True, timeout=60)
    check_refused(Said(done.returncode, done.stdout, done.stderr), "no.toml")
    asked = [sys.executable, "-m", "vlm2rec", "run", str(config), "--out", str(tmp_path / "run")]
    done = subprocess.run([*asked, *_set("method.kind", "vanilla")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run' / 'report.html'}\n"
    assert "Warning" not in done.stderr and "UNEXPECTED" not in done.stderr, done.stderr
