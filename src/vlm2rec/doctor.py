"""What this machine is, and what a configuration would ask of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from vlm2rec.config import Config
from vlm2rec.encoder import Encoder
from vlm2rec.training.loop import memory_gib

_PACKAGES = ("vlm2rec", "torch", "transformers", "peft", "accelerate", "tokenizers", "polars", "numpy", "gguf")
_GIB = 2**30


def examine(config: Config | None) -> str:
    """The environment and, for a configuration, its trainable parameters by tower and its memory plan, as text.

    The plan counts weights, adapters with their gradients and AdamW's two moments; activations depend on the
    prompts and come on top.

    Raises:
        InputError: the backbone cannot be loaded, or does not fit the prompt settings.
    """
    lines = [f"python        {platform.python_version()} on {platform.machine()}, {torch.get_num_threads()} threads"]
    lines += [f"{package:<14}{_version(package)}" for package in _PACKAGES]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        lines.append(f"GPU           {torch.cuda.get_device_name()}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
    else:
        lines.append("GPU           none: float32 on the CPU")
    return "\n".join(lines if config is None else lines + _plan(config))


def _plan(config: Config) -> list[str]:
    encoder = Encoder.build(config.backbone, config.prompt)
    encoder.add_lora(config.backbone.lora, config.seed)
    model = encoder.backbone.model
    weights, adapters = memory_of(encoder)
    lines = [
        "",
        f"backbone      {config.backbone.path}: {model.config.model_type}, {encoder.backbone.dim}-d embeddings,"
        f" context {encoder.backbone.context}, {str(model.dtype).removeprefix('torch.')}",
        f"passes        {', '.join(encoder.passes)} (prompt.fusion = {config.prompt.fusion})",
    ]
    packed = "in rows without padding" if encoder.unpacked is None else f"padded: the model {encoder.unpacked}"
    lines.append(f"prompts       {packed}")
    for tower, counts in encoder.towers().items():
        lines.append(f"{tower:<14}{counts['all']:,} parameters, {counts['trainable']:,} trainable")
    lines.append(f"memory        {weights:.2f} GiB weights + {adapters:.3f} GiB gradients and moments + activations")
    lines.append(f"              ({memory_gib():.2f} GiB at most in use while this was found out)")
    return lines


def memory_of(model: torch.nn.Module) -> tuple[float, float]:
    """GiB of all weights, and of what training adds to them: a gradient and two moments a trainable parameter."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / _GIB
    return weights, sum(p.numel() * p.element_size() for p in trainable) * 3 / _GIB


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
