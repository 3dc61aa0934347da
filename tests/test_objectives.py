"""The objectives against a naive float64 reference written from the equations, and on cases worked out by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vlm2rec import objectives
from vlm2rec.objectives import CRTR, WPCL, EachModality, InfoNCE, Views, VLM2RecLoss

Array = np.ndarray
Loss = Callable[..., Tensor]

# ---------------------------------------------------------------- a reference in loops, one equation a function


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)))


def eq6_margin(z: Array, e: Array, row: Array, own: int) -> float:
    against = [cosine(z, e[j]) for j in range(len(e)) if row[j]]
    return cosine(z, e[own]) - sum(against) / len(against)


def eq9_penalty(strong: float, weak: float, alpha: float, beta: float) -> float:
    return 1 + beta * math.log1p(math.exp(alpha * (strong - weak)))


def eq3_or_10(z: Array, e: Array, row: Array, own: int, temperature: float, weight: float = 1.0) -> float:
    towards = math.exp(cosine(z, e[own]) / temperature)
    against = sum(math.exp(cosine(z, e[j]) / temperature) for j in range(len(e)) if row[j])
    return -math.log(towards / (towards + weight * against))


def reference_infonce(query: Views, target: Views, negatives: Array, own: Array, temperature: float) -> float:
    z, e = query.fused.numpy(), target.fused.numpy()
    users = [u for u in range(len(z)) if negatives[u].any()]
    return sum(eq3_or_10(z[u], e, negatives[u], own[u], temperature) for u in users) / len(users)


def reference_wpcl(
    query: Views,
    target: Views,
    negatives: Array,
    own: Array,
    temperature: float,
    alpha: float,
    beta: float,
    strong: dict[int, float] | None = None,
) -> float:
    """`strong` holds the stronger margin of each user at a fixed value, as the stop-gradient of Eq. 8 does."""
    terms = []
    for u in range(len(negatives)):
        if not negatives[u].any():
            continue
        text = eq6_margin(query.text[u].numpy(), target.text.numpy(), negatives[u], own[u])
        image = eq6_margin(query.image[u].numpy(), target.image.numpy(), negatives[u], own[u])
        weight = eq9_penalty(strong[u] if strong else max(text, image), min(text, image), alpha, beta)
        terms.append(eq3_or_10(query.fused[u].numpy(), target.fused.numpy(), negatives[u], own[u], temperature, weight))
    return sum(terms) / len(terms)


def reference_crtr(query: Views, target: Views, temperature: float) -> float:
    total = 0.0
    for i in range(len(query.fused)):
        shares = []
        for z, e in ((query.text, target.text), (query.image, target.image)):
            exps = [math.exp(cosine(z[i].numpy(), other.numpy()) / temperature) for other in e]
            shares.append([value / sum(exps) for value in exps])
        p, q = shares
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / (2 * len(query.fused))


# ---------------------------------------------------------------- inputs


def views(count: int, seed: int, width: int = 6, dtype: torch.dtype = torch.float64) -> Views:
    """Random text and image states; `fused` is drawn by itself, so that nothing rests on how fusion is done."""
    generator = torch.Generator().manual_seed(seed)
    fused, text, image = torch.randn(3, count, width, generator=generator, dtype=torch.float64)
    return Views(fused.to(dtype), text.to(dtype), image.to(dtype))


def cast(given: Views, dtype: torch.dtype) -> Views:
    return Views(given.fused.to(dtype), given.text.to(dtype), given.image.to(dtype))


def leaves(given: Views) -> Views:
    return Views(*(part.clone().requires_grad_() for part in given))


def others(users: int, items: int | None = None) -> Tensor:
    """Everybody else's target is a negative."""
    return ~torch.eye(users, items or users, dtype=torch.bool)


def case(users: int = 5, items: int = 9, seed: int = 0) -> tuple[Views, Views, Tensor, Tensor]:
    """More targets than users, positives anywhere and shared, a random mask, one user without a negative."""
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randint(items, (users,), generator=generator)
    positive[1] = positive[0]
    negatives = torch.rand(users, items, generator=generator) < 0.6
    negatives[torch.arange(users), positive] = False
    negatives[3] = False
    negatives[0, (positive[0] + 1) % items] = True
    return views(users, seed + 100), views(items, seed + 200), negatives, positive


