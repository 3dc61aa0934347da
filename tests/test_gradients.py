"""Gradients by modality are those that autograd gives, however the batch is cut, and leave no trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from tiny_job import make_config
from torch import Tensor, nn

from vlm2rec.config import LoraSettings
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.gradients import compared, gradients, without_dropout
from vlm2rec.encoder import Encoder
from vlm2rec.methods.probes import Alignment
from vlm2rec.methods.vlm import build_encoder, build_objective
from vlm2rec.objectives import InfoNCE, Objective, Views
from vlm2rec.training.batches import Samples

VIEWS = ("text", "image")


class Tiny(nn.Module):
    """Rows of numbers to vectors, counting its calls; one parameter is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.idle = nn.Parameter(torch.ones(2))
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.sizes: list[int] = []

    def forward(self, rows: Sequence[Tensor]) -> Tensor:
        self.sizes.append(len(rows))
        found: Tensor = self.net(torch.stack(list(rows)))
        return found


def total(vectors: Mapping[str, Tensor]) -> Tensor:
    return (vectors["text"][:3] * vectors["image"][2:5]).sum().exp()


def text(vectors: Mapping[str, Tensor]) -> Tensor:
    return vectors["text"].square().logsumexp(0).sum()


def image(vectors: Mapping[str, Tensor]) -> Tensor:
    return (vectors["image"] @ vectors["image"].T).tanh().mean()


LOSSES = {"total": total, "text": text, "image": image}


def tiny_inputs() -> dict[str, list[Tensor]]:
    return {view: list(torch.randn(7, 4, generator=torch.Generator().manual_seed(k))) for k, view in enumerate(VIEWS)}


@pytest.mark.parametrize("part", [None, 1, 3, 7, 100])
def test_they_are_those_of_autograd(part: int | None) -> None:
    model, inputs = Tiny(), tiny_inputs()
    found = gradients(model, inputs, LOSSES, list(model.parameters()), part)
    for name, loss in LOSSES.items():
        model.zero_grad()
        loss({view: model(rows) for view, rows in inputs.items()}).backward()
        for parameter, gradient in zip(model.parameters(), found[name], strict=True):
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    assert not any(gradient[0].any() for gradient in found.values()), "no loss reaches the idle one"


def test_nothing_else_is_touched() -> None:
    """Gradients that were there, the generator, and how much is in memory at once."""
    for part in (None, 2):
        model, inputs = Tiny(), tiny_inputs()
        model.idle.grad = torch.full((2,), 7.0)
        state = torch.get_rng_state()
        gradients(model, inputs, LOSSES, list(model.parameters()), part)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(model.idle.grad, torch.full((2,), 7.0))
        assert all(parameter.grad is None for parameter in list(model.parameters())[1:])
        assert max(model.sizes) == (part or 7)
        assert sum(model.sizes) == (14 if part is None else 28), "one forward pass, two where memory holds a part"


def test_cosines_and_lengths_by_hand() -> None:
    one, other = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 5.0]), torch.tensor([0.0])]
    found = compared({"total": one, "text": [2 * part for part in one], "image": other})
    assert found == pytest.approx(
        {
            "grad_norm_total": 5, "grad_norm_text": 10, "grad_norm_image": 5,
            "grad_cos_text": 1, "grad_cos_image": 0, "grad_cos_between": 0,
        }
    )  # fmt: skip
    assert compared({"total": one, "text": [-part for part in one], "image": one})["grad_cos_text"] == -1


def test_products_are_summed_in_double() -> None:
    """In float32 a sum of 2^26 and 1 is 2^26."""
    long = [torch.tensor([2.0**13]), torch.tensor([1.0])]
    found = compared(dict.fromkeys(("total", "text", "image"), long))
    assert found["grad_norm_total"] == pytest.approx((2**26 + 1) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_cosine_that_is_none_is_left_out(value: float) -> None:
    good, bad = [torch.tensor([1.0, 2.0])], [torch.tensor([value, value])]
    found = compared({"total": good, "text": good, "image": bad})
    assert {"grad_cos_image", "grad_cos_between"}.isdisjoint(found) and found["grad_cos_text"] == pytest.approx(1)
    assert np.isfinite(list(found.values())).all()


def test_dropout_is_off_for_a_while() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5))).train()
    module[1].eval()
    modes = [each.training for each in module.modules()]
    with without_dropout(module):
        assert torch.equal(module(torch.ones(100)), torch.ones(100))
    assert [each.training for each in module.modules()] == modes
    with pytest.raises(KeyError), without_dropout(module):
        raise KeyError
    assert [each.training for each in module.modules()] == modes


# On an encoder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


def ready(
    dataset: Dataset, llava: Path, kind: str, combine: str = "sum", **training: object
) -> tuple[Alignment, Encoder, Objective, Samples]:
    """An encoder on its way through training: adapters that are not zero, dropout on."""
    config = make_config(dataset, llava, kind, training=training, prompt={"combine": combine})
    encoder, split = build_encoder(config), Split(dataset)
    encoder.add_lora(LoraSettings(rank=4), seed=7)
    if config.training.gradient_checkpointing:
        encoder.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(5)
    families.wake(encoder, std=0.1)
    objective = build_objective(config)
    samples = Samples(split, config.training, config.seed)
    return Alignment(config, split, encoder.train(), objective, samples), encoder, objective, samples


