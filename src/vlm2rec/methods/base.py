"""What a run asks of every method: the same few steps, whatever happens inside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlm2rec.config import Config
from vlm2rec.data.splits import Split, Which
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.errors import InputError
from vlm2rec.runs import Run
from vlm2rec.tasks import Cosine, Scorer

if TYPE_CHECKING:
    from vlm2rec.encoder import Encoder
    from vlm2rec.seqrec.items import Items, Norm


TABLES = ("items", "histories")
ADAPTED = ("model/encoder.json", "model/adapter_config.json", "model/adapter_model.safetensors")
"""What `Encoder.save` leaves of an encoder with adapters."""


@dataclass(frozen=True)
class SequenceResult:
    """A fitted sequential model's scores of the test users, and what was chosen on validation."""

    scorer: Scorer
    validation: Mapping[str, Any]


class Recommender:
    """One method on one split. A method overrides the steps that it has; the rest do nothing.

    The steps come in the order of the methods below. Each may be killed and called again: what it leaves in the run
    directory is whole or not there, and what `train` and `encode` return goes into the manifest.
    """

    shared: ClassVar[bool] = False
    """Whether several processes can share the steps up to `encode`. Then each takes all of them, at the same time."""

    kept: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Stage -> patterns of what it makes on its way and takes up again where it was stopped, in the run directory.

    That is removed where a stage before it is done again: it stems from what was there then."""

    def __init__(self, config: Config, split: Split) -> None:
        self.config = config
        self.split = split

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """Stage -> what it leaves in the run directory; a stage counts as done only as long as all of it is whole.

        Files and, as folders, tables of embeddings (see `damage`).
        """
        return {}

    def check(self, trained: bool) -> None:
        """Try data, backbone and prompts before anything is written; `trained`: only encoding is left.

        Raises:
            InputError: they do not fit the method.
        """

    def reference(self, run: Run, users: np.ndarray, shared: Path | None) -> None:
        """Figures before training to `reference.json`; `shared` is where runs of a sweep keep them for each other."""

    def train(self, run: Run) -> Mapping[str, Any]:
        """Learn from the training events; validation targets may choose between weights, test's are never looked at."""
        return {}

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Vectors to `items/` and, for the test histories of `users`, to `histories/`, where there are vectors."""
        return {}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Scores of `users` at validation or test, row by row."""
        raise NotImplementedError

    def sequence_task(self, run: Run, users: np.ndarray) -> dict[str, SequenceResult]:
        """Task 2: sequential models started from the method, by backbone; none where it has nothing to start from."""
        return {}


