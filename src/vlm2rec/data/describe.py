"""What there is to know of a prepared data set before anything is trained on it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import ITEMS, USERS, Dataset
from vlm2rec.data.holding import in_parts
from vlm2rec.data.pictures.store import read_index
from vlm2rec.data.preparing.stock import fault_of
from vlm2rec.data.preparing.times import Times
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.splits import Split
from vlm2rec.data.timeline import Timeline

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
TIE_RULE = "events of a user at the same time keep the order they have in the source; a target among them is the file's"
LEAKS = 0.01
"""Share of the training events, at the mean test target, from which on leave-one-out is said to leak."""


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts, lengths, times, ties, leaks, repeats, popularity, titles and pictures; plain values, ready for JSON.

    Ties matter because a tied last event is the test target by nothing but the order of a file; leaks because a model
    that has learned from the future is judged too well; repeats because a target that was bought before can be found
    by copying; duplicate pictures or titles because they cannot be told apart; popularity because uniform negatives
    reward it. It takes about 30 bytes of memory an event.
    """
    users, items, events = dataset.n_users, dataset.n_items, dataset.n_interactions
    options = dataset.manifest["options"]
    split, timeline = Split(dataset), Timeline.of(dataset)
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": users,
        "items": items,
        "interactions": events,
        "density": events / (users * items),
        "events_per_user": _spread(dataset.sequences.lengths),
        "times": _times(timeline),
        "ties": _ties(timeline.times, dataset.sequences),
        "leave_one_out": _leaks(split, timeline),
        "repeats": _repeats(dataset.sequences, items),
        "popularity": _popularity(split.popularity),
        "titles": _titles(dataset),
        "pictures": {
            "fit": options["picture_fit"],
            "size": options["picture_size"],
            **_pictures(dataset),
        },
        "options": {"require": options["require"], "k_core": options["k_core"]},
        "raw": dataset.manifest["raw"],
        "losses": dataset.manifest.get("losses"),  # none where another version prepared it
        "left_out": dataset.manifest.get("left_out", {}),
        "broken": dataset.manifest.get("broken", {}),
        "dropped": dataset.manifest["dropped"],
    }


def leak_warning(dataset: Dataset) -> str | None:
    """One line for the terminal where leave-one-out learns from the future, or where nobody can tell; else None."""
    timeline = Timeline.of(dataset)
    found = _leaks(Split(dataset), timeline)
    if not timeline.is_clock:
        return (
            "times are no more than each user's order: nobody can tell how far leave-one-out lets a model learn from"
            " what came later, and data.split.kind=time cannot be used"
        )
    if not found["leaks"]:
        return None
    return (
        "leave-one-out leaks: {mean:.0%} of the training events happen after the test target they help to find, on"
        " average over users (median {median:.0%}); data.split.kind=time avoids it"
    ).format(**found["training_events_later"])


def target_warnings(dataset: Dataset) -> list[str]:
    """A line each where test targets of leave-one-out repeat the event before them, or are tied with it in time."""
    times = Timeline.of(dataset).times
    last = dataset.sequences.starts + dataset.sequences.lengths - 1
    items = dataset.sequences.values
    found = {
        "are the item of the event just before, so whoever repeats the last item finds them": items[last]
        == items[last - 1],
        "have the same time as the event before, so the order of rows in the file decides which of the two is the"
        " target": times[last] == times[last - 1],
    }
    said = []
    for what, here in found.items():
        users = np.flatnonzero(here)
        if len(users):
            some = ", ".join(_user_ids(dataset, users[:2]))
            said.append(f"warning: {len(users):,} of {len(last):,} test targets (users {some}) {what}")
    return said


def _user_ids(dataset: Dataset, users: NDArray[np.int64]) -> list[str]:
    """Ids of a few users, without those of millions."""
    ids = pl.scan_parquet(dataset.path / USERS, glob=False).select("user_id")
    return [ids.slice(user, 1).collect().item() for user in users.tolist()]


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    names = [f"{quantile:.0%}" for quantile in QUANTILES]
    return {"mean": float(values.mean()), **dict(zip(names, np.quantile(values, QUANTILES).tolist(), strict=True))}


def _times(timeline: Timeline) -> dict[str, Any]:
    """From when to when, as dates where the unit is known; `clock`: whether users can be compared in time."""
    first, last = timeline.times.min().item(), timeline.times.max().item()
    return {
        "clock": timeline.is_clock,
        "unit": timeline.unit,
        "first": timeline.date(first) or first,
        "last": timeline.date(last) or last,
    }


