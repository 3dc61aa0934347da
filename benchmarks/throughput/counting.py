"""True size without the machine for it: one batch's operations and memory, counted, and the time they cannot go below.

The real code runs, ours and the usual loop, on a model whose weights have shapes and no numbers (fake tensors that say
they are on a CPU; ids and positions are real). So what is counted is what runs, in bfloat16, layers not compiled. Two
things are left out: the objective, some products of (batch, batch), and the dropout of adapters in our way, of which it
keeps nothing but a seed. Attention is one kernel that keeps its inputs, its output and a number a row, as on a GPU.

Memory is the storage of all tensors alive, so it knows no allocator's gaps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from measure import GIB, Read, counter
from memory import Live
from presets import Preset
from shared import Asked, Bench, Group
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModel, PreTrainedModel
from ways import adapted, checkpoint, last_states, padded, pixels_of, train

from vlm2rec.backbones.gallery import Gallery
from vlm2rec.backbones.packing import Prompt
from vlm2rec.backbones.recompute import recompute
from vlm2rec.backbones.vision import VisionTower
from vlm2rec.encoder import Encoder


@dataclass(frozen=True)
class Count:
    """Of one step: tokens read; operations forth and back; bytes of weights, kept for the way back, at most."""

    tokens: int
    forward: int
    backward: int
    weights: int
    kept: int
    peak: int

    @property
    def flops(self) -> int:
        return self.forward + self.backward


def report(
    asked: Asked, preset: Preset, batches: list[int], targets: int | None, tflops: float, bandwidth: float
) -> None:
    """Count every batch size and print the table; `asked.backbone` is the preset made narrow."""
    plan = Plan(asked, preset)
    for tower, counts in plan.bench.encoder.towers().items():
        print(f"{tower:12}{counts['all']:16,} parameters, {counts['trainable']:,} of them trained")
    print(f"floors: {tflops:g} TFLOP/s and {bandwidth / 1e12:g} TB/s; at half of it, twice the time")
    print(
        f"{'':44}{'tokens':>8}{'TFLOP forth':>12}{'back':>8}{'weights':>9}{'kept':>8}{'peak GiB':>10}{'floor ms':>10}"
        f"{'a second':>10}{'at half':>9}"
    )
    for batch in batches:
        many = targets or max(2 * asked.history, 4 * batch)
        for name, samples, count in (
            ("vlm2rec", batch, partial(plan.ours, batch, False)),
            ("vlm2rec, all prefixes", many, partial(plan.ours, many, True)),
            ("usual loop, checkpointing", batch, partial(plan.usual, batch, True)),
            ("usual loop", batch, partial(plan.usual, batch, False)),
        ):
            found = count()
            floor = max(found.flops / (tflops * 1e12), 2 * found.weights / bandwidth)  # weights are read there and back
            print(
                f"{f'{name}, {samples} samples':44}{found.tokens:8}"
                f"{found.forward / 1e12:12.2f}{found.backward / 1e12:8.2f}"
                f"{found.weights / GIB:9.2f}{found.kept / GIB:8.2f}{found.peak / GIB:10.2f}{1000 * floor:10.1f}"
                f"{samples / floor:10.1f}{samples / floor / 2:9.1f}",
                flush=True,
            )


class Plan:
    """A bench whose backbone was exchanged for one of the published size, without numbers."""

    def __init__(self, asked: Asked, preset: Preset) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.bench = Bench(asked, dropout=0.0)
        encoder = self.bench.encoder
        narrow = encoder.backbone.model
        self._preset = preset
        model = self._empty()
        for own, other in zip(_configs(model), _configs(narrow), strict=True):
            own._attn_implementation = other._attn_implementation
        _swap(encoder, model)
        config = self.bench.config(8)
        encoder.add_lora(config.backbone.lora, seed=0)
        recompute(encoder.backbone, config.training.gradient_checkpointing)
        self._fake(model)
        train(model)
        self._stock: PreTrainedModel | None = None

    def ours(self, batch: int, branched: bool) -> Count:
        """`Encoder.forward` on the prompts of a batch, as the training step calls it."""
        encoder = self.bench.encoder
        made = self.bench.samples(batch, branched).batch(0)
        prompts: list[Prompt] = [prompt for group in self.bench.groups(made) for prompt in group.prompts]
        return counted(encoder.backbone.model, lambda: encoder(prompts))

    def usual(self, batch: int, checkpointing: bool) -> Count:
        """The usual loop, as `ways.Plain` runs it, dropout and all."""
        model = self.stock
        checkpoint(model, checkpointing)
        groups = self.bench.groups(self.bench.samples(batch).batch(0))
        return counted(model, lambda: torch.cat([self._embed(model, group) for group in groups]))

    @property
    def stock(self) -> PreTrainedModel:
        """The same as transformers and peft make it, with weights of its own, which cost nothing."""
        if self._stock is None:
            settings = self.bench.lora()
            settings.lora_dropout = 0.2
            self._stock = adapted(self._empty(), settings)
            self._fake(self._stock)
            train(self._stock)
        return self._stock

    def _embed(self, model: PreTrainedModel, group: Group) -> Tensor:
        lengths = torch.tensor([len(prompt.ids) for prompt in group.prompts])
        return last_states(model, padded(group), lengths, self.bench, pixels_of(self.bench, group.items))

    def _empty(self) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModel.from_config(self._preset.config(), dtype=torch.bfloat16).requires_grad_(False)

    def _fake(self, model: nn.Module) -> None:
        """Weights without numbers that say they are on a CPU, where those on the device "meta" say they are not."""

        def named(tensor: Tensor) -> Tensor:
            return FakeTensor(self.mode, tensor.detach().to("meta"), torch.device("cpu"))

        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(named(weight), weight.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, named(buffer))


def counted(model: nn.Module, embed: Callable[[], Tensor]) -> Count:
    """Operations and memory of embedding, and of a way back that starts with a gradient for every vector.

    Two steps: the counter of operations holds on to what checkpointing computes again.
    """
    weights = [*model.parameters(), *model.buffers()]
    size = sum(weight.nbytes for weight in weights)
    model.zero_grad(set_to_none=True)
    with Live(weights) as live:
        loss = embed().float().square().sum()
        kept = live.now
        loss.backward()
    del loss
    model.zero_grad(set_to_none=True)
    read = Read(model)
    with counter() as whole:
        loss = embed().float().square().sum()
        forward = whole.get_total_flops()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return Count(read.close(), forward, whole.get_total_flops() - forward, size, kept, size + live.peak)


def _swap(encoder: Encoder, model: PreTrainedModel) -> None:
    vision = encoder.backbone.vision
    assert vision is not None
    vision = VisionTower(model, vision.processor, vision.image_size)
    encoder.backbone = replace(encoder.backbone, model=model, vision=vision)
    encoder.model, encoder.adapter = model, None
    encoder.gallery = Gallery(vision, keep=True)


def _configs(model: PreTrainedModel) -> list[Any]:
    config = model.config
    return [config, config.get_text_config(), config.vision_config]
