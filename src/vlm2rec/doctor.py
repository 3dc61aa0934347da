"""What this machine is, and what a configuration would ask of it."""

import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from vlm2rec.alternatives import alternatives_text
from vlm2rec.config import Config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.space import Space
from vlm2rec.diagnostics.spread import effective_rank, isotropy
from vlm2rec.encode import embed
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.methods.reading import BY_BACKBONE, english, readers, reading, unreadable, without_hours
from vlm2rec.training.loop import memory_gib

LOOKED_AT, JUDGED = 64, 32
"""Items that are embedded, and from how many on their spread is judged."""
NARROW = 0.15
"""Of as many directions as items: nano on its shop .24, on real titles .07 to .13; smol on real titles .44 and .58."""
_AT_ONCE = 8

_PACKAGES = ("vlm2rec", "torch", "transformers", "peft", "accelerate", "tokenizers", "polars", "numpy", "gguf")
_GIB = 2**30


def examine(config: Config | None) -> str:
    """The environment and, for a configuration, whether it can read its data set, and what it would train, as text.

    The plan counts weights, adapters with their gradients and AdamW's two moments; activations depend on the
    prompts and come on top. Of the data set, where it is there, a sample of titles is read and one of items embedded.

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
    if config is None:
        return "\n".join(lines)
    encoder = Encoder.build(config.backbone, config.prompt)
    return "\n".join([*lines, *_fit(config, encoder), *_plan(config, encoder)])


def _fit(config: Config, encoder: Encoder) -> list[str]:
    """Whether titles and items come through: measured on the data set, where it is there."""
    try:
        dataset = Dataset.load(config.data.path)
    except InputError:
        return ["", f"data          no data set at {config.data.path}: whether its titles can be read is not known"]
    lines = ["", f"data          {config.data.path}: {len(dataset.titles):,} items"]
    warnings = list(map(without_hours, unreadable(config, dataset)))
    for path in readers(config):
        how = reading(path, dataset.titles)
        if how is not None:
            title, tokens = how.example
            lines.append(
                f"titles        {path}: {how.apart:.0%} of {how.titles:,} fall apart into single letters,"
                f" {how.letters_a_token:.1f} letters a token ({title!r}: {tokens} tokens)"
            )
    found = look(encoder, dataset) if config.method.kind in BY_BACKBONE else None
    if found is not None:
        for view, (rank, cosine) in found.views.items():
            lines.append(
                f"{view:<13} {found.items} items spread over {rank:.1f} directions (effective rank), mean cosine"
                f" {cosine:.3f}"
            )
        flat = [view for view, (rank, _) in found.views.items() if rank < NARROW * found.items]
        if flat and found.items >= JUDGED:
            warnings.append(
                f"{config.backbone.path} hardly tells these items apart: its vectors ({' and '.join(flat)}) spread over"
                f" fewer than {NARROW:.0%} as many directions as there are items"
            )
    lines += [f"warning       {warning}" for warning in warnings]
    return [*lines, *(["", alternatives_text(Split(dataset))] if warnings and english(dataset.titles) else [])]


@dataclass(frozen=True)
class Look:
    """A sample of items as a backbone embeds them before any training: view -> effective rank, mean cosine."""

    items: int
    views: dict[str, tuple[float, float]]


def look(encoder: Encoder, dataset: Dataset, seconds: float = 20.0) -> Look | None:
    """Embed up to `LOOKED_AT` items, as many as that time is enough for; None where there are fewer than two.

    The effective rank is what tells a backbone that sees nothing from one that does; the mean cosine does not (that of
    language models is .99 as they come).
    """
    count = min(LOOKED_AT, len(dataset.titles))
    chosen = np.sort(np.random.default_rng(0).choice(len(dataset.titles), count, replace=False))
    parts, began = list[dict[str, np.ndarray]](), time.monotonic()
    for start in range(0, count, _AT_ONCE):
        if parts and time.monotonic() - began > seconds:
            break
        parts.append(embed(encoder, dataset, [[int(item)] for item in chosen[start : start + _AT_ONCE]]))
    views = {view: Space(np.concatenate([part[view] for part in parts])) for view in (parts[0] if parts else {})}
    if not views or len(next(iter(views.values())).lengths) < 2:
        return None
    named = {"fused": "both together", "text": "titles", "image": "pictures"} if len(views) > 1 else {"fused": "all"}
    return Look(
        len(next(iter(views.values())).lengths),
        {named.get(view, "vectors"): (effective_rank(space, 0), isotropy(space)) for view, space in views.items()},
    )


def _plan(config: Config, encoder: Encoder) -> list[str]:
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