def _ties(times: Times, sequences: Ragged) -> dict[str, Any]:
    """Events that share their time with another of the same user, targets that do, and the rule that decides then."""
    starts, ends = sequences.starts, sequences.starts + sequences.lengths
    same = times[1:] == times[:-1]
    same[starts[1:] - 1] = False  # of two users
    tied = np.zeros(len(times), bool)
    tied[1:] |= same
    tied[:-1] |= same
    return {
        "rule": TIE_RULE,
        "share_of_interactions": float(tied.mean()),
        "users_whose_last_is_tied": int(tied[ends - 1].sum()),
        "share_of_users_whose_last_is_tied": float(tied[ends - 1].mean()),
        "share_of_validation_targets": float(tied[ends - 2].mean()),
        "share_of_test_targets": float(tied[ends - 1].mean()),
    }


def _leaks(split: Split, timeline: Timeline) -> dict[str, Any]:
    """How much of training (all S[:-2]) is later than a test target, over users, where times can be compared.

    `targets_known_from_later_alone`: test targets whose item is in training events, none of which was before it.
    """
    if not timeline.is_clock:
        return {"leaks": None, "reason": "times are places in each user's own sequence"}
    sequences, times = split.dataset.sequences, timeline.times
    ends = sequences.starts + sequences.lengths
    asked, learned = times[ends - 1], np.ones(len(times), bool)
    learned[ends - 1] = learned[ends - 2] = False
    items, trained = sequences.values[learned], times[learned]
    first = np.full(split.n_items, times.max(), times.dtype)
    np.minimum.at(first, items, trained)
    targets = split.targets["test"]
    later_alone = (split.popularity[targets] > 0) & (first[targets] > asked)
    trained.sort()
    asked.sort()  # or each is looked for all over
    later = 1 - np.searchsorted(trained, asked, side="right") / len(trained)
    return {
        "leaks": bool(later.mean() > LEAKS),
        "training_events_later": {"mean": float(later.mean()), "median": float(np.median(later))},
        "targets_known_from_later_alone": float(later_alone.mean()),
    }


def _repeats(sequences: Ragged, n_items: int) -> dict[str, float]:
    """Events whose item the user had before; test targets that were had before, and just before."""
    repeated = before = 0
    for part in in_parts(sequences):
        row, item = part.rows(), part.flat()
        repeated += len(item) - _distinct(np.sort(row * n_items + item))
        ends = np.cumsum(part.lengths) - 1
        again = item == item[ends][row]
        again[ends] = False
        before += _distinct(row[again])
    last = sequences.values[sequences.starts + sequences.lengths - 1]
    previous = sequences.values[sequences.starts + sequences.lengths - 2]
    return {
        "share_of_interactions": repeated / len(sequences.values),
        "share_of_test_targets": before / len(sequences),
        "share_of_test_targets_just_before": float((last == previous).mean()),
    }


def _distinct(ascending: NDArray[np.int64]) -> int:
    return int((ascending[1:] != ascending[:-1]).sum()) + (len(ascending) > 0)


def _popularity(popularity: NDArray[np.int64]) -> dict[str, float]:
    """How unevenly training events fall on items: Gini (0 even, 1 all on one), and the share of the top ones."""
    counts = np.sort(popularity)
    n, total = len(counts), int(counts.sum())
    rank = np.arange(1, n + 1)

    def top(share: float) -> float:
        return float(counts[-max(1, round(n * share)) :].sum() / total)

    return {
        "gini": float(2 * (rank * counts).sum() / (n * total) - (n + 1) / n),
        "share_of_top_1%": top(0.01),
        "share_of_top_10%": top(0.1),
        "items_without_training_events": int((counts == 0).sum()),
    }


def _titles(dataset: Dataset) -> dict[str, int]:
    """Missing titles, and items that share theirs with another."""
    titles = pl.read_parquet(dataset.path / ITEMS, columns=["title"], glob=False)["title"]
    return {"missing": int((titles == "").sum()), "duplicate": _shared(titles.filter(titles != ""))}


def _pictures(dataset: Dataset) -> dict[str, int]:
    """Kept items without a picture and why, items whose picture another has too, and what was dropped for it."""
    why, gone = (_by_fault(dataset.manifest["dropped"][kind]) for kind in ("picture", "item"))
    digests = read_index(dataset.path, ("digest",))["digest"].drop_nulls()
    return {
        "present": len(digests),
        "missing": why["missing"],
        "broken": why["broken"],
        "placeholders": why["placeholders"],
        "duplicate": _shared(digests),
        **{f"items_dropped_{fault}": gone[fault] for fault in ("missing", "broken", "placeholders")},
    }


def _by_fault(reasons: Mapping[str, int]) -> Counter[str]:
    """How many pictures were missing (not fetched among them), broken, or placeholders."""
    found: Counter[str] = Counter()
    for reason, count in reasons.items():
        if fault := fault_of(reason):
            found[fault] += count
    return found


def _shared(values: pl.Series) -> int:
    return int(values.is_duplicated().sum())