def every_loss() -> list[nn.Module]:
    return [
        InfoNCE(0.1),
        WPCL(0.1, alpha=5.0, beta=2.0),
        CRTR(0.5),
        VLM2RecLoss(WPCL(0.1, alpha=5.0, beta=2.0), CRTR(0.5), 0.25),
        WPCL(0.1, alpha=5.0, beta=2.0, kind="detached"),
        WPCL(0.1, alpha=5.0, beta=2.0, kind="constant"),
        VLM2RecLoss(None, CRTR(0.5), 0.25),
        EachModality(InfoNCE(0.1), 0.1, 0.5),
    ]


def name(loss: nn.Module) -> str:
    return type(loss).__name__


EVERY_LOSS = pytest.mark.parametrize("loss", every_loss(), ids=name)

# ---------------------------------------------------------------- equal to the reference


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_infonce_equals_reference(seed: int, temperature: float) -> None:
    query, target, negatives, positive = case(seed=seed)
    expected = reference_infonce(query, target, negatives.numpy(), positive.numpy(), temperature)
    found = InfoNCE(temperature)(query, target, negatives, positive)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (5.0, 2.0), (0.0, 1.0), (30.0, 5.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wpcl_equals_reference(seed: int, alpha: float, beta: float) -> None:
    """Alpha 30 takes the softplus of Eq. 9 far out, where some implementations cut it short."""
    query, target, negatives, positive = case(seed=seed)
    expected = reference_wpcl(query, target, negatives.numpy(), positive.numpy(), 0.1, alpha, beta)
    found = WPCL(0.1, alpha=alpha, beta=beta)(query, target, negatives, positive)
    assert found.item() == pytest.approx(expected, rel=0, abs=1e-12)


def test_margins_gap_and_penalty_equal_reference() -> None:
    query, target, negatives, positive = case()
    loss = WPCL(0.1, alpha=5.0, beta=2.0)
    text, image = loss.margins(query, target, negatives, positive)
    gap, penalty = (f(query, target, negatives, positive) for f in (loss.gap, loss.penalty))
    for u in (0, 1, 2, 4):
        row, own = negatives[u].numpy(), int(positive[u])
        m_text = eq6_margin(query.text[u].numpy(), target.text.numpy(), row, own)
        m_image = eq6_margin(query.image[u].numpy(), target.image.numpy(), row, own)
        assert text[u].item() == pytest.approx(m_text, rel=0, abs=1e-12)
        assert image[u].item() == pytest.approx(m_image, rel=0, abs=1e-12)
        assert gap[u].item() == pytest.approx(abs(m_text - m_image), rel=0, abs=1e-12)
        weight = eq9_penalty(max(m_text, m_image), min(m_text, m_image), 5.0, 2.0)
        assert penalty[u].item() == pytest.approx(weight, rel=0, abs=1e-12)


def test_penalty_is_exact_far_out() -> None:
    """A gap of 2 (cosines 1 and -1) and alpha 10.5: softplus(21) differs from 21 by 7.6e-10."""
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    query, target = Views(one, one, one), Views(two, two, two.flip(0))
    penalty = WPCL(1.0, alpha=10.5, beta=1.0).penalty(query, target, others(1, 2))
    assert penalty.item() == pytest.approx(1 + math.log1p(math.exp(21)), rel=0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_crtr_equals_reference(temperature: float) -> None:
    query, target, negatives, positive = case()
    expected = reference_crtr(query, target, temperature)
    assert CRTR(temperature)(query, target, negatives, positive).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_vlm2rec_is_the_weighted_sum() -> None:
    query, target, negatives, positive = case()
    expected = reference_wpcl(query, target, negatives.numpy(), positive.numpy(), 0.1, 5.0, 2.0)
    expected += 0.25 * reference_crtr(query, target, 0.5)
    loss = VLM2RecLoss(WPCL(0.1, alpha=5.0, beta=2.0), CRTR(0.5), 0.25)
    assert loss(query, target, negatives, positive).item() == pytest.approx(expected, rel=0, abs=1e-12)


# ---------------------------------------------------------------- precision


@EVERY_LOSS
def test_float32_is_close_to_float64(loss: nn.Module) -> None:
    query, target, negatives, positive = case()
    exact = loss(query, target, negatives, positive).item()
    found = loss(cast(query, torch.float32), cast(target, torch.float32), negatives, positive)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=1e-5)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_in_is_float32_inside(loss: nn.Module, dtype: torch.dtype) -> None:
    """Half-precision states and the same states widened first give the very same loss."""
    query, target, negatives, positive = case()
    query, target = cast(query, dtype), cast(target, dtype)
    found = loss(query, target, negatives, positive)
    widened = loss(cast(query, torch.float32), cast(target, torch.float32), negatives, positive)
    assert found.dtype == torch.float32
    assert torch.equal(found, widened)


@EVERY_LOSS
def test_autocast_does_not_narrow_the_inside(loss: nn.Module) -> None:
    query, target, negatives, positive = case()
    query, target = cast(query, torch.float32), cast(target, torch.float32)
    plain = loss(query, target, negatives, positive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(query, target, negatives, positive), plain)


# ---------------------------------------------------------------- worked out by hand

AXES = torch.eye(2, dtype=torch.float64)  # cosines: 1 to itself, 0 to the other
SWAPPED = AXES.flip(0)


def test_infonce_by_hand() -> None:
    """Own item at cosine 1, the other at 0: log(1 + 1/e)."""
    found = InfoNCE(1.0)(Views(AXES), Views(AXES), others(2))
    assert found.item() == pytest.approx(0.31326168751822283, rel=0, abs=1e-15)


def test_wpcl_by_hand() -> None:
    """Text margin 1, image margin -1, gap 2, softplus(2) = 2.126928…, so the negatives weigh 5.253856…"""
    query, target = Views(AXES, AXES, AXES), Views(AXES, AXES, SWAPPED)
    loss = WPCL(1.0, alpha=1.0, beta=2.0)
    text, image = loss.margins(query, target, others(2))
    assert text.tolist() == [1, 1]
    assert image.tolist() == [-1, -1]
    assert loss.gap(query, target, others(2)).tolist() == [2, 2]
    weight = 1 + 2 * 2.1269280110429727
    assert loss.penalty(query, target, others(2)).tolist() == pytest.approx([weight, weight], rel=0, abs=1e-14)
    expected = math.log(1 + weight / math.e)
    assert loss(query, target, others(2)).item() == pytest.approx(expected, rel=0, abs=1e-14)


def test_crtr_by_hand() -> None:
    """Text ranks (1, 0), images (0, 1), at temperature 1: (2p - 1) * log(p / (1 - p)) with log(p/(1-p)) = 1."""
    query, target = Views(AXES, AXES, AXES), Views(AXES, AXES, SWAPPED)
    p = math.e / (1 + math.e)
    assert CRTR(1.0)(query, target, others(2)).item() == pytest.approx(2 * p - 1, rel=0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_crtr_is_finite_at_the_lowest_temperature(dtype: torch.dtype) -> None:
    """Cosines 1 and -1 over .001 are logits of +-1000; both divergences are 2000."""
    line = torch.tensor([[1.0], [-1.0]], dtype=dtype)
    query, target = leaves(Views(line, line, line)), leaves(Views(line, line, -line))
    loss = CRTR(0.001)(query, target, others(2))
    loss.backward()
    assert loss.item() == pytest.approx(2000, rel=1e-5)
    assert all(torch.isfinite(part.grad).all() for part in (query.text, query.image, target.text, target.image))


@EVERY_LOSS
def test_low_temperature_is_finite_forward_and_backward(loss: nn.Module) -> None:
    cold = {
        "InfoNCE": InfoNCE(0.001),
        "WPCL": WPCL(0.001, alpha=20.0, beta=5.0),
        "CRTR": CRTR(0.001),
        "VLM2RecLoss": VLM2RecLoss(WPCL(0.001), CRTR(0.001), 1.0),
        "EachModality": EachModality(InfoNCE(0.001), 0.001, 1.0),
    }[name(loss)]
    query, target, negatives, positive = case()
    query, target = leaves(cast(query, torch.float32)), leaves(cast(target, torch.float32))
    value = cold(query, target, negatives, positive)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(part.grad).all() for part in (*query, *target) if part.grad is not None)


@pytest.mark.parametrize("negatives_per_user", [1, 3, 7])
def test_infonce_of_zero_vectors_counts_the_candidates(negatives_per_user: int) -> None:
    """All cosines are 0, so the own item is one among equals."""
    query, target = Views(torch.zeros(4, 3, requires_grad=True)), Views(torch.zeros(8, 3))
    negatives = torch.zeros(4, 8, dtype=torch.bool)
    negatives[:, 1 : 1 + negatives_per_user] = True
    loss = InfoNCE(0.1)(query, target, negatives, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + negatives_per_user), rel=1e-6)
    assert torch.isfinite(query.fused.grad).all()


