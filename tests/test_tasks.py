"""Ranking: in tiles or at once, drawn or whole, it is what counting by hand gives."""

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlm2rec.tasks as tasks
from vlm2rec.config import ItemKNN, PopRec, Random
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split, Which
from vlm2rec.methods.counts import counting_scorer
from vlm2rec.methods.hybrid import Mixture, Standardised
from vlm2rec.metrics import summarise
from vlm2rec.seqrec.fit import SequenceScorer
from vlm2rec.tasks import CANDIDATE_SETS, DRAWN, Cosine, Scorer, Table, metrics_of, rank_users, ranks_table

SEED = 4


@dataclass
class Small:
    split: Split
    users: np.ndarray
    scores: np.ndarray


@pytest.fixture
def small(from_sequences: Callable[..., Dataset]) -> Small:
    """Users who buy things twice, one of them the target again; scores of few values, so that ties abound."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 160, rng.integers(3, 25)).tolist() for _ in range(37)]
    sequences[4][-1] = sequences[4][0]
    split = Split(from_sequences([*sequences, list(range(160))], 160))
    users = np.array([0, 3, 4, *range(6, 38)])
    return Small(split, users, rng.integers(0, 6, (len(users), 160)).astype(np.float64))


def split_of(sequences: Sequence[Sequence[int]], n_items: int) -> Split:
    """A split without a data set on disk."""
    dataset: Any = SimpleNamespace(
        sequences=Ragged.of([np.array(events) for events in sequences]),
        n_items=n_items,
        user_ids=[f"u{user}" for user in range(len(sequences))],
        fingerprint="",
    )
    return Split(dataset)


def by_hand(small: Small, which: Which, kind: str, tolerance: float = 0.0) -> list[tuple[str, int, int, int]]:
    """(user, candidates, above, ties), one user and one item at a time."""
    split, rows = small.split, []
    everything = range(split.n_items)
    for row, user in enumerate(small.users):
        events = split.dataset.sequences[user].tolist()
        past, target = (events[:-1], events[-1]) if which == "test" else (events[:-2], events[-2])
        if kind == "full":
            against = [item for item in everything if item != target]
        elif kind == "full_unseen":
            against = [item for item in everything if item != target and item not in past]
        else:
            drawn = draw_candidates(split, np.array([user]), which, kind, SEED)[0]  # type: ignore[arg-type]
            against = [int(item) for item in drawn if item >= 0]
        scores = small.scores[row]
        above = sum(scores[item] > scores[target] + tolerance for item in against)
        ties = sum(abs(scores[item] - scores[target]) <= tolerance for item in against)
        rows.append((split.dataset.user_ids[user], len(against), int(above), int(ties)))
    return rows


@pytest.mark.parametrize("which", ["test", "validation"])
@pytest.mark.parametrize("tile", [(1, 160), (7, 16), (3, 1), (1024, 1024)])
def test_ranks_by_hand(small: Small, which: Which, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, tile)
    ranks = rank_users(Table(small.scores), small.split, small.users, which, SEED)
    assert ranks.columns == ["user_id", "task", "view", "candidates", "above", "ties"]
    assert ranks.height == len(small.users) * 4
    assert ranks["ties"].max() > 10 and ranks["above"].max() > 10
    for kind in CANDIDATE_SETS:
        some = ranks.filter(pl.col("view") == kind).select("user_id", "candidates", "above", "ties")
        assert sorted(some.iter_rows()) == sorted(by_hand(small, which, kind))


def cut(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int]) -> None:
    """Make tiles of so many users by so many items."""
    monkeypatch.setattr(tasks, "_USERS_AT_ONCE", tile[0])
    monkeypatch.setattr(tasks, "_ITEMS_AT_ONCE", tile[1])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_tiles_count_the_same(data: st.DataObject) -> None:
    """Ties, bounds and hidden items wherever a tile may end; quarters are exact, and so are their sums."""
    n_items = data.draw(st.integers(2, 13))
    item = st.integers(0, n_items - 1)
    split = split_of(data.draw(st.lists(st.lists(item, min_size=3, max_size=7), min_size=1, max_size=5)), n_items)
    tolerance = data.draw(st.sampled_from([0.0, 0.25]))
    width = st.lists(st.integers(-3, 3), min_size=n_items, max_size=n_items)
    levels = data.draw(st.lists(width, min_size=split.n_users, max_size=split.n_users))
    type_of = data.draw(st.sampled_from([np.float32, np.float64]))
    small = Small(split, np.arange(split.n_users), np.array(levels, type_of) / 4)
    scorer = Table(small.scores, tolerance)
    which: Which = data.draw(st.sampled_from(["validation", "test"]))
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 14))))
        ranks = rank_users(scorer, split, small.users, which, SEED)
    for kind in CANDIDATE_SETS:
        some = ranks.filter(pl.col("view") == kind).select("user_id", "candidates", "above", "ties")
        assert list(some.iter_rows()) == by_hand(small, which, kind, tolerance)


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scorers(small: Small) -> dict[str, Scorer]:
    """One of every kind; items come in pairs of equal vectors, so that products tie."""
    rng = np.random.default_rng(3)
    split, users, n_items = small.split, small.users, small.split.n_items
    queries, items = unit(rng, len(users), 24), np.repeat(unit(rng, n_items // 2, 24), 2, axis=0)
    cosine, states = Cosine(queries, items), SequenceScorer(3 * unit(rng, len(users), 24), items[::-1].copy())
    return {
        "table": Table(small.scores),
        "cosine": cosine,
        "states": states,
        "mixture": Mixture(*(Standardised.over(part, len(users), n_items) for part in (states, cosine)), 0.35),
        **{kind.kind: counting_scorer(kind, split, users, "test", 0) for kind in (PopRec(), ItemKNN(), Random())},
    }


@pytest.mark.parametrize("name", ["table", "cosine", "states", "mixture", "poprec", "itemknn", "random"])
def test_every_scorer_streams(small: Small, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A score is the same in any tile and any company, and ranks are those of the whole matrix."""
    cut(monkeypatch, (5, 17))
    monkeypatch.setattr(tasks, "_GATHERED_AT_ONCE", 2 * 33 * 24)  # two users, of nine
    scorer, rng = scorers(small)[name], np.random.default_rng(1)
    everyone = np.arange(len(small.users))
    whole = scorer.scores(everyone)
    assert whole.shape == (len(everyone), 160) and len(np.unique(whole)) > 5
    near = {"rtol": 0, "atol": scorer.tolerance / 3}
    for start, stop in ((0, 1), (0, 160), (159, 160), (17, 34), (100, 200)):
        rows = rng.permutation(everyone)[:9]
        tile = scorer.scores(rows, slice(start, stop))
        np.testing.assert_allclose(tile, whole[rows, start:stop], **near)
        assert tile.dtype.kind == "f" and tile.flags.writeable
        listed = rng.integers(160, size=(9, 33))
        np.testing.assert_allclose(scorer.among(rows, listed), whole[rows[:, None], listed], **near)
    ranks = rank_users(scorer, small.split, small.users, "test", SEED)
    for kind in CANDIDATE_SETS:
        some = ranks.filter(pl.col("view") == kind).select("user_id", "candidates", "above", "ties")
        expected = by_hand(Small(small.split, small.users, whole.astype(float)), "test", kind, scorer.tolerance)
        assert list(some.iter_rows()) == expected
    assert ranks["above"].max() > 40


