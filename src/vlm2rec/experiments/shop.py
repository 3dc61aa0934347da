"""The built-in shop as an experiment's configuration: nothing to download but two PyPI wheels."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlm2rec.config import read_toml
from vlm2rec.experiments.plan import merged

_QUICK_SHOPPERS = 500
_OTHER_SEED = 1  # of the shop that table 6 trains on: other products and other shoppers


def shop(out: Path, quick: bool, other: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The shop, `nano`, and two small encoders, with settings that suit them; `other` draws a second shop too."""
    from vlm2rec.backbones.small import build_efficientnet, build_minilm

    say("drawing the shop and its shoppers")
    paths: dict[str, Any] = {"data": {"path": str(_draw(out / "data", 0, quick))}}
    if other:
        paths["source"] = {"path": str(_draw(out / "data-source", _OTHER_SEED, quick))}
    text = str(build_minilm(out / "backbones" / "minilm"))
    image = str(build_efficientnet(out / "backbones" / "efficientnet"))
    paths["rows"] = {
        "bert": {"method": {"path": text}},
        "pair": {"method": {"text": text, "image": image}},
        "slim": {"method": {"text_encoder": text}},
    }
    return merged(packaged("shop.toml"), paths)


def _draw(out: Path, seed: int, quick: bool) -> Path:
    from vlm2rec.data.prepare import bar, prepare
    from vlm2rec.data.sources.shop import ShopWorld

    world = ShopWorld(seed=seed, shoppers=_QUICK_SHOPPERS) if quick else ShopWorld(seed=seed)
    with bar() as progress:
        return prepare(world, out, picture_size=112, progress=progress).path


def packaged(name: str) -> dict[str, Any]:
    """A TOML file of this package."""
    return read_toml(Path(str(files("vlm2rec.experiments").joinpath(name))))