def by_hand(dataset: Dataset, encoder: Encoder, objective: Objective, samples: Samples) -> dict[str, float]:
    """Three losses, each with a forward and a backward pass of its own."""
    batch = samples.batch(2 * samples.steps_per_epoch)
    masks = torch.from_numpy(batch.negatives), torch.from_numpy(batch.positive)
    adapters = {name: p for name, p in encoder.named_parameters() if "lora_" in name}
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert adapters.keys() == {name for name in trained if not name.startswith("gate.")}
    encoder.eval()
    flat = {}
    for name in ("total", *VIEWS):
        query, target = encoder.histories(dataset, batch.histories), encoder.items(dataset, batch.targets)
        if name == "total":
            loss = objective(query, target, *masks)
        else:
            z, e = getattr(query, name), getattr(target, name)
            there = e.any(dim=1)  # a batch of those alone that have the modality
            users, place = z.any(dim=1) & there[masks[1]], there.cumsum(0) - 1
            loss = InfoNCE(0.1)(Views(z[users]), Views(e[there]), masks[0][users][:, there], place[masks[1][users]])
        found = torch.autograd.grad(loss, list(adapters.values()))
        flat[name] = torch.cat([part.reshape(-1) for part in found]).double()
    pairs = {"text": ("total", "text"), "image": ("total", "image"), "between": ("text", "image")}
    expected = {f"grad_norm_{name}": float(gradient.norm()) for name, gradient in flat.items()}
    for name, (one, other) in pairs.items():
        expected[f"grad_cos_{name}"] = float(torch.cosine_similarity(flat[one], flat[other], dim=0))
    return expected


@pytest.mark.parametrize(
    ("kind", "combine"), [("sft", "sum"), ("vlm2rec", "sum"), ("sft", "gated"), ("vlm2rec", "concat")]
)
def test_an_encoder_in_training_is_looked_at_as_it_is(
    tiny_dataset: Dataset, llava: Path, kind: str, combine: str
) -> None:
    alignment, encoder, objective, samples = ready(tiny_dataset, llava, kind, combine)
    modes, state = [each.training for each in encoder.modules()], torch.get_rng_state()
    found = alignment.look()
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in encoder.modules()] == modes
    assert all(parameter.grad is None for parameter in (*encoder.parameters(), *objective.parameters()))
    assert found == pytest.approx(by_hand(tiny_dataset, encoder, objective, samples), rel=1e-4, abs=1e-5)
    assert alignment.look() == found, "dropout was drawn"
    assert min(abs(found["grad_cos_text"] - found["grad_cos_image"]), found["grad_norm_total"]) > 1e-3


def test_a_modality_that_is_not_there_has_no_say(
    tiny_dataset: Dataset, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def there(self: Encoder, catalogue: Dataset, histories: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[sum(own) % 3 != 0, sum(own) % 3 != 1] for own in histories])

    alignment, encoder, objective, samples = ready(tiny_dataset, llava, "vlm2rec")
    whole = alignment.look()
    monkeypatch.setattr(Encoder, "there", there)
    found = alignment.look()
    assert found == pytest.approx(by_hand(tiny_dataset, encoder, objective, samples), rel=1e-4, abs=1e-5)
    assert abs(found["grad_norm_text"] - whole["grad_norm_text"]) > 1e-3


@pytest.mark.parametrize("training", [{"micro_batch": 1}, {"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_memory_changes_nothing(tiny_dataset: Dataset, llava: Path, training: dict[str, object]) -> None:
    expected = ready(tiny_dataset, llava, "vlm2rec")[0].look()
    assert ready(tiny_dataset, llava, "vlm2rec", **training)[0].look() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_checkpointing_is_not_given_up(tiny_dataset: Dataset, llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation mode transformers would keep all activations."""
    alignment, encoder, *_ = ready(tiny_dataset, llava, "vlm2rec", gradient_checkpointing=True)
    layer = next(m for name, m in encoder.named_modules() if name.endswith("layers.0") and "language" in name)
    forward, modes = layer.mlp.forward, []

    def watched(states: Tensor) -> Tensor:
        modes.append((layer.training, layer.mlp.training))
        found: Tensor = forward(states)
        return found

    monkeypatch.setattr(layer.mlp, "forward", watched)
    alignment.look()
    assert set(modes) == {(True, False)}, "the layer checkpoints, what is in it draws no dropout"
    often = len(modes)
    encoder.backbone.model.gradient_checkpointing_disable()
    modes.clear()
    alignment.look()
    assert often == 3 * len(modes), "once forward, and again before each of the two gradients"


def test_the_batch_is_of_training_samples_and_of_the_seed(tiny_dataset: Dataset, llava: Path) -> None:
    batches = [ready(tiny_dataset, llava, "sft")[0]._batch for _ in range(2)]
    assert batches[0].histories == batches[1].histories and len(batches[0].histories) == 16
    train = [events.tolist() for events in Split(tiny_dataset).train]
    for history, own in zip(batches[0].histories, batches[0].positive, strict=True):
        assert any(events[-len(history) - 1 :] == [*history, batches[0].targets[own]] for events in train)
