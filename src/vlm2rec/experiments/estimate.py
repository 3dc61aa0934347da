"""What an experiment would take, before it runs: operations counted from the configuration, at a stated rate.

Counted: 2 operations a parameter and token forward, as many again back to the adapters, one forward more for
checkpointed gradients and for micro-batches; visual tokens once a picture; items and users at every validation and at
the end; the softmax over the catalogue for sequential models. Not counted: probes, generated text, attention over
long prompts, reading files. So the hours are a guess to plan by, not a promise; finished runs in the folder correct it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vlm2rec.config import DataConfig, LLM2Rec, LLMEmb, NoteLLM2
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.errors import InputError
from vlm2rec.experiments.schedule import Task, gpus
from vlm2rec.experiments.sizes import Size, size_of
from vlm2rec.grid import Grid
from vlm2rec.runs import Run
from vlm2rec.training.batches import Samples

_SHARE = 0.3
"""Of a matrix product's speed: what training and encoding are taken to reach."""

_AGAIN = {False: 0.0, True: 1.0, "mlp": 0.8}
"""Forward passes that are computed again, by `training.gradient_checkpointing`; feed-forward parts are .67 to .88."""

_FITTED_EPOCHS = 15  # a sequential model's, where early stopping ends it
_NORMS = 2  # each is fitted with either norm of the vectors
_READS_PROMPTS = ("vanilla", "sft", "vlm2rec", "llmemb", "llm2rec", "slim", "vlm_prompt", "notellm2", "transfer")
_SEQUENTIAL = ("sasrec", "gru4rec")


@dataclass(frozen=True)
class Estimate:
    """Of one run: operations, what is trained, memory; `seconds` where it is finished and was measured."""

    task: Task
    done: bool
    flops: float
    size: Size | None
    seconds: float | None
    note: str


def plan_text(tasks: Sequence[Task], jobs: int) -> str:
    """A table of runs with a total, and what was assumed, as text."""
    splits: dict[DataConfig, Split] = {}
    started: set[str] = set()
    found = []
    for task in tasks:
        data = task.config.data
        if data not in splits:
            splits[data] = Split(Dataset.load(data.path), data.max_history, data.split)
        found.append(_estimate(task, splits[data], task.start not in started))
        started.add(task.start)
    rate, source = _rate(found)
    open_hours = sum(each.flops for each in found if not each.done) / rate / 3600
    rows = [_row(each, rate) for each in found]
    at_once = min(jobs, len(gpus()))
    header = ("run", "state", "trainable", "GiB", "hours", "")
    done = sum(each.done for each in found)
    lines = [
        Grid(f"{len(found)} runs, {done} done", header, tuple(rows)).render("text"),
        "",
        f"about {_hours(open_hours)} h for the {len(found) - done} that are left"
        + (f", {_hours(open_hours / at_once)} h on {at_once} GPUs at once" if at_once > 1 else ""),
        f"rate: {rate / 1e12:.3g} TFLOP/s, {source}",
        "GiB: weights, and gradients and moments of what is trained; activations come on top.",
    ]
    assumed = dict.fromkeys(each.size.assumed for each in found if each.size and each.size.assumed)
    return "\n".join([*lines, *(f"assumed: {what}" for what in assumed)])


def _row(each: Estimate, rate: float) -> tuple[str, ...]:
    seconds = each.flops / rate if each.seconds is None else each.seconds
    trains = each.task.config.method.kind not in ("vanilla", "vlm_prompt", "transfer")
    return (
        each.task.name,
        "done" if each.done else "begun" if each.task.folder.exists() else "to do",
        f"{each.size.trainable:,}" if each.size and trains else "–",
        f"{each.size.gib:.2f}" if each.size else "–",
        _hours(seconds / 3600),
        each.note,
    )


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}" if hours >= 0.01 else "< .01"


def _rate(found: Sequence[Estimate]) -> tuple[float, str]:
    """Operations a second: as finished runs reached them, else a share of a matrix product measured here."""
    measured = [each for each in found if each.seconds and each.flops and each.size]
    if measured:
        rate = sum(each.flops for each in measured) / sum(each.seconds or 0 for each in measured)
        return rate, f"as the {len(measured)} finished runs reached it"
    product, where = _matrix_product()
    return product * _SHARE, f"assumed: {_SHARE:.0%} of a matrix product on {where} ({product / 1e12:.3g} TFLOP/s)"