# ---------------------------------------------------------------- masks and positives


def test_beta_zero_is_infonce_exactly() -> None:
    query, target, negatives, positive = case()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        q, t = cast(query, dtype), cast(target, dtype)
        assert torch.equal(
            WPCL(0.1, alpha=5.0, beta=0.0)(q, t, negatives, positive), InfoNCE(0.1)(q, t, negatives, positive)
        )


@pytest.mark.parametrize("loss", [every_loss()[0], every_loss()[1]], ids=name)
def test_no_negatives_at_all_is_zero_with_a_gradient(loss: nn.Module) -> None:
    query, target = leaves(views(3, 1)), leaves(views(3, 2))
    value = loss(query, target, torch.zeros(3, 3, dtype=torch.bool))
    assert value.item() == 0
    value.backward()
    assert torch.equal(query.fused.grad, torch.zeros_like(query.fused))
    assert torch.equal(target.fused.grad, torch.zeros_like(target.fused))


@pytest.mark.parametrize("loss", [every_loss()[0], every_loss()[1]], ids=name)
def test_a_user_without_negatives_is_left_out_of_the_mean(loss: nn.Module) -> None:
    query, target, negatives, positive = case()  # user 3 has none
    kept = torch.tensor([0, 1, 2, 4])
    query = leaves(query)
    found = loss(query, target, negatives, positive)
    alone = loss(Views(*(part[kept] for part in query)), target, negatives[kept], positive[kept])
    assert found.item() == pytest.approx(alone.item(), rel=1e-14)
    found.backward()
    for part in query:
        if part.grad is not None:
            assert torch.isfinite(part.grad).all()
            assert not part.grad[3].any()


