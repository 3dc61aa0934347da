"""LLMEmb: what is said of items, views that lose some of it, both losses by their definition, and the whole run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import vlm2rec.methods.llmemb.method as llmemb
from vlm2rec.backbones.load import Backbone, load_backbone
from vlm2rec.config import BackboneConfig, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.llmemb.attributes import (
    Clause,
    Pairs,
    attribute_columns,
    header,
    item_clauses,
    sentence,
    two_views,
)
from vlm2rec.methods.llmemb.method import AlignedItems, SCFTLoss, mean_states, principal, soft_contrast
from vlm2rec.objectives import InfoNCE, Views
from vlm2rec.runs import Run, read_metrics

WORDS = ("red", "blue", "lamp", "mug", "shop", "mat", "tea", "pot", "hat", "cap")
METHOD = {"kind": "llmemb", "steps": 12, "batch_size": 8, "lr": 5e-3, "drop": 0.5, "dim": 12}
SEQREC = {"backbones": ["sasrec", "gru4rec"], "dim": 16, "inner": 16, "epochs": 2, "batch_size": 16}


def clauses_of(*values: str) -> tuple[Clause, ...]:
    return tuple(zip(("title", "brand", "price", "colour", "use"), values, strict=False))


def shelf(events: list[list[int]] | None = None) -> RawData:
    """Sixteen items that have attributes, and users who bought them."""
    rng = np.random.default_rng(3)
    items = pl.DataFrame(
        {
            "item_id": [f"i{k:02d}" for k in range(16)],
            "title": [f"{WORDS[k % 10]} {WORDS[(3 * k + 1) % 10]} number {k}" for k in range(16)],
            "brand": [None if k == 5 else f"Maker {k % 3}" for k in range(16)],
            "price": [k + 0.5 for k in range(16)],
            "categories": [["Home", WORDS[k % 4]] for k in range(16)],
        }
    )
    events = events or [rng.permutation(16)[: rng.integers(5, 12)].tolist() for _ in range(30)]
    rows = [(f"u{u:02d}", f"i{item:02d}", step) for u, own in enumerate(events) for step, item in enumerate(own)]
    return RawData("tiny_shop", items, pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))


class Handed:
    def __init__(self, raw: RawData) -> None:
        self.raw = raw

    def read(self) -> RawData:
        return self.raw


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(Handed(shelf()), tmp_path_factory.mktemp("shop") / "data", require=["title"], k_core=0)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("qwen2", tmp_path_factory.mktemp("qwen2") / "model")


def config(dataset: Dataset, backbone: Path, /, seqrec: dict[str, Any] | None = None, **method: Any) -> dict[str, Any]:
    return {
        "data": {"path": str(dataset.path)},
        "backbone": {"path": str(backbone)},
        "training": {"checkpoint_every": 1},
        "method": {**METHOD, **method},
        "seqrec": {**SEQREC, "backbones": [], **(seqrec or {})},
    }


def adapter(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# What is said of an item


def test_columns_that_say_something() -> None:
    items = pl.DataFrame(
        {
            "item_id": ["a"], "title": ["t"], "image": ["a.png"], "movielens_id": [3], "imUrl": ["http"],
            "price": [1.5], "categories": [[["x"]]], "related": [{"also": "b"}], "nothing": [None],
        }
    )  # fmt: skip
    assert attribute_columns(items) == ["title", "price", "categories"]
    assert attribute_columns(items, ["price"]) == ["price"]
    assert attribute_columns(items.with_columns(colour=pl.lit("red")), drawn=True) == ["title"]
    with pytest.raises(InputError, match=r"'prize'.*known: item_id, title"):
        attribute_columns(items, ["title", "prize"])


def test_clauses_and_their_text(shop: Dataset) -> None:
    columns = attribute_columns(shop.items)
    assert columns == ["title", "brand", "price", "categories"]
    clauses = item_clauses(shop, columns)
    assert sentence(clauses[2]) == "title is lamp pot number 2;brand is Maker 2;price is 2.5;categories is Home, lamp"
    assert [name for name, _ in clauses[5]] == ["title", "price", "categories"]
    assert header("tiny_shop").count("\n") == 1 and "tiny shop" in header("tiny_shop")


def test_values_are_cut_but_no_two_titles_become_one(tmp_path: Path) -> None:
    raw = shelf()
    long = raw.items.with_columns(
        title=pl.format("{} {}", pl.lit("very " * 40), "item_id"), brand=pl.lit("x" * 300), price=pl.lit(None)
    )
    made = prepare(Handed(RawData("long", long, raw.interactions)), tmp_path / "d", require=["title"], k_core=0)
    clauses = item_clauses(made, ["title", "brand"])
    assert {len(dict(item)["brand"]) for item in clauses} == {100}
    assert len({sentence(item) for item in clauses}) == 16


# Views


@pytest.mark.parametrize(("drop", "count", "left"), [(0.4, 5, 3), (0.4, 3, 2), (0.0, 4, 4), (0.99, 4, 1)])
def test_a_view_loses_its_share_of_the_clauses(drop: float, count: int, left: int) -> None:
    items = [clauses_of(*(f"{word}{k}" for word in WORDS[:count])) for k in range(6)]
    one, other = two_views(items, drop, np.random.default_rng(0))
    for view in (one, other):
        for own, kept in zip(items, view, strict=True):
            assert len(kept) == len(set(kept)) == left and set(kept) <= set(own)
    assert one != other
    assert {tuple(view) for view in one} != {tuple(item[:left]) for item in items}, "the order is always the same"


def test_where_clauses_are_few_the_title_loses_words_and_never_all() -> None:
    rng = np.random.default_rng(0)
    title = " ".join(WORDS)
    for _ in range(50):
        (one, far), _ = two_views([(("title", title),), clauses_of("tea", "Maker")], 0.4, rng)
        words = one[0][1].split()
        assert len(words) == 6 and words == sorted(words, key=WORDS.index)
        assert sorted(far) == [("brand", "Maker"), ("title", "tea")]
        for drop in (0.5, 0.9, 0.99):
            short, _ = two_views([(("title", "red lamp"),)], drop, rng)
            assert short[0][0][1] in ("red", "lamp")


def test_no_two_items_share_a_text() -> None:
    """Alike but for one word or one clause, as they are in a shop: a share of them says the same by itself."""
    titles = [(("title", f"{a} {b} {c}"),) for a in WORDS[:4] for b in WORDS[4:7] for c in WORDS[7:]]
    rich = [clauses_of(f"{word} {k}", "Maker", f"{k % 2}", "grey") for k, word in enumerate(WORDS)]
    for items in (titles, rich, [*titles, *rich]):
        changed = 0
        for seed in range(40):
            views = two_views(items, 0.6, np.random.default_rng(seed))
            said: dict[frozenset[Clause], set[int]] = {}
            for view in views:
                for row, kept in enumerate(view):
                    said.setdefault(frozenset(kept), set()).add(row)
                    changed += set(kept) != set(items[row])
            assert all(len(rows) == 1 for rows in said.values())
        assert changed, "nothing was ever dropped"


def test_batches_are_a_function_of_seed_and_step_and_cover_an_epoch() -> None:
    items = [clauses_of(f"{word} {k}", f"m{k}", f"{k}") for k, word in enumerate(WORDS)]
    pairs = Pairs([*items, items[0]], 5, 0.4, seed=1)
    assert len(pairs) == 10  # the one that is there twice cannot be told apart
    first = pairs.batch(0)
    Pairs(items, 5, 0.4, seed=1).batch(7)
    assert Pairs(items, 5, 0.4, seed=1).batch(0) == first
    assert Pairs(items, 5, 0.4, seed=2).batch(0) != first and pairs.batch(2) != first
    values = {value for step in (0, 1) for kept in pairs.batch(step)[0] for _, value in kept}
    assert all({item[0][1], item[1][1], item[2][1]} & values for item in items)
    assert len(Pairs(items, 64, 0.4, seed=0).batch(3)[0]) == 10


# Losses


def naive(x: np.ndarray, y: np.ndarray, tau: float, targets: str, unit: bool) -> float:
    if unit:
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    n = len(x)
    wanted = np.zeros((n, n))
    for k in range(n):
        near = [np.exp(tau * (x[k] @ x[j] + y[k] @ y[j]) / 2) for j in range(n)]
        for j in range(n):
            wanted[k, j] = near[j] / sum(near) if targets == "soft" else float(k == j)
    total = 0.0
    for k in range(n):
        there, back = (sum(np.exp(pair[0][k] @ other / tau) for other in pair[1]) for pair in ((x, y), (y, x)))
        for j in range(n):
            total -= wanted[k, j] * np.log(np.exp(x[k] @ y[j] / tau) / there) / 2
            total -= wanted[j, k] * np.log(np.exp(y[k] @ x[j] / tau) / back) / 2
    return total / n


@pytest.mark.parametrize("targets", ["soft", "onehot"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("tau", [0.7, 3.0])
def test_the_loss_by_its_definition(targets: Any, unit: bool, tau: float) -> None:
    x, y = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    less, wanted, more = (naive(x.numpy(), y.numpy(), tau + step, targets, unit) for step in (-1e-4, 0.0, 1e-4))
    assert float(soft_contrast(x, y, tau, targets, unit)) == pytest.approx(wanted, rel=1e-10)
    learned = SCFTLoss(tau, targets, unit)
    value = learned(x, y)
    value.backward()
    assert value.item() == pytest.approx(wanted, rel=1e-6)
    assert learned.temperature.grad is not None
    assert learned.temperature.grad.item() == pytest.approx((more - less) / 2e-4, rel=1e-3)


def test_one_hot_targets_are_infonce_both_ways() -> None:
    x, y = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(5)
    wanted = (cross_entropy(x @ y.T / 2, rows) + cross_entropy(y @ x.T / 2, rows)) / 2
    torch.testing.assert_close(soft_contrast(x, y, 2.0, "onehot"), wanted)
    negatives = ~torch.eye(5, dtype=torch.bool)
    ours = InfoNCE(0.5)
    both = (ours(Views(x), Views(y), negatives) + ours(Views(y), Views(x), negatives)) / 2
    torch.testing.assert_close(soft_contrast(x, y, 0.5, "onehot", unit=True), both)


def test_long_vectors_in_half_precision_stay_finite_and_soft_becomes_one_hot() -> None:
    x = 60 * torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    x, y = x.bfloat16().requires_grad_(), (x + torch.randn(6, 64)).bfloat16()
    soft = soft_contrast(x, y, 3.0)
    soft.backward()
    assert soft.dtype == torch.float32 and x.grad is not None and torch.isfinite(x.grad).all()
    torch.testing.assert_close(soft, soft_contrast(x, y, 3.0, "onehot"))


def test_a_learned_temperature_never_turns_negative() -> None:
    loss = SCFTLoss(1.0, "soft", True)
    with torch.no_grad():
        loss.temperature.fill_(-4.0)
    assert torch.isfinite(loss(torch.eye(3), torch.eye(3)))


def test_alignment_by_its_definition_each_item_once() -> None:
    rng = np.random.default_rng(0)
    vectors, known = rng.normal(size=(9, 6)), rng.normal(size=(9, 4))
    torch.manual_seed(0)
    items = AlignedItems(vectors, 4, known, alignment=0.3, temperature=2.0)
    positives = torch.tensor([7, 2, 2, 5, 7])
    penalty = items.penalty(positives)
    assert penalty is not None and items.loss == "bce"
    adapted = items().detach().numpy()
    wanted = naive(known[[2, 5, 7]], adapted[[2, 5, 7]].astype(np.float64), 2.0, "soft", False)
    assert float(penalty.detach()) == pytest.approx(0.3 * wanted, rel=1e-5)
    penalty.backward()
    trained = {name for name, parameter in items.named_parameters() if parameter.grad is not None}
    assert trained == {f"adapter.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    assert AlignedItems(vectors, 4, None, 0.3, 2.0).penalty(positives) is None
    assert [layer.out_features for layer in AlignedItems(rng.normal(size=(3, 20)), 4, None, 0, 1).adapter] == [10, 4]  # type: ignore[union-attr]


# Vectors


@pytest.mark.parametrize("family", ["qwen2", "llava"])
def test_pooling_is_the_mean_over_real_tokens_whatever_stands_beside(family: str, tmp_path: Path) -> None:
    backbone: Backbone = load_backbone(BackboneConfig(path=str(families.build(family, tmp_path / "model"))))
    rows = [backbone.title_tokens("a red lamp " * n) for n in (3, 1, 7, 2)]
    with torch.inference_mode():
        together, narrow = (mean_states(backbone, rows, tokens) for tokens in (8192, 1))
        for row, vector in zip(rows, together, strict=True):
            alone = backbone.model(input_ids=torch.tensor([row])).last_hidden_state[0]
            torch.testing.assert_close(vector, alone.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, narrow, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "asked", "kept"), [((30, 8), 5, 5), ((30, 8), 99, 8), ((5, 8), 99, 4), ((2, 8), 3, 1)]
)
def test_principal_axes(shape: tuple[int, int], asked: int, kept: int) -> None:
    vectors = np.random.default_rng(0).normal(2, 1, shape) * np.arange(1, shape[1] + 1)
    found, share = principal(vectors, asked)
    centred = vectors - vectors.mean(0)
    left, values, axes = np.linalg.svd(centred, full_matrices=False)
    assert found.shape == (shape[0], kept) and found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(left * values)[:, :kept], atol=1e-4)
    assert share == pytest.approx((values[:kept] ** 2).sum() / (values**2).sum())
    signs = np.sign((found * (centred @ axes.T)[:, :kept]).sum(0))
    largest = axes[:kept][np.arange(kept), np.abs(axes[:kept]).argmax(1)]
    np.testing.assert_array_equal(signs, np.sign(largest))


# The whole


@pytest.fixture(scope="module")
def done(shop: Dataset, qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run with Task 2. Not to be written to."""
    return run(parse_config(config(shop, qwen2, SEQREC)), tmp_path_factory.mktemp("done") / "run").path


