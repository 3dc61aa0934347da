"""The encoder on tiny random checkpoints of every family: nothing depends on how it is computed."""

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers as hf

from vlm2rec.backbones import attention
from vlm2rec.backbones.load import load_backbone, towers
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig
from vlm2rec.embeddings import one_sided
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.fusion import Gate
from vlm2rec.objectives import Views

EYES = [family for family in families.FAMILIES if family != "qwen2"]


def shelf(size: int = 56) -> families.Shelf:
    rng = np.random.default_rng(0)
    pictures: list[np.ndarray | None] = [rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for _ in range(5)]
    titles = ["a red lamp", "a blue mug", "a shirt whose name is long enough to be cut", "", "tea", "no picture"]
    return families.Shelf(titles, [*pictures, None])


HISTORIES = [[0], [1, 2, 0], [5, 3], [4, 4, 1, 2, 0]]


def build(folder: Path, batch_tokens: int = 8192, cache: bool = True, **prompt: object) -> Encoder:
    settings = BackboneConfig(path=str(folder), cache_vision=cache)
    return Encoder.build(settings, PromptConfig.model_validate(prompt), batch_tokens)


def cosines(one: Views, other: Views) -> float:
    return min(
        float(torch.cosine_similarity(a, b, dim=-1).min())
        for a, b in zip(one, other, strict=True)
        if a is not None and b is not None
    )


@pytest.mark.parametrize("family", EYES)
@pytest.mark.parametrize("fusion", ["external", "internal"])
def test_a_vector_depends_on_its_own_prompt_only(folders: dict[str, Path], family: str, fusion: str) -> None:
    encoder, catalogue = build(folders[family], fusion=fusion), shelf()
    together = encoder.histories(catalogue, HISTORIES)
    assert together.fused.shape == (4, 32)
    assert (together.text is None) == (fusion == "internal")
    narrow = build(folders[family], batch_tokens=1, fusion=fusion)
    assert cosines(together, narrow.histories(catalogue, HISTORIES)) > 1 - 1e-5
    for row, history in enumerate(HISTORIES):
        alone = encoder.histories(catalogue, [history])
        np.testing.assert_allclose(alone.fused[0], together.fused[row], atol=2e-5)
    different = torch.pdist(torch.nn.functional.normalize(together.fused, dim=-1))
    assert float(different.min()) > 1e-3, "the prompts do not reach the vectors"


@pytest.mark.parametrize("family", list(families.FAMILIES))
def test_an_item_is_a_history_of_one(folders: dict[str, Path], family: str) -> None:
    encoder = build(folders[family], modalities="text" if family == "qwen2" else "both")
    items, histories = encoder.items(shelf(), [2, 0]), encoder.histories(shelf(), [[2], [0]])
    assert torch.equal(items.fused, histories.fused)


@pytest.mark.parametrize("family", EYES)
def test_kept_visual_tokens_equal_the_stock_model_on_pixels(folders: dict[str, Path], family: str) -> None:
    encoder, catalogue = build(folders[family], modalities="image"), shelf()
    backbone = encoder.backbone
    assert backbone.vision is not None
    prompt = encoder.prompts(catalogue, [[1, 2]])[0]
    kept = encoder([prompt])
    ids = torch.tensor([prompt.ids])
    images = [hf.image_utils.to_numpy_array(catalogue.pictures[i]) for i in (1, 2)]
    pixels = backbone.vision.processor(images=images, return_tensors="pt")
    pixels.pop("num_patches", None)
    pixels.pop("num_crops", None)
    kinds = (ids == backbone.image_token).long()
    name = {"gemma3": "token_type_ids"}.get(family, "mm_token_type_ids" if family.startswith("qwen") else None)
    extra = {name: kinds} if name else {}
    with torch.no_grad():
        live = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels, **extra).last_hidden_state
    assert float(torch.cosine_similarity(kept[0], live[0, -1], dim=0)) > 1 - 1e-6


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_windows_of_all_sizes_are_attended_to_as_the_stock_tower_does(folders: dict[str, Path], family: str) -> None:
    """Pictures of several sizes in one row: whole windows, cut ones, whole pictures."""
    rng = np.random.default_rng(1)
    sizes = [(56, 56), (140, 84), (56, 56), (84, 196)]
    pictures = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    vision = build(folders[family]).backbone.vision
    assert vision is not None and vision.model.config.vision_config._attn_implementation == attention.VISION
    found = vision(pictures)
    vision.model.config.vision_config._attn_implementation = "sdpa"
    for one, stock in zip(found, vision(pictures), strict=True):
        torch.testing.assert_close(one.tokens, stock.tokens, rtol=1e-4, atol=1e-5)
    assert len({len(one.tokens) for one in found}) == 3


