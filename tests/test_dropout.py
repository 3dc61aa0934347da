import numpy as np
import pytest
from fake_run import fake_dataset

from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import space
from vlm2rec.diagnostics.dropout import cosine_counts, dropout, dropout_counts
from vlm2rec.diagnostics.space import unit
from vlm2rec.tasks import Cosine, rank_users


def brute(queries, items, targets, candidates):
    """N@20 by the definition, one user at a time, in float64."""
    total = 0.0
    for query, target, listed in zip(queries, targets, candidates, strict=True):
        cosine = [q @ query / np.linalg.norm(q) / np.linalg.norm(query) for q in items.astype(np.float64)]
        others = [cosine[i] for i in listed if i >= 0]
        above = sum(c > cosine[target] + 1e-6 for c in others)
        ties = sum(abs(c - cosine[target]) <= 1e-6 for c in others)
        gains = [1 / np.log2(rank + 2) if rank < 20 else 0.0 for rank in range(above, above + ties + 1)]
        total += float(np.mean(gains))
    return total / len(queries)


def draw(seed=0, users=37, items=60, width=5, listed=30):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((items, width)) * rng.uniform(0.1, 10, (items, 1))
    vectors[40:50] = vectors[30:40] * 2  # the same direction: tied
    targets = rng.integers(items, size=users)
    candidates = np.stack([rng.permutation(np.delete(np.arange(items), t))[:listed] for t in targets]).astype(np.int32)
    candidates[::3, 20:] = -1
    return rng.standard_normal((users, width)), vectors, targets, candidates


def test_equals_the_definition_with_ties_and_padding():
    queries, items, targets, candidates = draw()
    found = dropout({"fused": queries, "text": queries[::-1], "image": -queries}, items, targets, candidates)
    assert list(found) == ["f2f", "t2f", "v2f"]
    assert found["f2f"] == pytest.approx(brute(queries, items, targets, candidates), abs=1e-12)
    assert found["t2f"] == pytest.approx(brute(queries[::-1], items, targets, candidates), abs=1e-12)
    assert found["v2f"] == pytest.approx(brute(-queries, items, targets, candidates), abs=1e-12)


def test_blocks_change_nothing(monkeypatch):
    queries, items, targets, candidates = draw(1)
    whole = dropout_counts({"fused": queries}, items, targets, candidates)["f2f"]
    monkeypatch.setattr(space, "BLOCK_FLOATS", 400)
    blocks = dropout_counts({"fused": queries}, items, targets, candidates)["f2f"]
    np.testing.assert_array_equal(whole, blocks)


def test_a_space_in_which_all_is_alike_gives_chance():
    users, listed = 9, 100
    same = np.tile(np.random.default_rng(0).standard_normal(768), (listed + 1, 1))
    candidates = np.tile(np.arange(1, listed + 1), (users, 1))
    found = dropout({"image": same[:users]}, same, np.zeros(users, dtype=int), candidates)
    chance = sum(1 / np.log2(rank + 2) for rank in range(20)) / (listed + 1)
    assert found == {"v2f": pytest.approx(chance)}


def test_agrees_with_the_ranks_of_retrieval(tmp_path):
    """Two pieces of code, one number: `results.json` must not hold two values for f2f."""
    split = Split(fake_dataset(tmp_path / "data"))
    users = np.arange(split.n_users)
    rng = np.random.default_rng(0)
    queries, items = rng.standard_normal((len(users), 24)), rng.standard_normal((split.n_items, 24))
    items[1::2] = items[0:-1:2]  # twins: tied
    ranks = rank_users(Cosine(unit(queries), unit(items)), split, users, "test", 3, ("sampled",))
    targets = np.array([split.target(int(user), "test") for user in users])
    candidates = draw_candidates(split, users, "test", "sampled", 3)
    above, ties = dropout_counts({"fused": queries}, items, targets, candidates)["f2f"]
    assert ties.sum() > 0
    np.testing.assert_array_equal(ranks["above"], above)
    np.testing.assert_array_equal(ranks["ties"], ties)


def test_length_of_vectors_is_no_matter():
    queries, items, targets, candidates = draw(2)
    scaled = dropout({"fused": queries * 7}, items * 0.3, targets, candidates)
    assert scaled == dropout({"fused": queries}, items, targets, candidates)


def test_unit_leaves_zero_alone_and_refuses_nan():
    np.testing.assert_array_equal(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), np.float32([[0.6, 0.8], [0, 0]]))
    with pytest.raises(ValueError, match="NaN"):
        unit(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, i, t, c: (q[:, :3], i, t, c), "must be"),
        (lambda q, i, t, c: (q, i, t[:-1], c), "must be"),
        (lambda q, i, t, c: (q, i, t, c + 60), "outside"),
        (lambda q, i, t, c: (q[:0], i, t[:0], c[:0]), "no users"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    queries, items, targets, candidates = change(*draw())
    with pytest.raises(ValueError, match=message):
        cosine_counts(queries, items, targets, candidates)