def test_a_whole_run_and_the_same_run_again(done: Path, shop: Dataset, qwen2: Path) -> None:
    results = Run.open(done).results()
    assert results["method"] == "llmemb" and set(results["seqrec"]) == {"sasrec", "gru4rec"}
    assert set(results["dropout"]) == {"f2f"}
    assert results["validation"]["seqrec:gru4rec"]["norm"] == "none"
    kept = Run.open(done).manifest["done"]
    assert kept["encode"]["pca"]["asked"] == 12 == kept["encode"]["pca"]["kept"] and kept["encode"]["task1"] == "scft"
    assert kept["train"]["attributes"] == ["title", "brand", "price", "categories"]
    assert kept["train"]["temperature"] != 3.0
    assert EmbeddingTable.load(done / "items")["fused"].shape == (16, 32)
    assert {path.name for path in (done / "stages").iterdir()} == {"pca", "ids", "sasrec-none", "gru4rec-none"}
    stamps = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    run(parse_config(config(shop, qwen2, SEQREC)), done)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == stamps


def test_training_lowers_the_loss(shop: Dataset, qwen2: Path, tmp_path: Path) -> None:
    sharp = {"targets": "onehot", "normalize": True, "temperature": 0.01, "drop": 0.0, "lora": {"dropout": 0.0}}
    raw = config(shop, qwen2, steps=24, **{**sharp, "lr": 2e-3})
    folder = run(parse_config(raw), tmp_path / "run", until="train").path
    lines = read_metrics(folder / "metrics.jsonl", "train")
    losses, rates = ([line[name] for line in lines] for name in ("loss", "lr"))
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    assert rates[0] == 2e-3 and np.all(np.diff(rates[1:]) < 0)  # decay, no warm-up


