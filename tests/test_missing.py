"""Items with a title alone or a picture alone: how they are embedded, trained on, and found."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_tables, write_pictures
from families import Shelf, build
from test_encoder import shelf
from test_seqrec import SMALL
from tiny_job import make_config, raw_config
from torch.nn.functional import normalize

from vlm2rec.config import BackboneConfig, PromptConfig, parse_config
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import DROPPED, Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.missing import CASES, Partial
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.encode import embed, lend
from vlm2rec.encoder import Encoder
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.metrics import count
from vlm2rec.objectives import CRTR, WPCL, EachModality, InfoNCE, Views, VLM2RecLoss
from vlm2rec.runs import read_metrics
from vlm2rec.tasks import DRAWN, metrics_of

COMBINE = ("sum", "unit_sum", "concat", "gated")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llava", tmp_path_factory.mktemp("backbone") / "llava")


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A third of 24 items lack a title, a third a picture; another three have neither, a broken picture, or a title."""
    folder = tmp_path_factory.mktemp("incomplete")
    items, interactions = tiny_tables()
    write_pictures(folder / "raw" / "images", items["image"].to_list())
    (folder / "raw" / "images" / "broken.png").write_bytes(b"no picture")
    lot = pl.int_range(24) % 3
    items = items.with_columns(
        title=pl.when(lot == 1).then(pl.lit("")).otherwise("title"),
        image=pl.when(lot == 2).then(pl.lit("")).otherwise("image"),
    )
    more = {"item_id": ["bare", "spoilt", "named"], "title": ["", "", "A name"], "image": ["", *["broken.png"] * 2]}
    pl.concat([items, pl.DataFrame(more)]).write_parquet(folder / "raw" / "items.parquet")
    interactions.write_parquet(folder / "raw" / "interactions.parquet")
    return prepare(Local(folder / "raw"), folder / "data", require=["any"], picture_size=32, k_core=0)


def made(folder: Path, **prompt: Any) -> Encoder:
    encoder = Encoder.build(BackboneConfig(path=str(folder)), PromptConfig.model_validate(prompt)).eval()
    if encoder.gate is not None:
        torch.manual_seed(0)
        torch.nn.init.normal_(encoder.gate.linear.weight)
    return encoder


@torch.no_grad()
def views_of(encoder: Encoder, catalogue: Shelf, histories: list[list[int]]) -> tuple[torch.Tensor, ...]:
    found = encoder.histories(catalogue, histories)
    assert found.text is not None and found.image is not None
    return found.fused, found.text, found.image


# Preparing


def test_items_with_either_are_kept_and_the_rest_is_listed(incomplete: Dataset, tmp_path: Path) -> None:
    assert incomplete.item_ids == [f"i{number:02d}" for number in range(24)] + ["named"]
    assert [bool(title) for title in incomplete.titles] == [number % 3 != 1 for number in range(24)] + [True]
    there = [picture is not None for picture in incomplete.pictures]
    assert there == [number % 3 != 2 for number in range(24)] + [False]
    dropped = pl.read_parquet(incomplete.path / DROPPED).filter(pl.col("kind") == "item")
    assert dict(dropped.select("id", "reason").iter_rows()) == {
        "bare": "no title, no picture",
        "spoilt": "no title, picture broken",
    }
    with pytest.raises(InputError, match=r"--require any: .* stands alone"):
        prepare(Local(tmp_path), tmp_path / "out", require=["title", "any"])


# Embedding


@pytest.mark.parametrize("combine", COMBINE)
def test_a_missing_view_is_left_out_of_the_fusion(llava: Path, combine: str) -> None:
    """Of the shelf, item 3 has a picture alone, item 5 a title alone, and here item 6 has neither."""
    catalogue = shelf()
    catalogue.titles.append("")
    catalogue.pictures.append(None)
    histories = [[3], [5, 5], [0], [3, 5], [6]]
    before = views_of(made(llava, combine=combine, missing="placeholder"), catalogue, histories)
    for missing in ("drop", "borrow"):  # which histories do alike
        fused, text, image = views_of(made(llava, combine=combine, missing=missing), catalogue, histories)
        assert not text[0].any() and not image[1].any()
        torch.testing.assert_close(image[0], before[2][0])
        torch.testing.assert_close(text[1], before[1][1])
        for row, (left, side) in enumerate(((image, slice(32, 64)), (text, slice(0, 32)))):
            alone = fused[row, side] if combine == "concat" else fused[row]
            assert float(torch.cosine_similarity(alone, left[row], dim=0)) > 1 - 1e-6
            assert float(alone.norm()) == pytest.approx(float(fused[row].norm()))  # a half that is missing is zeros
        for now, then in zip((fused, text, image), before, strict=True):
            torch.testing.assert_close(now[2:], then[2:])  # whole between them, or without anything to go by
        assert float((fused[:2] - before[0][:2]).norm()) > 1e-3


