"""What a plan says before anything runs: sizes, operations, hours, and what it had to assume."""

import re
from pathlib import Path

import families
import pytest
from tiny_job import make_config, raw_config, write_config
from typer.testing import CliRunner

from vlm2rec.cli.verbs import app
from vlm2rec.config import Config, parse_config, read_toml
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.experiments import estimate
from vlm2rec.experiments.estimate import plan_text
from vlm2rec.experiments.plan import BESIDES
from vlm2rec.experiments.runner import Asked, plan_experiments, run_experiment
from vlm2rec.experiments.schedule import Task
from vlm2rec.experiments.sizes import PUBLISHED, size_of

QWEN = "Qwen/Qwen2.5-VL-3B-Instruct"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("amazon-*.toml"))


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_matrix_product", lambda: (10e12, "a machine"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("llava"))


def test_published_shapes() -> None:
    shape = PUBLISHED["Qwen2.5-VL-3B"]
    assert shape.layers == pytest.approx(2.77e9, rel=0.002)  # counted on the model itself
    assert shape.adapters(16, False) == 29_933_568  # as PEFT counts them
    assert shape.adapters(16, True) < shape.adapters(16, False)
    embeddings = shape.vocabulary * shape.hidden
    assert shape.layers + embeddings + shape.vision == pytest.approx(3.75e9, rel=0.01)


def test_tokens_of_a_published_backbone(tiny_dataset: Dataset) -> None:
    config = make_config(tiny_dataset, Path("unused"), backbone={"path": QWEN, "image_size": 224})
    size = size_of(config, Split(tiny_dataset))
    assert size.item["image"] == pytest.approx(69, abs=3)  # 64 visual tokens and what parts them
    assert size.fixed["image"] + 10 * size.item["image"] == pytest.approx(700, rel=0.05)  # 685 measured
    assert "64 tokens a picture of 224 pixels" in size.assumed
    assert size.vision == pytest.approx(0.34e12, rel=0.02)


def test_a_backbone_that_is_here_is_read(tiny_dataset: Dataset, llava: Path) -> None:
    config = make_config(tiny_dataset, llava)
    size = size_of(config, Split(tiny_dataset))
    encoder = Encoder.build(config.backbone, config.prompt)
    for count in (1, 4):
        prompts = encoder.prompts(tiny_dataset, [[0] * count])
        assert size.tokens(count) == pytest.approx(sum(len(prompt.ids) for prompt in prompts), abs=2)
    encoder.add_lora(config.backbone.lora, 0)
    assert size.trainable == sum(p.numel() for p in encoder.parameters() if p.requires_grad) and not size.assumed


def tasks(*configs: Config) -> list[Task]:
    return [Task(f"{config.method.kind}-{place}", config, Path("nowhere") / str(place), "evaluate")
            for place, config in enumerate(configs)]  # fmt: skip


def hours(text: str, name: str) -> float:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line.split()[-1])


def test_hours_follow_from_operations_and_the_rate(tiny_dataset: Dataset) -> None:
    big = {"backbone": {"path": QWEN, "image_size": 224, "lora": {"rank": 16}}, "preset": "paper"}

    def text(**training: object) -> str:
        settings = {"epochs": 3, "batch_size": 4, "samples": "last", **training}
        raw = raw_config(tiny_dataset, Path("unused"), "sft", **big, training=settings)
        return plan_text(tasks(parse_config({**raw, "training": settings})), 1)

    said = text()
    assert "29,933,568" in said
    assert "rate: 3 TFLOP/s, assumed: 30% of a matrix product on a machine (10 TFLOP/s)" in said
    # 40 users, three epochs: about 120 samples of 600 tokens at four operations a parameter and token, and as much
    # again to embed users and items five times.
    assert 0.1 < hours(said, "sft-0") < 0.5
    assert hours(text(epochs=6), "sft-0") > 1.5 * hours(said, "sft-0")
    assert hours(text(gradient_checkpointing=True), "sft-0") > 1.1 * hours(said, "sft-0")


