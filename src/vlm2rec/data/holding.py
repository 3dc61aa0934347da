"""Which events are held out, by their place, their time or their item; `vlm2rec.data.splits` says what that means.

Users are never gone through one by one: what is needed of an event is a mask over all of them, one byte each.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.config import ColdItems, LeaveOneOut, SplitConfig, TimeSplit
from vlm2rec.data.dataset import ITEMS, Dataset
from vlm2rec.data.ragged import Ragged
from vlm2rec.data.sampling import sample_users
from vlm2rec.data.timeline import Timeline
from vlm2rec.errors import InputError

Which = Literal["validation", "test"]
BOTH: tuple[Which, Which] = ("validation", "test")
DOMAIN = "domain"
"""The column of items that says which of several data sets an item comes from."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """Arrays of a split; see `vlm2rec.data.splits.Split`. `train`: how many of each user's events are learned from."""

    events: Ragged
    train: Ints
    ends: dict[Which, Ints]
    targets: dict[Which, NDArray[np.int32]]
    facts: dict[str, Any] = field(default_factory=dict)
    matched: dict[Which, Ints] = field(default_factory=dict)


def hold_out(dataset: Dataset, how: SplitConfig) -> Held:
    """Take out what `how` says. Raises InputError where the data set has not what that needs."""
    match how:
        case LeaveOneOut(domain=None):
            return _leave_one_out(dataset.sequences)
        case LeaveOneOut():
            return _in_domain(dataset, how)
        case TimeSplit():
            return _by_time(dataset, how)
        case ColdItems():
            return _cold_items(dataset, how)


def _held(sequences: Ragged, train: Ints, ends: dict[Which, Ints], **facts: Any) -> Held:
    """Targets are events of `sequences`: each one right behind its past, whose length is `ends`; below 1: none."""
    targets: dict[Which, NDArray[np.int32]] = {}
    for which, end in ends.items():
        found = np.full(len(end), -1, np.int32)
        there = end > 0
        found[there] = sequences.values[(sequences.starts + end)[there]]
        targets[which] = found
    return Held(sequences, train, {which: np.maximum(end, 0) for which, end in ends.items()}, targets, facts)


def _leave_one_out(sequences: Ragged) -> Held:
    lengths = sequences.lengths
    return _held(sequences, lengths - 2, {"validation": lengths - 2, "test": lengths - 1})


def _in_domain(dataset: Dataset, how: LeaveOneOut) -> Held:
    sequences, starts = dataset.sequences, _starts(dataset.sequences)
    places, counts = _places(_items_of(dataset, str(how.domain))[sequences.flat()], starts)
    last = np.cumsum(counts) - 1  # among `places`
    two = np.flatnonzero(counts >= 2)
    two = two[places[last[two] - 1] > starts[two]]
    ends: dict[Which, Ints] = {which: np.zeros(len(sequences), np.int64) for which in BOTH}
    for back, which in enumerate(reversed(BOTH)):
        ends[which][two] = places[last[two] - back] - starts[two]
    train = sequences.lengths.copy()
    train[two] = ends["validation"][two]
    return _held(sequences, train, ends)


def _items_of(dataset: Dataset, domain: str) -> NDArray[np.bool_]:
    """Which items are of a domain, `(n_items,)`."""
    where = dataset.path / ITEMS
    if DOMAIN not in pl.scan_parquet(where, glob=False).collect_schema():
        raise InputError(f"{where}: has no column {DOMAIN}, as a pair of data sets has; leave data.split.domain out")
    column = pl.read_parquet(where, columns=[DOMAIN], glob=False)[DOMAIN]
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum) and not column.dtype.is_integer():
        raise InputError(
            f"{where}: column {DOMAIN} holds {column.dtype}, no names of domains; leave data.split.domain out"
        )
    column = column.cast(pl.String)
    names = column.unique(maintain_order=True).drop_nulls().to_list()
    if domain not in names:
        near = difflib.get_close_matches(domain, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:8])}"
        raise InputError(f"{where}: no item is of data.split.domain = {domain!r}; {hint}")
    return (column == domain).fill_null(False).to_numpy()


def _by_time(dataset: Dataset, how: TimeSplit) -> Held:
    sequences, timeline = dataset.sequences, Timeline.of(dataset)
    _need_clock(dataset, timeline, "data.split.kind=time")
    cuts = _cuts(timeline, how, f"{dataset.path}: data.split")
    counts = [_per_user(timeline.times < cut, _starts(sequences)) for cut in cuts]  # ascending, so these come first
    counts.append(sequences.lengths)
    ends: dict[Which, Ints] = {}
    for which, start, stop in zip(BOTH, counts, counts[1:], strict=False):
        ends[which] = np.where(stop > start, start if how.target == "first" else stop - 1, 0)
    dates = {which: timeline.date(cut) or cut for which, cut in zip(BOTH, cuts, strict=True)}
    return _held(sequences, counts[0], ends, cut_offs=dates)


