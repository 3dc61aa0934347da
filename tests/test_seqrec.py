"""Sequential models: nothing leaks from the future, padding or held-out items; losses by their definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vlm2rec.seqrec.fit as fitting
from vlm2rec.config import EvaluationConfig, SeqRecConfig, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.seqrec.fit import SequenceModel, bce, fit_sequential, full_softmax, padded
from vlm2rec.seqrec.items import IdItems, Items, TableItems, normalised
from vlm2rec.seqrec.models import Kind
from vlm2rec.seqrec.windows import Windows
from vlm2rec.tasks import metrics_of, rank_users

SMALL = SeqRecConfig(dim=16, inner=32, epochs=3, batch_size=8, lr=(1e-2,), dropout=0.1)
KINDS: tuple[Kind, ...] = ("sasrec", "gru4rec")
Make = Callable[..., Dataset]


def model_of(kind: Kind, split: Split) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(kind, IdItems(split.n_items, SMALL.dim), split, SMALL).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_sees_neither_the_future_nor_padding(tiny_dataset: Dataset, kind: Kind) -> None:
    model = model_of(kind, Split(tiny_dataset))
    one = torch.tensor([[3, 1, 4, 1, 5, 9]])
    other = torch.tensor([[3, 1, 4, 7, 2, 6]])
    cut = torch.tensor([[3, 1, 4, -1, -1, -1]])
    user = torch.tensor([0])
    with torch.no_grad():
        a, b, c = (model.states(model.items(), history, user, "test")[0] for history in (one, other, cut))
    torch.testing.assert_close(a[:3], b[:3])
    torch.testing.assert_close(a[:3], c[:3])
    assert (a[3:] - b[3:]).abs().min(dim=1).values.max() > 1e-4  # and what it may see, it sees
    assert not torch.allclose(a[1], a[3])  # the same item later is another state


@pytest.mark.parametrize("width", [1, 3, 4, 10])
def test_windows_have_every_target_once_and_never_a_held_out_item(from_sequences: Make, width: int) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 30, length).tolist() for length in (3, 4, 5, 9, 16, 40)]
    split = Split(from_sequences(sequences, 30), max_history=width)
    windows = Windows(split, "windows", batch_size=4, seed=1)
    found: dict[int, list[tuple[tuple[int, ...], int]]] = {user: [] for user in range(split.n_users)}
    for step in range(windows.steps_per_epoch):
        batch = windows.batch(step)
        for user, inputs, targets in zip(batch.users, batch.inputs, batch.targets, strict=True):
            for position in np.flatnonzero(targets >= 0):
                found[int(user)].append((tuple(inputs[: position + 1]), int(targets[position])))
    for user, sequence in enumerate(split.train):
        places = {}
        for history, target in found[user]:
            # where in S[:-2] this stretch lies, the target right behind it
            stretch = [*history, target]
            at = [p for p in range(len(sequence)) if sequence[max(0, p - len(history)) : p + 1].tolist() == stretch]
            assert at, "not a stretch of S[:-2]"
            for p in at:
                assert len(history) >= min(p, -(-width // 2))
                places[p] = True
        assert len(found[user]) == len(sequence) - 1
        assert sorted(places) == list(range(1, len(sequence)))


def test_the_last_window_alone_and_batches_by_seed(tiny_dataset: Dataset) -> None:
    split = Split(tiny_dataset)
    last = Windows(split, "last", 8, seed=0)
    assert len(last) == split.n_users
    batch = last.batch(0)
    for user, inputs, targets in zip(batch.users, batch.inputs, batch.targets, strict=True):
        (place,) = np.flatnonzero(targets >= 0)
        assert targets[place] == split.train[user][-1]
        assert inputs[: place + 1].tolist() == split.train[user][:-1][-10:].tolist()
    again, other = Windows(split, "last", 8, seed=0), Windows(split, "last", 8, seed=1)
    again.batch(7)
    np.testing.assert_array_equal(again.batch(0).users, batch.users)
    assert not np.array_equal(other.batch(0).users, batch.users)
    assert not np.array_equal(last.batch(last.steps_per_epoch).users, batch.users)


def rows_by_a_loop(user: int, length: int, width: int, targets: str) -> list[tuple[int, int, int, int]]:
    """User, first input, number of inputs and first position that has a target, of each window."""
    if length < 2:
        return []
    done = min(width, length - 1)
    if targets == "last":
        return [(user, length - 1 - done, done, done - 1)]
    rows = [(user, 0, done, 0)]
    while done < length - 1:
        new = min(max(1, width // 2), length - 1 - done)
        rows.append((user, done + new - width, width, width - new))
        done += new
    return rows


@pytest.mark.parametrize("targets", ["windows", "last"])
@pytest.mark.parametrize("width", [1, 2, 5, 10])
def test_batches_of_windows_by_loops(from_sequences: Make, targets: str, width: int) -> None:
    """Bit for bit, drawn negatives too: results of earlier runs rest on them."""
    rng = np.random.default_rng(1)
    events = [rng.integers(0, 30, length).tolist() for length in (3, 4, 27, 3, 9, 60, 5, 16, 11)]
    split = Split(from_sequences([*events, list(range(30))], 30), width)
    drawn = Windows(split, targets, 4, seed=6)  # type: ignore[arg-type]
    rows = [row for user, own in enumerate(split.train) for row in rows_by_a_loop(user, len(own), width, targets)]
    assert (len(drawn), drawn.steps_per_epoch) == (len(rows), -(-len(rows) // 4))
    for step in np.random.default_rng(0).permutation(3 * drawn.steps_per_epoch).tolist():
        epoch, place = divmod(step, drawn.steps_per_epoch)
        order = np.random.default_rng([6, epoch]).permutation(len(rows))[4 * place : 4 * place + 4]
        batch, chosen = drawn.batch(step, negatives=True), [rows[k] for k in order]
        shape = len(chosen), max(inputs for _, _, inputs, _ in chosen)
        inputs, wanted = np.full(shape, -1), np.full(shape, -1)
        for row, (user, first, length, start) in enumerate(chosen):
            inputs[row, :length] = split.train[user][first : first + length]
            wanted[row, start:length] = split.train[user][first + start + 1 : first + length + 1]
        assert batch.users.tolist() == [user for user, *_ in chosen]
        np.testing.assert_array_equal(batch.inputs, inputs)
        np.testing.assert_array_equal(batch.targets, wanted)
        assert {part.dtype for part in (batch.users, batch.inputs, batch.targets, batch.negatives)} == {np.dtype("i8")}
        lots = np.random.default_rng([6, step, 1])
        negatives = lots.integers(30, size=shape)
        own = [set(split.train[user].tolist()) for user, *_ in chosen]
        for _ in range(100):
            bad = np.array([[item in bought for item in row] for row, bought in zip(negatives, own, strict=True)])
            if not bad.any():
                break
            negatives[bad] = lots.integers(30, size=int(bad.sum()))
        np.testing.assert_array_equal(batch.negatives, negatives)


def test_negatives_are_outside_the_training_history(tiny_dataset: Dataset) -> None:
    split = Split(tiny_dataset)
    windows = Windows(split, "windows", 64, seed=0)
    for step in range(20):
        batch = windows.batch(step, negatives=True)
        assert batch.negatives is not None
        for user, drawn in zip(batch.users, batch.negatives, strict=True):
            assert not set(drawn.tolist()) & set(split.train[user].tolist())


def test_the_softmax_in_parts_is_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states = torch.randn(23, 6, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (23,))
    torch.nn.functional.cross_entropy(states @ table.T, targets).backward()
    wanted = [states.grad, table.grad]
    for at_once in (11, 55, 1 << 20):  # one row, five rows, everything
        monkeypatch.setattr(fitting, "_LOGITS_AT_ONCE", at_once)
        states.grad = table.grad = None
        value, stand_in = full_softmax(states, table, targets)
        stand_in.backward()
        torch.testing.assert_close(value, torch.nn.functional.cross_entropy(states @ table.T, targets).detach())
        torch.testing.assert_close([states.grad, table.grad], wanted)


def test_binary_cross_entropy_by_its_definition() -> None:
    torch.manual_seed(0)
    states, table = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    targets, negatives = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 0, 1])
    naive = 0.0
    for k in range(4):
        up, down = float(states[k] @ table[targets[k]]), float(states[k] @ table[negatives[k]])
        naive -= np.log(1 / (1 + np.exp(-up))) + np.log(1 - 1 / (1 + np.exp(-down)))
    assert float(bce(states, table, targets, negatives)) == pytest.approx(naive / 4, abs=1e-12)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_items_that_are_only_ever_scored_learn_too(tiny_dataset: Dataset, loss: str) -> None:
    """The output side of an ID table gets its gradient: upstream code has scored against a detached copy."""
    split = Split(tiny_dataset)
    model = model_of("sasrec", split)
    step = fitting._step(model, Windows(split, "windows", 4, 0), loss)
    batch = Windows(split, "windows", 4, 0).batch(0)
    outputs = set(batch.targets[batch.targets >= 0].tolist()) - set(batch.inputs.ravel().tolist())
    assert outputs
    step(0, lambda value: value.backward())
    gradient = next(iter(model.items.parameters())).grad
    assert gradient is not None
    assert (gradient[list(outputs)].abs().sum(dim=1) > 0).all()


def test_a_pattern_is_learned_and_the_scorer_agrees_with_validation(from_sequences: Make, tmp_path: Path) -> None:
    sequences = [[(start + k) % 30 for k in range(8)] for start in range(30)] * 3
    split = Split(from_sequences(sequences, 30))
    for kind in KINDS:
        model = fit_sequential(
            kind,
            lambda: IdItems(30, 16),
            split,
            SMALL.model_copy(update={"epochs": 25, "lr": (3e-3, 1e-2)}),
            0,
            tmp_path / kind,
            EvaluationConfig(),
        )
        assert model.validation["N@20"] > 0.9
        assert model.validation["lr"] in (3e-3, 1e-2)
        users = np.arange(split.n_users)
        ranks = rank_users(model.scorer(users, "validation"), split, users, "validation", 0, ("sampled",))
        assert metrics_of(ranks, "retrieval", "sampled")["N@20"] == pytest.approx(model.validation["N@20"], abs=1e-9)
        assert (
            metrics_of(rank_users(model.scorer(users, "test"), split, users, "test", 0), "retrieval", "full")["H@10"]
            > 0.9
        )


def test_a_killed_fit_goes_on_and_ends_alike(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split(tiny_dataset)

    def fitted(folder: str) -> Tensor:
        model = fit_sequential(
            "sasrec", lambda: IdItems(split.n_items, SMALL.dim), split, SMALL, 3, tmp_path / folder, EvaluationConfig()
        )
        return torch.cat([parameter.detach().ravel() for parameter in model.parameters()])

    whole = fitted("whole")
    original, calls = Windows.batch, 0

    def killed(self: Windows, step: int, negatives: bool = False) -> object:
        nonlocal calls
        calls += 1
        if calls == Windows(split, "windows", SMALL.batch_size, 3).steps_per_epoch + 2:
            raise KeyboardInterrupt
        return original(self, step, negatives)

    monkeypatch.setattr(Windows, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted("killed")
    monkeypatch.setattr(Windows, "batch", original)
    assert torch.equal(fitted("killed"), whole)


def test_hooks_of_items_are_honoured(tiny_dataset: Dataset, tmp_path: Path) -> None:
    split = Split(tiny_dataset)
    phases: list[str] = []

    class Watched(IdItems):
        loss = "bce"
        targets = "last"

        def users(self, states: Tensor, users: Tensor, phase: str) -> Tensor:  # type: ignore[override]
            assert users.shape == states.shape[:-1]
            phases.append(phase)
            return states

        def penalty(self, positives: Tensor) -> Tensor:
            return self.table[positives].square().sum()

    def norm_after(kind: type[IdItems], folder: str) -> float:
        settings = SMALL.model_copy(update={"epochs": 4})
        items: Callable[[], Items] = lambda: kind(split.n_items, SMALL.dim)  # noqa: E731
        model = fit_sequential("gru4rec", items, split, settings, 0, tmp_path / folder, EvaluationConfig())
        model.scorer(np.arange(3), "test")
        return float(model.items().detach().norm())

    assert norm_after(Watched, "watched") < 0.9 * norm_after(IdItems, "plain")
    assert set(phases) == {"train", "validation", "test"}


def test_norms_of_a_table() -> None:
    vectors = np.random.default_rng(0).normal(3, 2, (50, 4))
    np.testing.assert_allclose(np.linalg.norm(normalised(vectors, "l2"), axis=1), 1, rtol=1e-5)
    standard = normalised(vectors, "standardize")
    np.testing.assert_allclose([standard.mean(0), standard.std(0)], [np.zeros(4), np.ones(4)], atol=1e-5)
    np.testing.assert_allclose(normalised(vectors, "none"), vectors, rtol=1e-6)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_given_table_stays_as_it_is_unless_tuned(tuned: bool) -> None:
    items = TableItems(np.random.default_rng(0).normal(size=(5, 7)), 3, tuned)
    items().sum().backward()
    assert items().shape == (5, 3)
    assert items.adapter.weight.grad is not None
    assert (items.table.grad is not None) is tuned


def test_histories_are_padded_on_the_right() -> None:
    table, lengths = padded([np.array([4]), np.array([1, 2, 3])], 4)
    assert table.tolist() == [[4, -1, -1, -1], [1, 2, 3, -1]]
    assert lengths.tolist() == [1, 3]


def test_too_little_to_train_on_is_one_line(from_sequences: Make) -> None:
    split = Split(from_sequences([[0, 1, 2], [2, 1, 0]], 3))
    with pytest.raises(InputError, match="nothing can be trained"):
        Windows(split, "windows", 4, 0)


def config(dataset: Dataset, kind: str, **seqrec: object) -> dict[str, object]:
    numbers = {**SMALL.model_dump(mode="json"), **seqrec}
    return {"data": {"path": str(dataset.path)}, "method": {"kind": kind}, "seqrec": numbers}


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_row_end_to_end(tiny_dataset: Dataset, tmp_path: Path, kind: str) -> None:
    done = run(parse_config(config(tiny_dataset, kind)), tmp_path / kind)
    results = done.results()
    assert results["seqrec"] == {kind: results["retrieval"]}
    assert results["validation"]["epoch"] >= 1
    assert 0 < results["cost"]["epoch_seconds"] < results["cost"]["seconds"]["train"]
    ranks = pl.read_parquet(done.path / "users.parquet")
    own, again = (ranks.filter(pl.col("task") == task).drop("task") for task in ("retrieval", f"seqrec:{kind}"))
    assert own.equals(again)


def test_task_2_of_an_embedder(tiny_dataset: Dataset, tmp_path: Path) -> None:
    raw = config(tiny_dataset, "vanilla", backbones=list(KINDS))
    done = run(parse_config(raw), tmp_path / "run", until="evaluate")
    before = done.results()
    assert "seqrec" not in before
    results = run(parse_config(raw), tmp_path / "run").results()
    assert set(results["seqrec"]) == set(KINDS)
    assert {key: results[key] for key in ("retrieval", "dropout")} == {
        key: before[key] for key in ("retrieval", "dropout")
    }
    chosen = results["validation"]["seqrec:sasrec"]
    assert chosen["norm"] in ("l2", "standardize")
    ranks = pl.read_parquet(tmp_path / "run" / "users.parquet")
    for kind in KINDS:
        figures = metrics_of(ranks, f"seqrec:{kind}", "full")
        assert figures == pytest.approx(results["seqrec"][kind]["full"])
    assert len(EmbeddingTable.load(tmp_path / "run" / "items")) == len(tiny_dataset.item_ids)
    # The stage done again (a kill before it was listed) doubles nothing.
    manifest = done.open(tmp_path / "run")
    del manifest.manifest["done"]["seqrec"]
    manifest.record()
    run(parse_config(raw), tmp_path / "run")
    assert pl.read_parquet(tmp_path / "run" / "users.parquet").equals(ranks)


def test_from_anybodys_vectors(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Rows are found by item id, in whatever order and among whatever others they stand."""
    ids = [*reversed(tiny_dataset.item_ids), "another"]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 6)).astype(np.float32)
    EmbeddingTable(ids, {"fused": vectors, "text": vectors + 1}).save(tmp_path / "table")

    def raw(**method: object) -> dict[str, Any]:
        given = {"kind": "sasrec", "items": str(tmp_path / "table"), **method}
        return {**config(tiny_dataset, "sasrec"), "method": given}

    done = run(parse_config(raw()), tmp_path / "run")
    results = done.results()
    assert (
        results["validation"]["norm"] in ("l2", "standardize") and results["seqrec"]["sasrec"] == results["retrieval"]
    )
    weights = load_file(done.path / "model" / "model.safetensors")
    own = vectors[: len(tiny_dataset.item_ids)][::-1]
    expected = normalised(own, results["validation"]["norm"])
    torch.testing.assert_close(weights["items.table"], torch.from_numpy(expected))

    def refused(message: str, **method: object) -> None:
        with pytest.raises(InputError, match=message) as caught:
            run(parse_config(raw(**method)), tmp_path / "other")
        assert "\n" not in str(caught.value) and not (tmp_path / "other").exists()

    refused("has no view 'image'; set method.view to fused or text", view="image")
    refused("no such folder", items=str(tmp_path / "nowhere"))
    EmbeddingTable(ids[1:3], {"fused": vectors[1:3]}).save(tmp_path / "few")
    refused(r"few: are embeddings of another catalogue than .*: 22 ids have no embedding", items=str(tmp_path / "few"))


def test_numbers_that_cannot_be_are_one_line(tiny_dataset: Dataset, tmp_path: Path) -> None:
    for message, settings in (
        ("seqrec.dim = 16 is not a multiple of seqrec.heads = 3", {"heads": 3}),
        ("greater than 0", {"lr": [0.0]}),
        (r"seqrec\.lr", {"lr": []}),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(config(tiny_dataset, "sasrec", **settings))
    with pytest.raises(FloatingPointError, match=r"not finite; lower"):
        run(parse_config(config(tiny_dataset, "sasrec", lr=[1e12])), tmp_path / "run")


def test_nothing_to_choose_from_is_one_line(from_sequences: Make, tmp_path: Path) -> None:
    everything = from_sequences([[0, 1, 2]] * 3, 3)
    with pytest.raises(InputError, match="every user has every item"):
        run(parse_config(config(everything, "poprec")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