def test_a_memory_map_is_scored_as_it_lies(small: Small, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(3)
    queries, items = unit(rng, len(small.users), 24), unit(rng, 160, 24)
    np.save(tmp_path / "items.npy", items)
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    ranks = [rank_users(Cosine(queries, these), small.split, small.users, "test", SEED) for these in (items, mapped)]
    assert ranks[0].equals(ranks[1])
    assert not [warning for warning in recwarn if "writ" in str(warning.message)]


@dataclass(frozen=True)
class Uneven:
    """All scores are equal, but come out of a tile with an error larger than the tolerance."""

    error: float
    tolerance: float = 0.0

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        return np.full((len(rows), columns.stop - columns.start), 1 + self.error)

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.ones(items.shape)


@pytest.mark.parametrize("error", [0.5, -0.5])
def test_a_target_never_stands_against_itself(small: Small, error: float) -> None:
    """Whatever its own tile says of it, and no more is taken off for a history than was counted."""
    ranks = rank_users(Uneven(error), small.split, small.users, "test", SEED, ("full", "full_unseen"))
    assert ranks["above"].to_list() == (ranks["candidates"].to_list() if error > 0 else [0] * ranks.height)
    assert ranks["ties"].max() == 0 and ranks["candidates"].max() == 159


@dataclass(frozen=True)
class NoCatalogue(Table):
    """Refuses to score more than is listed."""

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        raise AssertionError("the catalogue was gone through")


def test_drawn_candidates_alone_are_scored_alone(small: Small) -> None:
    asked = ("sampled", "matched")
    alone = rank_users(NoCatalogue(small.scores), small.split, small.users, "test", SEED, asked)
    among_all = rank_users(Table(small.scores), small.split, small.users, "test", SEED)
    assert alone.equals(among_all.filter(pl.col("view").is_in(asked)))


@dataclass
class Watched:
    """Another scorer; remembers the most numbers it gave at once."""

    scorer: Scorer
    most: int = 0

    @property
    def tolerance(self) -> float:
        return self.scorer.tolerance

    def scores(self, rows: np.ndarray, columns: slice = slice(None)) -> np.ndarray:
        tile = self.scorer.scores(rows, columns)
        self.most = max(self.most, tile.size)
        return tile

    def among(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return self.scorer.among(rows, items)


@pytest.mark.parametrize("name", ["cosine", "states", "mixture", "poprec", "itemknn", "random"])
def test_memory_does_not_grow_with_users_times_items(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 users by 8,000 items are 2.4 million numbers, a tile 8,192. What torch makes is a tile's size at the most."""
    cut(monkeypatch, (64, 128))
    rng = np.random.default_rng(0)
    split = split_of([rng.integers(8000, size=6).tolist() for _ in range(300)], 8000)
    scorer = Watched(scorers(Small(split, np.arange(300), np.zeros((300, 1))))[name])
    asked = ("full", "full_unseen")
    rank_users(scorer, split, np.arange(3), "test", SEED, asked)  # imports what is imported late
    tracemalloc.start()
    try:
        ranks = rank_users(scorer, split, np.arange(300), "test", SEED, asked)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ranks.height == 300 * 2 and ranks["candidates"].max() == 7999
    assert scorer.most == 64 * 128
    assert peak < 1e6


def test_full_unseen_hides_the_past_alone(small: Small) -> None:
    """The target of the test is no secret kept from validation's ranking: hiding it would give it away."""
    split, users = small.split, np.array([7])
    future = split.target(7, "test")
    assert future not in split.past(7, "validation")
    scores = np.zeros((1, 160))
    scores[0, future] = 1.0
    unseen = rank_users(Table(scores), split, users, "validation", SEED, ["full_unseen"])
    assert unseen["above"].to_list() == [1]
    scores = np.zeros((1, 160))
    scores[0, split.past(7, "validation")] = 1.0
    unseen = rank_users(Table(scores), split, users, "validation", SEED, ["full_unseen", "full"])
    assert unseen["above"].to_list() == [0, len(set(split.past(7, "validation").tolist()))]


def test_a_target_bought_before_still_takes_part(small: Small) -> None:
    user = np.array([4])
    assert small.split.target(4, "test") in small.split.past(4, "test")
    scores = np.zeros((1, 160))
    scores[0, small.split.target(4, "test")] = 1.0
    ranks = rank_users(Table(scores), small.split, user, "test", SEED)
    assert ranks["above"].to_list() == [0] * 4 and ranks["ties"].to_list() == [0] * 4


@pytest.mark.parametrize("kind", CANDIDATE_SETS)
@pytest.mark.parametrize("where", ["target", "past", "drawn"])
def test_nan_is_an_error(small: Small, kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, (4, 16))
    split, user = small.split, int(small.users[5])
    scores = small.scores.copy()
    item = split.target(user, "test") if where == "target" else int(split.past(user, "test")[0])
    if where == "drawn":
        item = int(
            draw_candidates(split, small.users, "test", "matched" if kind == "matched" else "sampled", SEED)[5, 9]
        )
    scores[5, item] = np.nan
    if where == "past" and kind in DRAWN:  # nobody asks for it
        rank_users(Table(scores), split, small.users, "test", SEED, [kind])
        return
    with pytest.raises(ValueError, match="NaN"):
        rank_users(Table(scores), split, small.users, "test", SEED, [kind])


@pytest.mark.parametrize("kind", CANDIDATE_SETS)
def test_infinities_are_scores(small: Small, kind: str) -> None:
    """Of both signs in one tile: their sum is NaN, they are not."""
    scores = np.where(small.scores > 3, np.inf, np.where(small.scores < 1, -np.inf, small.scores))
    ranks = rank_users(Table(scores), small.split, small.users, "test", SEED, [kind])
    levels = np.clip(small.scores, 0, 4)
    expected = by_hand(Small(small.split, small.users, levels), "test", kind)
    assert list(ranks.select("user_id", "candidates", "above", "ties").iter_rows()) == expected


def test_fewer_items_than_candidates(tiny_dataset: Dataset) -> None:
    """24 items: everything outside the history is a candidate, and padding is never ranked."""
    split = Split(tiny_dataset)
    users = np.arange(split.n_users)
    ranks = rank_users(Table(np.ones((len(users), split.n_items))), split, users, "test", SEED)
    for kind in ("sampled", "full_unseen"):
        some = ranks.filter(pl.col("view") == kind)
        assert some["candidates"].to_list() == [split.n_items - len(split.seen(user)) for user in users]
        assert some["ties"].to_list() == some["candidates"].to_list()
        assert some["above"].to_list() == [0] * len(users)


def test_a_user_does_not_depend_on_the_others(small: Small) -> None:
    everyone = rank_users(Table(small.scores), small.split, small.users, "test", SEED)
    some = rank_users(Table(small.scores[5:9]), small.split, small.users[5:9], "test", SEED)
    names = [small.split.dataset.user_ids[user] for user in small.users[5:9]]
    expected = everyone.filter(pl.col("user_id").is_in(names))
    assert sorted(some.iter_rows()) == sorted(expected.iter_rows())


def test_equal_vectors_tie(small: Small) -> None:
    """Whatever the order in which a product is summed."""
    rng = np.random.default_rng(1)
    items = rng.standard_normal((160, 96)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    items[20:150] = items[20]
    queries = rng.standard_normal((len(small.users), 96)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ranks = rank_users(Cosine(queries, items), small.split, small.users, "test", SEED, ["full"])
    alike = [20 <= small.split.target(int(user), "test") < 150 for user in small.users]
    assert sum(alike) > 10
    for row, same in zip(ranks.iter_rows(named=True), alike, strict=True):
        assert row["ties"] == (129 if same else 0) or not same


def test_metrics_of_one_task_and_view(small: Small) -> None:
    ranks = pl.concat(
        [
            rank_users(Table(small.scores), small.split, small.users, "test", SEED),
            rank_users(Table(-small.scores), small.split, small.users, "test", SEED, ["sampled"], "dropout:t2f"),
        ]
    )
    for task, view in (("retrieval", "sampled"), ("retrieval", "full"), ("dropout:t2f", "sampled")):
        some = ranks.filter((pl.col("task") == task) & (pl.col("view") == view))
        assert metrics_of(ranks, task, view) == summarise(some["above"].to_numpy(), some["ties"].to_numpy())
    assert metrics_of(ranks, "retrieval", "sampled") != metrics_of(ranks, "dropout:t2f", "sampled")
    with pytest.raises(ValueError, match="no users"):
        metrics_of(ranks, "retrieval", "nothing")


def test_a_table_of_counts() -> None:
    counts = [np.array(some) for some in ([100, 7], [3, 0], [0, 2])]
    made = ranks_table(["a", "b"], "dropout:t2f", "sampled", *counts)
    assert made.rows() == [("a", "dropout:t2f", "sampled", 100, 3, 0), ("b", "dropout:t2f", "sampled", 7, 0, 2)]
    assert made.columns == ["user_id", "task", "view", "candidates", "above", "ties"]
    assert set(made.dtypes[3:]) == {pl.Int32}, "as `rank_users` has them, or they could not be put together"
    assert metrics_of(made, "dropout:t2f", "sampled") == pytest.approx(summarise(counts[1], counts[2]))