@EVERY_LOSS
def test_without_positive_target_i_is_users_i(loss: nn.Module) -> None:
    query, target = views(4, 1), views(6, 2)
    named = loss(query, target, others(4, 6), torch.arange(4))
    assert torch.equal(loss(query, target, others(4, 6)), named)


@pytest.mark.parametrize("loss", [every_loss()[0], every_loss()[1]], ids=name)
def test_what_is_not_a_negative_does_not_count(loss: nn.Module) -> None:
    """A duplicate of the positive, or an item of the history, may lie anywhere."""
    query, target, negatives, positive = case()
    user = 0
    masked = [j for j in range(9) if not negatives[user, j] and j != int(positive[user])]
    assert masked
    moved = Views(*(part.clone() for part in target))
    for part in moved:
        part[masked] = query.fused[user] * 7
    alone = (slice(user, user + 1),)
    args = (negatives[alone], positive[alone])
    first = Views(*(part[alone] for part in query))
    assert loss(first, moved, *args).item() == pytest.approx(loss(first, target, *args).item(), rel=1e-14)
    both = negatives.clone()
    both[user, masked] = True
    assert loss(first, moved, both[alone], args[1]).item() > loss(first, target, *args).item() + 0.1


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_log_q_equals_sampled_softmax_with_known_shares(beta: float) -> None:
    """Each item weighs 1/q in the softmax, the own one too; the penalty goes on top of the negatives."""
    query, target, negatives, positive = case(seed=3)
    share = torch.rand(len(target.fused), dtype=torch.float64) + 0.1
    wpcl = WPCL(0.3, 5.0, beta).double()
    penalty = wpcl.penalty(query, target, negatives, positive).detach().numpy()
    terms = []
    for u in range(len(negatives)):
        if negatives[u].any():
            weights = [
                math.exp(cosine(query.fused[u].numpy(), e.numpy()) / 0.3) / float(q)
                for e, q in zip(target.fused, share, strict=True)
            ]
            own = weights[positive[u]]
            against = sum(weight for weight, off in zip(weights, negatives[u], strict=True) if off)
            terms.append(-math.log(own / (own + penalty[u] * against)))
    value = wpcl(query, target, negatives, positive, share.log())
    assert float(value) == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    if beta == 0:
        assert float(InfoNCE(0.3)(query, target, negatives, positive, share.log())) == float(value)


def test_equal_shares_change_nothing() -> None:
    query, target, negatives, positive = case(seed=4)
    loss = VLM2RecLoss(WPCL(0.3, 5.0, 2.0), CRTR(1.0), 0.1).double()
    same = torch.full((len(target.fused),), -3.0, dtype=torch.float64)
    plain = loss(query, target, negatives, positive)
    assert float(loss(query, target, negatives, positive, same)) == pytest.approx(float(plain), abs=1e-12)


def test_crtr_ignores_negatives_and_positives() -> None:
    query, target, negatives, positive = case()
    loss = CRTR(0.1)
    with_all = loss(query, target, negatives, positive)
    assert torch.equal(with_all, loss(query, target, torch.zeros_like(negatives)))
    assert torch.equal(with_all, loss(query, target, ~negatives, positive.flip(0)))