@pytest.mark.parametrize("combine", COMBINE)
def test_where_nothing_is_missing_all_settings_are_one(llava: Path, tiny_dataset: Dataset, combine: str) -> None:
    histories = [[0], [1, 2], [3, 4, 5]]
    encoders = [made(llava, combine=combine, missing=missing) for missing in ("placeholder", "drop", "borrow")]
    found = [embed(encoder, tiny_dataset, histories) for encoder in encoders]
    for encoder, views in zip(encoders, found, strict=True):
        assert encoder.there(tiny_dataset, histories) is None
        for name, vectors in lend(encoder, views).items():
            np.testing.assert_array_equal(vectors, found[0][name])


@pytest.mark.parametrize("combine", COMBINE)
def test_what_is_read_in_a_missing_view_moves_nothing(llava: Path, combine: str) -> None:
    """Neither the vectors nor the gradient hang on the placeholder's state."""
    encoder, there = made(llava, combine=combine, missing="drop"), torch.tensor([[True, False], [True, True]])
    torch.manual_seed(1)
    states = torch.randn(4, 32)
    other = states.clone()
    other[2] = 9.0  # the first history's picture pass
    states.requires_grad_()
    first, second = encoder.assemble(states, there), encoder.assemble(other, there)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two)
    (slope,) = torch.autograd.grad(normalize(first.fused, dim=1)[:, 3].sum(), states)
    assert bool(slope.isfinite().all()) and not slope[2].any()
    assert all(bool(slope[row].any()) for row in (0, 1, 3))


# Borrowing


def hand_made() -> dict[str, np.ndarray]:
    """Two whole items, one with a title alone, one with a picture alone; cosines are easy to see."""
    text = np.array([[1, 0], [0, 2], [3, 1], [0, 0]], np.float32)
    image = np.array([[0, 5], [4, 0], [0, 0], [1, 0.2]], np.float32)
    return {"fused": text + image, "text": text, "image": image}


def test_items_borrow_from_the_most_similar_whole_item(llava: Path) -> None:
    views = hand_made()
    found = lend(made(llava, missing="borrow"), views)
    np.testing.assert_allclose(found["fused"], [[1, 5], [4, 2], [3, 6], [1, 2.2]], atol=1e-6)
    for view in ("text", "image"):
        np.testing.assert_array_equal(found[view], hand_made()[view])
    np.testing.assert_array_equal(views["fused"], hand_made()["fused"])  # not changed in place
    np.testing.assert_array_equal(lend(made(llava, missing="drop"), views)["fused"], views["fused"])


def test_nobody_borrows_from_itself_or_where_there_is_nothing(llava: Path) -> None:
    encoder, views = made(llava, missing="borrow"), hand_made()
    whole = {name: vectors[:2] for name, vectors in views.items()}
    some = {name: vectors[2:] for name, vectors in views.items()}
    found = lend(encoder, some, whole, np.array([0, 1]))  # their nearest are their own rows
    np.testing.assert_allclose(found["fused"], [[3 + 4, 1], [1 + 1, 0.2]], atol=1e-6)
    np.testing.assert_array_equal(lend(encoder, some)["fused"], some["fused"])  # nobody is whole
    np.testing.assert_array_equal(lend(encoder, {"fused": views["text"]})["fused"], views["text"])  # one pass


