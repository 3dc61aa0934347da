import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm2rec.data.preparing import kcore
from vlm2rec.data.preparing.kcore import copies, core, count

logs = st.lists(st.tuples(st.integers(-1, 14), st.integers(0, 11), st.integers(0, 2)), min_size=0, max_size=90)


@settings(max_examples=200, deadline=None)
@given(logs, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 5), st.randoms())
def test_core_is_the_largest_stable_part(rows, usable, k: int, lot) -> None:
    """Against removing one offender at a time, in any order; events of user -1 are not there."""
    user, item, _ = np.array(rows, np.int32).reshape(-1, 3).T
    users, items = set(range(15)), set(np.flatnonzero(usable))
    while True:
        alive = [(u, i) for u, i in zip(user, item, strict=True) if u in users and i in items]
        short = [u for u in users if sum(e[0] == u for e in alive) < max(k, 3)]
        rare = [i for i in items if sum(e[1] == i for e in alive) < k]
        if not short and not rare:
            break
        if short and (not rare or lot.random() < 0.5):
            users.remove(lot.choice(short))
        else:
            items.remove(lot.choice(rare))
    found = core(user, item, np.array(usable), 15, k)
    assert set(np.flatnonzero(found.users)) == users
    assert set(np.flatnonzero(found.items)) == items
    assert [(u, i) for u, i in zip(user[found.events], item[found.events], strict=True)] == alive


@settings(max_examples=100, deadline=None)
@given(logs, st.integers(1, 20))
def test_shards_and_blocks_change_nothing(rows, size: int) -> None:
    user, item, time = np.array(rows, np.int32).reshape(-1, 3).T
    seen: set[tuple[int, ...]] = set()
    expected = []
    for row in rows:
        expected.append(row in seen)
        seen.add(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kcore, "_SHARD", size)
        patch.setattr(kcore, "_BLOCK", size)
        assert copies(user, item, time).tolist() == expected
        assert count(item, 12).tolist() == np.bincount(item, minlength=12).tolist()
