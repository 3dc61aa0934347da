"""Batches: what is asked in training, and of whom. Held against loops over the rules."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from vlm2rec.config import TrainingConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split, sample_users
from vlm2rec.errors import InputError
from vlm2rec.training import batches
from vlm2rec.training.batches import Batch, Samples, shuffled, window_of, windows


def samples(split: Split, seed: int = 0, **settings: object) -> Samples:
    return Samples(split, TrainingConfig.model_validate({"batch_size": 8, **settings}), seed)


@pytest.fixture(scope="module")
def split(tiny_dataset: Dataset) -> Split:
    return Split(tiny_dataset, max_history=4)


@pytest.fixture
def marked(from_sequences: Callable[..., Dataset]) -> Split:
    """Every user buys items of their own, so an item says who and when: user u's event p is item 20 u + p.

    Repeats are set by hand. The last two events of a user are bought by nobody else.
    """
    lengths = [3, 4, 5, 9, 15, 6, 6, 7, 12, 8]
    sequences = [[20 * user + p for p in range(length)] for user, length in enumerate(lengths)]
    sequences[3][2] = sequences[3][0]  # bought twice
    sequences[4][6] = sequences[4][11] = sequences[3][5]  # twice, and another's item
    sequences[5][3] = sequences[6][3]  # the same next item for two users
    return Split(from_sequences(sequences, 200), max_history=4)


@pytest.mark.parametrize("settings", [{}, {"samples": "all"}, {"samples": "all", "samples_per_user": 2}, {"users": 5}])
def test_a_batch_is_a_function_of_seed_and_step(split: Split, settings: dict[str, object]) -> None:
    """Asked in any order, again, or of a fresh object."""
    one = samples(split, **settings)
    steps = list(range(3 * one.steps_per_epoch))
    first = [one.batch(k) for k in steps]
    other = samples(split, **settings)
    for k in np.random.default_rng(0).permutation(steps):
        again = other.batch(int(k))
        assert (again.histories, again.targets) == (first[k].histories, first[k].targets)
        np.testing.assert_array_equal(again.positive, first[k].positive)
        np.testing.assert_array_equal(again.negatives, first[k].negatives)
    different = samples(split, seed=1, **settings)
    assert any(different.batch(k).histories != first[k].histories for k in steps)
    assert first[0].histories != first[one.steps_per_epoch].histories, "epochs have the same order"


def _owner(history: list[int]) -> int:
    """Of `marked`: whose items most of a history are."""
    return Counter(item // 20 for item in history).most_common(1)[0][0]


def test_negatives_against_a_loop(marked: Split) -> None:
    drawn = samples(marked, samples="all")
    shared_targets = 0
    for k in range(2 * drawn.steps_per_epoch):
        batch = drawn.batch(k)
        assert len(set(batch.targets)) == len(batch.targets)
        shared_targets += len(batch.targets) < len(batch.histories)
        assert batch.negatives.shape == (len(batch.histories), len(batch.targets))
        assert batch.negatives.dtype == bool
        for i, history in enumerate(batch.histories):
            trained = marked.dataset.sequences[_owner(history)][:-2].tolist()
            assert batch.targets[batch.positive[i]] in trained
            for j, item in enumerate(batch.targets):
                assert batch.negatives[i, j] == (item not in trained)
    assert shared_targets, "no batch had two users with the same target"


@pytest.mark.parametrize("mode", ["last", "all"])
def test_samples_are_cut_from_the_training_events_only(marked: Split, mode: str) -> None:
    drawn = samples(marked, samples=mode, batch_size=2)
    held_out = {int(item) for events in marked.dataset.sequences for item in events[-2:]}
    found = set()
    for k in range(drawn.steps_per_epoch * 3):  # the order changes from epoch to epoch, and so does the remainder
        batch = drawn.batch(k)
        found |= {(tuple(h), batch.targets[p]) for h, p in zip(batch.histories, batch.positive, strict=True)}
    expected = set()
    for events in marked.dataset.sequences:
        trained = [int(item) for item in events[:-2]]
        positions = range(1, len(trained)) if mode == "all" else range(len(trained) - 1, len(trained))
        expected |= {(tuple(trained[max(0, p - 4) : p]), trained[p]) for p in positions if p >= 1}
    assert found <= expected and len(found) >= len(expected) - 1
    assert not held_out & {item for history, target in found for item in (*history, target)}


def test_what_was_held_out_changes_nothing(from_sequences: Callable[..., Dataset]) -> None:
    """S[-2] and S[-1] could hold anything: the same batches, masks too."""
    rng = np.random.default_rng(3)
    trained = [rng.integers(0, 20, rng.integers(2, 9)).tolist() for _ in range(12)]
    ends = [[[0, 1]] * 12, [rng.integers(0, 20, 2).tolist() for _ in range(12)]]
    # A user who buys everything keeps the catalogues equal.
    both = [
        samples(Split(from_sequences([[*t, *e] for t, e in zip(trained, end, strict=True)] + [list(range(20))], 20, n)))
        for n, end in zip("ab", ends, strict=True)
    ]
    for k in range(2 * both[0].steps_per_epoch):
        one, other = (drawn.batch(k) for drawn in both)
        assert (one.histories, one.targets) == (other.histories, other.targets)
        np.testing.assert_array_equal(one.negatives, other.negatives)


def test_users_without_two_events_to_train_on_are_left_out(marked: Split) -> None:
    assert samples(marked).users.tolist() == list(range(1, 10))  # user 0 has three events in all


def test_nobody_to_train_on(from_sequences: Callable[..., Dataset]) -> None:
    with pytest.raises(InputError, match="no user has two events") as caught:
        samples(Split(from_sequences([[0, 1, 2], [2, 1, 0]], 3)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{}, {"samples": "all"}, {"samples": "all", "samples_per_user": 3}, {"samples": "all", "users": 7}]
)
def test_an_epoch_holds_each_sample_once_but_the_remainder(marked: Split, settings: dict[str, object]) -> None:
    drawn = samples(marked, **settings)
    epochs = []
    for epoch in range(4):
        seen: list[tuple[tuple[int, ...], int]] = []
        for k in range(epoch * drawn.steps_per_epoch, (epoch + 1) * drawn.steps_per_epoch):
            batch = drawn.batch(k)
            seen += [(tuple(h), batch.targets[p]) for h, p in zip(batch.histories, batch.positive, strict=True)]
        assert len(seen) == drawn.steps_per_epoch * 8 or drawn.steps_per_epoch == 1
        assert len(drawn) - len(seen) < 8
        repeated = [count for count in Counter(seen).values() if count > 1]
        assert not repeated
        epochs.append(set(seen))
    assert len(set.union(*epochs)) > len(epochs[0]) or len(drawn) == len(epochs[0])


def test_samples_per_user(marked: Split) -> None:
    drawn = samples(marked, samples="all", samples_per_user=3, batch_size=2)
    assert len(drawn) == sum(min(3, len(events) - 1) for events in marked.train if len(events) >= 2)
    owners: Counter[int] = Counter()
    for k in range(drawn.steps_per_epoch):
        owners.update(_owner(history) for history in drawn.batch(k).histories)
    assert max(owners.values()) <= 3
    assert len(samples(marked, samples="last", samples_per_user=3)) == 9


def test_fewer_samples_than_a_batch_make_one_smaller_batch(marked: Split) -> None:
    drawn = samples(marked, batch_size=64)
    assert drawn.steps_per_epoch == 1
    assert len(drawn.batch(0).histories) == len(drawn.batch(1).histories) == 9


@pytest.mark.parametrize("seed", range(3))
def test_few_shot_users_are_nested(split: Split, seed: int) -> None:
    chosen = [set(samples(split, seed=seed, users=count).users.tolist()) for count in (3, 8, 20)]
    assert [len(users) for users in chosen] == [3, 8, 20]
    assert chosen[0] < chosen[1] < chosen[2]
    assert set(samples(split, seed=seed + 1, users=20).users.tolist()) != chosen[2]
    assert len(samples(split, seed=seed, users=10_000).users) == split.n_users


def test_few_shot_batches_hold_those_users_only(marked: Split) -> None:
    drawn = samples(marked, users=4, samples="all", batch_size=2)
    owners = {_owner(h) for k in range(drawn.steps_per_epoch * 3) for h in drawn.batch(k).histories}
    assert owners == set(drawn.users.tolist())


def windows_by_a_loop(length: int, width: int) -> list[tuple[int, int, int]]:
    """First item, first and last target of each window of a sequence."""
    done = min(width, length - 1)
    found = [(0, 1, done)]
    while done < length - 1:
        new = min(max(1, width // 2), length - 1 - done)
        found.append((done + new - width, done + 1, done + new))
        done += new
    return found


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 10])
def test_windows_by_a_loop(width: int) -> None:
    for length in range(2, 40):
        expected = windows_by_a_loop(length, width)
        number = np.arange(int(window_of(np.array(length - 1), width)) + 1)
        assert (
            list(zip(*(part.tolist() for part in windows(np.array(length - 1), width, number)), strict=True))
            == expected
        )
        of = [k for k, (_, earliest, last) in enumerate(expected) for _ in range(earliest, last + 1)]
        assert window_of(np.arange(1, length), width).tolist() == of


def epoch_by_loops(split: Split, settings: TrainingConfig, seed: int, epoch: int) -> np.ndarray:
    """User, first item of the history and position of all samples of an epoch in their order, `(n, 3)`."""
    able = np.array([user for user in range(split.n_users) if len(split.train[user]) >= 2])
    users = able[sample_users(len(able), settings.users, seed, "training")]
    rng, width, branched = np.random.default_rng([seed, epoch]), split.max_history, settings.prefixes == "branched"
    rows = []
    for user in users.tolist():
        length = len(split.train[user])
        most = settings.samples_per_user or length
        if settings.samples == "last":
            positions = np.array([length - 1])
        elif most >= length - 1:
            positions = np.arange(1, length)
        else:
            positions = 1 + rng.choice(length - 1, size=most, replace=False)
        for p in positions.tolist():
            within = [first for first, earliest, last in windows_by_a_loop(length, width) if earliest <= p <= last]
            rows.append((user, within[0] if branched else max(0, p - width), p))
    table = np.array(rows)
    if not branched:
        return rng.permutation(table)
    kinds, window = np.unique(table[:, :2], axis=0, return_inverse=True)
    lot = rng.permutation(len(kinds))
    return table[np.lexsort((table[:, 2], lot[window.reshape(-1)]))]


def batches_by_loops(split: Split, settings: TrainingConfig, seed: int, epoch: int) -> Iterator[Batch]:
    rows = epoch_by_loops(split, settings, seed, epoch)
    for start in range(0, max(1, len(rows) - settings.batch_size + 1), settings.batch_size):
        histories, targets, bought = [], [], []
        for user, first, position in rows[start : start + settings.batch_size].tolist():
            sequence = split.train[user].tolist()
            histories.append(sequence[first:position])
            targets.append(sequence[position])
            bought.append(set(sequence))
        distinct = list(dict.fromkeys(targets))
        negatives = np.array([[item not in own for item in distinct] for own in bought])
        yield Batch(histories, distinct, np.array([distinct.index(item) for item in targets]), negatives)


@pytest.mark.parametrize("users", [None, 7])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"samples": "all"},
        {"samples": "all", "samples_per_user": 3},
        {"samples": "all", "prefixes": "branched"},
        {"samples": "all", "prefixes": "branched", "samples_per_user": 3},
    ],
)
def test_batches_by_loops(
    marked: Split, settings: dict[str, object], width: int, users: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in every batch of some epochs: results of earlier runs rest on them."""
    monkeypatch.setattr(batches, "_AT_ONCE", 5)
    split = Split(marked.dataset, width)
    given = TrainingConfig.model_validate({"batch_size": 8, "users": users, **settings})
    drawn = Samples(split, given, 3)
    for epoch in (2, 0):
        expected = list(batches_by_loops(split, given, 3, epoch))
        assert len(expected) == drawn.steps_per_epoch
        for place, wanted in enumerate(expected):
            batch = drawn.batch(epoch * len(expected) + place)
            assert (batch.histories, batch.targets) == (wanted.histories, wanted.targets)
            np.testing.assert_array_equal(batch.positive, wanted.positive)
            np.testing.assert_array_equal(batch.negatives, wanted.negatives)
            assert batch.positive.dtype == np.int64 and batch.negatives.dtype == bool


def test_four_bytes_a_number_are_shuffled_as_eight() -> None:
    for count in (1, 2, 17, 70_000):
        order = shuffled(count, np.random.default_rng([4, count]))
        assert order.dtype == np.int32
        np.testing.assert_array_equal(order, np.random.default_rng([4, count]).permutation(count))
        rows = np.stack([np.arange(count)] * 3, axis=1)
        np.testing.assert_array_equal(np.random.default_rng([4, count]).permutation(rows)[:, 1], order)
