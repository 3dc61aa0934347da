"""Adapters by the short way: PEFT's numbers, less memory."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from vlm2rec.backbones.lora_linear import LeanLinear, lean, mask


def layer(dropout: float = 0.0, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=bias)).to(dtype).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=12, lora_dropout=dropout, target_modules=["0"], init_lora_weights=False)
    return get_peft_model(model, config, autocast_adapter_dtype=dtype == torch.bfloat16)


def pull(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, then the gradients of a weighted sum of it at the input and at both adapters."""
    x = x.clone().requires_grad_(True)
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *trained])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_numbers_are_those_of_peft(bias: bool, training: bool) -> None:
    model, x = layer(bias=bias).train(training), torch.randn(2, 7, 6, dtype=torch.float64)
    expected = pull(model, x)
    lean(model)
    assert [type(m) for m in model.modules() if isinstance(m, Linear)] == [LeanLinear]
    found = pull(model, x)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_by_its_definition() -> None:
    """One mask for the whole pass: the output and all gradients follow from it."""
    model, x = layer(dropout=0.4).train(), torch.randn(50, 6, dtype=torch.float64)
    lean(model)
    torch.manual_seed(3)
    output, at_x, at_down, at_up = pull(model, x)
    torch.manual_seed(3)
    kept = mask(x, 0.4, int(torch.randint(2**62, ())))
    assert kept is not None and kept.dtype == torch.bool
    (module,) = (m for m in model.modules() if isinstance(m, LeanLinear))
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    leaf = x.clone().requires_grad_(True)
    reference = module.get_base_layer()(leaf) + 4 * (leaf * kept / 0.6) @ down.T @ up.T
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    expected = torch.autograd.grad((reference * weights).sum(), [leaf, down, up])
    for one, other in zip((output, at_x, at_down, at_up), (reference, *expected), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(model(x), model(x)), "every pass drops the same"
    module.lora_dropout.eval()  # as with PEFT, what counts is the dropout's own mode
    assert torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_a_mask_drops_its_share_everywhere_and_anew_with_every_seed() -> None:
    states = torch.zeros(4001, 11)
    for share in (0.05, 0.2, 0.9):
        kept = mask(states, share, 1)
        assert kept is not None and kept.shape == states.shape
        spread = (share * (1 - share)) ** 0.5
        assert abs(float(kept.float().mean()) - (1 - share)) < 4 * spread / kept.numel() ** 0.5
        lanes = kept.flatten()[:44000].view(-1, 4).float().mean(0)  # the four numbers that one draw makes
        assert float((lanes - (1 - share)).abs().max()) < 4 * spread / 11000**0.5
        again, other = mask(states, share, 1), mask(states, share, 2)
        assert again is not None and torch.equal(kept, again) and other is not None
        both = float((kept & other).float().mean())
        assert abs(both - (1 - share) ** 2) < 0.02
    assert mask(states, 0.0, 1) is None


def test_recomputed_activations_drop_the_same() -> None:
    model, x = layer(dropout=0.4).train(), torch.randn(50, 6, dtype=torch.float64)
    lean(model)

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    found = []
    for made in (model, Recomputed()):
        torch.manual_seed(5)
        found.append(pull(made, x))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_float32_adapters_on_a_bfloat16_layer() -> None:
    model, x = layer(dtype=torch.bfloat16).train(), torch.randn(9, 6).bfloat16()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    expected = pull(model, x)
    lean(model)
    found = pull(model, x)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.02


def test_no_more_than_the_input_is_kept() -> None:
    """Bytes held for the backward pass of three adapters on one input, beside PEFT's."""

    def held(model: nn.Module) -> int:
        found: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
            return tensor

        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sum(part(x) for part in model.children()).sum()
        return sum(found.values())

    x = torch.randn(1000, 6, dtype=torch.float64, requires_grad=True)
    model = nn.ModuleList(layer(dropout=0.4).train() for _ in range(3))
    before = held(model)
    lean(model)
    assert held(model) == x.nbytes + 3 * 1000 * 3 * 8 < before / 2


@pytest.mark.parametrize("change", ["merged", "disabled", "two"])
def test_anything_but_one_plain_adapter_is_left_to_peft(change: str) -> None:
    model, x = layer(), torch.randn(4, 6, dtype=torch.float64)
    reference = layer()
    lean(model)
    for one in (model, reference):
        if change == "merged":
            one.base_model.merge_adapter()
        elif change == "disabled":
            one.base_model.disable_adapter_layers()
        else:
            torch.manual_seed(1)
            one.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
            one.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model.double()(x), reference.double()(x))
