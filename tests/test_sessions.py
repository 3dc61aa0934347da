"""Users encoded event by event have the vectors of their histories encoded anew."""

from pathlib import Path

import families
import numpy as np
import pytest
import torch

from vlm2rec.backbones.packing import why_not
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.objectives import Views
from vlm2rec.sessions import Sessions

HISTORY = [0, 4, 3, 1, 5, 0, 2]  # one item without a title, one without a picture, one twice


def shelf() -> families.Shelf:
    """Pictures of two shapes: on a grid they take different room."""
    rng = np.random.default_rng(0)
    sizes = [(56, 56), (56, 84), (84, 56), (56, 56), (56, 112)]
    pictures: list[np.ndarray | None] = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    return families.Shelf(["a red lamp", "a blue mug", "a long shirt", "", "tea", "no picture"], [*pictures, None])


def build(folder: Path, cache: bool = True, batch_tokens: int = 8192, **prompt: object) -> Encoder:
    settings = BackboneConfig(path=str(folder), cache_vision=cache)
    return Encoder.build(settings, PromptConfig.model_validate(prompt), batch_tokens).eval()


def check_equal(found: Views, expected: Views) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.shape == other.shape
            there = other.norm(dim=1) > 0
            assert torch.equal(one.norm(dim=1) > 0, there)
            assert float(((one - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-9)).max()) < 1e-4
            assert bool((torch.cosine_similarity(one, other, dim=1)[there] > 1 - 1e-5).all())


@torch.no_grad()
def anew(encoder: Encoder, histories: list[list[int]]) -> Views:
    return encoder.histories(shelf(), histories)


def tokens_read(encoder: Encoder) -> list[int]:
    """A list that grows by the tokens of every forward pass."""
    read: list[int] = []
    encoder.backbone.model.register_forward_hook(
        lambda _module, _args, kwargs, _output: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return read


KINDS = [{"fusion": "external"}, {"fusion": "internal"}, {"modalities": "image"}, {"modalities": "text"}]


@pytest.mark.parametrize("family", list(families.FAMILIES))
@pytest.mark.parametrize("kind", KINDS, ids=["external", "internal", "image", "text"])
def test_every_event_gives_the_vector_of_its_history(
    folders: dict[str, Path], family: str, kind: dict[str, str]
) -> None:
    if family == "qwen2" and kind != {"modalities": "text"}:
        pytest.skip("reads no pictures")
    encoder, fresh = build(folders[family], **kind), build(folders[family], **kind)
    sessions, continues = Sessions(encoder, shelf(), window=5), why_not(encoder.backbone) is None
    assert continues == (family != "gemma3")
    read = tokens_read(encoder)
    for end in range(1, len(HISTORY) + 1):
        read.clear()
        found = sessions.append("someone", HISTORY[end - 1])
        window = HISTORY[:end][-5:]
        expected = anew(fresh, [window])
        check_equal(found, expected)
        whole = sum(len(prompt.ids) for prompt in fresh.prompts(shelf(), [window]))
        if continues and 1 < end <= 5:
            new = sum(len(fresh.rest(window, passed, end - 1).ids) for passed in fresh.passes)
            assert sum(read) == new < whole
    assert sessions.bytes == 0, "a window that slides leaves nothing to keep"


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_states_are_kept_where_the_family_allows(folders: dict[str, Path], family: str) -> None:
    sessions = Sessions(build(folders[family]), shelf())
    sessions.history("someone", [0, 1])
    layers, heads, width = 2, 2, 8
    tokens = sum(len(prompt.ids) for prompt in build(folders[family]).prompts(shelf(), [[0, 1]]))
    kept = tokens - 2 * build(folders[family]).closing
    assert sessions.bytes == (0 if family == "gemma3" else 2 * layers * heads * width * 4 * kept)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
@pytest.mark.parametrize("cache", [True, False])
def test_many_users_at_once(folders: dict[str, Path], family: str, cache: bool) -> None:
    """In any order, some of them twice, with windows of every fill; in rows of a few tokens as in one."""
    rng = np.random.default_rng(1)
    events = [(int(rng.integers(4)), int(rng.integers(6))) for _ in range(24)]
    fresh = build(folders[family])
    for batch_tokens in (8192, 1):
        sessions = Sessions(build(folders[family], cache, batch_tokens), shelf(), window=4)
        histories: dict[int, list[int]] = {}
        for start in range(0, 24, 8):
            expected = []
            for user, item in events[start : start + 8]:
                histories[user] = [*histories.get(user, []), item][-4:]
                expected.append(histories[user])
            check_equal(sessions.append_many(events[start : start + 8]), anew(fresh, expected))


def test_who_lost_its_state_is_read_anew_and_kept_again(folders: dict[str, Path]) -> None:
    encoder, fresh = build(folders["llava"]), build(folders["llava"])
    sessions = Sessions(encoder, shelf(), users=2)
    for user in ("a", "b", "c"):  # a's state has to go
        sessions.history(user, [0, 1, 2])
    read = tokens_read(encoder)
    sizes = []
    for user in ("c", "a", "a", "b"):  # b's went when a came back
        read.clear()
        history = [0, 1, 2, *[3] * (2 if (user, len(sizes)) == ("a", 2) else 1)]
        check_equal(sessions.append(user, 3), anew(fresh, [history]))
        sizes.append(sum(read))
    assert sizes[0] == sizes[2] < sizes[1] == sizes[3]


def test_none_kept(folders: dict[str, Path]) -> None:
    encoder, fresh = build(folders["llava"]), build(folders["llava"])
    sessions = Sessions(encoder, shelf(), users=0)
    sessions.history("a", [0])
    check_equal(sessions.append("a", 1), anew(fresh, [[0, 1]]))
    assert sessions.bytes == 0


@pytest.mark.parametrize("kind", KINDS[::2], ids=["external", "image"])
def test_no_events_give_no_vectors(folders: dict[str, Path], kind: dict[str, str]) -> None:
    sessions = Sessions(build(folders["llava"], **kind), shelf())
    none, one = sessions.append_many([]), sessions.append("a", 1)
    assert [view is not None and view.shape for view in none] == [
        view is not None and (0, view.shape[1]) for view in one
    ]


def test_a_window_without_items_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="window = 0: a user's history keeps one item at least"):
        Sessions(build(folders["llava"]), shelf(), window=0)