def test_the_gate_decides_about_what_is_borrowed(llava: Path) -> None:
    encoder = made(llava, combine="gated", missing="borrow")
    catalogue = shelf()
    views = embed(encoder, catalogue, [[item] for item in range(6)])
    found = lend(encoder, views)["fused"]
    cosines = [np.dot(views["text"][5], row) / np.linalg.norm(row) for row in views["text"][[0, 1, 2, 4]]]
    nearest = [0, 1, 2, 4][int(np.argmax(cosines))]
    with torch.no_grad():
        states = torch.from_numpy(np.stack([views["text"][5], views["image"][nearest]]))
        expected = encoder.assemble(states).fused[0]
    np.testing.assert_allclose(found[5], expected, atol=1e-5)


# Training


def incomplete_case() -> tuple[Views, Views, torch.Tensor, torch.Tensor]:
    """Six users and nine targets: user 1 lacks text, user 2's target a picture; targets 6 and 7 lack one each."""
    generator = torch.Generator().manual_seed(3)
    query, target = (Views(*torch.randn(3, count, 6, generator=generator, dtype=torch.float64)) for count in (6, 9))
    assert query.text is not None and target.text is not None and target.image is not None
    query.text[1] = 0
    target.image[[2, 6]] = 0
    target.text[7] = 0
    negatives = ~torch.eye(6, 9, dtype=torch.bool)
    negatives[5] = False
    negatives[5, 6] = True  # user 5 has one negative, which has no picture
    return query, target, negatives, torch.arange(6)


def test_a_modality_that_is_not_there_does_not_lag() -> None:
    """Where both can be compared, the gap is that of a batch without the targets that lack one; elsewhere 0."""
    query, target, negatives, positive = incomplete_case()
    loss = WPCL(0.1, alpha=5.0, beta=2.0)
    gaps, penalties = (find(query, target, negatives, positive) for find in (loss.gap, loss.penalty))
    assert gaps[[1, 2, 5]].tolist() == [0, 0, 0]
    assert penalties[1].item() == pytest.approx(1 + 2 * math.log(2))
    for user in (0, 3, 4):
        both = []
        for z, e in ((query.text, target.text), (query.image, target.image)):
            assert z is not None and e is not None
            cosines = torch.cosine_similarity(z[user][None], e, dim=1)
            rest = [float(cosines[j]) for j in range(9) if j != user and e[j].any()]
            both.append(float(cosines[user]) - sum(rest) / len(rest))
        text, image = loss.margins(query, target, negatives, positive)
        assert [float(text[user]), float(image[user])] == pytest.approx(both)
        assert gaps[user].item() == pytest.approx(abs(both[0] - both[1]))
    text, image = loss.margins(query, target, negatives, positive)
    assert text.isnan().tolist() == [user == 1 for user in range(6)]
    assert image.isnan().tolist() == [user in (2, 5) for user in range(6)]


def test_topologies_are_compared_among_the_whole() -> None:
    query, target, _, _ = incomplete_case()
    users, items = [0, 2, 3, 4, 5], [0, 1, 3, 4, 5, 8]
    some = [Views(*(view[rows] for view in views)) for views, rows in ((query, users), (target, items))]  # type: ignore[index]
    assert CRTR(0.5)(query, target).item() == pytest.approx(CRTR(0.5)(*some).item())
    assert CRTR(0.5)(query, Views(target.fused, target.text, target.text * 0)).item() == 0


def test_each_modality_is_asked_about_what_has_it() -> None:
    query, target, negatives, positive = incomplete_case()
    expected = InfoNCE(0.1)(query, target, negatives, positive).item()
    for z, e, users in ((query.text, target.text, (0, 2, 3, 4, 5)), (query.image, target.image, (0, 1, 3, 4))):
        assert z is not None and e is not None
        terms = []
        for user in users:
            logits = torch.cosine_similarity(z[user][None], e, dim=1) / 0.1
            listed = [user, *(j for j in range(9) if negatives[user, j] and e[j].any())]
            terms.append(float(logits[listed].logsumexp(0) - logits[user]))
        expected += 0.5 * sum(terms) / len(terms)
    found = EachModality(InfoNCE(0.1), 0.1, 0.5)(query, target, negatives, positive)
    assert found.item() == pytest.approx(expected)


