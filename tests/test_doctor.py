"""What the program says about the machine, and about what a configuration would train."""

from pathlib import Path

import families
import pytest
from tiny_job import make_config

from vlm2rec.doctor import examine
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: families.build(family, root / family) for family in ("llava", "qwen2_5_vl", "qwen2")}


def test_the_environment() -> None:
    said = examine(None)
    for name in ("python", "vlm2rec", "torch", "transformers", "peft", "accelerate", "polars", "numpy", "GPU"):
        assert any(line.startswith(name) for line in said.splitlines()), name
    assert "backbone" not in said


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_parameters_by_tower(folders: dict[str, Path], family: str) -> None:
    config = make_config(Path("unused"), folders[family])
    lines = examine(config).splitlines()
    encoder = Encoder.build(config.backbone, config.prompt)
    encoder.add_lora(config.backbone.lora, 0)
    found = {line.split()[0]: line for line in lines if "parameters" in line}
    assert set(found) == {"language", "vision", "projector"}
    trainable = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert found["language"].endswith(f" {trainable:,} trainable")
    assert all(found[tower].endswith(" 0 trainable") for tower in ("vision", "projector"))
    total = sum(int(line.split()[1].replace(",", "")) for line in found.values())
    assert total == sum(p.numel() for p in encoder.parameters())
    whole = "\n".join(lines)
    assert family in whole and "32-d embeddings" in whole and "context 512" in whole and "float32" in whole
    assert "text, image" in whole and "GiB weights" in whole


def test_a_gate_is_counted(folders: dict[str, Path]) -> None:
    plain = examine(make_config(Path("unused"), folders["llava"]))
    gated = examine(make_config(Path("unused"), folders["llava"], prompt={"combine": "gated"}))
    line = next(line for line in gated.splitlines() if line.startswith("gate"))
    assert line.split() == ["gate", "2,080", "parameters,", "2,080", "trainable"]
    assert "gate" not in plain


def test_a_language_model(folders: dict[str, Path]) -> None:
    config = make_config(Path("unused"), folders["qwen2"], "sft", prompt={"modalities": "text"})
    said = examine(config)
    assert "vision" not in said and "language" in said
    with pytest.raises(InputError, match="reads no pictures"):
        examine(make_config(Path("unused"), folders["qwen2"]))


def test_a_backbone_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"backbone\.path"):
        examine(make_config(Path("unused"), tmp_path / "absent"))