def test_a_user_begun_anew_or_forgotten_has_no_past(folders: dict[str, Path]) -> None:
    encoder, fresh = build(folders["smolvlm"]), build(folders["smolvlm"])
    sessions = Sessions(encoder, shelf(), window=3)
    sessions.history("a", [0, 1])
    check_equal(sessions.history("a", [5, 4, 3, 2]), anew(fresh, [[4, 3, 2]]))
    with pytest.raises(InputError, match="is empty"):
        sessions.history("a", [])
    check_equal(sessions.append("a", 1), anew(fresh, [[3, 2, 1]]))
    sessions.forget("a")
    sessions.forget("nobody")
    assert sessions.bytes == 0
    check_equal(sessions.append("a", 1), anew(fresh, [[1]]))


def test_adapters_and_a_gate_are_in_the_vectors(folders: dict[str, Path]) -> None:
    encoder = build(folders["qwen2_vl"], combine="gated", missing="drop")
    encoder.add_lora(LoraSettings(rank=4), seed=1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name or "gate" in name:
                parameter.normal_(std=0.3)
    sessions = Sessions(encoder.train(), shelf())  # dropout is off while it serves
    for end in range(1, 4):
        found = sessions.append("a", [5, 3, 0][end - 1])  # no picture, then no title
        check_equal(found, anew(encoder, [[5, 3, 0][:end]]))
        assert found.image is not None and found.text is not None
        assert bool(found.image.any()) == (end > 1)


def test_what_cannot_be_read_leaves_a_user_as_it_was(folders: dict[str, Path]) -> None:
    encoder, fresh = build(folders["llava"]), build(folders["llava"])
    sessions = Sessions(encoder, shelf(), window=200)
    sessions.history("a", [0, 1])
    for wrong in (6, -1):
        with pytest.raises(InputError, match=rf"item {wrong} is not in the catalogue, which has items 0 to 5"):
            sessions.append_many([("a", 2), ("a", wrong)])
    with pytest.raises(InputError, match=r"takes .* tokens, the backbone reads 512"):
        sessions.history("a", [0, 1] * 60)
    with pytest.raises(InputError, match=r"takes .* tokens, the backbone reads 512"):
        for _ in range(100):
            sessions.append("b", 2)
    check_equal(sessions.append("a", 4), anew(fresh, [[0, 1, 4]]))