@pytest.mark.parametrize("family", EYES)
def test_the_cache_changes_nothing(folders: dict[str, Path], family: str) -> None:
    kept, live = (build(folders[family], cache=cache) for cache in (True, False))
    catalogue = shelf()
    kept.histories(catalogue, HISTORIES[:2])  # so that the second call finds some of its pictures
    assert cosines(kept.histories(catalogue, HISTORIES), live.histories(catalogue, HISTORIES)) > 1 - 1e-3


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_a_picture_is_the_same_to_the_bit_whichever_others_were_asked_for(
    folders: dict[str, Path], family: str
) -> None:
    """Else a run that is continued, and looks at its pictures in another order, would drift."""
    (together, alone), catalogue = (build(folders[family]) for _ in range(2)), shelf()
    together.look_at(catalogue, range(len(catalogue.titles)))
    for item in reversed(range(len(catalogue.titles))):
        alone.look_at(catalogue, [item])
        one, other = together.visual(item), alone.visual(item)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.tokens, other.tokens)


def test_a_new_catalogue_is_not_taken_for_the_old_one(folders: dict[str, Path]) -> None:
    encoder, old, new = build(folders["llava"]), shelf(), shelf()
    new.titles, new.pictures = new.titles[::-1], new.pictures[::-1]
    encoder.items(old, range(6))
    again, fresh = encoder.items(new, range(6)), build(folders["llava"]).items(new, range(6))
    assert torch.equal(again.fused, fresh.fused)


@pytest.mark.parametrize("family", list(families.FAMILIES))
def test_lora_touches_the_language_model_only_and_starts_as_the_identity(folders: dict[str, Path], family: str) -> None:
    encoder = build(folders[family], modalities="text" if family == "qwen2" else "both")
    before = encoder.items(shelf(), range(3)).fused
    encoder.add_lora(LoraSettings(rank=4), seed=1)
    assert torch.equal(encoder.eval().items(shelf(), range(3)).fused, before)
    trained = [name for name, p in encoder.backbone.model.named_parameters() if p.requires_grad]
    # Rank 4, two layers: every q, k, v, o, gate, up and down of the language model, an A and a B each.
    assert len(trained) == 2 * 2 * 7 and all("lora_" in name for name in trained)
    counts = towers(encoder.backbone.model)
    assert {part for part, count in counts.items() if count["trainable"]} == {"language"}
    assert sum(count["all"] for count in counts.values()) == sum(p.numel() for p in encoder.backbone.model.parameters())
    assert set(counts) == ({"language"} if family == "qwen2" else {"language", "vision", "projector"})