def test_gradients_reach_what_is_there_alone() -> None:
    query, target, negatives, positive = incomplete_case()
    losses = (
        VLM2RecLoss(WPCL(0.1, alpha=5.0, beta=2.0), CRTR(0.5), 0.25),
        EachModality(InfoNCE(0.1), 0.1, 0.5),
    )
    for loss in losses:
        leaves = [Views(*(view.clone().requires_grad_() for view in side)) for side in (query, target)]  # type: ignore[union-attr]
        loss(*leaves, negatives, positive).backward()
        for side in leaves:
            for view in side:
                assert view is not None and view.grad is not None and bool(view.grad.isfinite().all())
        assert leaves[1].image is not None and leaves[1].image.grad is not None
        assert not leaves[1].image.grad[[2, 6]].any() and bool(leaves[1].image.grad[[0, 8]].any())


# The whole way


@pytest.mark.parametrize(("kind", "missing"), [("vlm2rec", "placeholder"), ("sft", "drop"), ("vlm2rec", "borrow")])
def test_a_shop_with_gaps_goes_the_whole_way(
    incomplete: Dataset, llava: Path, tmp_path: Path, kind: str, missing: str
) -> None:
    numbers = {**SMALL.model_dump(mode="json"), "backbones": ["sasrec"], "epochs": 1}
    config = make_config(
        incomplete,
        llava,
        kind,
        prompt={"missing": missing},
        training={"epochs": 1},
        seqrec=numbers,
        evaluation={"missing": True, "users": 20},
    )
    done = run(config, tmp_path / "run")
    assert (done.path / "report.html").exists()
    results = done.results()
    assert set(results["missing"]) == set(CASES)
    assert 0 < results["retrieval"]["sampled"]["N@20"] < 1 and 0 < results["seqrec"]["sasrec"]["full"]["N@20"] < 1
    logged = read_metrics(done.path / "metrics.jsonl", "train")
    assert all(np.isfinite(value) for line in logged for value in line.values() if isinstance(value, float))
    assert all({"margin_text", "margin_image", "gap", "norm_ratio"} <= line.keys() for line in logged)
    items = EmbeddingTable.load(done.path / "items")
    silent = {view: [bool(row.any()) for row in items[view]] for view in ("text", "image", "fused")}
    assert all(silent["fused"])
    if missing == "placeholder":
        assert all(silent["text"]) and all(silent["image"])
    else:
        assert silent["text"] == [bool(title) for title in incomplete.titles]
        assert silent["image"] == [picture is not None for picture in incomplete.pictures]
    encoder = Encoder.load(done.path / "model")
    expected = lend(encoder, embed(encoder, incomplete, [[item] for item in range(25)]))["fused"]
    np.testing.assert_allclose(items["fused"], expected, atol=1e-4)
    fresh = Shelf(["Thing i03 anew", ""], [None, incomplete.pictures[0]])  # items that no training has seen
    assert bool(torch.isfinite(encoder.items(fresh, [0, 1]).fused).all())


# Measuring