def test_figures_before_training_are_counted_once(tiny_dataset: Dataset) -> None:
    configs = [
        make_config(tiny_dataset, Path("unused"), kind, backbone={"path": QWEN}, training={"epochs": 1})
        for kind in ("sft", "sft")
    ]
    said = plan_text(tasks(*configs), 1)
    assert hours(said, "sft-0") > hours(said, "sft-1")


def test_what_cannot_be_estimated_is_said(tiny_dataset: Dataset) -> None:
    unknown = make_config(tiny_dataset, Path("some/other-model"), "sft")
    said = plan_text(tasks(unknown, make_config(tiny_dataset, Path("unused"), "poprec")), 1)
    assert "not estimated: some/other-model is not on this machine, and its size is not known" in said
    assert "2 runs, 0 done" in said


def test_finished_runs_give_the_rate(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    raw = raw_config(tiny_dataset, llava, "sft")
    raw["training"]["epochs"] = 1
    raw["monitor"] = {"probes": 0}
    tiny = write_config(tmp_path / "tiny.toml", parse_config(raw))
    run_experiment("table1", tiny, tmp_path / "out", seeds=(0,), only=["vlm2rec"], say=lambda line: None)
    asked = ["experiment", "run", "table1", str(tiny), "--out", str(tmp_path / "out"), "--seeds", "0,1", "--plan"]
    said = CliRunner().invoke(app, [*asked, "--without", "vlm_sft_ext"]).output
    assert "3 runs, 1 done" in said and "as the 1 finished runs reached it" in said
    states = {
        match[1]: match[2] for match in re.finditer(r"^(VLM\S*(?: vanilla \(Ext\.\))?, seed \d) +(\w+)", said, re.M)
    }
    assert states == {"VLM vanilla (Ext.), seed 0": "to", "VLM2Rec, seed 0": "done", "VLM2Rec, seed 1": "to"}
    assert not (tmp_path / "out" / "runs" / "vlm2rec-seed1").exists()  # nothing was run


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_configurations_of_the_papers_data_plan_every_experiment(
    config: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    here = tiny_dataset.path
    data = [f"data.path='{here}'", f"source.path='{here / '..' / here.name}'", "datasets=[]"]
    names = ["all", "table2", "table4", "table6", "figure4", "missing"]
    said = plan_experiments(Asked(names, config, tmp_path, overrides=data, seeds=(0,)), say=lambda line: None)
    assert "VLM2Rec, seed 0" in said and "Qwen2.5-VL-7B, VLM2Rec, seed 0" in said and "NoteLLM-2, seed 0" in said
    assert "VLM2Rec, on the source, seed 0" in said and "τ of CRTR = 0.001, seed 0" in said
    assert "29,933,568" in said and "InternVL3-8B, VLM2Rec" in said
    # Read by name as the paper has it: a misspelt key in any of them would have been refused.
    assert said.count("not estimated: OpenGVLab/InternVL3-8B-hf is not on this machine") == 2
    assert list(tmp_path.iterdir()) == []


def test_all_packaged_configurations_are_valid() -> None:
    for path in CONFIGS[0].parent.glob("*.toml"):
        raw = {"method": {"kind": "sft"}, **read_toml(path)}
        parse_config({key: value for key, value in raw.items() if key not in BESIDES}, origin=path.name)


def test_a_gate_counts_too(tiny_dataset: Dataset, llava: Path) -> None:
    split, gate = Split(tiny_dataset), {"combine": "gated"}
    read = [size_of(make_config(tiny_dataset, llava, prompt=prompt), split).trainable for prompt in ({}, gate)]
    assert read[1] - read[0] == 32 * 65
    at = {"backbone": {"path": QWEN}}
    known = [size_of(make_config(tiny_dataset, llava, prompt=prompt, **at), split).trainable for prompt in ({}, gate)]
    assert known[1] - known[0] == 2048 * 4097


def test_a_language_model_reads_no_pictures(tiny_dataset: Dataset) -> None:
    config = make_config(tiny_dataset, Path("unused"), backbone={"path": "Qwen/Qwen2.5-3B-Instruct"})
    with pytest.raises(InputError, match="reads no pictures"):
        size_of(config, Split(tiny_dataset))