def test_attention_only_lora(folders: dict[str, Path]) -> None:
    encoder = build(folders["llava"])
    encoder.add_lora(LoraSettings(rank=4, targets="attention"), seed=1)
    names = [name for name, p in encoder.backbone.model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 4 and not any("mlp" in name for name in names)


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "qwen2"])
def test_saved_and_loaded_is_the_same(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    encoder = build(folders[family], modalities="text" if family == "qwen2" else "both", combine="unit_sum")
    encoder.add_lora(LoraSettings(rank=4), seed=1)
    families.wake(encoder.backbone.model)
    expected = encoder.eval().histories(shelf(), HISTORIES)
    encoder.save(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.bin"))
    loaded = Encoder.load(tmp_path / "model").histories(shelf(), HISTORIES)
    np.testing.assert_allclose(loaded.fused.detach(), expected.fused.detach(), atol=1e-6)


def test_the_fused_view_is_the_sum(folders: dict[str, Path]) -> None:
    views = build(folders["llava"]).histories(shelf(), HISTORIES)
    assert views.text is not None and views.image is not None
    assert torch.equal(views.fused, views.text + views.image)
    unit = build(folders["llava"], combine="unit_sum").histories(shelf(), HISTORIES)
    expected = views.text / views.text.norm(dim=1, keepdim=True) + views.image / views.image.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(unit.fused, expected, atol=1e-6)


def test_each_pass_sees_its_own_modality(folders: dict[str, Path]) -> None:
    encoder, one, two = build(folders["llava"]), shelf(), shelf()
    two.titles = ["new " + title for title in two.titles]
    first, second = encoder.items(one, range(5)), encoder.items(two, range(5))
    assert first.image is not None and second.image is not None and first.text is not None and second.text is not None
    assert torch.equal(first.image, second.image)
    assert not torch.isclose(first.text, second.text).all(dim=1).any()


def test_titles_are_cut_by_tokens(folders: dict[str, Path]) -> None:
    short = build(folders["qwen2"], modalities="text", max_title_tokens=3)
    long = build(folders["qwen2"], modalities="text", max_title_tokens=500)
    title = shelf().titles[2]
    lengths = [len(encoder.prompts(shelf(), [[2]])[0].ids) for encoder in (short, long)]
    assert lengths[1] - lengths[0] == len(long.backbone.tokens(title)) - 3


def test_a_title_that_names_a_special_token_is_only_words(folders: dict[str, Path]) -> None:
    encoder, catalogue = build(folders["llava"]), shelf()
    catalogue.titles[0] = "frame <image> <|im_end|>"
    prompt = encoder.prompts(catalogue, [[0]])[0]
    assert prompt.ids.count(encoder.backbone.image_token) == 0
    assert prompt.ids.count(encoder.backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # the template's own
    assert encoder.items(catalogue, [0]).fused.shape == (1, 32)


def test_the_chat_template_ends_every_prompt_alike(folders: dict[str, Path]) -> None:
    encoder = build(folders["llava"])
    tails = {tuple(prompt.ids[-12:]) for prompt in encoder.prompts(shelf(), HISTORIES)}
    assert len(tails) == 1
    decoded = encoder.backbone.tokenizer.decode(encoder.prompts(shelf(), [[0]])[0].ids)
    assert decoded.startswith("<|im_start|>user\nA shopper") and decoded.endswith("<|im_start|>assistant\n")
    bare = build(folders["llava"], chat=False)
    assert "<|im_start|>" not in bare.backbone.tokenizer.decode(bare.prompts(shelf(), [[0]])[0].ids)


def test_more_visual_tokens_for_larger_pictures(folders: dict[str, Path]) -> None:
    encoder = build(folders["qwen2_5_vl"], modalities="image")
    small = encoder.prompts(shelf(56), [[0]])[0].visuals[0].tokens
    assert small.shape == (4, 32)
    settings = BackboneConfig(path=str(folders["qwen2_5_vl"]), image_size=112)
    larger = Encoder.build(settings, PromptConfig(modalities="image")).prompts(shelf(56), [[0]])[0].visuals[0].tokens
    assert larger.shape == (16, 32)


def test_a_prompt_longer_than_the_context_is_refused(folders: dict[str, Path]) -> None:
    encoder = build(folders["llava"])
    with pytest.raises(InputError, match=r"takes .* tokens, the backbone reads 512"):
        encoder.prompts(shelf(), [[0, 1] * 60])
    with pytest.raises(InputError, match=r"data\.max_history"):
        encoder.check(shelf(), [[0], [0, 1] * 60])
    encoder.check(shelf(), HISTORIES)
    assert encoder.items(shelf(), [5]).fused.shape == (1, 32)


def test_no_eyes_for_pictures(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"reads no pictures.*prompt\.modalities=text"):
        build(folders["qwen2"])


def test_a_missing_or_foreign_backbone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=r"backbone\.path") as caught:
            load_backbone(BackboneConfig(path=str(path)))
        assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = families.build("llava", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    dropped = next(name for name in weights if "q_proj" in name)
    save_file({name: w for name, w in weights.items() if name != dropped}, broken / "model.safetensors")
    with pytest.raises(InputError, match="1 weight is missing"):
        build(broken)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_states_and_logits_are_those_of_the_model_with_its_head(folders: dict[str, Path], family: str) -> None:
    backbone = load_backbone(BackboneConfig(path=str(folders[family])), head=True)
    rows = [backbone.tokens("a red lamp"), backbone.tokens("a blue mug that a shopper bought")]
    states, real = backbone.states(rows)
    assert real.sum(1).tolist() == [len(row) for row in rows]
    assert backbone.generator is not None
    for row, own in zip(rows, states, strict=True):
        alone = backbone.generator(input_ids=torch.tensor([row]), logits_to_keep=0).logits[0]
        torch.testing.assert_close(backbone.logits(own[: len(row)]), alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[[0, 1], real.sum(1) - 1], backbone.last_states(rows, []), atol=1e-5, rtol=1e-5)


def test_concatenated_views_have_the_cosine_of_both_sides(folders: dict[str, Path]) -> None:
    views = build(folders["llava"], combine="concat").histories(shelf(), HISTORIES)
    assert views.text is not None and views.image is not None and views.fused.shape == (4, 64)
    text, image = (view.double().numpy() for view in (views.text, views.image))
    lengths = [np.sqrt(t @ t + v @ v) for t, v in zip(text, image, strict=True)]
    for i, j in np.ndindex(4, 4):
        whole = float(torch.cosine_similarity(views.fused[i], views.fused[j], dim=0))
        expected = (text[i] @ text[j] + image[i] @ image[j]) / lengths[i] / lengths[j]
        assert whole == pytest.approx(expected, abs=1e-6)
        for view, side in (("text", text), ("image", image)):  # a query of one side against the whole item
            query = one_sided(side[[i]], view, 64)[0]
            alone = query @ views.fused[j].double().numpy() / np.linalg.norm(query) / lengths[j]
            assert alone == pytest.approx(side[i] @ side[j] / np.linalg.norm(side[i]) / lengths[j], abs=1e-6)


@torch.no_grad()
def test_a_gate_starts_with_the_cosines_of_the_sum(folders: dict[str, Path]) -> None:
    plain, gated = (build(folders["llava"], combine=how).histories(shelf(), HISTORIES) for how in ("sum", "gated"))
    assert cosines(plain, gated) > 1 - 1e-6
    np.testing.assert_allclose(gated.fused, plain.fused / 2, atol=1e-6)


def test_a_gate_by_its_definition() -> None:
    """One number at a time, in float64; the length of a view moves no share."""
    torch.manual_seed(0)
    gate, text, image = Gate(5), torch.randn(3, 5) * 40, torch.randn(3, 5)
    with torch.no_grad():
        gate.linear.weight.normal_()
        gate.linear.bias.normal_()
    found = gate(text.to(torch.bfloat16), image)
    assert found.dtype == torch.float32
    found, rows = gate(text, image).detach(), gate.linear.weight.detach().double().numpy()
    for t, v, fused in zip(text.double().numpy(), image.double().numpy(), found, strict=True):
        seen = np.concatenate([t / np.sqrt(t @ t), v / np.sqrt(v @ v)]) * np.sqrt(5)
        for d in range(5):
            share = 1 / (1 + np.exp(-(rows[d] @ seen + float(gate.linear.bias[d].detach()))))
            assert float(fused[d]) == pytest.approx(share * t[d] + (1 - share) * v[d], rel=1e-5)


def test_a_gate_is_trained_saved_and_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = build(folders["llava"], combine="gated")
    encoder.add_lora(LoraSettings(rank=4), seed=1)
    assert encoder.gate is not None
    weight, bias = encoder.gate.linear.weight, encoder.gate.linear.bias
    assert {id(weight), id(bias)} <= {id(p) for p in encoder.parameters() if p.requires_grad}
    encoder.histories(shelf(), HISTORIES).fused[:, 0].sum().backward()
    assert weight.grad is not None and bool(weight.grad[0].any()) and not bool(weight.grad[1:].any())
    with torch.no_grad():
        weight.normal_()
        bias.normal_()
    expected = encoder.eval().histories(shelf(), HISTORIES)
    encoder.save(tmp_path / "model")
    loaded = Encoder.load(tmp_path / "model")
    assert loaded.gate is not None and torch.equal(loaded.gate.linear.weight, weight)
    assert torch.equal(loaded.histories(shelf(), HISTORIES).fused, expected.fused)
    counted = loaded.towers()["gate"]
    assert counted == {"all": 2 * 32 * 32 + 32, "trainable": 2 * 32 * 32 + 32}


@pytest.mark.parametrize("damage", ["no file", "no safetensors", "another size"])
def test_a_damaged_gate_is_one_line(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    build(folders["llava"], combine="gated").save(tmp_path / "model")
    path = tmp_path / "model" / "gate.safetensors"
    if damage == "no file":
        path.unlink()
    elif damage == "no safetensors":
        path.write_bytes(path.read_bytes()[:100])
    else:
        Gate(8).save(tmp_path / "model")
    with pytest.raises(InputError, match=r"gate\.safetensors (is|has)") as caught:
        Encoder.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_settings_of_another_version_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    build(folders["llava"]).save(tmp_path / "model")
    path = tmp_path / "model" / "encoder.json"
    written = json.loads(path.read_text())
    for changed in ({"prompt": {"sum": "raw"}}, {"batch_tokens": None}, {"backbone": []}):
        path.write_text(json.dumps({**written, **changed}))
        with pytest.raises(InputError, match="not the settings of an encoder of this version") as caught:
            Encoder.load(tmp_path / "model")
        assert "\n" not in str(caught.value)