@pytest.fixture(scope="module")
def measured(tiny_dataset: Dataset, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The backbone as it comes on whole items, under two settings."""
    folder = tmp_path_factory.mktemp("measured")
    for missing in ("drop", "borrow"):
        config = make_config(tiny_dataset, llava, "vanilla", prompt={"missing": missing}, evaluation={"missing": True})
        run(config, folder / missing)
    return {missing: folder / missing for missing in ("drop", "borrow")}


def rows(ranks: pl.DataFrame, task: str, kind: str) -> list[tuple[str, int, int]]:
    chosen = ranks.filter((pl.col("task") == task) & (pl.col("view") == kind))
    return list(chosen.select("user_id", "above", "ties").iter_rows())


def by_hand(
    split: Split, queries: np.ndarray, items: np.ndarray, targets: Mapping[int, np.ndarray], kind: str
) -> list[tuple[str, int, int]]:
    """One user at a time; `targets` has the vectors that the users' targets have in place of their own in `items`."""
    drawn, found = draw_candidates(split, np.arange(split.n_users), "test", kind, 0), []  # type: ignore[arg-type]
    for user in range(split.n_users):
        target = split.target(user, "test")
        listed = [item for item in drawn[user] if item >= 0]
        vectors = np.array([targets.get(target, items[target]), *items[listed]], np.float64)
        query = queries[user].astype(np.float64)
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        above, ties = count(cosines[None, 1:], cosines[:1], np.ones((1, len(listed)), bool), tolerance=1e-6)
        found.append((split.dataset.user_ids[user], int(above[0]), int(ties[0])))
    return found


@pytest.mark.parametrize("missing", ["drop", "borrow"])
def test_every_case_by_hand(measured: dict[str, Path], tiny_dataset: Dataset, missing: str) -> None:
    split, ranks = Split(tiny_dataset, 10), pl.read_parquet(measured[missing] / "users.parquet")
    encoder = Encoder.load(measured[missing] / "model")
    items, histories = (EmbeddingTable.load(measured[missing] / name) for name in ("items", "histories"))
    pasts = [split.history(user, "test").tolist() for user in range(split.n_users)]
    for kind in DRAWN:
        for case, own, other in (("item_text", "text", "image"), ("item_image", "image", "text")):
            targets = {}
            for target in {split.target(user, "test") for user in range(split.n_users)}:
                targets[target] = np.array(items[own][target])
                if missing == "borrow":
                    cosines = items.unit(own) @ items.unit(own)[target]
                    cosines[target] = -2
                    targets[target] += items[other][int(cosines.argmax())]
            expected = by_hand(split, histories["fused"], items["fused"], targets, kind)
            assert rows(ranks, f"missing:{case}", kind) == expected
        for view, name in (("text", "t2f"), ("image", "v2f")):  # an own view alone is the query of modality dropout
            assert rows(ranks, f"missing:history_{view}", kind) == rows(ranks, f"dropout:{name}", kind)
        gaps = Partial.mixed(tiny_dataset, 0)
        catalogue = lend(encoder, embed(encoder, gaps, [[item] for item in range(24)]))["fused"]
        expected = by_hand(split, embed(encoder, gaps, pasts)["fused"], catalogue, {}, kind)
        assert rows(ranks, "missing:mixed", kind) == expected
        assert len({tuple(rows(ranks, f"missing:{case}", kind)) for case in CASES}) == len(CASES)


def test_a_mixed_catalogue_has_a_third_of_each(tiny_dataset: Dataset) -> None:
    many = Shelf([f"title {number}" for number in range(3000)], [np.zeros((1, 1, 3), np.uint8)] * 3000)
    found = Partial.mixed(many, 5)
    kinds = [(bool(title), picture is not None) for title, picture in zip(found.titles, found.pictures, strict=True)]
    assert set(kinds) == {(True, True), (True, False), (False, True)}
    assert all(900 < kinds.count(kind) < 1100 for kind in set(kinds))
    assert all(title in ("", f"title {number}") for number, title in enumerate(found.titles))
    assert Partial.mixed(many, 5).titles == found.titles != Partial.mixed(many, 6).titles


def test_figures_are_those_of_the_kept_ranks(
    measured: dict[str, Path], tiny_dataset: Dataset, llava: Path, tmp_path: Path
) -> None:
    """Of a transfer too, which has the source's; a method without an encoder of its own has none."""
    method = {"kind": "transfer", "source": str(measured["borrow"])}
    moved = run(
        parse_config(raw_config(tiny_dataset, llava, method=method, evaluation={"missing": True})), tmp_path / "moved"
    )
    found, expected = (pl.read_parquet(path / "users.parquet") for path in (moved.path, measured["borrow"]))
    for case in CASES:
        for kind in DRAWN:
            assert moved.results()["missing"][case][kind] == metrics_of(expected, f"missing:{case}", kind)
            assert rows(found, f"missing:{case}", kind) == rows(expected, f"missing:{case}", kind)
    counting = run(make_config(tiny_dataset, llava, "poprec", evaluation={"missing": True}), tmp_path / "poprec")
    assert "missing" not in counting.results()


def test_a_catalogue_without_pictures_has_the_text_view_of_the_whole_one(llava: Path) -> None:
    encoder = made(llava, missing="drop")
    fused, text, image = views_of(encoder, shelf(), [[0, 1]])
    alone, same, nothing = (
        view for view in encoder.histories(Partial.of(shelf(), "text"), [[0, 1]]) if view is not None
    )
    torch.testing.assert_close(same, text)
    torch.testing.assert_close(alone, text)
    assert not nothing.any() and image.any() and not torch.allclose(fused, text)
