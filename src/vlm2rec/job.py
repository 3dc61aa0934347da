"""The whole job: a configuration to a run directory with results. It asks the method for its steps
and does what is the same for all of them: ranks, diagnosis, report.

Stages stand on each other (reference, train, encode, evaluate, seqrec, report); each is skipped where the run directory
already lists it and what it left is whole, so running again continues.

Several processes share what comes up to `encode`, all on one shared folder; the first one does the rest alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vlm2rec import parallel
from vlm2rec.config import Config, sweep_configs
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.sources.shop import HALVES, Half, ShopWorld, prepared_oracle, world_of
from vlm2rec.data.splits import Split, split_of
from vlm2rec.diagnostics import Diagnosis, diagnose
from vlm2rec.diagnostics.cold import by_frequency
from vlm2rec.diagnostics.dropout import dropout_counts
from vlm2rec.diagnostics.measure import read_users, write_users
from vlm2rec.diagnostics.missing import CASES, missing_parts
from vlm2rec.diagnostics.space import Rows
from vlm2rec.diagnostics.status import status
from vlm2rec.errors import InputError
from vlm2rec.methods import build
from vlm2rec.methods.base import Embedder
from vlm2rec.methods.baselines import keep_baselines
from vlm2rec.methods.reading import unreadable, warn, warn_ahead
from vlm2rec.process import rank, world
from vlm2rec.progress import notice
from vlm2rec.runs import STAGES, Run, read_json, read_metrics, replacing, write_json
from vlm2rec.runs import find_runs as find_runs
from vlm2rec.stages import listed, lost, open_again, with_later
from vlm2rec.tasks import CANDIDATE_SETS, DRAWN, Table, metrics_of, rank_users, ranks_table

Say = Callable[[str], None]

_SHARED = STAGES[:3]


def run(
    config: Config, out: Path | str, shared: Path | str | None = None, until: str = "report", quick: bool = False
) -> Run:
    """Do the whole job of one method and one seed, or what is left of it; stop after the stage `until`.

    `shared` is a folder in which runs keep what does not depend on method and seed: the figures at step 0. `quick`
    marks a run whose settings are for a look, so that whatever shows it can say so. Several processes must all call
    this; those but the first come back when there is nothing left for them.

    Raises:
        InputError: the data set, the backbone or the directory cannot be used.
    """
    parallel.start()
    job = Job(config, Dataset.load(config.data.path), Path(out), None if shared is None else Path(shared))
    if quick:
        job.run.record(quick=True)
    wanted = STAGES[: STAGES.index(until) + 1]
    done = [stage for stage in wanted if job.run.is_done(stage)]
    if done and len(done) < len(wanted):
        notice(f"{out}: continues after {', '.join(done)}")
    for stage in wanted:
        if stage not in _SHARED and not parallel.part():
            break
        job.run.stage(stage, getattr(job, stage))
        parallel.barrier()
    return job.run


def continue_run(out: Path | str, until: str) -> Run:
    """Go on with an existing run directory up to and including the stage `until`."""
    return run(Run.open(out).config, out, until=until)


def diagnose_run(out: Path | str) -> dict[str, Any]:
    """The figures of a run, with its diagnosis; what is missing up to there is done first.

    Raises:
        InputError: it is no run directory, or its method has no vectors.
    """
    out = Path(out)
    run = continue_run(out, until="evaluate")
    results = run.results()
    if "dropout" not in results:
        raise InputError(f"{out}: {run.config.method.kind} has no embeddings, so there is nothing to diagnose")
    if "diagnosis" not in results:  # evaluated before there were diagnoses
        job = Job(run.config, Dataset.load(run.config.data.path), out)
        results |= job._diagnose().figures()
        write_json(out / "results.json", results)
    # From the evidence: in older runs "collapsed" means "at chance" too.
    return results | {"diagnosis": results["diagnosis"] | {"status": status(results["diagnosis"])}}


def sweep(path: Path | str, overrides: Sequence[str], out: Path | str, say: Say = print) -> list[Path]:
    """A run for every combination of the values that `--set key=a,b` lists, in folders under `out`.

    Runs that are done are skipped, so a sweep that was stopped goes on when it is called again.
    """
    out, configs = Path(out), sweep_configs(path, overrides)
    warn_ahead(config for _, config in configs)
    folders = []
    for number, (name, config) in enumerate(configs, start=1):
        say(f"[{number}/{len(configs)}] {out / name}")
        run(config, out / name, shared=out / ".shared")
        folders.append(out / name)
    return folders


@dataclass
class Job:
    """The stages of one run. Each returns what the manifest should keep of it."""

    config: Config
    dataset: Dataset
    out: Path
    shared: Path | None = None

    def __post_init__(self) -> None:
        self.split = Split(self.dataset, self.config.data.max_history, self.config.data.split)
        self.method = build(self.config, self.split)
        if world() > 1 and not self.method.shared:
            raise InputError(
                f"method.kind = {self.config.method.kind!r} runs in one process, not in {world()}; start vlm2rec by"
                " itself (vanilla, sft and vlm2rec use several)"
            )
        reasons = lost(self.out, self.method.leaves)
        done = listed(self.out) - with_later(reasons)
        if "encode" not in done:  # tried before a directory is made
            self.method.check(trained="train" in done)
        # Before anything costly, and again where a run is continued: the results are to carry it.
        self.warnings = [] if "evaluate" in done else unreadable(self.config, self.dataset)
        warn(self.warnings)
        if all(len(self.split.seen(user)) == self.split.n_items for user in range(self.split.n_users)):
            raise InputError(f"{self.config.data.path}: every user has every item, so there is nothing to choose from")
        if rank() == 0:
            self.run = Run.create(self.out, self.config)
        parallel.barrier()
        if rank() > 0:
            self.run = Run.open(self.out)
        parallel.barrier()
        split = self.split.record
        data = {"name": self.dataset.name, "fingerprint": self.dataset.fingerprint, "split": split}
        made = self.run.manifest.setdefault("data", data)
        if made["fingerprint"] != data["fingerprint"]:
            raise InputError(
                f"{self.out}: was made from other data than {self.config.data.path} holds now; give another --out"
            )
        if split_of(made) != split["fingerprint"]:
            raise InputError(f"{self.out}: was made with another split than this version makes; give another --out")
        if rank() == 0:
            open_again(self.run, reasons, self.method.leaves, self.method.kept)
        parallel.barrier()
        if rank() > 0:
            self.run.manifest["done"] = Run.open(self.out).manifest["done"]
        if world() > 1:
            self.run.record(processes=world())

    @cached_property
    def users(self) -> np.ndarray:
        """The test users that are evaluated."""
        chosen = self.config.evaluation
        return self.split.sample("test", chosen.users, chosen.candidate_seed, "evaluation")

    def reference(self) -> Mapping[str, Any]:
        """Figures before training, where the method has some."""
        self.method.reference(self.run, self.users, self.shared)
        return {}

    def train(self) -> Mapping[str, Any]:
        """Whatever the method learns."""
        return self.method.train(self.run)

    def encode(self) -> Mapping[str, Any]:
        """Items to `items/`, the histories of the test users to `histories/`, where the method has vectors."""
        return self.method.encode(self.run, self.users)

    def evaluate(self) -> Mapping[str, Any]:
        """Ranks to `users.parquet`, figures to `results.json`."""
        began = time.monotonic()
        seed = self.config.evaluation.candidate_seed
        results: dict[str, Any] = {
            "schema": 1,
            "method": self.config.method.kind,
            "seed": self.config.seed,
            "data": {
                "users": self.split.n_users,
                "items": self.split.n_items,
                "interactions": self.dataset.n_interactions,
                "evaluated_users": len(self.users),
                "split": self.split.record,
            },
        }
        scorer = self.method.scorer(self.run, self.users, "test")
        ranks = rank_users(scorer, self.split, self.users, "test", seed)
        if isinstance(self.method, Embedder):
            found = self._diagnose()
            ranks = pl.concat([ranks, *self._dropout(found)])
            results |= found.figures()
            encoder = self.method.trained_encoder(self.run) if self.config.evaluation.missing else None
            if encoder is not None:
                parts = missing_parts(encoder, self.split, self.users, seed, self.out)
                ranks = pl.concat([ranks, parts])
                results["missing"] = {
                    case: {kind: metrics_of(parts, f"missing:{case}", kind) for kind in DRAWN} for case in CASES
                }
        if (self.out / "reference.json").exists():
            results["reference"] = read_json(self.out / "reference.json", "reference")
        results["retrieval"] = {kind: metrics_of(ranks, "retrieval", kind) for kind in CANDIDATE_SETS}
        results["cold"] = by_frequency(ranks, self.split)
        results["cost"] = self._cost(time.monotonic() - began)
        results["baselines"] = keep_baselines(self.run, self.split, self.users, self.shared)
        if self.warnings:
            results["warnings"] = self.warnings
        if (world := world_of(self.dataset)) is not None:
            results["oracle"] = self._oracle(world)
        results["validation"] = self.run.manifest["done"]["train"].get("validation", {})
        with replacing(self.out / "users.parquet") as temporary:
            ranks.write_parquet(temporary)
        write_json(self.out / "results.json", results)
        return {}

    def _diagnose(self) -> Diagnosis:
        """Both modalities of what `encode` left, against step 0 where the method has one."""
        assert isinstance(self.method, Embedder)
        items, histories = self.method.tables(self.run, self.users)
        seed = self.config.evaluation.candidate_seed
        start, probes = read_users(self.out / "reference.parquet"), read_metrics(self.out / "metrics.jsonl", "probe")
        found = diagnose(histories, items, self.split, self.users, seed, start, probes)
        write_users(found.measured.users, self.out / "modalities.parquet")
        return found

    def _dropout(self, found: Diagnosis) -> Iterator[pl.DataFrame]:
        """Ranks of one-sided queries, as rows of `users.parquet`: on `sampled` as diagnosed, and on `matched`."""
        assert isinstance(self.method, Embedder)
        items, histories = self.method.tables(self.run, self.users)
        targets = self.split.targets_of(self.users, "test")
        ids = found.measured.users["user_id"].to_list()
        seed = self.config.evaluation.candidate_seed
        one_sided: dict[str, Rows] = {view: histories[view] for view in ("text", "image") if view in histories.views}
        for kind in DRAWN:
            drawn = draw_candidates(self.split, self.users, "test", kind, seed)
            counts = dict(found.measured.counts)
            if kind != "sampled":
                counts = dropout_counts(one_sided, items["fused"], targets, drawn)
            counts.pop("f2f", None)  # which is the retrieval itself
            for name, some in counts.items():
                yield ranks_table(ids, f"dropout:{name}", kind, (drawn >= 0).sum(axis=1), *some)

    def seqrec(self) -> Mapping[str, Any]:
        """Task 2, where the configuration asks for it: added to `users.parquet` and `results.json`."""
        began = time.monotonic()
        found = self.method.sequence_task(self.run, self.users)
        if not found:
            return {}
        results = self.run.results()
        ranks = pl.read_parquet(self.out / "users.parquet", glob=False).filter(
            ~pl.col("task").str.starts_with("seqrec:")
        )
        results["seqrec"] = {}
        for kind, result in found.items():
            task = f"seqrec:{kind}"
            seed = self.config.evaluation.candidate_seed
            some = rank_users(result.scorer, self.split, self.users, "test", seed, task=task)
            ranks = pl.concat([ranks, some])
            results["seqrec"][kind] = {view: metrics_of(some, task, view) for view in CANDIDATE_SETS}
            if result.validation:
                results["validation"] = {**results["validation"], f"seqrec:{kind}": dict(result.validation)}
        results["cold"] = by_frequency(ranks, self.split)
        seconds = time.monotonic() - began
        results["cost"]["seconds"]["seqrec"] = seconds
        with replacing(self.out / "users.parquet") as temporary:
            ranks.write_parquet(temporary)
        write_json(self.out / "results.json", results)
        return {"seconds": seconds}

    def report(self) -> Mapping[str, Any]:
        """`report.html` of this run alone."""
        from vlm2rec.report.html import write_report

        write_report([self.out], self.out / "report.html", title=f"{self.config.method.kind}, seed {self.config.seed}")
        return {}

    def _oracle(self, world: ShopWorld) -> dict[str, Any]:
        """What knowing the tastes of the demo's shoppers reaches; `title`, `picture`: the half that one shows."""
        ids = [self.dataset.user_ids[user] for user in self.users]
        found: dict[Half, dict[str, Any]] = {}
        for half in HALVES:
            scorer = Table(prepared_oracle(world, self.dataset.item_ids, ids, half))
            ranks = rank_users(scorer, self.split, self.users, "test", self.config.evaluation.candidate_seed)
            found[half] = {kind: metrics_of(ranks, "retrieval", kind) for kind in CANDIDATE_SETS}
        return {**found["both"], "title": found["title"], "picture": found["picture"]}

    def _cost(self, seconds: float) -> dict[str, Any]:
        done = self.run.manifest["done"]
        taken = {stage: info["seconds"] for stage, info in done.items() if "seconds" in info}
        if "probe_seconds" in done["train"]:
            taken["probes"] = done["train"]["probe_seconds"]
        cost: dict[str, Any] = {"seconds": {**taken, "evaluate": seconds}}
        if "epoch_seconds" in done["train"]:
            cost["epoch_seconds"] = done["train"]["epoch_seconds"]
        if "trainable" in self.run.manifest:
            cost["trainable"] = self.run.manifest["trainable"]
        return cost
