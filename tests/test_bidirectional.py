"""Both ways is both ways, in every family, under eager attention and SDPA, with padding; and silence is impossible."""

from collections.abc import Callable
from pathlib import Path

import families
import pytest
import torch
import transformers as hf
from torch import Tensor

from vlm2rec.backbones import bidirectional
from vlm2rec.backbones.bidirectional import attend, check_bidirectional, check_dropout, drop_attention
from vlm2rec.backbones.load import Backbone, load_backbone
from vlm2rec.config import BackboneConfig
from vlm2rec.errors import InputError

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT_ONLY: dict[str, Callable[[int], hf.PreTrainedModel]] = {
    "llama": lambda vocab: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=vocab, num_key_value_heads=2, **TINY)),
    "phi": lambda vocab: hf.PhiForCausalLM(hf.PhiConfig(vocab_size=vocab, **TINY)),
    "gpt2": lambda vocab: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    ),
    "gpt_neo": lambda vocab: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=vocab, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]],
            bos_token_id=1, eos_token_id=2,
        )
    ),
}  # fmt: skip
LONG, SHORT = [40, 41, 42, 43, 44, 45], [50, 51, 52]


def build_text_only(family: str, folder: Path) -> Path:
    words = families.tokenizer()
    torch.manual_seed(0)
    TEXT_ONLY[family](len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


Load = Callable[..., Backbone]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    root, built = tmp_path_factory.mktemp("backbones"), {}

    def make(family: str, attention: str | None = None) -> Backbone:
        if family not in built:
            build = build_text_only if family in TEXT_ONLY else families.build
            built[family] = build(family, root / family)
        backbone = load_backbone(BackboneConfig(path=str(built[family])), head=True)
        if attention is not None:
            assert backbone.generator is not None
            backbone.generator.set_attn_implementation(attention)
            assert backbone.model.get_decoder().config._attn_implementation == attention
        return backbone

    return make


@torch.no_grad()
def read(backbone: Backbone, ids: list[list[int]], real: list[list[int]]) -> Tensor:
    rows = torch.tensor(ids)
    given = {"input_ids": rows, "attention_mask": torch.tensor(real), "use_cache": False}
    states: Tensor = backbone.model(**given, **backbone.kinds(rows)).last_hidden_state
    return states


PADDED = [[1] * 6, [1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*families.FAMILIES, "llama", "phi"])
def test_what_reaches_what(family: str, attention: str, load: Load) -> None:
    backbone = load(family, attention)
    padded = [LONG, [*SHORT, 0, 0, 0]]
    later = [[*LONG[:-1], 99], [*SHORT[:-1], 98, 0, 0, 0]]
    padding = [LONG, [*SHORT, 97, 96, 95]]

    causal = read(backbone, padded, PADDED)
    changed = read(backbone, later, PADDED)
    assert torch.equal(causal[0, :-1], changed[0, :-1]) and torch.equal(causal[1, :2], changed[1, :2])

    attend(backbone, both_ways=True)
    before, after = read(backbone, padded, PADDED), read(backbone, later, PADDED)
    for row, length in ((0, 5), (1, 2)):
        moved = (after - before)[row, :length].norm(dim=-1) / before[row, :length].norm(dim=-1)
        assert moved.min() > 1e-3, "a later token must reach every earlier one"
    assert torch.equal(read(backbone, padding, PADDED)[1, :3], before[1, :3]), "padding must reach nothing"

    alone = read(backbone, padded[:1], PADDED[:1])  # no padding: SDPA takes another path
    torch.testing.assert_close(alone[0], before[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(read(backbone, [SHORT], [[1, 1, 1]])[0], before[1, :3], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        states, _ = backbone.states([LONG, SHORT], masked=True)
    torch.testing.assert_close(states, before, atol=1e-5, rtol=1e-4)

    attend(backbone, both_ways=False)
    torch.testing.assert_close(read(backbone, padded, PADDED)[0], causal[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "llava", "qwen2_5_vl", "smolvlm", "gemma3"])
def test_dropout_is_drawn_in_training_and_only_there(family: str, attention: str, load: Load) -> None:
    backbone = load(family, attention)
    attend(backbone, both_ways=True)
    padded = [LONG, [*SHORT, 0, 0, 0]]
    still = read(backbone, padded, PADDED)
    assert drop_attention(backbone, 0.4) == 2, "one a layer"
    backbone.model.train()
    one, other = (read(backbone, padded, PADDED) for _ in range(2))
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[1, :3], other[1, :3])
    backbone.model.eval()
    assert torch.equal(read(backbone, padded, PADDED), still)
    drop_attention(backbone, 0.0)
    backbone.model.train()
    assert torch.equal(read(backbone, padded, PADDED), read(backbone, padded, PADDED))


def test_recomputed_activations_are_bidirectional_too(load: Load) -> None:
    """With dropout: what is recomputed in the backward pass must be what was computed."""
    gradients = []
    for checkpointing in (False, True):
        backbone = load("llava")
        attend(backbone, both_ways=True)
        drop_attention(backbone, 0.4)
        backbone.model.requires_grad_(True).train()
        if checkpointing:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        states, _ = backbone.states([LONG, SHORT], masked=True)
        states[0, 0].square().sum().backward()
        embeddings = backbone.model.get_input_embeddings().weight.grad
        assert embeddings is not None and embeddings[LONG[-1]].abs().sum() > 0, "the first state knows the last token"
        gradients.append(embeddings)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [*families.FAMILIES, "llama", "phi"])
def test_the_probe_lets_a_family_pass_and_leaves_it_as_it_was(family: str, load: Load) -> None:
    backbone = load(family)
    before = read(backbone, [LONG], PADDED[:1])
    check_bidirectional(backbone, "here")
    check_dropout(backbone, 0.2, "here")
    assert not backbone.model.training
    assert torch.equal(read(backbone, [LONG], PADDED[:1]), before)
    backbone.model.train()
    assert torch.equal(read(backbone, [LONG], PADDED[:1]), before), "no dropout is left"


def test_a_family_that_stays_causal_is_refused(load: Load) -> None:
    backbone = load("gpt_neo")
    attend(backbone, both_ways=True)
    one, other = (read(backbone, [[*LONG[:-1], last]], PADDED[:1])[0, :-1] for last in (45, 99))
    assert torch.equal(one, other), "GPT-Neo took the setting after all; test with another family"
    with pytest.raises(InputError, match=r"'here': the attention of gpt_neo cannot be made to look both ways") as error:
        check_bidirectional(backbone, "here")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_old_recipe_is_caught(attention: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag on the modules alone: without effect under eager, and under SDPA where a batch is padded."""

    def by_the_modules(backbone: Backbone, both_ways: bool) -> None:
        for module in backbone.model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = not both_ways

    backbone = load("llama", attention)
    monkeypatch.setattr(bidirectional, "attend", by_the_modules)
    with pytest.raises(InputError, match="cannot be made to look both ways"):
        check_bidirectional(backbone, "here")


def test_a_mask_that_is_not_heeded_is_caught(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load("llama")
    forward = backbone.model.forward

    def without_mask(attention_mask: Tensor, **given: Tensor) -> object:
        return forward(attention_mask=torch.ones_like(attention_mask), **given)

    monkeypatch.setattr(backbone.model, "forward", without_mask)
    with pytest.raises(InputError, match="cannot be made to look both ways"):
        check_bidirectional(backbone, "here")


def test_attention_without_a_dropout_number_is_refused(load: Load) -> None:
    """GPT-2 has dropout modules of its own, so that two passes differ says nothing there."""
    backbone = load("gpt2")
    check_bidirectional(backbone, "here")
    with pytest.raises(InputError, match="gpt2 has no dropout to set") as error:
        check_dropout(backbone, 0.2, "here")
    assert "\n" not in str(error.value)


def test_dropout_that_is_not_drawn_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load("llama")
    monkeypatch.setattr(bidirectional, "drop_attention", lambda backbone, share: 2)
    with pytest.raises(InputError, match="llama has no dropout to set"):
        check_dropout(backbone, 0.2, "here")