def test_crtr_is_symmetric_and_zero_for_equal_topologies() -> None:
    query, target, negatives, _ = case()
    swap = [Views(given.fused, given.image, given.text) for given in (query, target)]
    loss = CRTR(0.1)
    value = loss(query, target, negatives).item()
    assert value > 0.1
    assert loss(*swap, negatives).item() == pytest.approx(value, rel=1e-13)
    rotation = torch.linalg.qr(views(6, 9).text)[0]  # other vectors, same cosines
    turned = [Views(given.fused, given.text, 3 * given.text @ rotation) for given in (query, target)]
    assert loss(*turned, negatives).item() == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("loss", every_loss()[1:], ids=name)
@pytest.mark.parametrize("missing", ["text", "image"])
def test_a_missing_view_is_refused(loss: nn.Module, missing: str) -> None:
    query, target = views(3, 1), views(3, 2)
    with pytest.raises(ValueError, match="view"):
        loss(query._replace(**{missing: None}), target, others(3))
    with pytest.raises(ValueError, match="view"):
        loss(query, target._replace(**{missing: None}), others(3))


def test_infonce_needs_fused_alone() -> None:
    query, target = views(3, 1), views(3, 2)
    whole = InfoNCE(0.1)(query, target, others(3))
    assert torch.equal(InfoNCE(0.1)(Views(query.fused), Views(target.fused), others(3)), whole)


# ---------------------------------------------------------------- gradients


def unlike() -> tuple[Views, Views]:
    """User 0 reads titles better, user 1 pictures."""
    noise = views(2, 5, width=2)
    text = torch.stack([AXES[0], AXES[0]]) + 0.1 * noise.text
    image = torch.stack([AXES[1], AXES[1]]) + 0.1 * noise.image
    query = Views(text + image, text, image)
    return query, Views(AXES + AXES, AXES.clone(), AXES.clone())


def test_gap_moves_the_weak_side_only() -> None:
    query, target = (leaves(given) for given in unlike())
    loss = WPCL(0.1)
    text, image = loss.margins(query, target, others(2))
    assert text[0] > image[0]
    assert text[1] < image[1]
    gap = loss.gap(query, target, others(2))
    parts = (query.text, query.image, target.text, target.image)
    first = torch.autograd.grad(gap[0], parts, retain_graph=True, materialize_grads=True)
    assert [bool(part.any()) for part in first] == [False, True, False, True]
    second = torch.autograd.grad(gap[1], parts, materialize_grads=True)
    assert [bool(part.any()) for part in second] == [True, False, True, False]


def test_without_stop_gradient_the_gap_moves_both_sides() -> None:
    query, target = (leaves(given) for given in unlike())
    gap = WPCL(0.1, stop_gradient=False).gap(query, target, others(2))
    assert torch.equal(gap, WPCL(0.1).gap(query, target, others(2)))
    for user in (0, 1):
        parts = (query.text, query.image)
        found = torch.autograd.grad(gap[user], parts, retain_graph=True, materialize_grads=True)
        assert all(part[user].any() for part in found)


def test_penalty_is_live() -> None:
    """dL/dgap_u = (share of the negatives / w) * beta * alpha * sigmoid(alpha * gap) / B, fused states held."""
    query, target = (leaves(given) for given in unlike())
    loss = WPCL(0.5, alpha=5.0, beta=2.0)
    value = loss(query, target, others(2))
    (found,) = torch.autograd.grad(value, query.image, retain_graph=True)
    gap = loss.gap(query, target, others(2))
    (slope,) = torch.autograd.grad(gap[0], query.image, retain_graph=True)
    weight = loss.penalty(query, target, others(2))[0].item()
    z, e = query.fused[0].detach().numpy(), target.fused.detach().numpy()
    towards, against = (math.exp(cosine(z, e[j]) / 0.5) for j in (0, 1))
    share = weight * against / (towards + weight * against)
    factor = share / weight * 2.0 * 5.0 / (1 + math.exp(-5.0 * gap[0].item())) / 2
    assert factor > 0.1
    torch.testing.assert_close(found[0], factor * slope[0], rtol=1e-12, atol=1e-14)
    assert not found[1].any()  # user 1's pictures are the strong side


