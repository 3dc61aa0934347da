"""From finished runs to the lines of a table: figures of `results.json`, and what follows from them.

Besides those of `results.json`, a line has the figures

derived.parameters      of the backbone            derived.users          that were trained on
derived.minutes         of training                derived.epoch_minutes  the same, an epoch
derived.item_seconds    of embedding the catalogue
probe.STEP.NAME         a probe's figures; probes.WHEN.NAME those at the start, at about 1% and 10% of the steps, and
                        at the end
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlm2rec.compare import method_of
from vlm2rec.config import Bert, LLMEmb, NoteLLM2, Pair
from vlm2rec.embeddings import EmbeddingTable
from vlm2rec.experiments.spec import Line, Row
from vlm2rec.runs import Run, read_metrics

_BY_EPOCHS = ("sft", "vlm2rec")


def line_of(row: Row, folders: Sequence[Path]) -> Line:
    """A row's finished runs, one a seed, as a line. Raises InputError where one is unfinished."""
    runs = [Run.open(folder) for folder in folders]
    method = method_of(_label(row, runs[0]), runs)
    further = [dict(_derived(run)) for run in runs]
    shared = [name for name in further[0] if all(name in own for own in further)]
    return Line(row, replace(method, values={**method.values, **{n: tuple(own[n] for own in further) for n in shared}}))


def _label(row: Row, run: Run) -> str:
    """Small encoders are named, since any can be given."""
    method = run.config.method
    if isinstance(method, Bert) and method.path != Bert().path:
        return f"{row.label} ({Path(method.path).name})"
    if isinstance(method, Pair):
        return f"{Path(method.text).name} + {Path(method.image).name}"
    return row.label


def _derived(run: Run) -> Iterator[tuple[str, float]]:
    train = run.manifest["done"].get("train", {})
    if "trainable" in run.manifest:
        yield "derived.parameters", float(sum(tower["all"] for tower in run.manifest["trainable"].values()))
    if "users" in train:
        yield "derived.users", float(train["users"])
    if train.get("steps"):
        yield "derived.minutes", train["seconds"] / 60
        epochs = _epochs(run, train["steps"])
        if epochs:
            yield "derived.epoch_minutes", train["seconds"] / 60 / epochs
    if (run.path / "items").is_dir():
        seconds = EmbeddingTable.load(run.path / "items").manifest.get("seconds")
        if seconds is not None:
            yield "derived.item_seconds", float(seconds)
    yield from _probes(read_metrics(run.path / "metrics.jsonl", "probe"))


def _epochs(run: Run, steps: int) -> float:
    """How often training went over its data; 0 where that is no matter of epochs."""
    method = run.config.method
    if isinstance(method, LLMEmb):
        return float(steps * method.batch_size / run.results()["data"]["items"])
    if isinstance(method, NoteLLM2):
        return method.epochs
    return run.config.training.epochs if method.kind in _BY_EPOCHS else 0


def _probes(lines: Sequence[Mapping[str, float | str]]) -> Iterator[tuple[str, float]]:
    if not lines:
        return
    by_step = {int(line["step"]): line for line in lines}  # a run that was killed may have written one twice
    last = max(by_step)
    nearest = {share: min(by_step, key=lambda step: abs(step - last * part)) for share, part in _SHARES.items()}
    for step, line in sorted(by_step.items()):
        for name, value in line.items():
            if isinstance(value, float | int) and name not in ("step", "epoch"):
                yield f"probe.{step}.{name}", float(value)
                for when in (when for when, at in nearest.items() if at == step):
                    yield f"probes.{when}.{name}", float(value)


_SHARES = {"start": 0.0, "1%": 0.01, "10%": 0.1, "end": 1.0}
