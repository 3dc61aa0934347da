"""Activations computed again: less is kept, and the gradients are the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from torch import Tensor

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.recompute import Recompute, recompute
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig
from vlm2rec.data.dataset import Catalogue
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError

SHELF: Catalogue = SimpleNamespace(titles=["a red lamp", "a blue mug", "tea"], pictures=[None] * 3)
HISTORIES = [[0, 1], [2], [1, 2, 0]]


@pytest.fixture(scope="module", params=["llava", "qwen2", "qwen2_5_vl"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Encoder]:
    folder: Path = families.build(request.param, tmp_path_factory.mktemp("backbone") / request.param)

    def made() -> Encoder:
        encoder = Encoder.build(BackboneConfig(path=str(folder)), PromptConfig(modalities="text"))
        encoder.add_lora(LoraSettings(rank=2, dropout=0.3), seed=0)
        torch.manual_seed(0)
        families.wake(encoder, std=0.1)
        return encoder.train()

    return made


def step(encoder: Encoder) -> tuple[int, list[Tensor]]:
    """Bytes held for the backward pass, apart from parameters, and the vectors and gradients of one seed."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, int] = {}
    kept = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vectors = encoder(encoder.prompts(SHELF, HISTORIES))
    total = sum(held.values())
    vectors.tanh().sum().backward()
    return total, [vectors.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)]


def test_gradients_are_the_same_and_less_is_kept(build: Callable[[], Encoder]) -> None:
    found = {}
    ways: tuple[Recompute, ...] = (False, "mlp", True)
    for what in ways:
        encoder = build()
        recompute(encoder.backbone, what)
        found[what] = step(encoder)
    everything, expected = found[False]
    assert len(expected) == 1 + 2 * 2 * 7
    for what in (True, "mlp"):
        for one, other in zip(found[what][1], expected, strict=True):
            torch.testing.assert_close(one, other)
    assert found[True][0] < found["mlp"][0] < 0.8 * everything


def test_without_gradients_nothing_changes(build: Callable[[], Encoder]) -> None:
    encoder = build().eval()
    with torch.inference_mode():
        before = encoder(encoder.prompts(SHELF, HISTORIES))
        recompute(encoder.backbone, "mlp")
        torch.testing.assert_close(encoder(encoder.prompts(SHELF, HISTORIES)), before, rtol=0, atol=0)


def test_layers_without_such_a_part_are_refused(build: Callable[[], Encoder]) -> None:
    backbone: Backbone = build().backbone
    for layer in backbone.model.get_decoder().layers:
        layer.feed_forward = layer.mlp
        del layer.mlp
    with pytest.raises(InputError, match=r"^training\.gradient_checkpointing=mlp: .*set it to true or false$"):
        recompute(backbone, "mlp")
