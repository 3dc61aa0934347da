"""What there is to know of a prepared data set before anything is trained on it."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts, lengths, ties, repeats, popularity, titles and pictures; plain values, ready for JSON.

    Ties matter because a tied last event is the test target by nothing but the order of a file; repeats because a
    target that was bought before can be found by copying; duplicate pictures or titles because they cannot be told
    apart; popularity because uniform negatives reward it.
    """
    users, items, events = len(dataset.user_ids), len(dataset.item_ids), dataset.interactions.height
    options = dataset.manifest["options"]
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "users": users,
        "items": items,
        "interactions": events,
        "density": events / (users * items),
        "events_per_user": _spread(np.array([len(own) for own in dataset.sequences])),
        "ties": _ties(dataset),
        "repeats": _repeats(dataset),
        "popularity": _popularity(dataset),
        "titles": _titles(dataset),
        "pictures": {
            "fit": options["picture_fit"],
            "size": options["picture_size"],
            **_pictures(dataset),
        },
        "options": {"require": options["require"], "k_core": options["k_core"]},
        "raw": dataset.manifest["raw"],
        "dropped": dataset.manifest["dropped"],
    }


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    names = [f"{quantile:.0%}" for quantile in QUANTILES]
    return {"mean": float(values.mean()), **dict(zip(names, np.quantile(values, QUANTILES).tolist(), strict=True))}


def _ties(dataset: Dataset) -> dict[str, float]:
    """Events that share their time with another of the same user, and users whose last event does."""
    same = pl.len().over("user_id", "timestamp") > 1
    tied = dataset.interactions.select("user_id", tied=same)
    last = tied.group_by("user_id").agg(pl.col("tied").last())
    return {
        "share_of_interactions": float(tied["tied"].mean()),  # type: ignore[arg-type]
        "users_whose_last_is_tied": int(last["tied"].sum()),
        "share_of_users_whose_last_is_tied": float(last["tied"].mean()),  # type: ignore[arg-type]
    }


def _repeats(dataset: Dataset) -> dict[str, float]:
    """Events whose item the user had before; test targets that were had before, and just before."""
    own = dataset.sequences
    repeated = sum(len(events) - len(np.unique(events)) for events in own)
    return {
        "share_of_interactions": repeated / dataset.interactions.height,
        "share_of_test_targets": float(np.mean([events[-1] in events[:-1] for events in own])),
        "share_of_test_targets_just_before": float(np.mean([events[-1] == events[-2] for events in own])),
    }


def _popularity(dataset: Dataset) -> dict[str, float]:
    """How unevenly training events fall on items: Gini (0 even, 1 all on one), and the share of the top ones."""
    counts = np.sort(Split(dataset).popularity)
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
    return {"missing": dataset.titles.count(""), "duplicate": _shared([title for title in dataset.titles if title])}


def _pictures(dataset: Dataset) -> dict[str, int]:
    """Kept items without a picture and why, items whose picture another has too, and what was dropped for it."""
    why: Counter[str] = Counter(dataset.manifest["dropped"]["picture"])
    gone: Counter[str] = Counter(dataset.manifest["dropped"]["item"])
    digests = [digest for digest in dataset.pictures.digests if digest is not None]
    return {
        "present": len(digests),
        "missing": why["no picture"] + why["picture missing"],
        "broken": why["picture broken"],
        "duplicate": _shared(digests),
        "items_dropped_missing": gone["no picture"] + gone["picture missing"],
        "items_dropped_broken": gone["picture broken"],
    }


def _shared(values: list[str]) -> int:
    return sum(count for count in Counter(values).values() if count > 1)
