"""A batch in parts is the batch."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from vlm2rec.objectives import CRTR, WPCL, EachModality, InfoNCE, Objective, Views, VLM2RecLoss
from vlm2rec.training.gradcache import backward_in_parts

USERS, ITEMS, WIDTH = 6, 5, 7
POSITIVE = torch.tensor([0, 1, 2, 3, 4, 0])


class Embedder(nn.Module):
    """Rows of a fixed input table through a small network."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs = torch.randn(2 * (USERS + ITEMS), WIDTH, dtype=torch.float64)
        self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, WIDTH)).double()
        self.calls: list[tuple[list[int], Tensor]] = []

    def forward(self, rows: Sequence[int]) -> Tensor:
        vectors: Tensor = self.net(self.inputs[list(rows)])
        self.calls.append((list(rows), vectors.detach()))
        return vectors


def objectives() -> dict[str, Objective]:
    return {
        "sft": InfoNCE(0.1),
        "vlm2rec": VLM2RecLoss(WPCL(0.1, alpha=2.0, beta=1.5), CRTR(0.3), 0.5).double(),
        "detached": VLM2RecLoss(WPCL(0.1, 2.0, 1.5, kind="detached"), CRTR(0.3), 0.5).double(),
        "constant": VLM2RecLoss(WPCL(0.1, 2.0, 1.5, kind="constant"), CRTR(0.3), 0.5).double(),
        "no_wpcl": VLM2RecLoss(None, CRTR(0.3), 0.5),
        "sft_modal": EachModality(InfoNCE(0.1), 0.1, 0.7),
    }


def loss_of(objective: Objective, vectors: Tensor) -> Tensor:
    negatives = torch.ones(USERS, ITEMS, dtype=torch.bool)
    negatives[torch.arange(USERS), POSITIVE] = False
    negatives[2, 4] = False
    text, image, text_items, image_items = vectors.split([USERS, USERS, ITEMS, ITEMS])
    query, target = Views(text + image, text, image), Views(text_items + image_items, text_items, image_items)
    value: Tensor = objective(query, target, negatives, POSITIVE)
    return value


def gradients(*modules: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for module in modules for p in module.parameters() if p.grad is not None]
    for module in modules:
        module.zero_grad()
    return found


@pytest.mark.parametrize("kind", list(objectives()))
@pytest.mark.parametrize("part", [1, 4, 7, 22, 1000])
def test_gradients_equal_the_whole_batch(kind: str, part: int) -> None:
    embedder, objective = Embedder(), objectives()[kind]
    rows = list(range(len(embedder.inputs)))
    whole = loss_of(objective, embedder(rows))
    whole.backward()
    expected = gradients(embedder, objective)
    value = backward_in_parts(embedder, rows, lambda v: loss_of(objective, v), part, Tensor.backward)
    assert not value.requires_grad and abs(float(value - whole.detach())) < 1e-12
    found = gradients(embedder, objective)
    assert len(found) == len(expected) == 4 + 2 * (kind == "vlm2rec")
    for one, other in zip(found, expected, strict=True):
        assert float(other.abs().max()) > 1e-6, "nothing to compare"
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_more_than_a_part_is_embedded_at_once() -> None:
    embedder = Embedder()
    rows = list(range(len(embedder.inputs)))
    backward_in_parts(embedder, rows, lambda v: v.square().sum(), 4, Tensor.backward)
    assert max(len(some) for some, _ in embedder.calls) == 4
    assert sorted(row for some, _ in embedder.calls for row in some) == sorted(rows * 2)


def test_both_passes_draw_the_same_dropout() -> None:
    embedder = Embedder(dropout=0.5).train()
    rows = list(range(len(embedder.inputs)))
    torch.manual_seed(3)
    backward_in_parts(embedder, rows, lambda v: loss_of(objectives()["vlm2rec"], v), 5, Tensor.backward)
    half = len(embedder.calls) // 2
    for (rows_before, before), (rows_after, after) in zip(embedder.calls[:half], embedder.calls[half:], strict=True):
        assert rows_before == rows_after
        assert torch.equal(before, after)
    # Not one mask for all parts, and not the same masks in the next step.
    same = embedder.net[:2](embedder.inputs[[0]])
    masks = [embedder.net[2](same.expand(5, -1)) for _ in range(2)]
    assert not torch.equal(*masks)
    first = [vectors for _, vectors in embedder.calls]
    embedder.calls.clear()
    torch.manual_seed(4)
    backward_in_parts(embedder, rows, lambda v: v.sum(), 5, Tensor.backward)
    assert not torch.equal(first[0], embedder.calls[0][1])


def test_with_dropout_the_gradient_is_that_of_the_vectors_the_loss_saw() -> None:
    embedder = Embedder(dropout=0.5).train()
    rows = list(range(len(embedder.inputs)))
    objective = objectives()["vlm2rec"]
    torch.manual_seed(3)
    value = backward_in_parts(embedder, rows, lambda v: loss_of(objective, v), 5, Tensor.backward)
    found = gradients(embedder, objective)
    torch.manual_seed(3)
    seed = int(torch.randint(2**31, ()))
    vectors = []
    for number, start in enumerate(range(0, len(rows), 5)):
        torch.manual_seed(seed + number)
        vectors.append(embedder(rows[start : start + 5]))
    whole = loss_of(objective, torch.cat(vectors))
    whole.backward()
    assert abs(float(value - whole.detach())) < 1e-12
    for one, other in zip(found, gradients(embedder, objective), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
