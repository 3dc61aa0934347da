"""The slot-filling prompt: what is asked, where the vector is read, and what changes it."""

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch

from vlm2rec.backbones.generate import greedy
from vlm2rec.config import VLMPrompt as Settings
from vlm2rec.config import parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.vlm_prompt import SLOTS, VLMPrompt, domain_of, slot_prompt
from vlm2rec.prompts import Picture, Text, Title


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("llava") / "model")


def config(dataset: Dataset, backbone: Path, **method: object) -> dict[str, object]:
    return {
        "data": {"path": str(dataset.path)},
        "backbone": {"path": str(backbone)},
        "method": {"kind": "vlm_prompt", **method},
    }


@pytest.mark.parametrize("domain", SLOTS)
def test_a_prompt_asks_for_its_five_slots_and_shows_the_item(domain: str) -> None:
    segments = slot_prompt(3, domain, with_title=True)
    words = "".join(segment.text for segment in segments if isinstance(segment, Text))
    names, example = SLOTS[domain]
    assert len(names) == len(example) == 5
    assert all(f"[{name}]" in words for name in names) and all(word in words for word in example)
    assert Picture(3) in segments and Title(3) in segments
    assert Title(3) not in slot_prompt(3, domain, with_title=False)


def test_the_domain_is_read_off_the_name_unless_set() -> None:
    names = {"amazon_beauty": "beauty", "MovieTweetings100k": "movies", "Toys_and_Games": "toys", "shop": "general"}
    assert {name: domain_of(Settings(), name) for name in names} == names
    assert domain_of(Settings(domain="baby"), "amazon_beauty") == "baby"


def test_the_last_state_end_to_end(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    raw = config(tiny_dataset, llava)
    done = run(parse_config(raw), tmp_path / "run")
    items = EmbeddingTable.load(done.path / "items")
    method = VLMPrompt(parse_config(raw), Split(tiny_dataset))
    method.check(trained=False)
    prompt = method._prompts([4])[0]
    with torch.inference_mode():
        states, _ = method.encoder.backbone.states([prompt.ids], prompt.visuals)
    np.testing.assert_allclose(items["fused"][4], states[0, -1], atol=1e-5)
    assert items.manifest["pooling"] == "last"
    blind = config(tiny_dataset, llava, with_title=False)
    other = EmbeddingTable.load(run(parse_config(blind), tmp_path / "blind").path / "items")
    assert not np.allclose(items["fused"], other["fused"], atol=1e-3)


def test_generated_keywords_are_kept_and_pooled(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    raw = config(tiny_dataset, llava, pooling="generated", max_new_tokens=4)
    done = run(parse_config(raw), tmp_path / "run")
    items = EmbeddingTable.load(done.path / "items")
    lines = [json.loads(line) for line in (done.path / "keywords.jsonl").read_text().splitlines()]
    assert [line["item_id"] for line in lines] == tiny_dataset.item_ids

    method = VLMPrompt(parse_config(raw), Split(tiny_dataset))
    method.check(trained=False)
    prompt = method._prompts([7])[0]
    answer = greedy(method.encoder.backbone, [(prompt.ids, prompt.visuals)], 4, {2})[0]
    assert lines[7]["keywords"] == method.encoder.backbone.tokenizer.decode(answer).strip()
    with torch.inference_mode():
        states, _ = method.encoder.backbone.states([[*prompt.ids, *answer]], prompt.visuals)
    np.testing.assert_allclose(items["fused"][7], states[0, -len(answer) :].mean(0), atol=1e-4)


def test_what_does_not_fit_is_one_line(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    blind = families.build("qwen2", tmp_path / "qwen2")
    for backbone, method, said in (
        (blind, {}, "reads no pictures"),
        (llava, {"pooling": "generated", "max_new_tokens": 500}, "the backbone reads 512"),
    ):
        with pytest.raises(InputError, match=said):
            run(parse_config(config(tiny_dataset, backbone, **method)), tmp_path / "run")
        assert not (tmp_path / "run").exists()