def test_parts_give_the_gradient_of_the_whole_batch(shop: Dataset, qwen2: Path, tmp_path: Path) -> None:
    plain = {"lora": {"rank": 4, "dropout": 0.0}, "steps": 3}
    for name, more in (("whole", {}), ("parts", {"micro_batch": 3})):
        run(parse_config(config(shop, qwen2, **plain, **more)), tmp_path / name, until="train")
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "parts")
    assert max(float(value.abs().max()) for name, value in one.items() if "lora_B" in name) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=0)


def test_a_killed_training_goes_on_and_ends_alike(
    done: Path, shop: Dataset, qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config(shop, qwen2, SEQREC)
    batch, sasrec = Pairs.batch, llmemb.AlignedItems.penalty
    calls = {"scft": 0, "rat": 0}

    def dying(name: str, at: int, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            calls[name] += 1
            if calls[name] == at:
                raise KeyboardInterrupt
            return work(*given)

        return wrapped

    monkeypatch.setattr(Pairs, "batch", dying("scft", 6, batch))
    monkeypatch.setattr(llmemb.AlignedItems, "penalty", dying("rat", 2, sasrec))  # before its first checkpoint
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(parse_config(whole), tmp_path / "run")
    run(parse_config(whole), tmp_path / "run")
    assert same(adapter(tmp_path / "run"), adapter(done))
    first, second = (Run.open(folder).results() for folder in (done, tmp_path / "run"))
    assert first["retrieval"] == second["retrieval"] and first["seqrec"] == second["seqrec"]
    for stage in ("sasrec-none", "gru4rec-none"):
        best = [next((folder / "stages" / stage / "checkpoints").glob("best-*")) for folder in (done, tmp_path / "run")]
        assert same(*(load_file(path / "trained.safetensors") for path in best))


def test_nothing_learns_from_held_out_events(shop: Dataset, qwen2: Path, done: Path, tmp_path: Path) -> None:
    """Other items in S[-2] and S[-1], one epoch each so that validation chooses nothing: the same weights."""
    sequences = [events.tolist() for events in shop.sequences]
    moved = [[*own[:-2], *sequences[(u + 7) % len(sequences)][-2:]] for u, own in enumerate(sequences)]
    assert moved != sequences
    other = prepare(Handed(shelf(moved)), tmp_path / "moved", require=["title"], k_core=0)
    weights = []
    for dataset, name in ((shop, "one"), (other, "two")):
        raw = config(dataset, qwen2, {**SEQREC, "backbones": ["sasrec"], "epochs": 1}, steps=4)
        folder = run(parse_config(raw), tmp_path / name).path
        stages = [next((folder / "stages" / stage / "checkpoints").glob("best-*")) for stage in ("ids", "sasrec-none")]
        weights.append([adapter(folder), *(load_file(stage / "trained.safetensors") for stage in stages)])
    for one, two in zip(*weights, strict=True):
        assert same(one, two)


def test_task_1_from_rat_is_the_adapted_table(shop: Dataset, qwen2: Path, done: Path, tmp_path: Path) -> None:
    raw = config(shop, qwen2, {**SEQREC, "backbones": ["sasrec"]}, task1="rat")
    folder = run(parse_config(raw), tmp_path / "run").path
    saved = load_file(next((folder / "stages" / "sasrec-none" / "checkpoints").glob("best-*")) / "trained.safetensors")
    table = EmbeddingTable.load(folder / "stages" / "pca")["fused"]
    for layer in (0, 1):
        table = table @ saved[f"items.adapter.{layer}.weight"].numpy().T + saved[f"items.adapter.{layer}.bias"].numpy()
    np.testing.assert_allclose(EmbeddingTable.load(folder / "items")["fused"], table, atol=1e-4)
    scft = EmbeddingTable.load(folder / "stages" / "scft")["fused"]
    np.testing.assert_array_equal(scft, EmbeddingTable.load(done / "items")["fused"])
    found, direct = (Run.open(path).results() for path in (folder, done))
    assert found["seqrec"]["sasrec"] == direct["seqrec"]["sasrec"], "Task 2 is RAT either way"
    assert found["retrieval"] != direct["retrieval"]


def test_titles_alone_on_a_vision_language_model(tiny_dataset: Dataset, tmp_path: Path) -> None:
    llava = families.build("llava", tmp_path / "llava")
    raw = config(tiny_dataset, llava, {"backbones": ["sasrec"], "epochs": 1}, steps=2, alignment=0.0, dim=1536)
    folder = run(parse_config(raw), tmp_path / "run").path
    kept = json.loads((folder / "manifest.json").read_text())["done"]["encode"]["pca"]
    assert kept["kept"] == 23 and kept["asked"] == 1536  # 24 items
    assert not (folder / "stages" / "ids").exists()  # nothing is aligned with them


def test_what_does_not_fit_is_one_line(
    shop: Dataset, qwen2: Path, from_sequences: Callable[..., Dataset], tmp_path: Path
) -> None:
    short = from_sequences([[0, 1, 2], [3, 1, 0]], 4, "short")
    mute = prepare(
        Handed(RawData("mute", shelf().items.select("item_id").with_columns(title=pl.lit("x")), shelf().interactions)),
        tmp_path / "mute",
        require=["title"],
        k_core=0,
    )
    wrong: list[tuple[Dataset, dict[str, Any], str]] = [
        (mute, {}, "nothing tells its items apart"),
        (shop, {"attributes": ["colour"]}, "method.attributes names 'colour'"),
        (shop, {"max_tokens": 8}, "method.max_tokens = 8.*raise it"),
        (short, {"task1": "rat"}, "nothing can be trained"),
        (short, {"seqrec": {"backbones": ["gru4rec"]}}, "nothing can be trained"),
    ]
    for dataset, method, said in wrong:
        with pytest.raises(InputError, match=said) as error:
            run(parse_config(config(dataset, qwen2, **method)), tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
    done = run(
        parse_config(config(short, qwen2, steps=1)), tmp_path / "run", until="encode"
    )  # SCFT alone needs no events
    assert len(EmbeddingTable.load(done.path / "items")) == 4
    assert EmbeddingTable.load(done.path / "stages" / "pca")["fused"].shape == (4, 3)