def _matrix_product() -> tuple[float, str]:
    """Operations a second of a matrix product, in the precision that backbones have here."""
    gpu = torch.cuda.is_available()
    side, device, dtype = (8192, "cuda", torch.bfloat16) if gpu else (1024, "cpu", torch.float32)
    left = torch.randn(side, side, device=device).to(dtype)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        left @ left
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    where = torch.cuda.get_device_name() if gpu else f"this CPU, {torch.get_num_threads()} threads"
    return 2 * side**3 / min(times), where


def _estimate(task: Task, split: Split, first: bool) -> Estimate:
    done, seconds = task.is_done, None
    if done:
        spent = Run.open(task.folder).results()["cost"]["seconds"]
        seconds = float(sum(value for value in spent.values() if isinstance(value, int | float)))
    size, note = None, ""
    if task.config.method.kind in _READS_PROMPTS:
        try:
            size = size_of(task.config, split)
        except InputError as error:
            note = f"not estimated: {error}"
    flops = 0.0 if size is None else _model_flops(task, split, size, first)
    return Estimate(task, done, flops + _sequence_flops(task, split), size, seconds, note or _uncounted(task))


def _uncounted(task: Task) -> str:
    method = task.config.method
    generates = method.kind == "slim" or (method.kind == "vlm_prompt" and method.pooling == "generated")
    return "without the text that it generates" if generates else ""


def _model_flops(task: Task, split: Split, size: Size, first: bool) -> float:
    """Of the backbone: training, validation and encoding; `first`: the figures before training come with it."""
    config, method = task.config, task.config.method
    evaluation = config.evaluation
    able = split.able("test")
    users = evaluation.users or len(able)
    mean = float(np.minimum(split.ends["test"][able], split.max_history).mean())
    forward = 2 * size.layers
    catalogue, histories = split.n_items * size.tokens(1) * forward, users * size.tokens(mean) * forward
    flops = catalogue + histories
    if config.prompt.modalities != "text":
        flops += split.n_items * size.vision
    once = 2.0 + _AGAIN[config.training.gradient_checkpointing] + (config.training.micro_batch is not None)
    match method.kind:
        case "sft" | "vlm2rec":
            samples = Samples(split, config.training, config.seed)
            most = len(split.able("validation"))
            validated = min(evaluation.validation_users or most, most, len(samples.users))
            trained = samples.steps_per_epoch * samples.batch_size * (size.tokens(mean) + size.tokens(1)) * forward
            each = once * trained + catalogue + validated * size.tokens(mean) * forward
            flops += config.training.epochs * each + first * flops
        case "llmemb":
            assert isinstance(method, LLMEmb)
            flops += 2 * 2 * method.steps * method.batch_size * size.tokens(1) * forward
        case "llm2rec":
            assert isinstance(method, LLM2Rec)
            work = method.csft_steps * method.csft_batch * size.tokens(mean)
            work += (method.mntp_steps * method.mntp_batch + 2 * method.contrast_steps * method.contrast_batch) * (
                size.tokens(1)
            )
            flops += 3 * work * forward  # with the gradients of all weights
        case "notellm2":
            assert isinstance(method, NoteLLM2)
            pairs = method.epochs * split.n_items * method.neighbours
            flops += 2 * 2 * pairs * size.tokens(1) * forward
    return flops


def _sequence_flops(task: Task, split: Split) -> float:
    """Of sequential models: their softmax over the catalogue, forward and back."""
    settings = task.config.seqrec
    positions = int(np.maximum(split.train.lengths - 1, 0).sum())
    fit = min(settings.epochs, _FITTED_EPOCHS) * positions * split.n_items * settings.dim * 6
    if task.config.method.kind in _SEQUENTIAL:
        return float(fit)
    return float(fit * _NORMS * len(settings.backbones)) if task.until in ("seqrec", "report") else 0.0