def _cuts(timeline: Timeline, how: TimeSplit, where: str) -> tuple[float, float]:
    """The two cut-offs, in the unit of the times. A share is counted back from the end, or from the second cut-off.

    A time that several events have is cut before, so a share may come out larger than asked.
    """
    times = timeline.times

    def cut(name: str, given: float | str, left: int) -> float:
        if isinstance(given, str):
            try:
                return timeline.at(given)
            except ValueError as error:
                raise InputError(f"{where}.{name} = {given!r}: {error}; give a share or a number") from None
        if given >= 1:
            return given
        place = left - round(len(times) * given)
        if place < 1:
            raise InputError(f"{where}.{name} = {given}: no event is before that; hold out less")
        found: float = np.partition(times, place)[place].item()
        return found

    test = cut("test", how.test, len(times))
    left = int((times < test).sum())
    if not left:
        raise InputError(f"{where}.test = {how.test}: no event is before that; hold out less")
    validation = cut("validation", how.validation, left)
    if validation >= test:
        raise InputError(f"{where}.validation = {how.validation}: is not before data.split.test = {how.test}")
    return validation, test


def _cold_items(dataset: Dataset, how: ColdItems) -> Held:
    sequences, starts = dataset.sequences, _starts(dataset.sequences)
    flat = sequences.flat()
    popularity = counts_of(sequences, dataset.n_items)
    part = _parts(dataset, how, np.flatnonzero(popularity))
    own = part[flat]
    warm = own == 0
    lengths = train = _per_user(warm, starts)
    ends: dict[Which, Ints] = {}
    targets: dict[Which, NDArray[np.int32]] = {}
    matched: dict[Which, Ints] = {}
    sizes: dict[Which, int] = {}
    for number, which in enumerate(BOTH, start=1):
        places, counts = _places(own == number, starts)
        asked = np.flatnonzero(counts)
        last = places[np.cumsum(counts)[asked] - 1]
        # From each user's start to the target, and on to the next user's: every other sum is what is wanted. A target
        # at the start has an empty stretch before it, for which `reduceat` gives the target's own 0.
        before = _per_user(warm, np.stack([starts[asked], last], axis=1).ravel())[::2] if len(asked) else last
        asked, last, before = asked[before > 0], last[before > 0], before[before > 0]
        ends[which], targets[which] = np.zeros(len(lengths), np.int64), np.full(len(lengths), -1, np.int32)
        ends[which][asked], targets[which][asked] = before, flat[last]
        train = np.where(targets[which] >= 0, np.minimum(train, ends[which]), train)
        matched[which], sizes[which] = popularity * (part == number), int((part == number).sum())
    return Held(Ragged.end_to_end(flat[warm], lengths), train, ends, targets, {"held_out": sizes}, matched)


def _parts(dataset: Dataset, how: ColdItems, having: Ints) -> NDArray[np.int8]:
    """0 for each item that stays, 1 where it is held out for validation, 2 for test; `having` are those with events."""
    validation, test = (round(share * len(having)) for share in (how.validation, how.test))
    part = np.zeros(dataset.n_items, np.int8)
    if how.items == "random":
        tested = sample_users(len(having), test, how.seed, "cold items, test") if test else having[:0]
        left = np.delete(having, tested)
        part[having[tested]] = 2
        if validation:
            part[left[sample_users(len(left), validation, how.seed, "cold items, validation")]] = 1
        return part
    timeline = Timeline.of(dataset)
    _need_clock(dataset, timeline, "data.split.items=newest")
    first = np.full(dataset.n_items, timeline.times.max(), timeline.times.dtype)
    np.minimum.at(first, dataset.sequences.flat(), timeline.times)
    newest = having[np.argsort(first[having], kind="stable")][::-1]
    part[newest[:test]], part[newest[test : test + validation]] = 2, 1
    return part


def _need_clock(dataset: Dataset, timeline: Timeline, asked: str) -> None:
    if not timeline.is_clock:
        raise InputError(
            f"{dataset.path}: {asked} needs clock times, and those here are places in each user's own sequence; bring"
            " a log with times, or set data.split.kind=leave_one_out"
        )


def in_parts(rows: Ragged, size: int = 1 << 22) -> Iterator[Ragged]:
    """Runs of whole rows with about `size` numbers each: what is done to all of them need not be done at once."""
    bounds = np.searchsorted(rows.starts, np.arange(0, len(rows.values) + size, size))
    bounds[-1] = len(rows)
    for start, stop in pairwise(np.unique(bounds).tolist()):
        yield rows[start:stop]


def counts_of(rows: Ragged, n_items: int) -> Ints:
    """How often each item is in the rows, `(n_items,)`."""
    counts = np.zeros(n_items, np.int64)
    for part in in_parts(rows):
        counts += np.bincount(part.flat(), minlength=n_items)
    return counts


def _starts(sequences: Ragged) -> Ints:
    """Where each user begins in `flat`, `(n_users,)`."""
    return np.cumsum(sequences.lengths) - sequences.lengths


def _per_user(mask: NDArray[np.bool_], starts: Ints) -> Ints:
    """How many of each user's events, which are never none, are in a mask over all of them, `(n_users,)`."""
    counted: Ints = np.add.reduceat(mask, starts, dtype=np.int64)
    return counted


def _places(mask: NDArray[np.bool_], starts: Ints) -> tuple[Ints, Ints]:
    """The events of a mask, ascending, and how many of them each user has, `(n_users,)`."""
    return np.flatnonzero(mask), _per_user(mask, starts)
