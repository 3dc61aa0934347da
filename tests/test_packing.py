"""Prompts in one row, what they share read once: vectors and gradients are those of prompts read one by one."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import make_config
from torch import Tensor

from vlm2rec.backbones import attention
from vlm2rec.backbones.packing import Prompt, pack, places, rows, why_not
from vlm2rec.backbones.vision import Visual
from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig, TrainingConfig, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, run
from vlm2rec.methods.vlm import build_encoder, build_objective, training_step
from vlm2rec.runs import read_metrics
from vlm2rec.seqrec.windows import Windows
from vlm2rec.training.batches import Samples
from vlm2rec.training.gradcache import backward_in_parts

ABLE = [family for family in families.FAMILIES if family != "gemma3"]
# Growing prefixes, one that skips a step, an item twice, a prompt twice; item 5 has no picture, item 3 no title.
HISTORIES = [[0], [0, 5], [0, 5, 2], [0, 5, 2, 3], [1, 2, 4], [1, 2, 4, 3], [5], [2], [2, 1, 1], [2]]
ITEMS = [[3], [4], [5]]


@pytest.fixture(scope="module")
def shelf() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(5)]
    titles = ["a red lamp", "a blue mug", "a shirt whose name is long", "", "tea", "no picture"]
    return SimpleNamespace(titles=titles, pictures=[*pictures, None])


def build(folder: Path, batch_tokens: int = 8192, **prompt: object) -> Encoder:
    """With adapters that do something, and no dropout."""
    settings = BackboneConfig(path=str(folder))
    encoder = Encoder.build(settings, PromptConfig.model_validate(prompt), batch_tokens)
    encoder.add_lora(LoraSettings(rank=4), seed=1)
    torch.manual_seed(0)
    families.wake(encoder, std=0.1)
    return encoder.eval()


def modalities(family: str, fusion: str) -> dict[str, object]:
    return {"modalities": "text"} if family == "qwen2" else {"fusion": fusion}


def pull(embed: Callable[[Sequence[Prompt]], Tensor], prompts: Sequence[Prompt], encoder: Encoder) -> list[Tensor]:
    """Vectors, then the gradient of a sum of them with random weights at every trained parameter."""
    vectors = embed(prompts)
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    (vectors * weights).sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.requires_grad]
    encoder.zero_grad()
    return [vectors.detach(), *(g for g in gradients if g is not None)]


def one_by_one(encoder: Encoder) -> Callable[[Sequence[Prompt]], Tensor]:
    """Each prompt a batch of its own, by the model's plain attention."""
    return lambda prompts: torch.cat([encoder.backbone.last_states([prompt.ids], prompt.visuals) for prompt in prompts])


