import numpy as np
import pytest

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split, sample_users


def test_leave_one_out_by_hand(from_sequences) -> None:
    split = Split(from_sequences([[0, 1, 2, 3, 4], [4, 4, 0], [2, 1, 2, 1]], n_items=6), max_history=2)
    assert [own.tolist() for own in split.train] == [[0, 1, 2], [4], [2, 1]]
    assert split.history(0, "validation").tolist() == [1, 2]
    assert split.target(0, "validation") == 3
    assert split.history(0, "test").tolist() == [2, 3]
    assert split.target(0, "test") == 4
    assert split.history(1, "validation").tolist() == [4]
    assert split.history(1, "test").tolist() == [4, 4]
    assert split.seen(2).tolist() == [1, 2]
    assert split.popularity.tolist() == [1, 2, 2, 0, 1, 0]
    assert (split.n_users, split.n_items) == (3, 6)


def test_histories_are_cut_and_never_hold_the_future(tiny_dataset: Dataset) -> None:
    split = Split(tiny_dataset, max_history=4)
    for user, events in enumerate(tiny_dataset.sequences):
        for which, ahead in (("validation", 2), ("test", 1)):
            history = split.history(user, which)
            assert len(history) == min(4, len(events) - ahead)
            assert [*history, split.target(user, which)] == events[len(events) - ahead - len(history) :][
                : len(history) + 1
            ].tolist()
    assert split.popularity.sum() == sum(len(own) - 2 for own in tiny_dataset.sequences)
    with pytest.raises(ValueError, match="max_history"):
        Split(tiny_dataset, max_history=0)


def test_sample_users_is_pure_nested_and_fair() -> None:
    small, big = sample_users(1000, 64, 3, "training"), sample_users(1000, 128, 3, "training")
    assert np.array_equal(small, sample_users(1000, 64, 3, "training"))
    assert set(small) < set(big)
    assert len(np.unique(big)) == 128
    assert (np.diff(big) > 0).all()
    assert not np.array_equal(small, sample_users(1000, 64, 4, "training"))
    assert not np.array_equal(small, sample_users(1000, 64, 3, "evaluation"))
    assert sample_users(5, None, 0, "x").tolist() == sample_users(5, 9, 0, "x").tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="count"):
        sample_users(5, 0, 0, "x")
    times = np.bincount(np.concatenate([sample_users(20, 5, seed, "x") for seed in range(2000)]), minlength=20)
    assert np.abs(times - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_sample_users_never_changes() -> None:
    """Results of old runs rest on it: a new version of NumPy or of this package must draw the same users."""
    assert sample_users(100, 6, 0, "evaluation").tolist() == [14, 41, 50, 57, 69, 80]
