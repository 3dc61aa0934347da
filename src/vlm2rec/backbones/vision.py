"""From pictures to visual tokens: the frozen vision tower and projector, run once a picture.

The tower and the projector are frozen, so a picture's tokens never change: they are kept, in host memory, and handed
to the language model through `mm_encoder_outputs`. Qwen3-VL's deep-stacked features travel with them.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm2rec.errors import InputError

_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask")
# Processors that cut a picture into tiles are told not to: ten pictures must fit a context.
_TILING = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")


class Visual(NamedTuple):
    """One picture's visual tokens `(n, D)`, its patch grid `(3,)` and deep-stacked features `(n, D)` if any."""

    tokens: Tensor
    grid: Tensor | None = None
    deepstack: tuple[Tensor, ...] = ()

    @property
    def bytes(self) -> int:
        """Memory that the tokens and the deep-stacked features take."""
        return sum(part.nbytes for part in (self.tokens, *self.deepstack))


class Pixels(NamedTuple):
    """Pictures as the tower takes them: how many, and its inputs by name, in host memory."""

    pictures: int
    inputs: dict[str, Tensor]


class VisionTower:
    """Image processor, tower and projector of a vision-language model."""

    def __init__(self, model: PreTrainedModel, processor: Any, image_size: int | None) -> None:
        self.model = model
        self.processor = processor
        self.image_size = image_size
        self._stacks = False

    @classmethod
    def load(cls, path: str, model: PreTrainedModel, image_size: int | None) -> "VisionTower":
        """Read the checkpoint's image processor, in its PIL version: it needs no torchvision.

        Raises:
            InputError: the checkpoint has none.
        """
        try:
            processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"backbone.path = {path!r}: has a vision tower but no image processor ({reason}); "
                "add its preprocessor_config.json"
            ) from None
        for option in _TILING:
            if hasattr(processor, option):
                setattr(processor, option, False)
        return cls(model, processor, image_size)

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Visual]:
        """Visual tokens of RGB pictures, each `(H, W, 3)` uint8, in the model's dtype on the model's device."""
        return self.look(self.prepare(pictures))

    def prepare(self, pictures: Sequence[np.ndarray]) -> Pixels:
        """What the tower is given of RGB pictures, each `(H, W, 3)` uint8; the part that threads can do ahead."""
        inputs = self.processor(images=[self._image(picture) for picture in pictures], return_tensors="pt")
        found = {name: inputs[name] for name in _INPUTS if name in inputs}
        if self.model.device.type == "cuda":
            with torch.cuda.device(self.model.device):  # a thread starts on the first GPU, whichever is ours
                found = {name: value.pin_memory() for name, value in found.items()}
        return Pixels(len(pictures), found)

    @torch.no_grad()
    def look(self, pixels: Pixels) -> list[Visual]:
        """Visual tokens of prepared pictures, in the model's dtype on the model's device."""
        given = {name: value.to(self.model.device, non_blocking=True) for name, value in pixels.inputs.items()}
        # Frozen: dropout would leave what is kept to chance. The language model's hundreds of modules are left alone.
        language = self.model.get_decoder()
        eyes = [part for part in self.model.children() if part.training and part is not language]
        for part in eyes:
            part.eval()
        outputs = self.model.get_image_features(**given)
        for part in eyes:
            part.train()
        self._stacks = isinstance(outputs.pooler_output, Tensor)
        grids = pixels.inputs.get("image_grid_thw")
        if grids is None:
            sizes = None
        else:
            sizes = (grids.prod(-1) // self.model.config.vision_config.spatial_merge_size**2).tolist()
        count = pixels.pictures
        tokens = _per_picture(outputs.pooler_output, count, sizes)
        layers = [_per_picture(layer, count, sizes) for layer in outputs.get("deepstack_features") or ()]
        return [
            Visual(
                tokens[i].to(self.model.dtype),
                None if grids is None else grids[i],
                tuple(layer[i].to(self.model.dtype) for layer in layers),
            )
            for i in range(count)
        ]

    def inputs(self, visuals: Sequence[Visual]) -> dict[str, Any]:
        """Model inputs that put kept visual tokens, in reading order, in the place of pixels."""
        device = self.model.device
        tokens = [visual.tokens.to(device, non_blocking=True) for visual in visuals]
        # A family takes back what it gives: a list of pictures, or one `(pictures, n, D)` tensor.
        outputs = BaseModelOutputWithPooling(pooler_output=torch.stack(tokens) if self._stacks else tokens)
        depth = len(visuals[0].deepstack)
        if depth:
            outputs["deepstack_features"] = [
                [v.deepstack[level].to(device, non_blocking=True) for v in visuals] for level in range(depth)
            ]
        inputs: dict[str, Any] = {"mm_encoder_outputs": {"image": outputs}}
        grids = [visual.grid for visual in visuals if visual.grid is not None]
        if grids:
            inputs["image_grid_thw"] = torch.stack(grids).to(device)
        return inputs

    def _image(self, picture: np.ndarray) -> Image.Image:
        image = Image.fromarray(picture)
        if self.image_size is not None:
            image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return image


def _per_picture(features: Any, count: int, sizes: list[int] | None) -> list[Tensor]:
    """Split a family's answer, a tensor or a list of them, into one `(n, D)` a picture."""
    flat = features if isinstance(features, Tensor) else torch.cat(list(features))
    flat = flat.reshape(-1, flat.shape[-1])
    return list(torch.split(flat, sizes if sizes is not None else len(flat) // count))


def on_host(visuals: Sequence[Visual]) -> list[Visual]:
    """Visuals of a GPU in host memory, page-locked so that they can come back while the GPU computes.

    All pictures' tokens move as one block. Wait for the stream before the host reads them.
    """
    sizes = [len(visual.tokens) for visual in visuals]
    levels = zip(*((visual.tokens, *visual.deepstack) for visual in visuals), strict=True)
    moved = [torch.split(_page_locked(torch.cat(level)), sizes) for level in levels]
    return [
        Visual(tokens, visual.grid, tuple(stacked))
        for visual, (tokens, *stacked) in zip(visuals, zip(*moved, strict=True), strict=True)
    ]


def host_room() -> int:
    """Bytes of host memory that kept tokens may take in this process: a quarter of the machine's, shared out."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // 4 // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _page_locked(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