def close(found: Tensor, expected: Tensor) -> None:
    """To a few roundings of the largest number: sums over many tokens have small ones among large ones."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.detach().abs().max())))


@pytest.mark.parametrize(
    ("family", "fusion"), [(family, fusion) for family in ABLE for fusion in ("external", "internal")][:-1]
)
def test_states_and_gradients_are_those_of_separate_prompts(
    folders: dict[str, Path], shelf: SimpleNamespace, family: str, fusion: str
) -> None:
    encoder = build(folders[family], **modalities(family, fusion))
    prompts = encoder.prompts(shelf, HISTORIES) + encoder.prompts(shelf, ITEMS)
    read: list[int] = []
    encoder.backbone.model.register_forward_hook(
        lambda _module, _args, kwargs, _output: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    separate = pull(one_by_one(encoder), prompts, encoder)
    assert sum(read) == sum(len(prompt.ids) for prompt in prompts)
    tokens = sum(read)
    read.clear()
    together = pull(encoder, prompts, encoder)
    assert sum(read) < 0.65 * tokens
    assert len(separate) == 1 + 2 * 2 * 7 == len(together)
    for one, other in zip(separate, together, strict=True):
        assert float(one.abs().max()) > 1e-3, "nothing to compare"
        close(other, one)
    different = torch.pdist(together[0][: len(HISTORIES) - 1])
    assert float(different.min()) > 1e-2, "the prompts do not reach the vectors"


def test_a_vector_does_not_depend_on_the_rows_beside_it(folders: dict[str, Path], shelf: SimpleNamespace) -> None:
    wide, narrow = (build(folders["qwen2_5_vl"], batch_tokens=tokens) for tokens in (8192, 1))
    prompts = wide.prompts(shelf, HISTORIES)
    with torch.no_grad():
        torch.testing.assert_close(wide(prompts), narrow(narrow.prompts(shelf, HISTORIES)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompt", [{}, {"chat": False}, {"chat": False, "closing": ""}])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_piece_sees_the_very_tokens_of_its_prompts(
    folders: dict[str, Path], shelf: SimpleNamespace, family: str, prompt: dict[str, object]
) -> None:
    """What a prompt's last token sees, in order, is that prompt, pictures and places too; the closing may be empty."""
    encoder = build(folders[family], **prompt)
    prompts = encoder.prompts(shelf, HISTORIES)
    token = encoder.backbone.image_token
    merge = encoder.backbone.model.config.vision_config.spatial_merge_size if family == "qwen2_vl" else None
    packed = pack(prompts, token, merge)
    ids, positions = np.array(packed.ids), np.concatenate(packed.positions, axis=1)
    pieces = np.repeat(np.arange(len(packed.keys)), packed.lengths)
    starts = np.cumsum(ids == token) - 1  # of the row's picture tokens, one after the other
    shown = [(number, k) for number, visual in enumerate(packed.visuals) for k in range(len(visual.tokens))]
    assert len(ids) < 0.7 * sum(len(one.ids) for one in prompts)
    for one, last in zip(prompts, packed.lasts, strict=True):
        keys = packed.keys[pieces[last]]
        keys = keys[: int(np.flatnonzero(keys == last)[0]) + 1]
        assert ids[keys].tolist() == one.ids
        np.testing.assert_array_equal(positions[:, keys], places(one, token, merge))
        seen = [shown[starts[key]] for key in keys if ids[key] == token]
        expected = [(visual, k) for visual in one.visuals for k in range(len(visual.tokens))]
        assert [(id(packed.visuals[number]), k) for number, k in seen] == [(id(v), k) for v, k in expected]
    close(encoder(prompts), one_by_one(encoder)(prompts))


def prompt(*ids: int, visuals: Sequence[Visual] = ()) -> Prompt:
    return Prompt(list(ids), list(visuals))


def test_a_row_by_hand() -> None:
    opening = list(range(10, 20))
    packed = pack([prompt(*opening, 1, 2), prompt(*opening, 3), prompt(*opening), prompt(4), prompt(*opening, 3)], None)
    assert packed.ids == [4, *opening, 1, 2, 3]
    assert packed.lengths == [1, 10, 2, 1]
    assert packed.lasts == [12, 13, 10, 0, 13]
    assert [piece[0].tolist() for piece in packed.positions] == [[0], [*range(10)], [10, 11], [10]]
    assert [keys.tolist() for keys in packed.keys] == [[0], [*range(1, 11)], [*range(1, 13)], [*range(1, 11), 13]]


def test_little_is_read_twice_rather_than_apart() -> None:
    few, many = [prompt(1, 2, 3, k) for k in range(4, 6)], [prompt(1, 2, 3, k) for k in range(4, 9)]
    assert pack(few, None).ids == [1, 2, 3, 4, 1, 2, 3, 5]
    assert pack(many, None).ids == [1, 2, 3, 4, 5, 6, 7, 8]
    nested = [prompt(*range(20), 1, k, k + 1) for k in range(2)]  # one more token in common is not worth a piece
    assert pack([*nested, prompt(*range(20), 9)], None).lengths == [20, 3, 3, 1]


