"""What can be run on a machine without a GPU, and about how long it takes on a data set.

Hours are sizes times rates that were measured on two CPU cores (docs/performance.md for smol and pictures, the README's
real data for SASRec): a guess to plan by. `experiment run … --plan` counts operations instead, for any configuration.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlm2rec.data.splits import Split
from vlm2rec.grid import Grid

SMOL_ITEMS, SMOL_USERS, SMOL_TARGETS = 5.3, 0.8, 0.57
"""A second: items and histories of ten embedded, training samples of VLM2Rec."""
PICTURES, TITLES = 23.0, 200.0
"""A second: EfficientNet-Lite0 and MiniLM."""
KNN_USERS = 2000.0
"""A second, ranked against everything by item-kNN."""
SASREC_EVENTS, SASREC_LOGITS = 660.0, 1.1e7
"""A second, of a whole fit with its early stopping: training events, and events times items of the softmax."""

FEW_SHOT, EPOCHS, TESTED = 1024, 3, 500
"""What the smol row supposes: shoppers trained on, epochs, shoppers tested."""


@dataclass(frozen=True)
class Alternative:
    """Something to run, how it is asked for, and about how many hours it takes."""

    name: str
    how: str
    hours: float


def alternatives(split: Split) -> Iterator[Alternative]:
    """From what needs nothing to what needs the most time."""
    users, items = split.n_users, split.n_items
    events = int(np.sum(split.train.lengths))
    pictures = sum(1 for digest in split.dataset.pictures.digests if digest)
    yield Alternative("item-kNN", "method.kind=itemknn", _hours(users / KNN_USERS))
    sasrec = events / SASREC_EVENTS + events * items / SASREC_LOGITS
    yield Alternative("SASRec, item ids", "method.kind=sasrec", _hours(sasrec))
    if pictures:
        kind = "method.kind=pair, from `vlm2rec backbone minilm` and `… efficientnet`"
        yield Alternative("MiniLM + EfficientNet", kind, _hours(items / TITLES + pictures / PICTURES))
    else:
        yield Alternative("MiniLM", "method.kind=bert, from `vlm2rec backbone minilm`", _hours(items / TITLES))
    tested, trained = min(TESTED, users), min(FEW_SHOT, users)
    looks = 2 + EPOCHS  # before, after, and a validation an epoch
    smol = looks * (items / SMOL_ITEMS + tested / SMOL_USERS) + EPOCHS * trained / SMOL_TARGETS
    trained_as = "VLM2Rec" if pictures else "SFT"
    kind = f"`vlm2rec backbone smol`; {trained_as}, training.users={trained}, evaluation.users={tested}"
    yield Alternative("smol", kind, _hours(smol))


def alternatives_text(split: Split) -> str:
    """A table of them."""
    rows = tuple((each.name, _shown(each.hours), each.how) for each in alternatives(split))
    title = "Without a GPU, hours from rates measured on two CPU cores"
    table = Grid(title, ("", "hours", "how"), rows).render("text")
    return "\n".join(line.rstrip() for line in table.splitlines())


def _hours(seconds: float) -> float:
    return seconds / 3600


def _shown(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}" if hours >= 0.01 else "< .01"
