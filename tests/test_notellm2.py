"""NoteLLM-2: which items are pairs, what a batch holds, what each state has seen, and a run that survives a kill."""

import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import make_config, without_clock
from torch import Tensor

from vlm2rec.config import BackboneConfig, Config, LoraSettings, PromptConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import continue_run, run
from vlm2rec.methods.notellm2 import pairs as pairs_module
from vlm2rec.methods.notellm2.method import NoteLLM2, training_step
from vlm2rec.methods.notellm2.model import LateFusion, PairLoss, RecordEmbedder, records
from vlm2rec.methods.notellm2.pairs import PairBatches
from vlm2rec.prompts import Picture, Text, Title
from vlm2rec.runs import metrics_lines, read_metrics
from vlm2rec.training.loop import State, Step

EYES = [family for family in families.FAMILIES if family != "qwen2"]
METHOD = {"neighbours": 2, "batch_pairs": 8, "epochs": 2, "lr": 1e-2, "out_dim": 8}


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> Path:
    return folders["llava"]


def config(dataset: Dataset, backbone: Path, /, lora: dict[str, Any] | None = None, **method: Any) -> Config:
    given: dict[str, Any] = {"backbone": {"path": str(backbone), "lora": {"rank": 4, **(lora or {})}}}
    return make_config(dataset, backbone, "notellm2", method={"kind": "notellm2", **METHOD, **method}, **given)


# Pairs


def test_pairs_come_from_training_events_alone(from_sequences: Callable[..., Dataset], llava: Path) -> None:
    rng = np.random.default_rng(1)
    train = [rng.choice(12, 6, replace=False).tolist() for _ in range(15)]
    ends = [[[12, 13], [13, 12]][user % 2] for user in range(15)]
    others = [rng.choice(12, 2, replace=False).tolist() for _ in range(15)]
    found = []
    for name, held_out in (("one", ends), ("two", others)):
        dataset = from_sequences(
            [own + last for own, last in zip(train, held_out, strict=True)] + [range(14)], 14, name
        )
        method = NoteLLM2(config(dataset, llava), Split(dataset))
        found.append(method._pairs().pairs)
    assert not np.isin([12, 13], found[0]).any()
    np.testing.assert_array_equal(*found)


def test_few_shot_pairs_come_from_the_drawn_users(tiny_dataset: Dataset, llava: Path) -> None:
    split = Split(tiny_dataset)
    few = make_config(tiny_dataset, llava, "notellm2", training={"users": 5})
    whole = make_config(tiny_dataset, llava, "notellm2")
    one, other = (NoteLLM2(given, split)._pairs().pairs for given in (few, whole))
    assert 0 < len(one) < len(other)


# Batches


def many_pairs() -> PairBatches:
    rng = np.random.default_rng(2)
    drawn = np.unique(rng.integers(0, 200, (700, 2)), axis=0)
    return PairBatches(drawn[drawn[:, 0] != drawn[:, 1]][:640], 200, 16, seed=3)


def members(batches: PairBatches, step: int) -> np.ndarray:
    batch = batches.batch(step)
    return np.array(batch.items)[batch.rows]


def test_an_epoch_holds_every_pair_once_and_no_item_twice_in_a_batch() -> None:
    batches = many_pairs()
    assert batches.steps_per_epoch == 40
    seen = []
    for step in range(40):
        own = members(batches, step)
        seen += list(zip(own[:16].tolist(), own[16:].tolist(), strict=True))
        if step < 35:  # near the end there is little left to choose from
            assert len(np.unique(own)) == 32
    assert sorted(seen) == sorted(map(tuple, batches.pairs.tolist()))


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    one, other = many_pairs(), many_pairs()
    for step in (57, 3, 57):
        np.testing.assert_array_equal(members(one, step), members(other, step))
    assert not np.array_equal(members(one, 3), members(one, 43))  # another epoch
    pairs = many_pairs().pairs
    assert not np.array_equal(members(one, 3), members(PairBatches(pairs, 200, 16, seed=4), 3))