def test_a_picture_is_shared_only_with_itself() -> None:
    one, other = Visual(torch.zeros(12, 2)), Visual(torch.zeros(12, 2))
    shown = [prompt(7, *[0] * 12, end, visuals=[visual]) for visual, end in ((one, 1), (other, 1), (one, 2))]
    packed = pack(shown, image_token=0)
    assert sorted(packed.lengths) == [1, 1, 13, 14], "the picture of two prompts is one piece, the other's another"
    assert {id(visual) for visual in packed.visuals} == {id(one), id(other)} and len(packed.visuals) == 2
    assert [packed.ids[last] for last in packed.lasts] == [1, 1, 2]


def test_rows_are_as_long_as_they_may_be_and_hold_what_begins_alike() -> None:
    opening = [*range(10, 20)]
    prompts = [prompt(*(opening if k % 2 else reversed(opening)), 30 + k) for k in range(8)]
    found = rows(prompts, None, limit=14)
    assert sorted(i for row in found for i in row) == [*range(8)] and len(found) == 2
    assert {tuple(sorted(row)) for row in found} == {(0, 2, 4, 6), (1, 3, 5, 7)}
    assert rows(prompts, None, limit=1) == [[i] for row in found for i in row]
    assert [sum(map(len, rows(prompts, None, limit=100)))] == [8] and rows([], None, 5) == []


