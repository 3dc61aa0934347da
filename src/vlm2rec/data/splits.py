"""What of each user's events is learned from, and what is asked at validation and at test.

Leave-one-out, the default, is the paper's (Sec. 5.1.1). It lets a model learn from what others did after the moment it
is asked about, which can change who wins (Meng et al., RecSys 2020; Ji et al., TOIS 2023). A split by time does not.
Most leave open which of a user's events behind the cut-off is to be found; Gusak et al. (RecSys 2025), who compare
several, propose the last or a random one, so it is the last here unless `first` is asked for. Cold items ask for what
nobody has been seen with.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm2rec.config import LeaveOneOut, SplitConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.holding import BOTH, Ints, Which, counts_of, hold_out
from vlm2rec.data.sampling import sample_users
from vlm2rec.errors import InputError

__all__ = ["BOTH", "Split", "Which", "sample_users", "split_of"]


class Split:
    """A data set split as `how` says; histories keep their last `max_history` events.

    `leave_one_out`: of a user's events S, train on S[:-2], validate S[:-2] -> S[-2], test S[:-1] -> S[-1]. With a
    `domain`, the targets are the user's last two events in it, what is before a target (of any domain) is its past,
    and training ends before the first of the two. Users without two such events, or with nothing before them, have
    no target, and all their events are learned from.

    `time`: training is everybody's events before the first cut-off. The validation target is the user's last (or
    first) event from the first cut-off on and before the second, the test target that from the second on. Events at
    one time are all on one side. A target's past is all that the user did before it, also behind a cut-off: that is
    known when it is asked, and never learned from.

    `cold_items`: some items are held out for validation and some for test. Their events are in nobody's training and
    in nobody's past. A user's target is the last event with an item of that part; training ends before the earlier
    of the user's targets. Others' events may be later: this is no split by time. `full_unseen` does not
    leave out other held-out items that the user had, which are in no past.

    A target without anything before it is none. It takes about 40 bytes a user, and 4 bytes an event for
    `cold_items`; `time` reads 8 bytes an event and lets go of them.

    Attributes:
        dataset: what is split.
        max_history: events a history keeps.
        how: kind and options.
        events: of each user, those that can be seen: all, or those of items that are not held out.
        train: what is learned from, a beginning of each user's `events`, uncut.
        popularity: `(n_items,)` int64, events of each item in training.
        ends: how many of a user's `events` are before the target, `(n_users,)` int64; 0 where there is none.
        targets: item index to find, `(n_users,)` int32; -1 where there is none.
    """

    def __init__(self, dataset: Dataset, max_history: int = 10, how: SplitConfig | None = None) -> None:
        """Split; None is leave-one-out.

        Raises:
            InputError: the data set has not what the split needs, or nobody would be left to train or ask.
        """
        if max_history < 1:
            raise ValueError(f"max_history = {max_history}; a history has at least one event")
        self.dataset = dataset
        self.max_history = max_history
        self.how: SplitConfig = how or LeaveOneOut()
        held = hold_out(dataset, self.how)
        self.events, self.ends, self.targets = held.events, held.ends, held.targets
        self.train = held.events.heads(held.train)
        self.popularity = counts_of(self.train, self.n_items)
        self._held = held
        self._fingerprint = ""
        if self.how != LeaveOneOut():
            self._refuse_empty()

    @property
    def fingerprint(self) -> str:
        """What candidates and runs are tied to: that of the data where the split is plain leave-one-out."""
        if self.how == LeaveOneOut():
            return self.dataset.fingerprint
        if not self._fingerprint:
            content = blake2b(digest_size=16)
            options = self.how.model_dump(mode="json", exclude_none=True)
            content.update(json.dumps([self.dataset.fingerprint, options], sort_keys=True).encode())
            content.update(self.train.lengths.astype("<i8").tobytes())
            for which in BOTH:
                content.update(self.ends[which].astype("<i8").tobytes())
                content.update(self.targets[which].astype("<i4").tobytes())
            self._fingerprint = content.hexdigest()
        return self._fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """What a run's manifest and results keep of it; plain values."""
        options = self.how.model_dump(mode="json", exclude_none=True)
        users = {which: len(self.able(which)) for which in BOTH}
        return {**options, "fingerprint": self.fingerprint, "users": users, **self._held.facts}

    @property
    def n_users(self) -> int:
        """Users in the data set; each has at least three events."""
        return len(self.dataset.sequences)

    @property
    def n_items(self) -> int:
        """Items in the catalogue."""
        return self.dataset.n_items

    def able(self, which: Which) -> Ints:
        """The users that have a target, and so a history, ascending."""
        return np.flatnonzero(self.targets[which] >= 0)

    def sample(self, which: Which, count: int | None, seed: int, purpose: str) -> Ints:
        """Draw of the users that have a target, as `sample_users` does."""
        able = self.able(which)
        return able[sample_users(len(able), count, seed, purpose)]

    def past(self, user: int, which: Which) -> NDArray[np.int32]:
        """All item indices before the target, oldest first; none where there is no target."""
        return self.events[user][: self.ends[which][user]]

    def history(self, user: int, which: Which) -> NDArray[np.int32]:
        """The last `max_history` item indices before the target, oldest first."""
        return self.past(user, which)[-self.max_history :]

    def target(self, user: int, which: Which) -> int:
        """The item index to find. Raises ValueError where the user has none."""
        return int(self.targets_of(np.array([user]), which)[0])

    def targets_of(self, users: NDArray[np.integer], which: Which) -> Ints:
        """The item indices to find, `(len(users),)`. Raises ValueError where a user has none."""
        found: Ints = self.targets[which][users].astype(np.int64)
        if (found < 0).any():
            raise ValueError(f"user {users[found < 0][0]} has no {which} target; ask `able` who has")
        return found

    def seen(self, user: int) -> NDArray[np.int32]:
        """All items of the user's whole sequence, targets and held-out items too, ascending and once each."""
        return np.unique(self.dataset.sequences[user])

    def matched(self, which: Which) -> Ints:
        """How likely each item is to be drawn where negatives are to be as popular as targets, `(n_items,)`.

        That is its events in training. Targets of `cold_items` have none, and among items that have some they would
        be the only such; there it is all events of the items held out for `which`, and 0 for the others.
        """
        return self._held.matched.get(which, self.popularity)

    def _refuse_empty(self) -> None:
        where, said = self.dataset.path, f"data.split.kind={self.how.kind}"
        if not self.train.lengths.any():
            raise InputError(f"{where}: {said} leaves no event to train on; hold out less")
        for which in BOTH:
            if not len(self.able(which)):
                raise InputError(f"{where}: {said} leaves nobody with a {which} target; hold out other or more events")


def split_of(data: Mapping[str, Any]) -> str:
    """Fingerprint of the split that a run was made with, from `data` of its manifest.

    Runs from before there were several have that of the data, as leave-one-out has.
    """
    return str(data.get("split", data)["fingerprint"])