class Embedder(Recommender):
    """A method whose scores are cosines between `histories/` and `items/`, which `encode` leaves."""

    kept: ClassVar[Mapping[str, Sequence[str]]] = {
        "encode": ("items.parts", "histories.parts", "histories-validation"),
        "seqrec": ("stages/sasrec-*", "stages/gru4rec-*"),
    }

    @property
    def leaves(self) -> Mapping[str, Sequence[str]]:
        """Vectors, and what each modality finds for each user."""
        return {"encode": TABLES, "evaluate": ("modalities.parquet",)}

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Cosines of the fused vectors (Task 1); `users` are those that were encoded.

        Raises InputError for the validation histories: a method that can embed them at will says so by its own.
        """
        if which != "test":
            raise InputError(f"{run.path}: {self.config.method.kind} keeps vectors of test histories alone")
        items, histories = self.tables(run, users)
        return Cosine(histories.unit("fused"), items.unit("fused"))

    def tables(self, run: Run, users: np.ndarray) -> tuple[EmbeddingTable, EmbeddingTable]:
        """What `encode` left of the catalogue and of the test histories of `users`.

        Raises InputError where one is not whole, or of other items or users.
        """
        names = [self.split.dataset.user_ids[int(user)] for user in users]
        return self.item_table(run.path / "items"), EmbeddingTable.load(run.path / "histories", names, "users")

    def item_table(self, folder: Path) -> EmbeddingTable:
        """A table with a row an item of the catalogue. Raises InputError as `tables`."""
        return EmbeddingTable.load(folder, self.split.dataset.item_ids)

    def trained_encoder(self, run: Run) -> "Encoder | None":
        """The encoder behind these vectors, where it embeds any history of any items; None where there is none."""
        return None

    norms: ClassVar[tuple["Norm", ...]] = ("l2", "standardize")
    """What `seqrec.norm = "auto"` chooses from, on validation."""

    def sequence_items(self, run: Run, norm: "Norm") -> "Items":
        """Where a sequential model takes its items from: the fused vectors behind one linear adapter (Sec. 5.1.3)."""
        from vlm2rec.seqrec.items import TableItems, normalised

        settings = self.config.seqrec
        vectors = normalised(self.item_table(run.path / "items")["fused"], norm)
        return TableItems(vectors, settings.dim, tuned=settings.table == "tuned")

    def sequence_task(self, run: Run, users: np.ndarray) -> dict[str, SequenceResult]:
        """Every backbone of `seqrec.backbones`, fitted on the training events and chosen on validation."""
        from vlm2rec.seqrec.fit import fit_from_vectors

        settings, folder = self.config.seqrec, run.path / "stages"
        items = partial(self.sequence_items, run)
        found: dict[str, SequenceResult] = {}
        for kind in settings.backbones:
            model = fit_from_vectors(
                kind, items, self.norms, self.split, settings, self.config.seed, folder, self.config.evaluation
            )
            found[kind] = SequenceResult(model.scorer(users, "test"), model.validation)
        return found


class ItemEmbedder(Embedder):
    """A method that embeds items alone: a history is the mean of its items' unit vectors (Sec. 5.1.3)."""

    def encode(self, run: Run, users: np.ndarray) -> Mapping[str, Any]:
        """Items by `encode_items`, histories by their mean."""
        items = self.encode_items(run)
        pooled(items, self.split, users, "test").save(run.path / "histories")
        return {}

    def encode_items(self, run: Run) -> EmbeddingTable:
        """Every item of the catalogue to `items/`."""
        raise NotImplementedError

    def scorer(self, run: Run, users: np.ndarray, which: Which) -> Scorer:
        """Cosines of mean vectors and item vectors, for any users and either target."""
        items = self.item_table(run.path / "items")
        return Cosine(pooled(items, self.split, users, which).unit("fused"), items.unit("fused"))


def pooled(items: EmbeddingTable, split: Split, users: Sequence[int] | np.ndarray, which: Which) -> EmbeddingTable:
    """Mean of the unit item vectors of each user's history, for every view: a table of histories.

    Unit vectors first: otherwise an item with a long vector would outvote the others.
    """
    histories = [split.history(int(user), which) for user in users]
    views = {}
    for name in items.views:
        unit = items.unit(name)
        views[name] = np.stack([unit[history].mean(axis=0) for history in histories])
    return EmbeddingTable([split.dataset.user_ids[int(user)] for user in users], views)


def validation_users(config: Config, split: Split, trained: np.ndarray | None, most: int | None = None) -> np.ndarray:
    """Whom to validate on: `evaluation.validation_users` (none given: `most`, or all); few-shot, those `trained` on.

    Where a split leaves none of the latter a validation target, as many others stand in.
    """
    count, seed = config.evaluation.validation_users or most, config.evaluation.candidate_seed
    if trained is None or config.training.users is None:
        return split.sample("validation", count, seed, "validation")
    both = trained[split.targets["validation"][trained] >= 0]
    return both if len(both) else split.sample("validation", len(trained), seed, "validation")


def asked_histories(split: Split) -> list[list[int]]:
    """A history of everybody who has a target: that at test, or where there is none, that at validation."""
    at: dict[Which, np.ndarray] = {"test": split.able("test")}
    at["validation"] = np.setdiff1d(split.able("validation"), at["test"])
    return [split.history(int(user), which).tolist() for which, users in at.items() for user in users]


def need_pictures(split: Split, why: str) -> None:
    """Raise InputError where the data has no picture at all; `why` says who asks and what else could be done."""
    if not any(split.dataset.pictures.digests):
        raise InputError(f"{split.dataset.path}: has no pictures, which {why}")


def need_titles(split: Split, why: str) -> None:
    """Raise InputError where the data has no title at all; `why` says who asks and what else could be done."""
    if not any(split.dataset.titles):
        raise InputError(f"{split.dataset.path}: has no titles, which {why}")