def test_places_on_a_grid() -> None:
    """Text, a picture of 2 x 3 tokens, text, a picture of one token, text."""
    visuals = [Visual(torch.zeros(6, 1), torch.tensor([1, 4, 6])), Visual(torch.zeros(1, 1), torch.tensor([1, 2, 2]))]
    found = places(prompt(5, 0, 0, 0, 0, 0, 0, 5, 5, 0, 5, visuals=visuals), image_token=0, merge=2)
    assert found[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7]
    assert found[1].tolist() == [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7]
    assert found[2].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_in_pieces_by_its_definition(causal: bool, heads: int) -> None:
    """Against masks and softmaxes written out, in float64; with gradients."""
    torch.manual_seed(0)
    sizes = [(3, 3), (1, 5), (4, 6), (3, 3), (2, 2)]
    starts_q, starts_k = ([0, *itertools.accumulate(size[side] for size in sizes)] for side in range(2))
    q = torch.randn(starts_q[-1], 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(starts_k[-1], heads, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = []
    for i, (width_q, width_k) in enumerate(sizes):
        some = q[starts_q[i] : starts_q[i + 1]]
        keys, values = (s[starts_k[i] : starts_k[i + 1]].repeat_interleave(4 // heads, dim=1) for s in (k, v))
        scores = torch.einsum("qhd,khd->hqk", some, keys) * 0.3
        if causal:
            late = torch.arange(width_k)[None] > torch.arange(width_q)[:, None] + width_k - width_q
            scores = scores.masked_fill(late, -torch.inf)
        expected.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
    reference = torch.cat(expected)
    found = attention.pieces(q, k, v, torch.tensor(starts_q), torch.tensor(starts_k), 0.3, causal)
    torch.testing.assert_close(found, reference)
    weights = torch.randn_like(reference)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((reference * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("width", "dtype", "taken"), [
    (16, torch.bfloat16, True), (256, torch.float16, True), (12, torch.bfloat16, False), (264, torch.bfloat16, False),
    (16, torch.float32, False),
])  # fmt: skip
def test_a_kernel_is_asked_for_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype, taken: bool
) -> None:
    asked = []

    def kernel(q: Tensor, *given: Any) -> Tensor:
        asked.append(given[4])
        return q

    monkeypatch.setattr(attention, "_KERNELS", {"cpu": kernel})
    states, starts = torch.randn(1, 2, 5, width).to(dtype), torch.tensor([0, 2, 5])
    found, _ = attention.attend(
        None, states, states, states, None, is_causal=True, cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=3
    )
    assert found.shape == (1, 5, 2, width) and asked == ([(3, 5)] if taken else [])


def test_a_kernel_is_trusted_only_where_it_gives_what_pieces_do() -> None:
    def right(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        starts_q, starts_k, _, scaling, causal = rest
        return attention.pieces(q, k, v, starts_q, starts_k, scaling, causal)

    def begins_together(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        """Causal from the upper left, as SDPA has it."""
        starts_q, starts_k, _, scaling, causal = rest
        first = torch.cat([torch.arange(a, a + n) for a, n in zip(starts_k, starts_q.diff(), strict=False)])
        return attention.pieces(q, k[first], v[first], starts_q, starts_q, scaling, causal)

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient / 2

    def half_the_gradient(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        return right(q, Half.apply(k), v, *rest)

    def missing(*_: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    device = torch.device("cpu")
    assert attention.agrees(right, device)
    assert not any(attention.agrees(kernel, device) for kernel in (begins_together, half_the_gradient, missing))


def test_gradients_of_a_shared_beginning_are_summed_in_float32() -> None:
    states = torch.zeros(2, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    many = attention._Rows.apply(states, torch.zeros(1000, dtype=torch.long))
    (many * 1.0).sum().backward()
    assert states.grad is not None and states.grad[0].tolist() == [[1000.0] * 4] and not states.grad[1].any()


def test_gradients_in_parts_are_those_of_the_whole_batch(folders: dict[str, Path], shelf: SimpleNamespace) -> None:
    encoder = build(folders["smolvlm"])
    prompts = encoder.prompts(shelf, HISTORIES)

    def loss(vectors: Tensor) -> Tensor:
        return torch.tanh(vectors @ vectors.T / 30).sum()

    def gradients() -> list[Tensor]:
        found = [p.grad for p in encoder.parameters() if p.grad is not None]
        encoder.zero_grad()
        return found

    loss(one_by_one(encoder)(prompts)).backward()
    expected = gradients()
    backward_in_parts(encoder, prompts, loss, 3, Tensor.backward)  # cuts windows in two
    found = gradients()
    assert len(found) == len(expected) == 28
    for one, other in zip(expected, found, strict=True):
        close(other, one)


# Which samples


def samples(split: Split, seed: int = 0, **settings: object) -> Samples:
    given = {"batch_size": 8, "samples": "all", "prefixes": "branched", **settings}
    return Samples(split, TrainingConfig.model_validate(given), seed)


@pytest.fixture
def split(from_sequences: Callable[..., Dataset]) -> Split:
    """User u's event p is item 20 u + p, but for a few repeats; at most four items in a history."""
    lengths = [3, 4, 5, 9, 15, 6, 6, 7, 12, 8]
    sequences = [[20 * user + p for p in range(length)] for user, length in enumerate(lengths)]
    sequences[5][3] = sequences[6][3]  # the same next item for two users
    sequences[4][6] = sequences[4][11] = sequences[3][5]
    return Split(from_sequences(sequences, 200), max_history=4)


Pair = tuple[tuple[int, ...], int]


def pairs(drawn: Samples, epochs: int) -> list[list[Pair]]:
    """All (history, target) pairs of each batch, in order."""
    batches = [drawn.batch(k) for k in range(epochs * drawn.steps_per_epoch)]
    return [
        [(tuple(history), batch.targets[p]) for history, p in zip(batch.histories, batch.positive, strict=True)]
        for batch in batches
    ]


def test_samples_are_those_of_the_windows(split: Split) -> None:
    expected: set[Pair] = set()
    windows = Windows(split, "windows", 100, seed=0).batch(0)
    for inputs, targets in zip(windows.inputs, windows.targets, strict=True):
        expected |= {(tuple(inputs[: p + 1]), int(target)) for p, target in enumerate(targets) if target >= 0}
    drawn = samples(split)
    found = {pair for batch in pairs(drawn, epochs=6) for pair in batch}  # the remainder is another one each time
    assert found == expected and len(drawn) == len(expected)
    every = {pair for batch in pairs(samples(split, prefixes="separate"), epochs=6) for pair in batch}
    assert {target for _, target in found} == {target for _, target in every}
    # Who has at most a window of history gives the same pairs either way; later ones keep more than half a window.
    short = {target for user in range(10) if len(split.train[user]) <= 5 for target in split.train[user].tolist()}
    first = {pair for pair in every if pair[1] in short - {65, 45}}
    assert first and first <= found
    assert {len(history) for history, _ in found - every} == {3}


def test_a_window_comes_in_one_piece_and_windows_by_lot(split: Split) -> None:
    drawn = samples(split)
    assert drawn.steps_per_epoch == samples(split, prefixes="separate").steps_per_epoch
    for batch in pairs(drawn, epochs=3):
        assert len(batch) == 8
        firsts = [history[0] for history, _ in batch]
        seams = sum(one != other for one, other in itertools.pairwise(firsts))
        assert seams == len(set(firsts)) - 1
        for (before, target), (after, _) in itertools.pairwise(batch):
            assert before[0] != after[0] or after == (*before, target)
    assert pairs(drawn, 1)[0] != pairs(samples(split, seed=1), 1)[0]
    epochs = pairs(drawn, 2)
    assert epochs[0] != epochs[drawn.steps_per_epoch], "epochs have the same order"
    for k in (4, 0, 7):
        assert samples(split).batch(k).histories == drawn.batch(k).histories


def test_negatives_and_targets_keep_their_contract(split: Split) -> None:
    drawn, doubled = samples(split), 0
    for k in range(3 * drawn.steps_per_epoch):
        batch = drawn.batch(k)
        assert len(set(batch.targets)) == len(batch.targets)
        doubled += len(batch.targets) < len(batch.histories)
        for i, history in enumerate(batch.histories):
            owner = Counter(item // 20 for item in history).most_common(1)[0][0]
            own = split.train[owner]
            assert batch.targets[batch.positive[i]] in own
            assert batch.negatives[i].tolist() == [item not in own for item in batch.targets]
    assert doubled, "no batch had the same target twice"


def test_some_prefixes_of_a_user(split: Split) -> None:
    drawn = samples(split, samples_per_user=2, batch_size=4)
    assert len(drawn) == sum(min(2, len(events) - 1) for events in split.train if len(events) > 1)
    whole = {pair for batch in pairs(samples(split), epochs=6) for pair in batch}
    assert {pair for batch in pairs(drawn, epochs=3) for pair in batch} <= whole


# Whole runs


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava"]


def config(
    dataset: Dataset,
    folder: Path,
    kind: str = "sft",
    /,
    modalities: str = "both",
    dropout: float = 0.0,
    **training: object,
) -> Any:
    given = {"samples": "all", "prefixes": "branched", "batch_size": 24, "lr": 1e-2, "users": 20, **training}
    return make_config(
        dataset,
        folder,
        kind,
        training={"checkpoint_every": 2, **given},
        evaluation={"users": 10},
        prompt={"modalities": modalities},
        backbone={"lora": {"rank": 4, "dropout": dropout}},
    )


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl", "train")]


def test_a_run_learns(tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    """Three users, nearly all their samples in every step: what was learned shows in the loss."""
    asked = config(tiny_dataset, llava, users=3, batch_size=18, epochs=12, checkpoint_every=50)
    found = losses(run(asked, tmp_path / "run", until="train").path)
    assert len(found) == 12 and found[-1] < found[0] / 2


def test_a_run_goes_on_after_a_kill(
    tiny_dataset: Dataset, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles alone: a picture's last bits may depend on which others are looked at with it."""
    asked = config(tiny_dataset, llava, modalities="text", dropout=0.2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(asked, whole, until="train")
    batch = Samples.batch

    def kill(self: Samples, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Samples, "batch", kill)
        with pytest.raises(KeyboardInterrupt):
            run(asked, killed, until="train")
    continue_run(killed, until="train")
    assert len(losses(whole)) > 6 and losses(whole) == losses(killed)
    first, second = (load_file(folder / "model" / "adapter_model.safetensors") for folder in (whole, killed))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_a_step_takes_the_gradient_of_the_same_batch_read_one_by_one(
    tiny_dataset: Dataset, llava: Path, micro_batch: int | None
) -> None:
    """VLM2Rec's own step; samples counted as pairs."""
    asked = config(tiny_dataset, llava, "vlm2rec", micro_batch=micro_batch)
    split = Split(tiny_dataset, max_history=6)
    drawn = Samples(split, asked.training, 0)
    found = []
    for packs in (True, False):
        encoder, objective = build_encoder(asked), build_objective(asked)
        encoder.add_lora(LoraSettings(rank=4, dropout=0.0), seed=0)
        encoder.unpacked = None if packs else "is told not to"
        step = training_step(drawn, split, encoder, objective, asked)
        logged = step(2, Tensor.backward)
        assert logged["samples"] == 24
        gradients = [p.grad for p in [*encoder.parameters(), *objective.parameters()] if p.grad is not None]
        found.append((logged["loss"], gradients))
    (loss, branched), (other_loss, separate) = found
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert len(branched) == len(separate) == 2 * 2 * 7 + 2
    for one, other in zip(separate, branched, strict=True):
        close(other, one)


# What is refused


def test_one_prefix_a_user_has_nothing_to_share(tmp_path: Path) -> None:
    raw = {"data": {"path": str(tmp_path)}, "training": {"samples": "last", "prefixes": "branched"}}
    with pytest.raises(InputError, match=r"training\.prefixes = 'branched'.*set training\.samples=all") as caught:
        parse_config(raw)
    assert "\n" not in str(caught.value)


def test_refused_before_anything_is_written(tiny_dataset: Dataset, folders: dict[str, Path], tmp_path: Path) -> None:
    for folder, training, said in (
        (folders["llava"], {"batch_size": 8}, r"training\.batch_size = 8.*take at least 18"),
        (folders["gemma3"], {}, r"gemma3\) has layers that do not see the whole.*set training\.prefixes=separate"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            run(config(tiny_dataset, folder, **training), tmp_path / "run")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_backbones_that_cannot_pack(folders: dict[str, Path], shelf: SimpleNamespace) -> None:
    encoder = build(folders["gemma3"])
    text = encoder.backbone.model.config.get_text_config()
    text.layer_types, text.sliding_window = ["full_attention"] * 2, None
    assert why_not(encoder.backbone) == "looks both ways inside a picture"
    text.sliding_window = 64
    with pytest.raises(InputError, match="sliding window"):
        encoder.check_branches()
    llava = build(folders["llava"])
    assert why_not(llava.backbone) is None
    llava.check_branches()

    def forward(input_ids: Tensor) -> None: ...

    fake: Any = SimpleNamespace(config=llava.backbone.model.config, forward=forward)
    assert why_not(replace(llava.backbone, model=fake)) == "cannot be told the positions of its tokens"


@pytest.mark.parametrize("ignored", ["position_ids", "cu_seq_lens_q"])
def test_a_model_that_ignores_positions_or_bounds_is_found_out(
    folders: dict[str, Path], shelf: SimpleNamespace, ignored: str
) -> None:
    encoder = build(folders["llava"])

    def drop(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name != ignored}

    encoder.backbone.model.register_forward_pre_hook(drop, with_kwargs=True)
    assert why_not(encoder.backbone) == "does not give packed prompts the vectors that it gives prompts read one by one"