def test_stopped_gradient_equals_differences_of_the_reference_with_the_strong_side_held() -> None:
    query, target, negatives, positive = case()
    row, own = negatives.numpy(), positive.numpy()
    strong = {
        u: max(
            eq6_margin(query.text[u].numpy(), target.text.numpy(), row[u], own[u]),
            eq6_margin(query.image[u].numpy(), target.image.numpy(), row[u], own[u]),
        )
        for u in (0, 1, 2, 4)
    }
    live = leaves(query)
    WPCL(0.1, alpha=5.0, beta=2.0)(live, target, negatives, positive).backward()
    step = 1e-6
    for part, grad in (("text", live.text.grad), ("image", live.image.grad), ("fused", live.fused.grad)):
        for u in range(5):
            for d in range(6):
                ends = []
                for sign in (1, -1):
                    moved = query._asdict()[part].clone()
                    moved[u, d] += sign * step
                    changed = query._replace(**{part: moved})
                    ends.append(reference_wpcl(changed, target, row, own, 0.1, 5.0, 2.0, strong))
                slope = (ends[0] - ends[1]) / (2 * step)
                assert grad[u, d].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_gradcheck() -> None:
    """In float64, against finite differences; WPCL without its stop-gradient, which differences cannot see."""
    negatives = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    positive = torch.tensor([0, 1, 2])
    query, target = leaves(views(3, 1, width=3)), leaves(views(4, 2, width=3))
    wpcl = WPCL(0.3, alpha=2.0, beta=1.5, stop_gradient=False).double()
    total = VLM2RecLoss(wpcl, CRTR(0.3), 0.5)
    for loss in (InfoNCE(0.3), wpcl, CRTR(0.3), total):

        def value(*parts: Tensor, loss: nn.Module = loss) -> Tensor:
            return loss(Views(*parts[:3]), Views(*parts[3:6]), negatives, positive)

        assert torch.autograd.gradcheck(value, (*query, *target))

    def of_alpha_beta(alpha: Tensor, beta: Tensor) -> Tensor:
        swapped = {"alpha": alpha, "beta": beta}
        return torch.func.functional_call(wpcl, swapped, (query, target, negatives, positive))

    raw = tuple(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.0, 1.5))
    assert torch.autograd.gradcheck(of_alpha_beta, raw)


# ---------------------------------------------------------------- alpha and beta


def test_alpha_and_beta_are_parameters_and_descend() -> None:
    """Both slopes are positive, so descent alone only ever shrinks the penalty."""
    query, target, negatives, positive = case()
    loss = WPCL(0.1, alpha=5.0, beta=2.0)
    assert {key: value.item() for key, value in loss.named_parameters()} == {"alpha": 5.0, "beta": 2.0}
    loss(query, target, negatives, positive).backward()
    assert loss.alpha.grad > 0
    assert loss.beta.grad > 0
    assert {id(p) for p in loss.no_decay()} == {id(loss.alpha), id(loss.beta)}


def test_alpha_and_beta_are_stored_raw_and_clamped_in_use() -> None:
    query, target, negatives, positive = case()
    loss = WPCL(0.1)
    loss.load_state_dict({"alpha": torch.tensor(1.0), "beta": torch.tensor(-3.0)})
    assert loss.penalty(query, target, negatives, positive).tolist() == [1.0] * 5
    assert torch.equal(loss(query, target, negatives, positive), InfoNCE(0.1)(query, target, negatives, positive))
    loss.load_state_dict({"alpha": torch.tensor(-2.0), "beta": torch.tensor(2.0)})
    flat = [1 + 2 * math.log(2)] * 5
    assert loss.penalty(query, target, negatives, positive).tolist() == pytest.approx(flat, rel=1e-14)
    assert loss.alpha.item() == -2.0


def test_equal_margins_are_a_gap_of_zero_with_a_finite_gradient() -> None:
    query, target, negatives, positive = case()
    query, target = (leaves(Views(given.fused, given.text, given.text)) for given in (query, target))
    loss = WPCL(0.1, alpha=5.0, beta=2.0)
    assert loss.gap(query, target, negatives, positive).tolist() == [0.0] * 5
    loss(query, target, negatives, positive).backward()
    for part in (*query, *target):
        assert torch.isfinite(part.grad).all()
    assert (query.text.grad + query.image.grad).any()  # the tie still pulls on a side


# ---------------------------------------------------------------- properties

SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_lengths_of_vectors_do_not_matter(seed: int) -> None:
    query, target, negatives, positive = case(seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def stretched(given: Views) -> Views:
        return Views(
            *(part * torch.empty(len(part), 1).uniform_(-4, 4, generator=generator).exp().double() for part in given)
        )

    scaled = stretched(query), stretched(target)
    for loss in every_loss():
        plain = loss(query, target, negatives, positive).item()
        assert loss(*scaled, negatives, positive).item() == pytest.approx(plain, rel=1e-10, abs=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_order_of_targets_does_not_matter(seed: int) -> None:
    query, target, negatives, positive = case(seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed + 1))
    shuffled = Views(*(part[order] for part in target))
    place = order.argsort()
    for loss in every_loss():
        plain = loss(query, target, negatives, positive).item()
        found = loss(query, shuffled, negatives[:, order], place[positive]).item()
        assert found == pytest.approx(plain, rel=1e-10, abs=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=SEEDS, alpha=st.floats(0, 20), beta=st.floats(0, 5))
def test_the_penalty_only_ever_adds(seed: int, alpha: float, beta: float) -> None:
    query, target, negatives, positive = case(seed=seed)
    loss = WPCL(0.1, alpha=alpha, beta=beta)
    assert (loss.penalty(query, target, negatives, positive) >= 1).all()
    plain = InfoNCE(0.1)(query, target, negatives, positive).item()
    assert loss(query, target, negatives, positive).item() >= plain - 1e-12


# ---------------------------------------------------------------- controls of Table 5


def summed(given: Views) -> Views:
    """The same text and image with the fused view made of them, as the encoder makes it."""
    return Views(given.text + given.image, given.text, given.image)


def test_a_detached_penalty_has_the_value_of_the_adaptive_one() -> None:
    query, target, negatives, positive = case()
    adaptive, detached = (WPCL(0.2, 3.0, 2.0, kind=kind) for kind in ("adaptive", "detached"))
    assert torch.equal(
        adaptive.penalty(query, target, negatives, positive), detached.penalty(query, target, negatives, positive)
    )
    assert torch.equal(adaptive(query, target, negatives, positive), detached(query, target, negatives, positive))


@pytest.mark.parametrize("kind", ["detached", "constant"])
def test_a_control_has_the_slope_of_infonce_with_fixed_weights(kind: str) -> None:
    """Finite differences of Eq. 10 in loops, every user's weight held; the adaptive slope is another."""
    query, target, negatives, positive = case()
    query, target = summed(query), summed(target)
    row, own = negatives.numpy(), positive.tolist()
    users = [u for u in range(5) if row[u].any()]
    weights = WPCL(0.2, 3.0, 2.0).penalty(query, target, negatives, positive).tolist()
    if kind == "constant":
        weights = [sum(weights[u] for u in users) / len(users)] * 5

    def value(text: Array) -> float:
        fused, items = text + query.image.numpy(), target.fused.numpy()
        return sum(eq3_or_10(fused[u], items, row[u], own[u], 0.2, weights[u]) for u in users) / len(users)

    slopes = {}
    for each in ("adaptive", kind):
        given = query._replace(text=query.text.clone().requires_grad_())
        loss = WPCL(0.2, 3.0, 2.0, kind=each)(summed(given), target, negatives, positive)
        slopes[each] = torch.autograd.grad(loss, given.text)[0]
        if each == kind:
            assert loss.item() == pytest.approx(value(query.text.numpy()), rel=0, abs=1e-12)
    step, found = 1e-6, np.zeros(query.text.shape)
    for place in np.ndindex(*found.shape):
        ends = [query.text.numpy().copy() for _ in range(2)]
        ends[0][place] += step
        ends[1][place] -= step
        found[place] = (value(ends[0]) - value(ends[1])) / (2 * step)
    np.testing.assert_allclose(slopes[kind], found, rtol=1e-5, atol=1e-8)
    assert not np.allclose(slopes["adaptive"], found, rtol=0.1, atol=1e-3)


def test_a_constant_penalty_is_the_mean_over_those_who_have_a_negative() -> None:
    query, target, negatives, positive = case()  # user 3 has none
    own = WPCL(0.2, 3.0, 2.0).penalty(query, target, negatives, positive)[[0, 1, 2, 4]]
    assert len(set(own.tolist())) == 4
    used = WPCL(0.2, 3.0, 2.0, kind="constant").penalty(query, target, negatives, positive)
    assert used.tolist() == pytest.approx([own.mean().item()] * 5, rel=1e-14)


@pytest.mark.parametrize("kind", ["detached", "constant"])
def test_controls_leave_alpha_and_beta_alone(kind: str) -> None:
    query, target, negatives, positive = case()
    query = leaves(query)
    loss = WPCL(0.2, 3.0, 2.0, kind=kind)
    loss(query, target, negatives, positive).backward()
    assert query.fused.grad.any()
    assert loss.alpha.grad is None and loss.beta.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize("kind", ["detached", "constant"])
def test_controls_of_nobody_with_a_negative(kind: str) -> None:
    query, target = leaves(views(3, 1)), leaves(views(3, 2))
    value = WPCL(0.2, kind=kind)(query, target, torch.zeros(3, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and torch.equal(query.fused.grad, torch.zeros_like(query.fused))


def test_without_wpcl_there_is_weighted_crtr_alone() -> None:
    query, target, negatives, positive = case()
    loss = VLM2RecLoss(None, CRTR(0.5), 0.25)
    expected = 0.25 * reference_crtr(query, target, 0.5)
    assert loss(query, target, negatives, positive, torch.zeros(9)).item() == pytest.approx(expected, rel=1e-12)
    assert not list(loss.parameters())


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("base", [every_loss()[0], every_loss()[3]], ids=name)
def test_each_modality_adds_its_own_infonce(base: nn.Module, weight: float) -> None:
    query, target, negatives, positive = case()
    row, own = negatives.numpy(), positive.numpy()
    expected = base(query, target, negatives, positive).item()
    for view in ("text", "image"):
        alone = (Views(getattr(side, view)) for side in (query, target))
        expected += weight * reference_infonce(*alone, row, own, 0.3)
    found = EachModality(base, 0.3, weight)(query, target, negatives, positive)
    assert found.item() == pytest.approx(expected, rel=0, abs=1e-12)


def test_each_modality_takes_shares_off_too() -> None:
    query, target, negatives, positive = case()
    log_q = torch.rand(9, dtype=torch.float64).log()
    expected = sum(
        InfoNCE(0.3)(Views(q), Views(t), negatives, positive, log_q) for q, t in zip(query, target, strict=True)
    )
    found = EachModality(InfoNCE(0.3), 0.3, 1.0)(query, target, negatives, positive, log_q)
    assert found.item() == pytest.approx(float(expected), rel=0, abs=1e-12)


# ---------------------------------------------------------------- the loss with its figures


@EVERY_LOSS
def test_terms_hold_the_loss_and_its_gradient(loss: nn.Module) -> None:
    query, target, negatives, positive = case()
    called, listed = (leaves(query), leaves(query))
    value, terms = loss(called, target, negatives, positive), loss.terms(listed, target, negatives, positive)
    value.backward()
    terms.loss.backward()
    assert terms.loss.item() == value.item()
    for one, other in zip(called, listed, strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)
    assert not any(figure.requires_grad for figure in terms.figures.values())


def test_figures_are_those_of_the_parts() -> None:
    query, target, negatives, positive = case()
    wpcl, crtr = WPCL(0.1, alpha=5.0, beta=2.0), CRTR(0.5)
    figures = VLM2RecLoss(wpcl, crtr, 0.25).terms(query, target, negatives, positive).figures
    text, image = wpcl.margins(query, target, negatives, positive)
    expected = {
        "margin_text": text.mean(),
        "margin_image": image.mean(),
        "gap": wpcl.gap(query, target, negatives, positive).mean(),
        "norm_ratio": (query.text.norm(dim=1) / query.image.norm(dim=1)).mean(),
        "crtr": crtr(query, target),
        "penalty": wpcl.penalty(query, target, negatives, positive).mean(),
        "alpha": 5.0,
        "beta": 2.0,
        "wpcl": wpcl(query, target, negatives, positive),
    }
    assert {name: figure.item() for name, figure in figures.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-6
    )


def test_figures_leave_out_what_is_missing() -> None:
    """A user without the picture has no picture margin, no gap, and no ratio of lengths."""
    query, target, negatives, positive = case()
    query.image[0] = 0
    figures = InfoNCE(0.1).terms(query, target, negatives, positive).figures
    text, image = WPCL(0.1).margins(query, target, negatives, positive)
    assert figures["margin_image"].item() == pytest.approx(image[1:].mean().item())
    assert figures["gap"].item() == pytest.approx((text - image)[1:].abs().sum().item() / 5)
    ratio = (query.text.norm(dim=1) / query.image.norm(dim=1))[1:]
    assert figures["norm_ratio"].item() == pytest.approx(ratio.mean().item())


def test_one_view_alone_has_no_figures() -> None:
    query, target, negatives, positive = case()
    assert InfoNCE(0.1).terms(Views(query.fused), Views(target.fused), negatives, positive).figures == {}


@EVERY_LOSS
def test_each_view_is_compared_once(loss: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    compare = objectives._cosine

    def counted(query: Tensor, target: Tensor) -> Tensor:
        made.append(query)
        return compare(query, target)

    monkeypatch.setattr(objectives, "_cosine", counted)
    query, target, negatives, positive = case()
    loss.terms(query, target, negatives, positive)
    assert len({id(view) for view in made}) == len(made) <= 3
