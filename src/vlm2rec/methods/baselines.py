"""Popularity, item-kNN and chance beside every run: figures mean little without them, and they cost seconds.

They are counted for the run's own users, targets and candidates. Popularity and item-kNN are those of
`method.kind=poprec` and `itemknn`; chance is the exact expectation of a scorer that knows nothing.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from vlm2rec.config import Config, ItemKNN, PopRec
from vlm2rec.data.splits import Split
from vlm2rec.methods.counts import counting_scorer
from vlm2rec.runs import BASELINES, Run, locked, replacing
from vlm2rec.tasks import CANDIDATE_SETS, metrics_of, rank_users

CHANCE = "chance"


def keep_baselines(
    run: Run, split: Split, users: np.ndarray, shared: Path | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Write their ranks to the run, rows as in `users.parquet`; the metrics by row and candidate set.

    `shared` is a folder in which runs of the same users and candidates find what another one has counted.
    """
    out = run.path / BASELINES
    if shared is None:
        _write(_ranks(run.config, split, users), out)
    else:
        kept = shared / f"baselines-{_key(run.config, split)}.parquet"
        with locked(kept.with_suffix(".lock")):  # several runs of a sweep may come here at once
            if not kept.exists():
                _write(_ranks(run.config, split, users), kept)
        with replacing(out) as temporary:
            shutil.copyfile(kept, temporary)
    ranks = pl.read_parquet(out, glob=False)
    tasks = ranks["task"].unique(maintain_order=True).to_list()
    return {task: {kind: metrics_of(ranks, task, kind) for kind in CANDIDATE_SETS} for task in tasks}


def _ranks(config: Config, split: Split, users: np.ndarray) -> pl.DataFrame:
    seed = config.evaluation.candidate_seed
    popular, near = (
        rank_users(counting_scorer(method, split, users, "test", 0), split, users, "test", seed, task=method.kind)
        for method in (PopRec(), ItemKNN())
    )
    # A scorer that knows nothing ties everything, whatever the candidates.
    known_nothing = popular.with_columns(task=pl.lit(CHANCE), above=pl.lit(0, pl.Int32), ties=pl.col("candidates"))
    return pl.concat([known_nothing, popular, near])


def _write(ranks: pl.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        ranks.write_parquet(temporary)


def _key(config: Config, split: Split) -> str:
    """What the rows depend on."""
    evaluation = config.evaluation.model_dump(mode="json", include={"users", "candidate_seed"})
    key = [split.fingerprint, config.data.max_history, evaluation]
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
