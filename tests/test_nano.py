import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from vlm2rec.backbones.load import BUILT_IN, Backbone, load_backbone, towers
from vlm2rec.backbones.nano import _RECIPE, VISUAL_TOKENS, _Pupil, build_nano, copy_nano
from vlm2rec.backbones.nano_lessons import PICTURE, Lessons
from vlm2rec.config import BackboneConfig, PromptConfig
from vlm2rec.data.sources.shop import BRANDS, ShopWorld, open_shop
from vlm2rec.data.sources.shop_drawing import draw
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build cut short: enough steps to see that it learns."""
    return build_nano(tmp_path_factory.mktemp("nano") / "built", looking=100, reading=10, pictures=300)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(path=str(folder)))


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return Lessons(seed=5, pictures=60)


def test_is_a_checkpoint_of_about_a_million_layer_parameters(folder: Path, backbone: Backbone) -> None:
    layers = sum(p.numel() for name, p in backbone.model.named_parameters() if "language_model.layers." in name)
    assert 0.8e6 < layers < 1.2e6
    assert set(towers(backbone.model)) == {"language", "vision", "projector"}
    assert backbone.context >= 1024
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"


def test_reads_any_title(backbone: Backbone) -> None:
    for title in ("Harbour mug for camping", "Tasse à café – 10 % Rabatt", "帽子 👒", "x" * 50):
        ids = backbone.tokens(title)
        assert ids
        assert backbone.tokenizer.decode(ids) == title
    assert len(backbone.tokens(" handmade lamp for camping")) == 4  # common words are one token


def test_a_title_cannot_pass_for_a_picture_unseen(backbone: Backbone) -> None:
    assert backbone.tokenizer.convert_ids_to_tokens(backbone.image_token) == PICTURE
    assert backbone.image_token not in backbone.tokens("image of a lamp < image >")


def test_a_picture_is_four_visual_tokens(backbone: Backbone) -> None:
    assert backbone.vision is not None
    looks = [product.look for product in open_shop(ShopWorld(products=20, shoppers=2)).products[:3]]
    visuals = backbone.vision([np.asarray(draw(look, 112)) for look in looks])
    assert [tuple(visual.tokens.shape) for visual in visuals] == [(VISUAL_TOKENS, backbone.dim)] * 3
    ids = backbone.picture_tokens(VISUAL_TOKENS)
    states = backbone.last_states([ids] * 3, visuals)
    assert states.shape == (3, backbone.dim)
    assert not torch.allclose(states[0], states[1], atol=1e-4)


def test_learns_to_name_what_it_sees(folder: Path) -> None:
    figures = json.loads((folder / "nano.json").read_text())
    # To know only how often each word is used leaves a loss of 3.2; to know all four words of a picture, ln 4.
    assert figures["looking_loss"] < 3.1
    assert figures["reading_loss"] > 0


def test_same_seed_same_weights(folder: Path, tmp_path: Path) -> None:
    one = build_nano(tmp_path / "one", seed=3, looking=2, reading=2, pictures=60)
    two = build_nano(tmp_path / "two", seed=3, looking=2, reading=2, pictures=60)
    other = build_nano(tmp_path / "other", seed=4, looking=2, reading=2, pictures=60)
    weights = [LlavaForConditionalGeneration.from_pretrained(path).state_dict() for path in (one, two, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()


def test_what_stands_is_left_and_what_is_outdated_is_built_anew(tmp_path: Path) -> None:
    out = build_nano(tmp_path / "nano", looking=1, reading=1, pictures=60)
    before = (out / "model.safetensors").stat().st_mtime_ns
    build_nano(out, looking=1, reading=1, pictures=60)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    build_nano(out, looking=1, reading=2, pictures=60)
    assert (out / "model.safetensors").stat().st_mtime_ns != before
    assert json.loads((out / "nano.json").read_text())["reading"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]  # nothing half-written beside it


def test_somebody_elses_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no nano backbone"):
        build_nano(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_lessons_are_a_function_of_seed_and_step(lessons: Lessons) -> None:
    again = Lessons(seed=5, pictures=60)
    assert np.array_equal(lessons.pictures, again.pictures)
    for sort in ("captions", "sentences", "lists"):
        assert getattr(lessons, sort)(7, 6) == getattr(again, sort)(7, 6)
        assert getattr(lessons, sort)(7, 6) != getattr(lessons, sort)(8, 6)


def test_lessons_say_what_is_there(lessons: Lessons) -> None:
    for lesson in lessons.captions(0, 40):
        facts = lessons.facts[lesson.pictures[0]]
        assert all(facts[trait] in lesson.pieces[1] for trait in ("colour", "pattern", "kind"))
    for lesson in lessons.lists(0, 80):
        assert lesson.pieces.count(PICTURE) == len(lesson.pictures)
        text = "".join(lesson.pieces).lower()
        shown = {word for index in lesson.pictures for word in lessons.facts[index].values()}
        assert lesson.answers
        assert all(answer in shown or answer.lower() in text for answer in lesson.answers)


def test_the_shops_products_and_brands_are_no_lesson() -> None:
    lessons = Lessons(seed=0, pictures=60)
    texts = " ".join(lessons.texts(500))
    assert not any(brand in texts for brand in BRANDS)
    titles = {product.title for product in open_shop(ShopWorld()).products}
    assert titles.isdisjoint(piece for lesson in lessons.lists(0, 500) for piece in lesson.pieces)


def test_cached_pictures_teach_like_live_ones(folder: Path, lessons: Lessons) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    backbone = load_backbone(BackboneConfig(path=str(folder)))
    assert backbone.vision is not None
    pupil = _Pupil(model, backbone.tokenizer, backbone.vision.processor, lessons, seed=0)
    batch = lessons.captions(0, 5)
    with torch.no_grad():
        seen = model.model.vision_tower(pupil.pixels, output_hidden_states=True).hidden_states[-1]
        cached = pupil._next_words(batch, seen)
        ids, _ = pupil._padded([[*pupil._encode(one), backbone.tokenizer.eos_token_id] for one in batch])
        hidden = (ids == backbone.tokenizer.pad_token_id) | (ids == backbone.image_token)
        pixels = pupil.pixels[[one.pictures[0] for one in batch]]
        live = model(input_ids=ids, labels=ids.masked_fill(hidden, -100), pixel_values=pixels).loss
    assert torch.allclose(cached, live, atol=1e-5)


def test_what_comes_with_the_package_is_of_this_recipe_and_can_see_and_read() -> None:
    made_of = json.loads((BUILT_IN / "nano.json").read_text())
    defaults = {name: value.default for name, value in inspect.signature(build_nano).parameters.items()}
    assert made_of["recipe"] == _RECIPE, "build it anew: build_nano, then .half(), into nano_checkpoint"
    assert all(made_of[name] == defaults[name] for name in ("seed", "looking", "reading", "pictures"))
    encoder = Encoder.build(BackboneConfig(path="nano"), PromptConfig())
    products = open_shop(ShopWorld(products=60, shoppers=2)).products
    shelf = SimpleNamespace(
        titles=[product.title for product in products], pictures=[np.asarray(draw(p.look, 112)) for p in products]
    )
    with torch.no_grad():
        views = encoder.items(shelf, range(60))
    kinds = np.array([product.traits["kind"] for product in products])
    same = kinds[:, None] == kinds[None]
    np.fill_diagonal(same, False)
    for view in (views.text, views.image):
        assert view is not None
        unit = torch.nn.functional.normalize(view, dim=-1).numpy()
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -1)
        nearest = same[np.arange(60), cosine.argmax(1)].mean()
        assert nearest > 3 * same.mean(), nearest


def test_a_copy_is_the_same_and_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    out = copy_nano(tmp_path / "nano")
    assert (out / "model.safetensors").read_bytes() == (BUILT_IN / "model.safetensors").read_bytes()
    assert copy_nano(out) == out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="no copy of nano"):
        copy_nano(tmp_path / "other")
