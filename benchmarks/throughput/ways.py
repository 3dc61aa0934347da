"""Ways to make the same training step: ours, and the usual loop written with transformers and peft alone.

A way's `ready` makes a batch ready, outside the clock, and returns the step: forward, loss, backward. Ours has its
prompts still to make then; the usual loop is given its token ids and pixels, as data loaders would have them waiting.

All share one set of weights, adapters included; each has gradients of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from shared import Bench, Group
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from vlm2rec.backbones.load import BUILT_IN
from vlm2rec.backbones.vision import Pixels
from vlm2rec.methods.vlm import training_step
from vlm2rec.training.batches import Batch, Samples, objective_arguments

Step = Callable[[], float]
Backward = Callable[[Tensor], None]


class Way(Protocol):
    """One way to make a training step."""

    name: str
    model: nn.Module
    samples: Samples

    def ready(self, number: int, backward: Backward = Tensor.backward) -> Step:
        """The step of a batch; it returns the loss."""
        ...


class Ours:
    """`methods.vlm.training_step`, as a user gets it: one target a sample, or every prefix a branch."""

    def __init__(self, bench: Bench, batch: int, branched: bool = False) -> None:
        self.name = "vlm2rec, all prefixes" if branched else "vlm2rec"
        self.model: nn.Module = bench.encoder
        self.samples = bench.samples(batch, branched)
        config = bench.config(batch, branched)
        self._step = training_step(self.samples, bench.split, bench.encoder, bench.objective, config)
        self._bench = bench

    def ready(self, number: int, backward: Backward = Tensor.backward) -> Step:
        self._bench.groups(self.samples.batch(number))  # so that every picture was looked at, as after an epoch
        return lambda: self._step(number, backward)["loss"]


class Usual:
    """What `Plain` and sentence-transformers share: passes one by one, and the loss at their vectors."""

    name: str
    model: nn.Module

    def __init__(self, bench: Bench, samples: Samples) -> None:
        self.bench, self.samples = bench, samples

    def ready(self, number: int, backward: Backward = Tensor.backward) -> Step:
        batch = self.samples.batch(number)
        passes = [self.embedder(group) for group in self.bench.groups(batch)]

        def step() -> float:
            vectors = torch.cat([embed() for embed in passes])
            loss = self.loss(batch, vectors)
            backward(loss)
            return float(loss.detach())

        return step

    def embedder(self, group: Group) -> Callable[[], Tensor]:
        """All of a group's inputs, in host memory, and how they become its vectors `(n, D)`."""
        raise NotImplementedError

    def loss(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Our objective, fused as ours are."""
        encoder, split, config = self.bench.encoder, self.bench.split, self.bench.config(8)
        rows = (batch.histories, [[item] for item in batch.targets])
        queries = len(batch.histories) * len(encoder.passes)
        query, target = (
            encoder.assemble(part, encoder.there(split.dataset, some))
            for part, some in zip((vectors[:queries], vectors[queries:]), rows, strict=True)
        )
        arguments = objective_arguments(batch, split, config.objective.logq, encoder.device)
        found: Tensor = self.bench.objective(query, target, *arguments)
        return found


class Plain(Usual):
    """The usual loop, fairly written.

    Four padded forwards; the pictures of a pass go through the frozen tower at once, under no_grad, at every step; rows
    are padded on the right to their longest and carry no attention mask, which a causal model needs none of.
    """

    def __init__(self, bench: Bench, samples: Samples, stock: "Stock", checkpointing: bool) -> None:
        super().__init__(bench, samples)
        self.name = "usual loop, checkpointing" if checkpointing else "usual loop"
        self.model = stock.model
        self._stock, self._checkpointing = stock, checkpointing

    def embedder(self, group: Group) -> Callable[[], Tensor]:
        model, device = self._stock.model, self._stock.model.device
        lengths = torch.tensor([len(prompt.ids) for prompt in group.prompts])
        ids = padded(group)
        pixels = pixels_of(self.bench, group.items)

        checkpoint(model, self._checkpointing)

        def embed() -> Tensor:
            return last_states(model, ids.to(device), lengths.to(device), self.bench, pixels)

        return embed


class Stock:
    """The model as transformers loads it, with peft's adapters, on the weights of the encoder."""

    def __init__(self, bench: Bench) -> None:
        own = bench.encoder.backbone.model
        path = str(BUILT_IN) if bench.asked.backbone == "nano" else bench.asked.backbone
        model = AutoModel.from_pretrained(path, dtype=own.dtype).requires_grad_(False)
        self.model = adapted(model, bench.lora())
        share(own, self.model)


def adapted(model: PreTrainedModel, settings: LoraConfig) -> PreTrainedModel:
    """The model with peft's adapters in it.

    peft also asks for gradients at all embeddings, patches too, for checkpointing as it once was; nothing here needs
    them, and they would cost a way back through the tower.
    """
    found: PreTrainedModel = get_peft_model(model, settings).get_base_model()
    found.disable_input_require_grads()
    return found


def share(own: nn.Module, other: nn.Module) -> None:
    """Let `other` use the memory of all weights of `own`, adapters too."""
    buffers = dict(own.named_buffers())
    other.load_state_dict(own.state_dict(), assign=True)
    for name, _ in other.named_buffers():  # those that no checkpoint holds, rotary frequencies say
        module, _, last = name.rpartition(".")
        setattr(other.get_submodule(module), last, buffers[name])
    train(other)


def train(model: PreTrainedModel) -> None:
    """Training mode, but for the towers, which stay as they are."""
    model.train()
    for child in model.children():
        if child is not model.get_decoder():
            child.eval()


def checkpoint(model: PreTrainedModel, on: bool) -> None:
    """Keep the inputs of layers alone for the way back, or all activations."""
    if on and not model.is_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers then sends gradients through frozen towers
            model.disable_input_require_grads()
    elif not on and model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()


def last_states(
    model: PreTrainedModel, ids: Tensor, lengths: Tensor, bench: Bench, pixels: Pixels | None = None
) -> Tensor:
    """State of the last real token of each row, `(n, D)`, of ids `(n, L)` padded on the right."""
    inputs: dict[str, Any] = dict(bench.encoder.backbone.kinds(ids))
    if pixels is not None:
        given = {name: value.to(model.device, non_blocking=True) for name, value in pixels.inputs.items()}
        with torch.no_grad():
            inputs["mm_encoder_outputs"] = {"image": model.get_image_features(**given)}
        if "image_grid_thw" in given:
            inputs["image_grid_thw"] = given["image_grid_thw"]
    states: Tensor = model(input_ids=ids, use_cache=False, **inputs).last_hidden_state
    return states[torch.arange(len(ids), device=states.device), lengths - 1]


def padded(group: Group) -> Tensor:
    """Ids `(n, L)`, padded on the right with 0."""
    longest = max(len(prompt.ids) for prompt in group.prompts)
    return torch.tensor([[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in group.prompts])


def pixels_of(bench: Bench, items: Sequence[int]) -> Pixels | None:
    """Pixels of the items' pictures by the family's image processor; None where there are none."""
    found: list[np.ndarray] = [picture for item in items if (picture := bench.split.dataset.pictures[item]) is not None]
    assert bench.encoder.backbone.vision is not None
    return bench.encoder.backbone.vision.prepare(found) if found else None
