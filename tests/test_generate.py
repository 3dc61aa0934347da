"""Greedy decoding: with a cache and in a batch as without and alone; stock `generate` says the same."""

from pathlib import Path

import families
import numpy as np
import pytest
import torch

from vlm2rec.backbones.generate import batches, greedy
from vlm2rec.backbones.load import Backbone, load_backbone
from vlm2rec.backbones.vision import Visual
from vlm2rec.config import BackboneConfig


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = families.build(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return load_backbone(BackboneConfig(path=str(folder)), head=True)


def prompts(backbone: Backbone) -> list[tuple[list[int], list[Visual]]]:
    texts = ["a red lamp", "a blue mug", "a shopper bought these products"]
    made: list[tuple[list[int], list[Visual]]] = [(backbone.tokens(text), []) for text in texts]
    if backbone.vision is not None:
        rng = np.random.default_rng(0)
        for text in texts[:2]:
            visuals = backbone.vision([rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)])
            ids = [*backbone.tokens("a "), *backbone.picture_tokens(len(visuals[0].tokens)), *backbone.tokens(text)]
            made.append((ids, visuals))
    return made


def by_hand(backbone: Backbone, ids: list[int], visuals: list[Visual], count: int) -> list[int]:
    """The whole prompt read again for every token."""
    found: list[int] = []
    for _ in range(count):
        with torch.inference_mode():
            state = backbone.last_states([[*ids, *found]], visuals)
            found.append(int(backbone.logits(state)[0].argmax()))
    return found


def test_a_cache_and_a_batch_change_nothing(backbone: Backbone) -> None:
    made = prompts(backbone)
    answers = greedy(backbone, made, 6)
    for (ids, visuals), answer in zip(made, answers, strict=True):
        assert answer == by_hand(backbone, ids, visuals, 6)
    assert len({tuple(answer) for answer in answers}) > 1  # they do depend on the prompt


def test_many_lengths_in_one_batch(backbone: Backbone) -> None:
    """Where padding is possible all prompts of words share a batch; the answers are those of each alone."""
    texts = ["a", "a red lamp and a blue mug", "lamp", "a shopper bought these products, a red lamp", "a blue mug"]
    made: list[tuple[list[int], list[Visual]]] = [(backbone.tokens(text), []) for text in texts]
    one_position_a_token = backbone.model.config.model_type in ("llava", "internvl", "smolvlm", "qwen2")
    assert (len(batches(backbone, made)) == 1) is one_position_a_token
    assert sorted(row for rows in batches(backbone, made) for row in rows) == list(range(len(made)))
    for (ids, visuals), answer in zip(made, greedy(backbone, made, 6), strict=True):
        assert answer == by_hand(backbone, ids, visuals, 6)


def test_batches_hold_everything_once_and_few_at_a_time(backbone: Backbone) -> None:
    made: list[tuple[list[int], list[Visual]]] = [([5] * length, []) for length in [5, 9, 5] * 50 + [7]]
    found = batches(backbone, made)
    assert sorted(row for rows in found for row in rows) == list(range(151))
    assert max(map(len, found)) <= 64 and len(made[found[0][0]][0]) == 9


def test_stock_generate_says_the_same(backbone: Backbone) -> None:
    assert backbone.generator is not None
    for ids, _ in prompts(backbone)[:3]:
        row = torch.tensor([ids])
        stock = backbone.generator.generate(
            row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert greedy(backbone, [(ids, [])], 6)[0] == stock[0, len(ids) :].tolist()


def test_an_answer_ends_before_a_stop(backbone: Backbone) -> None:
    made = prompts(backbone)
    free = greedy(backbone, made, 6)
    stop = {free[0][3]}
    for answer, ended in zip(free, greedy(backbone, made, 6, stop), strict=True):
        cut = next((place for place, token in enumerate(answer) if token in stop), len(answer))
        assert ended == answer[:cut]