def batches_by_a_queue(pairs: np.ndarray, size: int, seed: int, epoch: int) -> list[list[int]]:
    """Rows of an epoch's batches by going through all that waits for each of them."""
    waiting = deque(np.random.default_rng([seed, epoch]).permutation(len(pairs)).tolist())
    batches = []
    for _ in range(max(1, len(pairs) // size)):
        batch: list[int] = []
        put_off: list[int] = []
        taken: set[int] = set()
        while waiting and len(batch) < size:
            row = waiting.popleft()
            if taken.isdisjoint(pairs[row].tolist()):
                batch.append(row)
                taken.update(pairs[row].tolist())
            else:
                put_off.append(row)
        missing = size - len(batch)
        batches.append(batch + put_off[:missing])
        waiting.extendleft(reversed(put_off[missing:]))
    return batches


@pytest.mark.parametrize("size", [2, 5, 16, 1000])
@pytest.mark.parametrize(("seed", "items"), [(0, 80), (1, 80), (124, 12), (224, 12)])
def test_batches_are_those_of_one_long_queue(seed: int, items: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a few items are in most pairs, some of them together, so that more and more waits for them."""
    monkeypatch.setattr(pairs_module, "_AT_ONCE", 13)
    rng = np.random.default_rng(seed)
    drawn = (items ** rng.random((900, 2)) - 1).astype(np.int64) if seed else rng.integers(0, items, (900, 2))
    drawn = np.unique(drawn[drawn[:, 0] != drawn[:, 1]], axis=0)
    batches = PairBatches(drawn, items, size, seed=2)
    for epoch in (1, 0):
        expected = batches_by_a_queue(drawn, size, 2, epoch)
        assert len(expected) == batches.steps_per_epoch
        for place in (len(expected) - 1, *range(len(expected))):
            own = members(batches, epoch * len(expected) + place)
            assert own.reshape(2, -1).T.tolist() == drawn[expected[place]].tolist()


def test_an_item_in_very_many_pairs_costs_no_more() -> None:
    """Each of 30,000 pairs is looked at a few times, where going through all that waits looks 20 million times."""
    pairs = np.stack([np.arange(1, 30_001), np.arange(30_000) % 3 * 40_000], axis=1)
    pairs[pairs[:, 1] == 0, 1] = 50_000
    started = time.perf_counter()
    batches = PairBatches(pairs, 90_000, 32, seed=0)
    batches.batch(batches.steps_per_epoch - 1)
    assert time.perf_counter() - started < 2


def test_negatives_by_loops_where_items_come_twice() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 0], [3, 1], [4, 5], [2, 4]])
    batches = PairBatches(pairs, 7, 6, seed=0)
    batch, own = batches.batch(0), members(batches, 0)
    assert sorted(zip(own[:6].tolist(), own[6:].tolist(), strict=True)) == sorted(map(tuple, pairs.tolist()))
    assert batch.items == sorted(set(batch.items))
    known = {frozenset(pair) for pair in pairs.tolist()}
    for k, one in enumerate(own):
        for j, other in enumerate(own):
            assert batch.negatives[k, j] == (one != other and frozenset((one, other)) not in known)


def test_too_few_pairs_make_one_smaller_batch() -> None:
    batches = PairBatches(np.array([[0, 1], [2, 3], [4, 0]]), 5, 100, seed=0)
    assert batches.steps_per_epoch == 1 and len(batches.batch(0).rows) == 6 == len(batches.batch(9).rows)


# Loss and late fusion


def loss_by_loops(vectors: Tensor, negatives: np.ndarray, scale: float) -> float:
    unit = [(v / v.norm()).tolist() for v in vectors.double()]
    total, half = 0.0, len(unit) // 2
    for k, one in enumerate(unit):
        partner = (k + half) % len(unit)
        logits = {
            j: math.exp(scale) * math.fsum(a * b for a, b in zip(one, unit[j], strict=True)) for j in range(len(unit))
        }
        below = math.fsum(math.exp(logits[j]) for j in range(len(unit)) if j == partner or negatives[k, j])
        total += math.log(below) - logits[partner]
    return total / len(unit)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_loss_by_loops(weight: float) -> None:
    rng = np.random.default_rng(0)
    fused, visual = torch.from_numpy(rng.standard_normal((2, 10, 6)))
    negatives = rng.random((10, 10)) < 0.7
    np.fill_diagonal(negatives, False)
    negatives[4] = False  # a row with its partner alone
    objective = PairLoss(1.5, weight).double()
    parts = [loss_by_loops(vectors, negatives, 1.5) for vectors in (fused, visual)]
    value = objective(fused, visual, torch.from_numpy(negatives)).detach()
    assert float(value) == pytest.approx((9 * parts[0] + weight * parts[1]) / (9 + weight), rel=1e-10)
    wide = objective(fused.float(), visual.float(), torch.from_numpy(negatives)).detach()
    assert wide.dtype == torch.float32 and float(wide) == pytest.approx(float(value), rel=1e-5)


def test_equal_vectors_cost_the_logarithm_of_the_candidates() -> None:
    everything = ~torch.eye(8, dtype=torch.bool)
    value = PairLoss(3.0, 1.0)(torch.ones(8, 3), torch.ones(8, 3), everything)
    assert float(value.detach()) == pytest.approx(math.log(7))


def test_without_visual_weight_the_fused_loss_is_left_alone() -> None:
    torch.manual_seed(0)
    fused, visual = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    objective, everything = PairLoss(3.0, 0.0), ~torch.eye(6, dtype=torch.bool)
    value = objective(fused, visual, everything)
    value.backward()
    torch.testing.assert_close(value, objective.contrast(fused, everything))
    assert fused.grad is not None and visual.grad is not None
    assert float(fused.grad.abs().max()) > 1e-3 and not visual.grad.any()


def test_the_gate_by_hand() -> None:
    fusion = LateFusion(2, -1)
    with torch.no_grad():
        fusion.project.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -1.0]]))
        fusion.gate.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]]))
    # v = (2, -3); the first gate looks at v_1 = 2, the second at n_2 / 2 = 1.
    g1, g2 = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    fused = fusion(torch.tensor([5.0, 2.0]), torch.tensor([1.0, 3.0]))
    np.testing.assert_allclose(fused.tolist(), [g1 * 2 + (1 - g1) * 5, g2 * -3 + (1 - g2) * 2], rtol=1e-6)


@pytest.mark.parametrize(("out_dim", "width"), [(-1, 16), (5, 5), (16, 16), (64, 16)])
def test_the_reduction_never_widens(out_dim: int, width: int) -> None:
    torch.manual_seed(0)
    fusion = LateFusion(16, out_dim)
    assert fusion(torch.ones(3, 2, 16), torch.ones(3, 1, 16).expand(-1, 2, -1)).shape == (3, 2, width)
    assert all("bias" not in name for name, _ in fusion.named_parameters())
    # Xavier: variance 2 / (fan in + fan out); normal, so some lie beyond what a uniform draw of that variance reaches.
    weight = LateFusion(200, -1).gate.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 600), rel=0.02)
    assert float(weight.abs().max()) > 1.5 * math.sqrt(6 / 600)


# What each state has seen


def shelf() -> families.Shelf:
    rng = np.random.default_rng(0)
    pictures: list[np.ndarray | None] = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) for _ in range(4)]
    return families.Shelf(
        ["a red lamp", "a blue mug", "a shirt whose name is long enough to be cut", "", "tea"], [*pictures, None]
    )


def embedder(
    folder: Path, catalogue: families.Shelf | Dataset, batch_tokens: int = 8192, chat: bool = True
) -> RecordEmbedder:
    encoder = Encoder.build(BackboneConfig(path=str(folder)), PromptConfig(chat=chat), batch_tokens)
    return RecordEmbedder(encoder, catalogue, 8, seed=0).eval()


def test_the_records_show_the_picture_first_and_ask_alike() -> None:
    first, second = records(3)
    assert Picture(3) in first and Title(3) not in first
    assert Title(3) in second and Picture(3) not in second
    assert isinstance(first[-1], Text) and first[-1] == second[-1]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("family", EYES)
@torch.no_grad()
def test_n_v_has_seen_the_picture_alone_and_n_m_both(folders: dict[str, Path], family: str, chat: bool) -> None:
    catalogue, renamed, repainted = shelf(), shelf(), shelf()
    renamed.titles = ["tin whistle", *renamed.titles[1:]]
    repainted.pictures = [repainted.pictures[1], *repainted.pictures[1:]]
    model = embedder(folders[family], catalogue, chat=chat)
    found = []
    for shown in (catalogue, renamed, repainted):
        model._catalogue = shown
        found.append(model._states(model.prompts([0]))[0])
    (both, picture), (both_renamed, picture_renamed), (both_repainted, picture_repainted) = found
    torch.testing.assert_close(picture, picture_renamed, atol=1e-5, rtol=0)
    for one, other in ((both, both_renamed), (both, both_repainted), (picture, picture_repainted)):
        assert float(torch.cosine_similarity(one, other, dim=0)) < 1 - 1e-4

    model._catalogue = catalogue
    prompt, cue = model.prompts([0])[0]
    words = model.encoder.backbone.tokenizer
    assert words.decode(prompt.ids[: cue + 1]).endswith("compressed into one word:")
    assert words.decode(prompt.ids[cue + 1 :]).startswith("\nThe same product. Its title: a red lamp\n")
    assert words.decode(prompt.ids).endswith("assistant\n" if chat else "one word:")
    alone = model.encoder.backbone.last_states([prompt.ids[: cue + 1]], prompt.visuals)[0]
    torch.testing.assert_close(picture, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm", "gemma3"])
@torch.no_grad()
def test_a_vector_depends_on_its_own_item_only(folders: dict[str, Path], family: str) -> None:
    model, narrow = embedder(folders[family], shelf()), embedder(folders[family], shelf(), batch_tokens=1)
    together = model(range(5))
    assert together.shape == (5, 2, 8)
    torch.testing.assert_close(narrow(range(5)), together, atol=2e-5, rtol=1e-4)
    for item in (2, 4, 0):
        torch.testing.assert_close(model([item])[0], together[item], atol=2e-5, rtol=1e-4)
    for view in together.unbind(1):
        assert float(torch.pdist(torch.nn.functional.normalize(view, dim=-1)).min()) > 1e-3


@torch.no_grad()
def test_both_states_pass_the_same_gate_with_the_mean_of_the_visual_tokens(llava: Path) -> None:
    model = embedder(llava, shelf())
    found = model([1, 4])
    states = model._states(model.prompts([1, 4]))
    visual = model.encoder.visual(1)
    assert visual is not None
    for row, seen in enumerate((visual.tokens.mean(0), torch.zeros(32))):  # item 4 has no picture
        for column in (0, 1):
            torch.testing.assert_close(
                found[row, column], model.fusion(states[row, column], seen), atol=1e-5, rtol=1e-5
            )
    ids = model.prompts([4])[0][0].ids
    assert "Its picture: (no picture)\n" in model.encoder.backbone.tokenizer.decode(ids)


# Training


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tiny_dataset: Dataset, llava: Path) -> None:
    split = Split(tiny_dataset)
    method = NoteLLM2(config(tiny_dataset, llava), split)
    found, logged = [], []
    for part in (None, 3):
        model = embedder(llava, tiny_dataset)
        model.encoder.add_lora(LoraSettings(rank=4, dropout=0.0), seed=0)
        objective = PairLoss(3.0, 1.0)
        whole = torch.nn.ModuleDict({"embedder": model, "objective": objective}).train()
        logged.append(training_step(method._pairs(), model, objective, part)(1, Tensor.backward))
        found.append(gradients(whole))
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    assert logged[0]["loss"] == pytest.approx((9 * logged[0]["fused"] + logged[0]["visual"]) / 10, rel=1e-6)
    names = set(found[0])
    assert names == set(found[1]) and {"objective.scale", "embedder.fusion.gate.weight"} < names
    assert any("lora_B" in name for name in names)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5 * max(1.0, float(value.abs().max())), rtol=1e-4)


def test_the_numbers_of_the_method_reach_training(
    tiny_dataset: Dataset, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def instead(module: torch.nn.ModuleDict, step: Step, **named: Any) -> State:
        sizes: list[int] = []
        module["embedder"].register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
        step(0, Tensor.backward)
        seen.update(named, sizes=sizes, scale=module["objective"].scale)
        return State()

    monkeypatch.setattr("vlm2rec.methods.notellm2.method.fit", instead)
    given = config(tiny_dataset, llava, epochs=3, micro_batch=3, lr=0.02, warmup=0.4, weight_decay=0.5, scale=2.0)
    run(given, tmp_path / "run", until="train")
    settings = seen["settings"]
    assert (settings.epochs, settings.lr, settings.warmup, settings.weight_decay) == (3, 0.02, 0.4, 0.5)
    assert [id(parameter) for parameter in seen["no_decay"]] == [id(seen["scale"])] and float(
        seen["scale"].detach()
    ) == 2
    assert len(seen["sizes"]) > 2 and max(seen["sizes"]) == 6  # three pairs at once


def test_nothing_but_adapters_late_fusion_and_scale_is_trained(tiny_dataset: Dataset, llava: Path) -> None:
    model = embedder(llava, tiny_dataset)
    model.encoder.add_lora(LoraSettings(rank=4), seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name for name in trained if "lora_" not in name} == {
        f"fusion.{part}.weight" for part in ("project", "gate", "reduce")
    }


def test_the_loss_falls_well_below_that_of_equal_vectors(llava: Path) -> None:
    """Partners share a word and a colour; both halves of the loss must learn them."""
    words = ("red lamp", "blue mug", "tin whistle", "shirt", "tea pot", "garden hose")
    colours = np.random.default_rng(0).integers(0, 256, (6, 3), dtype=np.uint8)
    titles = [f"{size} {word}" for word in words for size in ("small", "large")]
    pictures: list[np.ndarray | None] = [np.broadcast_to(colours[item // 2], (56, 56, 3)) for item in range(12)]
    batches = PairBatches(np.arange(12).reshape(6, 2), 12, 6, seed=0)
    model, objective = embedder(llava, families.Shelf(titles, pictures)), PairLoss(3.0, 1.0)
    model.encoder.add_lora(LoraSettings(rank=4, dropout=0.0), seed=0)
    step = training_step(batches, model.train(), objective, None)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad] + [objective.scale], lr=1e-2)
    for k in range(15):
        optimizer.zero_grad()
        logged = step(k, Tensor.backward)
        optimizer.step()
    assert logged["fused"] < 0.3 * math.log(11) and logged["visual"] < 0.5 * math.log(11)


@pytest.fixture(scope="module")
def finished(tiny_dataset: Dataset, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = config(tiny_dataset, llava)
    raw = given.model_dump(mode="json", exclude_none=True)
    raw["seqrec"] |= {"backbones": ["sasrec"], "epochs": 2, "dim": 8, "inner": 8}
    return run(Config.model_validate(raw), tmp_path_factory.mktemp("runs") / "run").path


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_whole_run(finished: Path, tiny_dataset: Dataset) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert set(results["dropout"]) == {"f2f"} and set(results["geometry"]) == {"fused", "visual"}
    assert set(results["seqrec"]) == {"sasrec"}
    assert results["cost"]["trainable"]["late fusion"]["trainable"] == 3 * 32 * 32 + 32 * 8
    items, histories = (EmbeddingTable.load(finished / name) for name in ("items", "histories"))
    assert list(items.views) == ["fused", "visual"] and items["fused"].shape == (24, 8)
    expected = items.unit("fused")[Split(tiny_dataset).history(3, "test")].mean(axis=0)
    np.testing.assert_allclose(histories["fused"][3], expected, atol=1e-6)
    done = json.loads((finished / "manifest.json").read_text())["done"]["train"]
    lines = read_metrics(finished / "metrics.jsonl", "train")
    assert done["steps"] == len(lines) == 2 * (done["pairs"] // 8)
    assert lines[0]["scale"] == 3 and lines[-1]["scale"] != 3
    assert (finished / "report.html").exists()


def test_done_is_done(finished: Path) -> None:
    before = stamps(finished)
    continue_run(finished, until="report")
    assert stamps(finished) == before


def test_saved_and_loaded_is_the_same(finished: Path, tiny_dataset: Dataset) -> None:
    loaded = RecordEmbedder.load(finished / "model", tiny_dataset, 8)
    with torch.inference_mode():
        vectors = loaded([0, 7, 23])
    items = EmbeddingTable.load(finished / "items")
    for column, view in enumerate(("fused", "visual")):
        np.testing.assert_allclose(vectors[:, column], items[view][[0, 7, 23]], atol=1e-5)


def check_same_outcome(one: Path, other: Path) -> None:
    for file in ("adapter_model.safetensors", "late_fusion.safetensors"):
        first, second = (load_file(folder / "model" / file) for folder in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    lines = [[without_clock(line) for line in metrics_lines(folder / "metrics.jsonl")] for folder in (one, other)]
    assert lines[0] == lines[1]
    tables = [EmbeddingTable.load(folder / "items") for folder in (one, other)]
    for view in ("fused", "visual"):
        np.testing.assert_allclose(*(table[view] for table in tables), atol=1e-6)


@pytest.mark.parametrize(("victim", "name", "calls"), [(PairLoss, "forward", 4), (Encoder, "save", 0)])
def test_killed_and_continued_is_uninterrupted(
    victim: type, name: str, calls: int, finished: Path, tiny_dataset: Dataset, llava: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the middle of an epoch, and when all that is missing is `model/`."""
    alive, made = getattr(victim, name), []

    def dying(*args: Any) -> Any:
        made.append(None)
        if len(made) > calls:
            raise KeyboardInterrupt
        return alive(*args)

    given = config(tiny_dataset, llava)
    with monkeypatch.context() as patch:
        patch.setattr(victim, name, dying)
        with pytest.raises(KeyboardInterrupt):
            run(given, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    run(given, tmp_path / "run", until="encode")
    check_same_outcome(tmp_path / "run", finished)


def test_another_process_may_encode(finished: Path, tiny_dataset: Dataset, llava: Path, tmp_path: Path) -> None:
    folder = run(config(tiny_dataset, llava), tmp_path / "run", until="train").path
    continue_run(folder, until="encode")
    check_same_outcome(folder, finished)


# Refusals


def test_what_does_not_fit_is_one_line(
    tiny_dataset: Dataset, from_sequences: Callable[..., Dataset], folders: dict[str, Path], tmp_path: Path
) -> None:
    llava = folders["llava"]
    unseen = from_sequences([[0, 1, 2, 3]] * 3, 4)
    wrong: list[tuple[Config, str]] = [
        (config(unseen, llava), "has no pictures"),
        (config(tiny_dataset, folders["qwen2"]), "reads no pictures"),
        (config(tiny_dataset, llava, out_dim=0), r"method\.out_dim"),
        (config(tiny_dataset, llava, min_count=1e6), r"method\.min_count.*the highest score is"),
        (make_config(tiny_dataset, llava, "notellm2", prompt={"modalities": "text"}), r"prompt\.modalities=both"),
    ]
    for given, says in wrong:
        with pytest.raises(InputError, match=says) as caught:
            run(given, tmp_path / "run")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_records_longer_than_the_context_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    short = families.build("llava", tmp_path / "short")
    settings = json.loads((short / "config.json").read_text())
    settings["text_config"]["max_position_embeddings"] = 100
    (short / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"two records .* the backbone reads 100") as caught:
        run(config(tiny_dataset, short), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
