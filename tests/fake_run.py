"""Run directories without a model: vectors drawn so that each modality knows a chosen amount of what comes next."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from vlm2rec.config import parse_config
from vlm2rec.data.candidates import draw_candidates
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics import Diagnosis
from vlm2rec.diagnostics.dropout import cosine_counts
from vlm2rec.diagnostics.measure import measure
from vlm2rec.diagnostics.verdict import conclude
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.methods.baselines import keep_baselines
from vlm2rec.metrics import ndcg, summarise
from vlm2rec.runs import Run, read_metrics, write_json

SIZE = 16
COUNTING = ("poprec", "itemknn", "random")


class FakeSource:
    """A small shop; `pictures=False` leaves the image column empty."""

    def __init__(self, items: int = 130, users: int = 60, pictures: bool = True, seed: int = 0) -> None:
        self.items, self.users, self.pictures, self.seed = items, users, pictures, seed

    def read(self) -> RawData:
        rng = np.random.default_rng(self.seed)
        items = pl.DataFrame(
            {
                "item_id": [f"i{n}" for n in range(self.items)],
                "title": [f"Thing <{n}> & co" for n in range(self.items)],
                "image": [f"{n}.png" if self.pictures else None for n in range(self.items)],
            },
            schema={"item_id": pl.String, "title": pl.String, "image": pl.String},
        )
        baskets = [rng.choice(self.items, size=14 if user % 5 == 0 else 7, replace=False) for user in range(self.users)]
        # Everything is bought at least once, so that nothing drops out.
        baskets[0] = np.arange(self.items)
        events = [(f"u{u}", f"i{i}", t) for u, basket in enumerate(baskets) for t, i in enumerate(basket)]
        interactions = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
        return RawData("fake shop", items, interactions, self._draw if self.pictures else None)

    def _draw(self, name: str) -> Image.Image:
        number = int(name.removesuffix(".png"))
        image = Image.new("RGB", (48, 48), (number * 37 % 256, number * 91 % 256, number * 53 % 256))
        ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=(255 - number, number * 11 % 256, 120))
        return image


def fake_dataset(out: Path, pictures: bool = True, seed: int = 0) -> Dataset:
    require = ("title", "image") if pictures else ("title",)
    return prepare(FakeSource(pictures=pictures, seed=seed), out, require=require, k_core=0, picture_size=48)


def fake_run(
    out: Path,
    dataset: Dataset,
    kind: str = "sft",
    seed: int = 0,
    text: float = 1.0,
    image: float = 0.5,
    candidate_seed: int = 0,
    settings: dict[str, dict[str, object]] | None = None,
    oracle: bool = False,
) -> Path:
    """A finished run. `text` and `image`: how near a history's vector lies to its target's, against noise of 1."""
    config = parse_config(
        {
            "seed": seed,
            "data": {"path": str(dataset.path)},
            "method": {"kind": kind},
            "evaluation": {"candidate_seed": candidate_seed},
            **(settings or {}),
        }
    )
    run = Run.create(out, config)
    run.record(data={"name": dataset.name, "fingerprint": dataset.fingerprint})
    split = Split(dataset)
    users = np.arange(split.n_users)
    targets = np.array([split.target(int(user), "test") for user in users])
    results: dict[str, object] = {
        "schema": 1,
        "method": kind,
        "seed": seed,
        "data": {
            "users": split.n_users,
            "items": split.n_items,
            "interactions": dataset.interactions.height,
            "evaluated_users": len(users),
        },
    }
    world, rng = np.random.default_rng(99), np.random.default_rng([seed, sum(map(ord, kind))])
    items = {view: world.standard_normal((split.n_items, SIZE)) for view in ("text", "image")}
    histories = {
        view: skill * items[view][targets] + rng.standard_normal((len(users), SIZE))
        for view, skill in (("text", text), ("image", image))
    }
    for views in (items, histories):
        views["fused"] = views["text"] + views["image"]
    if kind not in COUNTING:
        EmbeddingTable(dataset.item_ids, items).save(out / "items")
        EmbeddingTable(dataset.user_ids, histories).save(out / "histories")
    results["retrieval"], frames = _rank(split, users, targets, items, histories, candidate_seed, kind)
    pl.concat(frames).write_parquet(out / "users.parquet")
    results["cold"] = {"retrieval": _cold(split, targets, frames)}
    if kind in ("sft", "vlm2rec"):
        _curves(out / "metrics.jsonl", rng, kind)
    if kind not in COUNTING:
        sampled = draw_candidates(split, users, "test", "sampled", candidate_seed)
        start = {view: items[view][targets] * 0.3 + world.standard_normal((len(users), SIZE)) for view in items}
        now, before = (measure(dataset.user_ids, some, items, targets, sampled, 0) for some in (histories, start))
        probes = read_metrics(out / "metrics.jsonl", "probe")
        results |= Diagnosis(now, conclude(now, before.users, probes)).figures()
        results["reference"] = {"dropout": before.dropout(), "geometry": before.geometry}
    results["cost"] = {"seconds": {"train": 12.5, "evaluate": 0.8, "probes": 1.5}}
    if oracle:
        results["oracle"] = {"sampled": {"N@20": 0.75}}
    write_json(out / "results.json", results)
    return out


def counted(run: Path, dataset: Dataset) -> Path:
    """Give a run what a job counts beside it."""
    split = Split(dataset)
    found = keep_baselines(Run.open(run), split, np.arange(split.n_users), None)
    write_json(run / "results.json", json.loads((run / "results.json").read_text()) | {"baselines": found})
    return run


def older(run: Path) -> Path:
    """Make a run as it was before there were diagnoses, probes and buckets of rare items."""
    results = json.loads((run / "results.json").read_text())
    for key in ("diagnosis", "cold"):
        results.pop(key, None)
    for part in (results, results.get("reference", {})):
        if "dropout" in part:
            part["dropout"] = {name: part["dropout"][name] for name in ("f2f", "t2f", "v2f")}
    write_json(run / "results.json", results)
    if (run / "metrics.jsonl").exists():
        lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["prompt"]["sum"] = "raw"
    del manifest["config"]["prompt"]["combine"], manifest["config"]["monitor"]
    write_json(run / "manifest.json", manifest)
    return run


def _rank(split, users, targets, items, histories, candidate_seed, kind):
    unit = {
        name: {view: v / np.linalg.norm(v, axis=1, keepdims=True) for view, v in views.items()}
        for name, views in (("items", items), ("histories", histories))
    }
    drawn = {name: draw_candidates(split, users, "test", name, candidate_seed) for name in ("sampled", "matched")}
    everything = np.array([[item for item in range(split.n_items) if item != target] for target in targets])
    unseen = everything.copy()
    for user in users:
        unseen[user, np.isin(unseen[user], split.past(int(user), "test"))] = -1
    retrieval, frames = {}, []
    asked = [("retrieval", "fused", name) for name in ("sampled", "matched", "full", "full_unseen")]
    if kind not in COUNTING:
        asked += [
            (f"dropout:{short}", view, name) for short, view in (("t2f", "text"), ("v2f", "image")) for name in drawn
        ]
    for task, view, name in asked:
        candidates = {**drawn, "full": everything, "full_unseen": unseen}[name]
        above, ties = cosine_counts(unit["histories"][view], unit["items"]["fused"], targets, candidates)
        if task == "retrieval":
            retrieval[name] = summarise(above, ties)
        frames.append(
            pl.DataFrame(
                {
                    "user_id": split.dataset.user_ids,
                    "task": task,
                    "view": name,
                    "candidates": (candidates >= 0).sum(1).astype(np.int32),
                    "above": above.astype(np.int32),
                    "ties": ties.astype(np.int32),
                }
            )
        )
    return retrieval, frames


def _cold(split: Split, targets: np.ndarray, frames: list[pl.DataFrame]) -> dict[str, dict[str, float]]:
    """N@20 by how many events of the target are in training, as `results.json` has it."""
    ranks = pl.concat(frames).filter(pl.col("task") == "retrieval")
    seen, found = split.popularity[targets], {}
    for name, low, high in (("0", 0, 0), ("1-5", 1, 5), ("6-10", 6, 10), ("11-20", 11, 20), ("21+", 21, 10**9)):
        inside = (seen >= low) & (seen <= high)
        if inside.any():
            found[name] = {"users": int(inside.sum())}
            for view in ("sampled", "full"):
                rows = ranks.filter(pl.col("view") == view)
                found[name][view] = float(ndcg(rows["above"].to_numpy(), rows["ties"].to_numpy(), 20)[inside].mean())
    return found


def _curves(path: Path, rng: np.random.Generator, kind: str) -> None:
    lines = [_probe(0, kind)]
    for step in range(1, 301):
        settled = 1 - np.exp(-step / 80)
        line = {"kind": "train", "step": step, "loss": 4 - 1.5 * settled + 0.1 * rng.standard_normal()}
        line |= {"margin_text": 0.3 * settled + 0.02 * rng.standard_normal()}
        line |= {"margin_image": (0.2 if kind == "vlm2rec" else 0.03) * settled + 0.02 * rng.standard_normal()}
        line |= {"samples_per_s": 40 + rng.standard_normal(), "memory_gib": 2.5}
        if kind == "vlm2rec":
            line |= {"penalty": 3 - settled, "gap": 0.2 - 0.1 * settled}
        lines.append(line)
        if step % 100 == 0:
            lines.append({"kind": "validation", "step": step, "N@20": 0.1 + 0.1 * settled})
        if step in (1, 3, 10, 30, 100, 300):
            lines.append(_probe(step, kind))
        if step == 100 and kind == "sft":
            lines.append(
                {
                    "kind": "warning",
                    "step": step,
                    "modality": "image",
                    "difference": -0.051,
                    "low": -0.07,
                    "high": -0.03,
                }
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')  # cut short by a kill


def _probe(step: int, kind: str) -> dict[str, object]:
    settled = 1 - float(np.exp(-step / 40))
    image = 0.1 if kind == "vlm2rec" else -0.12
    return {
        "kind": "probe",
        "step": step,
        "epoch": 1,
        "grad_cos_text": 0.8 + 0.1 * settled,
        "grad_cos_image": 0.7 + 3 * image * settled,
        "f2f": 0.2 + 0.15 * settled,
        "t2f": 0.2 + 0.1 * settled,
        "v2f": 0.2 + image * settled,
        "S_text": 1.2 + 0.3 * settled,
        "S_image": 1.2 + image * settled,
        "S_fused": 1.3 + 0.2 * settled,
        "seconds": 0.2,
    }
