"""Alignment: only the projector learns, the figures are those of the saved model, and a killed run loses nothing."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlm2rec.backbones.align as module
from vlm2rec.backbones.align import CUE, align, batch, split_by_title
from vlm2rec.backbones.efficientnet import EfficientNetLiteConfig
from vlm2rec.backbones.smol import image_processor
from vlm2rec.errors import InputError

SIDE = 32
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 30, 220), "white": (245, 245, 245)}
THINGS = [
    "mug", "lamp", "hat", "chair", "vase", "bag", "kite", "drum", "rug", "bowl", "belt", "clock", "desk", "fan",
    "globe", "jar",
]  # fmt: skip


@dataclass
class Shop:
    """Things in colours: the picture shows the colour, and nothing of the thing."""

    fingerprint: str = "shop-1"
    titles: Sequence[str] = field(default_factory=list)
    pictures: Sequence[np.ndarray | None] = field(default_factory=list)
    item_ids: Sequence[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def shop() -> Shop:
    rng = np.random.default_rng(0)
    titles, pictures = [], []
    for thing in THINGS:
        for colour, paint in COLOURS.items():
            titles.append(f"{colour} {thing}")
            noise = rng.integers(-15, 15, (SIDE, SIDE, 3))
            pictures.append(np.clip(np.array(paint) + noise, 0, 255).astype(np.uint8))
    return Shop("shop-1", titles, pictures, [f"i{n}" for n in range(len(titles))])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA with EfficientNet eyes."""
    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tokenizer = families.tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    eyes = EfficientNetLiteConfig(
        image_size=SIDE, stem_channels=8, stages=[[1, 3, 2, 1, 8], [1, 3, 2, 2, 12]], hidden_size=16, visual_tokens=4,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=eyes, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4, vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    image_processor(SIDE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def aligned(checkpoint: Path, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("aligned") / "out"
    return out, align(checkpoint, shop, out, steps=200, batch_size=8, lr=1e-2, holdout=0.25)


def test_only_the_projector_changes(checkpoint: Path, aligned: tuple[Path, dict]) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, aligned[0]))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == ("multi_modal_projector" not in name), name


def test_the_picture_helps_on_items_left_out(aligned: tuple[Path, dict]) -> None:
    """The colour word is all that can be learnt for unseen titles, and only from the right picture."""
    figures = aligned[1]["cross_entropy"]
    assert figures["after"]["real"] < figures["before"]["real"]
    assert figures["after"]["gain"] > 2 * figures["after"]["gain_se"]
    assert figures["after"]["real"] < figures["after"]["shuffled"]


@torch.no_grad()
def test_figures_are_those_of_the_saved_model(shop: Shop, aligned: tuple[Path, dict]) -> None:
    """Cached features, padded batches and picked states against the stock model, one item at a time, from pixels."""
    out, result = aligned
    model = LlavaForConditionalGeneration.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    processor = AutoImageProcessor.from_pretrained(out, backend="pil")
    total, tokens = 0.0, 0
    for item in result["held_out"]:
        row = shop.item_ids.index(item)
        title = tokenizer(" " + shop.titles[row], add_special_tokens=False)["input_ids"]
        prompt = tokenizer("<image>" * 4 + CUE, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *title]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        pixels = processor(images=[shop.pictures[row]], return_tensors="pt")["pixel_values"]
        total += float(model(input_ids=ids, labels=labels, pixel_values=pixels).loss) * len(title)
        tokens += len(title)
    assert result["cross_entropy"]["after"]["real"] == pytest.approx(total / tokens, rel=1e-4)


def test_everything_needed_is_in_the_folder(checkpoint: Path, aligned: tuple[Path, dict]) -> None:
    out, result = aligned
    names = {path.name for path in out.iterdir()}
    assert {path.name for path in checkpoint.iterdir()} <= names
    assert {"align.json", "align.jsonl"} <= names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert result["items"] == {"trained": 48, "held_out": 16, "left_out": 0}


def test_killed_and_continued_is_the_same(
    checkpoint: Path, shop: Shop, aligned: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(rows: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
        if step == 57:  # the last checkpoint is behind step 50
            raise KeyboardInterrupt
        return batch(rows, size, seed, step)

    def run() -> dict:
        return align(checkpoint, shop, tmp_path / "out", steps=200, batch_size=8, lr=1e-2, holdout=0.25)

    monkeypatch.setattr(module, "batch", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "batch", batch)
    assert run()["cross_entropy"] == aligned[1]["cross_entropy"]
    whole, pieces = (load_file(path / "model.safetensors") for path in (aligned[0], tmp_path / "out"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_called_again_it_does_nothing(checkpoint: Path, shop: Shop, tmp_path: Path) -> None:
    """Also in place, where the checkpoint has become the result."""
    place = tmp_path / "place"
    shutil.copytree(checkpoint, place)
    first = align(place, shop, place, steps=2, batch_size=4)
    written = (place / "model.safetensors").stat().st_mtime_ns
    assert align(place, shop, place, steps=2, batch_size=4) == first
    assert (place / "model.safetensors").stat().st_mtime_ns == written
    assert align(place, shop, tmp_path / "more", steps=3, batch_size=4)["request"] != first["request"]
    with pytest.raises(InputError, match="is not this alignment"):
        align(place, shop, tmp_path / "more", steps=4, batch_size=4)


def test_left_out_and_unusable_items_teach_nothing(checkpoint: Path, shop: Shop, tmp_path: Path) -> None:
    """Spoiling what is left out, or has no title or picture, leaves the weights as they are."""
    hidden = list(shop.item_ids[:3])

    def spoilt(paint: int) -> Shop:
        titles, pictures = list(shop.titles), list(shop.pictures)
        titles[0], pictures[1], titles[3], pictures[4] = "spoilt", pictures[paint], " ", None
        return Shop(f"shop-{paint}", titles, pictures, shop.item_ids)

    runs = [
        align(checkpoint, spoilt(paint), tmp_path / str(paint), steps=3, batch_size=4, leave_out=hidden)
        for paint in (8, 9)
    ]
    assert runs[0]["weights"] == runs[1]["weights"]
    assert runs[0]["items"]["trained"] + runs[0]["items"]["held_out"] == len(shop.titles) - 5
    assert not set(hidden) & set(runs[0]["held_out"])


def test_equal_titles_stay_on_one_side() -> None:
    titles = [f"title {n % 10}" for n in range(40)]
    trained, held = split_by_title(titles, 0.3, seed=0)
    assert sorted([*trained, *held]) == list(range(40))
    assert len(held) == 12
    assert not {titles[i] for i in trained} & {titles[i] for i in held}


def test_every_epoch_shows_every_item_once() -> None:
    rows = np.arange(100, 112)
    seen = np.concatenate([batch(rows, 4, seed=1, step=k) for k in range(3)])
    again = np.concatenate([batch(rows, 4, seed=1, step=k) for k in range(3, 6)])
    assert sorted(seen) == sorted(again) == list(rows)
    assert seen.tolist() != again.tolist()
    assert len(batch(rows[:3], 4, seed=1, step=7)) == 3


def test_wrong_input(checkpoint: Path, shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        align(tmp_path / "nothing", shop, tmp_path / "out")
    with pytest.raises(InputError, match="only 0 different titles"):
        align(checkpoint, shop, tmp_path / "out", leave_out=shop.item_ids)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not this alignment"):
        align(checkpoint, shop, tmp_path, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
